"""Calibrated spectral screening as a whole: rates on noise, power, fairness to large clients, and what it never does."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.errors import ConfigError
from fedsec.robust.base import Mode, RoundView
from fedsec.robust.hiding_room import hiding_room
from fedsec.robust.reputation_records import RoundObservation
from fedsec.robust.screening import SUSPICION, ScreeningState, screen


def names(count):
    return tuple(f"c{place:03d}" for place in range(count))


def view_of(rows, *, most=None, sizes=None, stddev=1.0, **changes):
    count = len(rows)
    fields = {
        "mode": Mode.OPEN,
        "client_ids": names(count),
        "vectors": rows,
        "dimension": rows.shape[1],
        "batch_sizes": np.ones(count) if sizes is None else np.asarray(sizes, dtype=float),
        "noise_stddev": stddev,
        "num_byzantine": count // 4 if most is None else most,
    }
    return RoundView(**(fields | changes))


def rejected(rows, **kwargs):
    return np.flatnonzero(~screen(view_of(rows, **kwargs))[0].accepted).tolist()


def noise(seed=0, count=20, columns=128):
    return np.random.default_rng(seed).standard_normal((count, columns))


@pytest.mark.parametrize(("count", "columns"), [(6, 16), (20, 128), (20, 650), (60, 64)])
def test_of_honest_clients_that_send_noise_one_in_a_thousand_is_rejected(count, columns):
    rounds = 12_000 // count
    total = sum(len(rejected(noise(seed, count, columns))) for seed in range(rounds))
    assert total / (rounds * count) <= 2e-3


def test_honest_clients_with_signal_are_hardly_ever_rejected():
    generator, total = np.random.default_rng(1), 0
    for _ in range(200):
        common = 2.0 * np.eye(1, 128)[0]
        own = 2.0 * generator.standard_normal((20, 8)) @ np.linalg.qr(generator.standard_normal((128, 8)))[0].T / np.sqrt(8)
        total += len(rejected(generator.standard_normal((20, 128)) + common + own))
    assert total / 4000 <= 5e-3


def test_clients_of_unequal_size_are_not_rejected_for_it():
    sizes = np.array([8.0] * 15 + [16.0] * 3 + [40.0, 184.0])  # the largest as large as the rest together
    total = [0] * 20
    for seed in range(100):
        signal = 0.6 * (sizes / 8)[:, None] * np.eye(1, 128)
        for index in rejected(noise(seed) + signal, sizes=sizes):
            total[index] += 1
    assert sum(total) <= 6
    assert total[19] <= 1


@pytest.mark.parametrize("members", [2, 3, 5])
def test_colluders_over_the_room_are_found_and_nobody_else(members):
    amplitude = (
        1.3 * hiding_room(num_clients=20, num_byzantine=members, num_columns=128, dimension=128, rounds=1, lifted=True).with_noise / members
    )
    right, wrong = 0, 0
    for seed in range(50):
        rows = noise(seed)
        rows[:members, 0] += amplitude
        out = rejected(rows)
        right += sum(index < members for index in out)
        wrong += sum(index >= members for index in out)
    assert right / (50 * members) >= 0.95
    assert wrong <= 3


def test_colluders_without_noise_are_under_the_gate():
    rows = noise()
    rows[:4] = 6 * np.eye(1, 128)
    verdict, _ = screen(view_of(rows))
    assert np.flatnonzero(~verdict.accepted).tolist() == [0, 1, 2, 3]
    assert "norm 6.0 is under the least" in verdict.reasons["c000"]


def test_a_push_that_is_weak_in_each_round_becomes_a_suspicion_and_no_rejection():
    state, verdict = None, None
    for seed in range(15):
        rows = noise(seed)
        rows[:4, 0] += 3.0
        verdict, state = screen(view_of(rows), state=state)
        assert verdict.accepted.all()
    found = {name[len(SUSPICION) :]: value for name, value in verdict.facts.items() if name.startswith(SUSPICION)}
    assert sorted(found) == ["c000", "c001", "c002", "c003"]
    assert min(found.values()) >= 1
    assert RoundObservation.from_verdict(15, names(20), verdict, suspicions=found).is_suspect("c002")


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.sampled_from(["noise", "nothing", "huge", "push", "back", "copy"]), min_size=1, max_size=14),
    st.integers(0, 6),
)
@settings(max_examples=60, deadline=None)
def test_never_more_than_f_whatever_is_sent(seed, kinds, most):
    count = len(kinds)
    rows = noise(seed, count, 32)
    for place, kind in enumerate(kinds):
        rows[place, 0] += {"push": 30.0, "back": -30.0}.get(kind, 0.0)
        rows[place] *= {"nothing": 0.0, "huge": 1e30}.get(kind, 1.0)
        if kind == "copy":
            rows[place] = rows[0]
    most = min(most, (count - 1) // 2)
    verdict, _ = screen(view_of(rows, most=most))
    out = ~verdict.accepted
    assert out.sum() <= most
    assert set(verdict.reasons) == {name for name, gone in zip(names(count), out, strict=True) if gone}
    assert ((verdict.scores >= 1) == out).all()
    assert np.isfinite(verdict.scores).all()
    assert verdict.weights is None


def test_more_outside_the_gate_than_f_fail_the_round():
    rows = noise()
    rows[:7] *= 0.1
    verdict, _ = screen(view_of(rows, most=5))
    assert verdict.facts["excess"] == 2
    assert verdict.failed == "7 of 20 clients are outside the gate, and at most 5 can be hostile"


def test_where_nobody_can_be_hostile_nobody_is_rejected_and_no_round_fails():
    rows = noise()
    rows[:7] *= 0.1
    verdict, _ = screen(view_of(rows, most=0))
    assert verdict.accepted.all()
    assert not verdict.failed
    assert (verdict.scores < 1).all()


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_with_few_clients_the_gate_alone_decides(count):
    rows = 100 * np.eye(1, 128) + noise(3, count)
    rows[0] = noise(4, 1)[0]
    assert rejected(rows, most=(count - 1) // 2) == []
    if count >= 3:
        rows = noise(5, count)
        rows[1] *= 0.2
        assert rejected(rows, most=1) == [1]


def test_no_clients_no_verdict():
    verdict, state = screen(view_of(np.zeros((0, 8)), most=0))
    assert verdict.accepted.shape == (0,)
    assert state.rounds == 0


@given(st.integers(0, 2**32 - 1), st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None)
def test_names_and_order_do_not_matter(seed, random):
    rows, sizes = noise(seed), np.repeat([1.0, 2.0], 10)
    rows[:4, 0] += 12.0
    order = list(range(20))
    random.shuffle(order)
    straight, one = screen(view_of(rows, sizes=sizes))
    shuffled, other = screen(view_of(rows[order], sizes=sizes[order]))
    np.testing.assert_array_equal(shuffled.accepted, straight.accepted[order])
    np.testing.assert_allclose(shuffled.scores, straight.scores[order], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(other.products, one.products[np.ix_(order, order)], rtol=1e-9, atol=1e-9)


def test_a_turn_of_the_whole_space_does_not_matter():
    rows = noise(2)
    rows[:3, 0] += 12.0
    turn = np.linalg.qr(noise(9, 128, 128))[0]
    np.testing.assert_allclose(screen(view_of(rows))[0].scores, screen(view_of(rows @ turn))[0].scores, rtol=1e-6)


def test_the_unit_does_not_matter():
    rows = noise(2)
    rows[:3, 0] += 12.0
    np.testing.assert_allclose(screen(view_of(rows))[0].scores, screen(view_of(rows * 700.0, stddev=700.0))[0].scores, rtol=1e-9)


def test_nothing_that_is_given_is_changed_and_the_same_gives_the_same():
    rows = noise().astype(np.float32)
    rows[0] *= 3
    _, state = screen(view_of(rows))
    before, kept = rows.copy(), json.dumps(state.to_json())
    first, second = (screen(view_of(rows), state=state) for _ in range(2))
    np.testing.assert_array_equal(rows, before)
    assert json.dumps(state.to_json()) == kept
    np.testing.assert_array_equal(first[0].scores, second[0].scores)
    assert first[0].facts == second[0].facts
    assert first[1].to_json() == second[1].to_json()


def test_a_run_goes_on_from_json_as_if_it_had_never_stopped():
    states = [None, None]
    for seed in range(8):
        rows = noise(seed)
        rows[:4, 0] += 4.0
        verdicts = [screen(view_of(rows), state=state) for state in states]
        assert verdicts[0][0].facts == verdicts[1][0].facts
        states = [verdicts[0][1], ScreeningState.from_json(json.loads(json.dumps(verdicts[1][1].to_json())))]


def test_one_huge_update_does_not_drown_what_others_do():
    state = None
    for seed in range(10):
        rows = noise(seed)
        rows[0] *= 1e6
        rows[1:5, 0] += 5.0
        verdict, state = screen(view_of(rows), state=state)
    assert {f"{SUSPICION}c{place:03d}" for place in range(1, 5)} <= verdict.facts.keys()


def test_sketches_are_compared_over_rounds_in_the_space_of_the_updates():
    generator, state = np.random.default_rng(3), None
    for _ in range(12):
        updates = generator.standard_normal((20, 300))
        updates[6, 0] += 14.0
        basis = np.linalg.qr(generator.standard_normal((300, 100)))[0].T
        view = view_of(updates @ basis.T, mode=Mode.SKETCH, dimension=300)
        verdict, state = screen(view, state=state, lifted=updates @ basis.T @ basis)
    assert [name for name in verdict.facts if name.startswith(SUSPICION)] == ["suspicion:c006"]


def test_room_and_signal_are_in_noise_units_of_the_update():
    rows = noise(4) + 3.0 * np.eye(1, 128)
    facts = screen(view_of(rows, mode=Mode.SKETCH, dimension=512))[0].facts
    assert facts["signal_seen"] == pytest.approx(20 * 3.0 * 2, rel=0.15)
    assert facts["room_with_noise"] == pytest.approx(
        hiding_room(num_clients=20, num_byzantine=5, num_columns=128, dimension=512, rounds=1, lifted=False).with_noise
    )


def test_without_known_noise_it_is_refused():
    with pytest.raises(ConfigError, match="calibrated on the noise"):
        screen(view_of(noise(), stddev=0.0))


def test_lifted_rows_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="lifted rows"):
        screen(view_of(noise(), mode=Mode.SKETCH, dimension=300), lifted=np.zeros((20, 128)))
