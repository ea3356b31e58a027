"""The folder of a sweep: what lies where, and the rows of the points that ended.

::

    plan.toml           the plan of all points, without what a point decides
    sweep.json          format, digest of that plan, and the sweep that was asked for last
    manifest.json       versions, seeds, data hashes, commit, command, machine
    rows.jsonl rows.csv         a row for each finished run, in the order in which they ended
    audits.jsonl audits.csv     the same for audits, which are apart: no run is both measured and audited
    failures.json       points that failed in the last session, and why
    runs/POINT/         the run folder of each point, as fedsec simulate leaves it
    report.html *.png *.csv     the report
    sweep.lock          held while a process runs in here

1. A row is appended whole and synced before it counts. What a crash may leave is the beginning of one line, which counts as nothing.
2. A row is known by its key; asked for again, in this sweep or a larger one over the same plan, it is not run again.
3. A row that was edited, a folder of another plan, or one with other files is refused.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import fedsec
from fedsec.errors import ConfigError, DecodeError, StorageError
from fedsec.files import atomic_write_json, atomic_write_text, exclusive_lock
from fedsec.plan.load import load_plan, plan_to_toml
from fedsec.plan.model import Plan
from fedsec.plan.sweep import SWEEP_FORMAT, Point, SweepGrid, sweep_digest
from fedsec.report.sweep_rows import AuditRow, UtilityRow

LOCK_TIMEOUT_S = 2.0
MARKER = "sweep.json"
R = TypeVar("R", UtilityRow, AuditRow)


@dataclass(frozen=True, kw_only=True)
class SweepFolder:
    """A sweep's folder that exists.

    Attributes:
        path: the folder, absolute.
    """

    path: Path

    @property
    def plan_file(self) -> Path:
        """The plan that every point starts from."""
        return self.path / "plan.toml"

    def run_folder(self, point: Point, key: str) -> Path:
        """Where a point runs: a name for readers, and the key so that no other plan's run lies there."""
        arm = "" if point.arm.kind == "all" else f"-{point.arm.kind}-{point.arm.layer}"
        return self.path / "runs" / f"eps{point.epsilon:g}{arm}-seed{point.seed}-{key[:12]}"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from running in here.

        Raises:
            StorageError: one does.
        """
        with exclusive_lock(self.path / "sweep.lock", timeout_s=LOCK_TIMEOUT_S, what="sweep folder"):
            yield

    def plan(self) -> Plan:
        """The stored plan.

        Raises:
            ConfigError: it cannot be read, or is not the one that the sweep was made with.
        """
        plan = load_plan(self.plan_file)
        if sweep_digest(plan) != self._marker()["digest"]:
            raise ConfigError("is not the plan that the sweep was made with", file=str(self.plan_file), mend="put it back, or sweep anew")
        return plan

    def grid(self) -> SweepGrid:
        """The sweep that was asked for last.

        Raises:
            StorageError: ``sweep.json`` is damaged.
        """
        try:
            return SweepGrid.from_json(self._marker()["grid"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StorageError(f"{self.path / MARKER} is damaged: {error}") from None

    def save_grid(self, base: Plan, grid: SweepGrid) -> None:
        """Note what is asked for.

        Raises:
            StorageError: the file system refused.
        """
        facts = {"format": SWEEP_FORMAT, "digest": sweep_digest(base), "fedsec_version": fedsec.__version__, "grid": grid.to_json()}
        atomic_write_json(self.path / MARKER, facts)

    def _marker(self) -> dict[str, Any]:
        try:
            facts = json.loads((self.path / MARKER).read_text(encoding="utf-8"))
            if facts["format"] != SWEEP_FORMAT or not isinstance(facts["digest"], str):
                raise ValueError("not a sweep of this version")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StorageError(f"{self.path / MARKER} is damaged: {error}") from None
        return dict(facts)

    # --- Rows -------------------------------------------------------------------------------------------------------------------

    def rows(self) -> dict[str, UtilityRow]:
        """Key → row of every finished run, of this sweep and of others over the same plan.

        Raises:
            StorageError: the file cannot be read, or a line of it is damaged or was edited.
        """
        return _read(self.path / "rows.jsonl", UtilityRow.from_json)

    def audits(self) -> dict[str, AuditRow]:
        """Key → row of every finished audit; errors as of :meth:`rows`."""
        return _read(self.path / "audits.jsonl", AuditRow.from_json)

    def append(self, row: UtilityRow | AuditRow) -> None:
        """Add a row; it is on the disk when this returns.

        Raises:
            StorageError: the file system refused.
        """
        _append(self.path / ("rows.jsonl" if isinstance(row, UtilityRow) else "audits.jsonl"), row.to_json())

    def failures(self) -> list[tuple[str, str]]:
        """Name and fault of what failed in the last session; empty where none is known."""
        path = self.path / "failures.json"
        try:
            return [(str(item["name"]), str(item["fault"])) for item in _json_or(path, [])]
        except (KeyError, TypeError) as error:
            raise StorageError(f"{path} is damaged: {error}; remove it, and sweep again") from None

    def save_failures(self, failures: Sequence[tuple[str, str]]) -> None:
        """Replace the list of failures."""
        atomic_write_json(self.path / "failures.json", [{"name": name, "fault": fault} for name, fault in failures])

    def manifest(self) -> dict[str, Any]:
        """What is known about the machine and the records; empty where nothing is."""
        return dict(_json_or(self.path / "manifest.json", {}))


def _json_or(path: Path, otherwise: Any) -> Any:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return otherwise
    except (OSError, ValueError) as error:
        raise StorageError(f"{path} is damaged: {error}; remove it, and sweep again") from None
    if type(value) is not type(otherwise):
        raise StorageError(f"{path} is damaged; remove it, and sweep again")
    return value


def _lines(path: Path) -> list[bytes]:
    """All lines; the last is what a crash left of one, empty as a rule."""
    try:
        return path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [b""]
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error


def _read(path: Path, parse: Callable[[Any], R]) -> dict[str, R]:
    rows: dict[str, R] = {}
    for number, line in enumerate(_lines(path)[:-1], start=1):
        try:
            row = parse(json.loads(line))
        except (ValueError, RecursionError, DecodeError) as error:
            raise StorageError(
                f"{path}, line {number} is damaged ({error}); remove the line, and sweep again: that point runs anew"
            ) from None
        rows[row.key] = row
    return rows


def _append(path: Path, content: Mapping[str, Any]) -> None:
    line = json.dumps(content, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    torn = len(_lines(path)[-1])
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            end = os.lseek(descriptor, 0, os.SEEK_END) - torn
            os.ftruncate(descriptor, end)
            if os.pwrite(descriptor, line, end) != len(line):
                os.ftruncate(descriptor, end)
                raise OSError(errno.ENOSPC, "no room for a whole line")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}; the rows before it are whole") from error


# --- Making and opening ---------------------------------------------------------------------------------------------------------


def make_sweep_folder(path: Path, base: Plan, grid: SweepGrid, *, fresh: bool = False) -> SweepFolder:
    """Make a new sweep folder, or open the one of this plan and note the sweep that is asked for.

    Args:
        path: absolute.
        base: as ``fedsec.plan.sweep.sweep_base`` gives it.
        grid: the sweep.
        fresh: remove a sweep that is there first.

    Raises:
        ConfigError: it holds a sweep of another plan, or other files.
        StorageError: it cannot be written, or its ``sweep.json`` is damaged.
    """
    folder = SweepFolder(path=path)
    if fresh and (path / MARKER).exists():
        with folder.lock():
            shutil.rmtree(path)
    if (path / MARKER).exists():
        if folder._marker()["digest"] != sweep_digest(base):  # noqa: SLF001 - its own module
            raise ConfigError(
                f"the sweep in {path} was made with another plan",
                field="--out",
                mend=f"go on with its own ({folder.plan_file}), name another folder, or start anew with --fresh",
            )
        folder.save_grid(base, grid)
    elif path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path} is not an empty folder and holds no sweep", field="--out", mend="name a new or empty folder")
    else:
        _make(path, base, grid)
    return folder


def open_sweep_folder(path: Path) -> SweepFolder:
    """A sweep folder that is there.

    Raises:
        StorageError: its ``sweep.json`` is damaged.
        ConfigError: it holds no sweep.
    """
    if not (path / MARKER).exists():
        raise ConfigError(f"{path} holds no sweep", mend="make one with fedsec sweep --out DIR")
    folder = SweepFolder(path=path)
    folder.grid()
    return folder


def _make(path: Path, base: Plan, grid: SweepGrid) -> None:
    """Made under another name and renamed, so that a folder that is there is whole."""
    draft = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        (draft / "runs").mkdir(parents=True)
        atomic_write_text(draft / "plan.toml", plan_to_toml(base))
        SweepFolder(path=draft).save_grid(base, grid)
        draft.rename(path)
    except OSError as error:
        raise StorageError(f"cannot make {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
