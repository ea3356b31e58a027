"""Robust aggregation beside ByzFL's and Flower's own implementations, on the same arrays in one process; and its peak memory.

Measured: CPU time of the process, one thread each (BLAS, torch, our lanes), in turns; of ``--rounds`` turns the best counts. A way that takes
over ``PATIENCE_S`` has one turn. Results are compared, too: the largest difference of an entry, in standard deviations of the entries of
honest updates. Rules that take the entries nearest to a median may take either of two that are equally near within float32; for these the
largest difference but for one entry in 100,000.

Input: n updates of d entries in float32, a common direction plus noise of deviation 1 for each; every fifth client sends -3 times the
direction, plus noise.

Peers: ByzFL on torch tensors over the same memory (what its own training loop passes), ByzFL on the numpy array, Flower on n arrays of
one layer. Where definitions differ, see ``experiments.bench.robust_rules``. Rules that no peer has count for memory only.

``python -m experiments.bench.robust [--json] [--rounds N] [--sizes 100x100000 50x1000000] [--only RULE ...] [--byzfl FOLDER] [--without-byzfl]
[--save]``
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from experiments.bench.robust_rules import BYZFL, OURS, byzfl_rules, default_folder, flower_rules
from experiments.bench.table import Row, parser, show
from fedsec.robust.gram import gram_matrix

SIZES = ("100x100000", "50x1000000")
PATIENCE_S = 20.0
AGREEMENT = 1e-5
NEAREST_TO_MEDIAN = ("MeaMed", "Bulyan")
TIES = 1e-5
ROUNDING = 2.0**-24
MEMORY = 2.0
HERE = Path(__file__).parent
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
FLOWER, TORCH, NUMPY = "Flower", "ByzFL, torch", "ByzFL, numpy"


@dataclass(frozen=True, kw_only=True)
class Way:
    """One implementation of one rule.

    Attributes:
        peer: whose; empty for ours.
        run: on its input.
        prepare: makes the input, outside the time.
    """

    peer: str
    run: Callable[[Any], Any]
    prepare: Callable[[], Any]


def updates_of(count: int, dimension: int) -> np.ndarray:
    """The input; see the module."""
    rng = np.random.default_rng(7)
    updates = rng.standard_normal((count, dimension), dtype=np.float32)
    direction = rng.standard_normal(dimension, dtype=np.float32)
    for client in range(count):
        updates[client] += direction * np.float32(-3.0 if client % 5 == 0 else 1.0)
    return updates


def ways_of(updates: np.ndarray, f: int, folder: Path | None) -> dict[str, list[Way]]:
    """Rule → ours first, then the peers that have it."""
    flower, tensor = flower_rules(), torch.from_numpy(updates)
    byzfl = byzfl_rules(folder, gram_matrix(updates), f) if folder else {}
    ways = {}
    for rule, ours in OURS.items():
        ways[rule] = [Way(peer="", run=lambda x, ours=ours: ours(x, f), prepare=lambda: updates)]
        if rule in byzfl:
            own = rule.startswith("ARC")  # ByzFL's ARC writes into what it is given
            ways[rule].append(Way(peer=TORCH, run=byzfl[rule], prepare=tensor.clone if own else lambda: tensor))
            ways[rule].append(Way(peer=NUMPY, run=byzfl[rule], prepare=updates.copy if own else lambda: updates))
        if rule in flower:
            ways[rule].append(Way(peer=FLOWER, run=lambda x, rule=rule: flower[rule](x, f), prepare=lambda: updates))
    return ways


def timed(way: Way) -> tuple[float, np.ndarray]:
    """CPU time in s, and the result."""
    given = way.prepare()
    start = time.process_time()
    result = way.run(given)
    return time.process_time() - start, np.asarray(result, dtype=np.float64)


def measure_rule(rule: str, ways: list[Way], size: str, rounds: int) -> Iterator[Row]:
    """A row of time for each peer, and one for the largest difference from any of them."""
    best: dict[str, float] = {}
    results: dict[str, np.ndarray] = {}
    for turn in range(rounds):
        for way in ways:
            if turn and best[way.peer] > PATIENCE_S:
                continue
            spent, results[way.peer] = timed(way)
            best[way.peer] = min(best.get(way.peer, spent), spent)
    for peer in [way.peer for way in ways[1:]]:
        yield Row(what=f"{rule}, {size}", ours=best[""] * 1e3, peer=best[peer] * 1e3, peer_name=peer, unit="ms CPU")
    for peer in [way.peer for way in ways[1:]]:
        apart = difference(rule, results[""], results[peer])
        yield Row(what=f"{rule}, {size}: difference from {peer}", ours=apart, peer=AGREEMENT, peer_name="limit", unit="deviations")


def difference(rule: str, ours: np.ndarray, theirs: np.ndarray) -> float:
    """Of the results of a rule, see the module; not below the rounding of float32."""
    apart = np.sort(np.abs(ours - theirs))
    return max(ROUNDING, float(apart[-1 - (int(TIES * len(apart)) if rule in NEAREST_TO_MEDIAN else 0)]))


def measure_memory(rules: list[str], size: str) -> Row:
    """Largest peak of a rule in a process of its own, input included, over the input; for one array and for a list of vectors."""
    peaks = []
    for rule in rules:
        for form in ((), ("rows",)):
            command = [sys.executable, "-m", "experiments.bench.robust_memory", rule, *size.split("x"), *form]
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | ONE_THREAD)
            peaks.append((float(done.stdout), f"{rule}, {'list of vectors' if form else 'one array'}"))
    peak, name = max(peaks)
    return Row(what=f"peak memory, {size}, worst of {len(peaks)} ({name})", ours=peak, peer=MEMORY, peer_name="limit", unit="x input")


def measure(sizes: list[str], only: list[str], rounds: int, folder: Path | None) -> list[Row]:
    rows: list[Row] = []
    rules = [rule for rule in OURS if not only or rule in only]
    for size in sizes:
        count, dimension = map(int, size.split("x"))
        with threadpool_limits(limits=1):
            ways = ways_of(updates_of(count, dimension), count // 5, folder)
            for rule in rules:
                if len(ways[rule]) > 1:
                    rows += measure_rule(rule, ways[rule], f"n={count} d={dimension}", rounds)
                    print(*rows[2 - 2 * len(ways[rule]) :], sep="\n", file=sys.stderr)
        del ways
        rows.append(measure_memory(rules, size))
    return rows


def save(rows: list[Row]) -> None:
    """Write ``robust_results.json`` beside this script."""
    about = {
        "processor": platform.processor() or platform.machine(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "peer": BYZFL,
        "threads": 1,
    }
    text = json.dumps({"about": about, "rows": [asdict(row) | {"ratio": row.ratio} for row in rows]}, indent=1)
    (HERE / "robust_results.json").write_text(text + "\n", encoding="utf-8")


def main() -> None:
    arguments_of = parser(__doc__)
    arguments_of.add_argument("--rounds", type=int, default=3, help="turns of each way; the best counts (default: 3)")
    arguments_of.add_argument("--sizes", nargs="+", default=list(SIZES), help=f"clients x dimension (default: {' '.join(SIZES)})")
    arguments_of.add_argument("--only", nargs="+", default=[], choices=list(OURS), help="rules (default: all)")
    arguments_of.add_argument("--byzfl", type=Path, default=default_folder(), help="folder with ByzFL; installed there if it is not")
    arguments_of.add_argument("--without-byzfl", action="store_true", help="leave ByzFL out: nothing is installed")
    arguments_of.add_argument("--save", action="store_true", help="write robust_results.json beside this script")
    arguments = arguments_of.parse_args()
    torch.set_num_threads(1)
    rows = measure(arguments.sizes, arguments.only, arguments.rounds, None if arguments.without_byzfl else arguments.byzfl)
    if arguments.save:
        save(rows)
    show("Robust aggregation, one thread", rows, as_json=arguments.json)


if __name__ == "__main__":
    main()
