"""How the pictures of rejection are drawn; ``fedsec.report.rejection`` decides what is shown.

1. Under the edge a score is a shade of blue, over it a shade of orange; a rejection is a cross, quarantine a bar: nothing hangs on colour alone.
2. The picture of the defence is read from the end of its curves: names and last values stand there, apart from each other.

matplotlib is imported with this module.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator, MultipleLocator, PercentFormatter

from fedsec.report import text
from fedsec.report.figures import BLUE, GREEN, GREY, INK, ORANGE, heading, round_axis, say
from fedsec.results import ScreeningRow

MOST_NAMES = 40
MOST_MARKS = 4000
TOP_SCORE = 3.0
LABEL_GAP = 0.062
"""Share of the axis between two labels at the ends of curves."""

_SCORES = LinearSegmentedColormap.from_list(
    "scores", [(0.0, "#F4F8FB"), (1 / TOP_SCORE - 1e-6, "#8FBBDA"), (1 / TOP_SCORE, "#F6C7A6"), (1.0, "#C24E00")]
).with_extremes(bad="#C3C7CD")

_CURVE_STYLE: dict[str, dict[str, Any]] = {
    "defended": {"color": BLUE, "linewidth": 2.6, "zorder": 4},
    "undefended": {"color": ORANGE, "linewidth": 2.0, "linestyle": (0, (1.2, 1.2)), "zorder": 3},
    "no-attack": {"color": GREEN, "linewidth": 1.8, "linestyle": (0, (5, 2)), "zorder": 2},
}


def height_of(clients: int) -> float:
    """Inches that a heat map of so many clients needs."""
    return 2.2 + 0.19 * max(clients, 8) if clients <= MOST_NAMES else 6.0


def draw_scores(figure: Figure | SubFigure, rows: Sequence[tuple[int, ScreeningRow]], names: Sequence[str], attackers: set[str]) -> None:
    """Heat map [clients, rounds]; grey where a client was not judged.

    Args:
        figure: where.
        rows: (round, its screening), in order.
        names: clients from the top.
        attackers: those of them to label.
    """
    axes = figure.subplots()
    marked = sum(len(screening.scores) for _, screening in rows) <= MOST_MARKS
    marks = "  × kept out by the rule,  – in quarantine," if marked else ""
    heading(axes, "Scores by client and round", f"edge of rejection = 1; {marks}  grey: not judged")
    axes.set_xlabel("round")
    if not rows or not names:
        say(axes, "no round was screened")
        axes.set_yticks([])
        return
    numbers = [number for number, _ in rows]
    place = {name: index for index, name in enumerate(names)}
    column = {number: index for index, number in enumerate(range(numbers[0], numbers[-1] + 1))}
    scores = np.full((len(names), len(column)), math.nan)
    for number, screening in rows:
        for name, score in screening.scores.items():
            scores[place[name], column[number]] = min(score, TOP_SCORE)
    extent = (numbers[0] - 0.5, numbers[-1] + 0.5, len(names) - 0.5, -0.5)
    image = axes.imshow(scores, aspect="auto", cmap=_SCORES, vmin=0.0, vmax=TOP_SCORE, interpolation="nearest", extent=extent)
    if marked:
        _mark(axes, rows, place)
    _name_rows(axes, names, attackers)
    round_axis(axes, numbers)
    axes.set_xlim(extent[0], extent[1])
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.015, ticks=[0, 1, 2, 3])
    bar.ax.set_yticklabels(["0", "1 edge", "2", "3 or more"])
    bar.outline.set_visible(False)


def _mark(axes: Axes, rows: Sequence[tuple[int, ScreeningRow]], place: dict[str, int]) -> None:
    rejected = [(number, place[name]) for number, screening in rows for name, _ in screening.rejected if name not in screening.quarantined]
    waiting = [(number, place[name]) for number, screening in rows for name in screening.quarantined]
    size = float(np.clip(700 / max(len(rows), len(place)), 6, 26))
    for points, marker in ((rejected, "x"), (waiting, "_")):
        if points:
            x, y = zip(*points, strict=True)
            axes.scatter(x, y, marker=marker, s=size if marker == "x" else 2.2 * size, c=INK, linewidths=1.1)


def _name_rows(axes: Axes, names: Sequence[str], attackers: set[str]) -> None:
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0)
    count = sum(name in attackers for name in names)
    if 0 < count < len(names):
        axes.axhline(count - 0.5, color=INK, linewidth=1.2)
    if len(names) > MOST_NAMES:
        axes.set_yticks([])
        axes.set_ylabel(f"{len(names)} clients, {count} attackers on top" if count else f"{len(names)} clients")
        return
    shown = [text.printable(name, 16) + ("  attacker" if name in attackers else "") for name in names]
    axes.set_yticks(range(len(names)), shown, fontsize=8 if len(names) <= 24 else 6.5)
    for label, name in zip(axes.get_yticklabels(), names, strict=True):
        if name in attackers:
            label.set_color(ORANGE)
            label.set_fontweight("bold")


def draw_deciles(axes: Axes, deciles: Sequence[float | None], overall: float | None) -> None:
    """A bar for each tenth of the honest clients, least skewed first."""
    said = "" if overall is None else f";  all: {text.percent(overall)}"
    heading(axes, "Honest updates kept out", f"by label skew{said}")
    values = [math.nan if value is None else value for value in deciles]
    axes.bar(range(1, len(values) + 1), values, color=BLUE, width=0.72)
    peak = max((value for value in (*values, overall or 0.0) if not math.isnan(value)), default=0.0)
    top = min(1.2 * peak, 1.02) or 0.05
    for index, value in enumerate(values):
        if math.isnan(value):
            axes.text(index + 1, 0.01 * top, "–", ha="center", va="bottom", fontsize=9, color=GREY)
    if overall:
        axes.axhline(overall, color=INK, linewidth=1.2, linestyle=(0, (4, 2)))
    axes.set_ylim(0, top)
    axes.set_xlim(0.4, 10.6)
    axes.set_xticks(range(1, 11))
    axes.set_xlabel("tenth of them, most skewed last")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if top >= 0.04 else 1))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.grid(axis="y")


def draw_defence(axes: Axes, curves: Sequence[tuple[str, str, Sequence[float]]], *, title: str, subtitle: str) -> None:
    """Accuracy over rounds of a few runs, each named at its end with its last value.

    Args:
        axes: where.
        curves: (key of the style, name, accuracy of each round from 1, NaN leaves a gap).
        title: bold.
        subtitle: under it.
    """
    heading(axes, title, subtitle)
    rounds = max((len(values) for _, _, values in curves), default=0)
    ends: list[tuple[float, str, str]] = []
    for key, name, values in curves:
        style = _CURVE_STYLE[key]
        marks: dict[str, Any] = {"marker": "o", "markersize": 3.5} if len(values) <= 40 else {}
        axes.plot(range(1, len(values) + 1), values, **style, **marks)
        known = [value for value in values if math.isfinite(value)]
        if known:
            ends.append((known[-1], f"{name} {text.percent(known[-1])}", style["color"]))
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.yaxis.set_major_locator(MultipleLocator(0.2))
    axes.set_ylabel("test accuracy")
    axes.set_xlabel("round")
    axes.grid(axis="y")
    round_axis(axes, range(1, rounds + 1))
    for (value, label, colour), height in zip(ends, _apart([value for value, _, _ in ends]), strict=True):
        axes.annotate(
            label,
            (1.0, value),
            (1.015, height),
            xycoords=("axes fraction", "data"),
            textcoords=("axes fraction", "data"),
            va="center",
            ha="left",
            color=colour,
            fontsize=10,
            fontweight="bold",
            annotation_clip=False,
        )
    if not ends:
        say(axes, "no round was measured")


def _apart(heights: Sequence[float]) -> npt.NDArray[np.float64]:
    """Heights of labels: as near to their curves as a gap of ``LABEL_GAP`` between any two allows, inside the axis."""
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    placed = np.array(heights, dtype=np.float64)
    for lower, upper in itertools.pairwise(order):
        placed[upper] = max(placed[upper], placed[lower] + LABEL_GAP)
    over = max(0.0, float(placed.max(initial=0.0)) - 1.0)
    if over:
        for rank, index in enumerate(reversed(order)):
            placed[index] = min(placed[index], 1.0 - rank * LABEL_GAP)
    return placed
