"""How often reputation is wrong, exactly: the cumulative sum is a Markov chain on a few whole numbers.

1. Both figures hold for a client that is over the edge in each round with the same chance, independently of other rounds, that is never merely
   suspect, and that finds a free place in quarantine.
2. Real clients under skew deviate in the same direction round after round: what is independent here is not quite so there. A run without an
   attack says how often honest clients are rejected in truth (``honest_rate``, ``worst_honest_rate``).

Source: Brook and Evans, "An approach to the probability distribution of CUSUM run length", Biometrika 59 (1972).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fedsec.robust.reputation_records import ReputationSettings


def _step(rate: float, settings: ReputationSettings) -> npt.NDArray[np.float64]:
    """Transition matrix [threshold + 1, threshold + 1] of the evidence of a client; the last state is quarantine, and it stays there."""
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"a rate lies between 0 and 1, not {rate!r}")
    top = settings.threshold
    matrix = np.zeros((top + 1, top + 1))
    matrix[top, top] = 1.0
    for evidence in range(top):
        matrix[evidence, min(top, evidence + settings.rejected_points)] += rate
        matrix[evidence, max(0, evidence - 1)] += 1.0 - rate
    return matrix


def quarantine_probability(rate: float, rounds: int, settings: ReputationSettings, *, on_probation: bool = False) -> float:
    """Chance that a client over the edge in a share ``rate`` of its rounds is quarantined within ``rounds`` rounds, to float64 precision.

    Args:
        rate: 0 to 1.
        rounds: at least 0.
        settings: of the reputation.
        on_probation: whether it has just come back from a quarantine.

    Raises:
        ValueError: out of range.

    >>> settings = ReputationSettings(num_byzantine=5)
    >>> f"{quarantine_probability(0.02, 50, settings):.0e}", f"{quarantine_probability(0.08, 50, settings):.4f}"
    ('3e-07', '0.0009')
    """
    if rounds < 0:
        raise ValueError(f"rounds is at least 0, not {rounds!r}")
    start = settings.probation_evidence if on_probation else 0
    return float(np.linalg.matrix_power(_step(rate, settings), rounds)[start, settings.threshold])


def mean_rounds_to_quarantine(rate: float, settings: ReputationSettings) -> float:
    """Mean number of rounds until such a client is quarantined, from a clean start; infinite for a rate of 0.

    Raises:
        ValueError: out of range.

    >>> [round(mean_rounds_to_quarantine(rate, ReputationSettings(num_byzantine=5)), 1) for rate in (1.0, 0.5)]
    [5.0, 14.6]
    """
    inner = _step(rate, settings)[:-1, :-1]
    if rate == 0.0:
        return math.inf
    return float(np.linalg.solve(np.eye(len(inner)) - inner, np.ones(len(inner)))[0])
