"""Cached features: computed once, checked on every use, rebuilt when damaged, safe for two builders at once."""

import json
import logging
import multiprocessing
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedsec.data import cache
from fedsec.data.cache import FeatureMap, cached_features
from fedsec.errors import StorageError

RECORDS = np.arange(10, dtype=np.float32)[:, None] + np.zeros((1, 4), dtype=np.float32)


class Counting:
    """A feature map that counts the records it maps: three powers of a record's sum."""

    def __init__(self, *, version: str = "1") -> None:
        self.seen = 0
        self.map = FeatureMap(name="powers", version=version, width=3, compute=self.compute)

    def compute(self, records: np.ndarray) -> np.ndarray:
        self.seen += len(records)
        return np.stack([records.sum(axis=1) ** power for power in (1, 2, 3)], axis=1).astype(np.float32)


def files(folder: Path, suffix: str) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix == suffix)


def test_features_are_computed_once_and_read_only(tmp_path: Path) -> None:
    counting = Counting()
    first = cached_features(counting.map, RECORDS, source="abc/train", folder=tmp_path / "new" / "folder")
    second = cached_features(counting.map, RECORDS, source="abc/train", folder=tmp_path / "new" / "folder")
    assert counting.seen == 10
    assert np.array_equal(first, Counting().compute(RECORDS))
    assert np.array_equal(first, second)
    assert first.dtype == np.float32
    with pytest.raises(ValueError, match="read-only"):
        first[0, 0] = 1.0
    assert stat.S_IMODE(files(tmp_path / "new" / "folder", ".npy")[0].stat().st_mode) == 0o600


def test_records_beyond_one_chunk_are_all_mapped_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "CHUNK_ROWS", 3)
    features = cached_features(Counting().map, RECORDS, source="abc", folder=tmp_path)
    assert np.array_equal(features, Counting().compute(RECORDS))
    assert np.array_equal(np.load(files(tmp_path, ".npy")[0]), features)


def test_another_version_source_or_map_has_its_own_file(tmp_path: Path) -> None:
    cached_features(Counting().map, RECORDS, source="abc", folder=tmp_path)
    for other, source in ((Counting(version="2"), "abc"), (Counting(), "abd")):
        cached_features(other.map, RECORDS, source=source, folder=tmp_path)
        assert other.seen == 10
    assert len(files(tmp_path, ".npy")) == 3
    assert Counting().map.fingerprint("a") != Counting(version="2").map.fingerprint("a") != Counting().map.fingerprint("b")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


def other_shape(path: Path) -> None:
    np.save(path, np.zeros((2, 3), dtype=np.float32))
    record = path.with_suffix(".json")
    value = json.loads(record.read_text())
    record.write_text(json.dumps(value | {"sha256": cache.sha256_file(path)}))


DAMAGE: list[Callable[[Path], object]] = [
    flip,
    other_shape,
    lambda path: path.write_bytes(path.read_bytes()[:-5]),
    lambda path: path.write_bytes(b""),
    lambda path: path.unlink(),
    lambda path: path.with_suffix(".json").unlink(),
    lambda path: path.with_suffix(".json").write_text("{"),
    lambda path: path.with_suffix(".json").write_text("[]"),
    lambda path: path.with_suffix(".json").write_bytes(b"\xff\xfe"),
    lambda path: path.with_suffix(".json").write_text(path.with_suffix(".json").read_text().replace("abc", "abd")),
]


@pytest.mark.parametrize("damage", DAMAGE, ids=range(len(DAMAGE)))
def test_a_damaged_cache_is_rebuilt_and_never_believed(damage: Callable[[Path], object], tmp_path: Path) -> None:
    cached_features(Counting().map, RECORDS, source="abc", folder=tmp_path)
    damage(files(tmp_path, ".npy")[0])
    counting = Counting()
    assert np.array_equal(cached_features(counting.map, RECORDS, source="abc", folder=tmp_path), Counting().compute(RECORDS))
    assert counting.seen == 10
    again = Counting()
    cached_features(again.map, RECORDS, source="abc", folder=tmp_path)
    assert again.seen == 0


def test_a_rebuild_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cached_features(Counting().map, RECORDS, source="abc", folder=tmp_path)
    flip(files(tmp_path, ".npy")[0])
    with caplog.at_level(logging.WARNING, logger="fedsec.data.cache"):
        cached_features(Counting().map, RECORDS, source="abc", folder=tmp_path)
    assert "is damaged; computing the features again" in caplog.text


def test_a_rebuild_leaves_arrays_in_use_as_they_were(tmp_path: Path) -> None:
    in_use = cached_features(Counting().map, RECORDS, source="abc", folder=tmp_path)
    files(tmp_path, ".json")[0].unlink()
    cached_features(Counting().map, RECORDS, source="abc", folder=tmp_path)
    assert np.array_equal(in_use, Counting().compute(RECORDS))


def test_what_a_killed_builder_left_behind_is_overwritten(tmp_path: Path) -> None:
    cached_features(Counting().map, RECORDS, source="abc", folder=tmp_path)
    stem = files(tmp_path, ".npy")[0]
    stem.unlink()
    stem.with_suffix(".partial").write_bytes(b"x" * 10_000)
    assert np.array_equal(cached_features(Counting().map, RECORDS, source="abc", folder=tmp_path), Counting().compute(RECORDS))
    assert files(tmp_path, ".partial") == []


def fails(records: np.ndarray) -> np.ndarray:
    raise RuntimeError("killed half-way")


def test_a_builder_that_fails_leaves_no_array_and_no_lock(tmp_path: Path) -> None:
    failing = FeatureMap(name="powers", version="1", width=3, compute=fails)
    with pytest.raises(RuntimeError, match="killed half-way"):
        cached_features(failing, RECORDS, source="abc", folder=tmp_path)
    assert files(tmp_path, ".npy") == []
    assert len(cached_features(Counting().map, RECORDS, source="abc", folder=tmp_path)) == 10


@pytest.mark.parametrize(
    ("compute", "words"),
    [
        (lambda records: np.zeros((len(records), 2), dtype=np.float32), "gave float32"),
        (lambda records: np.zeros((1, 3), dtype=np.float32), "gave float32"),
        (lambda records: np.zeros((len(records), 3)), "gave float64"),
        (lambda records: np.full((len(records), 3), np.nan, dtype=np.float32), "not finite"),
    ],
)
def test_a_map_that_does_not_keep_its_promise_is_refused(compute: Callable[[np.ndarray], np.ndarray], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        cached_features(FeatureMap(name="powers", version="1", width=3, compute=compute), RECORDS, source="abc", folder=tmp_path)
    assert files(tmp_path, ".npy") == []


def test_a_cache_that_cannot_be_written_is_an_error_with_a_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="set FEDSEC_CACHE to a folder with room"):
        cached_features(Counting().map, RECORDS, source="abc", folder=tmp_path / "file")

    def full(*unused: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "_write", full)
    with pytest.raises(StorageError, match=r"No space left on device \(set FEDSEC_CACHE"):
        cached_features(Counting().map, RECORDS, source="abc", folder=tmp_path)


def test_a_disk_that_does_not_keep_what_is_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = cache._build

    def corrupting(feature_map: FeatureMap, records: np.ndarray, path: Path, expected: dict[str, object]) -> None:
        real(feature_map, records, path, expected)
        flip(path)

    monkeypatch.setattr(cache, "_build", corrupting)
    with pytest.raises(StorageError, match="does not hold what was just written"):
        cached_features(Counting().map, RECORDS, source="abc", folder=tmp_path)


def slow_and_noted(records: np.ndarray) -> np.ndarray:
    notes = Path(os.environ["NOTES"])
    (notes / f"{os.getpid()}-{time.monotonic_ns()}").touch()
    time.sleep(0.2)
    return np.stack([records.sum(axis=1) ** power for power in (1, 2, 3)], axis=1).astype(np.float32)


def build_in_child(folder: str, answers: "multiprocessing.Queue[float]") -> None:
    slow = FeatureMap(name="powers", version="1", width=3, compute=slow_and_noted)
    answers.put(float(cached_features(slow, RECORDS, source="abc", folder=Path(folder)).sum()))


def test_two_processes_at_once_build_once_and_get_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    monkeypatch.setenv("NOTES", str(notes))
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    children = [context.Process(target=build_in_child, args=(str(tmp_path / "cache"), answers)) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(30)
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert {answers.get(timeout=5) for _ in children} == {float(Counting().compute(RECORDS).sum())}
    assert len(list(notes.iterdir())) == 1
