"""Peak memory of one rule, input included, as a multiple of the input: one number on standard output.

Runs by itself, so that the peak of the process is the rule's. What the process held before the input came (interpreter, numpy, BLAS after a
first small run) is set aside.

``python -m experiments.bench.robust_memory RULE CLIENTS DIMENSION [rows]``; with ``rows`` the input is a list of vectors, else one array.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from experiments.bench.robust_rules import OURS
from fedsec.robust.gram import Updates


def peak_bytes() -> int:
    """Of this program alone; what ``getrusage`` says may be the parent's peak."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this system does not say how much memory was used at most")


def updates_of(count: int, dimension: int, *, rows: bool) -> Updates:
    rng = np.random.default_rng(1)
    if rows:
        return [rng.standard_normal(dimension, dtype=np.float32) for _ in range(count)]
    return rng.standard_normal((count, dimension), dtype=np.float32)


def main() -> None:
    rule, count, dimension, rows = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:] == ["rows"]
    OURS[rule](updates_of(count, 2_000, rows=rows), count // 5)
    before = peak_bytes()
    updates = updates_of(count, dimension, rows=rows)
    OURS[rule](updates, count // 5)
    print((peak_bytes() - before) / (4 * count * dimension))


if __name__ == "__main__":
    main()
