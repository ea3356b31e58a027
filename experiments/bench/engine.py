"""What an engine costs: ours in one process against Flower's Simulation Engine on Ray, with clients that do nothing but answer.

Every measurement runs in a fresh process; time starts after the imports (see ``experiments.bench.engine_case``, also for memory). Peers:
Flower's own ``run_simulation`` with one core a client, and our ``run_ray`` around the same engine. The last rows are whole
``fedsec simulate`` commands on the default plan, imports and all. Figures of ours are medians of ``--repeats`` runs; Ray runs once.

``python -m experiments.bench.engine [--json] [--repeats N] [--only WORDS]``
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.bench.table import Row, parser, show

SMALL = 1000
LARGE = 1_000_000
LARGE_NODES, LARGE_ROUNDS = 10, 3
FLOWER, OWN_RAY = "Flower run_simulation on Ray", "fedsec run_ray"
MEBIBYTE = 2**20
DIGITS = ("federation.num_clients=20", "federation.rounds=10", "secagg.enabled=false")
COMMAND_TIMEOUT_S = 600


def environment() -> dict[str, str]:
    """Of every process: nothing is sent anywhere, one numeric thread each, for our engine as for its peer."""
    return {
        **os.environ,
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }


def run_command(command: list[str]) -> Any:
    """Run a command that prints one JSON object, and return it.

    Raises:
        RuntimeError: it failed; holds the end of what it said.
    """
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment(), timeout=COMMAND_TIMEOUT_S)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[-6:])} failed with status {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def case(engine: str, nodes: int, rounds: int, size: int, *, memory: bool = False, repeats: int = 1) -> float:
    """Seconds of one run, or bytes with ``memory``: the median of ``repeats`` processes."""
    start = "from experiments.bench.engine_case import main; main()"
    command = [sys.executable, "-W", "ignore", "-c", start, engine, str(nodes), str(rounds), str(size), *(["--memory"] if memory else [])]
    return statistics.median(float(next(iter(run_command(command).values()))) for _ in range(repeats))


def time_rows(repeats: int) -> list[Row]:
    """Trivial clients, small messages."""
    rows = []
    for nodes, rounds in ((20, 5), (100, 1)):
        what = f"{nodes} clients x {rounds} round{'s' if rounds > 1 else ''}, 1k float32"
        ours = case("local", nodes, rounds, SMALL, repeats=repeats)
        rows += [
            Row(what=what, ours=ours, peer=case(engine, nodes, rounds, SMALL), peer_name=name, unit="s")
            for engine, name in (("flower", FLOWER), ("ray", OWN_RAY))
        ]
    ours = case("local", 1000, 1, SMALL, repeats=repeats)
    return [*rows, Row(what="1000 clients x 1 round, 1k float32", ours=ours, peer=2.0, peer_name="limit", unit="s")]


def memory_rows(repeats: int) -> list[Row]:
    """Peak memory of all processes above the imports."""
    rows = []
    for nodes, rounds in ((20, 5), (100, 1), (1000, 1)):
        ours = case("local", nodes, rounds, SMALL, memory=True, repeats=repeats) / MEBIBYTE
        rows.append(Row(what=f"memory above imports, {nodes} clients", ours=ours, peer=200.0, peer_name="limit", unit="MiB PSS"))
        if nodes == 20:
            peer = case("flower", nodes, rounds, SMALL, memory=True) / MEBIBYTE
            rows.append(Row(what=f"memory above imports, {nodes} clients", ours=ours, peer=peer, peer_name=FLOWER, unit="MiB PSS"))
    return rows


def large_rows(repeats: int) -> list[Row]:
    """One million float32 there and back; start-up is taken out by a run of one round less."""

    def per_message(engine: str, times: int) -> float:
        longer, shorter = (case(engine, LARGE_NODES, rounds, LARGE, repeats=times) for rounds in (LARGE_ROUNDS, 1))
        return (longer - shorter) / (LARGE_NODES * (LARGE_ROUNDS - 1)) * 1000

    ours = per_message("local", repeats)
    what = "1M float32 to a client and back, per message"
    return [
        Row(what=what, ours=ours, peer=20.0, peer_name="limit", unit="ms"),
        Row(what=what, ours=ours, peer=per_message("flower", 1), peer_name=FLOWER, unit="ms"),
    ]


def digits_rows(repeats: int) -> list[Row]:
    """The default plan from the command line: the whole command, and what its result says of the run inside it."""
    walls: dict[str, list[float]] = {"local": [], "ray": []}
    inside: dict[str, list[float]] = {"local": [], "ray": []}
    for engine, times in (("local", repeats), ("ray", 1)):
        for _ in range(times):
            with tempfile.TemporaryDirectory() as folder:
                settings = [part for override in DIGITS for part in ("--set", override)]
                command = [
                    sys.executable,
                    "-m",
                    "fedsec",
                    "simulate",
                    *settings,
                    "--engine",
                    engine,
                    "--out",
                    str(Path(folder) / "run"),
                    "--json",
                ]
                started = time.perf_counter()
                result = run_command(command)
                walls[engine].append(time.perf_counter() - started)
                inside[engine].append(float(result["duration_s"]))
    what = "digits, DP-SGD, 20 clients x 10 rounds"
    return [
        Row(what=f"{what}: {part}", ours=statistics.median(taken["local"]), peer=taken["ray"][0], peer_name="--engine ray", unit="s")
        for part, taken in (("whole command", walls), ("duration_s", inside))
    ]


PARTS: dict[str, Callable[[int], list[Row]]] = {"time": time_rows, "memory": memory_rows, "large": large_rows, "digits": digits_rows}


def main() -> None:
    """Measure and show."""
    made = parser(__doc__ or "")
    made.add_argument("--repeats", type=int, default=5, help="runs of our engine for each figure (default: 5)")
    made.add_argument("--only", choices=tuple(PARTS), nargs="+", default=list(PARTS), help="parts to measure (default: all)")
    arguments = made.parse_args()
    if arguments.repeats < 1:
        made.error("--repeats must be at least 1")
    rows = [row for name in arguments.only for row in PARTS[name](arguments.repeats)]
    show("Engines", rows, as_json=arguments.json)


if __name__ == "__main__":
    main()
