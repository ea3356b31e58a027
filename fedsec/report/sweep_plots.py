"""The pictures of a sweep: each as SVG for the page, with a PNG and a CSV of what it shows beside it.

1. A picture shows figures of the summary and nothing else; bands and whiskers are their 95 % intervals, left out where there is none.
2. The CSV of a picture has one line for each number in it, with the digests of the rows behind it.
3. ε is on a log scale; the run without privacy is a line, not a point at infinity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

from fedsec.files import atomic_write_bytes
from fedsec.plan.model import Plan
from fedsec.plan.sweep import epsilon_name
from fedsec.report import figures, text
from fedsec.report.literature import Published, published
from fedsec.report.sweep_audit import SweepAudits
from fedsec.report.sweep_summary import Figure, Series, Slice, SweepSummary
from fedsec.report.sweep_svg import SERIES, to_svg
from fedsec.report.tables import write_csv

MOST_LINES = 24
PLOTS = ("frontier", "classes", "sites", "epsilon_rounds", "audit", "roc", "layers")
_KINDS = {"one-run": "o", "loss-threshold": "s", "lira": "^"}


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One picture.

    Attributes:
        name: stem of its files, and anchor on the page.
        svg: for the page.
    """

    name: str
    svg: str


def _plot(
    name: str,
    alt: str,
    folder: Path,
    size: tuple[float, float],
    draw: Callable[[Axes], None],
    header: Sequence[str],
    lines: Iterable[Sequence[Any]],
) -> Plot:
    """Draw once, write PNG and CSV, and keep the SVG.

    Raises:
        StorageError: the file system refused.
    """
    with figures.canvas(*size) as figure:
        draw(figure.subplots())
        atomic_write_bytes(folder / f"{name}.png", figures.to_png(figure), durable=False)
        svg = to_svg(figure, name, alt)
    write_csv(folder / f"{name}.csv", header, lines)
    return Plot(name=name, svg=svg)


def series_name(series: Series) -> str:
    """A line of the frontier, in words."""
    varied, arm = series
    return ", ".join([*(f"{key}={value}" for key, value in varied), *([str(arm)] if arm.kind != "all" else [])]) or "this sweep"


def _epsilon_axis(axes: Axes, epsilons: Sequence[float]) -> None:
    axes.set_xscale("log")
    low, high = min(epsilons), max(epsilons)
    axes.set_xlim(low / 1.35, high * 1.35)
    axes.xaxis.set_major_locator(FixedLocator(sorted(set(epsilons))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("ε (log scale): smaller protects more")


def _share_axis(axes: Axes, which: str, label: str) -> None:
    (axes.yaxis if which == "y" else axes.xaxis).set_major_formatter(PercentFormatter(1.0, decimals=0))
    (axes.set_ylabel if which == "y" else axes.set_xlabel)(label)
    axes.grid(axis=which)  # type: ignore[arg-type]  # "x" or "y"


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0, handlelength=1.8)


def _digests(figure: Figure) -> str:
    return " ".join(digest[:12] for digest in figure.digests)


# --- Frontier -------------------------------------------------------------------------------------------------------------------


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
                label=f"commonest class {text.percent(summary.majority.mean)}",
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
        _epsilon_axis(axes, [*summary.finite])
        _share_axis(axes, "y", "test accuracy")
        _legend(axes)

    return _plot(
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
                yield series_name(series), epsilon, figure.mean, figure.half_width, len(figure.values), _digests(figure)
    if summary.majority is not None:
        yield "commonest class", None, summary.majority.mean, None, len(summary.majority.values), _digests(summary.majority)
    for point in literature:
        yield f"{point.source}: {point.what}", point.epsilon, point.accuracy, None, None, ""


# --- Classes and sites ----------------------------------------------------------------------------------------------------------


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
        _share_axis(axes, "x", label)
        axes.grid(axis="y", alpha=0.5)
        _legend(axes)

    lines = (
        (part.name, part.tests, epsilon, figure.mean, figure.half_width, len(figure.values), _digests(figure))
        for part in known
        for epsilon in summary.grid.epsilons
        if (figure := summary.figure(summary.main, epsilon, part.read)) is not None
    )
    header = (slices[0].kind, "test_records", "epsilon", "mean", "half_width_95", "seeds", "rows")
    return _plot(name, title, folder, (8.6, 1.7 + 0.34 * max(len(shown), 3)), draw, header, lines)


def _whiskers(found: Sequence[Figure]) -> list[list[float]]:
    """Lengths to the left and to the right, cut to what a share can be; none where there is no interval."""
    ends = [figure.bounds or (figure.mean, figure.mean) for figure in found]
    return [
        [figure.mean - low for figure, (low, _) in zip(found, ends, strict=True)],
        [high - figure.mean for figure, (_, high) in zip(found, ends, strict=True)],
    ]


def _lowest(summary: SweepSummary, part: Slice, epsilons: Sequence[float]) -> float:
    return min(figure.mean for epsilon in epsilons if (figure := summary.figure(summary.main, epsilon, part.read)) is not None)


# --- Rounds ---------------------------------------------------------------------------------------------------------------------


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
        axes.yaxis.set_major_locator(FixedLocator([row.target for row in rows]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel("round")
        axes.set_ylabel("ε spent (log scale)")
        axes.grid(axis="y")
        _legend(axes)

    lines = (
        (row.target, number, spent, row.rounds_accuracy[number - 1], row.digest[:12])
        for row in rows
        for number, spent in enumerate(row.rounds_epsilon, start=1)
    )
    return _plot(
        "epsilon_rounds",
        "Epsilon spent after each round",
        folder,
        (8.6, 3.6),
        draw,
        ("target", "round", "epsilon", "accuracy", "row"),
        lines,
    )


# --- Audits ---------------------------------------------------------------------------------------------------------------------


def plot_audits(audits: SweepAudits, folder: Path) -> Plot | None:
    """What attacks showed against what the theory allows: under the diagonal or it is refuted."""
    finite = [found for found in audits.results if math.isfinite(found.result.audited.epsilon)]
    if not finite:
        return None

    def draw(axes: Axes) -> None:
        figures.heading(axes, "What attacks showed, and what theory allows", "a point above the diagonal refutes the claim")
        xs = sorted({found.result.audited.epsilon for found in finite})
        span = [min(xs) / 1.3, max(xs) * 1.3]
        axes.plot(span, span, color=figures.INK, linewidth=1.2, label="theory")
        for place, kind in enumerate(dict.fromkeys(found.result.kind for found in finite)):
            results = [found.result for found in finite if found.result.kind == kind]
            colour = SERIES[place]
            axes.scatter(
                [r.audited.epsilon for r in results],
                [r.lower_bound for r in results],
                marker=_KINDS[kind],
                s=30,
                color=colour,
                label=f"{kind}: shown with 95% confidence",
                zorder=3,
            )
            guessed = [
                (r.audited.epsilon, r.gaussian_estimate)
                for r in results
                if r.gaussian_estimate is not None and math.isfinite(r.gaussian_estimate)
            ]
            if guessed:
                axes.scatter(
                    [x for x, _ in guessed],
                    [y for _, y in guessed],
                    marker="D",
                    s=26,
                    facecolors="none",
                    edgecolors=colour,
                    label=f"{kind}: Gaussian estimate, no bound",
                )
        best: dict[float, float] = {}
        for found in finite:
            best[found.result.audited.epsilon] = max(found.result.perfect_bound, best.get(found.result.audited.epsilon, 0.0))
        axes.plot(xs, [best[x] for x in xs], color=figures.GREY, linewidth=1, linestyle=(0, (2, 2)), label="a guesser that is always right")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(xs))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: text.decimal(value, 2)))
        axes.set_xlim(*span)
        axes.set_ylim(0, max(*xs, *(found.result.perfect_bound for found in finite)) * 1.08)
        axes.set_xlabel(f"ε of the claim at δ = {finite[0].result.audited.delta:g} (log scale)")
        axes.set_ylabel("ε shown")
        axes.grid(axis="y")
        _legend(axes)

    lines = (
        (
            f.target,
            f.result.kind,
            f.row.seed,
            f.result.audited.epsilon,
            f.result.audited.delta,
            f.result.lower_bound,
            f.result.gaussian_estimate,
            f.result.perfect_bound,
            f.row.digest[:12],
        )
        for f in audits.results
    )
    header = ("target", "kind", "seed", "audited_epsilon", "audited_delta", "lower_bound", "gaussian_estimate", "perfect_bound", "row")
    return _plot("audit", "Audited against theoretical epsilon", folder, (8.6, 4.2), draw, header, lines)


def plot_roc(audits: SweepAudits, folder: Path) -> Plot | None:
    """ROC of membership inference, both axes logarithmic: the low false alarm rates are where an attacker works."""
    kinds = sorted({found.result.kind for found in audits.results}, key=lambda kind: (kind != "one-run", kind))
    chosen = [found for kind in kinds[:1] for found in _first_of_each(audits, kind) if found.result.membership.roc]
    if not chosen:
        return None

    def draw(axes: Axes) -> None:
        figures.heading(axes, "How well members are told from others", f"{kinds[0]}, first seed; both axes logarithmic")
        axes.plot([1e-4, 1], [1e-4, 1], color=figures.GREY, linewidth=1, linestyle=(0, (2, 2)), label="tossing a coin")
        for place, found in enumerate(chosen):
            roc = [(max(x, 1e-3), max(y, 1e-3)) for x, y in found.result.membership.roc]  # zero has no place on a logarithmic axis
            axes.plot(
                [x for x, _ in roc],
                [y for _, y in roc],
                color=SERIES[place % len(SERIES)],
                linewidth=1.6,
                label=epsilon_name(found.target or math.inf),
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(1e-3, 1)
        axes.set_ylim(1e-3, 1.05)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
            axis.set_minor_locator(NullLocator())
        axes.set_xlabel("false alarms")
        axes.set_ylabel("members found")
        axes.grid()
        _legend(axes)

    lines = (
        (found.target, found.result.kind, found.row.seed, x, y, found.row.digest[:12])
        for kind in kinds
        for found in _first_of_each(audits, kind)
        for x, y in found.result.membership.roc
    )
    return _plot(
        "roc",
        "ROC curves of membership inference, log-log",
        folder,
        (8.6, 4.2),
        draw,
        ("target", "kind", "seed", "false_alarms", "found", "row"),
        lines,
    )


def _first_of_each(audits: SweepAudits, kind: str) -> list[Any]:
    first: dict[float | None, Any] = {}
    for found in audits.results:
        if found.result.kind == kind and found.target not in first:
            first[found.target] = found
    return list(first.values())


# --- Ablations ------------------------------------------------------------------------------------------------------------------


def plot_arms(summary: SweepSummary, folder: Path) -> Plot | None:
    """Each arm of the ablation over layers: accuracy at each ε."""
    varied = summary.main[0]
    arms = [arm for arm in summary.grid.arms if summary.at((varied, arm), None)]
    if len(arms) < 2:
        return None

    def draw(axes: Axes) -> None:
        figures.heading(axes, "Which layers lose least under noise", "mean over seeds; whiskers: 95% interval")
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
        _share_axis(axes, "x", "test accuracy")
        _legend(axes)

    lines = (
        (str(arm), epsilon, figure.mean, figure.half_width, len(figure.values), _digests(figure))
        for arm in arms
        for epsilon in summary.grid.epsilons
        if (figure := summary.figure((varied, arm), epsilon)) is not None
    )
    return _plot(
        "layers",
        "Accuracy of each arm of the ablation",
        folder,
        (8.6, 1.7 + 0.42 * len(arms)),
        draw,
        ("arm", "epsilon", "accuracy", "half_width_95", "seeds", "rows"),
        lines,
    )


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
        plot_arms(summary, folder),
    ]
    plots = {plot.name: plot for plot in drawn if plot is not None}
    for name in PLOTS:
        if name not in plots:
            for ending in (".png", ".csv"):
                (folder / f"{name}{ending}").unlink(missing_ok=True)
    return plots
