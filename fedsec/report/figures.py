"""How the pictures are drawn: one look, colours that colour-blind readers can tell apart, the same bytes from the same data.

1. No pyplot and no user settings: a figure is an object, drawn by Agg with the fonts that matplotlib brings.
2. Text is shown as it is: a "$" in a class name is no formula.
3. Nothing of this module decides what is shown; ``fedsec.report.plots`` does.

Colours: Okabe and Ito 2008, "Color Universal Design".
"""

from __future__ import annotations

import bisect
import contextlib
import io
import math
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, MultipleLocator, PercentFormatter

from fedsec.report import text

DPI = 150
BLUE, ORANGE, GREEN, GREY, INK, PALE = "#0072B2", "#D55E00", "#009E73", "#6B7280", "#1F2937", "#E5E7EB"

_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10.0,
    "text.parse_math": False,
    "text.color": INK,
    "axes.titlesize": 11.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10.0,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": PALE,
    "grid.linewidth": 0.8,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "lines.linewidth": 2.2,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


@contextlib.contextmanager
def canvas(width_in: float, height_in: float) -> Iterator[Figure]:
    """An empty figure in fedsec's style; the style ends with the block, so draw and :func:`to_png` inside it."""
    with mpl.rc_context():
        mpl.rcdefaults()
        settings: Any = mpl.rcParams  # its keys are typed one by one, differently in each version
        settings.update(_STYLE)
        figure = Figure(figsize=(width_in, height_in), dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
        FigureCanvasAgg(figure)
        yield figure


def to_png(figure: Figure) -> bytes:
    """The figure as PNG, 150 dots per inch, without time or software stamps."""
    buffer = io.BytesIO()
    agg: Any = figure.canvas  # asked itself: ``savefig`` would draw everything once more, unseen, for a layout that the drawing makes
    agg.print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def fit(words: str, width_in: float, *, size: float = 11.0) -> str:
    """As much of the words as a bold line of this width holds, cut with "…"."""
    renderer: Any = RendererAgg  # matplotlib leaves its renderers untyped
    renderer = renderer(8, 8, DPI)
    font = FontProperties(family="DejaVu Sans", size=size, weight="bold")

    def width(shown: str) -> float:
        return float(renderer.get_text_width_height_descent(shown, font, ismath=False)[0]) / DPI

    if width(words) <= width_in:
        return words
    most = bisect.bisect_right(range(1, len(words)), width_in, key=lambda count: width(words[:count] + "…"))
    return words[:most] + "…"


def say(axes: Axes, message: str) -> None:
    """Words in the middle of a panel that has nothing to draw."""
    axes.text(0.5, 0.5, message, transform=axes.transAxes, ha="center", va="center", color=GREY)


def heading(axes: Axes, title: str, subtitle: str = "") -> None:
    """A bold title with a plain line under it; the line is also where a legend goes."""
    axes.set_title(title, pad=24)
    axes.annotate(subtitle, (0, 1), (0, 8), xycoords="axes fraction", textcoords="offset points", fontsize=9, color=GREY)


def draw_accuracy(
    axes: Axes, rounds: Sequence[int], accuracy: Sequence[float], *, lines: Sequence[tuple[str, float, bool]], title: str
) -> None:
    """Accuracy per round in per cent, with the legend under the title.

    Args:
        axes: where.
        rounds: round numbers.
        accuracy: one for each round, 0 to 1; NaN leaves a gap.
        lines: (label, height, whether it is to be reached rather than passed) of each baseline.
        title: of the panel.
    """
    heading(axes, title)
    known = [value for value in accuracy if math.isfinite(value)]
    label = f"accuracy {text.percent(known[-1])}" if known else "accuracy"
    axes.plot(rounds, accuracy, color=BLUE, label=label, **_markers(rounds))
    for name, height, is_goal in lines:
        style: Any = (0, (5, 2)) if is_goal else (0, (1, 1.5))
        colour = GREEN if is_goal else GREY
        axes.axhline(height, color=colour, linewidth=1.6, linestyle=style, zorder=1, label=f"{name} {text.percent(height)}")
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("test accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.yaxis.set_major_locator(MultipleLocator(0.2))
    axes.grid(axis="y")
    legend = axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=3,
        borderaxespad=0.1,
        borderpad=0.2,
        handlelength=1.5,
        handletextpad=0.5,
        columnspacing=1,
    )
    legend.set_in_layout(False)  # a long legend must not squeeze the panel
    if not known:
        say(axes, "no round was measured")


def draw_epsilon(axes: Axes, rounds: Sequence[int], epsilon: Sequence[float], *, subtitle: str) -> None:
    """Epsilon spent so far, per round; where there is no finite one, the subtitle says it all."""
    known = [value for value in epsilon if math.isfinite(value)]
    axes.set_ylabel("ε spent")
    axes.set_xlabel("round")
    if not known:
        say(axes, subtitle)
        axes.set_yticks([])
        return
    axes.grid(axis="y")
    axes.set_title(subtitle, fontsize=9, fontweight="normal", color=GREY, pad=5)
    drawn = [value if math.isfinite(value) else math.nan for value in epsilon]
    axes.plot(rounds, drawn, color=ORANGE, **_markers(rounds))
    axes.fill_between(rounds, drawn, color=ORANGE, alpha=0.12, linewidth=0)
    axes.set_ylim(0, max(*known, 1e-9) * 1.1)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 4, 5, 10], min_n_ticks=3))


def _markers(rounds: Sequence[int]) -> dict[str, Any]:
    """A dot for each round while they can be told apart; always for the first few, which have no line yet."""
    return {"marker": "o", "markersize": 3.5} if len(rounds) <= 40 else {}


def round_axis(axes: Axes, rounds: Sequence[int]) -> None:
    """Whole rounds on the x axis, also where there is one or none."""
    last = max(rounds, default=1)
    margin = max(0.5, 0.015 * last)
    axes.set_xlim(min(rounds, default=1) - margin, last + margin)
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1))


def draw_recall(axes: Axes, names: Sequence[str], recall: Sequence[float | None], worst: int | None, *, title: str, subtitle: str) -> None:
    """A horizontal bar for each class, from the top, the worst one in another colour and with its number in bold."""
    heading(axes, title, subtitle)
    count = len(names)
    size = 9 if count <= 16 else 7
    values = [math.nan if value is None else value for value in recall]
    axes.barh(range(count), values, color=[ORANGE if index == worst else BLUE for index in range(count)], height=0.72)
    for index, value in enumerate(values):
        label = "no test record" if math.isnan(value) else text.percent(value) + ("  worst" if index == worst else "")
        weight = "bold" if index == worst else "normal"
        if value > 0.5:  # room inside the bar
            axes.text(value - 0.015, index, label, ha="right", va="center", fontsize=size, color="white", fontweight=weight)
        else:
            axes.text(max(value, 0.0) + 0.015, index, label, ha="left", va="center", fontsize=size, fontweight=weight)
    axes.set_yticks(range(count), list(names), fontsize=size)
    axes.set_ylim(max(count, 1) - 0.4, -0.6)
    axes.set_xlim(0, 1.0)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.xaxis.set_major_locator(MultipleLocator(0.25))
    axes.set_xlabel("recall")
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    if not count:
        say(axes, "no class was measured")


def draw_label_skew(
    figure: Figure | SubFigure,
    histogram: npt.NDArray[np.int64],
    names: Sequence[str],
    clients_as: Sequence[str],
    *,
    title: str,
    subtitle: str,
    width_in: float,
) -> None:
    """Heat map of records by class and client, with each client's total above it.

    Args:
        figure: where.
        histogram: int64 [clients, classes].
        names: of the classes.
        clients_as: names of the clients; empty: they are numbered from 1.
        title: bold, above all.
        subtitle: under the title.
        width_in: about how wide the map will be, in inches: decides which ticks and numbers fit.
    """
    clients, classes = histogram.shape
    top, main = figure.subplots(2, 1, sharex=True, height_ratios=[1, max(2.2, min(5.0, classes / 2.5))])
    heading(top, title, subtitle)
    totals = histogram.sum(axis=1)
    if clients <= 60:
        top.bar(range(clients), totals, color=BLUE, width=min(0.72, 0.12 * clients))
    else:
        top.stairs(totals, np.arange(clients + 1) - 0.5, fill=True, color=BLUE)
    top.set_ylabel("total")
    top.yaxis.set_major_locator(MaxNLocator(3, integer=True, min_n_ticks=2))
    top.grid(axis="y")
    top.tick_params(axis="x", length=0, labelbottom=False)
    peak = max(int(histogram.max(initial=0)), 1)
    image = main.imshow(histogram.T, aspect="auto", cmap="Blues", vmin=0, vmax=peak, interpolation="nearest")
    for spine in main.spines.values():
        spine.set_visible(False)
    main.set_xlabel("client")
    main.set_ylabel("class")
    main.tick_params(length=0)
    ticks = _client_ticks(clients, width_in)
    main.set_xticks(ticks, list(clients_as) if clients_as else [str(tick + 1) for tick in ticks], fontsize=9)
    every = math.ceil(classes / 24)
    main.set_yticks(range(0, classes, every), list(names)[::every], fontsize=9 if classes <= 12 else 7)
    if _write_counts(main, histogram, peak, width_in):
        return  # a colour bar would repeat the numbers
    bar = figure.colorbar(image, ax=main, fraction=0.045, pad=0.015)
    bar.set_label("records")
    bar.outline.set_visible(False)
    bar.locator = MaxNLocator(4, integer=True)
    bar.update_ticks()


def _client_ticks(clients: int, width_in: float) -> list[int]:
    """Positions of clients 1, 5, 10, 15, … or a like series with room for its labels; all where they fit."""
    most = max(width_in / 0.3, 2)
    steps = (digit * 10**power for power in range(7) for digit in (1, 2, 5))
    step = next(step for step in steps if clients <= step * most)
    if step < 5:
        return list(range(0, clients, step))
    return [0, *range(step - 1, clients, step)]


def _write_counts(axes: Axes, histogram: npt.NDArray[np.int64], peak: int, width_in: float) -> bool:
    """The counts themselves; False, and nothing drawn, where the cells cannot hold them."""
    clients, classes = histogram.shape
    size = min(8.5, (72 * width_in / clients - 3) / (0.66 * len(str(peak))))
    if size < 6 or classes > 12:
        return False
    for client, label in zip(*np.nonzero(histogram), strict=True):
        count = int(histogram[client, label])
        colour = "white" if count > 0.55 * peak else INK
        axes.text(client, label, str(count), ha="center", va="center", fontsize=size, color=colour)
    return True
