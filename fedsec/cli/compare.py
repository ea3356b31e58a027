"""``fedsec compare``: results of several folders side by side."""

from __future__ import annotations

import json
from pathlib import Path

import typer

EPILOG = "Examples:  fedsec compare runs/eps2 runs/eps8  ·  fedsec compare runs/sweep-a runs/sweep-b --out runs/a-and-b  ·  fedsec compare runs/a runs/b --json"


def compare(
    folders: list[Path] = typer.Argument(..., help="Folders of fedsec simulate or fedsec sweep, two or more, of one task."),
    out: Path | None = typer.Option(None, help="Also write compare.png, compare.csv and compare.json there.", show_default=False),
    as_json: bool = typer.Option(False, "--json", help="Print exactly one JSON object on stdout."),
) -> None:
    """Compare accuracy and epsilon of runs and sweeps, and say what else differs between them."""
    from fedsec.report.compare import compare_folders, write_comparison

    found = compare_folders(folders)
    if out is not None:
        from fedsec.errors import StorageError
        from fedsec.files import atomic_write_json

        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot make {out}: {error.strerror or error}") from error
        write_comparison(found, out)
        atomic_write_json(out / "compare.json", found.to_json())
    if as_json:
        print(json.dumps(found.to_json(), allow_nan=False))
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from fedsec.report import text
    from fedsec.report.compare import line_cells
    from fedsec.report.tables import print_encodable

    console, table = Console(), Table(header_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("folder", "plan", "ε", "accuracy", "seeds", ""):
        table.add_column(name, overflow="fold")
    for line in found.lines:
        table.add_row(*map(Text, line_cells(line)))
    print_encodable(table, console)
    print_encodable(Text("Plans differ in:" if found.differs else "The plans are the same but for ε and seed."), console)
    for key, values in found.differs.items():
        print_encodable(Text(f"  {key}: {' | '.join(text.printable(value, 40) for value in values)}"), console)
    if out is not None:
        print_encodable(Text(f"plot: {text.printable(str(out / 'compare.png'))}"), console)
