"""idx files: right ones are read exactly, every other one is refused by name with a mend."""

import dataclasses
import gzip
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsec.data.idx import FASHION_MNIST, MNIST, IdxFile, ImageSet, decode_idx_gz, load_images, parse_idx
from fedsec.errors import DataError

LABELS = np.arange(12) % 3
RAW = bytes([0, 0, 8, 1, 0, 0, 0, 12]) + LABELS.astype(np.uint8).tobytes()
FILE = IdxFile(name="labels.gz", shape=(12,), sha256=hashlib.sha256(RAW).hexdigest())


def test_a_pinned_file_is_read_exactly_however_it_was_packed() -> None:
    for level in (1, 9):
        assert np.array_equal(decode_idx_gz(gzip.compress(RAW, level), FILE, source="here"), LABELS)


PACKED = gzip.compress(RAW)


@pytest.mark.parametrize(
    ("packed", "words"),
    [
        pytest.param(b"", "is truncated", id="empty"),
        pytest.param(PACKED[:-9], "is truncated", id="cut in the data"),
        pytest.param(PACKED[:-1], "is truncated", id="cut in the trailer"),
        pytest.param(RAW, "not a sound gzip archive", id="not packed"),
        pytest.param(b"<html>404</html>", "not a sound gzip archive", id="an error page"),
        pytest.param(PACKED[:-8] + bytes(4) + PACKED[-4:], "not a sound gzip archive", id="wrong gzip checksum"),
        pytest.param(PACKED[:12] + bytes([PACKED[12] ^ 0xFF]) + PACKED[13:], "gzip archive|truncated|begin like", id="damaged stream"),
        pytest.param(gzip.compress(RAW[:6]), "is truncated: 6 bytes, the header alone has 8", id="header cut"),
        pytest.param(gzip.compress(RAW[:-1]), "is truncated: its header promises 20 bytes", id="values cut"),
        pytest.param(gzip.compress(RAW + b"\0"), "is too long", id="values added"),
        pytest.param(gzip.compress(RAW + bytes(10**6)), "is too long", id="much added"),
        pytest.param(gzip.compress(b"\0\0\x0b" + RAW[3:]), r"does not begin like an idx file.*00000b01", id="of shorts"),
        pytest.param(gzip.compress(b"\0\0\x08\x03" + RAW[4:]), r"does not begin like an idx file", id="of images"),
        pytest.param(
            gzip.compress(RAW[:4] + bytes([0, 0, 0, 13]) + RAW[8:]), r"states dimensions \(13,\), expected \(12,\)", id="other count"
        ),
        pytest.param(gzip.compress(RAW[:4] + b"\xff\xff\xff\xff" + RAW[8:]), r"states dimensions \(4294967295,\)", id="absurd count"),
        pytest.param(gzip.compress(RAW[:-1] + b"\x07"), "not the pinned SHA-256", id="one value changed"),
    ],
)
def test_any_other_file_is_refused_by_name_with_a_mend(packed: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        decode_idx_gz(packed, FILE, source="folder/labels.gz")
    assert str(caught.value).startswith("folder/labels.gz ")
    assert "delete it and let fedsec download it again, or put an intact copy in its place" in str(caught.value)


def test_every_flipped_byte_of_the_content_is_refused() -> None:
    for position in range(len(RAW)):
        changed = bytearray(RAW)
        changed[position] ^= 1
        with pytest.raises(DataError):
            decode_idx_gz(gzip.compress(bytes(changed)), FILE, source="here")


def test_parsing_refuses_what_is_shorter_than_a_header() -> None:
    with pytest.raises(DataError, match="header alone has 16"):
        parse_idx(b"\0\0\x08\x03", shape=(1, 2, 3), source="here")


def test_a_set_is_loaded_with_pixels_in_0_to_1(tiny_set: Any, tmp_path: Path) -> None:
    dataset = load_images(tiny_set.images, tiny_set.write(tmp_path))
    assert dataset.name == "tiny"
    assert dataset.input_shape == (28, 28)
    assert dataset.class_names == ("a", "b", "c")
    assert np.array_equal(dataset.x, tiny_set.values["train-images.gz"].astype(np.float32) / np.float32(255))
    assert np.array_equal(dataset.y_test, tiny_set.values["test-labels.gz"])
    assert not dataset.x.flags.writeable


def test_a_missing_or_unreadable_file_is_named(tiny_set: Any, tmp_path: Path) -> None:
    folder = tiny_set.write(tmp_path, leave_out="test-labels.gz")
    with pytest.raises(DataError, match=r"cannot read .*tiny/test-labels\.gz: No such file"):
        load_images(tiny_set.images, folder)
    (folder / "test-labels.gz").mkdir()
    with pytest.raises(DataError, match=r"cannot read .*test-labels\.gz: Is a directory"):
        load_images(tiny_set.images, folder)


def test_a_file_that_is_far_too_large_is_not_read_whole(tiny_set: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsec.data.idx.MAX_COMPRESSED_BYTES", 50)
    with pytest.raises(DataError, match="is larger than 50 bytes"):
        load_images(tiny_set.images, tiny_set.write(tmp_path))


def test_labels_beyond_the_class_names_are_refused(tiny_set: Any, tmp_path: Path) -> None:
    narrow = dataclasses.replace(tiny_set.images, class_names=("a", "b"))
    with pytest.raises(DataError, match="labels from 0 to 2"):
        load_images(narrow, tiny_set.write(tmp_path))


def test_the_tables_pin_the_known_shapes_over_https_only() -> None:
    for images in (MNIST, FASHION_MNIST):
        assert [file.shape for file in images.files] == [(60_000, 28, 28), (60_000,), (10_000, 28, 28), (10_000,)]
        assert images.train_images.size_bytes == 47_040_016
        assert all(url.startswith("https://") and url.endswith("/") for url in images.base_urls)
        assert all(len(file.sha256) == 64 for file in images.files)
    digests = [file.sha256 for images in (MNIST, FASHION_MNIST) for file in images.files]
    assert len(set(digests)) == 8


@pytest.mark.needs("data")
@pytest.mark.parametrize(("images", "mean"), [(MNIST, 0.1307), (FASHION_MNIST, 0.2860)], ids=["mnist", "fashion-mnist"])
def test_the_real_sets_are_read(images: ImageSet, mean: float, data_root: Path) -> None:
    """The mean pixel is the figure that everybody normalises with."""
    dataset = load_images(images, data_root / images.name)
    assert dataset.x.shape == (60_000, 28, 28)
    assert dataset.x_test.shape == (10_000, 28, 28)
    assert dataset.x.mean(dtype=np.float64) == pytest.approx(mean, abs=5e-5)
    assert set(np.unique(dataset.y)) == set(range(10))
