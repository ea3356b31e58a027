"""The folder of a grid of attacks and rules: what lies where, and the rows of the cells that ended.

::

    plan.toml       the plan of all cells, without what a cell decides
    grid.json       format, digest, version
    cells.jsonl     a row for each finished cell, in the order in which they ended
    runs/CELL/      the run folder of each cell, as fedsec simulate leaves it
    attack.html cells.csv heatmap.csv heatmap.png     the report
    grid.lock       held while a process runs in here

1. A row is appended whole and synced before the next run starts. What a crash may leave is the beginning of one line, which counts as nothing.
2. A row is known by its key, the digest of the plan that ran: asked for again, in this grid or a larger one, it is not run again.
3. A folder of another plan, or with other files, is refused.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fedsec
from fedsec.errors import ConfigError, DecodeError, StorageError
from fedsec.files import atomic_write_json, atomic_write_text, exclusive_lock
from fedsec.plan.grid import GRID_FORMAT, Cell, grid_digest
from fedsec.plan.load import plan_to_toml
from fedsec.plan.model import Plan
from fedsec.report.attack_rows import CellRow

LOCK_TIMEOUT_S = 2.0


@dataclass(frozen=True, kw_only=True)
class GridFolder:
    """A grid's folder that exists and belongs to this plan.

    Attributes:
        path: the folder, absolute.
    """

    path: Path

    @property
    def plan_file(self) -> Path:
        """The plan that every cell starts from."""
        return self.path / "plan.toml"

    def run_folder(self, cell: Cell, key: str) -> Path:
        """Where a cell runs: a name for readers, and the key so that no other plan's run lies there."""
        share = f"-{cell.fraction!r}" if cell.fraction is not None else ""
        return self.path / "runs" / f"{cell.attack}{share}-{cell.rule}-seed{cell.seed}-{key[:12]}"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from running in here.

        Raises:
            StorageError: one does.
        """
        with exclusive_lock(self.path / "grid.lock", timeout_s=LOCK_TIMEOUT_S, what="grid folder"):
            yield

    def rows(self) -> dict[str, CellRow]:
        """Key → row of every finished cell, of this grid and of others with the same plan.

        Raises:
            StorageError: the file cannot be read, or a line of it is damaged.
        """
        rows = {}
        for number, line in enumerate(self._lines()[:-1], start=1):
            try:
                row = CellRow.from_json(json.loads(line))
            except (ValueError, RecursionError, DecodeError) as error:
                raise StorageError(f"{self._file}, line {number} is damaged ({error}); remove the line, and that cell runs again") from None
            rows[row.key] = row
        return rows

    def append(self, row: CellRow) -> None:
        """Add a row; it is on the disk when this returns.

        Raises:
            StorageError: the file system refused.
        """
        line = json.dumps(row.to_json(), ensure_ascii=False, allow_nan=False).encode() + b"\n"
        torn = len(self._lines()[-1])
        try:
            descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                end = os.lseek(descriptor, 0, os.SEEK_END) - torn
                os.ftruncate(descriptor, end)
                if os.pwrite(descriptor, line, end) != len(line):
                    os.ftruncate(descriptor, end)
                    raise OSError("no room for a whole line")
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StorageError(f"cannot write {self._file}: {error.strerror or error}") from error

    @property
    def _file(self) -> Path:
        return self.path / "cells.jsonl"

    def _lines(self) -> list[bytes]:
        """All lines; the last is what a crash left of one, empty as a rule."""
        try:
            return self._file.read_bytes().split(b"\n")
        except FileNotFoundError:
            return [b""]
        except OSError as error:
            raise StorageError(f"cannot read {self._file}: {error.strerror or error}") from error


def open_grid_folder(path: Path, base: Plan) -> GridFolder:
    """Make a new grid folder, or open the one of this plan.

    Args:
        path: absolute.
        base: as ``fedsec.plan.grid.base_plan`` gives it.

    Raises:
        ConfigError: it holds a grid of another plan, or other files.
        StorageError: it cannot be written, or its ``grid.json`` is damaged.
    """
    if (path / "grid.json").exists():
        _check_marker(path, base)
    elif path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path} is not an empty folder and holds no grid", field="--out", mend="name a new or empty folder")
    else:
        _make(path, base)
    return GridFolder(path=path)


def _make(path: Path, base: Plan) -> None:
    """Made under another name and renamed, so that a folder that is there is whole."""
    draft = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
    facts = {"format": GRID_FORMAT, "digest": grid_digest(base), "fedsec_version": fedsec.__version__}
    try:
        (draft / "runs").mkdir(parents=True)
        atomic_write_text(draft / "plan.toml", plan_to_toml(base))
        atomic_write_json(draft / "grid.json", facts)
        draft.rename(path)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise StorageError(f"cannot make {path}: {error.strerror or error}") from error


def _check_marker(path: Path, base: Plan) -> None:
    try:
        facts: Mapping[str, Any] = json.loads((path / "grid.json").read_text(encoding="utf-8"))
        if facts["format"] != GRID_FORMAT or not isinstance(facts["digest"], str):
            raise ValueError("not a grid of this version")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{path / 'grid.json'} is damaged: {error}") from None
    if facts["digest"] != grid_digest(base):
        raise ConfigError(
            f"the grid in {path} was made with another plan",
            field="--out",
            mend=f"go on with its own ({path / 'plan.toml'}, without --set and --open), or name another folder",
        )
