"""Who stands out along one direction: a group of at most f against the rest, fair to clients of other sizes.

1. Places are in deviations of noise. The spread of the rest is robust, and never under one.
2. A group is compared with the rest, whose spread it has no part in: four of twenty widen a median deviation by a third and more, and would hide behind it.
3. Large clients differ by more, and a client of another size may stand anywhere between the typical place and that times its size.
"""

from __future__ import annotations

import numpy as np

from fedsec.robust.base import Flags, Vector

SIZE_DIFFERENCE = 0.5
"""Noise units by which honest clients of median size are taken to differ along a direction, in judging larger ones."""

NEARLY = 0.99
"""Score of who is over an edge and not rejected for it."""

_WEIGHT_CAP = 3.0
_APART = 2.0


def standing_out(places: Vector, sizes: Vector, *, most: int, deviations: float) -> tuple[Vector, int]:
    """Who stands out on the upper side.

    Args:
        places: [n], in deviations of noise.
        sizes: [n], relative batch sizes.
        most: f, under n.
        deviations: from the rest, that each of the group must reach.

    Returns:
        [n] scores: deviations over ``deviations``; at least 1 for members of such a group only. And how many stand out, if more than ``most``:
        that is no collusion of f, and nobody scores 1, unless a group of at most f stands twice as far out as all others.
    """
    everybody = deviations_from(np.ones(len(places), dtype=np.bool_), places, sizes)
    order = np.argsort(-everybody, kind="stable")
    scores: Vector = np.minimum(everybody / deviations, NEARLY)
    apart = scores.copy()
    for count in range(1, min(most + 1, len(order) // 2) + 1):
        rest = np.ones(len(places), dtype=np.bool_)
        rest[order[:count]] = False
        relative = deviations_from(rest, places, sizes) / deviations
        if relative[~rest].min() < 1:
            continue
        if count > most:
            return apart, count
        scores[~rest] = np.maximum(scores[~rest], relative[~rest])
        if relative[rest].max() <= relative[~rest].min() / _APART:
            apart[~rest] = np.maximum(apart[~rest], relative[~rest])
    return scores, 0


def deviations_from(rest: Flags, places: Vector, sizes: Vector) -> Vector:
    """[n]: how many robust deviations of the rest each place is from what its size lets expect, with sign.

    Along a direction of honest signal places grow with the size; along one that colluders made of others' noise they do not. So a client of another
    size than the median may be anywhere between the place of a client of median size and that times its size.
    """
    typical = weighted_median(places[rest] / sizes[rest], np.minimum(sizes[rest], _WEIGHT_CAP))
    at_size = typical * sizes
    residuals = places - np.clip(places, np.minimum(typical, at_size), np.maximum(typical, at_size))
    unit = max(1.0, 1.4826 * float(np.median(np.abs(residuals[rest]))))
    spread = np.sqrt(unit**2 + SIZE_DIFFERENCE**2 * (np.maximum(sizes, 1.0) ** 2 - 1.0))
    deviations: Vector = residuals / spread
    return deviations


def weighted_median(values: Vector, weights: Vector) -> float:
    """The value that half the weight lies below; the mean of two where it falls between them.

    >>> weighted_median(np.array([3.0, 1.0, 2.0]), np.array([1.0, 1.0, 5.0])), weighted_median(np.array([1.0, 2.0]), np.ones(2))
    (2.0, 1.5)
    """
    order = np.argsort(values, kind="stable")
    cumulative = np.cumsum(weights[order])
    half = cumulative[-1] / 2
    low = int(np.searchsorted(cumulative, half))
    high = int(np.searchsorted(cumulative, half, side="right"))
    return float(values[order][low] + values[order][min(high, len(values) - 1)]) / 2
