"""Files that are whole or absent: atomic writes, hashes, and a lock between processes.

1. A file is written to a temporary name in its own folder, fsynced, renamed; then the folder is fsynced.
2. A lock is the operating system's (``flock``): it goes when its holder dies, so a crash leaves nothing to clean up.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedsec.errors import StorageError


def fsync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write_bytes(path: Path, data: bytes | memoryview, *, mode: int = 0o644, durable: bool = True) -> None:
    """Replace ``path`` with ``data``, or leave it as it was.

    Args:
        path: where; its folder must exist.
        data: the whole new content.
        mode: permission bits of the new file.
        durable: fsync file and folder; off only for files that may be made again.

    Raises:
        StorageError: the file system refused (full, read-only, no such folder).
    """
    temporary: str | None = None
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(descriptor, "wb") as handle:
            os.fchmod(handle.fileno(), mode)
            handle.write(data)
            handle.flush()
            if durable:
                os.fsync(handle.fileno())
        os.replace(temporary, path)
        temporary = None
        if durable:
            fsync_folder(path.parent)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def atomic_write_text(path: Path, text: str, *, mode: int = 0o644, durable: bool = True) -> None:
    """:func:`atomic_write_bytes` for UTF-8 text."""
    atomic_write_bytes(path, text.encode("utf-8"), mode=mode, durable=durable)


def atomic_write_json(path: Path, value: Any) -> None:
    """Write readable JSON atomically; NaN and infinities are refused (``ValueError``)."""
    atomic_write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextlib.contextmanager
def exclusive_lock(path: Path, *, timeout_s: float = 0.0, what: str = "file") -> Iterator[None]:
    """Hold an exclusive lock on ``path`` (created if absent) for the duration of the block.

    Raises:
        StorageError: someone else still holds it after ``timeout_s`` seconds.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(f"cannot open the lock {path}: {error.strerror or error}") from error
    try:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise StorageError(f"another process holds this {what} ({path}); wait for it to end") from None
                time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)
