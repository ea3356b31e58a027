"""A lower bound of epsilon from guesses about many canaries of *one* run.

1. Each of m canaries is in the run with probability 1/2, by a coin of its own. The attacker guesses r of them, in or out, and abstains on the rest.
2. r is fixed before the run. Taking the best r afterwards is a test repeated until it succeeds.
3. If the run is (epsilon, delta)-DP for adding or removing one canary, at least v right guesses happen with probability at most
   ``p = min(1, beta + 2 m delta alpha)``; beta and alpha are binomial tails. The bound is the largest epsilon whose p is under 5 %.
4. A bound of 0 says that nothing was shown, not that nothing leaks. What a perfect guesser would show stands beside each bound.

The coins of the canaries must be independent of everything else; what else the attacker knows does not matter. Canaries of several clients may be
pooled where each client's release protects its own records by (epsilon, delta): one canary touches one client.

Source: Steinke, Nasr and Jagielski 2023, "Privacy Auditing with One (1) Training Run" (arXiv 2305.08846), theorem 5.2 and appendix D.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95
MAX_EPSILON = 100.0
"""Bounds stop here; no number of canaries that fits into a machine reaches it."""

_HALVINGS = 40
_SHARES = (0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
"""Of the canaries, tried as r."""
_MOST_SEPARATION = 8.0


def p_value(*, num_canaries: int, num_guesses: int, num_correct: int, epsilon: float, delta: float) -> float:
    """Most that the chance of so many right guesses can be under (epsilon, delta)-DP.

    Args:
        num_canaries: m >= 1, the abstained ones included.
        num_guesses: r, 0 to m.
        num_correct: v, 0 to r.
        epsilon: >= 0, finite.
        delta: in [0, 1).

    Raises:
        ValueError: numbers that cannot be.
    """
    _check(num_canaries, num_guesses, num_correct, delta)
    if not 0.0 <= epsilon < math.inf:
        raise ValueError(f"epsilon must be finite and >= 0, not {epsilon!r}")
    probabilities = np.exp(_log_binomial(num_guesses, epsilon))
    beta = float(probabilities[num_correct:].sum())
    if delta == 0.0 or num_correct == 0:
        return min(1.0, beta)
    # alpha = max over i of P(v > Binomial >= v - i) / i
    below = np.cumsum(probabilities[num_correct - 1 :: -1])
    alpha = float((below / np.arange(1, num_correct + 1)).max())
    return min(1.0, beta + 2.0 * num_canaries * delta * alpha)


def epsilon_lower_bound(
    *, num_canaries: int, num_guesses: int, num_correct: int, delta: float, confidence: float = CONFIDENCE
) -> float:  # fmt: skip
    """Largest epsilon that so many right guesses refute, to 1e-6; 0 if none is.

    Args:
        num_canaries: m >= 1.
        num_guesses: r, fixed before the run.
        num_correct: v.
        delta: at which epsilon is meant, in [0, 1).
        confidence: of the bound, in (0, 1).

    >>> round(epsilon_lower_bound(num_canaries=1000, num_guesses=1000, num_correct=1000, delta=0.0), 2)
    5.81
    """
    _check(num_canaries, num_guesses, num_correct, delta)
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must be in (0, 1), not {confidence!r}")

    def refuted(epsilon: float) -> bool:
        p = p_value(num_canaries=num_canaries, num_guesses=num_guesses, num_correct=num_correct, epsilon=epsilon, delta=delta)
        return p <= 1.0 - confidence

    if num_guesses == 0 or not refuted(0.0):
        return 0.0
    # Whatever is refuted is refuted with everything below it: an (epsilon, delta)-DP run is (more, delta)-DP too. So any boundary will do.
    low, high = 0.0, MAX_EPSILON
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def perfect_bound(*, num_canaries: int, num_guesses: int, delta: float, confidence: float = CONFIDENCE) -> float:
    """The bound of a guesser that is right every time: no attack can show more with these m, r and delta."""
    return epsilon_lower_bound(
        num_canaries=num_canaries, num_guesses=num_guesses, num_correct=num_guesses, delta=delta, confidence=confidence
    )


def number_of_guesses(*, num_canaries: int, separation: float, delta: float, confidence: float = CONFIDENCE) -> int:
    """The r to fix beforehand, from public numbers alone: even, and best if scores are Gaussian with this separation.

    "Best" is the bound at one standard deviation of luck under the expectation, over a short list of shares of the canaries.

    Args:
        num_canaries: m >= 2.
        separation: expected distance of the means of members' and others' scores, in standard deviations.
        delta: at which epsilon will be bounded.
        confidence: of the bound.
    """
    if num_canaries < 2:
        raise ValueError(f"{num_canaries} canaries are too few to guess about")
    distance = min(max(separation, 0.0), _MOST_SEPARATION)
    best, best_key = 2, (-1.0, 0.0)
    for share in _SHARES:
        count = min(num_canaries - num_canaries % 2, max(2, 2 * round(share * num_canaries / 2)))
        right = _expected_accuracy(distance, count / num_canaries)
        correct = max(0, math.floor(count * right - math.sqrt(count * right * (1.0 - right))))
        bound = epsilon_lower_bound(num_canaries=num_canaries, num_guesses=count, num_correct=correct, delta=delta, confidence=confidence)
        # Where no share shows anything, the one on which luck weighs least.
        key = (bound, (right - 0.5) * math.sqrt(count))
        if key > best_key:
            best, best_key = count, key
    return best


def count_correct(scores: npt.NDArray[np.floating], members: npt.NDArray[np.bool_], num_guesses: int) -> int:
    """Guess "in" for the r/2 highest scores and "out" for the r/2 lowest, and count the right ones; ties go by place, blind to the answer.

    Args:
        scores: [m], higher where membership is likelier; finite.
        members: bool [m], the coins.
        num_guesses: r, even, at most m.
    """
    if scores.shape != members.shape or scores.ndim != 1 or num_guesses % 2 or not 0 <= num_guesses <= len(scores):
        raise ValueError(f"{num_guesses} guesses about scores of shape {scores.shape} and members of shape {members.shape}")
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite")
    order, half = np.argsort(scores, kind="stable"), num_guesses // 2
    lowest, highest = order[:half], order[len(order) - half :]
    return int(members[highest].sum()) + int((~members[lowest]).sum())


def _check(num_canaries: int, num_guesses: int, num_correct: int, delta: float) -> None:
    if not 0 <= num_correct <= num_guesses <= num_canaries or num_canaries < 1:
        raise ValueError(f"{num_correct} right of {num_guesses} guesses about {num_canaries} canaries cannot be")
    if not 0.0 <= delta < 1.0:
        raise ValueError(f"delta must be in [0, 1), not {delta!r}")


def _log_binomial(trials: int, epsilon: float) -> npt.NDArray[np.float64]:
    """Logarithms of P(Binomial(trials, e^eps / (1 + e^eps)) = 0 .. trials)."""
    factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, trials + 1, dtype=np.float64)))])
    ways = factorials[-1] - factorials - factorials[::-1]
    right = -math.log1p(math.exp(-epsilon))
    counts = np.arange(trials + 1, dtype=np.float64)
    logs: npt.NDArray[np.float64] = ways + counts * right + (trials - counts) * (right - epsilon)
    return logs


def _expected_accuracy(separation: float, share: float) -> float:
    """Share of right guesses among the most extreme ``share`` of scores: an even mixture of N(-s/2, 1) and N(s/2, 1)."""
    if share >= 1.0:
        return NormalDist().cdf(separation / 2.0)
    low, high = 0.0, separation / 2.0 + 40.0
    tails = NormalDist()
    for _ in range(60):
        edge = (low + high) / 2.0
        outside = tails.cdf(-edge + separation / 2.0) + tails.cdf(-edge - separation / 2.0)  # of both ends together
        low, high = (edge, high) if outside > share else (low, edge)
    right, wrong = tails.cdf(-low + separation / 2.0), tails.cdf(-low - separation / 2.0)
    return right / (right + wrong)
