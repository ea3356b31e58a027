"""Epsilon of two Gaussians: the estimate from canaries' scores, and the Gaussian mechanism as a special case.

1. An estimate is no bound: it holds as far as scores are Gaussian, and it has no confidence. It is printed beside the bound, never instead.
2. Epsilon is that of the two fitted distributions at delta, in both directions, exactly (the hockey-stick divergence has a closed form).
3. The tail of a fitted Gaussian is looked at far outside the scores that were seen; so with small delta the estimate leans on the fit. Two
   deviations that differ by no more than chance are taken as one: their difference would make epsilon 1 look like 1.3.

Source: Andrew et al. 2023, "One-shot Empirical Privacy Estimation for Federated Learning" (arXiv 2302.03098), section 3. Differs: the pooling of rule 3.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

MAX_EPSILON = 500.0
FEWEST_SCORES = 10
"""Of each kind: a deviation of fewer says little."""

_HALVINGS = 80
_BY_CHANCE = 3.0
"""Standard errors."""


def epsilon_of_gaussians(*, mean: float, stddev: float, other_mean: float, other_stddev: float, delta: float) -> float:
    """Smallest epsilon for which neither Gaussian exceeds e^epsilon times the other by more than delta; infinite over ``MAX_EPSILON``.

    Args:
        mean: of the one.
        stddev: > 0.
        other_mean: of the other.
        other_stddev: > 0.
        delta: in (0, 1).

    >>> round(epsilon_of_gaussians(mean=1.0, stddev=1.0, other_mean=0.0, other_stddev=1.0, delta=1e-5), 3)
    4.377
    """
    if not (stddev > 0.0 and other_stddev > 0.0 and 0.0 < delta < 1.0):
        raise ValueError(f"deviations {stddev}, {other_stddev} and delta {delta} must be positive, delta under 1")

    def exceeded(epsilon: float) -> bool:
        forth = _divergence(mean, stddev, other_mean, other_stddev, epsilon)
        return max(forth, _divergence(other_mean, other_stddev, mean, stddev, epsilon)) > delta

    if not exceeded(0.0):
        return 0.0
    if exceeded(MAX_EPSILON):
        return math.inf
    low, high = 0.0, MAX_EPSILON
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        low, high = (middle, high) if exceeded(middle) else (low, middle)
    return high


def gaussian_estimate(
    scores: npt.NDArray[np.floating], members: npt.NDArray[np.bool_], *, delta: float
) -> float | None:  # fmt: skip
    """Epsilon at delta of the Gaussians fitted to members' and others' scores; None where there are too few, or they do not vary.

    Args:
        scores: [m].
        members: bool [m].
        delta: in (0, 1).
    """
    inside, outside = scores[members].astype(np.float64), scores[~members].astype(np.float64)
    if min(len(inside), len(outside)) < FEWEST_SCORES:
        return None
    deviations = float(inside.std(ddof=1)), float(outside.std(ddof=1))
    if not min(deviations) > 1e-12 * max(1e-300, float(np.abs(scores).max())):
        return None
    # The logarithm of a deviation over n scores itself deviates by 1 / sqrt(2 n).
    chance = _BY_CHANCE * math.sqrt(0.5 / len(inside) + 0.5 / len(outside))
    if abs(math.log(deviations[0] / deviations[1])) < chance:
        pooled = math.sqrt((len(inside) * deviations[0] ** 2 + len(outside) * deviations[1] ** 2) / len(scores))
        deviations = pooled, pooled
    return epsilon_of_gaussians(
        mean=float(inside.mean()), stddev=deviations[0], other_mean=float(outside.mean()), other_stddev=deviations[1], delta=delta
    )


def separation_of(epsilon: float, delta: float) -> float:
    """The distance, in standard deviations, of two equal Gaussians that are exactly (epsilon, delta) apart: inverse of the above.

    >>> round(separation_of(4.377, 1e-5), 2)
    1.0
    """
    if not math.isfinite(epsilon):
        return math.inf
    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2.0
        reached = epsilon_of_gaussians(mean=middle, stddev=1.0, other_mean=0.0, other_stddev=1.0, delta=delta)
        low, high = (low, middle) if reached > epsilon else (middle, high)
    return low


def _divergence(mean: float, stddev: float, other_mean: float, other_stddev: float, epsilon: float) -> float:
    """Largest P(S) - e^eps Q(S) over all sets S, for P = N(mean, stddev²) and Q = N(other_mean, other_stddev²).

    S is where log p - log q > eps: a x² + b x + c > 0 in x, the distance from Q's mean in Q's deviations.
    """
    shift, ratio = (mean - other_mean) / other_stddev, stddev / other_stddev
    a = 0.5 - 0.5 / ratio**2
    b = shift / ratio**2
    c = -0.5 * (shift / ratio) ** 2 - math.log(ratio) - epsilon
    if abs(a) < 1e-12:
        if b == 0.0:
            return max(0.0, 1.0 - math.exp(epsilon)) if c > 0.0 else 0.0
        edge = -c / b
        return _excess(edge, math.inf, shift, ratio, epsilon) if b > 0 else _excess(-math.inf, edge, shift, ratio, epsilon)
    root2 = b * b - 4.0 * a * c
    if root2 <= 0.0:
        return 0.0 if a < 0.0 else _excess(-math.inf, math.inf, shift, ratio, epsilon)
    # The stable form: no difference of nearly equal numbers.
    half = -0.5 * (b + math.copysign(math.sqrt(root2), b))
    first, second = sorted((half / a, c / half))
    if a < 0.0:
        return _excess(first, second, shift, ratio, epsilon)
    return _excess(-math.inf, first, shift, ratio, epsilon) + _excess(second, math.inf, shift, ratio, epsilon)


def _excess(low: float, high: float, shift: float, ratio: float, epsilon: float) -> float:
    """P(low < x < high) - e^eps Q(low < x < high)."""
    of_q = _between(low, high)
    weighted = math.exp(epsilon + math.log(of_q)) if of_q > 0.0 else 0.0
    return max(0.0, _between((low - shift) / ratio, (high - shift) / ratio) - weighted)


def _between(low: float, high: float) -> float:
    """Chance of a standard Gaussian between two points; from the tail on the side where both lie, so that small ones keep their digits."""
    if low > 0.0:
        low, high = -high, -low
    return 0.5 * (math.erfc(-high / math.sqrt(2.0)) - math.erfc(-low / math.sqrt(2.0)))
