"""Running a sweep: which points are left, a child process for each, a row for each that ends, then the report and what the audits say of the claim."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

import fedsec
from fedsec.cli.attack import FAILED_EXIT_CODE, STOPPED_EXIT_CODE
from fedsec.cli.attack_run import THREADS
from fedsec.cli.sweep_manifest import manifest_of
from fedsec.errors import ConfigError, DecodeError, StorageError
from fedsec.files import atomic_write_json
from fedsec.plan.load import plan_to_toml
from fedsec.plan.model import Plan
from fedsec.plan.sweep import INVERSION, Point, SweepGrid, overrides_of
from fedsec.plan.sweep_tasks import Task, name_of, task_keys
from fedsec.report import text
from fedsec.report.grid_progress import GridProgress
from fedsec.report.sweep_audit import audit_line, pictures_of, report_of
from fedsec.report.sweep_folder import SweepFolder, make_sweep_folder
from fedsec.report.sweep_rows import AuditRow, UtilityRow
from fedsec.results import RunResult
from fedsec.sim.children import Child, Stop, run_children

POINT = (sys.executable, "-m", "fedsec.cli.sweep_point")


@dataclass(frozen=True, kw_only=True)
class SweepOrder:
    """How to run a sweep.

    Attributes:
        folder: of the sweep, absolute.
        jobs: runs at a time.
        fresh: remove what is there first.
        as_json: print one JSON object.
        quiet: no progress.
        command: that makes this sweep.
    """

    folder: Path
    jobs: int
    fresh: bool
    as_json: bool
    quiet: bool
    command: str


def run_sweep(base: Plan, grid: SweepGrid, plans: Mapping[Point, Plan], order: SweepOrder) -> int:
    """Run what is left of a sweep and write its report; the exit code.

    Raises:
        FedsecError: nothing ran: the plan cannot run here, or the folder belongs to another. Or an audit refuted the claim.
    """
    from fedsec.cli.report import write_report

    keys = task_keys(grid, plans)
    facts = {} if _is_done(order, keys) else _check(base, grid, plans)
    opened = make_sweep_folder(order.folder, base, grid, fresh=order.fresh)
    if warning := facts.get("warning"):
        print(f"warning: {warning}", file=sys.stderr)
    stop, failures = Stop(), list[tuple[str, str]]()
    with _said_on_a_full_disk(failures), opened.lock(), stop.on_signals():
        known = {**opened.rows(), **opened.audits()}
        left = [task for task, key in keys.items() if key not in known]
        if left:
            (opened.path / "report.html").unlink(missing_ok=True)  # a page is never older than its rows
            atomic_write_json(opened.path / "manifest.json", manifest_of(opened.manifest(), facts, order.command, grid))
            failures += _run_left(opened, base, grid, plans, keys, left, order, stop)
            opened.save_failures(failures)
        report = write_report(opened.path)
    if order.as_json:
        print(json.dumps(report.to_json(), allow_nan=False))
    else:
        report.print(Console())
    report.check()
    if report.is_whole:
        return 0
    return STOPPED_EXIT_CODE if stop.asked else FAILED_EXIT_CODE


@contextlib.contextmanager
def _said_on_a_full_disk(failures: Sequence[tuple[str, str]]) -> Iterator[None]:
    """Where there is no room, say what to do, and what failed before: the list of failures may be what could not be written."""
    try:
        yield
    except StorageError as error:
        if getattr(error.__cause__, "errno", None) not in (errno.ENOSPC, errno.EDQUOT):
            raise
        for name, fault in failures:
            print(f"failed twice: {name}: {text.printable((fault.splitlines() or [''])[-1], 200)}", file=sys.stderr)
        raise StorageError(f"{error}; make room and give the same command again: it goes on, finished runs are kept") from error.__cause__


# --- Before anything is written -------------------------------------------------------------------------------------------------


def _is_done(order: SweepOrder, keys: Mapping[Task, str]) -> bool:
    folder = SweepFolder(path=order.folder)
    return not order.fresh and {*keys.values()} <= {*folder.rows(), *folder.audits()}


def _check(base: Plan, grid: SweepGrid, plans: Mapping[Point, Plan]) -> dict[str, Any]:
    """Find missing records and epsilons that no noise reaches before anything is written; also calibrates the noise, once for all seeds.

    Raises:
        ConfigError: the sweep cannot run here.
    """
    shapes: dict[tuple[float, float, float, int], Point] = {}
    for point, plan in plans.items():
        if plan.is_private:
            shapes.setdefault((plan.privacy.epsilon, plan.privacy.delta, plan.training.sample_rate, plan.total_steps), point)
    asked = {"plan": plan_to_toml(base), "points": [[str(point), list(overrides_of(base, grid, point))] for point in shapes.values()]}
    done = subprocess.run(  # noqa: S603 - our own module
        [*POINT, "check", "/dev/stdin"], input=json.dumps(asked), capture_output=True, text=True, check=False, env=_environment()
    )
    if done.returncode:
        problem = done.stderr.strip().removeprefix("error: ")
        raise ConfigError(problem[-2000:] or f"the check of the plan ended with exit code {done.returncode}")
    return dict(json.loads(done.stdout))


def _environment() -> dict[str, str]:
    return {**os.environ, **dict.fromkeys(THREADS, "1")}


# --- The runs -------------------------------------------------------------------------------------------------------------------


def _run_left(
    folder: SweepFolder,
    base: Plan,
    grid: SweepGrid,
    plans: Mapping[Point, Plan],
    keys: Mapping[Task, str],
    left: Sequence[Task],
    order: SweepOrder,
    stop: Stop,
) -> list[tuple[str, str]]:
    tasks = {name_of(task): task for task in left}

    def read(child: Child, printed: str) -> UtilityRow | AuditRow:
        task = tasks[child.name]
        return _row(task, keys[task], plans[task[1]], grid, json.loads(printed))

    failures: list[tuple[str, str]] = []
    progress = GridProgress(total=len(keys), finished=len(keys) - len(left), jobs=order.jobs, title=base.name, quiet=order.quiet)
    ends = run_children(
        [_child(folder, grid, task, keys[task], overrides_of(base, grid, task[1])) for task in left],
        jobs=order.jobs,
        read=read,
        stop=stop,
        environment=_environment(),
        on_tick=lambda running: progress.running([child.name for child in running]),
    )
    with progress, contextlib.closing(ends):
        for outcome in ends:
            if outcome.value is not None:
                row = replace(outcome.value, wall_s=round(outcome.seconds, 2))
                folder.append(row)
                said = _said(row)
            else:
                failures.append((outcome.child.name, outcome.fault))
                said = "failed"
            progress.ended(outcome.child.name, f"{outcome.child.name}: {said}", seconds=outcome.seconds, failed=outcome.value is None)
    return failures


def _row(task: Task, key: str, plan: Plan, grid: SweepGrid, printed: Any) -> UtilityRow | AuditRow:
    what, point = task
    try:
        if what == "run":
            result = RunResult.from_json(printed["result"])
            if result.plan_digest != plan.digest():
                raise DecodeError("another plan ran than the point's")
            return UtilityRow.from_result(point, key, result, printed["measured"], 0.0)
        row = AuditRow(
            key=key,
            what="plan" if what == "audit" else what,
            target=point.epsilon if what == "audit" else None,
            seed=point.seed,
            varied=dict(point.varied),
            kinds=(INVERSION,) if what == INVERSION else grid.attacks,
            report=dict(printed["report"]),
            wall_s=0.0,
            fedsec_version=fedsec.__version__,
        )
        pictures_of(row) if what == INVERSION else report_of(row)  # what is no report is a failed audit, and never a row
        return row
    except (KeyError, TypeError) as error:
        raise DecodeError(f"it printed no result: {error}") from None


def _said(row: UtilityRow | AuditRow) -> str:
    if isinstance(row, UtilityRow):
        return f"accuracy {text.percent(row.accuracy)}"
    return audit_line(row)


def _child(folder: SweepFolder, grid: SweepGrid, task: Task, key: str, overrides: Sequence[str]) -> Child:
    """The second try starts the run anew, should its folder be what is broken."""
    what, point = task
    sets = [word for override in overrides for word in ("--set", override)]
    command = [*POINT, what, str(folder.plan_file), *sets]
    if what == INVERSION:
        command = [*POINT, what, str(folder.plan_file), "--grid", json.dumps(grid.to_json())]
        return Child(name=name_of(task), command=tuple(command), again=tuple(command))
    if what != "run":
        command += ["--kinds", ",".join(grid.attacks), "--canaries", str(grid.canaries), "--shadow-models", str(grid.shadow_models)]
        return Child(name=name_of(task), command=tuple(command), again=tuple(command))
    command += ["--out", str(folder.run_folder(point, key))]
    if point.arm.noise_only:
        command += ["--noise-only", ",".join(point.arm.noise_only)]
    return Child(name=name_of(task), command=tuple(command), again=(*command, "--fresh"))
