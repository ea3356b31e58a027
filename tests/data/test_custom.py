"""Own data: sound arrays become a ``Dataset``; whatever else a function returns is refused under its name."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.data.custom import dataset_from_arrays, load_custom
from fedsec.errors import ConfigError, DataError, FedsecError

FRESH = itertools.count()


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write ``def load(): return EXPRESSION`` into the current folder; gives the entry point."""
    monkeypatch.chdir(tmp_path)

    def write(expression: str) -> str:
        name = f"own_data_{next(FRESH)}"
        text = f"import numpy as np\nfrom fedsec.data.datasets import Dataset\n\ndef load():\n    return {expression}\n"
        (tmp_path / f"{name}.py").write_text(text)
        return f"{name}:load"

    return write


def arrays(**changes: Any) -> dict[str, Any]:
    return {"x": np.arange(40, dtype=np.float64).reshape(20, 2), "y": np.arange(20) % 2} | changes


def made(**changes: Any) -> Any:
    return dataset_from_arrays(arrays(**changes), name="own", test_fraction=0.25, seed=1)


def test_two_arrays_are_enough(source: Callable[[str], str]) -> None:
    entry = source("{'x': np.zeros((30, 4)), 'y': np.arange(30) % 3}")
    dataset = load_custom(entry, test_fraction=0.2, seed=1)
    assert dataset.name == entry
    assert (len(dataset.y), len(dataset.y_test)) == (24, 6)
    assert dataset.class_names == ("0", "1", "2")
    assert dataset.x.dtype == np.float32


def test_a_dataset_is_taken_but_its_fingerprint_is_not_believed(source: Callable[[str], str]) -> None:
    one = "np.zeros((4, 2), dtype=np.float32), y=np.array([0, 1, 0, 1]), x_test=np.zeros((1, 2), dtype=np.float32), y_test=np.array([0])"
    entry = source(f"Dataset(name='mine', x={one}, num_classes=2, class_names=('n', 'p'), fingerprint='lie')")
    dataset = load_custom(entry, test_fraction=0.2, seed=1)
    assert dataset.name == "mine"
    assert len(dataset.fingerprint) == 64


def test_the_records_are_copied() -> None:
    given_ = arrays(x_test=np.zeros((2, 2), dtype=np.float32), y_test=np.array([0, 1]), x=np.zeros((20, 2), dtype=np.float32))
    dataset = dataset_from_arrays(given_, name="own", test_fraction=0.25, seed=1)
    given_["x"][:] = 7
    given_["x_test"][:] = 7
    given_["y"][:] = 0
    assert dataset.x.max() == 0
    assert dataset.x_test.max() == 0
    assert dataset.y.max() == 1


def test_owners_by_name_become_numbers_and_keep_their_share_of_the_test() -> None:
    dataset = made(groups=np.array(["north", "south"] * 10))
    assert dataset.group_names == ("north", "south")
    assert dataset.x[dataset.groups == 1, 0].min() == 2.0
    assert np.bincount(dataset.groups_test).min() >= 2


def test_given_test_owners_are_matched_by_name() -> None:
    dataset = made(x_test=np.zeros((2, 2)), y_test=[0, 1], groups=[7, 3] * 10, groups_test=[7, 3])
    assert dataset.group_names == ("3", "7")
    assert dataset.groups_test.tolist() == [1, 0]


@pytest.mark.parametrize(
    "labels", [[True, False] * 10, np.arange(20, dtype=np.uint8) % 2, torch.arange(20) % 2], ids=["bool", "uint8", "torch"]
)
def test_whole_numbers_of_any_kind_are_labels(labels: Any) -> None:
    assert made(y=labels).y.dtype == np.int64


def test_names_set_the_number_of_classes() -> None:
    assert made(class_names=["a", "b", "c"]).num_classes == 3
    assert made(num_classes=5).class_names == ("0", "1", "2", "3", "4")
    assert made(y=np.zeros(20, dtype=int)).num_classes == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"xtest": 1}, "unknown key 'xtest'; did you mean 'x_test'"),
        ({"q": 1}, "unknown key 'q'; known are x, y"),
        ({"x_test": np.zeros((2, 2))}, "x_test and y_test go together"),
        ({"groups_test": [0]}, "groups_test without groups"),
        ({"groups": [0] * 20, "x_test": np.zeros((2, 2)), "y_test": [0, 1]}, "groups_test and x_test go together"),
        ({"groups": [0] * 20, "groups_test": [0]}, "groups_test and x_test go together"),
        ({"groups": [0] * 19}, "groups holds 19 entries, y 20"),
        ({"groups": [0.5] * 20}, "one number or name per record, not float64"),
        ({"groups": ["a"] * 20, "x_test": np.zeros((1, 2)), "y_test": [0], "groups_test": ["b"]}, "groups_test names 'b'"),
        ({"x": [[1, 2], [3]]}, "x cannot be made an array"),
        ({"x": torch.zeros(20, 2, requires_grad=True)}, "x cannot be made an array"),
        ({"x": [["a", "b"]] * 20}, "x holds <U1, not numbers"),
        ({"x": np.zeros((20, 2), dtype=complex)}, "x holds complex128"),
        ({"x": None}, "x holds object"),
        ({"x": np.zeros(20)}, r"x has shape \(20,\)"),
        ({"x": np.zeros((19, 2))}, "x holds 19 records, y 20"),
        ({"x": np.full((20, 2), 1e300)}, "not finite"),
        ({"x": np.full((20, 2), np.nan)}, "not finite"),
        ({"y": np.zeros(20)}, "y holds float64; labels must be whole numbers"),
        ({"y": ["a"] * 20}, "y holds <U1"),
        ({"y": np.zeros((20, 1), dtype=int)}, r"y has shape \(20, 1\)"),
        ({"y": np.arange(20) % 3 - 1}, "labels from -1"),
        ({"y": np.full(20, 2**62)}, "num_classes is"),
        ({"y": np.full(20, 2**64 - 1, dtype=np.uint64)}, "is no label"),
        ({"x": np.zeros((0, 2)), "y": np.zeros(0, dtype=int)}, "too few"),
        ({"num_classes": 2.0}, "num_classes is 2.0"),
        ({"num_classes": True}, "num_classes is True"),
        ({"num_classes": 10**12}, "num_classes is 1000000000000"),
        ({"num_classes": 1}, "num_classes is 1"),
        ({"class_names": "ab"}, "must be a list of names, not a str"),
        ({"class_names": 7}, "must be a list of names, not a int"),
        ({"class_names": ["a"]}, "num_classes is 1"),
        ({"x_test": np.zeros((2, 3)), "y_test": [0, 1]}, "test records"),
        ({"x_test": np.zeros((2, 2)), "y_test": [0, 5], "num_classes": 2}, "y_test holds labels from 0 to 5"),
    ],
)
def test_unusable_arrays_are_refused_with_their_fault(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        made(**changes)


def test_missing_arrays_are_named() -> None:
    with pytest.raises(DataError, match="'y' is missing"):
        dataset_from_arrays({"x": np.zeros((3, 2))}, name="own", test_fraction=0.2, seed=1)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=8,
)


@settings(deadline=None)
@given(
    junk=st.dictionaries(
        st.sampled_from(["x", "y", "x_test", "y_test", "groups", "groups_test", "num_classes", "class_names", "name"]), JUNK
    )
)
def test_junk_ends_in_a_data_error_and_nothing_else(junk: dict[str, Any]) -> None:
    try:
        dataset_from_arrays(arrays() | junk, name="own", test_fraction=0.25, seed=1)
    except DataError as error:
        assert str(error)  # noqa: PT017 - most junk is refused, some of it happens to be sound


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("None", "returned a NoneType; it must return a dict of arrays"),
        ("(np.zeros((3, 2)), np.zeros(3))", "returned a tuple"),
        ("{'x': np.zeros((30, 4)), 'y': np.zeros(30)}", "returned unusable records: y holds float64"),
        ("{'x': np.zeros((30, 4)), 'y': np.arange(30) % 3, 'num_classes': 2}", "returned unusable records: data set .*labels from 0 to 2"),
        ("open('/no/such/file')", "failed: FileNotFoundError"),
    ],
)
def test_what_a_function_may_not_return_is_refused_under_its_name(expression: str, words: str, source: Callable[[str], str]) -> None:
    entry = source(expression)
    with pytest.raises(DataError, match=words) as caught:
        load_custom(entry, test_fraction=0.2, seed=1)
    assert str(caught.value).startswith(entry)


def test_the_setting_that_names_the_entry_point_is_in_the_error() -> None:
    with pytest.raises(ConfigError, match=r"^client\.data: "):
        load_custom("no_such_module:load", test_fraction=0.2, seed=1, field="client.data")
    assert issubclass(ConfigError, FedsecError)
