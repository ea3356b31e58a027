"""The picture of the experiment: accuracy under each attack, and under a push of growing amplitude."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from fedsec.files import atomic_write_bytes

_COLOURS = {"undefended": "#c0392b", "defended": "#2471a3", "suspects out at once": "#7fb3d5"}
_NAME = "ε = {epsilon:g}, α = 1, k = 128"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Bars by attack at epsilon 8, and accuracy against amplitude at epsilon 8 and 2; a PNG without time or machine in it."""
    figure, axes = plt.subplots(1, 2, figsize=(12.5, 5.2), width_ratios=(1.35, 1.0), layout="constrained")
    _bars(axes[0], [row for row in rows if row["part"] == "main" and row["name"] == _NAME.format(epsilon=8)])
    _curves(axes[1], [row for row in rows if row["part"] == "sweep"])
    buffer = _png(figure)
    plt.close(figure)
    atomic_write_bytes(path, buffer)


def _png(figure: plt.Figure) -> bytes:
    import io

    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=130, metadata={"Software": None})
    return out.getvalue()


def _mean(rows: list[dict[str, Any]], attack: str, defence: str) -> float | None:
    found = [row for row in rows if (row["attack"], row["defence"]) == (attack, defence)]
    return statistics.fmean(found[0]["accuracies"]) if found else None


def _bars(axes: Axes, rows: list[dict[str, Any]]) -> None:
    attacks = list(dict.fromkeys(row["attack"] for row in rows))
    height = 0.27
    for offset, (defence, colour) in enumerate(_COLOURS.items()):
        values = [_mean(rows, attack, defence) or 0.0 for attack in attacks]
        axes.barh([place + (offset - 1) * height for place in range(len(attacks))], values, height=height, color=colour, label=defence)
    nobody = _mean(rows, "no attack", "undefended")
    if nobody is not None:
        axes.axvline(nobody, color="black", linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(attacks)), attacks)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("test accuracy, mean of the seeds; dashed: nobody attacks")
    axes.set_title("4 of 20 clients collude, ε = 8, α = 1, k = 128")
    axes.legend(loc="lower left", fontsize=8)


def _curves(axes: Axes, rows: list[dict[str, Any]]) -> None:
    for epsilon, style in ((8, "-"), (2, ":")):
        of_epsilon = [row for row in rows if row["name"] == _NAME.format(epsilon=epsilon)]
        attacks = [attack for attack in dict.fromkeys(row["attack"] for row in of_epsilon) if attack.startswith("fixed")]
        amplitudes = [float(attack.split()[1]) for attack in attacks]
        for defence, colour in _COLOURS.items():
            values = [_mean(of_epsilon, attack, defence) for attack in attacks]
            axes.plot(
                [0.0, *amplitudes],
                [_mean(of_epsilon, "no attack", defence), *values],
                style,
                color=colour,
                label=f"{defence}, ε = {epsilon}",
            )
    axes.set_xlabel('amplitude of "raise class 0" by each colluder in own noise, noise units')
    axes.set_ylabel("test accuracy, mean of the seeds")
    axes.set_ylim(0, 1)
    axes.set_title("How much fits under the edges")
    axes.legend(fontsize=8)
