"""Own data: what a user's function gives, made into a checked ``Dataset``.

A function without arguments returns a ``Dataset`` or a dict of arrays:

==================  ==========================================================================
``x``               [n, …] numbers, scaled by public constants; required
``y``               [n] whole numbers from 0; required
``x_test, y_test``  the test part; without them ``[data] test_fraction`` of the records is held out
``num_classes``     default: largest label + 1, or the number of class names
``class_names``     default: the numbers
``groups``          [n] natural owner of each record, numbers or names
``groups_test``     the same for the test part; required when both groups and x_test are given
``name``            default: the entry point
==================  ==========================================================================

1. The records are copied: what the function does with its arrays afterwards changes nothing.
2. The fingerprint is always computed from the arrays, also for a ``Dataset`` that brings its own.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fedsec.data.base import Dataset, FloatArray, IntArray
from fedsec.data.entrypoint import call_entry_point, load_entry_point
from fedsec.data.splits import hold_out
from fedsec.errors import DataError

KEYS = ("x", "y", "x_test", "y_test", "num_classes", "class_names", "groups", "groups_test", "name")


def load_custom(source: str, *, test_fraction: float, seed: int, field: str = "data.source") -> Dataset:
    """Records of the entry point ``module:function``.

    Args:
        source: the entry point; found in the current folder or among the installed packages.
        test_fraction: share held out where the function gives no test part.
        seed: of that choice.
        field: setting that names the entry point, for the error.

    Raises:
        ConfigError: there is no such function.
        DataError: it failed, or what it gave is no data set; says what is wrong with it.
    """
    made = call_entry_point(load_entry_point(source, field=field), source)
    try:
        if isinstance(made, Dataset):
            return _copied(made)
        if isinstance(made, Mapping):
            return dataset_from_arrays(made, name=source, test_fraction=test_fraction, seed=seed)
    except DataError as error:
        raise DataError(f"{source} returned unusable records: {error}") from error
    raise DataError(f"{source} returned a {type(made).__name__}; it must return a dict of arrays or a fedsec.data.datasets.Dataset")


def dataset_from_arrays(arrays: Mapping[str, Any], *, name: str, test_fraction: float, seed: int) -> Dataset:
    """A ``Dataset`` from the dict that this module's table describes.

    Raises:
        DataError: a key is missing or unknown, or an array cannot be used.
    """
    _check_keys(arrays)
    name = str(arrays.get("name", name))
    x, y = _records(arrays["x"], "x"), _whole_numbers(arrays["y"], "y")
    if len(x) != len(y):
        raise DataError(f"x holds {len(x)} records, y {len(y)}")
    groups, groups_test, group_names = _groups(arrays)
    if groups is not None and len(groups) != len(y):
        raise DataError(f"groups holds {len(groups)} entries, y {len(y)}")
    if "x_test" in arrays:
        x_test, y_test = _records(arrays["x_test"], "x_test"), _whole_numbers(arrays["y_test"], "y_test")
    else:
        # With natural owners each of them keeps the same share; otherwise each class does.
        train, test = hold_out(_as_strata(groups if groups is not None else y), test_fraction, seed=seed, name=name)
        x, y, x_test, y_test = x[train], y[train], x[test], y[test]
        if groups is not None:
            groups, groups_test = groups[train], groups[test]
    num_classes, class_names = _classes(arrays, y, y_test)
    return Dataset(
        name=name,
        x=x,
        y=y,
        x_test=x_test,
        y_test=y_test,
        num_classes=num_classes,
        class_names=class_names,
        groups=groups,
        groups_test=groups_test,
        group_names=group_names,
    )


def _check_keys(arrays: Mapping[str, Any]) -> None:
    for key in arrays:
        if key not in KEYS:
            near = difflib.get_close_matches(str(key), KEYS, n=1)
            raise DataError(f"unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(KEYS)}"))
    for key in ("x", "y"):
        if key not in arrays:
            raise DataError(f"{key!r} is missing")
    if ("x_test" in arrays) != ("y_test" in arrays):
        raise DataError("x_test and y_test go together: give both or neither")
    if "groups_test" in arrays and "groups" not in arrays:
        raise DataError("groups_test without groups")
    if "groups" in arrays and ("groups_test" in arrays) != ("x_test" in arrays):
        raise DataError("with groups, groups_test and x_test go together: give both or neither")


def _array(value: Any, key: str) -> npt.NDArray[Any]:
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists; torch tensors that need a gradient
        raise DataError(f"{key} cannot be made an array: {error}") from error


def _records(value: Any, key: str) -> FloatArray:
    array = _array(value, key)
    if array.dtype.kind not in "fiub":
        raise DataError(f"{key} holds {array.dtype}, not numbers")
    if array.ndim < 2:
        raise DataError(f"{key} has shape {array.shape}; it needs one row per record")
    with np.errstate(over="ignore"):  # too large for float32 becomes infinite, which Dataset refuses by record
        return np.array(array, dtype=np.float32, order="C")


def _whole_numbers(value: Any, key: str) -> IntArray:
    array = _array(value, key)
    if array.dtype.kind not in "iub":
        raise DataError(f"{key} holds {array.dtype}; labels must be whole numbers from 0")
    if array.ndim != 1:
        raise DataError(f"{key} has shape {array.shape}; it needs one number per record")
    if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
        raise DataError(f"{key} holds {array.max()}, which is no label")
    return np.array(array, dtype=np.int64)


def _as_strata(labels: IntArray) -> IntArray:
    """Labels numbered without gaps, so that a hostile one cannot ask for a huge table before ``Dataset`` has seen it."""
    return np.asarray(np.unique(labels, return_inverse=True)[1], dtype=np.int64)


def _classes(arrays: Mapping[str, Any], y: IntArray, y_test: IntArray) -> tuple[int, tuple[str, ...]]:
    given = arrays.get("class_names")
    if given is not None and not isinstance(given, list | tuple | np.ndarray):
        raise DataError(f"class_names must be a list of names, not a {type(given).__name__}")
    names = tuple(str(entry) for entry in given) if given is not None else None
    largest = max((int(part.max()) for part in (y, y_test) if len(part)), default=0)
    number = arrays.get("num_classes", len(names) if names is not None else max(2, largest + 1))
    if isinstance(number, bool | np.bool_) or not isinstance(number, int | np.integer):
        raise DataError(f"num_classes is {number!r}, not a whole number")
    # Names are only made for a number that Dataset will accept; it refuses the others, with their number.
    made = names if names is not None else tuple(str(label) for label in range(min(int(number), 100_000)))
    return int(number), made


def _groups(arrays: Mapping[str, Any]) -> tuple[IntArray | None, IntArray | None, tuple[str, ...]]:
    """Owners as numbers 0…, for both parts, and their names in sorted order."""
    if "groups" not in arrays:
        return None, None, ()
    parts = {key: _array(arrays[key], key) for key in ("groups", "groups_test") if key in arrays}
    for key, part in parts.items():
        if part.ndim != 1 or part.dtype.kind not in "iubUS":
            raise DataError(f"{key} must hold one number or name per record, not {part.dtype} {part.shape}")
    names, numbers = np.unique(parts["groups"], return_inverse=True)
    groups = np.asarray(numbers, dtype=np.int64)
    group_names = tuple(str(name) for name in names)
    if "groups_test" not in parts:
        return groups, None, group_names
    number_of = {name: index for index, name in enumerate(group_names)}
    if strangers := sorted({str(name) for name in parts["groups_test"]} - set(group_names)):
        raise DataError(f"groups_test names {strangers[0]!r}, which has no training records")
    return groups, np.array([number_of[str(name)] for name in parts["groups_test"]], dtype=np.int64), group_names


def _copied(made: Dataset) -> Dataset:
    return Dataset(
        name=made.name,
        x=made.x.copy(),
        y=made.y.copy(),
        x_test=made.x_test.copy(),
        y_test=made.y_test.copy(),
        num_classes=made.num_classes,
        class_names=made.class_names,
        groups=None if made.groups is None else made.groups.copy(),
        groups_test=None if made.groups_test is None else made.groups_test.copy(),
        group_names=made.group_names,
    )
