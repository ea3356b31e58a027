"""Secure aggregation of a run as a table, a picture and a line: who was in each sum, where clients dropped out, and what each stage took.

1. ``secagg.csv`` has one line for each round and cohort; ``secagg.png`` draws it.
2. Nothing is shown for a run without secure aggregation: a missing file says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from fedsec.files import atomic_write_bytes
from fedsec.report import text
from fedsec.report.tables import write_csv
from fedsec.results import RoundRow, RunResult, SecaggRow

STAGES = ("advertise_keys", "share_keys", "masked_input", "sketch", "consistency_check", "unmask")
COLUMNS = (
    "server_round",
    "cohort",
    "num_clients",
    "num_accepted",
    "opening",
    "reason",
    "attempts",
    "bytes_up",
    "bytes_down",
    *(f"dropped_{stage}" for stage in STAGES),
    *(f"ms_{stage}" for stage in (*STAGES, "opening")),
    "named",
    "unresolved",
)
"""Header of ``secagg.csv``. Bytes are means a member, milliseconds are wall time of all cohorts together; new columns go to the end."""

_COLOURS = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#CC79A7", "#D55E00", "#6B7280")


def secure_rows(rows: Sequence[RoundRow]) -> list[tuple[int, SecaggRow]]:
    """The rounds that ran secure aggregation."""
    return [(row.server_round, row.secagg) for row in rows if row.secagg is not None]


def write_secagg_csv(path: Path, rows: Sequence[RoundRow]) -> None:
    """Write one line for each round and cohort under :data:`COLUMNS`.

    Raises:
        StorageError: the file system refused.
    """
    write_csv(
        path, COLUMNS, [_cells(number, secagg, place) for number, secagg in secure_rows(rows) for place in range(len(secagg.cohorts))]
    )


def _cells(number: int, secagg: SecaggRow, place: int) -> list[int | float | str | None]:
    cohort = secagg.cohorts[place]
    return [
        number,
        cohort.cohort,
        cohort.num_clients,
        cohort.num_accepted,
        cohort.opening,
        cohort.reason,
        secagg.attempts,
        cohort.bytes_up,
        cohort.bytes_down,
        *(cohort.dropouts.get(stage) for stage in STAGES),
        *(secagg.stage_ms.get(stage) for stage in (*STAGES, "opening")),
        " | ".join(f"{text.safe_cell(name)}: {text.safe_cell(reason)}" for name, reason in secagg.named),
        " | ".join(text.safe_cell(name) for name in secagg.unresolved),
    ]


def secure_lines(result: RunResult) -> list[tuple[str, str, bool]]:
    """Lines of the table at the end of a run: name, text, and whether it is good news."""
    rows = [secagg for _, secagg in secure_rows(result.rows)]
    if not rows:
        return [("secure sums", "none: the server saw every update", False)] if result.rows else []
    opened = sum(secagg.all_held for secagg in rows)
    smallest = min(cohort.num_accepted for secagg in rows for cohort in secagg.cohorts)
    cohorts = len(rows[0].cohorts)
    each = f"{cohorts} cohorts, " if cohorts > 1 else ""
    held = f"{opened} of {len(rows)} rounds opened, opening check held; {each}smallest sum over {smallest} clients"
    lines = [("secure sums", held, opened == len(rows))]
    named = {name: reason for secagg in rows for name, reason in secagg.named}
    lines += [("named", f"{text.printable(name, 40)}: {text.printable(reason, 120)}", False) for name, reason in sorted(named.items())]
    return lines


def plot_secagg(result: RunResult, path: Path) -> None:
    """Milliseconds of each stage per round beside clients in the sum and drop-outs by stage.

    Args:
        result: a run with secure aggregation.
        path: of the PNG; its folder must exist.

    Raises:
        StorageError: the file system refused.
    """
    figures = _figures()
    rows = secure_rows(result.rows)
    numbers = [number for number, _ in rows]
    with figures.canvas(10.0, 4.0) as figure:
        left, right = figure.subplots(1, 2)
        _stack(left, numbers, [(stage, [secagg.stage_ms.get(stage, 0.0) for _, secagg in rows]) for stage in (*STAGES, "opening")])
        left.set_title("What a round takes")
        left.set_ylabel("milliseconds, all cohorts")
        accepted = [float(secagg.num_accepted) for _, secagg in rows]
        lost = {stage: [float(sum(c.dropouts.get(stage, 0) for c in secagg.cohorts)) for _, secagg in rows] for stage in STAGES}
        before = [(f"lost in {stage}", lost[stage]) for stage in STAGES[:4] if any(lost[stage])]
        _stack(right, numbers, [("in the sum", accepted), *before])
        late = [one + other for one, other in zip(lost[STAGES[4]], lost[STAGES[5]], strict=True)]
        if any(late):  # their inputs count: they are in the bars already
            right.plot(
                numbers,
                late,
                color=figures.ORANGE,
                marker="o",
                markersize=5,
                markeredgecolor="white",
                linewidth=1.5,
                label="left later, input counted",
            )
        right.set_title("Who is in the sum")
        right.set_ylabel("clients")
        right.yaxis.set_major_locator(figures.MaxNLocator(integer=True))
        for axes in (left, right):
            axes.set_xlabel("round")
            axes.xaxis.set_major_locator(figures.MaxNLocator(integer=True))
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncol=3, fontsize=8)
        atomic_write_bytes(path, figures.to_png(figure))


def _figures() -> ModuleType:
    from fedsec.report import figures  # noqa: PLC0415 - matplotlib takes half a second to import

    return figures


def _stack(axes, numbers: Sequence[int], series: Sequence[tuple[str, Sequence[float]]]) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001 - matplotlib is imported late
    bottoms = [0.0] * len(numbers)
    for (name, values), colour in zip(series, _COLOURS, strict=False):
        axes.bar(numbers, values, bottom=bottoms, color=colour, width=0.8, label=name.replace("_", " "))
        bottoms = [bottom + value for bottom, value in zip(bottoms, values, strict=True)]
