"""Directions that more clients share than noise can explain, and who stands out along them.

1. The matrix is one of inner products of rows, in noise units, with nothing on the diagonal that noise alone would put there: norms are the
   gate's business. It is centred on the mean row.
2. The edge is that of pure noise, or, where honest clients differ by more than noise, that times how much more: :func:`spread_over_noise`.
3. **Every** eigenvector above the edge is looked at; two groups of honest clients must not hide a third.
4. Along an eigenvector e, ``λ e_i`` is the inner product of row i with a combination of the *other* rows: under noise it is normal, of known
   deviation. Who stands out is found by :mod:`fedsec.robust.standing_out`, on the side where somebody is farthest out: colluders that subtract others' noise
   push those to the other side.
5. Then everything is done again without those who were found, until nobody is: a far-out group hides a lesser one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedsec.robust.base import Flags, Matrix, Vector
from fedsec.robust.levels import FEWEST_CLIENTS, ScreeningSettings
from fedsec.robust.standing_out import NEARLY, standing_out
from fedsec.robust.tails import semicircle_quantile, spectral_edge

_MOST_PASSES = 3
_LEAST_SHARE = 0.25


@dataclass(frozen=True, kw_only=True, eq=False)
class Spectrum:
    """What the eigenvectors above the edge say.

    Attributes:
        edge: of the first pass, in the matrix's unit.
        eigenvalues: [n], of the centred matrix of all, largest first.
        scores: [n], robust deviations over those allowed, the largest over directions and passes; 0 if none is above the edge.
        eigenvalue_of: [n], the eigenvalue that a client's score is from.
        crowded: clients on sides with more than f, where that kept them from being found.
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
    products: Matrix, sizes: Vector, *, unit: float, columns: float, most: int, settings: ScreeningSettings, left_out: Flags | None = None
) -> Spectrum:
    """Who stands out along directions above the edge, in passes.

    Args:
        products: [n, n], symmetric, n at least ``FEWEST_CLIENTS``.
        sizes: [n] relative batch sizes.
        unit: deviation of an off-diagonal entry under noise.
        columns: of the rows whose products these are; where they come from several rounds, as many as would spread alike.
        most: f.
        settings: levels of the tests.
        left_out: bool [n], who is left out after the first pass in any case. In that pass they have a voice: colluders of whom some are outside
            the gate still agree with each other.
    """
    kept = np.arange(len(sizes))
    gone = np.zeros(len(sizes), dtype=np.bool_) if left_out is None else left_out.copy()
    scores, eigenvalue_of = np.zeros(len(sizes)), np.zeros(len(sizes))
    first: Spectrum | None = None
    for _ in range(_MOST_PASSES):
        one = _pass(products[np.ix_(kept, kept)], sizes[kept], unit=unit, columns=columns, most=most, settings=settings)
        first = one if first is None else first
        higher = one.scores > scores[kept]
        scores[kept[higher]], eigenvalue_of[kept[higher]] = one.scores[higher], one.eigenvalue_of[higher]
        gone |= scores >= 1
        left, most = np.flatnonzero(~gone), most - int(np.count_nonzero(one.scores >= 1))
        if len(left) == len(kept) or len(left) < FEWEST_CLIENTS or most < 1:
            break
        kept = left
    assert first is not None
    return Spectrum(edge=first.edge, eigenvalues=first.eigenvalues, scores=scores, eigenvalue_of=eigenvalue_of, crowded=first.crowded)


def _pass(products: Matrix, sizes: Vector, *, unit: float, columns: float, most: int, settings: ScreeningSettings) -> Spectrum:
    values, vectors = np.linalg.eigh(centred(products))
    eigenvalues = values[::-1]
    # Agreement takes two, so f colluders make f/2 directions; those that agree with nobody but themselves over rounds make up to f.
    differing = min(spread_over_noise(eigenvalues, most // 2, unit), 1.4 * spread_over_noise(eigenvalues, most, unit))
    edge = spectral_edge(len(sizes), columns, settings.edge_tail) * unit / math.sqrt(columns) * max(1.0, 1.5 * differing - 0.4)
    scores, eigenvalue_of, crowded = np.zeros(len(sizes)), np.zeros(len(sizes)), 0
    for rank in range(len(sizes)):
        if eigenvalues[rank] <= edge:
            break
        places = products @ vectors[:, -1 - rank] / (unit * math.sqrt(1.0 + eigenvalues[rank] / (unit * math.sqrt(columns))))
        sides = [standing_out(side, sizes, most=most, deviations=settings.deviations) for side in (places, -places)]
        crowded = max(crowded, *(more for _, more in sides))
        far, near = sorted((relative for relative, _ in sides), key=lambda relative: float(relative.max()), reverse=True)
        relative = np.maximum(far, np.minimum(near, NEARLY))
        higher = relative > scores
        scores[higher], eigenvalue_of[higher] = relative[higher], eigenvalues[rank]
    return Spectrum(edge=edge, eigenvalues=eigenvalues, scores=scores, eigenvalue_of=eigenvalue_of, crowded=crowded)
