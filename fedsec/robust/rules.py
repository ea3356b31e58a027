"""How valid updates become one mean update: the capped mean of sum-form updates. All other rules: ``fedsec.robust.registry``.

Sum form (PRIVACY and ROBUST design notes): client k sends ``x_k = B_k * delta_k`` with its declared expected batch size B_k;
the server divides the sum by the sum of the declared sizes. So every x_k carries noise of the same, publicly known deviation,
and a client counts in proportion to its declared size, up to a cap: what is over it counts neither above nor below the line.
(With the cap below the line only, a client that declared 20,000 times the others' size moved the model 4,500 times as far.)
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fedsec.robust.validation import ValidUpdate


def capped_weights(batch_sizes: Sequence[float], *, weight_cap: float) -> tuple[float, ...]:
    """``min(B_k, weight_cap * median B)``: a client that declares an enormous batch cannot dilute the others' updates.

    >>> capped_weights([10, 10, 10, 200], weight_cap=3.0)
    (10.0, 10.0, 10.0, 30.0)
    """
    if not batch_sizes or weight_cap < 1:
        raise ValueError("needs at least one batch size, and a cap of at least 1")
    cap = weight_cap * statistics.median(batch_sizes)
    return tuple(min(float(size), cap) for size in batch_sizes)


def mean_update(updates: Sequence[ValidUpdate], *, weight_cap: float) -> npt.NDArray[np.float64]:
    """Mean of the model differences, each weighted with its capped declared batch size.

    ``sum_k min(B_k, cap) x_k / B_k / sum_k min(B_k, cap)``: where nobody is over the cap, the sum of updates over the sum of sizes.

    Deterministic: the sum runs in the order of the client ids, in float64, whatever the order of arrival.

    Args:
        updates: at least one; all of one length d.
        weight_cap: see :func:`capped_weights`.

    Returns:
        float64 [d].
    """
    ordered = sorted(updates, key=lambda update: update.client_id)
    weights = capped_weights([update.batch_size for update in ordered], weight_cap=weight_cap)
    total = np.zeros(ordered[0].vector.shape, dtype=np.float64)
    for update, weight in zip(ordered, weights, strict=True):
        total += update.vector if weight == update.batch_size else update.vector * (weight / update.batch_size)
    return total / sum(weights)
