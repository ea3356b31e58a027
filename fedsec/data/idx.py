"""MNIST and Fashion-MNIST from idx files: parsed strictly, and only when every byte is the pinned one.

1. What is checked, in this order: gzip integrity, length, magic number, dimensions, SHA-256 of the uncompressed bytes.
2. The digest covers the *uncompressed* file: one file may be packed in many ways (the archives that are in circulation differ),
   its content may not.
3. Nothing is read without a bound: a small archive cannot unpack into a large one.
4. A file that fails is named, with what to do about it; it is never changed or replaced behind the user's back.

Format: http://yann.lecun.com/exdb/mnist/ (two zero bytes, type 8 = unsigned byte, number of dimensions, each dimension as a
big-endian 32-bit number, then the values).
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedsec.data.base import Dataset
from fedsec.errors import DataError

MAX_COMPRESSED_BYTES = 64 * 1024 * 1024
"""More than twice the largest of the real archives (26 MB)."""


@dataclass(frozen=True, kw_only=True)
class IdxFile:
    """One pinned file.

    Attributes:
        name: of the gzip archive.
        shape: dimensions the header must state.
        sha256: hex digest of the uncompressed idx file.
    """

    name: str
    shape: tuple[int, ...]
    sha256: str

    @property
    def size_bytes(self) -> int:
        """Length of the uncompressed file."""
        return 4 + 4 * len(self.shape) + math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """A data set of four idx files.

    Attributes:
        name: of the data set and of its folder below the data root.
        class_names: one per label.
        base_urls: https folders that offer the files, tried in order; each ends in a slash.
        train_images: and the other three: the pinned files.
    """

    name: str
    class_names: tuple[str, ...]
    base_urls: tuple[str, ...]
    train_images: IdxFile
    train_labels: IdxFile
    test_images: IdxFile
    test_labels: IdxFile

    @property
    def files(self) -> tuple[IdxFile, ...]:
        """All four."""
        return (self.train_images, self.train_labels, self.test_images, self.test_labels)


def _image_set(name: str, class_names: tuple[str, ...], base_urls: tuple[str, ...], digests: tuple[str, str, str, str]) -> ImageSet:
    return ImageSet(
        name=name,
        class_names=class_names,
        base_urls=base_urls,
        train_images=IdxFile(name="train-images-idx3-ubyte.gz", shape=(60_000, 28, 28), sha256=digests[0]),
        train_labels=IdxFile(name="train-labels-idx1-ubyte.gz", shape=(60_000,), sha256=digests[1]),
        test_images=IdxFile(name="t10k-images-idx3-ubyte.gz", shape=(10_000, 28, 28), sha256=digests[2]),
        test_labels=IdxFile(name="t10k-labels-idx1-ubyte.gz", shape=(10_000,), sha256=digests[3]),
    )


MNIST = _image_set(
    "mnist",
    tuple("0123456789"),
    ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
    (
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
)
"""LeCun, Cortes & Burges. Their own server no longer gives the files; the addresses are the mirrors that torchvision and
TensorFlow use."""

FASHION_MNIST = _image_set(
    "fashion-mnist",
    ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ("https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",),
    (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
)
"""Xiao, Rasul & Vollgraf 2017 (arXiv 1708.07747), MIT licence, from the authors' repository."""


def load_images(images: ImageSet, folder: Path) -> Dataset:
    """Read the four files of a data set: pixels / 255 as float32 [n, 28, 28].

    Args:
        images: the pinned files.
        folder: where they lie.

    Raises:
        DataError: a file is missing, unreadable, truncated, of another format or not the pinned one.
    """
    arrays = [decode_idx_gz(_read(folder / file.name), file, source=str(folder / file.name)) for file in images.files]
    x, y, x_test, y_test = arrays
    return Dataset(
        name=images.name,
        x=_pixels(x),
        y=y.astype(np.int64),
        x_test=_pixels(x_test),
        y_test=y_test.astype(np.int64),
        num_classes=len(images.class_names),
        class_names=images.class_names,
    )


def decode_idx_gz(packed: bytes, file: IdxFile, *, source: str) -> npt.NDArray[np.uint8]:
    """Unpack and check one gzip archive.

    Args:
        packed: the archive.
        file: what it must hold.
        source: path or address, for the error.

    Returns:
        uint8 of ``file.shape``.

    Raises:
        DataError: anything differs from the pinned file.
    """
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as handle:
            # One byte more than expected: enough to notice a longer file, and to make gzip check its trailer.
            content = handle.read(file.size_bytes + 1)
    except EOFError:
        raise _fault(source, "is truncated") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise _fault(source, f"is not a sound gzip archive: {error}") from error
    values = parse_idx(content, shape=file.shape, source=source)
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise _fault(source, "has the right form but not the pinned SHA-256: its content was altered")
    return values


def parse_idx(content: bytes, *, shape: tuple[int, ...], source: str) -> npt.NDArray[np.uint8]:
    """Parse the bytes of an idx file of unsigned bytes with exactly this shape.

    Raises:
        DataError: wrong magic number, type, dimensions, or length.
    """
    header = 4 + 4 * len(shape)
    if len(content) < header:
        raise _fault(source, f"is truncated: {len(content)} bytes, the header alone has {header}")
    if content[:4] != bytes([0, 0, 8, len(shape)]):
        raise _fault(source, f"does not begin like an idx file of bytes in {len(shape)} dimensions (found {content[:4].hex()})")
    stated = tuple(int(n) for n in np.frombuffer(content, dtype=">u4", count=len(shape), offset=4))
    if stated != shape:
        raise _fault(source, f"states dimensions {stated}, expected {shape}")
    expected = header + math.prod(shape)
    if len(content) != expected:
        relation = "is truncated" if len(content) < expected else "is too long"
        raise _fault(source, f"{relation}: its header promises {expected} bytes")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as handle:
            packed = handle.read(MAX_COMPRESSED_BYTES + 1)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    if len(packed) > MAX_COMPRESSED_BYTES:
        raise _fault(str(path), f"is larger than {MAX_COMPRESSED_BYTES} bytes")
    return packed


def _pixels(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    return images.astype(np.float32) / np.float32(255.0)


def _fault(source: str, problem: str) -> DataError:
    return DataError(f"{source} {problem} (delete it and let fedsec download it again, or put an intact copy in its place)")
