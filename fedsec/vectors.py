"""Named arrays as one flat vector, and back: the form in which updates are validated, clipped, masked and summed.

1. Order is the sorted order of the names, so two parties that hold the same names flatten alike.
2. A :class:`Layout` fixes names and shapes; arrays that do not match it exactly are refused.
3. Everything is float32 in transit; sums are accumulated in float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedsec.codec import digest

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Layout:
    """Names and shapes of a set of arrays, in flattening order.

    Attributes:
        entries: ``(name, shape)`` pairs sorted by name.
    """

    entries: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, arrays: Mapping[str, npt.NDArray[np.generic]]) -> Layout:
        """The layout of ``arrays``."""
        return cls(tuple((name, tuple(int(n) for n in arrays[name].shape)) for name in sorted(arrays)))

    @property
    def size(self) -> int:
        """Number of entries of the flat vector."""
        return sum(math.prod(shape) for _, shape in self.entries)

    def check(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Refuse arrays whose names, shapes or dtype (float32) differ.

        Raises:
            ValueError: says which name, and how it differs.
        """
        expected = dict(self.entries)
        if missing := sorted(set(expected) - set(arrays)):
            raise ValueError(f"missing arrays: {', '.join(missing[:5])}")
        if unknown := sorted(set(arrays) - set(expected)):
            raise ValueError(f"unknown arrays: {', '.join(repr(name)[:40] for name in unknown[:5])}")
        for name, shape in self.entries:
            array = arrays[name]
            if array.dtype != np.float32:
                raise ValueError(f"{name}: dtype {array.dtype}, expected float32")
            if tuple(array.shape) != shape:
                raise ValueError(f"{name}: shape {tuple(array.shape)}, expected {shape}")

    def flatten(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> FloatArray:
        """Concatenate into float32 [size], after :meth:`check`."""
        self.check(arrays)
        if not self.entries:
            return np.zeros(0, dtype=np.float32)
        return np.concatenate([np.asarray(arrays[name], dtype=np.float32).reshape(-1) for name, _ in self.entries])

    def unflatten(self, vector: npt.NDArray[np.floating]) -> dict[str, FloatArray]:
        """Split [size] into named float32 arrays (copies).

        Raises:
            ValueError: the vector has another length.
        """
        if vector.shape != (self.size,):
            raise ValueError(f"vector of shape {vector.shape}, expected ({self.size},)")
        arrays: dict[str, FloatArray] = {}
        start = 0
        for name, shape in self.entries:
            count = math.prod(shape)
            arrays[name] = vector[start : start + count].astype(np.float32).reshape(shape)
            start += count
        return arrays


def arrays_digest(arrays: Mapping[str, npt.NDArray[np.generic]]) -> str:
    """Hex SHA-256 over names, dtypes, shapes and little-endian bytes: equal models have equal digests."""
    parts: list[bytes] = []
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        parts += [name.encode(), f"{array.dtype.name}:{','.join(map(str, array.shape))}".encode(), little.tobytes()]
    return digest("fedsec/arrays/v1", *parts).hex()
