"""What a rule on the Gram matrix decides, and the tools that such rules share: centres as weights, residuals, and the edge of rejection.

1. A centre is a weighted sum of updates; its distance from each update follows from the Gram matrix alone.
2. The edge is ``median + max(DEVIATIONS * 1.4826 * MAD, MARGIN * median)`` of the residuals: an update beyond it is *separable*. The
   second term keeps a rule from rejecting where honest updates are all equally far out, as in high dimension.
3. Scores are residual over edge, of updates as they were sent; 1 is the edge.
4. At most ``num_byzantine`` updates are rejected, the largest scores first; equal scores go by the order of the client ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fedsec.robust.base import Flags, Matrix, Vector

DEVIATIONS = 5.0
"""Robust standard deviations between the median and the edge. With 4, one honest update in 50 was over the edge under Dirichlet 0.5."""
MARGIN = 0.25
"""Smallest distance between the median residual and the edge, as a share of the median."""
MAD_TO_STDDEV = 1.4826
"""Standard deviation over median absolute deviation, of a normal distribution."""
ROUNDING = 1e-6
"""Residuals below this share of the median norm are rounding."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GramDecision:
    """What a rule says of n updates.

    Attributes:
        weights: float64 [n], at least 0: the aggregate is their weighted sum of the model differences. They add up to 1, unless the rule
            changes norms (ARC: to less; FLTrust: to anything).
        accepted: bool [n]; what is not accepted has weight 0.
        scores: float64 [n], larger is more suspicious, from the Gram matrix of the updates as sent.
        facts: what the rule measured, by name.
    """

    weights: Vector
    accepted: Flags
    scores: Vector
    facts: Mapping[str, float] = field(default_factory=dict)


def check_gram(gram: Matrix, num_byzantine: int = 0) -> int:
    """Number of updates behind a Gram matrix.

    Raises:
        ValueError: the matrix is empty, not square, not finite, or half of the clients or more are said to be hostile.
    """
    count = len(gram)
    if gram.shape != (count, count) or not count or not np.isfinite(gram).all():
        raise ValueError(f"needs a square, finite Gram matrix of at least one update, not one of shape {gram.shape}")
    if not 0 <= 2 * num_byzantine < count:
        raise ValueError(f"{num_byzantine} of {count} updates cannot be told apart from the honest: fewer than half can")
    return count


def uniform(accepted: Flags) -> Vector:
    """Equal weights on what is accepted, adding up to 1.

    >>> uniform(np.array([True, False, True]))
    array([0.5, 0. , 0.5])
    """
    weights: Vector = accepted / np.count_nonzero(accepted)
    return weights


def distances_from(gram: Matrix, weights: Vector) -> Vector:
    """``||x_i - sum_j w_j x_j||``: float64 [n].

    >>> distances_from(np.array([[4.0, 0.0], [0.0, 4.0]]), np.array([1.0, 0.0]))
    array([0.        , 2.82842712])
    """
    products = gram @ weights
    squared = np.diagonal(gram) - 2.0 * products + float(weights @ products)
    return np.sqrt(np.maximum(squared, 0.0))


def residual_scores(residuals: Vector, *, scale: float = 0.0, among: Flags | None = None) -> Vector:
    """Residuals in multiples of the edge (rule 2 of this module).

    Args:
        residuals: float64 [n], at least 0.
        scale: median norm of the updates; what is below ``ROUNDING`` of it counts as no residual.
        among: whose residuals make the edge; default: all.

    >>> residual_scores(np.array([1.0, 1.0, 1.0, 5.0]))
    array([0.8, 0.8, 0.8, 4. ])
    """
    typical = residuals if among is None else residuals[among]
    middle = float(np.median(typical))
    spread = MAD_TO_STDDEV * float(np.median(np.abs(typical - middle)))
    edge = middle + max(DEVIATIONS * spread, MARGIN * middle, ROUNDING * scale)
    return residuals / edge if edge > 0 else np.zeros(len(residuals)) + (residuals > 0)


def accept_all_but(scores: Vector, num_byzantine: int, *, edge: float = 1.0) -> Flags:
    """False for scores of ``edge`` and more, for at most ``num_byzantine`` of them, the largest first.

    >>> accept_all_but(np.array([0.5, 1.5, 3.0, 1.5]), 2)
    array([ True, False, False,  True])
    """
    suspects = np.argsort(-scores, kind="stable")[:num_byzantine]
    accepted = np.ones(len(scores), dtype=np.bool_)
    accepted[suspects[scores[suspects] >= edge]] = False
    return accepted


def smallest(values: npt.NDArray[np.floating], count: int) -> Flags:
    """True for the ``count`` smallest values; equal values by index.

    >>> smallest(np.array([3.0, 1.0, 1.0, 2.0]), 2)
    array([False,  True,  True, False])
    """
    chosen = np.zeros(len(values), dtype=np.bool_)
    chosen[np.argsort(values, kind="stable")[:count]] = True
    return chosen


def scores_by_rank(values: Vector, accepted: Flags) -> Vector:
    """Values over the smallest one that is not accepted, so that 1 is the edge; nothing rejected: over a bit more than the largest.

    >>> scores_by_rank(np.array([1.0, 2.0, 4.0]), np.array([True, True, False]))
    array([0.25, 0.5 , 1.  ])
    """
    edge = float(values.max()) * (1.0 + ROUNDING) if accepted.all() else float(values[~accepted].min())
    return values / edge if edge > 0 else (~accepted).astype(np.float64)
