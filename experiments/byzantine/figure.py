"""The figure of the tables: worst case and no attack of each rule, and honest rejection."""

from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl

FLOORS = {"open": 0.78, "sketch": 0.76}
"""What was asked for in the worst case: a root-free rule in the open, and under sketches."""


def draw(summary: dict[str, Any]) -> bytes:
    """The figure as PNG: part n17 to the left, FLANDERS's setting to the right."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.5), layout="constrained", width_ratios=[3, 2])
    _bars(left, summary["n17"], {"no attack": lambda line: line["none"], "worst of four attacks": lambda line: line["worst"]})
    left.axvline(FLOORS["open"], color="0.5", linestyle=":", linewidth=1)
    left.set_title("MNIST, 17 clients, 4 attackers, Dirichlet 0.1", fontsize=10)
    columns = list(summary["flanders"][0]["columns"]) if summary["flanders"] else []
    picks = {column: (lambda line, column=column: line["columns"][column]) for column in columns}
    _bars(right, summary["flanders"], picks)
    right.set_title("MNIST, 100 clients, 20 attackers, Dirichlet 0.5", fontsize=10)
    figure.suptitle("Test accuracy, mean over seeds with 95 % intervals", fontsize=11)
    made = io.BytesIO()
    figure.savefig(made, format="png", dpi=110)
    plt.close(figure)
    return made.getvalue()


def _bars(axis: Any, lines: list[dict[str, Any]], picks: dict[str, Any]) -> None:
    height = 0.8 / max(1, len(picks))
    for place, (label, pick) in enumerate(picks.items()):
        there = [(row, pick(line)) for row, line in enumerate(lines) if pick(line) is not None]
        axis.barh(
            [row + place * height for row, _ in there],
            [value["mean"] for _, value in there],
            height,
            xerr=[value["half_width"] or 0.0 for _, value in there],
            label=label,
            error_kw={"linewidth": 1},
        )
    axis.set_yticks([row + 0.4 - height / 2 for row in range(len(lines))], [line["name"] for line in lines], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.grid(axis="x", alpha=0.3)
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=4)
