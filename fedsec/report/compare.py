"""Results of several folders side by side: runs and sweeps, what differs between their plans, and why some cannot be compared.

1. Folders of different tasks (other records, other classes) are refused: their accuracies are no numbers of one scale.
2. What else differs is listed, key by key; who compares decides whether it matters.
3. A run is one number without an interval; a sweep brings its means over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsec.errors import ConfigError
from fedsec.files import atomic_write_bytes
from fedsec.plan.load import load_plan
from fedsec.plan.model import Plan, plan_to_jsonable
from fedsec.plan.sweep import epsilon_name, plans_of_sweep, spell
from fedsec.plan.sweep_tasks import task_keys
from fedsec.report import text
from fedsec.report.sweep_drawing import series_name
from fedsec.report.sweep_folder import MARKER, open_sweep_folder
from fedsec.report.sweep_summary import summarise_sweep
from fedsec.report.tables import read_result, write_csv

COMPARE_FORMAT = "fedsec/compare/v1"
_TASK = ("data.name", "data.source", "data.hub")
_IDLE = ("name", "privacy.epsilon", "privacy.unit", "federation.seed")
"""Keys that the lines themselves show."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One result.

    Attributes:
        folder: it comes from, as it was named.
        what: plan or series.
        epsilon: spent or asked for; infinite without privacy.
        accuracy: mean over seeds.
        half_width: of its 95 % interval; None where there is none.
        seeds: behind it.
        note: what a reader must know; empty as a rule.
    """

    folder: str
    what: str
    epsilon: float
    accuracy: float
    half_width: float | None
    seeds: int
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values, strict JSON."""
        shown = self.accuracy if math.isfinite(self.accuracy) else None
        facts = {"folder": self.folder, "what": self.what, "epsilon": spell(self.epsilon), "accuracy": shown}
        return {**facts, "half_width_95": self.half_width, "seeds": self.seeds, "note": self.note}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Several folders.

    Attributes:
        lines: in the order of the folders.
        differs: key → its value in each folder, where they are not all the same.
        folders: as they were named.
    """

    lines: tuple[Line, ...]
    differs: dict[str, tuple[str, ...]]
    folders: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return {
            "format": COMPARE_FORMAT,
            "folders": list(self.folders),
            "results": [line.to_json() for line in self.lines],
            "differs": {key: list(values) for key, values in self.differs.items()},
        }


def compare_folders(folders: Sequence[Path]) -> Comparison:
    """Read all folders.

    Raises:
        ConfigError: fewer than two, one twice, one that holds no results, or different tasks.
        StorageError: a folder is damaged.
    """
    if len(folders) < 2:
        raise ConfigError("one folder cannot be compared", mend="name two or more")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ConfigError("a folder is there twice", mend="name each once")
    read = [_read(folder) for folder in folders]
    _refuse_other_tasks(folders, [(plan, classes) for plan, classes, _ in read])
    flat = [_flat(plan) for plan, _, _ in read]
    keys = sorted(set().union(*flat))
    values = {key: tuple(one.get(key, "–") for one in flat) for key in keys if key not in _IDLE}
    return Comparison(
        lines=tuple(line for _, _, lines in read for line in lines),
        differs={key: found for key, found in values.items() if len(set(found)) > 1},
        folders=tuple(map(str, folders)),
    )


def _read(folder: Path) -> tuple[Plan, tuple[str, ...], list[Line]]:
    if (folder / MARKER).exists():
        return _read_sweep(folder)
    if not (folder / "result.json").exists():
        raise ConfigError(f"{folder} holds no finished run and no sweep", mend="name folders of fedsec simulate or fedsec sweep")
    result, plan = read_result(folder / "result.json"), load_plan(folder / "plan.toml")
    note = "stopped early" if result.stopped_early else ""
    spent = result.epsilon.prv
    line = Line(folder=str(folder), what=result.plan_name, epsilon=spent, accuracy=result.accuracy, half_width=None, seeds=1, note=note)
    return plan, result.class_names, [line]


def _read_sweep(folder: Path) -> tuple[Plan, tuple[str, ...], list[Line]]:
    opened = open_sweep_folder(folder)
    plan, grid = opened.plan(), opened.grid()
    keys = [key for (what, _), key in task_keys(grid, plans_of_sweep(plan, grid)).items() if what == "run"]
    summary = summarise_sweep(grid, opened.rows().values(), (), keys=keys)
    lines = []
    for series in summary.series:
        for epsilon in grid.epsilons:
            figure = summary.figure(series, epsilon)
            if figure is None:
                continue
            what = plan.name if series == summary.main else f"{plan.name}, {series_name(series)}"
            is_claim = not series[1].noise_only
            lines.append(
                Line(
                    folder=str(folder),
                    what=what,
                    epsilon=epsilon if is_claim else math.inf,
                    accuracy=figure.mean,
                    half_width=figure.half_width,
                    seeds=len(figure.values),
                    note=f"{text.counted(figure.missing, 'seed')} missing" if figure.missing else "",
                )
            )
    classes = summary.rows[0].class_names if summary.rows else ()
    return plan, classes, lines


def _flat(plan: Plan) -> dict[str, str]:
    found = {}
    for section, content in plan_to_jsonable(plan).items():
        if isinstance(content, dict):
            found.update({f"{section}.{key}": str(value) for key, value in content.items()})
    return found


def _refuse_other_tasks(folders: Sequence[Path], read: Sequence[tuple[Plan, tuple[str, ...]]]) -> None:
    tasks = [tuple(_flat(plan).get(key, "") for key in _TASK) for plan, _ in read]
    for folder, task, (_, classes) in zip(folders, tasks, read, strict=True):
        if task != tasks[0]:
            ours, theirs = (" ".join(filter(None, one)) for one in (tasks[0], task))
            raise ConfigError(
                f"{folders[0]} is about {ours}, {folder} about {theirs}: accuracies on different records have no common scale",
                mend="compare folders of one data set",
            )
        if classes and read[0][1] and classes != read[0][1]:
            raise ConfigError(f"{folders[0]} and {folder} tell other classes apart", mend="compare folders of one task")


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write ``compare.png`` and ``compare.csv``.

    Raises:
        StorageError: the file system refused.
    """
    from fedsec.report import figures  # noqa: PLC0415 - matplotlib takes half a second to import

    header = ("folder", "what", "epsilon", "accuracy", "half_width_95", "seeds", "note")
    write_csv(
        folder / "compare.csv",
        header,
        ([getattr(line, name if name != "half_width_95" else "half_width") for name in header] for line in comparison.lines),
    )
    with figures.canvas(8.6, 4.4) as figure:
        _draw(figure.subplots(), comparison)
        atomic_write_bytes(folder / "compare.png", figures.to_png(figure))


def _draw(axes: Any, comparison: Comparison) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter  # noqa: PLC0415

    from fedsec.report import figures  # noqa: PLC0415
    from fedsec.report.sweep_svg import SERIES  # noqa: PLC0415

    figures.heading(axes, "Accuracy against privacy", f"{len(comparison.differs)} settings differ; dashed: without privacy")
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in comparison.lines:
        groups.setdefault((line.folder, line.what), []).append(line)
    for place, ((folder, what), lines) in enumerate(groups.items()):
        colour, label = SERIES[place % len(SERIES)], text.printable(f"{Path(folder).name}: {what}", 40)
        finite = sorted((line for line in lines if math.isfinite(line.epsilon)), key=lambda line: line.epsilon)
        if finite:
            widths = [line.half_width or 0.0 for line in finite]
            axes.errorbar(
                [line.epsilon for line in finite],
                [line.accuracy for line in finite],
                yerr=widths,
                color=colour,
                marker="o",
                markersize=5,
                elinewidth=1.2,
                label=label,
            )
        for line in lines:
            if math.isinf(line.epsilon):
                axes.axhline(line.accuracy, color=colour, linestyle=(0, (5, 2)), linewidth=1.4, label=None if finite else label)
    epsilons = sorted({round(line.epsilon, 2) for line in comparison.lines if math.isfinite(line.epsilon)})
    if epsilons:
        axes.set_xscale("log")
        axes.set_xlim(epsilons[0] / 1.35, epsilons[-1] * 1.35)
        axes.xaxis.set_major_locator(FixedLocator(epsilons))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axes.set_xticks([])
    axes.set_xlabel("ε (log scale): smaller protects more")
    axes.set_ylabel("test accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(axis="y")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0)


def line_cells(line: Line) -> tuple[str, ...]:
    """A line of the table on the terminal."""
    spread = f" ± {100 * line.half_width:.1f}" if line.half_width is not None else ""
    epsilon = "no privacy" if math.isinf(line.epsilon) else epsilon_name(round(line.epsilon, 3))
    return (
        text.printable(line.folder, 60),
        text.printable(line.what, 60),
        epsilon,
        f"{text.percent(line.accuracy)}{spread}",
        str(line.seeds),
        line.note,
    )
