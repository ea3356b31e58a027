"""Pictures of one run: accuracy and epsilon per round, label skew, recall per class, and one overview of all three.

1. Each picture is a PNG with a CSV of what it shows beside it, under the same stem; both are whole or absent.
2. The same run gives the same bytes: no time, no machine, no user settings in the files.
3. Label counts are private data: their picture says that it is for simulations only.

matplotlib is imported by the first picture, not with this module.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedsec.files import atomic_write_bytes
from fedsec.report import text
from fedsec.report.tables import privacy_line, who_and_how_long, worst_class, write_csv
from fedsec.results import RunResult

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

SKEW_TITLE, SKEW_SUBTITLE = "Records by class and client", "simulation only: these counts are private"
NAME_LIMIT = 24
MOST_CLASSES = 24
MOST_CLIENT_NAMES = 8


def _figures() -> ModuleType:
    from fedsec.report import figures  # noqa: PLC0415 - matplotlib takes half a second to import, and most commands draw nothing

    return figures


def plot_accuracy_and_epsilon(result: RunResult, path: Path, *, reference_accuracy: float | None = None) -> None:
    """Accuracy per round above the epsilon spent so far, over the same rounds.

    Args:
        result: the run.
        path: of the PNG; its folder must exist. The CSV goes beside it.
        reference_accuracy: of the same plan without privacy, drawn as a line if given.

    Raises:
        StorageError: the file system refused.
    """
    figures = _figures()
    with figures.canvas(8.0, 5.2) as figure:
        _draw_curves(
            figure, result, reference_accuracy, title=figures.fit(f"Accuracy and privacy spent: {text.printable(result.plan_name)}", 6.8)
        )
        atomic_write_bytes(path, figures.to_png(figure))
    write_csv(
        path.with_suffix(".csv"),
        ("server_round", "accuracy", "epsilon_prv", "epsilon_rdp", "majority_accuracy", "reference_accuracy"),
        (
            (row.server_round, row.accuracy, row.epsilon_prv, row.epsilon_rdp, result.majority_accuracy, reference_accuracy)
            for row in result.rows
        ),
    )


def plot_label_skew(histogram: npt.NDArray[np.int64], class_names: Sequence[str], path: Path, *, client_names: Sequence[str] = ()) -> None:
    """Training records by class and client: private data, so for simulations only, as the title says.

    Args:
        histogram: counts [clients, classes], as ``fedsec.data.partition.label_histogram`` gives them.
        class_names: one for each column.
        path: of the PNG; its folder must exist. The CSV goes beside it.
        client_names: one for each row, for example hospitals; without them clients are numbered from 1.

    Raises:
        ValueError: wrong shape, no client or class, or a negative count.
        StorageError: the file system refused.
    """
    counts = _check_histogram(histogram, class_names, client_names)
    figures = _figures()
    height = 2.6 + 0.28 * min(max(counts.shape[1], 3), 24)
    with figures.canvas(8.5, height) as figure:
        _draw_skew(figure, counts, _short(class_names), client_names, width_in=7.0)
        atomic_write_bytes(path, figures.to_png(figure))
    ids: Sequence[Any] = client_names or range(1, len(counts) + 1)
    rows = ([client, *(int(count) for count in row)] for client, row in zip(ids, counts, strict=True))
    write_csv(path.with_suffix(".csv"), ("client", *class_names), rows)


def plot_recall(result: RunResult, path: Path) -> None:
    """Recall of each class, the worst one marked.

    Raises:
        StorageError: the file system refused.
    """
    figures = _figures()
    shown = min(max(len(result.recall), 3), MOST_CLASSES)
    title = figures.fit(f"Recall by class: {text.printable(result.plan_name)}", 4.6)
    with figures.canvas(7.0, 1.6 + 0.3 * shown) as figure:
        _draw_recall(figure, result, most=MOST_CLASSES, limit=NAME_LIMIT, title=title)
        atomic_write_bytes(path, figures.to_png(figure))
    write_csv(path.with_suffix(".csv"), ("class", "recall", "worst"), _recall_rows(result))


def plot_overview(
    result: RunResult,
    histogram: npt.NDArray[np.int64] | None,
    path: Path,
    *,
    reference_accuracy: float | None = None,
    client_names: Sequence[str] = (),
) -> None:
    """One wide picture of a run: accuracy and epsilon, label skew, recall, with a line that says what was run.

    Args:
        result: the run.
        histogram: counts [clients, classes] of a simulation, or None: the panel is left out.
        path: of the PNG; its folder must exist. The CSV beside it has one line for each number: panel, series, x, value.
        reference_accuracy: of the same plan without privacy, drawn as a line if given.
        client_names: one for each row of the histogram; without them clients are numbered from 1.

    Raises:
        ValueError: the histogram does not fit the class names.
        StorageError: the file system refused.
    """
    counts = None if histogram is None else _check_histogram(histogram, result.class_names, client_names)
    figures = _figures()
    width_ratios = [1.15, 1.15, 0.75] if counts is not None else [1.4, 1.0]
    with figures.canvas(13.0 if counts is not None else 9.0, 4.8) as figure:
        head, body = figure.subfigures(2, 1, height_ratios=[0.14, 1.0])
        _draw_caption(head, result)
        panels = list(np.ravel(body.subfigures(1, len(width_ratios), width_ratios=width_ratios)))
        _draw_curves(panels[0], result, reference_accuracy, title="Accuracy and privacy spent", compact=True)
        if counts is not None:
            _draw_skew(panels[1], counts, _short(result.class_names, 12), client_names, width_in=3.9)
        _draw_recall(panels[-1], result, most=12, limit=12, title="Recall by class")
        atomic_write_bytes(path, figures.to_png(figure))
    write_csv(path.with_suffix(".csv"), ("panel", "series", "x", "value"), _overview_rows(result, counts, reference_accuracy))


def _draw_caption(head: SubFigure, result: RunResult) -> None:
    facts = f"{who_and_how_long(result, '  ·  ')}  ·  {privacy_line(result)}"
    head.text(0.006, 0.62, _figures().fit(text.printable(result.plan_name), 8.5, size=14), fontsize=14, fontweight="bold", va="center")
    head.text(0.006, 0.1, facts, fontsize=11, va="center")


def _draw_curves(figure: Any, result: RunResult, reference: float | None, *, title: str, compact: bool = False) -> None:
    figures = _figures()
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[2.0, 1.0])
    rounds = [row.server_round for row in result.rows]
    goal, floor = ("no privacy", "majority") if compact else ("without privacy", "always the commonest class")
    lines = [
        (name, height, is_goal)
        for name, height, is_goal in ((goal, reference, True), (floor, result.majority_accuracy, False))
        if height is not None and math.isfinite(height)
    ]
    figures.draw_accuracy(upper, rounds, [row.accuracy for row in result.rows], lines=lines, title=title)
    short = compact and result.epsilon.is_private
    subtitle = f"ε = {text.epsilon(result.epsilon.prv)} at the end" if short else privacy_line(result)
    figures.draw_epsilon(
        lower, rounds, [math.nan if row.epsilon_prv is None else row.epsilon_prv for row in result.rows], subtitle=subtitle
    )
    figures.round_axis(lower, rounds)


def _draw_skew(figure: Any, counts: npt.NDArray[np.int64], names: Sequence[str], client_names: Sequence[str], *, width_in: float) -> None:
    room = int(width_in / len(counts) / 0.075)  # characters of nine points over one column
    clients_as = _short(client_names, room) if len(client_names) <= MOST_CLIENT_NAMES else []
    _figures().draw_label_skew(figure, counts, names, clients_as, title=SKEW_TITLE, subtitle=SKEW_SUBTITLE, width_in=width_in)


def _draw_recall(figure: Any, result: RunResult, *, most: int, limit: int, title: str) -> None:
    """All classes in their order; of very many, those with the lowest recall, lowest first."""
    order = list(range(len(result.recall)))
    subtitle = "share of each class found"
    if len(order) > most:
        order = sorted(order, key=lambda index: (text.number_or(result.recall[index], math.inf), index))[:most]
        subtitle = f"the {most} lowest of {len(result.recall)} classes"
    worst = worst_class(result.recall)
    recall = [result.recall[index] for index in order]
    names = _short((result.class_names[index] for index in order), limit)
    place = order.index(worst) if worst is not None else None
    _figures().draw_recall(figure.subplots(), names, recall, place, title=title, subtitle=subtitle)


def _short(names: Iterable[str], limit: int = NAME_LIMIT) -> list[str]:
    return [text.printable(name, limit) for name in names]


def _recall_rows(result: RunResult) -> Iterator[tuple[Any, ...]]:
    worst = worst_class(result.recall)
    for index, (name, value) in enumerate(zip(result.class_names, result.recall, strict=False)):  # recall is empty if not measured
        yield name, value, int(index == worst)


def _overview_rows(result: RunResult, counts: npt.NDArray[np.int64] | None, reference: float | None) -> Iterator[tuple[Any, ...]]:
    for row in result.rows:
        yield "curves", "accuracy", row.server_round, row.accuracy
        yield "curves", "epsilon_prv", row.server_round, row.epsilon_prv
    yield "curves", "majority_accuracy", None, result.majority_accuracy
    yield "curves", "reference_accuracy", None, reference
    if counts is not None:
        for client, row_counts in enumerate(counts):
            for name, count in zip(result.class_names, row_counts, strict=True):
                yield "label skew", f"class {name}", client + 1, int(count)
    for name, value, _ in _recall_rows(result):
        yield "recall", "recall", name, value


def _check_histogram(histogram: npt.NDArray[np.int64], class_names: Sequence[str], client_names: Sequence[str]) -> npt.NDArray[np.int64]:
    counts = np.asarray(histogram)
    if counts.ndim != 2 or counts.shape[0] < 1 or counts.shape[1] != len(class_names) or counts.shape[1] < 1:
        raise ValueError(f"the histogram must be [clients, {len(class_names)} classes], not {list(counts.shape)}")
    if not np.issubdtype(counts.dtype, np.integer) or counts.min() < 0:
        raise ValueError("the histogram must hold counts: whole numbers, none negative")
    if client_names and len(client_names) != counts.shape[0]:
        raise ValueError(f"{len(client_names)} client names for {counts.shape[0]} clients")
    return counts.astype(np.int64)
