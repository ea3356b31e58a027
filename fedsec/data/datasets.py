"""From a plan's ``[data]`` section to a checked ``Dataset``: which loader, which transform.

1. What a loader gives depends on the section, the data root and the seed alone.
2. A transform is a fixed public function of one record at a time; its result is cached by the fingerprint of its input.
"""

from __future__ import annotations

from pathlib import Path

from fedsec.data.base import Dataset, FloatArray
from fedsec.data.cache import FeatureMap, cached_features
from fedsec.data.custom import load_custom
from fedsec.data.download import cache_folder, ensure_images, find_data_root
from fedsec.data.heart import load_heart_disease
from fedsec.data.hub import load_hub
from fedsec.data.idx import FASHION_MNIST, MNIST, load_images
from fedsec.data.tabular import load_breast_cancer, load_digits
from fedsec.errors import ConfigError, DataError
from fedsec.plan.sections import DataSection

__all__ = ["Dataset", "load_dataset"]

IMAGE_SHAPES = ((28, 28), (1, 28, 28))
"""What the scattering transform takes."""


def load_dataset(section: DataSection, *, data_root: Path | None = None, seed: int) -> Dataset:
    """The records that ``section`` names, with its transform applied.

    Args:
        section: ``name``, ``source``, ``hub``, ``test_fraction`` and ``transform`` are read.
        data_root: folder of the image files; default: the environment variable ``FEDSEC_DATA_ROOT``, then the cache folder.
        seed: chooses the test part where the data set has none of its own.

    Raises:
        ConfigError: a setting is missing or does not fit the data.
        DataError: files are missing or damaged, or own data cannot be used.
        StorageError: the feature cache cannot be written.
    """
    dataset = _load(section, data_root, seed)
    match section.transform:
        case "none":
            return dataset
        case "scattering":
            return _scattered(dataset)


def _load(section: DataSection, data_root: Path | None, seed: int) -> Dataset:
    fraction = section.test_fraction
    match section.name:
        case "digits":
            return load_digits(test_fraction=fraction, seed=seed)
        case "breast-cancer":
            return load_breast_cancer(test_fraction=fraction, seed=seed)
        case "heart-disease":
            return load_heart_disease()
        case "mnist" | "fashion-mnist":
            images = MNIST if section.name == "mnist" else FASHION_MNIST
            return load_images(images, ensure_images(images, find_data_root(data_root)))
        case "flower":
            hub = _required(section.hub, "data.hub", 'name a data set of the hub, for example "ylecun/mnist"')
            return load_hub(hub, test_fraction=fraction, seed=seed)
        case "custom":
            source = _required(section.source, "data.source", 'set data.source = "module:function"')
            return load_custom(source, test_fraction=fraction, seed=seed)


def _required(value: str | None, field: str, mend: str) -> str:
    if value is None:
        raise ConfigError("is missing", field=field, mend=mend)
    return value


def _scattered(dataset: Dataset) -> Dataset:
    if dataset.input_shape not in IMAGE_SHAPES:
        raise ConfigError(
            f"scattering needs 28x28 images, {dataset.name} has records of shape {dataset.input_shape}",
            field="data.transform",
            mend='use "none"',
        )
    for part in (dataset.x, dataset.x_test):
        if part.min() < 0.0 or part.max() > 1.0:
            raise DataError(f"data set {dataset.name!r}: scattering needs pixels in 0..1 (divide by the largest possible value)")
    feature_map = _scattering_map()

    def features(images: FloatArray, part: str) -> FloatArray:
        flat = images.reshape(len(images), 28, 28)
        return cached_features(feature_map, flat, source=f"{dataset.fingerprint}/{part}", folder=cache_folder() / "features")

    return Dataset(
        name=dataset.name,
        x=features(dataset.x, "train"),
        y=dataset.y,
        x_test=features(dataset.x_test, "test"),
        y_test=dataset.y_test,
        num_classes=dataset.num_classes,
        class_names=dataset.class_names,
        groups=dataset.groups,
        groups_test=dataset.groups_test,
        group_names=dataset.group_names,
        fingerprint=feature_map.fingerprint(dataset.fingerprint),
    )


def _scattering_map() -> FeatureMap:
    from fedsec.data import scattering  # noqa: PLC0415 - torch takes seconds to import, and only this transform needs it

    return FeatureMap(
        name="scattering",
        version=scattering.VERSION,
        width=scattering.NUM_FEATURES,
        compute=scattering.scattering_features,
    )
