"""Tables of the hub: columns found by their declared type; the extra's absence and every unfit table said plainly."""

import dataclasses
import sys
import types
from typing import Any

import numpy as np
import pytest

from fedsec.data.hub import dataset_from_splits, load_hub
from fedsec.errors import ConfigError, DataError


@dataclasses.dataclass
class Value:
    dtype: str


@dataclasses.dataclass
class ClassLabel:
    names: list[str]


class Image:
    pass


class Array2D:
    pass


class Picture:
    """As much of a PIL image as is used."""

    def __init__(self, pixels: Any, mode: str = "L") -> None:
        self.pixels, self.mode = np.asarray(pixels, dtype=np.uint8), mode

    def convert(self, mode: str) -> "Picture":
        if mode == self.mode:
            return self
        return Picture(np.stack([self.pixels] * 3, axis=-1) if mode == "RGB" else self.pixels[..., 0], mode)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.pixels.astype(dtype or np.uint8)


class Table:
    """As much of a ``datasets.Dataset`` as is used."""

    def __init__(self, **columns: tuple[Any, list[Any]]) -> None:
        self.features = {name: feature for name, (feature, _) in columns.items()}
        self.columns = {name: values for name, (_, values) in columns.items()}

    def __getitem__(self, column: str) -> Any:
        return iter(self.columns[column])

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))


LABEL = (ClassLabel(["cat", "dog"]), [0, 1] * 10)
NUMBERS = (Value("float64"), [float(n) for n in range(20)])
GREY = (Image(), [Picture(np.full((3, 2), 51 * (n % 6))) for n in range(20)])


def made(train: Table, test: Table | None = None) -> Any:
    return dataset_from_splits(train, test, name="set/one", test_fraction=0.2, seed=1)


def test_numeric_columns_become_features_in_their_order() -> None:
    dataset = made(Table(a=NUMBERS, label=LABEL, b=(Value("int32"), list(range(20, 40))), note=(Value("string"), ["n"] * 20)))
    assert dataset.name == "set/one"
    assert dataset.class_names == ("cat", "dog")
    assert dataset.input_shape == (2,)
    assert np.array_equal(dataset.x[:, 1] - dataset.x[:, 0], np.full(16, 20.0))


def test_grey_images_become_pixels_in_0_to_1() -> None:
    dataset = made(Table(image=GREY, label=LABEL), Table(image=GREY, label=LABEL))
    assert dataset.input_shape == (3, 2)
    assert np.array_equal(dataset.x[:6, 0, 0], np.array([0, 0.2, 0.4, 0.6, 0.8, 1.0], dtype=np.float32))
    assert len(dataset.y_test) == 20


def test_colour_images_have_their_channels_first() -> None:
    pixels = np.zeros((3, 2, 3))
    pixels[..., 2] = 255
    dataset = made(Table(image=(Image(), [Picture(pixels, "RGB")] * 20), label=LABEL))
    assert dataset.input_shape == (3, 3, 2)
    assert dataset.x[0, 2].min() == 1.0
    assert dataset.x[0, :2].max() == 0.0


def test_a_column_of_arrays_is_taken_whole() -> None:
    assert made(Table(grid=(Array2D(), [np.ones((4, 5))] * 20), n=NUMBERS, label=LABEL)).input_shape == (4, 5)


def test_owners_come_from_a_column_of_a_known_name() -> None:
    writers = (Value("string"), ["w1", "w2"] * 10)
    dataset = made(Table(a=NUMBERS, writer_id=writers, label=LABEL))
    assert dataset.group_names == ("w1", "w2")
    assert dataset.input_shape == (1,)
    both = made(Table(a=NUMBERS, writer_id=writers, label=LABEL), Table(a=NUMBERS, writer_id=writers, label=LABEL))
    assert both.groups_test is not None
    only_train = made(Table(a=NUMBERS, writer_id=writers, label=LABEL), Table(a=NUMBERS, label=LABEL))
    assert only_train.groups is None


def test_a_number_column_named_label_is_the_label_where_none_is_declared() -> None:
    assert made(Table(a=NUMBERS, label=(Value("int64"), [0, 1] * 10))).class_names == ("0", "1")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (Table(a=NUMBERS, b=NUMBERS), "no column that is clearly the label"),
        (Table(a=NUMBERS, p=LABEL, q=LABEL), "no column that is clearly the label"),
        (Table(one=GREY, two=GREY, label=LABEL), "several input columns: one, two"),
        (Table(text=(Value("string"), ["t"] * 20), label=LABEL), "neither an image column nor numeric columns"),
    ],
)
def test_a_table_of_no_known_form_is_a_config_error_with_a_way_out(table: Table, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        made(table)
    assert 'name = "custom"' in str(caught.value)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (Table(a=(Value("float64"), [1.0, None] * 10), label=LABEL), "'a' has missing or mixed values"),
        (Table(a=(Array2D(), [[1, 2], [1]] * 10), label=LABEL), "'a' is ragged"),
        (Table(a=NUMBERS, label=(ClassLabel(["x", "y"]), [0, -1] * 10)), "labels from -1"),
        (Table(image=(Image(), [Picture(np.zeros((2, 2))), Picture(np.zeros((3, 3)))] * 10), label=LABEL), "images differ in size"),
        (Table(image=(Image(), [None] * 20), label=LABEL), "record 0 has no image"),
        (Table(image=(Image(), [Picture(np.zeros((2, 2)), "I;16")] * 20), label=LABEL), "only 8-bit images"),
        (Table(image=(Image(), []), label=(ClassLabel(["x", "y"]), [])), "a split is empty"),
    ],
)
def test_values_that_cannot_be_used_are_a_data_error_under_the_sets_name(table: Table, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        made(table)
    assert str(caught.value).startswith("set/one")


def test_a_test_split_without_the_columns_is_refused() -> None:
    with pytest.raises(DataError, match="the test split has no column 'a'"):
        made(Table(a=NUMBERS, label=LABEL), Table(label=LABEL))


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flwr_datasets", None)
    with pytest.raises(ConfigError, match=r"the Flower Datasets adapter is not installed \(pip install 'fedsec\[flower-datasets\]'\)"):
        load_hub("ylecun/mnist", test_fraction=0.2, seed=1)


class Federated:
    """The two calls of ``flwr_datasets.FederatedDataset`` that are used, for a set with or without a test split."""

    splits: dict[str, Table]

    def __init__(self, *, dataset: str, partitioners: dict[str, int], shuffle: bool) -> None:
        assert dataset == "set/one"
        assert list(partitioners) == ["train"]
        assert shuffle is False

    def load_split(self, split: str) -> Table:
        if split not in self.splits:
            raise ValueError(f"The given split: '{split}' is not present")
        return self.splits[split]


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> type[Federated]:
    module = types.ModuleType("flwr_datasets")
    module.FederatedDataset = Federated  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flwr_datasets", module)
    return Federated


def test_a_set_without_a_test_split_has_one_held_out(library: type[Federated], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "splits", {"train": Table(a=NUMBERS, label=LABEL)}, raising=False)
    assert len(load_hub("set/one", test_fraction=0.2, seed=1).y_test) == 4
    monkeypatch.setattr(library, "splits", {"train": Table(a=NUMBERS, label=LABEL), "test": Table(a=NUMBERS, label=LABEL)})
    assert len(load_hub("set/one", test_fraction=0.2, seed=1).y_test) == 20


def test_a_set_that_cannot_be_fetched_is_a_data_error(library: type[Federated], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "splits", {}, raising=False)
    with pytest.raises(DataError, match=r"cannot load 'set/one' from the hub: ValueError: The given split: 'train'"):
        load_hub("set/one", test_fraction=0.2, seed=1)


def test_the_real_library_with_a_set_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs only where the optional extra is installed; nothing is fetched."""
    pytest.importorskip("flwr_datasets", reason="flwr-datasets is not installed; pip install 'fedsec[flower-datasets]'")
    import datasets
    from PIL import Image as Pil

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": [Pil.fromarray(np.full((4, 4), 10 * n, dtype=np.uint8)) for n in range(20)], "label": [0, 1] * 10}
    table = datasets.Dataset.from_dict(rows, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda path, name=None, **unused: datasets.DatasetDict({"train": table}))
    dataset = load_hub("set/one", test_fraction=0.2, seed=1)
    assert dataset.input_shape == (4, 4)
    assert dataset.class_names == ("cat", "dog")
    assert (len(dataset.y), len(dataset.y_test)) == (16, 4)
    assert dataset.x.max() <= 190 / 255 + 1e-6
    numeric = datasets.Dataset.from_dict({"a": [1.0, 2.0] * 5, "b": [1, 2] * 5, "writer_id": ["p", "q"] * 5, "label": [0, 1] * 5})
    monkeypatch.setattr(
        datasets, "load_dataset", lambda path, name=None, **unused: datasets.DatasetDict({"train": numeric, "test": numeric})
    )
    tabular = load_hub("set/two", test_fraction=0.2, seed=1)
    assert tabular.input_shape == (2,)
    assert tabular.group_names == ("p", "q")
