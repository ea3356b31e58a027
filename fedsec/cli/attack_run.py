"""Running a grid of attacks and rules: which cells are left, a child process for each, a row for each that ends, and the report."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

import fedsec
from fedsec.cli.attack import FAILED_EXIT_CODE, STOPPED_EXIT_CODE
from fedsec.cli.attack_list import attack_notes, rule_notes
from fedsec.errors import ConfigError
from fedsec.plan.grid import GRID_FORMAT, AttackGrid, Cell, grid_digest
from fedsec.plan.load import plan_to_toml
from fedsec.plan.model import Plan
from fedsec.plan.robust import max_suspects
from fedsec.report import text
from fedsec.report.attack_folder import GridFolder, open_grid_folder
from fedsec.report.attack_page import PageFacts, write_attack_page
from fedsec.report.attack_rows import CellRow
from fedsec.report.attack_summary import Figure, Summary, summarise
from fedsec.report.attack_words import sentences
from fedsec.report.grid_progress import GridProgress
from fedsec.report.heatmap import columns_of, plot_heat_map, write_cells_csv, write_heat_map_csv
from fedsec.report.tables import print_encodable
from fedsec.results import RunResult
from fedsec.sim.attacks.catalogue import attackers
from fedsec.sim.children import Child, Stop, run_children

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
SIMULATE = (sys.executable, "-m", "fedsec", "simulate")
Failures = list[tuple[Cell, str]]


def run_grid(
    base: Plan,
    grid: AttackGrid,
    plans: Mapping[Cell, Plan],
    *,
    folder: Path,
    jobs: int,
    command: str,
    as_json: bool,
    quiet: bool,
) -> int:
    """Run what is left of a grid and write its report; the exit code.

    Raises:
        FedsecError: nothing ran: the plan cannot run here, or the folder belongs to another.
    """
    _refuse_same_crews(base, grid)
    keys = {cell: plan.digest() for cell, plan in plans.items()}
    if not (folder / "grid.json").exists():
        _try_plan(base)
    opened = open_grid_folder(folder, base)
    stop, failures = Stop(), []
    with opened.lock(), stop.on_signals():
        before = opened.rows()
        left = [cell for cell in plans if keys[cell] not in before]
        if left:
            failures = _run_left(opened, keys, left, title=base.name, total=len(plans), jobs=jobs, stop=stop, quiet=quiet)
        rows = opened.rows()
        summary = summarise(grid, (rows[key] for key in keys.values() if key in rows))
        facts = PageFacts(
            plan=base, command=command, failures=failures, attack_notes=attack_notes(grid.attacks), rule_notes=rule_notes(grid.rules)
        )
        _write_report(opened, summary, facts)
    if as_json:
        print(json.dumps(_as_json(opened, base, summary, failures), allow_nan=False))
    else:
        _print_summary(opened, summary, failures, max_suspects(base, base.federation.num_clients), Console())
    if failures:
        _print_failures(failures, Console(stderr=True))
    if not summary.missing:
        return 0
    return STOPPED_EXIT_CODE if stop.asked else FAILED_EXIT_CODE


def _refuse_same_crews(base: Plan, grid: AttackGrid) -> None:
    crews: dict[int, float] = {}
    for fraction in grid.fractions:
        count = len(attackers(base.federation.num_clients, fraction, base.federation.seed))
        if count in crews:
            raise ConfigError(
                f"{crews[count]:g} and {fraction:g} of {base.federation.num_clients} clients are both {text.counted(count, 'attacker')}",
                field="--fractions",
                mend="leave one out",
            )
        crews[count] = fraction


def _try_plan(base: Plan) -> None:
    """Find missing records and an impossible privacy target before anything is written; this also calibrates the noise, once for all cells.

    Raises:
        FedsecError: the plan cannot run here.
    """
    from fedsec.data.federated import federated_data

    federated_data(base.data, num_clients=base.federation.num_clients, seed=base.federation.seed)
    checked = subprocess.run(
        [sys.executable, "-m", "fedsec", "plan", "check", "/dev/stdin", "--json"],
        input=plan_to_toml(base),
        capture_output=True,
        text=True,
        check=False,
    )
    if checked.returncode:
        problem = checked.stderr.strip().removeprefix("error: ").removeprefix("/dev/stdin: ")
        raise ConfigError(problem or f"the plan check ended with exit code {checked.returncode}")


# --- The runs -------------------------------------------------------------------------------------------------------------------


def _run_left(
    folder: GridFolder, keys: Mapping[Cell, str], left: Sequence[Cell], *, title: str, total: int, jobs: int, stop: Stop, quiet: bool
) -> Failures:
    cells = {str(cell): cell for cell in left}

    def read(child: Child, printed: str) -> CellRow:
        cell = cells[child.name]
        return CellRow.from_result(cell, keys[cell], RunResult.from_json(json.loads(printed)))

    failures: Failures = []
    progress = GridProgress(total=total, finished=total - len(left), jobs=jobs, title=title, quiet=quiet)
    ends = run_children(
        [_child(folder, cell, keys[cell]) for cell in left],
        jobs=jobs,
        read=read,
        stop=stop,
        environment={**os.environ, **dict.fromkeys(THREADS, "1")},
        on_tick=lambda running: progress.running([child.name for child in running]),
    )
    with progress, contextlib.closing(ends):
        for outcome in ends:
            if outcome.value is not None:
                folder.append(replace(outcome.value, wall_s=round(outcome.seconds, 2)))
                said = f"accuracy {text.percent(outcome.value.accuracy)}"
            else:
                failures.append((cells[outcome.child.name], outcome.fault))
                said = "failed"
            progress.ended(outcome.child.name, f"{outcome.child.name}: {said}", seconds=outcome.seconds, failed=outcome.value is None)
    return failures


def _child(folder: GridFolder, cell: Cell, key: str) -> Child:
    """A ``fedsec simulate`` as a user would start it; the second try starts the run anew, should its folder be what is broken."""
    sets = [word for override in cell.overrides() for word in ("--set", override)]
    out = folder.run_folder(cell, key)
    command = (*SIMULATE, str(folder.plan_file), *sets, "--out", str(out))
    tail = ("--json", "--quiet", "--workers", "1")
    return Child(name=str(cell), command=(*command, "--resume", *tail), again=(*command, "--fresh", *tail))


# --- The report -----------------------------------------------------------------------------------------------------------------


def _write_report(folder: GridFolder, summary: Summary, facts: PageFacts) -> None:
    write_cells_csv(summary, folder.path / "cells.csv")
    write_heat_map_csv(summary, folder.path / "heatmap.csv")
    plot_heat_map(summary, folder.path / "heatmap.png", title=f"Accuracy under attack: {facts.plan.name}")
    write_attack_page(summary, facts, folder.path / "attack.html")


def _as_json(folder: GridFolder, base: Plan, summary: Summary, failures: Failures) -> dict[str, Any]:
    return {
        "format": GRID_FORMAT,
        "fedsec_version": fedsec.__version__,
        "plan_name": base.name,
        "plan_digest": grid_digest(base),
        "complete": not summary.missing,
        "num_cells": len(summary.grid.cells()),
        "no_attack": {rule: _figure_json(summary.no_attack(rule)) for rule in summary.grid.rules},
        "worst": {rule: _figure_json(summary.worst(rule)) for rule in summary.grid.rules},
        "cells": [row.to_json() for row in summary.rows],
        "missing": [asdict(cell) for cell in summary.missing],
        "failed": [{"cell": asdict(cell), "fault": text.printable(fault)} for cell, fault in failures],
        "page": str(folder.path / "attack.html"),
    }


def _figure_json(figure: Figure | None) -> dict[str, Any] | None:
    if figure is None:
        return None
    facts = {"attack": figure.attack, "fraction": figure.fraction, "num_seeds": len(figure.rows), "missing": figure.missing}
    return {"accuracy": figure.accuracy, "half_width_95": figure.half_width, **facts}


def _print_summary(folder: GridFolder, summary: Summary, failures: Failures, most_suspects: int, console: Console) -> None:
    table = Table(header_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("rule", overflow="fold")
    columns = columns_of(summary)
    for name, _ in columns:
        table.add_column(name, justify="right", overflow="fold")
    for rule in summary.grid.rules:
        table.add_row(rule, *(_shown(column[rule]) for _, column in columns))
    print_encodable(table, console)
    for sentence in sentences(summary, failed=len(failures), most_suspects=most_suspects):
        print_encodable(Text(sentence), console)
    print_encodable(Text(f"page: {text.printable(str(folder.path / 'attack.html'))}"), console)


def _shown(figure: Figure | None) -> str:
    if figure is None:
        return "missing"
    spread = f" ± {100 * figure.half_width:.1f}" if figure.half_width is not None else ""
    return f"{text.percent(figure.accuracy)}{spread}{'*' if figure.missing else ''}"


def _print_failures(failures: Failures, console: Console) -> None:
    table = Table(
        header_style="bold", box=SIMPLE_HEAD, pad_edge=False, title="failed twice; the same command tries again", title_justify="left"
    )
    table.add_column("run", overflow="fold")
    table.add_column("why", overflow="fold")
    for cell, fault in failures:
        lines = fault.splitlines() or [""]
        last = lines[-1] if len(lines) == 1 else f"{lines[0]} … {lines[-1]}"
        table.add_row(str(cell), Text(text.printable(last, 300)))
    print_encodable(table, console)
