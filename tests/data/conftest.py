"""Small idx files with digests of their own, so that parsing is tested without the real sets."""

import dataclasses
import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest

from fedsec.data.idx import IdxFile, ImageSet


def idx_bytes(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, dtype=">u4").tobytes() + values.astype(np.uint8).tobytes()


@dataclasses.dataclass(frozen=True, kw_only=True)
class TinySet:
    """A made-up image set: its pinned table, its four archives, and the values in them."""

    images: ImageSet
    archives: dict[str, bytes]
    values: dict[str, np.ndarray]

    def write(self, root: Path, *, leave_out: str | None = None) -> Path:
        folder = root / self.images.name
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.archives.items():
            if name != leave_out:
                (folder / name).write_bytes(content)
        return folder


@pytest.fixture(scope="session")
def tiny_set() -> TinySet:
    generator = np.random.default_rng(5)
    values = {
        "train-images.gz": generator.integers(0, 256, (12, 28, 28)),
        "train-labels.gz": np.arange(12) % 3,
        "test-images.gz": generator.integers(0, 256, (6, 28, 28)),
        "test-labels.gz": np.arange(6) % 3,
    }
    raw = {name: idx_bytes(array) for name, array in values.items()}
    pinned = {
        name: IdxFile(name=name, shape=values[name].shape, sha256=hashlib.sha256(content).hexdigest()) for name, content in raw.items()
    }
    images = ImageSet(
        name="tiny",
        class_names=("a", "b", "c"),
        base_urls=("https://one.invalid/", "https://two.invalid/"),
        train_images=pinned["train-images.gz"],
        train_labels=pinned["train-labels.gz"],
        test_images=pinned["test-images.gz"],
        test_labels=pinned["test-labels.gz"],
    )
    return TinySet(images=images, archives={name: gzip.compress(content) for name, content in raw.items()}, values=values)
