"""The gateway's audit log: one JSON line for each decision, rotated by size; never a body, a signature or another secret.

1. A line has a time (UTC), an event and plain facts: who (client id, serial number), what (path, counter, size), the outcome.
2. Strings are cut to 200 characters and escaped by JSON: a hostile name cannot forge a line.
3. The log is bounded: at ``max_bytes`` the file becomes ``.1``, which becomes ``.2`` and so on.
4. Lines that say the same of the same caller are folded beyond 50 in ten seconds: the next one that is written says how many were left out.
   So one client cannot push the others' lines out.
5. A full disk must not stop the gateway from refusing calls: what could not be written is counted, and said once it can be.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from fedsec.errors import StorageError

FOLD_ABOVE = 50
FOLD_S = 10.0
_MAX_KEYS = 1 << 14

MAX_TEXT = 200
MAX_BYTES = 16 * 1024 * 1024
BACKUPS = 4


class Folding:
    """Which lines are left out. Pure: time is an argument."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], tuple[float, int, int]] = {}

    def left_out(self, key: tuple[Any, ...], now: float) -> int | None:
        """Lines of this key that were left out since its last one, which counts for the line at hand; None: leave that out as well.

        Args:
            key: what the line says, without its numbers.
            now: seconds on any clock.
        """
        began, lines, folded = self._known.pop(key, (now, 0, 0))
        if now - began >= FOLD_S:
            began, lines = now, 0
        write = lines < FOLD_ABOVE
        self._known[key] = (began, lines + 1, 0 if write else folded + 1)
        while len(self._known) > _MAX_KEYS:
            del self._known[next(iter(self._known))]
        return folded if write else None


class AuditLog:
    """Appends lines to a file.

    Args:
        path: the file; its folder must exist.
        max_bytes: size at which it is rotated.
        backups: rotated files that are kept.

    Attributes:
        lost: lines that could not be written.

    Raises:
        StorageError: the file cannot be opened.
    """

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES, backups: int = BACKUPS) -> None:
        self._path, self._max_bytes, self._backups = path, max_bytes, backups
        self.lost = 0
        try:
            self._descriptor = self._open(path)
            self._size = os.fstat(self._descriptor).st_size
        except OSError as error:
            raise StorageError(f"cannot open the audit log {path}: {error.strerror or error}") from error

    @staticmethod
    def _open(path: Path) -> int:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(self, now: datetime, event: str, facts: Mapping[str, Any]) -> None:
        """Append a line; never raises for a disk that is full.

        Args:
            now: aware.
            event: what happened, for example ``call``.
            facts: str, int, float, bool or None by name.
        """
        record = {"time": now.isoformat(timespec="milliseconds"), "event": event, **{key: _plain(value) for key, value in facts.items()}}
        if self.lost:
            record["lost_lines"] = self.lost
        line = (json.dumps(record, ensure_ascii=True, allow_nan=False) + "\n").encode("ascii")
        try:
            if self._size and self._size + len(line) > self._max_bytes:
                self._rotate()
            os.write(self._descriptor, line)
        except OSError:
            self.lost += 1
            return
        self._size += len(line)
        self.lost = 0

    def _rotate(self) -> None:
        fresh_path = self._path.with_name(f"{self._path.name}.new")
        fresh = self._open(fresh_path)  # first: without a new file the old one must stay open
        try:
            self._move(fresh_path)
            size = os.fstat(fresh).st_size
        except OSError:
            os.close(fresh)
            raise
        old, self._descriptor, self._size = self._descriptor, fresh, size
        os.close(old)

    def _move(self, fresh: Path) -> None:
        for number in range(self._backups, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{number}")
            newer = self._path if number == 1 else self._path.with_name(f"{self._path.name}.{number - 1}")
            if newer.exists():
                newer.replace(older)
        fresh.replace(self._path)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value if len(value) <= MAX_TEXT else value[:MAX_TEXT] + "…"
    if value is None or isinstance(value, bool | int | float):
        return value
    raise ValueError(f"an audit line holds plain values, not {type(value).__name__}")
