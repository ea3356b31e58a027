"""Figures of a detector, against hand-made runs, definitions written out, and their limits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.robust.quality import JudgedRound, label_skew, rejection_quality

HONEST = tuple(f"honest-{number}" for number in range(4))
ATTACKERS = ("evil-0", "evil-1")


def judged(number, kept_out=(), *, scores=None, attacking=ATTACKERS, blocked=(), present=(*HONEST, *ATTACKERS)):
    given_scores = dict.fromkeys(present, 0.5) | {name: 2.0 for name in kept_out if name in present}
    return JudgedRound(
        server_round=number,
        scores=given_scores if scores is None else scores,
        kept_out=frozenset(kept_out),
        blocked=frozenset(blocked),
        attacking=frozenset(attacking),
    )


def test_a_run_counted_by_hand():
    rounds = [
        judged(1, ["honest-0", "honest-1"]),  # round 1 counts for times only
        judged(2, ["evil-0", "honest-0"]),
        judged(3, ["evil-0", "evil-1"], blocked=["evil-0"]),
        judged(4, ["evil-0", "honest-0"], blocked=["evil-0"], present=("honest-0", "honest-1", "honest-2", "evil-0")),
    ]
    skew = {name: float(place) for place, name in enumerate(HONEST)}
    quality = rejection_quality(rounds, attackers=ATTACKERS, skew=skew)
    assert quality.precision == 4 / 6
    assert quality.recall == 4 / 5
    assert quality.honest_rate == 2 / 11
    assert quality.worst_honest_rate == 2 / 3
    assert quality.honest_rate_by_skew_decile == (2 / 3, None, 0.0, None, None, 0.0, None, 0.0, None, None)
    assert quality.rounds_to_detection == (2 + 3) / 2
    assert quality.rounds_to_quarantine == 3
    assert quality.undetected == 0
    assert (quality.provable_named_share, quality.false_named) == (None, 0)


def test_rounds_before_the_first_that_counts_are_left_out_of_rates_only():
    rounds = [judged(1, ["evil-0", "evil-1"]), judged(2)]
    assert rejection_quality(rounds, attackers=ATTACKERS).recall == 0.0
    assert rejection_quality(rounds, attackers=ATTACKERS, from_round=1).recall == 0.5
    assert rejection_quality(rounds, attackers=ATTACKERS).rounds_to_detection == 1


def test_what_cannot_be_counted_is_none():
    nobody = rejection_quality([judged(2, attacking=())], attackers=())
    assert (nobody.precision, nobody.recall, nobody.auc) == (None, None, None)
    assert (nobody.rounds_to_detection, nobody.rounds_to_quarantine) == (None, None)
    assert nobody.honest_rate == 0.0
    assert nobody.honest_rate_by_skew_decile == ()
    empty = rejection_quality([], attackers=ATTACKERS, skew={})
    assert (empty.honest_rate, empty.worst_honest_rate, empty.undetected) == (None, None, 0)
    assert empty.honest_rate_by_skew_decile == (None,) * 10


def test_rejections_without_attackers_are_all_wrong():
    quality = rejection_quality([judged(2, ["honest-0"], attacking=(), present=HONEST)], attackers=())
    assert (quality.precision, quality.recall, quality.honest_rate) == (0.0, None, 0.25)


def test_an_attacker_that_behaves_counts_neither_way():
    rounds = [judged(2, ["evil-0"], attacking=()), judged(3, ["evil-0"], attacking=["evil-0"])]
    quality = rejection_quality(rounds, attackers=ATTACKERS)
    assert (quality.precision, quality.recall) == (1.0, 1.0)
    assert quality.honest_rate == 0.0
    assert quality.rounds_to_detection == 1


def test_time_runs_from_the_first_attack_and_rejections_before_it_are_no_detection():
    rounds = [judged(number, ["evil-0"] if number in (1, 7) else (), attacking=["evil-0"] if number >= 5 else ()) for number in range(1, 9)]
    quality = rejection_quality(rounds, attackers=ATTACKERS)
    assert quality.rounds_to_detection == 3
    assert quality.undetected == 0


def test_the_undetected_are_counted_and_not_averaged():
    quality = rejection_quality([judged(2, ["evil-0"]), judged(3)], attackers=ATTACKERS)
    assert (quality.rounds_to_detection, quality.undetected) == (1, 1)
    assert quality.rounds_to_quarantine is None


def test_who_is_kept_out_without_a_score_was_present():
    quality = rejection_quality([judged(2, ["evil-0"], present=HONEST)], attackers=ATTACKERS)
    assert (quality.recall, quality.auc) == (1.0, None)


def test_names_by_proof():
    quality = rejection_quality([judged(2)], attackers=ATTACKERS, provable=ATTACKERS, named=["evil-1", "honest-3"])
    assert (quality.provable_named_share, quality.false_named) == (0.5, 1)


scores = st.lists(st.sampled_from([0.0, 0.5, 0.5, 1.0, 3.0, float("inf")]), min_size=6, max_size=6)


@settings(max_examples=50, deadline=None)
@given(tables=st.lists(scores, min_size=1, max_size=4))
def test_auc_is_the_share_of_pairs_of_a_round(tables):
    names = (*HONEST, *ATTACKERS)
    rounds = [judged(2 + number, scores=dict(zip(names, table, strict=True))) for number, table in enumerate(tables)]
    won = [
        1.0 if table[evil] > table[honest] else 0.5 if table[evil] == table[honest] else 0.0
        for table in tables
        for evil in (4, 5)
        for honest in range(4)
    ]
    assert rejection_quality(rounds, attackers=ATTACKERS).auc == pytest.approx(sum(won) / len(won))


def test_scores_of_other_rounds_are_not_compared():
    low = judged(2, scores={"honest-0": 0.1, "evil-0": 0.2})
    high = judged(3, scores={"honest-0": 10.0, "evil-0": 20.0})
    assert rejection_quality([low, high], attackers=ATTACKERS).auc == 1.0


@settings(max_examples=50, deadline=None)
@given(data=st.data(), count=st.integers(1, 5))
def test_figures_are_shares_and_agree_with_each_other(data, count):
    names = (*HONEST, *ATTACKERS)
    rounds = [judged(number, data.draw(st.sets(st.sampled_from(names)).map(sorted))) for number in range(1, count + 1)]
    quality = rejection_quality(rounds, attackers=ATTACKERS, skew=dict.fromkeys(HONEST, 0.0))
    for value in (quality.precision, quality.recall, quality.auc, quality.honest_rate, quality.worst_honest_rate):
        assert value is None or 0 <= value <= 1
    if quality.honest_rate is not None:
        assert quality.worst_honest_rate >= quality.honest_rate
        tenths = [value for value in quality.honest_rate_by_skew_decile if value is not None]
        assert len(tenths) == len(HONEST)
        assert sum(tenths) / len(tenths) == pytest.approx(quality.honest_rate)


def test_tenths_hold_a_tenth_each_and_go_by_skew():
    names = [f"client-{number:02d}" for number in range(20)]
    skew = {name: (7 * number) % 20 / 20 for number, name in enumerate(names)}
    rejected = [name for name in names if skew[name] >= 0.9]  # the two most skewed
    quality = rejection_quality([judged(2, rejected, attacking=(), present=names)], attackers=(), skew=skew)
    assert quality.honest_rate_by_skew_decile == (0.0,) * 9 + (1.0,)


@settings(max_examples=30, deadline=None)
@given(counts=st.lists(st.lists(st.integers(0, 50), min_size=3, max_size=3).filter(any), min_size=1, max_size=6))
def test_label_skew_is_total_variation(counts):
    histogram = np.array(counts)
    whole = histogram.sum(axis=0) / histogram.sum()
    shares = histogram / histogram.sum(axis=1, keepdims=True)
    expected = np.maximum(shares - whole, 0).sum(axis=1)  # what the client has too much of
    np.testing.assert_allclose(label_skew(histogram), expected, atol=1e-12)


def test_label_skew_of_a_client_without_records_is_refused():
    with pytest.raises(ValueError, match="without records"):
        label_skew(np.array([[1, 2], [0, 0]]))
