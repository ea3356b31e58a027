"""Files are whole or absent, and one process at a time holds a lock."""

import os
import subprocess
import sys

import pytest

from fedsec.errors import StorageError
from fedsec.files import atomic_write_bytes, atomic_write_json, exclusive_lock, sha256_file


def test_a_write_replaces_the_whole_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a.bin"
    atomic_write_bytes(path, b"old")
    atomic_write_bytes(path, b"new", mode=0o600)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    atomic_write_bytes(path, b"old")

    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageError, match="No space left"):
        atomic_write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_missing_folder_is_a_clear_error(tmp_path):
    with pytest.raises(StorageError, match="cannot write"):
        atomic_write_bytes(tmp_path / "no" / "a", b"")


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError):
        atomic_write_json(tmp_path / "a.json", {"x": float("nan")})
    assert os.listdir(tmp_path) == []


def test_a_lock_is_exclusive_between_processes_and_goes_with_its_holder(tmp_path):
    lock = tmp_path / "l"
    code = f"from pathlib import Path\nfrom fedsec.files import exclusive_lock\nimport time\nwith exclusive_lock(Path({str(lock)!r})):\n    print('held', flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline().strip() == "held"
        with pytest.raises(StorageError, match="another process"), exclusive_lock(lock):
            pass
    finally:
        child.kill()
        child.wait()
    with exclusive_lock(lock, timeout_s=5):
        pass


def test_sha256_of_a_file(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
