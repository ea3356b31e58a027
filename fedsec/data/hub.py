"""Data sets of the Hugging Face hub through flwr-datasets: an optional extra, imported only when a plan asks for it.

1. No code of the data set's author is run; only its tables and images are read.
2. Columns are found by their declared types, never guessed from values: one label column, and either one image column, or one
   column of arrays, or all numeric columns.
3. Pixels become 0..1 (divided by 255, a public constant); numeric columns stay as they are.
4. A column named ``client_id``, ``writer_id`` or ``user_id`` gives the natural owners.

All records are held in memory. Text, audio and ragged columns need ``name = "custom"``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fedsec.data.base import Dataset, FloatArray
from fedsec.data.custom import dataset_from_arrays
from fedsec.errors import ConfigError, DataError

LABEL_COLUMNS = ("label", "labels", "fine_label", "target", "y", "character")
OWNER_COLUMNS = ("client_id", "writer_id", "user_id")

_FIELD = "data.hub"
_OWN_DATA = 'load it with name = "custom" and a function of your own'


class Split(Protocol):
    """What is used of a ``datasets.Dataset``: its declared columns, and one column's values."""

    @property
    def features(self) -> Mapping[str, Any]:
        """Column name to declared type."""

    def __getitem__(self, column: str) -> Any:
        """All values of one column."""

    def __len__(self) -> int:
        """Number of records."""


def load_hub(hub: str, *, test_fraction: float, seed: int) -> Dataset:
    """Records of the data set ``hub``, for example ``ylecun/mnist``: its ``train`` split, and ``test`` if it has one.

    Raises:
        ConfigError: flwr-datasets is not installed, or the columns fit no known form.
        DataError: the data set cannot be fetched or read.
    """
    try:
        from flwr_datasets import FederatedDataset  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise ConfigError(
            "the Flower Datasets adapter is not installed", field="data.name", mend="pip install 'fedsec[flower-datasets]'"
        ) from error
    try:
        federated = FederatedDataset(dataset=hub, partitioners={"train": 1}, shuffle=False)
        train = federated.load_split("train")
    except Exception as error:  # the library and those below it raise of every kind: no network, no such set, wrong split
        lines = str(error).strip().splitlines() or [""]
        raise DataError(
            f"cannot load {hub!r} from the hub: {type(error).__name__}: {lines[0][:300]} (check the name, its train split and the network)"
        ) from error
    try:
        test = federated.load_split("test")
    except ValueError:  # the documented answer for a split that is not there; the data are loaded by now
        test = None
    return dataset_from_splits(train, test, name=hub, test_fraction=test_fraction, seed=seed)


def dataset_from_splits(train: Split, test: Split | None, *, name: str, test_fraction: float, seed: int) -> Dataset:
    """A ``Dataset`` from ``datasets.Dataset`` objects; without ``test``, a share of ``train`` is held out.

    Raises:
        ConfigError: the columns fit no known form.
        DataError: the values cannot be used.
    """
    features = dict(train.features)
    label, owner = _label_column(features, name), _owner_column(features)
    inputs = _input_columns(features, exclude={label, owner}, name=name)
    arrays: dict[str, Any] = {"x": _inputs(train, inputs, features, name), "y": _column(train, label, name), "name": name}
    if owner is not None:
        arrays["groups"] = _column(train, owner, name)
    if test is not None:
        if missing := sorted({label, *inputs} - set(test.features)):
            raise DataError(f"{name}: the test split has no column {missing[0]!r}")
        arrays |= {"x_test": _inputs(test, inputs, features, name), "y_test": _column(test, label, name)}
        if owner is not None and owner in test.features:
            arrays["groups_test"] = _column(test, owner, name)
        elif owner is not None:
            # Owners of the training records alone are of no use for a per-client test.
            del arrays["groups"]
    if (class_names := getattr(features[label], "names", None)) is not None:
        arrays["class_names"] = list(class_names)
    try:
        return dataset_from_arrays(arrays, name=name, test_fraction=test_fraction, seed=seed)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def _kind(feature: Any) -> str:
    return type(feature).__name__


def _is_number(feature: Any) -> bool:
    return _kind(feature) == "Value" and str(feature.dtype).startswith(("int", "uint", "float", "bool"))


def _label_column(features: Mapping[str, Any], name: str) -> str:
    declared = [column for column, feature in features.items() if _kind(feature) == "ClassLabel"]
    if len(declared) == 1:
        return declared[0]
    candidates = declared or [column for column, feature in features.items() if _is_number(feature)]
    for known in LABEL_COLUMNS:
        if known in candidates:
            return known
    raise ConfigError(f"{name} has no column that is clearly the label (columns: {', '.join(features)})", field=_FIELD, mend=_OWN_DATA)


def _owner_column(features: Mapping[str, Any]) -> str | None:
    return next((column for column in OWNER_COLUMNS if column in features), None)


def _input_columns(features: Mapping[str, Any], *, exclude: set[str | None], name: str) -> list[str]:
    rest = {column: feature for column, feature in features.items() if column not in exclude}
    for kinds in (("Image",), ("Array2D", "Array3D", "Array4D")):
        found = [column for column, feature in rest.items() if _kind(feature) in kinds]
        if len(found) == 1:
            return found
        if found:
            raise ConfigError(f"{name} has several input columns: {', '.join(found)}", field=_FIELD, mend=_OWN_DATA)
    if numeric := [column for column, feature in rest.items() if _is_number(feature)]:
        return numeric
    raise ConfigError(
        f"{name} has neither an image column nor numeric columns (columns: {', '.join(features)})", field=_FIELD, mend=_OWN_DATA
    )


def _inputs(split: Split, columns: list[str], features: Mapping[str, Any], name: str) -> npt.NDArray[Any]:
    if len(columns) == 1 and _kind(features[columns[0]]) == "Image":
        return _images(split, columns[0], name)
    if len(columns) == 1 and not _is_number(features[columns[0]]):
        return _column(split, columns[0], name)
    return np.stack([_column(split, column, name) for column in columns], axis=1)


def _column(split: Split, column: str, name: str) -> npt.NDArray[Any]:
    try:
        values = np.array(list(split[column]))
    except ValueError as error:
        raise DataError(f"{name}: column {column!r} is ragged: {error}") from error
    if values.dtype.kind not in "fiubU":
        raise DataError(f"{name}: column {column!r} has missing or mixed values")
    return values


def _images(split: Split, column: str, name: str) -> FloatArray:
    """Pixels in 0..1: [n, height, width] for grey images, [n, 3, height, width] otherwise; the first image decides."""
    arrays: list[npt.NDArray[np.uint8]] = []
    mode = ""
    for index, image in enumerate(split[column]):
        if not hasattr(image, "convert"):
            raise DataError(f"{name}: record {index} has no image in column {column!r}")
        mode = mode or ("L" if image.mode in ("1", "L") else "RGB")
        if image.mode not in ("1", "L", "P", "RGB", "RGBA"):
            raise DataError(f"{name}: record {index} is an image of mode {image.mode}; only 8-bit images are read")
        pixels = np.asarray(image.convert(mode), dtype=np.uint8)
        if arrays and pixels.shape != arrays[0].shape:
            raise DataError(f"{name}: images differ in size ({arrays[0].shape[:2]} and {pixels.shape[:2]}); {_OWN_DATA} that resizes them")
        arrays.append(pixels)
    if not arrays:
        raise DataError(f"{name}: a split is empty")
    stacked = np.stack(arrays).astype(np.float32) / np.float32(255.0)
    return stacked if mode == "L" else np.ascontiguousarray(stacked.transpose(0, 3, 1, 2))
