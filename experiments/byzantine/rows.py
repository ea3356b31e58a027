"""Rows of finished runs: one JSON line each, keyed by the digest of the run's settings; a grid that was stopped goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from experiments.byzantine.settings import Settings
from fedsec.errors import StorageError
from fedsec.files import atomic_write_json

FORMAT = "fedsec/byzantine/v1"


class Rows:
    """The rows on disk.

    Raises:
        StorageError: a line is not a row. A last line without its end, cut off by a crash, is dropped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: dict[str, dict[str, Any]] = {}
        if not path.exists():
            return
        whole, _, cut = path.read_text(encoding="utf-8").rpartition("\n")
        for line in whole.splitlines():
            try:
                row = json.loads(line)
                self._rows[row["digest"]] = row
            except (ValueError, KeyError, TypeError) as error:
                raise StorageError(f"{path.name} holds a line that is no row: {error}") from None
        if cut:
            path.write_text(whole + "\n" if whole else "", encoding="utf-8")

    def find(self, settings: Settings) -> dict[str, Any] | None:
        """The row of these very settings."""
        return self._rows.get(settings.digest())

    def add(self, settings: Settings, result: dict[str, Any]) -> None:
        """Keep a row, at once and for good."""
        row: dict[str, Any] = {"digest": settings.digest(), "settings": settings.to_json(), "result": result}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        self._rows[row["digest"]] = row

    def of(self, grid: Iterable[Settings]) -> list[dict[str, Any]]:
        """Rows of those runs of a grid that are finished, in its order."""
        return [row for settings in grid if (row := self.find(settings)) is not None]


def write_results(path: Path, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Write the results file, whole; curves are left out."""
    kept = [{**row, "result": {key: value for key, value in row["result"].items() if key != "curve"}} for row in rows]
    atomic_write_json(path, {"format": FORMAT, **facts, "rows": kept})


def read_results(path: Path) -> list[dict[str, Any]]:
    """Rows of a results file.

    Raises:
        StorageError: it is another kind of file.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.get("format") != FORMAT:
        raise StorageError(f"{path.name} is no results file of this experiment")
    return list(content["rows"])
