"""Who counts in a round, over rounds, and after a crash."""

import json

import numpy as np
import pytest

from fedsec.defence import Defence
from fedsec.errors import DecodeError, RoundAborted
from fedsec.plan.load import load_plan
from fedsec.robust.base import Mode, RoundView
from fedsec.robust.reputation_records import Fault
from fedsec.robust.validation import validate_update
from fedsec.vectors import Layout

NAMES = tuple(f"client-{place:04d}" for place in range(20))
BAD = NAMES[:4]
DIMENSION, STDDEV = 200, 0.5
PUBLIC = ["privacy.unit=none", "privacy.epsilon=inf", "secagg.enabled=false", "attack.name=none"]


def plan(*more):
    return load_plan(overrides=["secagg.enabled=false", "attack.name=none", *more])


def rows(seed, *, push=20.0):
    """Honest noise; the first four push one way together."""
    generator = np.random.default_rng(seed)
    made = generator.normal(0, STDDEV, size=(20, DIMENSION))
    made[:4] += push * STDDEV / np.sqrt(DIMENSION)
    return made


def view(server_round, vectors, names=NAMES, f=5):
    return RoundView(
        mode=Mode.OPEN, client_ids=names, vectors=vectors, dimension=DIMENSION, batch_sizes=np.full(len(names), 10.0), noise_stddev=STDDEV,
        num_byzantine=f, server_round=server_round,
    )  # fmt: skip


def updates(vectors, names=NAMES, size=10):
    layout = Layout.of({"w": np.zeros(DIMENSION, np.float32)})
    return [validate_update(name, {"w": row.astype(np.float32)}, size, layout=layout) for name, row in zip(names, vectors, strict=True)]


def run_rounds(defence, count, start=1, push=20.0):
    out = []
    for number in range(start, start + count):
        defence.judge(view(number, rows(number, push=push)))
        out.append(defence.finish(number, named={}))
    return out


def test_colluders_are_rejected_at_once_and_quarantined_after_some_rounds():
    defence = Defence(plan=plan(), noise_stddev=STDDEV)
    done = run_rounds(defence, 8)
    assert {name for name, _ in done[0].rejected} == set(BAD)
    assert done[0].quarantined == ()
    assert set(done[-1].quarantined) == set(BAD)
    assert any(name in BAD and "quarantine" in what for row in done for name, what in row.events)


def test_whoever_is_in_quarantine_does_not_count_even_with_an_honest_update():
    defence = Defence(plan=plan(), noise_stddev=STDDEV)
    run_rounds(defence, 8)
    accepted = defence.judge(view(9, rows(9, push=0.0)))
    assert not accepted & set(BAD)
    assert defence.finish(9, named={}).scores.keys() == set(NAMES)  # but it is scored, and so can come back


def test_a_crash_between_rounds_changes_nothing():
    whole, first = Defence(plan=plan(), noise_stddev=STDDEV), Defence(plan=plan(), noise_stddev=STDDEV)
    expected = run_rounds(whole, 10)
    run_rounds(first, 5)
    resumed = Defence(plan=plan(), noise_stddev=STDDEV)
    resumed.restore(json.loads(json.dumps(first.to_json())))
    assert run_rounds(resumed, 5, start=6) == expected[5:]
    assert resumed.to_json() == whole.to_json()


def test_a_crash_after_the_verdict_does_not_lose_it():
    defence = Defence(plan=plan(), noise_stddev=STDDEV)
    run_rounds(defence, 3)
    defence.judge(view(4, rows(4)))
    kept, pending = json.loads(json.dumps(defence.to_json())), json.loads(json.dumps(defence.pending))
    resumed = Defence(plan=plan(), noise_stddev=STDDEV)
    resumed.restore(kept)
    resumed.restore_pending(pending, server_round=4, client_ids=NAMES)
    assert resumed.finish(4, named={}) == defence.finish(4, named={})
    assert resumed.to_json() == defence.to_json()


def test_a_round_judged_in_two_attempts_counts_once():
    defence = Defence(plan=plan(), noise_stddev=STDDEV)
    made = rows(1)
    defence.judge(view(1, made))
    defence.judge(view(1, made[2:12], NAMES[2:12], f=2))
    defence.finish(1, named={})
    assert all(record.rounds == 1 for record in defence.reputation.clients.values())


def test_what_was_judged_of_a_round_that_never_ended_is_not_remembered():
    defence = Defence(plan=plan(), noise_stddev=STDDEV)
    defence.judge(view(1, rows(1)))
    before = defence.to_json()
    assert before["screening"] is None
    assert before["reputation"]["clients"] == {}


def test_more_suspects_than_provided_for_and_nobody_counts():
    defence = Defence(plan=plan(), noise_stddev=STDDEV)
    made = rows(1, push=0.0)
    made[:9] *= 10
    with pytest.raises(RoundAborted, match="at most 5"):
        defence.judge(view(1, made))
    row = defence.finish(1, named={})
    assert "at most 5" in row.failed
    assert defence.aggregate(updates(made), server_round=2, dimension=DIMENSION) is None
    assert defence.num_accepted == 0


def test_the_aggregate_of_the_screening_is_the_mean_of_the_accepted():
    defence = Defence(plan=plan(), noise_stddev=STDDEV)
    made = rows(3)
    total = defence.aggregate(updates(made), server_round=1, dimension=DIMENSION)
    np.testing.assert_allclose(total, made[4:].astype(np.float32).mean(axis=0) / 10, rtol=1e-5, atol=1e-7)
    assert defence.num_accepted == 16


@pytest.mark.parametrize("rule", ["mean", "multi-krum", "geometric-median", "arc-nnm-geometric-median", "median", "trimmed-mean", "bulyan"])
def test_a_proven_fault_takes_a_client_out_of_every_later_aggregate(rule):
    public = load_plan(overrides=[*PUBLIC, f"robust.rule={rule}", "robust.num_byzantine=4"])
    defence = Defence(plan=public, noise_stddev=0.0)
    made = rows(5, push=0.0)
    made[7] = 1e6  # what it sends later would show in the aggregate
    defence.aggregate(updates(np.delete(made, 7, axis=0), NAMES[:7] + NAMES[8:]), server_round=1, dimension=DIMENSION)
    row = defence.finish(1, named={NAMES[7]: Fault(reason="3 entries are not finite", evidence="evidence/x.json")})
    assert any(name == NAMES[7] and "not finite" in what for name, what in row.events)
    assert defence.excluded == {NAMES[7]}
    with_it = defence.aggregate(updates(made), server_round=2, dimension=DIMENSION)
    three = load_plan(overrides=[*PUBLIC, f"robust.rule={rule}", "robust.num_byzantine=3"])  # who is excluded needs no place among the f
    without = Defence(plan=three, noise_stddev=0.0).aggregate(
        updates(np.delete(made, 7, axis=0), NAMES[:7] + NAMES[8:]), server_round=2, dimension=DIMENSION
    )
    np.testing.assert_allclose(with_it, without, rtol=1e-6, atol=1e-9)


def test_the_distance_to_the_honest_mean_is_reported_where_it_is_known_and_no_rule_uses_it():
    known = Defence(plan=plan(), noise_stddev=STDDEV, attackers=frozenset(BAD))
    blind = Defence(plan=plan(), noise_stddev=STDDEV)
    made = rows(3)
    ours, theirs = (one.aggregate(updates(made), server_round=1, dimension=DIMENSION) for one in (known, blind))
    np.testing.assert_array_equal(ours, theirs)
    assert known.finish(1, named={}).aggregate_error == pytest.approx(0.0, abs=1e-4)
    assert blind.finish(1, named={}).aggregate_error is None
    mean = Defence(plan=plan("robust.rule=mean"), noise_stddev=STDDEV, attackers=frozenset(BAD))
    mean.aggregate(updates(made), server_round=1, dimension=DIMENSION)
    assert mean._pending.aggregate_error > 0.05


def test_without_a_rule_and_without_a_fault_there_is_nothing_to_report():
    defence = Defence(plan=plan("robust.rule=mean"), noise_stddev=STDDEV)
    defence.aggregate(updates(rows(1)), server_round=1, dimension=DIMENSION)
    assert defence.finish(1, named={}) is None


@pytest.mark.parametrize("rule", ["screening", "mean", "group-filter", "filter", "mad-filter", "spectral", "multi-krum"])
def test_one_client_that_declares_an_enormous_batch_moves_the_model_no_further_than_its_capped_share(rule):
    public = [] if rule == "screening" else PUBLIC
    of = load_plan(overrides=["secagg.enabled=false", "attack.name=none", *public, f"robust.rule={rule}"])
    defence = Defence(plan=of, noise_stddev=STDDEV if rule == "screening" else 0.0)
    made = rows(7, push=0.0)
    layout = Layout.of({"w": np.zeros(DIMENSION, np.float32)})
    direction = np.random.default_rng(3).normal(size=DIMENSION)
    evil = validate_update(NAMES[0], {"w": (direction * 1e5).astype(np.float32)}, 10**6, layout=layout)
    total = defence.aggregate([evil, *updates(made)[1:]], server_round=1, dimension=DIMENSION)
    share = 3 / 22  # the cap is three times the median; 19 others count once
    assert np.linalg.norm(total) <= np.linalg.norm(made[1:].mean(axis=0)) / 10 + share * np.linalg.norm(direction * 1e5) / 10**6 * 1.01


def quarantined_four(rule, more=()):
    """Four clients that pushed for some rounds and are in quarantine now; another rule's defence, in clear, without noise."""
    of = load_plan(overrides=[*PUBLIC, f"robust.rule={rule}", *more])
    defence = Defence(plan=of, noise_stddev=0.0)
    for number in range(1, 9):
        made = rows(number, push=0.0)
        made[:4] += 10.0
        defence.aggregate(updates(made), server_round=number, dimension=DIMENSION)
        defence.finish(number, named={})
    assert defence.blocked == set(BAD)
    return defence


@pytest.mark.parametrize("rule", ["group-filter", "filter", "mad-filter", "spectral", "arc-nnm-geometric-median"])
def test_with_four_in_quarantine_four_new_attackers_are_the_ones_that_are_reported_and_left_out(rule):
    defence = quarantined_four(rule)
    made = rows(20, push=0.0)
    made[8:12] += 10.0  # new ones; the four in quarantine behave
    total = defence.aggregate(updates(made), server_round=9, dimension=DIMENSION)
    honest = np.delete(made, [0, 1, 2, 3, 8, 9, 10, 11], axis=0).mean(axis=0) / 10
    assert np.linalg.norm(total - honest) < 0.2
    row = defence.finish(9, named={})
    high = {name for name, score in row.scores.items() if score >= 1}
    assert high == set(NAMES[8:12])
    assert {name for name, _ in row.rejected} <= set(NAMES[8:12])


def test_an_accepted_client_of_the_second_attempt_carries_no_reason_of_the_first():
    defence = Defence(plan=plan(), noise_stddev=STDDEV)
    defence.judge(view(1, rows(1)))
    first = defence.pending["screening"]
    accepted = defence.judge(view(1, rows(2, push=0.0)))
    assert defence.pending["screening"] == first  # an update adds up once, whatever R shows of it again
    row = defence.finish(1, named={})
    assert accepted == set(NAMES)
    assert row.rejected == ()


@pytest.mark.parametrize("gone", [2, 4])
def test_bulyan_goes_on_when_its_attackers_are_excluded_or_silent(gone):
    of = load_plan(overrides=[*PUBLIC, "robust.rule=bulyan", "robust.num_byzantine=4"])
    defence = Defence(plan=of, noise_stddev=0.0)
    defence.finish(1, named={name: Fault(reason="not finite") for name in NAMES[:1]})
    made = rows(3, push=0.0)
    total = defence.aggregate(updates(made[gone:], NAMES[gone:]), server_round=2, dimension=DIMENSION)
    assert total is not None
    assert defence.most_suspects(20 - gone) == 3


def test_krum_moves_the_model_by_one_update():
    defence = Defence(plan=load_plan(overrides=[*PUBLIC, "robust.rule=krum"]), noise_stddev=0.0)
    assert np.linalg.norm(defence.aggregate(updates(rows(1, push=0.0)), server_round=1, dimension=DIMENSION)) > 0
    assert defence.num_accepted == 1


def judged_once():
    defence = Defence(plan=plan(), noise_stddev=STDDEV)
    defence.judge(view(1, rows(1)))
    return json.loads(json.dumps(defence.pending))


@pytest.mark.parametrize(
    "change",
    [
        lambda kept: [], lambda kept: None, lambda kept: {}, lambda kept: {**kept, "more": 1}, lambda kept: {**kept, "server_round": 2},
        lambda kept: {**kept, "scores": {"mallory": 1.0}}, lambda kept: {**kept, "accepted": ["mallory"]}, lambda kept: {**kept, "scores": []},
        lambda kept: {**kept, "scores": {NAMES[0]: "nan"}}, lambda kept: {**kept, "screening": {"format": "x"}}, lambda kept: {**kept, "failed": 3},
        lambda kept: {**kept, "suspicions": {NAMES[0]: "nan"}}, lambda kept: {**kept, "reasons": {"mallory": "x"}},
    ],
)  # fmt: skip
def test_a_damaged_memory_of_a_round_under_way_is_refused_whole(change):
    defence = Defence(plan=plan(), noise_stddev=STDDEV)
    with pytest.raises(DecodeError):
        defence.restore_pending(change(judged_once()), server_round=1, client_ids=NAMES)
    assert defence.pending is None


@pytest.mark.parametrize("rule", ["group-filter", "filter", "mad-filter", "spectral"])
def test_more_outliers_than_provided_for_close_the_round_for_filters_too(rule):
    of = load_plan(overrides=[*PUBLIC, f"robust.rule={rule}", "robust.num_byzantine=2"])
    defence = Defence(plan=of, noise_stddev=0.0)
    made = rows(5, push=0.0)
    made[:8] = np.random.default_rng(9).normal(0, 300.0, size=(8, DIMENSION))
    assert defence.aggregate(updates(made), server_round=1, dimension=DIMENSION) is None
    assert "at most 2" in defence.finish(1, named={}).failed
