"""Rules that take each coordinate by itself: median, trimmed mean, MeaMed, and Bulyan's second half. Only for updates in clear.

Symbols: n updates x_i of d entries, at most f of them hostile; s_1 <= ... <= s_n the entries of one coordinate in order.
Columns go through in chunks: a chunk is copied with the clients along the contiguous axis, sorted there, and reduced. A coordinate with
one NaN has no order, so nothing but finite updates may come here (``fedsec.robust.validation``).
Cost of each: d n log n. They need no distances, but skew alone costs them much: an honest client whose data are rare is trimmed in the
coordinates that matter to it (design note ROBUST, "Which rule").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from fedsec.robust.base import Flags, Matrix, Vector
from fedsec.robust.decision import check_gram, smallest
from fedsec.robust.gram import Floats, Updates, chunks_of, shape_of, squared_distances
from fedsec.robust.lanes import in_lanes

WIDTH = 1 << 11
"""Columns sorted at once."""


def median(updates: Updates, *, scales: Vector | None = None, threads: int | None = None) -> Vector:
    """Median of each coordinate, ``(s_⌈n/2⌉ + s_⌊n/2⌋₊₁) / 2``: float64 [d].

    Breakdown point: 1/2 in each coordinate. Paper: Yin, Chen, Ramchandran, Bartlett, ICML 2018, arXiv 1803.01498.

    >>> median(np.array([[1.0, 5.0], [2.0, 6.0], [1e30, -1e30]]))
    array([2., 5.])
    """
    count, _ = shape_of(updates)
    return _by_columns(updates, lambda ordered: (ordered[:, (count - 1) // 2] + ordered[:, count // 2]) / 2, scales, threads)


def trimmed_mean(updates: Updates, *, num_byzantine: int, scales: Vector | None = None, threads: int | None = None) -> Vector:
    """Mean of each coordinate without its f smallest and f largest entries: float64 [d].

    Breakdown point: f < n/2 in each coordinate. f = 0 gives the mean. Paper: Yin et al., ICML 2018, arXiv 1803.01498.

    >>> trimmed_mean(np.array([[1.0], [2.0], [4.0], [1e30]]), num_byzantine=1)
    array([3.])
    """
    count = _check(updates, num_byzantine)
    return _by_columns(updates, lambda ordered: ordered[:, num_byzantine : count - num_byzantine].mean(axis=1), scales, threads)


def meamed(updates: Updates, *, num_byzantine: int, scales: Vector | None = None, threads: int | None = None) -> Vector:
    """Mean of the n - f entries of each coordinate that are nearest to its median: float64 [d].

    Breakdown point: f < n/2 in each coordinate. f = 0 gives the mean.
    Paper: Xie, Koyejo, Gupta, arXiv 1802.10116 (mean around median).

    >>> meamed(np.array([[1.0], [2.0], [3.0], [1e30]]), num_byzantine=1)
    array([2.])
    """
    count = _check(updates, num_byzantine)
    return _by_columns(updates, lambda ordered: _around_the_median(ordered, count - num_byzantine), scales, threads)


def bulyan(
    updates: Updates, gram: Matrix, *, num_byzantine: int, scales: Vector | None = None, threads: int | None = None
) -> tuple[Vector, Flags]:
    """Bulyan: Krum again and again selects theta = n - 2f updates; of these, in each coordinate, the mean of the theta - 2f nearest to the median.

    Breakdown point: f with n >= 4f + 3. Cost: n³ log n and d n log n. f = 0 gives the mean.
    Paper: El Mhamdi, Guerraoui, Rouault, ICML 2018, arXiv 1802.07927.

    Returns:
        float64 [d], and which updates were selected.

    Raises:
        ValueError: n < 4f + 3.

    >>> result, selected = bulyan(np.eye(7), np.eye(7), num_byzantine=1)
    >>> int(selected.sum())
    5
    """
    count = check_gram(gram, num_byzantine)
    if count < 4 * num_byzantine + 3 and num_byzantine:
        raise ValueError(f"Bulyan stands at most {(count - 3) // 4} hostile of {count} updates, not {num_byzantine}")
    selected = select_by_krum(gram, num_byzantine=num_byzantine)
    rows = np.flatnonzero(selected).tolist()
    chosen = updates if len(rows) == count else [updates[row] for row in rows]
    kept = len(rows) - 2 * num_byzantine
    factors = None if scales is None else scales[rows]
    return _by_columns(chosen, lambda ordered: _around_the_median(ordered, kept), factors, threads), selected


def select_by_krum(gram: Matrix, *, num_byzantine: int) -> Flags:
    """The n - 2f updates that Krum picks one after the other, each time among those that are left: bool [n]."""
    count = check_gram(gram, num_byzantine)
    distances, selected = squared_distances(gram), np.zeros(count, dtype=np.bool_)
    for _ in range(count - 2 * num_byzantine):
        left = np.flatnonzero(~selected)
        nearest = min(len(left) - 1, max(1, len(left) - num_byzantine - 2))
        ordered = np.partition(distances[np.ix_(left, left)], nearest, axis=1)
        selected[left[smallest(ordered[:, : nearest + 1].sum(axis=1), 1)]] = True
    return selected


def _check(updates: Updates, num_byzantine: int) -> int:
    count, _ = shape_of(updates)
    if not 0 <= 2 * num_byzantine < count:
        raise ValueError(f"{num_byzantine} of {count} updates cannot be told apart from the honest: fewer than half can")
    return count


def _around_the_median(ordered: Floats, kept: int) -> Floats:
    """Mean of the ``kept`` entries of each row [width, n], sorted, that are nearest to the row's median."""
    count = ordered.shape[1]
    middle = (ordered[:, (count - 1) // 2] + ordered[:, count // 2]) / 2
    first = np.arange(count - kept + 1)
    reach = np.maximum(middle[:, None] - ordered[:, first], ordered[:, first + kept - 1] - middle[:, None])
    start = np.argmin(reach, axis=1)[:, None]
    index = np.arange(count)
    result: Floats = np.where((index >= start) & (index < start + kept), ordered, 0.0).sum(axis=1) / kept
    return result


def _by_columns(updates: Updates, reduce: Callable[[Floats], Floats], scales: Vector | None, threads: int | None) -> Vector:
    """Sorted entries of each coordinate [width, n] → one number each, chunk by chunk: float64 [d]."""
    _, dimension = shape_of(updates)
    result = np.zeros(dimension)

    def lane(parts: Iterator[slice]) -> None:
        chunk_of = chunks_of(updates, WIDTH)
        for part in parts:
            chunk = chunk_of(part)
            ordered = np.ascontiguousarray((chunk if scales is None else chunk * scales.astype(chunk.dtype)[:, None]).T)
            if ordered.base is not None:
                ordered = ordered.copy()
            ordered.sort(axis=1)
            result[part] = reduce(ordered)

    in_lanes(lane, dimension, WIDTH, threads)
    return result
