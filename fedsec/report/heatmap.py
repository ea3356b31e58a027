"""The heat map of a grid of attacks and rules as PNG and CSV, and the colours that the page uses too.

1. A cell shows the accuracy that the summary gives, or that there is none; nothing is interpolated.
2. Colours run from orange (nothing left) over pale to blue (all that is reached without an attack): colour-blind readers can tell the ends
   apart, and a small difference looks small.
3. The same rows give the same bytes.

matplotlib is imported by the picture, not with this module. Colours: Okabe and Ito 2008, "Color Universal Design".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedsec.files import atomic_write_bytes
from fedsec.report import text
from fedsec.report.attack_summary import Figure, Summary
from fedsec.report.tables import write_csv

_STOPS = ((0.0, (213, 94, 0)), (0.5, (244, 240, 232)), (1.0, (0, 98, 158)))
_BALANCE = 0.179  # white and black have the same contrast to it
CELL_COLUMNS = (
    "attack",
    "rule",
    "fraction",
    "seed",
    "strength",
    "accuracy",
    "majority_accuracy",
    "num_clients",
    "num_attackers",
    "precision",
    "recall",
    "honest_rate",
    "attack_success",
    "epsilon",
    "delta",
    "wall_s",
    "key",
)
"""Header of ``cells.csv``; new columns go to the end."""
WHITE, BLACK, NOTHING = "#FFFFFF", "#000000", "#9CA3AF"


def scale_of(summary: Summary) -> float:
    """The accuracy that gets the last colour: the best without an attack, or 1 if none is known."""
    clean = [figure.accuracy for rule in summary.grid.rules if (figure := summary.no_attack(rule)) is not None]
    return max(clean, default=1.0) or 1.0


def colour(accuracy: float, top: float) -> tuple[str, str]:
    """Background and ink for an accuracy, as ``#RRGGBB``; the ink has a contrast of 4.5 at least (WCAG 2.2, 1.4.3).

    >>> colour(0.0, 0.9)[0], colour(0.9, 0.9)[0]
    ('#D55E00', '#00629E')
    """
    share = min(max(accuracy / top, 0.0), 1.0)
    (low, first), (high, second) = _STOPS[:2] if share < _STOPS[1][0] else _STOPS[1:]
    mixed = [a + (b - a) * (share - low) / (high - low) for a, b in zip(first, second, strict=True)]
    shown = "#{:02X}{:02X}{:02X}".format(*(round(value) for value in mixed))
    return shown, WHITE if luminance(shown) < _BALANCE else BLACK


def luminance(shown: str) -> float:
    """Relative luminance of ``#RRGGBB``, 0 to 1.

    Source: WCAG 2.2, "relative luminance".
    """
    parts = (int(shown[start : start + 2], 16) / 255 for start in (1, 3, 5))
    linear = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def columns_of(summary: Summary) -> list[tuple[str, dict[str, Figure | None]]]:
    """Heading and rule → figure, for each column of the map: no attack, the attacks, the worst case."""
    rules = summary.grid.rules
    attacks = [(attack, {rule: summary.cell(rule, attack) for rule in rules}) for attack in summary.grid.attacks]
    return [
        ("no attack", {rule: summary.no_attack(rule) for rule in rules}),
        *attacks,
        ("worst case", {rule: summary.worst(rule) for rule in rules}),
    ]


def write_heat_map_csv(summary: Summary, path: Path) -> None:
    """One line a rule: accuracy in each column of the map, which attack is the worst, and how many of its runs are missing.

    Raises:
        StorageError: the file system refused.
    """
    columns = columns_of(summary)
    lines = []
    for rule in summary.grid.rules:
        worst = summary.worst(rule)
        figures = [column[rule] for _, column in columns]
        missing = sum(cell.rule == rule for cell in summary.missing)
        tail = [worst.attack if worst else None, worst.fraction if worst else None, missing]
        lines.append([rule, *(figure.accuracy if figure else None for figure in figures), *tail])
    write_csv(path, ["rule", *(name for name, _ in columns), "worst attack", "worst fraction", "runs missing"], lines)


def write_cells_csv(summary: Summary, path: Path) -> None:
    """One line a run that ended, every figure of its row.

    Raises:
        StorageError: the file system refused.
    """
    write_csv(path, CELL_COLUMNS, ([getattr(row, name) for name in CELL_COLUMNS] for row in summary.rows))


def plot_heat_map(summary: Summary, path: Path, *, title: str) -> None:
    """The map as a picture, rules down and attacks across.

    Args:
        summary: of the grid.
        path: of the PNG; its folder must exist.
        title: above it; shown as it is, cut to fit.

    Raises:
        StorageError: the file system refused.
    """
    from fedsec.report import figures  # noqa: PLC0415 - matplotlib takes half a second to import

    columns = columns_of(summary)
    width, height = 2.6 + 1.0 * len(columns), 1.9 + 0.42 * len(summary.grid.rules)
    with figures.canvas(width, height) as figure:
        axes = figure.subplots()
        axes.set_title(figures.fit(text.printable(title), width - 0.6), pad=30)
        axes.annotate(
            _subtitle(summary), (0, 1), (0, 12), xycoords="axes fraction", textcoords="offset points", fontsize=8, color=figures.GREY
        )
        for row, rule in enumerate(summary.grid.rules):
            for place, (_, column) in enumerate(columns):
                _draw_cell(axes, row, place, column[rule], scale_of(summary))
        _label(axes, [text.printable(name, 20) for name, _ in columns], [text.printable(rule, 32) for rule in summary.grid.rules])
        atomic_write_bytes(path, figures.to_png(figure))


def _subtitle(summary: Summary) -> str:
    whole = f"{len(summary.missing)} of {len(summary.grid.cells())} runs are missing" if summary.missing else "all runs ended"
    seeds = text.counted(len(summary.grid.seeds), "seed")
    return f"accuracy, mean over {seeds}, worst share of attackers; {whole}"


def _draw_cell(axes: Any, row: int, column: int, figure: Figure | None, top: float) -> None:
    from matplotlib.patches import Rectangle  # noqa: PLC0415

    background, ink = colour(figure.accuracy, top) if figure else (NOTHING, BLACK)
    axes.add_patch(Rectangle((column - 0.48, row - 0.46), 0.96, 0.92, facecolor=background, edgecolor="none"))
    mark = "*" if figure is not None and figure.missing else ""
    shown = f"{text.percent(figure.accuracy)}{mark}" if figure else "missing"
    axes.text(column, row, shown, ha="center", va="center", fontsize=9, color=ink)


def _label(axes: Any, columns: list[str], rules: list[str]) -> None:
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(rules) - 0.5, -0.5)
    axes.set_xticks(range(len(columns)), columns, fontsize=9, rotation=25, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rules)), rules, fontsize=9)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for edge in (0.5, len(columns) - 1.5):  # set no attack and worst case apart
        axes.axvline(edge, color="#1F2937", linewidth=1.2)
