"""``fedsec report``: the page of a sweep from its rows, or what another folder's own report is; also what ``fedsec sweep`` writes at its end."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from fedsec.report.sweep_audit import SweepAudits
    from fedsec.report.sweep_summary import SweepSummary
    from fedsec.report.sweep_verdict import Recommendation

EPILOG = "Examples:  fedsec report runs/sweep-3f9a  ·  fedsec report runs/demo  ·  fedsec report runs/sweep-3f9a --json"
PAGE = "report.html"


@dataclass(frozen=True, kw_only=True)
class SweepReport:
    """A report that was written.

    Attributes:
        path: of the page.
        summary: of the sweep.
        audits: of the sweep.
        recommendation: of the page.
        failures: name and fault of the last session.
    """

    path: Path
    summary: SweepSummary
    audits: SweepAudits
    recommendation: Recommendation
    failures: list[tuple[str, str]]

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing."""
        return self.summary.is_whole

    def check(self) -> None:
        """Fail loudly where an audit does.

        Raises:
            AuditError: a control was missed.
            PrivacyClaimRefuted: a claim is false.
        """
        self.audits.check()

    def to_json(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        from fedsec.report.sweep_tables import report_json

        return report_json(self.summary, self.audits, self.recommendation, self.failures, page=str(self.path))

    def print(self, console: Console) -> None:
        """A table on the terminal."""
        from fedsec.report.sweep_tables import print_report

        print_report(self.summary, self.audits, self.recommendation, self.failures, self.path, console)


def report(
    folder: Path = typer.Argument(..., help="Folder of a sweep; of a simulation or a grid of attacks, its report is named."),
    as_json: bool = typer.Option(False, "--json", help="Print exactly one JSON object on stdout."),
) -> None:
    """Write the report of a sweep from its rows: one page, and each plot as PNG and CSV beside it."""
    from rich.console import Console

    from fedsec.report.sweep_folder import MARKER

    path = folder.absolute()
    if not (path / MARKER).exists():
        _other_folder(path, as_json=as_json)
        return
    written = write_report(path)
    if as_json:
        print(json.dumps(written.to_json(), allow_nan=False))
    else:
        written.print(Console())
    written.check()


def _other_folder(path: Path, *, as_json: bool) -> None:
    """A simulation's or grid's folder: its own report; anything else is refused.

    Raises:
        ConfigError: it is neither.
    """
    from fedsec.errors import ConfigError

    if (path / "result.json").exists():
        from rich.console import Console

        from fedsec.report.tables import print_result, read_result

        result = read_result(path / "result.json")
        if as_json:
            print(json.dumps(result.to_json(), allow_nan=False))
        else:
            print_result(result, Console())
            print(f"pictures: {path / 'overview.png'}")
        return
    if (path / "attack.html").exists():
        print(json.dumps({"page": str(path / "attack.html")}) if as_json else f"page: {path / 'attack.html'}")
        return
    raise ConfigError(
        f"{path} holds no sweep, no simulation and no grid of attacks",
        mend="this is for folders that fedsec sweep, fedsec simulate or fedsec attack made",
    )


def write_report(path: Path) -> SweepReport:
    """Write the page, the plots and the tables of a sweep from the rows that lie in its folder.

    Args:
        path: of the sweep's folder, absolute.

    Raises:
        StorageError: rows are missing, damaged or edited, or the file system refused.
        ConfigError: the folder's plan is not the sweep's.
    """
    from fedsec.errors import StorageError
    from fedsec.files import atomic_write_text
    from fedsec.plan.sweep import plans_of_sweep
    from fedsec.plan.sweep_tasks import task_keys
    from fedsec.report.sweep_audit import gather
    from fedsec.report.sweep_folder import open_sweep_folder
    from fedsec.report.sweep_page import SweepFacts, render_sweep
    from fedsec.report.sweep_pictures import pictures_in
    from fedsec.report.sweep_plots import plot_all
    from fedsec.report.sweep_summary import summarise_sweep
    from fedsec.report.sweep_tables import write_tables
    from fedsec.report.sweep_verdict import recommend

    folder = open_sweep_folder(path)
    plan, grid, failures = folder.plan(), folder.grid(), folder.failures()
    rows = folder.rows()
    if not rows and not failures and not (path / "rows.jsonl").exists():
        raise StorageError(f"{path / 'rows.jsonl'} is missing: there is nothing to report; put it back, or sweep again")
    keys = task_keys(grid, plans_of_sweep(plan, grid))
    summary = summarise_sweep(
        grid,
        rows.values(),
        folder.audits().values(),
        keys=[key for (what, _), key in keys.items() if what == "run"],
        audit_keys=[key for (what, _), key in keys.items() if what != "run"],
    )
    audits = gather(summary.audits)
    recommendation = recommend(summary, audits)
    facts = SweepFacts(
        plan=plan, manifest=folder.manifest(), failures=failures, plots=plot_all(summary, audits, plan, path), pictures=pictures_in(path)
    )
    write_tables(summary, audits, path)
    atomic_write_text(path / PAGE, render_sweep(summary, audits, recommendation, facts))
    return SweepReport(path=path / PAGE, summary=summary, audits=audits, recommendation=recommendation, failures=failures)
