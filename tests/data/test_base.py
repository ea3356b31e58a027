"""A ``Dataset`` that exists is sound; every way of being unsound is refused by name."""

import dataclasses

import numpy as np
import pytest

from fedsec.data.base import Dataset
from fedsec.errors import DataError


def arrays(**changes: object) -> dict[str, object]:
    generator = np.random.default_rng(0)
    sound: dict[str, object] = {
        "name": "toy",
        "x": generator.random((6, 3)).astype(np.float32),
        "y": np.array([0, 1, 2, 0, 1, 2]),
        "x_test": generator.random((3, 3)).astype(np.float32),
        "y_test": np.array([0, 1, 2]),
        "num_classes": 3,
        "class_names": ("a", "b", "c"),
    }
    return sound | changes


def make(**changes: object) -> Dataset:
    return Dataset(**arrays(**changes))  # type: ignore[arg-type]


def with_value(value: float) -> np.ndarray:
    x = np.zeros((6, 3), dtype=np.float32)
    x[4, 1] = value
    return x


GROUPS = {"groups": np.array([0, 0, 0, 1, 1, 1]), "groups_test": np.array([0, 1, 1]), "group_names": ("p", "q")}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": ""}, "needs a name"),
        ({"num_classes": 1, "class_names": ("a",)}, "num_classes is 1"),
        ({"num_classes": 10**9}, "num_classes is 1000000000"),
        ({"num_classes": 3.0}, "num_classes is 3.0"),
        ({"class_names": ("a", "b")}, "2 class names for 3 classes"),
        ({"x": np.zeros((6, 3))}, "x must be a float32 array, not float64"),
        ({"x": [[0.0] * 3] * 6}, "x must be a float32 array, not list"),
        ({"y": np.zeros(6, dtype=np.int32)}, "y must be an int64 array, not int32"),
        ({"y_test": np.zeros(3)}, "y_test must be an int64 array"),
        ({"x": np.zeros(6, dtype=np.float32)}, r"x has shape \(6,\)"),
        ({"x": np.zeros((6, 0), dtype=np.float32)}, "at least one value"),
        ({"y": np.zeros(5, dtype=np.int64)}, "x holds 6 records, y has shape"),
        ({"y": np.zeros((6, 1), dtype=np.int64)}, "equally long"),
        ({"x": np.zeros((0, 3), dtype=np.float32), "y": np.zeros(0, dtype=np.int64)}, "x is empty"),
        ({"x_test": np.zeros((0, 3), dtype=np.float32), "y_test": np.zeros(0, dtype=np.int64)}, "x_test is empty"),
        ({"y": np.array([0, 1, 2, 0, 1, 3])}, "labels from 0 to 3"),
        ({"y_test": np.array([0, -1, 2])}, "labels from -1 to 2"),
        ({"x": with_value(np.nan)}, "record 4 holds a value that is not finite"),
        ({"x": with_value(-np.inf)}, "record 4"),
        ({"x_test": np.zeros((3, 4), dtype=np.float32)}, "test records"),
        ({"group_names": ("p",)}, "without groups"),
        ({"groups_test": np.array([0, 0, 0])}, "without groups"),
        ({**GROUPS, "groups": np.zeros(5, dtype=np.int64)}, "groups must be an int64 array"),
        ({**GROUPS, "groups": np.array([0, 0, 0, 1, 1, 2])}, "ids from 0 to 2"),
        ({**GROUPS, "groups_test": np.array([0, -1, 1])}, "groups_test holds ids from -1"),
        ({**GROUPS, "group_names": ()}, "there are 0 group names"),
        ({**GROUPS, "group_names": ("p", "q", "r")}, "client 'r' has no training records"),
    ],
)
def test_an_unsound_data_set_is_refused_with_its_fault(changes: dict[str, object], words: str) -> None:
    with pytest.raises(DataError, match=words):
        make(**changes)


def test_a_value_that_is_not_finite_is_found_beyond_the_first_block() -> None:
    x = np.zeros((9000, 2), dtype=np.float32)
    x[8999, 1] = np.inf
    with pytest.raises(DataError, match="record 8999"):
        make(x=x, y=np.zeros(9000, dtype=np.int64), x_test=x[:1], y_test=np.zeros(1, dtype=np.int64))


def test_arrays_cannot_be_written_through_it_and_the_callers_own_stay_writable() -> None:
    given = arrays(**GROUPS)
    dataset = Dataset(**given)  # type: ignore[arg-type]
    for name in ("x", "y", "x_test", "y_test", "groups", "groups_test"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(dataset, name)[0] = 1
        assert given[name].flags.writeable  # type: ignore[attr-defined]
    with pytest.raises(dataclasses.FrozenInstanceError):
        dataset.name = "other"  # type: ignore[misc]


def test_equal_data_have_equal_fingerprints_and_one_changed_bit_another() -> None:
    assert make().fingerprint == make(name="other name").fingerprint
    assert len(make().fingerprint) == 64
    changed = arrays()["x"].copy()  # type: ignore[attr-defined]
    changed[5, 2] = np.nextafter(changed[5, 2], np.float32(2))
    prints = [
        make(),
        make(x=changed),
        make(y=np.array([0, 1, 2, 0, 1, 1])),
        make(y_test=np.array([0, 1, 1])),
        make(**GROUPS),
        make(**{**GROUPS, "groups": np.array([1, 0, 0, 0, 1, 1])}),
    ]
    assert len({dataset.fingerprint for dataset in prints}) == len(prints)


def test_a_given_fingerprint_is_kept() -> None:
    assert make(fingerprint="ab").fingerprint == "ab"


def test_repr_is_short_and_holds_no_records() -> None:
    assert repr(make()) == "Dataset('toy', train=6, test=3, shape=(3,), classes=3)"
