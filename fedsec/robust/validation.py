"""What a client's update must be before any rule looks at it: one bad client never spoils the model or the round.

1. Names, shapes and dtype are those of the model's shared parameters, exactly.
2. Every entry is finite, and within ``MAX_ENTRY_PER_RECORD`` times the declared batch size: no honest training of a usable
   model gets there, and 3e38 in one entry would spoil a sum as surely as infinity.
3. The declared batch size is a whole number, at least 1 and at most what the federation provides for; how much of it counts is the mean's business.

A fault here is *provable*: the client's own message shows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedsec.errors import PeerError
from fedsec.vectors import FloatArray, Layout

MAX_BATCH_SIZE = 1_000_000
"""Largest declared batch size that is believed at all."""

MAX_ENTRY_PER_RECORD = 1e6
"""Largest entry of a sum-form update, per record of the declared batch, that is believed at all."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ValidUpdate:
    """An update that passed validation; only :func:`validate_update` makes one.

    Attributes:
        client_id: who sent it.
        vector: float32 [d], sum form (declared batch size times the model difference), finite.
        batch_size: declared expected batch size, 1..MAX_BATCH_SIZE.
    """

    client_id: str
    vector: FloatArray
    batch_size: int


def validate_update(
    client_id: str, arrays: Mapping[str, npt.NDArray[np.generic]], batch_size: object, *, layout: Layout, phase: str = "train",
    most_batch_size: int = MAX_BATCH_SIZE,
) -> ValidUpdate:  # fmt: skip
    """Turn a client's arrays into a ``ValidUpdate``, or say what is wrong with them.

    Args:
        client_id: who sent them.
        arrays: as received, untrusted.
        batch_size: as declared, untrusted.
        layout: names and shapes of the model's shared parameters.
        phase: step of the round, for the error.
        most_batch_size: largest declared batch size that the federation provides for.

    Raises:
        PeerError: the client's message itself is the proof of the fault.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or not 1 <= batch_size <= most_batch_size:
        raise PeerError(client_id, phase, f"declared batch size {str(batch_size)[:40]} is not a whole number in 1..{most_batch_size}")
    try:
        vector = layout.flatten(arrays)
    except ValueError as error:
        raise PeerError(client_id, phase, f"wrong arrays: {error}") from None
    if not np.isfinite(vector).all():
        raise PeerError(client_id, phase, f"{int(np.count_nonzero(~np.isfinite(vector)))} entries are not finite")
    limit = MAX_ENTRY_PER_RECORD * batch_size
    if vector.size and float(np.max(np.abs(vector))) > limit:
        raise PeerError(client_id, phase, f"an entry is over {limit:g} in magnitude")
    return ValidUpdate(client_id=client_id, vector=vector, batch_size=batch_size)
