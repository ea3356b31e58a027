"""Random liars against an honest server, many times: is an honest member ever named, or a wrong sum ever used?

One run is one round of 5 to 8 members with up to c colluding liars, honest members that drop out at random, and a rule that rejects somebody at
random. A liar lies at random in all it sends: keys, boxes, shares, tags, upload, sketch, consent, released shares, edge values; or it is
silent; or it makes its own equation true by moving a lie to one of its edges. ``tests/secagg/hostile.py`` has them all, and the checks: a run
that breaks what the design says raises, and is listed here with its seed.

``python -m experiments.secagg_soak.run [--runs N] [--seed N] [--processes N] [--json]``; needs the repository, not only the package.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
HOSTILE = HERE.parents[1] / "tests" / "secagg" / "hostile.py"
ROWS = 32
DIMENSION = 40
BATCH = 50
RUNS = 10_000


def hostile() -> ModuleType:
    """The module with the liars."""
    name = "fedsec_tests_secagg_hostile"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, HOSTILE)
        if spec is None or spec.loader is None:
            raise FileNotFoundError(HOSTILE)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def batch(first: int, count: int) -> dict[str, Any]:
    """What became of ``count`` runs from seed ``first`` on."""
    liars = hostile()
    ends: Counter[str] = Counter()
    lies: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    broken: list[str] = []
    members = {"lying": 0, "honest": 0, "named": 0}
    refused = 0
    for seed in range(first, first + count):
        try:
            outcome = liars.soak(seed, num_rows=ROWS, dimension=DIMENSION)
        except Exception as error:  # noqa: BLE001 - whatever is thrown is a finding, with its seed
            broken.append(f"seed {seed}: {type(error).__name__}: {error}")
            continue
        ends[outcome.end] += 1
        lies.update(outcome.lies)
        sizes[str(outcome.num_clients)] += 1
        refused += outcome.refused
        members["lying"] += len(outcome.liars)
        members["honest"] += outcome.num_clients - len(outcome.liars)
        members["named"] += len(outcome.named)
    return {"ends": ends, "lies": lies, "sizes": sizes, "broken": broken, "members": members, "refused": refused}


def run(runs: int, seed: int, processes: int, *, quiet: bool = False) -> dict[str, Any]:
    """All runs, in batches over processes."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    starts = range(seed, seed + runs, BATCH)
    counts = [min(BATCH, seed + runs - start) for start in starts]
    totals: dict[str, Any] = {"ends": Counter(), "lies": Counter(), "sizes": Counter(), "members": Counter(), "refused": 0, "broken": []}
    began = time.monotonic()
    columns = (TextColumn("rounds with liars"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress, ProcessPoolExecutor(processes) as pool:
        task = progress.add_task("0 broken", total=runs)
        for done, count in zip(pool.map(batch, starts, counts), counts, strict=True):
            for name, value in done.items():
                if isinstance(value, dict):
                    totals[name].update(value)
                else:
                    totals[name] += value
            progress.update(task, advance=count, description=f"{len(totals['broken'])} broken")
    return {
        "runs": runs,
        "seed": seed,
        "rows": ROWS,
        "dimension": DIMENSION,
        "processes": processes,
        "seconds": round(time.monotonic() - began, 1),
        "broken": totals["broken"],
        "honest_named": sum("honest member" in text and "named" in text for text in totals["broken"]),
        "wrong_sums_used": sum("sum was used" in text for text in totals["broken"]),
        "ends": dict(totals["ends"].most_common()),
        "members": dict(totals["members"]),
        "refused_messages": totals["refused"],
        "cohort_sizes": dict(sorted(totals["sizes"].items())),
        "lies": dict(sorted(totals["lies"].items())),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Random liars against an honest server.")
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--seed", type=int, default=0, help="of the first run; the others follow")
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--json", action="store_true", help="print the results as JSON, and nothing else")
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}")
    asked = parser.parse_args()
    results = run(asked.runs, asked.seed, asked.processes, quiet=asked.json)
    text = json.dumps(results, indent=2)
    if asked.save:
        RESULTS.write_text(text + "\n", encoding="utf-8")
    if asked.json:
        print(text)
    else:
        show(results)
    return 1 if results["broken"] else 0


def show(results: dict[str, Any]) -> None:
    """The results for people."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title=f"{results['runs']} rounds with liars, {results['seconds']} s")
    table.add_column("how it ended")
    table.add_column("rounds", justify="right")
    for end, count in results["ends"].items():
        table.add_row(end, str(count))
    console.print(table)
    members = results["members"]
    console.print(
        f"{members['lying']} liars, {members['named']} of them named; {members['honest']} honest members, {results['honest_named']} of them named"
    )
    console.print(f"wrong sums used: {results['wrong_sums_used']}; broken: {len(results['broken'])}")
    for text in results["broken"]:
        console.print(text)


if __name__ == "__main__":
    raise SystemExit(main())
