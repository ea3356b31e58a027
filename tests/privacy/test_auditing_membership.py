"""ROC, AUC, rates at few false alarms, their intervals; LiRA against a case whose best answer is known."""

import math
from statistics import NormalDist

import numpy as np
import pytest

from fedsec.privacy.auditing.lira import lira_scores, log_odds
from fedsec.privacy.auditing.membership import area, membership_of, roc_curve, true_rate_at


def gaussians(count, separation, seed=1):
    generator = np.random.default_rng(seed)
    members = generator.random(count) < 0.5
    return generator.standard_normal(count) + separation * members, members


def test_the_area_is_the_chance_that_a_member_scores_higher_ties_counting_half():
    generator = np.random.default_rng(2)
    scores, members = generator.integers(0, 6, 80).astype(float), generator.random(80) < 0.4
    inside, outside = scores[members][:, None], scores[~members][None]
    expected = (inside > outside).mean() + 0.5 * (inside == outside).mean()
    assert area(*roc_curve(scores, members)) == pytest.approx(expected, abs=1e-12)


def test_area_and_rates_agree_with_scikit_learn():
    from sklearn.metrics import roc_auc_score
    from sklearn.metrics import roc_curve as theirs

    scores, members = gaussians(3000, 0.8)
    false_rate, true_rate = roc_curve(scores, members)
    assert area(false_rate, true_rate) == pytest.approx(roc_auc_score(members, scores))
    x, y, _ = theirs(members, scores, drop_intermediate=False)
    for rate in (0.001, 0.01, 0.1):
        assert true_rate_at(false_rate, true_rate, rate) == y[x <= rate].max()


def test_gaussian_scores_have_the_area_and_the_rates_of_theory_inside_the_intervals():
    scores, members = gaussians(20_000, 1.0)
    found = membership_of(scores, members, generator=np.random.default_rng(3), resamples=100)
    phi = NormalDist()
    for estimate, truth in ((found.auc, phi.cdf(1 / math.sqrt(2))), (found.tpr_at_1, 1 - phi.cdf(phi.inv_cdf(0.99) - 1.0))):
        assert estimate.low - 0.01 <= truth <= estimate.high + 0.01
        assert estimate.high - estimate.low < 0.05
    assert found.roc[0] == (0.0, 0.0)
    assert found.roc[-1] == (1.0, 1.0)
    assert len(found.roc) <= 61
    assert list(found.roc) == sorted(found.roc)


def test_blind_scores_are_no_better_than_a_coin_and_perfect_ones_are_perfect():
    _, members = gaussians(400, 0.0)
    blind = membership_of(np.zeros(400), members, generator=np.random.default_rng(1), resamples=20)
    assert (blind.auc.value, blind.tpr_at_1.value, blind.tpr_at_01.value) == (0.5, 0.0, 0.0)
    perfect = membership_of(members.astype(float), members, generator=np.random.default_rng(1), resamples=20)
    assert (perfect.auc.value, perfect.tpr_at_01.value) == (1.0, 1.0)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    truth, hits = NormalDist().cdf(0.7 / math.sqrt(2)), 0
    for seed in range(60):
        scores, members = gaussians(300, 0.7, seed=seed)
        found = membership_of(scores, members, generator=np.random.default_rng(seed), resamples=100).auc
        hits += found.low <= truth <= found.high
    assert hits >= 60 * 0.95 - 3 * math.sqrt(60 * 0.95 * 0.05) - 1


@pytest.mark.parametrize(
    ("scores", "members"),
    [
        (np.zeros(3), np.zeros(3, dtype=bool)),
        (np.zeros(3), np.ones(3, dtype=bool)),
        (np.array([1.0, math.nan]), np.array([True, False])),
        (np.zeros(2), np.array([True, False, True])),
    ],
)
def test_scores_that_say_nothing_are_refused(scores, members):
    with pytest.raises(ValueError):
        roc_curve(scores, members)


# ---- LiRA


def shadow_world(count, shadows, seed):
    """Records whose confidence has a mean of its own and rises by 1.5 with membership."""
    generator = np.random.default_rng(seed)
    own = generator.normal(0.0, 3.0, count)
    members = generator.random(count) < 0.5
    inside = np.stack([generator.permutation(np.arange(shadows) % 2 == 0) for _ in range(count)], axis=1)
    confidences = own + generator.standard_normal((shadows, count)) + 1.5 * inside
    target = own + generator.standard_normal(count) + 1.5 * members
    return target, confidences, inside, members


@pytest.mark.parametrize(("mode", "least"), [("online", 0.84), ("offline", 0.84)])
def test_lira_finds_what_a_threshold_cannot(mode, least):
    """The best possible area here is Phi(1.5 / sqrt 2) = 0.856; a threshold on confidences drowns in the records' own means."""
    target, confidences, inside, members = shadow_world(4000, 64, 1)
    scores = lira_scores(target, confidences, inside, mode=mode)
    assert area(*roc_curve(scores, members)) > least
    assert area(*roc_curve(target, members)) < 0.68


def test_lira_works_with_few_shadow_models():
    target, confidences, inside, members = shadow_world(4000, 8, 2)
    assert area(*roc_curve(lira_scores(target, confidences, inside), members)) > 0.78


def test_lira_needs_both_kinds_of_shadow_models():
    target, confidences, inside, _ = shadow_world(10, 4, 3)
    everywhere = inside.copy()
    everywhere[:, 3] = True
    with pytest.raises(ValueError, match="train more"):
        lira_scores(target, confidences, everywhere)
    with pytest.raises(ValueError, match="do not fit"):
        lira_scores(target[:5], confidences, inside)


def test_log_odds_are_finite_for_certainty():
    assert np.isfinite(log_odds(np.array([0.0, 1.0]))).all()
    assert log_odds(np.array([0.5]))[0] == 0.0
