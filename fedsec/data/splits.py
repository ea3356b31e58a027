"""Seeded, label-aware splitting of records: what the loaders and the partitions have in common.

1. The same seed and label give the same split on every machine; streams of different purposes are independent.
2. Counts are apportioned by largest remainders, so they sum exactly and are off by less than one record.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedsec.codec import digest
from fedsec.data.base import IntArray
from fedsec.errors import DataError


def seeded_generator(purpose: str, seed: int) -> np.random.Generator:
    """A generator that depends on ``seed`` and on what it is for, so that no two uses share their draws.

    For public choices only (who gets which record): nothing here protects a secret.
    """
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest(f"fedsec/data/{purpose}/v1", str(seed).encode()), "big")))


def apportion(total: int, weights: npt.ArrayLike) -> IntArray:
    """Split ``total`` into whole shares in proportion to ``weights`` (largest remainders; ties go to the earlier share).

    Returns:
        int64 [len(weights)], non-negative, summing to ``total``; each is off its exact quota by less than one.

    Raises:
        ValueError: total < 0, or weights that are negative, not finite, or sum to zero.

    >>> apportion(10, [1.0, 1.0, 1.0]).tolist()
    [4, 3, 3]
    """
    shares = np.asarray(weights, dtype=np.float64)
    if total < 0 or shares.ndim != 1 or not np.isfinite(shares).all() or (shares < 0).any() or shares.sum() <= 0:
        raise ValueError("apportion needs total >= 0 and finite non-negative weights that do not all vanish")
    quota = total * (shares / shares.sum())
    # A quota that is whole up to rounding must not lose a record to its own floor.
    counts: IntArray = np.floor(quota + 1e-9).astype(np.int64)
    order = np.argsort(counts - quota, kind="stable")
    counts[order[: total - int(counts.sum())]] += 1
    return counts


def hold_out(strata: IntArray, fraction: float, *, seed: int, name: str) -> tuple[IntArray, IntArray]:
    """Indices of the training and the test part, the same share of every stratum (label, or natural owner).

    Each stratum keeps at least one training record; a stratum of one record has no test record.

    Args:
        strata: int64 [n], non-negative.
        fraction: share of the records that goes to the test part, in (0, 1).
        seed: of the choice.
        name: of the data set, for the error.

    Raises:
        DataError: too few records to leave both parts non-empty.
    """
    sizes = np.bincount(strata)
    wanted = max(1, round(fraction * len(strata)))
    take = np.minimum(apportion(wanted, sizes), np.maximum(sizes - 1, 0)) if len(strata) else sizes
    if take.sum() == 0:
        raise DataError(f"data set {name!r}: {len(strata)} records are too few to hold out a test part; give x_test and y_test")
    generator = seeded_generator("hold-out", seed)
    test = np.zeros(len(strata), dtype=bool)
    for stratum in np.flatnonzero(take):
        members = np.flatnonzero(strata == stratum)
        test[generator.permutation(members)[: take[stratum]]] = True
    return np.flatnonzero(~test).astype(np.int64), np.flatnonzero(test).astype(np.int64)
