"""How every benchmark shows its rows: a table for people, or exactly one JSON object for scripts."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement of ours beside a peer's, both from this run.

    Attributes:
        what: the work measured.
        ours: our figure.
        peer: the peer's, or the limit that ours is held against.
        peer_name: who or what the peer is.
        unit: of both figures.
    """

    what: str
    ours: float
    peer: float
    peer_name: str
    unit: str

    @property
    def ratio(self) -> float:
        """Peer over ours."""
        return self.peer / self.ours if self.ours else float("inf")


def parser(description: str) -> argparse.ArgumentParser:
    """An argument parser with the ``--json`` that all benchmarks have."""
    made = argparse.ArgumentParser(description=description.splitlines()[0])
    made.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    return made


def show(title: str, rows: Sequence[Row], *, as_json: bool) -> None:
    """Print the rows."""
    if as_json:
        print(json.dumps({"rows": [asdict(row) | {"ratio": row.ratio} for row in rows]}))
        return
    table = Table(title=f"{title}; ratio over 1: ours is better")
    for heading in ("what", "ours", "peer", "unit", "peer is", "ratio"):
        table.add_column(heading, justify="left" if heading in ("what", "unit", "peer is") else "right")
    for row in rows:
        table.add_row(row.what, f"{row.ours:.4g}", f"{row.peer:.4g}", row.unit, row.peer_name, f"{row.ratio:.3g}x")
    Console().print(table)
