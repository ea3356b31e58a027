"""From the ``[data]`` section to records: every name reaches its loader, transforms are cached, unfit settings are refused."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsec.data import datasets
from fedsec.data.datasets import Dataset, load_dataset
from fedsec.data.federated import federated_data
from fedsec.errors import ConfigError, DataError
from fedsec.plan.sections import DataSection


@pytest.fixture
def tiny_mnist(tiny_set: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root whose "mnist" is the made-up set; a cache of its own."""
    monkeypatch.setattr(datasets, "MNIST", tiny_set.images)
    monkeypatch.setenv("FEDSEC_CACHE", str(tmp_path / "cache"))
    tiny_set.write(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "shape", "classes", "records"),
    [("digits", (64,), 10, 1797), ("breast-cancer", (30,), 2, 569), ("heart-disease", (13,), 2, 740)],
)
def test_the_sets_that_need_no_files_load_by_name(name: Any, shape: tuple[int, ...], classes: int, records: int) -> None:
    dataset = load_dataset(DataSection(name=name), seed=1)
    assert dataset.name == name
    assert dataset.input_shape == shape
    assert dataset.num_classes == classes
    assert len(dataset.y) + len(dataset.y_test) == records


def test_image_files_are_found_by_argument_and_by_variable(tiny_mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_argument = load_dataset(DataSection(name="mnist"), data_root=tiny_mnist, seed=1)
    monkeypatch.setenv("FEDSEC_DATA_ROOT", str(tiny_mnist))
    by_variable = load_dataset(DataSection(name="mnist"), seed=2)
    assert by_argument.input_shape == (28, 28)
    assert by_argument.fingerprint == by_variable.fingerprint


def test_a_damaged_image_file_is_named(tiny_mnist: Path) -> None:
    path = tiny_mnist / "tiny" / "train-images.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"tiny/train-images\.gz is truncated"):
        load_dataset(DataSection(name="mnist"), data_root=tiny_mnist, seed=1)


def test_scattering_features_are_cached_and_have_their_own_fingerprint(tiny_mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = load_dataset(DataSection(name="mnist"), data_root=tiny_mnist, seed=1)
    section = DataSection(name="mnist", transform="scattering")
    first = load_dataset(section, data_root=tiny_mnist, seed=1)
    assert first.x.shape == (12, 3969)
    assert first.x_test.shape == (6, 3969)
    assert np.array_equal(first.y, plain.y)
    assert first.fingerprint != plain.fingerprint
    assert len(list((tiny_mnist / "cache" / "features").glob("*.npy"))) == 2

    def not_again(images: np.ndarray) -> np.ndarray:
        raise AssertionError("computed a second time")

    monkeypatch.setattr("fedsec.data.scattering.scattering_features", not_again)
    second = load_dataset(section, data_root=tiny_mnist, seed=1)
    assert np.array_equal(first.x, second.x)
    assert first.fingerprint == second.fingerprint


def test_scattering_is_refused_where_there_are_no_images() -> None:
    with pytest.raises(ConfigError, match=r"data\.transform: scattering needs 28x28 images, digits has records of shape \(64,\)"):
        load_dataset(DataSection(name="digits", transform="scattering"), seed=1)


def write_module(folder: Path, name: str, scale: float) -> None:
    text = f"import numpy as np\n\ndef load():\n    x = np.full((20, 1, 28, 28), {scale})\n    return {{'x': x, 'y': np.arange(20) % 2}}\n"
    (folder / f"{name}.py").write_text(text)


def test_own_images_are_scattered_and_their_range_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_module(tmp_path, "own_images_sound", 0.5)
    write_module(tmp_path, "own_images_0_to_255", 255.0)
    sound = DataSection(name="custom", source="own_images_sound:load", transform="scattering")
    assert load_dataset(sound, seed=1).input_shape == (3969,)
    with pytest.raises(DataError, match=r"scattering needs pixels in 0\.\.1 \(divide"):
        load_dataset(sound.model_copy(update={"source": "own_images_0_to_255:load"}), seed=1)


@pytest.mark.parametrize(("name", "field"), [("custom", "data.source"), ("flower", "data.hub")])
def test_a_missing_setting_is_named(name: Any, field: str) -> None:
    with pytest.raises(ConfigError, match=f"^{field}: is missing"):
        load_dataset(DataSection(name=name), seed=1)


def test_the_hub_is_reached_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flwr_datasets", None)
    with pytest.raises(ConfigError, match="flower-datasets"):
        load_dataset(DataSection(name="flower", hub="ylecun/mnist"), seed=1)


def test_the_default_federation_has_twenty_clients_with_at_least_ten_records_each() -> None:
    data = federated_data(DataSection(), num_clients=20, seed=1)
    assert data.smallest_client >= 10
    assert data.histogram().sum() == len(data.dataset.y)
    assert sum(map(len, data.test_parts)) == len(data.dataset.y_test)
    assert isinstance(data.dataset, Dataset)


def test_importing_the_loaders_imports_neither_torch_nor_scikit_learn() -> None:
    code = "import sys, fedsec.data.datasets; print([name for name in ('torch', 'sklearn', 'flwr', 'matplotlib') if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ))
    assert answer.stdout.strip() == "[]"


@pytest.mark.needs("data")
def test_fashion_mnist_loads_from_the_data_folder(data_root: Path) -> None:
    dataset = load_dataset(DataSection(name="fashion-mnist"), data_root=data_root, seed=1)
    assert dataset.class_names[9] == "Ankle boot"
    assert np.bincount(dataset.y).tolist() == [6000] * 10
