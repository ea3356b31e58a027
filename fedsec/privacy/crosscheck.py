"""A second, independent estimate of epsilon in milliseconds: it guards numbers read from disk and aims calibration.

1. Nothing here is ever reported: reports come from :mod:`fedsec.privacy.accounting`. This module has no Opacus and no torch in it.
2. The estimate carries no error bound of its own. It agrees with PRV to about 0.1 % where it answers; where it cannot be
   computed well it answers None, and the caller computes the real number.

How: the privacy loss of one step of the Poisson-subsampled Gaussian is put on a grid, each loss shared between its two
neighbours so that the mean is kept; all steps are composed by one Fourier transform; the range of the sum comes from
Chernoff bounds, so that what wraps around is far below delta.

Source: Koskela et al. 2020 (arXiv 1906.03049), with the "connect the dots" split of Doroshenko et al. 2022 (arXiv 2207.04380).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

MAX_POINTS = 1 << 20
"""Longest grid: 8 MiB an array. A longer one would not be quick any more."""
_OUTPUT_POINTS = 8192
"""Points over the outcomes of one step; the integrand is smooth, so the rule of equal steps converges fast."""
_TAIL = 1e-5
"""Share of delta that the ends of the range may hold together."""


def quick_epsilon(steps_of: Sequence[tuple[float, float, int]], delta: float) -> float | None:
    """Estimate epsilon of ``(noise_multiplier, sample_rate, steps)`` segments, or None where it cannot be done quickly.

    Args:
        steps_of: positive noise multipliers, rates in (0, 1], positive step counts.
        delta: in (0, 1).

    >>> round(quick_epsilon([(1.0, 0.1, 50)], 1e-5), 2)
    5.15
    """
    if not 1e-10 <= delta < 1 or not steps_of:
        return None
    if any(not (1e-2 <= sigma <= 1e6 and rate >= 1e-12) for sigma, rate, _ in steps_of):
        return None  # the sums below run out of numbers
    tail = delta * _TAIL
    total = sum(steps for _, _, steps in steps_of)
    singles = [(*_losses(sigma, rate, tail / total), steps) for sigma, rate, steps in steps_of]
    low, high = _range(singles, tail)
    spacing = min(_spacing(weights, losses, steps, total) for weights, losses, steps in singles)
    if not (math.isfinite(low) and math.isfinite(high) and spacing > 0.0) or high > 500.0:
        return None
    # Sharing a loss between neighbours moves the sum by at most this much, but for the tail (Hoeffding).
    margin = spacing * math.sqrt(total * math.log(2.0 / tail) / 2.0)
    low, high = low - margin, high + margin
    points = math.ceil((high - low) / spacing) + 2
    if points > MAX_POINTS:
        return None
    return _epsilon_on_grid(singles, low=low, spacing=spacing, points=1 << (points - 1).bit_length(), delta=delta)


def _losses(sigma: float, rate: float, tail: float) -> tuple[Floats, Floats]:
    """Probabilities and privacy losses of one step's outcome when the record is there, on a fine grid of outcomes."""
    reach = sigma * math.sqrt(2.0 * math.log(10.0 / tail))
    outcome = np.linspace(-reach, 1.0 + reach, _OUTPUT_POINTS)
    log_ratio = (2.0 * outcome - 1.0) / (2.0 * sigma**2)
    losses = log_ratio if rate == 1.0 else np.logaddexp(math.log1p(-rate), math.log(rate) + log_ratio)
    absent = np.exp(-(outcome**2) / (2.0 * sigma**2))
    present = np.exp(-((outcome - 1.0) ** 2) / (2.0 * sigma**2))
    weights = (1.0 - rate) * absent + rate * present
    return weights / weights.sum(), losses


def _range(singles: Sequence[tuple[Floats, Floats, int]], tail: float) -> tuple[float, float]:
    """Interval that holds the summed loss but for ``tail`` of its mass (Chernoff, both ends)."""
    ends = []
    for sign in (-1.0, 1.0):
        best = math.inf
        for tilt in np.geomspace(1e-2, 1e4, 61):
            log_moment = 0.0
            for weights, losses, steps in singles:
                exponent = sign * tilt * losses
                peak = float(exponent.max())
                mass = float(weights @ np.exp(exponent - peak))
                log_moment += steps * (peak + math.log(mass)) if mass > 0.0 else math.inf  # the numbers ran out: no end here
            best = min(best, (log_moment - math.log(tail)) / float(tilt))
        ends.append(sign * best)
    return ends[0], ends[1]


def _spacing(weights: Floats, losses: Floats, steps: int, total: int) -> float:
    """Grid spacing fine enough that the split adds under 0.05 % to the variance of this segment's loss."""
    mean = float(weights @ losses)
    deviation = math.sqrt(float(weights @ (losses - mean) ** 2))
    return deviation * (0.04 if total > 1 else 0.01) if steps else math.inf


def _epsilon_on_grid(
    singles: Sequence[tuple[Floats, Floats, int]], *, low: float, spacing: float, points: int, delta: float
) -> float | None:
    # Cell k of the composed grid stands for the loss k * spacing, modulo the length: the sum's range is shorter than that.
    transform = np.ones(points // 2 + 1, dtype=np.complex128)
    for weights, losses, steps in singles:
        position = losses / spacing
        cell = np.floor(position).astype(np.int64)
        share = position - cell
        mass = np.bincount(cell % points, weights * (1.0 - share), points) + np.bincount((cell + 1) % points, weights * share, points)
        transform *= np.fft.rfft(mass) ** steps
    first = math.floor(low / spacing)
    mass = np.maximum(np.roll(np.fft.irfft(transform, points), -first), 0.0)
    losses_sum = (first + np.arange(points)) * spacing
    positive = losses_sum > 0.0
    mass, losses_sum = mass[positive], losses_sum[positive]
    # delta(eps) = sum over losses above eps of mass * (1 - exp(eps - loss)); both sums run from the top.
    above = np.cumsum(mass[::-1])[::-1]
    above_scaled = np.cumsum((mass * np.exp(-losses_sum))[::-1])[::-1]
    deltas = above - np.exp(losses_sum) * above_scaled
    if mass.size == 0 or deltas[0] <= delta:
        # Solve on the linear piece that reaches down to epsilon 0.
        excess = float(above[0] - delta) if mass.size else -1.0
        return max(0.0, math.log(excess / float(above_scaled[0]))) if excess > 0.0 else 0.0
    index = int(np.searchsorted(-deltas, -delta))
    if index >= mass.size or above_scaled[index] <= 0.0 or above[index] <= delta:
        return None
    return math.log((float(above[index]) - delta) / float(above_scaled[index]))
