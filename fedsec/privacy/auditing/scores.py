"""What an adversary computes about canaries from the rounds that it sees: a log-likelihood ratio per canary, added up over rounds.

1. A round shows, for each canary, the inner product of what was seen with the canary's direction there, in clip norms. If the canary is out this is
   noise alone; if it is in, the noise lies around the sum of the steps' weights in which the canary was drawn, each step with the sample rate.
2. A step's weight is what momentum makes of it within the round; see :func:`step_weights`. All this is public: the plan tells it.
3. The deviation of the noise is the plan's, or, where it is larger, what the quieter half of the canaries shows in the round itself: records'
   gradients and other canaries are noise too.

This is the optimal test for one round where the noise is Gaussian (Neyman and Pearson); over rounds it is what an observer can do who sees each
round's update but no single step. Sampling makes the ratio worth more than the plain sum of inner products.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

MOST_SUBSETS = 4096
"""Sums of step weights that are told apart; with more steps the sum is taken as Gaussian."""
LEAST_NOISE = 0.02
"""In clip norms: what is below it is no noise to speak of, and the ratio would overflow."""

_LOWER_QUARTILE = 0.3186
"""Of the absolute value of a standard Gaussian: canaries that are in hardly move it."""

Floats = npt.NDArray[np.float64]


def step_weights(steps: int, momentum: float) -> Floats:
    """Weight of each step's gradient in the round's model difference, in learning rates: ``1 + m + ... + m**(steps - 1 - s)``."""
    return np.array([sum(momentum**power for power in range(steps - step)) for step in range(steps)])


@dataclass(kw_only=True, eq=False)
class CanaryScores:
    """Scores of one set of canaries under one view, summed over rounds.

    Args:
        count: m.
        weights: of the steps of a round.
        sample_rate: of a step.
        noise_multiplier: deviation of one step's noise in clip norms, as the adversary knows it; of a sum over clients, of the sum.

    Attributes:
        scores: [m], log-likelihood ratios so far.
        sums: [m], plain sums of inner products so far: nearly Gaussian, and weaker.
    """

    count: int
    weights: Floats
    sample_rate: float
    noise_multiplier: float
    _atoms: tuple[Floats, Floats] | None = field(init=False)
    scores: Floats = field(init=False)
    sums: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.scores, self.sums = np.zeros(self.count), np.zeros(self.count)
        self._atoms = _subset_sums(self.weights, self.sample_rate)

    def see(self, seen: npt.NDArray[np.floating], signatures: npt.NDArray[np.floating], places: slice) -> None:
        """Add one round's evidence about the canaries at ``places``.

        Args:
            seen: [n], what the adversary sees, in clip norms times step weights; noise equal in all coordinates.
            signatures: [canaries, n], the canaries' directions there, not necessarily of norm 1.
            places: of these canaries in the scores.
        """
        squares = np.einsum("ij,ij->i", signatures, signatures).astype(np.float64)
        usable = squares > 1e-12
        values = np.where(usable, signatures @ seen.astype(signatures.dtype) / np.where(usable, squares, 1.0), 0.0)
        planned = self.noise_multiplier * math.sqrt(float(self.weights @ self.weights))
        shrink = np.sqrt(np.where(usable, squares, 1.0))
        observed = float(np.quantile(np.abs(values * shrink), 0.25)) / _LOWER_QUARTILE
        stddev = np.maximum(max(planned, observed, LEAST_NOISE) / shrink, LEAST_NOISE)
        self.scores[places] += np.where(usable, self._ratio(values, stddev), 0.0)
        self.sums[places] += values

    def _ratio(self, values: Floats, stddev: Floats) -> Floats:
        """Log of the density with the canary over the one without it."""
        out = -0.5 * (values / stddev) ** 2
        if self._atoms is None:
            mean = self.sample_rate * float(self.weights.sum())
            spread = self.sample_rate * (1.0 - self.sample_rate) * float(self.weights @ self.weights)
            wide = np.sqrt(stddev**2 + spread)
            gaussian: Floats = -0.5 * ((values - mean) / wide) ** 2 - np.log(wide / stddev) - out
            return gaussian
        sums, chances = self._atoms
        exponents = np.log(chances) - 0.5 * ((values[:, None] - sums) / stddev[:, None]) ** 2
        top = exponents.max(axis=1, keepdims=True)
        inside = top[:, 0] + np.log(np.exp(exponents - top).sum(axis=1))
        ratio: Floats = inside - out
        return ratio


def _subset_sums(weights: Floats, rate: float) -> tuple[Floats, Floats] | None:
    """Values and chances of the sum of the drawn steps' weights; equal values merged; None if they are too many."""
    found = {0.0: 1.0}
    for weight in weights:
        longer: dict[float, float] = {}
        for value, chance in found.items():
            for total, share in ((value, 1.0 - rate), (round(value + float(weight), 9), rate)):
                if share > 0.0:
                    longer[total] = longer.get(total, 0.0) + chance * share
        if len(longer) > MOST_SUBSETS:
            return None
        found = longer
    return np.array(list(found)), np.array(list(found.values()))
