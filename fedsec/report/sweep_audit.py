"""What the audits of a sweep say: each result with the row that it comes from, the controls, and whether the claim still stands.

1. An audit refutes or it does not; it never confirms. Where a perfect guesser could not have refuted a claim either, its silence says nothing, and the page says so.
2. An audit whose controls were not caught in that seed is blind: nothing it says of the plan is shown as evidence.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from fedsec.errors import DecodeError, StorageError
from fedsec.privacy.auditing.results import AuditReport, AuditResult
from fedsec.report.sweep_rows import AuditRow


@dataclass(frozen=True, kw_only=True)
class Audited:
    """One attack on one point, or one control.

    Attributes:
        result: of the attack.
        target: epsilon of the point; None for a control.
        row: that it comes from.
    """

    result: AuditResult
    target: float | None
    row: AuditRow


@dataclass(frozen=True, kw_only=True)
class SweepAudits:
    """All audits of a sweep.

    Attributes:
        results: of the points, by epsilon, kind and seed.
        controls: by seed.
        notes: what a reader must know, each once.
    """

    results: tuple[Audited, ...]
    controls: tuple[Audited, ...]
    notes: tuple[str, ...]

    @property
    def missed(self) -> list[Audited]:
        """Controls that were not caught."""
        return [control for control in self.controls if not control.result.refuted]

    @property
    def blind_seeds(self) -> set[int]:
        """Seeds in which a control was not caught."""
        return {control.row.seed for control in self.missed}

    @property
    def refuted(self) -> list[Audited]:
        """Results above the claim that they test."""
        return [found for found in self.results if found.result.refuted]

    def of(self, target: float, kind: str | None = None) -> list[Audited]:
        """Results of one epsilon."""
        return [found for found in self.results if found.target == target and kind in (None, found.result.kind)]

    def check(self) -> None:
        """Fail loudly.

        Raises:
            AuditError: a control was missed.
            PrivacyClaimRefuted: a claim is false.
        """
        for row in {id(found.row): found.row for found in (*self.controls, *self.results)}.values():
            report_of(row).check()


def report_of(row: AuditRow) -> AuditReport:
    """The report inside a row.

    Raises:
        StorageError: it is none, or its verdict does not follow from its numbers.
    """
    try:
        return AuditReport.from_json(row.report)
    except DecodeError as error:
        raise StorageError(f"the audit row {row.digest[:12]} is damaged: {error}; remove its line, and sweep again") from None


def gather(rows: Iterable[AuditRow]) -> SweepAudits:
    """All results of these rows.

    Raises:
        StorageError: a row holds no report.
    """
    results, controls, notes = [], [], dict[str, None]()
    for row in rows:
        report = report_of(row)
        notes.update(dict.fromkeys(report.notes))
        results += [Audited(result=result, target=row.target, row=row) for result in report.results]
        controls += [Audited(result=control, target=None, row=row) for control in report.controls]
    results.sort(key=lambda found: (found.target if found.target is not None else math.inf, found.result.kind, found.row.seed))
    controls.sort(key=lambda found: (found.result.arm, found.row.seed))
    return SweepAudits(results=tuple(results), controls=tuple(controls), notes=tuple(notes))


def audit_line(row: AuditRow) -> str:
    """What to say of a row while the sweep runs."""
    report = report_of(row)
    if row.what == "controls":
        return "caught" if report.controls_caught else "NOT CAUGHT"
    strongest = max((result.lower_bound for result in report.results), default=0.0)
    return f"{'REFUTED, ' if report.refuted else ''}ε at least {strongest:.2f}"


def without_roc(report: AuditReport) -> AuditReport:
    """The same without the curves, for short output."""
    return replace(report, results=tuple(replace(result, membership=replace(result.membership, roc=())) for result in report.results))
