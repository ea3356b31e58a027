"""Messages that no honest client sends, made of an honest one: each is a provable fault, or harmless.

1. Only the open mode has such messages; under secure aggregation an upload is a ring vector of a fixed length.
2. What comes out is what is put on the wire, as far as Flower can carry it: arrays by name in order, and the declared batch size. A name that occurs
   twice travels in protobuf, but Flower's reader keeps the last array of a name, so the server never sees the first.
3. ``denormal`` is malformed in no way: it is here since sums of such numbers are slow on some machines and must stay right.

Source: design note ROBUST, "Before any rule: validation".
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy_format

from fedsec.vectors import FloatArray

HUGE_VALUE = 3e38
DENORMAL = 1e-45
HUGE_COUNT = 1 << 62
"""Fits the signed 64 bits of a config record, and no training."""

CLAIMED_ENTRIES = 1 << 40
"""Entries that the header of ``huge-array`` claims: 4 TiB."""

_FLIP = -5.0


@dataclass(frozen=True, kw_only=True)
class RawArray:
    """An array as bytes in numpy's file format, which may say other things than its header.

    Attributes:
        dtype: as claimed.
        shape: as claimed.
        data: bytes of the file format.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True, kw_only=True, eq=False)
class MalformedReply:
    """What is sent instead of an honest update.

    Attributes:
        arrays: names and arrays in order; a name may occur twice.
        batch_size: as declared.
    """

    arrays: tuple[tuple[str, npt.NDArray[np.generic] | RawArray], ...]
    batch_size: int


Pairs = tuple[tuple[str, npt.NDArray[np.generic] | RawArray], ...]


def malform(name: str, arrays: Mapping[str, FloatArray], batch_size: int) -> MalformedReply:
    """The malformed message of this attack.

    Args:
        name: of an attack of the malformed family.
        arrays: an honest update, sum form, at least one array with an entry; not changed.
        batch_size: as it would be declared honestly.

    Raises:
        ValueError: no such attack, or nothing to malform.
    """
    if not arrays or not all(array.size for array in arrays.values()):
        raise ValueError("there is no entry to malform")
    if name in _COUNTS:
        honest: Pairs = tuple(sorted(arrays.items()))
        return MalformedReply(arrays=honest, batch_size=_COUNTS[name](batch_size))
    if name not in _ARRAYS:
        raise ValueError(f"{name} is no malformed message")
    return MalformedReply(arrays=_ARRAYS[name](dict(sorted(arrays.items()))), batch_size=batch_size)


def _with_entry(value: float) -> Callable[[dict[str, FloatArray]], Pairs]:
    def change(arrays: dict[str, FloatArray]) -> Pairs:
        first = next(iter(arrays))
        changed = arrays[first].copy()
        changed.reshape(-1)[0] = value
        return tuple({**arrays, first: changed}.items())

    return change


def _denormal(arrays: dict[str, FloatArray]) -> Pairs:
    return tuple((name, np.full_like(array, DENORMAL)) for name, array in arrays.items())


def _wrong_shape(arrays: dict[str, FloatArray]) -> Pairs:
    first = next(iter(arrays))
    return tuple({**arrays, first: np.append(arrays[first].reshape(-1), np.float32(0))}.items())


def _wrong_dtype(arrays: dict[str, FloatArray]) -> Pairs:
    return tuple((name, array.astype(np.float64)) for name, array in arrays.items())


def _wrong_names(arrays: dict[str, FloatArray]) -> Pairs:
    first = next(iter(arrays))
    return tuple((name + "\u200b" if name == first else name, array) for name, array in arrays.items())  # a space of no width


def _duplicate_names(arrays: dict[str, FloatArray]) -> Pairs:
    first = next(iter(arrays))
    return (*arrays.items(), (first, arrays[first] * np.float32(_FLIP)))


def _huge_array(arrays: dict[str, FloatArray]) -> Pairs:
    first = next(iter(arrays))
    stream = io.BytesIO()
    npy_format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": (CLAIMED_ENTRIES,)})
    raw = RawArray(dtype="float32", shape=(CLAIMED_ENTRIES,), data=stream.getvalue() + bytes(16))
    return tuple((name, raw if name == first else array) for name, array in arrays.items())


_ARRAYS: dict[str, Callable[[dict[str, FloatArray]], Pairs]] = {
    "nan-value": _with_entry(math.nan),
    "infinity": _with_entry(math.inf),
    "huge-value": _with_entry(HUGE_VALUE),
    "denormal": _denormal,
    "wrong-shape": _wrong_shape,
    "wrong-dtype": _wrong_dtype,
    "wrong-names": _wrong_names,
    "duplicate-names": _duplicate_names,
    "huge-array": _huge_array,
}
_COUNTS: dict[str, Callable[[int], int]] = {"negative-count": lambda size: -size, "huge-count": lambda _size: HUGE_COUNT}
