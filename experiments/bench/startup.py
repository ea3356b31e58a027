"""How long ``--help`` takes: ours against Flower's, each in a fresh process, in turn; the median of each counts.

``python -m experiments.bench.startup [--json] [--rounds N]``
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from experiments.bench.table import Row, parser, show

LIMIT_S = 0.4


def seconds(program: str) -> float:
    """Wall time of one ``program --help``."""
    path = Path(sys.executable).parent / program
    environment = {**os.environ, "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    started = time.perf_counter()
    subprocess.run([str(path), "--help"], check=True, capture_output=True, env=environment)
    return time.perf_counter() - started


def measure(rounds: int) -> list[Row]:
    """One warm-up, then ``rounds`` of each in turn."""
    times: dict[str, list[float]] = {"fedsec": [], "flwr": []}
    for number in range(rounds + 1):
        for program, taken in times.items():
            value = seconds(program)
            if number:
                taken.append(value)
    ours, flower = (statistics.median(times[program]) for program in ("fedsec", "flwr"))
    return [
        Row(what="--help", ours=ours, peer=flower, peer_name="flwr --help", unit="s"),
        Row(what="--help against its limit", ours=ours, peer=LIMIT_S, peer_name="limit", unit="s"),
    ]


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--rounds", type=int, default=7)
    arguments = made.parse_args()
    show("Time to answer --help", measure(arguments.rounds), as_json=arguments.json)


if __name__ == "__main__":
    main()
