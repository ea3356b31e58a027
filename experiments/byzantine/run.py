"""Rules under attack without privacy noise: accuracy in the worst case, FLANDERS's setting, and how many honest clients are rejected.

``python -m experiments.byzantine.run [--part n17|flanders|skew] [--seeds 3] [--jobs 1] [--json]``

A finished run is a line of ``runs/byzantine/rows.jsonl`` and is not run again. After the runs, ``results.json``, ``results.csv``, ``results.png`` and the
tables of ``docs/robustness-figures.md`` are written from those rows of the whole grid that are there. ``--tables`` writes them from ``results.json``
without running anything.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments.byzantine import tables
from experiments.byzantine.grid import PARTS, runs_of
from experiments.byzantine.rows import Rows, read_results, write_results
from experiments.byzantine.settings import Settings

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.json"
ROWS = Path("runs") / "byzantine" / "rows.jsonl"
SEEDS = 3


def execute(settings: Settings) -> dict[str, Any]:
    """One run, with one thread: a job more costs a core more, and no run slows another down."""
    import torch

    from experiments.byzantine.lab import run

    torch.set_num_threads(1)
    return run(settings)


def finished(todo: Sequence[Settings], jobs: int) -> Iterator[tuple[Settings, dict[str, Any]]]:
    """Results as they come; with one job in this process, in order."""
    if jobs == 1:
        yield from ((settings, execute(settings)) for settings in todo)
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        started = {pool.submit(execute, settings): settings for settings in todo}
        for future in as_completed(started):
            yield started[future], future.result()


def run_all(grid: Sequence[Settings], rows: Rows, *, jobs: int) -> None:
    """Run what is not there yet, with progress on stderr."""
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    todo = [settings for settings in grid if rows.find(settings) is None]
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(grid), completed=len(grid) - len(todo))
        for settings, result in finished(todo, jobs):
            rows.add(settings, result)
            text = f"{settings.part} {settings.rule} {settings.mode} {settings.column()} seed {settings.seed}"
            progress.update(task, advance=1, description=text)
            if not console.is_terminal:
                console.print(f"{text}: accuracy {result['accuracy']:.4f} in {result['seconds']:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=PARTS, help="one part of the grid; default: all")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="seeds, from 1")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON and nothing else")
    parser.add_argument("--rows", type=Path, default=ROWS, help="where finished runs are kept")
    parser.add_argument("--tables", action="store_true", help="only write tables and figure from results.json")
    arguments = parser.parse_args()
    if arguments.seeds < 1 or arguments.jobs < 1:
        parser.error("--seeds and --jobs are at least 1")
    if not arguments.tables:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        rows = Rows(arguments.rows)
        chosen = [arguments.part] if arguments.part else list(PARTS)
        run_all([settings for part in chosen for settings in runs_of(part, arguments.seeds)], rows, jobs=arguments.jobs)
        whole = [settings for part in PARTS for settings in runs_of(part, arguments.seeds)]
        write_results(RESULTS, rows.of(whole), facts(arguments.seeds))
    summary = tables.summary_of(read_results(RESULTS))
    tables.write_all(summary, HERE)
    if arguments.json:
        print(json.dumps(summary))
    else:
        Console().print(tables.page(summary), markup=False)


def facts(seeds: int) -> dict[str, Any]:
    """What the results file says beside the rows."""
    return {
        "command": f"python -m experiments.byzantine.run --seeds {seeds}",
        "environment": {
            "python": platform.python_version(),
            "platform": f"{platform.system()} {platform.machine()}",
            "cores": os.cpu_count(),
        },
    }


if __name__ == "__main__":
    main()
