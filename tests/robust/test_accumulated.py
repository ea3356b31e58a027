"""Sums over rounds: what they find that no round can, who is absent, how they are kept."""

import json

import numpy as np
import pytest

from fedsec.errors import DecodeError
from fedsec.robust.accumulated import ScreeningState, suspicions
from fedsec.robust.levels import DEFAULT_SETTINGS

NAMES = tuple(f"c{place:02d}" for place in range(20))
SIZES = dict.fromkeys(NAMES, 1.0)


def add(state, rows, names=NAMES, *, lifted=True):
    return state.add(names, rows @ rows.T, rows.shape[1], rows if lifted else None)


def suspects(state, sizes=SIZES, most=5):
    scores, _ = suspicions(state, sizes, most=most, settings=DEFAULT_SETTINGS)
    return sorted(name for name, score in scores.items() if score >= 1)


def rounds(push, count, *, columns=200, lifted=True, seed=0):
    """States after each of ``count`` rounds; ``push(generator, round)`` is added to the rows of noise."""
    generator = np.random.default_rng(seed)
    state, after = ScreeningState.empty(), []
    for number in range(1, count + 1):
        rows = generator.standard_normal((20, columns))
        state = add(state, rows + push(generator, number), lifted=lifted)
        after.append(state)
    return after


def shared(amplitude, members, columns=200):
    direction = np.zeros((20, columns))
    direction[members, 0] = amplitude
    return direction


def test_noise_makes_hardly_anybody_suspect():
    ever = {(seed, name) for seed in range(15) for state in rounds(lambda *_: 0.0, 20, seed=seed) for name in suspects(state)}
    assert len(ever) <= 3  # of 300 clients


@pytest.mark.parametrize("lifted", [True, False])
def test_a_weak_push_that_colluders_share_adds_up(lifted):
    states = rounds(lambda *_: shared(4.0, [0, 1, 2, 3]), 20, lifted=lifted)
    assert suspects(states[2]) == []
    assert suspects(states[-1]) == ["c00", "c01", "c02", "c03"]


@pytest.mark.parametrize("lifted", [True, False])
def test_signs_that_take_turns_do_not_help(lifted):
    states = rounds(lambda _, number: shared(4.0 * (-1) ** number, [0, 1, 2, 3]), 20, lifted=lifted)
    assert suspects(states[-1]) == ["c00", "c01", "c02", "c03"]


def test_one_client_that_pushes_on_alone_is_found_only_in_the_space_of_the_updates():
    push = lambda *_: shared(5.0, [7])  # noqa: E731
    assert suspects(rounds(push, 20)[-1]) == ["c07"]
    assert suspects(rounds(push, 20, lifted=False)[-1]) == []


def test_a_single_round_is_no_evidence():
    assert suspects(rounds(lambda *_: shared(30.0, [0, 1, 2]), 1)[-1]) == []


def test_two_sketches_of_different_rounds_are_compared_in_the_space_of_the_updates():
    generator = np.random.default_rng(8)
    dimension, columns, state = 300, 100, ScreeningState.empty()
    for _ in range(15):
        updates = generator.standard_normal((20, dimension))
        updates[4, 0] += 12.0
        basis = np.linalg.qr(generator.standard_normal((dimension, columns)))[0].T
        rows = updates @ basis.T
        state = state.add(NAMES, rows @ rows.T, columns, rows @ basis)
    assert suspects(state) == ["c04"]


def test_correlations_of_noise_have_unit_variance():
    generator, values, own = np.random.default_rng(9), [], []
    for _ in range(30):
        state = ScreeningState.empty()
        for _ in range(4):
            updates = generator.standard_normal((20, 200))
            basis = np.linalg.qr(generator.standard_normal((200, 80)))[0].T
            rows = updates @ basis.T
            state = state.add(NAMES, rows @ rows.T, 80, rows @ basis)
        matrix, _ = state.over_rounds(NAMES)
        values.append(matrix[np.triu_indices(20, 1)])
        own.append(matrix.diagonal())
    assert np.std(values) == pytest.approx(1.0, rel=0.04)
    assert np.std(own) == pytest.approx(np.sqrt(2), rel=0.15)
    assert abs(np.mean(own)) < 0.2


def test_clients_may_be_absent_come_late_and_leave():
    generator, state = np.random.default_rng(1), ScreeningState.empty()
    for number in range(12):
        here = tuple(name for place, name in enumerate(NAMES) if (place + number) % 5 or place in (0, 1, 2, 3))
        rows = generator.standard_normal((len(here), 150))
        rows[[here.index(name) for name in NAMES[:4]], 0] += 7.0
        state = add(state, rows, here)
    assert set(suspects(state, dict.fromkeys(here, 1.0))) == set(NAMES[:4])
    assert state.columns[0, 0] == 12 * 150
    assert state.columns[5, 5] < 12 * 150


def test_shared_rounds_only():
    one = add(ScreeningState.empty(), np.ones((2, 3)), ("a", "b"))
    two = add(one, np.full((2, 3), 2.0), ("b", "c"))
    assert two.client_ids == ("a", "b", "c")
    np.testing.assert_array_equal(two.products, [[3, 3, 0], [3, 15, 12], [0, 12, 12]])
    np.testing.assert_array_equal(two.columns, [[3, 3, 0], [3, 6, 3], [0, 3, 3]])
    np.testing.assert_array_equal(two.sums, [[1, 1, 1], [3, 3, 3], [2, 2, 2]])


def test_a_round_without_lifted_rows_ends_sums_over_rounds():
    state = add(add(ScreeningState.empty(), np.ones((2, 3)), ("a", "b")), np.ones((2, 3)), ("a", "b"), lifted=False)
    assert state.sums.shape == (2, 0)
    assert add(state, np.ones((2, 3)), ("a", "b")).sums.shape == (2, 0)


def test_nothing_is_changed_in_place():
    state = add(ScreeningState.empty(), np.ones((2, 3)), ("a", "b"))
    before = json.dumps(state.to_json())
    add(state, np.full((2, 3), 2.0), ("b", "c"))
    suspicions(state, {"a": 1.0, "b": 1.0}, most=0, settings=DEFAULT_SETTINGS)
    assert json.dumps(state.to_json()) == before


def test_json_gives_the_same_bits_and_the_same_verdicts():
    states = rounds(lambda *_: shared(4.0, [0, 1, 2, 3]), 6)
    read = ScreeningState.from_json(json.loads(json.dumps(states[-1].to_json())))
    assert read.client_ids == states[-1].client_ids
    assert read.rounds == 6
    for name in ("products", "columns", "sums"):
        np.testing.assert_array_equal(getattr(read, name), getattr(states[-1], name))
    rows = np.random.default_rng(5).standard_normal((20, 200))
    assert add(read, rows).to_json() == add(states[-1], rows).to_json()


@pytest.mark.parametrize(
    "change",
    [
        {"format": "fedsec/screening/v0"},
        {"client_ids": ["b", "a"]},
        {"client_ids": ["a", "a"]},
        {"rounds": -1},
        {"width": 4},
        {"width": -1},
        {"products": "AAAA"},
        {"products": "not base64!"},
        {"extra": 1},
        {"rounds": "2"},
    ],
)
def test_damaged_json_is_refused(change):
    state = add(ScreeningState.empty(), np.ones((2, 3)), ("a", "b"))
    with pytest.raises(DecodeError):
        ScreeningState.from_json(state.to_json() | change)


@pytest.mark.parametrize("name", ["products", "columns"])
def test_sums_that_cannot_be_are_refused(name):
    state = add(ScreeningState.empty(), np.ones((2, 3)), ("a", "b"))
    fields = {key: getattr(state, key) for key in ("client_ids", "products", "columns", "sums", "rounds")}
    skew = fields[name].copy()
    skew[0, 1] += 1
    with pytest.raises(ValueError, match="symmetric"):
        ScreeningState(**(fields | {name: skew}))
    with pytest.raises(ValueError, match="share no more rounds"):
        ScreeningState(**(fields | {"columns": np.array([[3.0, 4.0], [4.0, 3.0]])}))
