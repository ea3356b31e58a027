"""The file of privacy numbers: whole or ignored, shared by processes, never a reason to fail."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedsec.privacy import cache


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSEC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "SHIPPED", tmp_path / "shipped.json")
    return tmp_path / "cache"


def test_a_number_is_found_again_exactly_and_only_under_its_key(folder):
    cache.remember("prv", "k", 0.1 + 0.2)
    assert cache.candidates("prv", "k") == (0.1 + 0.2,)
    assert cache.candidates("rdp", "k") == cache.candidates("prv", "other") == ()


def test_the_shipped_number_comes_first_and_is_never_written(folder):
    cache.write_numbers(cache.SHIPPED, {"prv": {"k": 1.0}, "rdp": {}, "sigma": {}})
    before = cache.SHIPPED.read_bytes()
    cache.remember("prv", "k", 2.0)
    assert cache.candidates("prv", "k") == (1.0, 2.0)
    assert cache.SHIPPED.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\xff" * 50,
        b"[" * 100_000,
        b"[]",
        b"null",
        b'{"format":"fedsec/privacy-numbers/v1"}',
        b'{"format":"fedsec/privacy-numbers/v0","numbers":{"prv":{},"rdp":{},"sigma":{}}}',
        b'{"format":"fedsec/privacy-numbers/v1","numbers":{"prv":{"k":"1"},"rdp":{},"sigma":{}}}',
        b'{"format":"fedsec/privacy-numbers/v1","numbers":{"prv":{"k":NaN},"rdp":{},"sigma":{}}}',
        b'{"format":"fedsec/privacy-numbers/v1","numbers":{"prv":{"k":-1.0},"rdp":{},"sigma":{}}}',
        b'{"format":"fedsec/privacy-numbers/v1","numbers":{"prv":{"k":true},"rdp":{},"sigma":{}}}',
        b'{"format":"fedsec/privacy-numbers/v1","numbers":{"prv":{},"rdp":{},"sigma":{},"gdp":{}}}',
        b'{"format":"fedsec/privacy-numbers/v1","numbers":{"prv":[],"rdp":{},"sigma":{}}}',
        b" " * (cache.MAX_BYTES + 1),
    ],
)
def test_a_file_that_is_not_exactly_ours_is_ignored_aloud_and_replaced(folder, caplog, content):
    folder.mkdir()
    (folder / cache.FILE_NAME).write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert cache.candidates("prv", "k") == ()
    assert "ignoring the privacy cache" in caplog.text
    cache.remember("prv", "k", 3.0)
    assert cache.candidates("prv", "k") == (3.0,)


def test_a_cut_off_file_is_ignored_at_every_length(folder):
    cache.remember("sigma", "k", 1.5)
    path = folder / cache.FILE_NAME
    whole = path.read_bytes()
    for length in range(len(whole) - 2):
        path.write_bytes(whole[:length])
        assert cache.read_numbers(path) == {"prv": {}, "rdp": {}, "sigma": {}}


def test_a_cache_that_cannot_be_written_costs_only_a_line_in_the_log(folder, caplog):
    folder.write_text("a file where the folder should be")
    with caplog.at_level(logging.INFO):
        cache.remember("prv", "k", 1.0)
    assert "was not written" in caplog.text
    assert cache.candidates("prv", "k") == ()


def test_processes_that_write_at_once_lose_nothing(folder):
    code = "import sys; from fedsec.privacy import cache\nfor i in range(15): cache.remember('prv', f'{sys.argv[1]}-{i}', float(i))"
    workers = [subprocess.Popen([sys.executable, "-c", code, str(worker)], env=os.environ) for worker in range(4)]
    assert [worker.wait() for worker in workers] == [0] * 4
    numbers = cache.read_numbers(folder / cache.FILE_NAME)["prv"]
    assert numbers == {f"{worker}-{i}": float(i) for worker in range(4) for i in range(15)}
    assert sorted(path.name for path in folder.iterdir()) == ["calibration.json", "calibration.lock"]


def test_the_oldest_numbers_make_room(folder, monkeypatch):
    monkeypatch.setattr(cache, "MAX_NUMBERS", 3)
    for name in "abcd":
        cache.remember("prv", name, 1.0)
    assert list(cache.read_numbers(folder / cache.FILE_NAME)["prv"]) == ["b", "c", "d"]


def test_the_folder_is_the_one_that_the_environment_names(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDSEC_CACHE", str(tmp_path / "own"))
    assert cache.user_file() == tmp_path / "own" / cache.FILE_NAME
    monkeypatch.delenv("FEDSEC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.user_file() == tmp_path / "xdg" / "fedsec" / cache.FILE_NAME
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.user_file() == tmp_path / "home" / ".cache" / "fedsec" / cache.FILE_NAME

    def homeless():
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", homeless)
    assert cache.user_file() is None
    cache.remember("prv", "k", 1.0)


def test_infinite_numbers_are_not_written(folder):
    folder.mkdir()
    with pytest.raises(ValueError):
        cache.write_numbers(folder / "x.json", {"prv": {"k": float("inf")}, "rdp": {}, "sigma": {}})
    assert not (folder / "x.json").exists()


def test_keys_under_a_prefix_come_back_without_it(folder):
    key = cache.key_of([(1.5, 0.25, 60)], 1e-3)
    assert key == "0.001;1.5,0.25,60"
    cache.remember("prv", key, 2.0)
    assert cache.starting_with("prv", "0.001;1.5,0.25,") == {"60": 2.0}
    assert json.loads((folder / cache.FILE_NAME).read_text())["numbers"]["prv"] == {key: 2.0}
