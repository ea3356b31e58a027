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
from fedsec.robust.gram import Floats, Updates, shape_of, squared_distances
from fedsec.robust.lanes import in_lanes

WIDTH = 1 << 11
"""Columns sorted at once."""


def median(updates: Updates, *, scales: Vector | None = None, threads: int | None = None) -> Vector:
    """Median of each coordinate, ``(s_⌈n/2⌉ + s_⌊n/2⌋₊₁) / 2``: float64 [d].

    Breakdown point: 1/2 in each coordinate. Paper: Yin, Chen, Ramchandran, Bartlett, ICML 2018, arXiv 1803.01498.

    >>> median(np.array([[1.0, 5.0], [2.0, 6.0], [1e30, -1e30]]))
    array([2., 5.])
    """
    count = _check(updates, 0)
    return _by_columns(updates, lambda ordered: (ordered[:, (count - 1) // 2] + ordered[:, count // 2]) / 2, scales, threads)


def trimmed_mean(updates: Updates, *, num_byzantine: int, scales: Vector | None = None, threads: int | None = None) -> Vector:
    """Mean of each coordinate without its f smallest and f largest entries: float64 [d].

    Breakdown point: f < n/2 in each coordinate. f = 0 gives the mean. Paper: Yin et al., ICML 2018, arXiv 1803.01498.

    >>> trimmed_mean(np.array([[1.0], [2.0], [4.0], [1e30]]), num_byzantine=1)
    array([3.])
    """
    count = _check(updates, num_byzantine)
    middle = np.zeros(count, dtype=np.result_type(np.float32, *{row.dtype for row in updates}))
    middle[num_byzantine : count - num_byzantine] = 1.0 / (count - 2 * num_byzantine)
    return _by_columns(updates, lambda ordered: ordered @ middle, scales, threads)


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
    """Mean of the ``kept`` entries of each row [width, n], sorted, that are nearest to the row's median.

    They lie side by side and hold an entry next to the median, so the window starts at one of few places. Entries that every such window
    holds are added once; the others come in pairs, ``kept`` apart, of which each window holds exactly one.
    """
    count = ordered.shape[1]
    below, above = (count - 1) // 2, count // 2
    middle = (ordered[:, [below]] + ordered[:, [above]]) / 2
    near = ordered[:, max(0, below - kept + 1) : min(count, above + kept)]
    free = near.shape[1] - kept
    reach = np.maximum(middle - near[:, : free + 1], near[:, kept - 1 :] - middle)
    start = np.argmin(reach, axis=1)[:, None]
    either = np.where(np.arange(free) >= start, near[:, :free], near[:, kept:])
    mean: Floats = (near[:, free:kept].sum(axis=1) + either.sum(axis=1)) / kept
    return mean


def _by_columns(updates: Updates, reduce: Callable[[Floats], Floats], scales: Vector | None, threads: int | None) -> Vector:
    """Sorted entries of each coordinate [width, n] → one number each, chunk by chunk: float64 [d]."""
    count, dimension = shape_of(updates)
    dtype = np.result_type(np.float32, *{row.dtype for row in updates})
    factors = None if scales is None else scales.astype(dtype)
    result = np.zeros(dimension)

    def lane(parts: Iterator[slice]) -> None:
        buffer = np.empty((WIDTH, count), dtype=dtype)
        for part in parts:
            columns = buffer[: part.stop - part.start]
            if isinstance(updates, np.ndarray):
                columns[...] = updates[:, part].T
            else:
                for row, update in enumerate(updates):
                    columns[:, row] = update[part]
            if factors is not None:
                columns *= factors
            columns.sort(axis=1)
            result[part] = reduce(columns)

    in_lanes(lane, dimension, WIDTH, threads)
    return result
