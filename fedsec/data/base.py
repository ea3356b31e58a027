"""``Dataset``: the one shape in which records travel through fedsec, checked once when it is made.

1. Records are float32 and finite, labels are int64 in ``0..num_classes-1``, lengths agree, no part is empty.
2. Natural groups, where they exist, number ``0..len(group_names)-1`` and each holds at least one training record.
3. The arrays cannot be written through a ``Dataset``.
4. Equal data sets have equal fingerprints; the fingerprint names the data in ledger, cache and manifest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedsec.errors import DataError
from fedsec.vectors import arrays_digest

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

MAX_CLASSES = 100_000
"""Far above any real task; a bad label column (say, a time stamp) fails here instead of filling the memory with counters."""

_ARRAYS = ("x", "y", "x_test", "y_test", "groups", "groups_test")
_BLOCK_ROWS = 4096  # records checked at once; bounds the memory of the check


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Dataset:
    """Training and test records of one task.

    Attributes:
        name: what to call it in reports and errors.
        x: float32 [n, *shape], finite.
        y: int64 [n], labels ``0..num_classes-1``.
        x_test: float32 [m, *shape], finite.
        y_test: int64 [m].
        num_classes: number of classes, at least two.
        class_names: one name per class.
        groups: int64 [n], natural owner of each training record (a hospital, a writer); None where there is none.
        groups_test: int64 [m], natural owner of each test record.
        group_names: one name per natural owner.
        fingerprint: hex SHA-256 over the arrays (for a feature map: over the fingerprint of its input and the map's
            version). Computed when left empty.
    """

    name: str
    x: FloatArray
    y: IntArray
    x_test: FloatArray
    y_test: IntArray
    num_classes: int
    class_names: tuple[str, ...]
    groups: IntArray | None = None
    groups_test: IntArray | None = None
    group_names: tuple[str, ...] = ()
    fingerprint: str = ""

    def __post_init__(self) -> None:
        _check_classes(self)
        _check_records(self, "x", self.x, "y", self.y)
        _check_records(self, "x_test", self.x_test, "y_test", self.y_test)
        if self.x.shape[1:] != self.x_test.shape[1:]:
            raise _fault(self, f"training records have shape {self.x.shape[1:]}, test records {self.x_test.shape[1:]}")
        _check_groups(self)
        for field in _ARRAYS:
            if getattr(self, field) is not None:
                object.__setattr__(self, field, _read_only(getattr(self, field)))
        if not self.fingerprint:
            object.__setattr__(self, "fingerprint", _fingerprint(self))

    def __repr__(self) -> str:
        return f"Dataset({self.name!r}, train={len(self.y)}, test={len(self.y_test)}, shape={self.input_shape}, classes={self.num_classes})"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one record."""
        return tuple(int(n) for n in self.x.shape[1:])


def _fault(dataset: Dataset, problem: str) -> DataError:
    return DataError(f"data set {dataset.name!r}: {problem}")


def _check_classes(dataset: Dataset) -> None:
    if not isinstance(dataset.name, str) or not dataset.name:
        raise DataError("a data set needs a name")
    if not isinstance(dataset.num_classes, int) or not 2 <= dataset.num_classes <= MAX_CLASSES:
        raise _fault(dataset, f"num_classes is {dataset.num_classes!r}; it must be a whole number from 2 to {MAX_CLASSES}")
    if len(dataset.class_names) != dataset.num_classes:
        raise _fault(dataset, f"{len(dataset.class_names)} class names for {dataset.num_classes} classes")


def _check_records(dataset: Dataset, x_name: str, x: object, y_name: str, y: object) -> None:
    if not isinstance(x, np.ndarray) or x.dtype != np.float32:
        raise _fault(dataset, f"{x_name} must be a float32 array, not {_kind(x)}")
    if not isinstance(y, np.ndarray) or y.dtype != np.int64:
        raise _fault(dataset, f"{y_name} must be an int64 array, not {_kind(y)}")
    if x.ndim < 2 or 0 in x.shape[1:]:
        raise _fault(dataset, f"{x_name} has shape {x.shape}; it needs one row per record and at least one value in each")
    if y.ndim != 1 or len(x) != len(y):
        raise _fault(dataset, f"{x_name} holds {len(x)} records, {y_name} has shape {y.shape}; they must be equally long")
    if len(y) == 0:
        raise _fault(dataset, f"{x_name} is empty")
    if y.min() < 0 or y.max() >= dataset.num_classes:
        raise _fault(dataset, f"{y_name} holds labels from {y.min()} to {y.max()}; they must lie in 0..{dataset.num_classes - 1}")
    for start in range(0, len(x), _BLOCK_ROWS):
        bad = ~np.isfinite(x[start : start + _BLOCK_ROWS]).reshape(len(x[start : start + _BLOCK_ROWS]), -1).all(axis=1)
        if bad.any():
            raise _fault(dataset, f"{x_name}: record {start + int(bad.argmax())} holds a value that is not finite")


def _check_groups(dataset: Dataset) -> None:
    count = len(dataset.group_names)
    if dataset.groups is None:
        if dataset.groups_test is not None or count:
            raise _fault(dataset, "groups_test or group_names without groups")
        return
    for name, groups, records in (("groups", dataset.groups, dataset.y), ("groups_test", dataset.groups_test, dataset.y_test)):
        if groups is None:
            continue
        if not isinstance(groups, np.ndarray) or groups.dtype != np.int64 or groups.shape != records.shape:
            raise _fault(dataset, f"{name} must be an int64 array of shape {records.shape}, not {_kind(groups)}")
        if groups.min() < 0 or groups.max() >= count:
            raise _fault(dataset, f"{name} holds ids from {groups.min()} to {groups.max()}; there are {count} group names")
    sizes = np.bincount(dataset.groups, minlength=count)
    if not sizes.all():
        raise _fault(dataset, f"client {dataset.group_names[int(sizes.argmin())]!r} has no training records")


def _kind(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    return type(value).__name__


def _read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A view that refuses writes; the caller's own array stays as it is."""
    view = array.view()
    view.setflags(write=False)
    return view


def _fingerprint(dataset: Dataset) -> str:
    return arrays_digest({field: getattr(dataset, field) for field in _ARRAYS if getattr(dataset, field) is not None})
