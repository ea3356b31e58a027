"""What the audits of a sweep say: each result with the row that it comes from, the controls, and whether the claim still stands.

1. An audit refutes or it does not; it never confirms. Where a perfect guesser could not have refuted a claim either, its silence says nothing, and the page says so.
2. An audit whose controls were not caught in that seed is blind: nothing it says of the plan is shown as evidence.
3. An attack on the released model has a control of its own: the same training without privacy. Where it cannot tell members there, it is blind.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from fedsec.errors import DecodeError, StorageError
from fedsec.plan.sweep import INVERSION
from fedsec.privacy.auditing.inversion_results import InversionReport
from fedsec.privacy.auditing.results import AuditReport, AuditResult
from fedsec.report import text
from fedsec.report.sweep_rows import AuditRow

ON_THE_MODEL = ("loss-threshold", "lira")
"""Attacks on the released model."""


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
class Pictured:
    """What was made of updates.

    Attributes:
        report: lines and pictures.
        row: that it comes from.
    """

    report: InversionReport
    row: AuditRow


@dataclass(frozen=True, kw_only=True)
class SweepAudits:
    """All audits of a sweep.

    Attributes:
        results: of the points, by epsilon, kind and seed.
        controls: by seed.
        notes: what a reader must know, each once.
        pictures: of gradient inversion; None where there was none.
    """

    results: tuple[Audited, ...]
    controls: tuple[Audited, ...]
    notes: tuple[str, ...]
    pictures: Pictured | None = None

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


def pictures_of(row: AuditRow) -> InversionReport:
    """The pictures inside a row; errors as of :func:`report_of`."""
    try:
        return InversionReport.from_json(row.report)
    except DecodeError as error:
        raise StorageError(f"the audit row {row.digest[:12]} is damaged: {error}; remove its line, and sweep again") from None


def gather(rows: Iterable[AuditRow]) -> SweepAudits:
    """All results of these rows.

    Raises:
        StorageError: a row holds no report.
    """
    results, controls, notes = [], [], dict[str, None]()
    pictures = None
    for row in rows:
        if row.what == INVERSION:
            pictures = Pictured(report=pictures_of(row), row=row)
            continue
        report = report_of(row)
        notes.update(dict.fromkeys(report.notes))
        results += [Audited(result=result, target=row.target, row=row) for result in report.results]
        controls += [Audited(result=control, target=None, row=row) for control in report.controls]
    results.sort(key=lambda found: (found.target if found.target is not None else math.inf, found.result.kind, found.row.seed))
    controls.sort(key=lambda found: (found.result.arm, found.row.seed))
    notes.update(dict.fromkeys(_sight(results)))
    return SweepAudits(results=tuple(results), controls=tuple(controls), notes=tuple(notes), pictures=pictures)


def _sight(results: Iterable[Audited]) -> Iterator[str]:
    """Whether each attack on the released model tells members from others where nothing protects them: its own control."""
    for kind in ON_THE_MODEL:
        of_kind = [found for found in results if found.result.kind == kind]
        open_runs = [found.result.membership.auc for found in of_kind if math.isinf(found.result.audited.epsilon)]
        if not of_kind:
            continue
        if not open_runs:
            yield f"{kind} was not run on a training without privacy: nobody knows whether it could see anything here (add inf to --epsilon)"
            continue
        seen = sum(auc.low > 0.5 for auc in open_runs)
        said = f"{kind}, its control: without privacy it tells members from others in {seen} of {text.counted(len(open_runs), 'run')} (AUC {min(a.value for a in open_runs):.2f} to {max(a.value for a in open_runs):.2f}, its interval above 0.5)"
        yield (
            said
            if seen == len(open_runs)
            else f"{said}; it is {'partly ' if seen else ''}blind here, and that it finds little under privacy says little"
        )


def audit_line(row: AuditRow) -> str:
    """What to say of a row while the sweep runs."""
    if row.what == INVERSION:
        pictures = pictures_of(row)
        best = max((line for line in pictures.lines if line.sees != "nothing"), key=pictures.mean_gain)
        return f"best {best.mean:.1f} dB, the blind guess {pictures.baseline(best).mean:.1f}"
    report = report_of(row)
    if row.what == "controls":
        return "caught" if report.controls_caught else "NOT CAUGHT"
    strongest = max((result.lower_bound for result in report.results), default=0.0)
    return f"{'REFUTED, ' if report.refuted else ''}ε at least {strongest:.2f}"


def without_roc(report: AuditReport) -> AuditReport:
    """The same without the curves, for short output."""
    return replace(report, results=tuple(replace(result, membership=replace(result.membership, roc=())) for result in report.results))
