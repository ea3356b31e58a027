"""How well scores tell members from others.

1. A score is higher where membership is likelier. A threshold accuses everybody at or above it; ties fall together.
2. The true positive rate at a false positive rate is what a threshold reaches without exceeding it; thresholds are not mixed. With fewer than
   1/rate others this is what the strictest thresholds happen to catch, and its interval shows how little that says.
3. Intervals are percentiles of a bootstrap over members and others, each kind by itself. They hold the chance of the canaries, not that of the run.

Sources: TPR at low FPR, Carlini et al. 2022 (arXiv 2112.03570), section III; bootstrap, Efron 1979.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedsec.privacy.auditing.results import Estimate, Membership

RESAMPLES = 400
ROC_POINTS = 60
"""Most points that are kept for drawing."""

_LOW_RATES = (0.01, 0.001)
_LEVEL = 0.95

Scores = npt.NDArray[np.floating]
Flags = npt.NDArray[np.bool_]
Rates = npt.NDArray[np.float64]


def roc_curve(scores: Scores, members: Flags) -> tuple[Rates, Rates]:
    """False and true positive rates of every threshold, both from 0 to 1.

    Args:
        scores: [m], finite.
        members: bool [m], with at least one of each kind.

    Raises:
        ValueError: other shapes, a score that is not finite, or one kind only.
    """
    if scores.shape != members.shape or scores.ndim != 1 or not np.isfinite(scores).all():
        raise ValueError(f"scores of shape {scores.shape} and members of shape {members.shape} must be finite and of one length")
    if members.all() or not members.any():
        raise ValueError("members and others are both needed")
    order = np.argsort(-scores, kind="stable")
    ranked, inside = scores[order], members[order]
    last_of_tie = np.concatenate([np.flatnonzero(np.diff(ranked)), [len(ranked) - 1]])
    found, alarms = np.cumsum(inside)[last_of_tie], np.cumsum(~inside)[last_of_tie]
    false_rate = np.concatenate([[0.0], alarms / alarms[-1]])
    true_rate = np.concatenate([[0.0], found / found[-1]])
    return false_rate, true_rate


def area(false_rate: Rates, true_rate: Rates) -> float:
    """Area under the curve: the chance that a member scores higher than another, ties counting half."""
    return float((np.diff(false_rate) * (true_rate[1:] + true_rate[:-1]) / 2.0).sum())


def true_rate_at(false_rate: Rates, true_rate: Rates, rate: float) -> float:
    """Largest true positive rate of a threshold whose false positive rate is at most ``rate``."""
    return float(true_rate[false_rate <= rate + 1e-12].max())


def membership_of(scores: Scores, members: Flags, *, generator: np.random.Generator, resamples: int = RESAMPLES) -> Membership:
    """AUC, true positive rates at 1 % and 0.1 % false positives, with 95 % intervals, and the curve.

    Args:
        scores: [m], finite.
        members: bool [m].
        generator: draws the resamples; the same one gives the same intervals.
        resamples: of the bootstrap.
    """
    curve = roc_curve(scores, members)
    inside, outside = scores[members], scores[~members]
    flags = np.concatenate([np.ones(len(inside), dtype=np.bool_), np.zeros(len(outside), dtype=np.bool_)])
    draws = np.empty((resamples, 1 + len(_LOW_RATES)))
    for row in draws:
        drawn = np.concatenate([generator.choice(inside, len(inside)), generator.choice(outside, len(outside))])
        row[:] = _numbers(*roc_curve(drawn, flags))
    margin = (1.0 - _LEVEL) / 2.0
    lows, highs = np.quantile(draws, margin, axis=0), np.quantile(draws, 1.0 - margin, axis=0)
    estimates = [
        Estimate(value=value, low=float(min(low, value)), high=float(max(high, value)))
        for value, low, high in zip(_numbers(*curve), lows, highs, strict=True)
    ]
    return Membership(auc=estimates[0], tpr_at_1=estimates[1], tpr_at_01=estimates[2], roc=_thinned(*curve))


def _numbers(false_rate: Rates, true_rate: Rates) -> tuple[float, ...]:
    return (area(false_rate, true_rate), *(true_rate_at(false_rate, true_rate, rate) for rate in _LOW_RATES))


def _thinned(false_rate: Rates, true_rate: Rates) -> tuple[tuple[float, float], ...]:
    """The curve's points that a drawing on logarithmic axes needs: half of them spread over ranks, half over orders of magnitude."""
    count = len(false_rate)
    if count > ROC_POINTS:
        even = np.linspace(0, count - 1, ROC_POINTS // 2)
        small = np.geomspace(1, count - 1, ROC_POINTS // 2)
        places = np.unique(np.concatenate([even, small]).round().astype(np.int64))
        false_rate, true_rate = false_rate[places], true_rate[places]
    return tuple((round(float(x), 6), round(float(y), 6)) for x, y in zip(false_rate, true_rate, strict=True))
