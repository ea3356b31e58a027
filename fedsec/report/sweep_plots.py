"""The pictures of a sweep: each as SVG for the page, with a PNG and a CSV of what it shows beside it.

1. A picture shows figures of the summary and nothing else; bands and whiskers are their 95 % intervals, left out where there is none.
2. The CSV of a picture has one line for each number in it, with the digests of the rows behind it.
3. ε is on a log scale; the run without privacy is a line, not a point at infinity.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from fedsec.plan.model import Plan
from fedsec.report import figures, text
from fedsec.report.literature import Published, published
from fedsec.report.sweep_audit import SweepAudits
from fedsec.report.sweep_audit_plots import plot_audits, plot_roc
from fedsec.report.sweep_drawing import Plot, digests_of, draw_plot, epsilon_axis, put_legend, series_name, share_axis
from fedsec.report.sweep_inversion import plot_inversion
from fedsec.report.sweep_slice_plots import plot_arms, plot_rounds, plot_slices
from fedsec.report.sweep_summary import Series, SweepSummary
from fedsec.report.sweep_svg import SERIES

PLOTS = ("frontier", "classes", "sites", "epsilon_rounds", "audit", "roc", "inversion", "layers")


def plot_frontier(summary: SweepSummary, literature: Sequence[Published], folder: Path, *, title: str) -> Plot | None:
    """Accuracy against ε: band over seeds, each seed, the line without privacy, the commonest class, published points."""
    if not summary.finite or not summary.rows:
        return None
    shown = [series for series in summary.series if series[1].kind == "all"][: len(SERIES)]

    def draw(axes: Axes) -> None:
        figures.heading(axes, figures.fit(text.printable(title), 6.0), _whole(summary))
        for place, series in enumerate(shown):
            _frontier_line(axes, summary, series, SERIES[place], is_only=len(shown) == 1)
        if summary.majority is not None:
            axes.axhline(
                summary.majority.mean,
                color=figures.GREY,
                linewidth=1.4,
                linestyle=(0, (1, 1.5)),
                label=f"commonest class {'of each site ' if summary.is_personal else ''}{text.percent(summary.majority.mean)}",
            )
        if summary.alone is not None:
            axes.axhline(
                summary.alone.mean,
                color=SERIES[5],
                linewidth=1.4,
                linestyle=(0, (3, 1.5, 1, 1.5)),
                label=f"each site alone {text.percent(summary.alone.mean)}",
            )
        for place, (source, points) in enumerate(_by_source(literature).items()):
            axes.scatter(
                [p.epsilon for p in points],
                [p.accuracy for p in points],
                marker="D",
                s=34,
                facecolors="none",
                edgecolors=SERIES[(3 + place) % 8],
                label=source,
            )
        epsilon_axis(axes, [*summary.finite])
        share_axis(axes, "y", "test accuracy")
        put_legend(axes)

    return draw_plot(
        "frontier",
        "Accuracy against epsilon",
        folder,
        (8.6, 4.6),
        draw,
        ("series", "epsilon", "accuracy", "half_width_95", "seeds", "rows"),
        _frontier_lines(summary, shown, literature),
    )


def _whole(summary: SweepSummary) -> str:
    seeds = text.counted(len(summary.grid.seeds), "seed")
    band = "band: 95% interval over seeds" if len(summary.grid.seeds) >= 3 else "no interval: under 3 seeds"
    return f"{seeds}; {band}{f'; PARTIAL, {len(summary.missing)} runs missing' if summary.missing else ''}"


def _frontier_line(axes: Axes, summary: SweepSummary, series: Series, colour: str, *, is_only: bool) -> None:
    found = [(epsilon, figure) for epsilon in summary.finite if (figure := summary.figure(series, epsilon)) is not None]
    xs, means = [epsilon for epsilon, _ in found], [figure.mean for _, figure in found]
    axes.plot(xs, means, color=colour, marker="o", markersize=5, label=series_name(series) if not is_only else "with privacy")
    banded = [(epsilon, figure.mean, figure.half_width) for epsilon, figure in found if figure.half_width is not None]
    if banded:
        axes.fill_between(
            [e for e, _, _ in banded], [m - h for _, m, h in banded], [m + h for _, m, h in banded], color=colour, alpha=0.16, linewidth=0
        )
    for epsilon, figure in found:
        axes.scatter([epsilon] * len(figure.values), figure.values, s=9, color=colour, alpha=0.55, linewidths=0, zorder=3)
    reference = summary.figure(series, math.inf)
    if reference is not None:
        axes.axhline(
            reference.mean,
            color=SERIES[2] if is_only else colour,
            linewidth=1.6,
            linestyle=(0, (5, 2)),
            label=f"without privacy {text.percent(reference.mean)}" if is_only else None,
        )
        if reference.half_width is not None and is_only:
            axes.axhspan(
                reference.mean - reference.half_width, reference.mean + reference.half_width, color=SERIES[2], alpha=0.08, linewidth=0
            )


def _by_source(literature: Sequence[Published]) -> dict[str, list[Published]]:
    found: dict[str, list[Published]] = {}
    for point in literature:
        found.setdefault(point.source.partition(",")[0].partition("(")[0].strip(), []).append(point)
    return found


def _frontier_lines(summary: SweepSummary, shown: Sequence[Series], literature: Sequence[Published]) -> Iterable[Sequence[Any]]:
    for series in shown:
        for epsilon in summary.grid.epsilons:
            figure = summary.figure(series, epsilon)
            if figure is not None:
                yield series_name(series), epsilon, figure.mean, figure.half_width, len(figure.values), digests_of(figure)
    if summary.majority is not None:
        yield "commonest class", None, summary.majority.mean, None, len(summary.majority.values), digests_of(summary.majority)
    if summary.alone is not None:
        yield "each site alone", None, summary.alone.mean, None, len(summary.alone.values), digests_of(summary.alone)
    for point in literature:
        yield f"{point.source}: {point.what}", point.epsilon, point.accuracy, None, None, ""


def plot_all(summary: SweepSummary, audits: SweepAudits, plan: Plan, folder: Path) -> dict[str, Plot]:
    """Every picture that the rows give, by name; those of an earlier report that they no longer give are removed.

    Raises:
        StorageError: the file system refused.
    """
    site = "right answers at the site"
    drawn = [
        plot_frontier(summary, published(plan.data.name), folder, title=f"Accuracy against privacy: {plan.name}"),
        plot_slices(
            summary, summary.classes(), folder, name="classes", title="Recall of each class", label="share of the class that is found"
        ),
        plot_slices(summary, summary.sites(), folder, name="sites", title="Each site's own test records", label=site),
        plot_rounds(summary, folder),
        plot_audits(audits, folder),
        plot_roc(audits, folder),
        plot_inversion(audits, folder),
        plot_arms(summary, folder),
    ]
    plots = {plot.name: plot for plot in drawn if plot is not None}
    for name in PLOTS:
        if name not in plots:
            for ending in (".png", ".csv"):
                (folder / f"{name}{ending}").unlink(missing_ok=True)
    return plots
