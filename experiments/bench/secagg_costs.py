"""The table of costs of simulated rounds: as CSV, as JSON, and as a figure."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl

from experiments.bench.secagg_simulation import RoundCost
from fedsec.files import atomic_write_bytes

NAME = "secagg_cost"

PANELS: tuple[tuple[str, str, Callable[[RoundCost], float], bool], ...] = (
    ("a client's CPU, ms", "client", lambda cost: cost.client_ms, False),
    ("servers' CPU, s", "server", lambda cost: cost.server_s, False),
    ("wall on two cores, s", "wall", lambda cost: cost.wall_s, True),
    ("a client's upload, MB", "up", lambda cost: cost.up_mb, False),
    ("a client's download without the model, MB", "down", lambda cost: cost.down_mb, False),
    ("memory of all, GB", "memory", lambda cost: cost.peak_gb, True),
)
"""Title, name, value, and whether both forms are drawn; a client and a server by themselves check all."""


def save_costs(costs: Sequence[RoundCost], folder: Path) -> None:
    """Write ``secagg_cost.csv``, ``.json`` and ``.png``."""
    rows = [cost.flat() for cost in costs]
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: f"{value:.4g}" if isinstance(value, float) else value for name, value in row.items()} for row in rows)
    atomic_write_bytes(folder / f"{NAME}.csv", table.getvalue().encode())
    atomic_write_bytes(folder / f"{NAME}.json", (json.dumps({"rounds": rows}, indent=1) + "\n").encode())
    atomic_write_bytes(folder / f"{NAME}.png", draw(costs))


def draw(costs: Sequence[RoundCost]) -> bytes:
    """The figure as PNG."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import NullFormatter, NullLocator, ScalarFormatter

    figure, axes = plt.subplots(2, 3, figsize=(11, 6), layout="constrained")
    forms = {False: ("every client checks all", "o-", "tab:blue"), True: ("identical checks once a process", "s--", "tab:orange")}
    for axis, (title, _, value, both) in zip(axes.flat, PANELS, strict=True):
        for memoised, (label, style, colour) in forms.items():
            if memoised and not both:
                continue
            chosen = [cost for cost in costs if cost.memoised is memoised]
            axis.plot([cost.num_clients for cost in chosen], [value(cost) for cost in chosen], style, color=colour, label=label)
        axis.set_xscale("log")
        axis.set_xticks([cost.num_clients for cost in costs if not cost.memoised])
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_ylim(0, 1.1 * max(value(cost) for cost in costs if both or not cost.memoised))
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
    for axis in axes[1]:
        axis.set_xlabel("clients, in cohorts of up to 64")
    axes[0][2].legend(fontsize=8)
    figure.suptitle(
        f"One round of secure aggregation, {costs[0].dimension:,} parameters, a tenth of the clients lost on the way", fontsize=11
    )
    made = io.BytesIO()
    figure.savefig(made, format="png", dpi=110)
    plt.close(figure)
    return made.getvalue()
