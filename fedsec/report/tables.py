"""A run as files and tables: ``rounds.csv``, ``result.json``, the table at its end, and several runs side by side.

1. Files are whole or absent, and the same run gives the same bytes.
2. ``rounds.csv`` has one header for every run; no cell of it is a formula to a spreadsheet.
3. An epsilon is never shown without its delta, unit and neighbouring relation.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from fedsec.errors import DecodeError, StorageError
from fedsec.files import atomic_write_json, atomic_write_text
from fedsec.report import text
from fedsec.results import RoundRow, RunResult

ROUND_COLUMNS = (
    "server_round",
    "accuracy",
    "loss",
    "recall_worst",
    "epsilon_prv",
    "epsilon_rdp",
    "num_selected",
    "num_valid",
    "num_dropped",
    "num_rejected",
    "update_norm",
    "seconds",
    "bytes_up",
    "bytes_down",
    "recall",
    "site_accuracy",
    "rejected",
    "num_kept_out",
    "num_quarantined",
    "failed_closed",
)
"""Header of ``rounds.csv``; new columns go to the end."""


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file atomically: None is an empty cell, floats keep every digit, text is safe in a spreadsheet.

    Raises:
        StorageError: the file system refused.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([_cell(name) for name in header])
    writer.writerows([_cell(value) for value in row] for row in rows)
    atomic_write_text(path, buffer.getvalue())


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return text.safe_cell(value)
    return str(int(value)) if isinstance(value, Integral) else repr(float(value))


def write_rounds_csv(path: Path, rows: Iterable[RoundRow]) -> None:
    """Write one line for each round under :data:`ROUND_COLUMNS`.

    Shares are 0 to 1, times in seconds, sizes in bytes. ``recall`` holds one number for each class, separated by blanks, "n/a" for a class
    without test records; ``site_accuracy`` and ``rejected`` hold ``name: value`` pairs, separated by " | ". Of the rule:
    ``num_kept_out`` counts clients that it rejected or that are in quarantine, ``failed_closed`` says why the model stayed as it was.

    Raises:
        StorageError: the file system refused.
    """
    write_csv(path, ROUND_COLUMNS, (_round_cells(row) for row in rows))


def _round_cells(row: RoundRow) -> list[Any]:
    worst = worst_class(row.recall)
    sites = (f"{text.safe_cell(name)}: {value!r}" for name, value in (row.site_accuracy or {}).items())
    rejected = (f"{text.safe_cell(client_id)}: {text.safe_cell(reason)}" for client_id, reason in row.rejected)
    recall = " ".join(text.MISSING if value is None else repr(float(value)) for value in row.recall)
    return [
        row.server_round,
        row.accuracy,
        row.loss,
        None if worst is None else row.recall[worst],
        row.epsilon_prv,
        row.epsilon_rdp,
        row.num_selected,
        row.num_valid,
        row.num_dropped,
        len(row.rejected),
        row.update_norm,
        row.seconds,
        row.bytes_up,
        row.bytes_down,
        recall,
        " | ".join(sites),
        " | ".join(rejected),
        None if row.screening is None else len(row.screening.kept_out),
        None if row.screening is None else len(row.screening.quarantined),
        None if row.screening is None else row.screening.failed,
    ]


def write_result(path: Path, result: RunResult) -> None:
    """Write ``result.json``.

    Raises:
        StorageError: the file system refused.
    """
    atomic_write_json(path, result.to_json())


def read_result(path: Path) -> RunResult:
    """Read ``result.json``.

    Raises:
        StorageError: it cannot be read.
        DecodeError: it is not a result of this format.
    """
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"{path} is not JSON: {error}") from None
    return RunResult.from_json(value, path.name)


def worst_class(recall: Sequence[float | None]) -> int | None:
    """Index of the lowest recall, the first of several; None where no class has one."""
    known = [(value, index) for index, value in enumerate(recall) if value is not None and not math.isnan(value)]
    return min(known)[1] if known else None


def privacy_line(result: RunResult) -> str:
    """Epsilon with what it means nothing without: delta, unit and relation.

    The number is rounded up, so that it never claims more than was proven.
    """
    spent = result.epsilon
    if not spent.is_private:
        return "no differential privacy (ε is infinite)"
    return f"ε = {text.epsilon(spent.prv)} at δ = {text.decimal(spent.delta)}, {_scope(spent.unit, spent.relation)}"


def who_and_how_long(result: RunResult, separator: str = ", ") -> str:
    """Clients and completed rounds."""
    early = " (stopped early)" if result.stopped_early else ""
    return f"{text.counted(result.num_clients, 'client')}{separator}{text.counted(result.rounds, 'round')}{early}"


def result_table(result: RunResult) -> Group:
    """The table at the end of a run, with the guarantee below it."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in _result_lines(result):
        grid.add_row(name, value)
    title = Text(text.printable(result.plan_name, 100), style="bold cyan")
    parts: list[Any] = [title, grid, Text()]
    if result.stopped_early:
        parts.insert(1, Text("Stopped early: the figures are those of the last finished round.", style="yellow"))
    parts.append(Text(text.printable(result.guarantee)))
    return Group(*parts)


def _result_lines(result: RunResult) -> list[tuple[str, Text]]:
    from fedsec.report.rejection import rejection_lines  # noqa: PLC0415 - it writes tables itself
    from fedsec.report.secure import secure_lines  # noqa: PLC0415 - so does it

    accuracy = Text(text.percent(result.accuracy), style="bold green")
    if result.majority_accuracy is not None:
        accuracy.append(f"  (always the commonest class: {text.percent(result.majority_accuracy)})", style="not bold default")
    lines = [("accuracy", accuracy), ("worst recall", Text(_worst_recall(result)))]
    for name, sites in (("by site", result.site_accuracy), ("personalised", result.personal_accuracy)):
        if sites:
            lines.append((name, Text(_site_summary(sites))))
    lines.append(("privacy", Text(privacy_line(result), style="bold green" if result.epsilon.is_private else "yellow")))
    if result.epsilon.is_private:
        spent = result.epsilon
        lines.append(
            ("", Text(f"RDP accountant: ε = {text.epsilon(spent.rdp)}; noise multiplier σ = {text.decimal(spent.noise_multiplier)}"))
        )
        lines.append(("randomness", Text(text.printable(result.randomness))))
    told = {text.printable(one.client_id, 40) for one in (result.rejection.named if result.rejection is not None else ())}
    secure = [line for line in secure_lines(result) if line[0] != "named" or line[1].partition(": ")[0] not in told]
    lines += [(name, Text(line, style="bold green" if good else "yellow")) for name, line, good in (*secure, *rejection_lines(result))]
    lines.append(("run", Text(f"{who_and_how_long(result)}, engine {text.printable(result.engine)}")))
    rejected = sum(len(row.rejected) for row in result.rows)
    dropped = sum(row.num_dropped for row in result.rows)
    if rejected or dropped:
        lines.append(("updates", Text(f"{rejected} rejected, {dropped} missing", style="yellow")))
    lines.append(("traffic", Text(_traffic(result.rows))))
    lines.append(("time", Text(text.duration(result.duration_s))))
    lines.append(("files", Text(text.printable(result.run_dir))))
    return lines


def _worst_recall(result: RunResult) -> str:
    worst = worst_class(result.recall)
    if worst is None:
        return text.MISSING
    return f"{text.percent(result.recall[worst])}  (class {text.printable(result.class_names[worst], 40)})"


def _site_summary(sites: dict[str, float], most: int = 6) -> str:
    known = {name: value for name, value in sites.items() if not math.isnan(value)}
    if not known:
        return text.MISSING
    mean = f"mean {text.percent(sum(known.values()) / len(known))}"
    if len(known) > most:
        low = min(known, key=lambda name: known[name])
        return f"{mean} of {len(known)} sites, lowest {text.percent(known[low])} ({text.printable(low, 24)})"
    return f"{mean}: " + ", ".join(f"{text.printable(name, 24)} {text.percent(value)}" for name, value in known.items())


def _traffic(rows: Sequence[RoundRow]) -> str:
    up, down = sum(row.bytes_up for row in rows), sum(row.bytes_down for row in rows)
    counted = "protocol and model" if any(row.secagg is not None for row in rows) else "model bytes"
    return f"{text.byte_size(up)} up, {text.byte_size(down)} down ({counted}, all clients)"


def comparison_table(results: Sequence[RunResult]) -> Table:
    """Several runs side by side, one line each, in the given order; units and relations of their epsilons below it."""
    table = Table(header_style="bold", box=SIMPLE_HEAD, pad_edge=False, caption_justify="left")
    table.add_column("run", overflow="fold", min_width=8)
    for name in ("accuracy", "worst recall", "ε at δ", "clients", "rounds", "time"):
        table.add_column(name, justify="right", overflow="fold")
    for result in results:
        worst = worst_class(result.recall)
        spent = result.epsilon
        mark = f" ({text.printable(spent.unit, 12)})" if len(_scopes(results)) > 1 else ""
        table.add_row(
            Text(text.printable(result.plan_name, 60)),
            text.percent(result.accuracy),
            text.percent(None if worst is None else result.recall[worst]),
            f"{text.epsilon(spent.prv)} at {text.decimal(spent.delta)}{mark}" if spent.is_private else "infinite",
            str(result.num_clients),
            f"{result.rounds}{'*' if result.stopped_early else ''}",
            text.duration(result.duration_s),
        )
    table.caption = Text("; ".join(_footnotes(results)))
    return table


def _footnotes(results: Sequence[RunResult]) -> list[str]:
    notes = [f"ε by the PRV accountant, {_scope(unit, relation)}" for unit, relation in sorted(_scopes(results))]
    if any(result.stopped_early for result in results):
        notes.append("* stopped early")
    return notes


def _scopes(results: Sequence[RunResult]) -> set[tuple[str, str]]:
    return {(result.epsilon.unit, result.epsilon.relation) for result in results if result.epsilon.is_private}


def _scope(unit: str, relation: str) -> str:
    said = "add or remove one record" if relation == "add-remove" else text.printable(relation, 40)
    return f"each {text.printable(unit, 40)}, {said}"


def print_result(result: RunResult, console: Console) -> None:
    """Print :func:`result_table`; characters that the console's encoding lacks are spelled out."""
    print_encodable(result_table(result), console)


def print_comparison(results: Sequence[RunResult], console: Console) -> None:
    """Print :func:`comparison_table`; characters that the console's encoding lacks are spelled out."""
    print_encodable(comparison_table(results), console)


def print_encodable(renderable: Any, console: Console) -> None:
    """Print what rich can render, never failing on a character that the console's encoding lacks."""
    if console.encoding.lower().startswith("utf"):
        console.print(renderable, highlight=False)
        return
    with console.capture() as capture:
        console.print(renderable, highlight=False)
    console.file.write(text.encodable(capture.get(), console.encoding))
