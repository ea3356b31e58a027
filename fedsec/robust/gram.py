"""Inner products of updates, and weighted sums of them: the only places where a selecting or weighting rule touches all d columns.

1. One pass over the columns, chunk by chunk: products in float32 (BLAS), chunks added up in float64. Extra memory: one chunk a lane.
2. Inside, rows are taken relative to a *pivot*, one of the rows: a float32 product of two long vectors that lie close together says
   little about their distance. Products about the pivot are then moved to the caller's origin in float64, where what was moved cancels
   out of every distance.
3. A pivot far from all others would spoil just that. The pass shows it, and is then made once more about the most central row; so one
   hostile row can cost one pass and no accuracy. Products that leave the range of float32 are made again in float64.
4. Sums run in the same order whatever the number of threads: equal input, equal bits.

Rules work on model differences, never on models: on models, distances in float32 lose outliers (design note ROBUST, "One engine").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fedsec.robust.base import Matrix, Vector
from fedsec.robust.lanes import in_lanes

Floats: TypeAlias = npt.NDArray[np.floating]
Updates: TypeAlias = Floats | Sequence[Floats]

CHUNK_ENTRIES = 1 << 19
"""About how many entries of the input a lane holds at once."""
FEWEST_COLUMNS = 1 << 10
"""Fewest columns of a chunk: with fewer, BLAS is slow."""
FAR_PIVOT = 1e4
"""How many times farther (squared, by medians) a pivot may lie than the most central row before the pass is made again."""
SMALLEST_NORM = 1e-24
"""Where no squared norm in float32 is above this, entries may have been lost to underflow."""


def gram_matrix(updates: Updates, *, center: Floats | None = None, scales: Vector | None = None, threads: int | None = None) -> Matrix:
    """``G_ij = <s_i x_i - c, s_j x_j - c>`` of n updates of d entries.

    Cost: n²d/2 multiplications in BLAS and one read of the input; extra memory one chunk a lane.

    Args:
        updates: n of d, finite: a 2-D array with one row an update, or a sequence of 1-D arrays (never stacked). float32 or float64.
        center: c [d], the origin of the products; default: zero. Accuracy does not depend on it.
        scales: s [n], a factor for each row; default: one.
        threads: that take chunks at the same time; default: one, and BLAS has its own.

    Returns:
        float64 [n, n], symmetric, diagonal at least 0. ``G_ii + G_jj - 2 G_ij`` is within about 1e-6 of the product of the distances of i
        and j from the most central row.

    Raises:
        ValueError: shapes do not fit, or a product is not finite even in float64.

    >>> gram_matrix(np.array([[3.0, 4.0], [0.0, 1.0]], dtype=np.float32))
    array([[25.,  4.],
           [ 4.,  1.]])
    """
    count, dimension = shape_of(updates)
    if (center is not None and center.shape != (dimension,)) or (scales is not None and scales.shape != (count,)):
        raise ValueError(f"{count} updates of {dimension} entries need a center of as many entries and as many scales")
    if not count:
        return np.zeros((0, 0))
    dtype = np.result_type(np.float32, *{row.dtype for row in updates})
    about_pivot = _about_a_pivot(updates, center, scales, dtype, threads)
    if dtype == np.float32 and not SMALLEST_NORM < np.diagonal(about_pivot).max() < np.inf:
        about_pivot = _about_a_pivot(updates, center, scales, np.dtype(np.float64), threads)
    if not np.isfinite(about_pivot).all():
        raise ValueError("inner products of the updates are not finite: validate updates first")
    moved = about_pivot[:-1, -1]
    gram: Matrix = about_pivot[:-1, :-1] + (moved[:, None] + moved[None, :]) + about_pivot[-1, -1]
    np.fill_diagonal(gram, np.maximum(np.diagonal(gram), 0.0))
    return gram


def squared_distances(gram: Matrix) -> Matrix:
    """``D_ij = G_ii + G_jj - 2 G_ij``: float64 [n, n], at least 0, diagonal 0.

    >>> squared_distances(np.array([[25.0, 4.0], [4.0, 1.0]]))
    array([[ 0., 18.],
           [18.,  0.]])
    """
    norms = np.diagonal(gram)
    distances: Matrix = np.maximum(norms[:, None] + norms[None, :] - 2.0 * gram, 0.0)
    np.fill_diagonal(distances, 0.0)
    return distances


def combine(updates: Updates, weights: Vector, *, threads: int | None = None) -> Vector:
    """``sum_i w_i x_i``: float64 [d], one read of the input.

    Products and sums in the precision of the input: for float32 each entry is within about 1e-6 of ``sum_i |w_i x_i|``.

    >>> combine(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([0.5, 0.5]))
    array([2., 3.])
    """
    count, dimension = shape_of(updates)
    if weights.shape != (count,):
        raise ValueError(f"{count} updates need as many weights, not {weights.shape}")
    result, width = np.zeros(dimension), columns_of_a_chunk(count)

    def lane(parts: Iterator[slice]) -> None:
        chunk_of = chunks_of(updates, width)
        for part in parts:
            chunk = chunk_of(part)
            result[part] = weights.astype(chunk.dtype) @ chunk

    in_lanes(lane, dimension, width, threads or 1)
    return result


def distances_to(updates: Updates, point: Vector, *, scales: Vector | None = None, threads: int | None = None) -> Vector:
    """``||s_i x_i - p||``: float64 [n], for a point [d] that need not be a combination of the rows.

    >>> distances_to(np.array([[3.0, 4.0], [0.0, 1.0]]), np.zeros(2))
    array([5., 1.])
    """
    count, dimension = shape_of(updates)
    width = columns_of_a_chunk(count)

    def lane(parts: Iterator[slice]) -> Vector:
        chunk_of, total = chunks_of(updates, width), np.zeros(count)
        for part in parts:
            chunk = chunk_of(part)
            rest = (chunk if scales is None else chunk * scales[:, None]) - point[part]
            total += np.einsum("ij,ij->i", rest, rest)
        return total

    return np.sqrt(sum(in_lanes(lane, dimension, width, threads or 1), start=np.zeros(count)))


def _about_a_pivot(
    updates: Updates, center: Floats | None, scales: Vector | None, dtype: np.dtype[np.floating], threads: int | None
) -> Matrix:
    """Products [n + 1, n + 1] of ``s_i x_i - q``, and last ``q - c``, where q is a row that is not far from all others."""
    products = _products(updates, 0, center, scales, dtype, threads)
    with np.errstate(over="ignore", invalid="ignore"):
        medians = np.nan_to_num(np.median(squared_distances(products[:-1, :-1]), axis=1), nan=np.inf)
    best = int(np.argmin(medians))
    if not medians[0] / FAR_PIVOT <= medians[best]:
        products = _products(updates, best, center, scales, dtype, threads)
    return products


def _products(
    updates: Updates, pivot: int, center: Floats | None, scales: Vector | None, dtype: np.dtype[np.floating], threads: int | None
) -> Matrix:
    count, dimension = shape_of(updates)
    width = columns_of_a_chunk(count)
    factors = np.ones(count, dtype=dtype) if scales is None else scales.astype(dtype)

    def lane(parts: Iterator[slice]) -> Matrix:
        buffer, total = np.empty((count + 1, width), dtype=dtype), np.zeros((count + 1, count + 1))
        for part in parts:
            chunk = buffer[:, : part.stop - part.start]
            origin = updates[pivot][part].astype(dtype) * factors[pivot]
            if scales is not None:
                for row, update in enumerate(updates):
                    np.multiply(update[part], factors[row], out=chunk[row], dtype=dtype)
                chunk[:-1] -= origin
            elif isinstance(updates, np.ndarray):
                np.subtract(updates[:, part], origin, out=chunk[:-1], dtype=dtype)
            else:
                for row, update in enumerate(updates):
                    np.subtract(update[part], origin, out=chunk[row], dtype=dtype)
            chunk[-1] = origin if center is None else origin - center[part]
            with np.errstate(over="ignore", invalid="ignore"):
                total += chunk @ chunk.T
        return total

    return sum(in_lanes(lane, dimension, width, threads or 1), start=np.zeros((count + 1, count + 1)))


def columns_of_a_chunk(count: int) -> int:
    """Columns that a lane takes of ``count`` rows at once."""
    return max(FEWEST_COLUMNS, CHUNK_ENTRIES // max(1, count))


def chunks_of(updates: Updates, width: int) -> Callable[[slice], Floats]:
    """A function slice of at most ``width`` columns → [n, columns]: a view of a 2-D array, else a copy that the next call overwrites."""
    if isinstance(updates, np.ndarray):
        return lambda part: updates[:, part]
    dtype = np.result_type(np.float32, *{row.dtype for row in updates})
    buffer = np.empty((len(updates), width), dtype=dtype)

    def chunk_of(part: slice) -> Floats:
        chunk = buffer[:, : part.stop - part.start]
        for row, update in enumerate(updates):
            chunk[row] = update[part]
        return chunk

    return chunk_of


def shape_of(updates: Updates) -> tuple[int, int]:
    """``(n, d)``.

    Raises:
        ValueError: rows are not vectors of one length.
    """
    shapes = {updates.shape[1:]} if isinstance(updates, np.ndarray) else {row.shape for row in updates}
    if not len(updates):
        return 0, 0
    if len(shapes) > 1 or any(len(shape) != 1 for shape in shapes):
        raise ValueError("updates must be vectors of one length")
    return len(updates), shapes.pop()[0]
