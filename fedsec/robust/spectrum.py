"""Directions that more clients share than noise can explain, and who stands out along them.

1. The matrix is one of inner products of rows, in noise units, with nothing on the diagonal that noise alone would put there: norms are the
   gate's business. It is centred on the mean row.
2. The edge is that of pure noise, or, where honest clients differ by more than noise, that times how much more: :func:`spread_over_noise`.
3. **Every** eigenvector above the edge is looked at; two groups of honest clients must not hide a third.
4. Along an eigenvector e, ``λ e_i`` is the inner product of row i with a combination of the *other* rows: under noise it is normal, of known
   deviation. In sum form honest signal grows with the declared batch size, so each place is compared with a line through the origin over the
   sizes; the deviation is robust, never under one noise unit, and wider for large clients, whose differences grow as well.
5. A side with more than f clients on it is no collusion of at most f: nobody on it is rejected, unless a group of at most f stands twice as far out
   as all others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedsec.robust.base import Flags, Matrix, Vector
from fedsec.robust.tails import semicircle_quantile

SIZE_DIFFERENCE = 0.5
"""Noise units by which honest clients of median size are taken to differ along a direction, in judging larger ones."""

_WEIGHT_CAP = 3.0
_NEARLY = 0.99
_APART = 2.0
_LEAST_SHARE = 0.25


@dataclass(frozen=True, kw_only=True, eq=False)
class Spectrum:
    """What the eigenvectors above the edge say.

    Attributes:
        edge: in the matrix's unit, squared noise units.
        eigenvalues: [n], of the centred matrix, largest first.
        scores: [n], robust deviations over those allowed, the largest over all directions; 0 if none is above the edge.
        eigenvalue_of: [n], the eigenvalue that a client's score is from.
        crowded: clients on sides with more than f, where that kept them from being rejected.
    """

    edge: float
    eigenvalues: Vector
    scores: Vector
    eigenvalue_of: Vector
    crowded: int


def centred(products: Matrix) -> Matrix:
    """``Π P Π`` with Π the projection off the vector of ones: as if the mean row had been taken from every row."""
    left = products - products.mean(axis=0)
    both: Matrix = left - left.mean(axis=1)[:, None]
    return both


def spread_over_noise(eigenvalues: Vector, index: int, unit: float) -> float:
    """By how much eigenvalue ``index`` (from 0, of n, largest first) is over where noise alone would have it, at the semicircle's quantile.

    f clients that differ from the rest add at most f eigenvalues above those of the rest (Cauchy's interlacing), so the one after says how much
    the rest differ among themselves.

    Args:
        eigenvalues: [n], largest first.
        index: which; at most a quarter of n is used, where noise has a clear place.
        unit: deviation of an off-diagonal entry under noise.
    """
    count = len(eigenvalues)
    index = min(index, int(_LEAST_SHARE * count))
    expected = 2.0 * unit * math.sqrt(count) * semicircle_quantile((index + 0.5) / count)
    return float(eigenvalues[index]) / expected


def outlying(
    products: Matrix,
    sizes: Vector,
    *,
    edge: float,
    unit: float,
    columns: float,
    most: int,
    deviations: float,
    difference: float = SIZE_DIFFERENCE,
) -> Spectrum:
    """Who stands out along directions above the edge.

    Args:
        products: [n, n], symmetric.
        sizes: [n] relative batch sizes.
        edge: eigenvalues up to it are noise.
        unit: deviation of an off-diagonal entry under noise.
        columns: of the rows whose products these are; where they come from several rounds, as many as would spread alike.
        most: f.
        deviations: robust deviations at which a score is 1.
        difference: see :func:`standing_out`.
    """
    values, vectors = np.linalg.eigh(centred(products))
    eigenvalues = values[::-1]
    # Agreement takes two, so f colluders make f/2 directions; those that agree with nobody but themselves over rounds make up to f.
    differing = min(spread_over_noise(eigenvalues, most // 2, unit), 1.4 * spread_over_noise(eigenvalues, most, unit))
    edge *= max(1.0, 1.5 * differing - 0.4)
    scores, eigenvalue_of, crowded = np.zeros(len(sizes)), np.zeros(len(sizes)), 0
    for rank in range(len(sizes)):
        if eigenvalues[rank] <= edge:
            break
        places = products @ vectors[:, -1 - rank] / (unit * math.sqrt(1.0 + eigenvalues[rank] / (unit * math.sqrt(columns))))
        for side in (places, -places):
            relative, more = standing_out(side, sizes, most=most, deviations=deviations, difference=difference)
            crowded = max(crowded, more)
            higher = relative > scores
            scores[higher], eigenvalue_of[higher] = relative[higher], eigenvalues[rank]
    return Spectrum(edge=edge, eigenvalues=eigenvalues, scores=scores, eigenvalue_of=eigenvalue_of, crowded=crowded)


def standing_out(places: Vector, sizes: Vector, *, most: int, deviations: float, difference: float) -> tuple[Vector, int]:
    """Who stands out on the upper side: a group of up to ``most`` is compared with the rest, whose spread it has no part in.

    A spread that the group itself widens would hide it: four of twenty widen a median deviation by a third and more.

    Args:
        places: [n], in deviations of noise.
        sizes: [n], relative batch sizes.
        most: f, under n.
        deviations: from the rest, that each of the group must reach.
        difference: by how many deviations of noise honest clients of median size are taken to differ, in judging larger ones.

    Returns:
        [n] scores: deviations over ``deviations``; at least 1 for members of such a group only. And how many stand out, if more than ``most``.
    """
    everybody = deviations_from(np.ones(len(places), dtype=np.bool_), places, sizes, difference)
    order = np.argsort(-everybody, kind="stable")
    scores: Vector = np.minimum(everybody / deviations, _NEARLY)
    apart = scores.copy()
    for count in range(1, min(most + 1, len(order) // 2) + 1):
        rest = np.ones(len(places), dtype=np.bool_)
        rest[order[:count]] = False
        relative = deviations_from(rest, places, sizes, difference) / deviations
        if relative[~rest].min() < 1:
            continue
        if count > most:
            return apart, count
        scores[~rest] = np.maximum(scores[~rest], relative[~rest])
        if relative[rest].max() <= relative[~rest].min() / _APART:
            apart[~rest] = np.maximum(apart[~rest], relative[~rest])
    return scores, 0


def deviations_from(rest: Flags, places: Vector, sizes: Vector, difference: float) -> Vector:
    """[n]: how many robust deviations of the rest each place is from what its size lets expect, with sign."""
    slope = weighted_median(places[rest] / sizes[rest], np.minimum(sizes[rest], _WEIGHT_CAP))
    residuals = places - slope * sizes
    typical = max(1.0, 1.4826 * float(np.median(np.abs(residuals[rest]))))
    spread = np.sqrt(typical**2 + difference**2 * (np.maximum(sizes, 1.0) ** 2 - 1.0))
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
