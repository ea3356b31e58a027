"""What the pictures of a sweep have in common: one picture is drawn once, and lands as SVG for the page, PNG and CSV beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

from fedsec.files import atomic_write_bytes
from fedsec.report import figures
from fedsec.report.sweep_summary import Figure, Series
from fedsec.report.sweep_svg import to_svg
from fedsec.report.tables import write_csv


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One picture.

    Attributes:
        name: stem of its files, and anchor on the page.
        svg: for the page.
    """

    name: str
    svg: str


def draw_plot(
    name: str,
    alt: str,
    folder: Path,
    size: tuple[float, float],
    draw: Callable[[Axes], None],
    header: Sequence[str],
    lines: Iterable[Sequence[Any]],
) -> Plot:
    """Draw one panel once, write PNG and CSV, and keep the SVG.

    Raises:
        StorageError: the file system refused.
    """
    return draw_panels(name, alt, folder, size, [draw], header, lines)


def draw_panels(
    name: str,
    alt: str,
    folder: Path,
    size: tuple[float, float],
    draws: Sequence[Callable[[Axes], None]],
    header: Sequence[str],
    lines: Iterable[Sequence[Any]],
) -> Plot:
    """As :func:`draw_plot`, with panels under each other.

    Raises:
        StorageError: the file system refused.
    """
    with figures.canvas(*size) as figure:
        for draw, (axes,) in zip(draws, figure.subplots(len(draws), 1, squeeze=False), strict=True):
            draw(axes)
        atomic_write_bytes(folder / f"{name}.png", figures.to_png(figure), durable=False)
        svg = to_svg(figure, name, alt)
    write_csv(folder / f"{name}.csv", header, lines)
    return Plot(name=name, svg=svg)


def series_name(series: Series) -> str:
    """A line of the frontier, in words."""
    varied, arm = series
    return ", ".join([*(f"{key}={value}" for key, value in varied), *([str(arm)] if arm.kind != "all" else [])]) or "as planned"


def epsilon_axis(axes: Axes, epsilons: Sequence[float]) -> None:
    """ε on a log scale, with a tick for each that was swept."""
    axes.set_xscale("log")
    low, high = min(epsilons), max(epsilons)
    axes.set_xlim(low / 1.35, high * 1.35)
    axes.xaxis.set_major_locator(FixedLocator(sorted(set(epsilons))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("ε (log scale): smaller protects more")


def share_axis(axes: Axes, which: str, label: str) -> None:
    """Shares in per cent on "x" or "y"."""
    (axes.yaxis if which == "y" else axes.xaxis).set_major_formatter(PercentFormatter(1.0, decimals=0))
    (axes.set_ylabel if which == "y" else axes.set_xlabel)(label)
    axes.grid(axis=which)  # type: ignore[arg-type]  # "x" or "y"


def put_legend(axes: Axes) -> None:
    """The legend to the right of the panel, where there is something to name."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0, handlelength=1.8)


def digests_of(figure: Figure) -> str:
    """The rows behind a number, for a cell of a CSV file."""
    return " ".join(digest[:12] for digest in figure.digests)
