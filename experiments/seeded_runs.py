"""Runs of one plan over seeds and settings: real ``fedsec simulate`` runs, resumable, one file of results.

1. Each run is a process of its own, started as a user would start it; its result is what ``--json`` prints.
2. A finished run is known by arm, seed and plan digest. Asked for again it is not run again; a run that was killed goes on.
3. The results file is replaced whole after each run, so it is never half written and a long series may be stopped at any time.
4. Intervals are Student's t over seeds: they say how much the result moves with the seed, and nothing about other data.
"""

from __future__ import annotations

import json
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fedsec.errors import FedsecError, StorageError
from fedsec.files import atomic_write_json, atomic_write_text
from fedsec.plan.load import load_plan
from fedsec.results import RunResult

FORMAT = "fedsec/experiment/v1"
ROOT = Path(__file__).resolve().parent.parent
NO_PRIVACY = ("privacy.unit=none", "privacy.epsilon=inf")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run.

    Attributes:
        arm: name of the setting; all seeds of an arm differ in the seed only.
        seed: of the federation.
        plan: plan file; None for the default plan.
        overrides: ``section.key=value``, without the seed.
    """

    arm: str
    seed: int
    plan: Path | None
    overrides: tuple[str, ...] = ()

    def all_overrides(self) -> tuple[str, ...]:
        """The arm's overrides and the seed."""
        return (*self.overrides, f"federation.seed={self.seed}")

    def digest(self) -> str:
        """Of the plan as it will run."""
        return load_plan(self.plan, overrides=self.all_overrides()).digest()

    def command(self, out: Path | str, workers: int | None = None) -> list[str]:
        """Arguments after ``python``."""
        plan = [str(self.plan)] if self.plan is not None else []
        sets = [argument for override in self.all_overrides() for argument in ("--set", override)]
        count = ["--workers", str(workers)] if workers is not None else []
        return ["-m", "fedsec", "simulate", *plan, *sets, "--out", str(out), "--resume", "--json", "--quiet", *count]

    def shown(self) -> str:
        """The command for readers: run from the repository's root, with nothing of this machine in it."""
        return shlex.join(["python", *self.command("RUN")]).replace(f"{ROOT}/", "")


def privacy_overrides(epsilon: float) -> tuple[str, ...]:
    """Overrides for a target epsilon; infinity switches privacy off."""
    return NO_PRIVACY if epsilon == float("inf") else (f"privacy.epsilon={float(epsilon)!r}",)


def run_job(job: Job, runs: Path, *, workers: int | None = None) -> dict[str, Any]:
    """Run one job in a process of its own, or go on with it, and return its row for the results file.

    Raises:
        FedsecError: the run failed; its own words are in the message.
    """
    digest = job.digest()
    out = runs / f"{job.arm}-seed{job.seed}-{digest[:8]}"
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *job.command(out, workers)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise FedsecError(f"{job.arm}, seed {job.seed} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    result = RunResult.from_json(json.loads(done.stdout))
    return {
        "arm": job.arm,
        "seed": job.seed,
        "plan_digest": digest,
        "command": job.shown(),
        "wall_s": round(time.perf_counter() - started, 2),
        "result": _trimmed(result),
    }


def _trimmed(result: RunResult) -> dict[str, Any]:
    """A result without its rounds and without this machine's folders."""
    dropped = ("rows", "run_dir", "format", "run_id")
    return {key: value for key, value in result.to_json().items() if key not in dropped}


class ResultsFile:
    """The rows of an experiment, on disk after each one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                if content["format"] != FORMAT:
                    raise ValueError(f"format {content['format']!r}")
                self.rows = list(content["rows"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise StorageError(f"{path} is not a results file: {error}; remove it to start anew") from None

    def find(self, job: Job) -> dict[str, Any] | None:
        """The row of a job that was run with this very plan."""
        key = (job.arm, job.seed, job.digest())
        return next((row for row in self.rows if (row["arm"], row["seed"], row["plan_digest"]) == key), None)

    def add(self, row: dict[str, Any]) -> None:
        """Put a row in the place of an older one of the same arm and seed."""
        self.rows = [old for old in self.rows if (old["arm"], old["seed"]) != (row["arm"], row["seed"])] + [row]

    def save(self, facts: dict[str, Any]) -> None:
        """Write everything, atomically."""
        environment = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
        atomic_write_json(self.path, {"format": FORMAT, "environment": environment, **facts, "rows": self.rows})


def run_all(
    jobs: Sequence[Job],
    file: ResultsFile,
    facts: dict[str, Any],
    *,
    accuracy: Callable[[dict[str, Any]], float],
    runs: Path,
    workers: int | None,
) -> list[dict[str, Any]]:
    """All jobs in order, with progress on stderr; rows of finished ones are taken from the file.

    Args:
        jobs: what to run.
        file: where rows are kept.
        facts: written beside the rows.
        accuracy: a row's figure of merit, for the progress lines.
        runs: folder of the run folders.
        workers: processes of a run; None for one per core.

    Returns:
        one row a job, in the order of ``jobs``. The file holds these rows and no others.
    """
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    rows = []
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(jobs))
        for job in jobs:
            progress.update(task, description=f"{job.arm}, seed {job.seed}")
            row = file.find(job)
            if row is None:
                row = run_job(job, runs, workers=workers)
                file.add(row)
                file.save(facts)
                console.print(f"{job.arm}, seed {job.seed}: accuracy {accuracy(row):.4f} in {row['wall_s']:.1f} s")
            rows.append(row)
            progress.advance(task)
    file.rows = rows
    file.save(facts)
    return rows


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Mean over seeds and the half width of its 95 % interval."""

    mean: float
    half_width: float | None

    def __str__(self) -> str:
        spread = f" ± {self.half_width:.3f}" if self.half_width is not None else ""
        return f"{self.mean:.3f}{spread}"


def student_interval(values: Sequence[float], *, level: float = 0.95) -> Interval:
    """Mean and half width by Student's t; no width from one value.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("no values")
    if len(values) == 1:
        return Interval(mean=values[0], half_width=None)
    from scipy.stats import t

    quantile = float(t.ppf(0.5 + level / 2.0, len(values) - 1))
    return Interval(mean=statistics.fmean(values), half_width=quantile * statistics.stdev(values) / len(values) ** 0.5)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, first column to the left, the others to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))


def replace_block(path: Path, table: str) -> None:
    """Put a table between the two marker lines of a page.

    Raises:
        StorageError: the page has no markers.
    """
    text = path.read_text(encoding="utf-8")
    head, begin, rest = text.partition("<!-- results -->\n")
    _, end, tail = rest.partition("\n<!-- /results -->")
    if not begin or not end:
        raise StorageError(f"{path.name} has no results block")
    atomic_write_text(path, f"{head}{begin}{table}{end}{tail}")
