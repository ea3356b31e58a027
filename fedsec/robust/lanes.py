"""How the columns of updates are shared out: chunks of columns in a few lanes, so that threads change the time and never the result.

A lane is every fourth chunk, in order. Each lane runs on one thread, and what lanes return is put together in the order of the lanes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

LANES = 4

T = TypeVar("T")


def in_lanes(lane: Callable[[Iterator[slice]], T], dimension: int, width: int, threads: int | None = None) -> list[T]:
    """Run ``lane`` once for each lane, with the slices of columns that are its part.

    Args:
        lane: called with slices of at most ``width`` columns; numpy lets go of the interpreter while it works on them.
        dimension: d, columns.
        width: columns of a chunk.
        threads: lanes that run at once; default: as many as there are processors.

    Returns:
        What the lanes returned, in their order.

    >>> in_lanes(lambda parts: [part.start for part in parts], 50, 10, 1)
    [[0, 40], [10], [20], [30]]
    """
    starts = range(0, dimension, width)
    lanes = [(slice(start, min(start + width, dimension)) for start in starts[first::LANES]) for first in range(min(LANES, len(starts)))]
    workers = min(threads or os.cpu_count() or 1, len(lanes))
    if workers <= 1:
        return [lane(parts) for parts in lanes]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lane, lanes))
