"""Pictures of a sweep's parts: classes, sites, layers, and ε round by round."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from fedsec.plan.sweep import epsilon_name
from fedsec.report import figures, text
from fedsec.report.intervals import FEWEST
from fedsec.report.sweep_drawing import Plot, digests_of, draw_plot, put_legend, share_axis
from fedsec.report.sweep_summary import Figure, Slice, SweepSummary
from fedsec.report.sweep_svg import SERIES

MOST_LINES = 24
_ROUND_NUMBERS = [digit * 10.0**power for power in range(-3, 3) for digit in (1, 2, 5)]


def chosen_epsilons(summary: SweepSummary) -> list[float]:
    """At most three that a crowded picture shows: the smallest, a middle one, and the last."""
    every = [epsilon for epsilon in summary.grid.epsilons if summary.at(summary.main, epsilon)]
    return every if len(every) <= 3 else [every[0], every[(len(every) - 1) // 2], every[-1]]


def plot_slices(summary: SweepSummary, slices: Sequence[Slice], folder: Path, *, name: str, title: str, label: str) -> Plot | None:
    """A line for each class or site: its figure at up to three ε with intervals. Of very many, those that lose most."""
    epsilons = chosen_epsilons(summary)
    known = [part for part in slices if any(summary.figure(summary.main, epsilon, part.read) for epsilon in epsilons)]
    if not known or not epsilons:
        return None
    shown = known if len(known) <= MOST_LINES else sorted(known, key=lambda part: _lowest(summary, part, epsilons))[:MOST_LINES]

    def draw(axes: Axes) -> None:
        figures.heading(axes, title, label if len(shown) == len(known) else f"the {MOST_LINES} lowest of {len(known)}")
        for place, epsilon in enumerate(epsilons):
            shift = (place - (len(epsilons) - 1) / 2) * 0.24
            found = [
                (index, figure)
                for index, part in enumerate(shown)
                if (figure := summary.figure(summary.main, epsilon, part.read)) is not None
            ]
            colour = SERIES[2] if math.isinf(epsilon) else SERIES[place]
            axes.errorbar(
                [figure.mean for _, figure in found], [index + shift for index, _ in found], xerr=_whiskers([figure for _, figure in found]),
                fmt=("o", "s", "D")[place], color=colour, markersize=5, elinewidth=1.2, label=epsilon_name(epsilon),
            )  # fmt: skip
        axes.set_yticks(range(len(shown)), [text.printable(part.name, 32) for part in shown])
        axes.set_ylim(len(shown) - 0.4, -0.6)
        low = min(
            (
                figure.mean - (figure.half_width or 0.0)
                for part in shown
                for e in epsilons
                if (figure := summary.figure(summary.main, e, part.read))
            ),
            default=0.0,
        )
        axes.set_xlim(max(0.0, math.floor(10 * low) / 10), 1.03)
        share_axis(axes, "x", label)
        axes.grid(axis="y", alpha=0.5)
        put_legend(axes)

    lines = (
        (part.name, part.tests, epsilon, figure.mean, figure.half_width, len(figure.values), digests_of(figure))
        for part in known
        for epsilon in summary.grid.epsilons
        if (figure := summary.figure(summary.main, epsilon, part.read)) is not None
    )
    header = (slices[0].kind, "test_records", "epsilon", "mean", "half_width_95", "seeds", "rows")
    return draw_plot(name, title, folder, (8.6, 1.7 + 0.34 * max(len(shown), 3)), draw, header, lines)


def _whiskers(found: Sequence[Figure]) -> list[list[float]]:
    """Lengths to the left and to the right, cut to what a share can be; none where there is no interval."""
    ends = [figure.bounds or (figure.mean, figure.mean) for figure in found]
    return [
        [figure.mean - low for figure, (low, _) in zip(found, ends, strict=True)],
        [high - figure.mean for figure, (_, high) in zip(found, ends, strict=True)],
    ]


def _lowest(summary: SweepSummary, part: Slice, epsilons: Sequence[float]) -> float:
    return min(figure.mean for epsilon in epsilons if (figure := summary.figure(summary.main, epsilon, part.read)) is not None)


def plot_rounds(summary: SweepSummary, folder: Path) -> Plot | None:
    """ε spent after each round, for each target, in the first seed."""
    rows = [
        row
        for epsilon in summary.finite
        for row in summary.at(summary.main, epsilon)[:1]
        if any(value is not None for value in row.rounds_epsilon)
    ]
    if not rows:
        return None

    def draw(axes: Axes) -> None:
        figures.heading(axes, "Privacy spent, round by round", "the client that spends most; PRV accountant")
        for place, row in enumerate(rows):
            spent = [math.nan if value is None else value for value in row.rounds_epsilon]
            axes.plot(range(1, len(spent) + 1), spent, color=SERIES[place % len(SERIES)], label=epsilon_name(row.target))
        figures.round_axis(axes, range(1, max(len(row.rounds_epsilon) for row in rows) + 1))
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(FixedLocator([row.target for row in rows] if len(rows) > 2 else _ROUND_NUMBERS))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel("round")
        axes.set_ylabel("ε spent (log scale)")
        axes.grid(axis="y")
        put_legend(axes)

    lines = (
        (row.target, number, spent, row.rounds_accuracy[number - 1], row.digest[:12])
        for row in rows
        for number, spent in enumerate(row.rounds_epsilon, start=1)
    )
    return draw_plot(
        "epsilon_rounds",
        "Epsilon spent after each round",
        folder,
        (8.6, 3.6),
        draw,
        ("target", "round", "epsilon", "accuracy", "row"),
        lines,
    )


def plot_arms(summary: SweepSummary, folder: Path) -> Plot | None:
    """Each arm of the ablation over layers: accuracy at each ε."""
    varied = summary.main[0]
    arms = [arm for arm in summary.grid.arms if summary.at((varied, arm), None)]
    if len(arms) < 2:
        return None

    def draw(axes: Axes) -> None:
        figures.heading(
            axes,
            "Which layers lose least under noise",
            "mean over seeds; whiskers: 95% interval" if len(summary.grid.seeds) >= FEWEST else "no interval: under 3 seeds",
        )
        for place, epsilon in enumerate(summary.grid.epsilons):
            shift = (place - (len(summary.grid.epsilons) - 1) / 2) * 0.14
            found = [(index, figure) for index, arm in enumerate(arms) if (figure := summary.figure((varied, arm), epsilon)) is not None]
            if found:
                axes.errorbar(
                    [figure.mean for _, figure in found], [index + shift for index, _ in found], xerr=_whiskers([figure for _, figure in found]),
                    fmt="o", color=SERIES[2] if math.isinf(epsilon) else SERIES[(place + (place > 1)) % len(SERIES)], markersize=5, elinewidth=1.2, label=epsilon_name(epsilon),
                )  # fmt: skip
        axes.set_yticks(range(len(arms)), [text.printable(str(arm), 30) for arm in arms])
        axes.set_ylim(len(arms) - 0.4, -0.6)
        share_axis(axes, "x", "test accuracy")
        put_legend(axes)

    lines = (
        (str(arm), epsilon, figure.mean, figure.half_width, len(figure.values), digests_of(figure))
        for arm in arms
        for epsilon in summary.grid.epsilons
        if (figure := summary.figure((varied, arm), epsilon)) is not None
    )
    return draw_plot(
        "layers",
        "Accuracy of each arm of the ablation",
        folder,
        (8.6, 1.7 + 0.42 * len(arms)),
        draw,
        ("arm", "epsilon", "accuracy", "half_width_95", "seeds", "rows"),
        lines,
    )
