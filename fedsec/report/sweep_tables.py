"""A sweep as tables: ``rows.csv``, ``audits.csv``, the table on the terminal, and the object that ``--json`` prints."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

import fedsec
from fedsec.plan.sweep import SWEEP_FORMAT, epsilon_name, spell
from fedsec.report import text
from fedsec.report.sweep_audit import SweepAudits
from fedsec.report.sweep_drawing import series_name
from fedsec.report.sweep_inversion import report_json as inversion_json
from fedsec.report.sweep_inversion import verdict_of, view_name
from fedsec.report.sweep_summary import Figure, SweepSummary
from fedsec.report.sweep_verdict import Recommendation, points
from fedsec.report.sweep_words import partial_notice, with_interval
from fedsec.report.tables import print_encodable, write_csv

ROW_COLUMNS = (
    "epsilon_target",
    "seed",
    "arm",
    "varied",
    "accuracy",
    "personal_mean",
    "loss",
    "majority_accuracy",
    "epsilon_prv",
    "epsilon_rdp",
    "delta",
    "noise_multiplier",
    "wall_s",
    "recall",
    "sites",
    "plan_digest",
    "data_fingerprint",
    "digest",
)
"""Header of ``rows.csv``; new columns go to the end."""
AUDIT_COLUMNS = (
    "epsilon_target",
    "seed",
    "arm",
    "kind",
    "adversary",
    "num_canaries",
    "num_guesses",
    "num_correct",
    "audited_epsilon",
    "audited_delta",
    "lower_bound",
    "perfect_bound",
    "gaussian_estimate",
    "auc",
    "tpr_at_1",
    "tpr_at_01",
    "refuted",
    "no_power",
    "digest",
)
"""Header of ``audits.csv``."""


def write_tables(summary: SweepSummary, audits: SweepAudits, folder: Path) -> None:
    """Write both CSV files; shares are 0 to 1, ``recall`` and ``sites`` hold ``name: value`` pairs.

    Raises:
        StorageError: the file system refused.
    """
    write_csv(folder / "rows.csv", ROW_COLUMNS, _row_lines(summary))
    if audits.results or audits.controls:
        write_csv(folder / "audits.csv", AUDIT_COLUMNS, _audit_lines(audits))


def _row_lines(summary: SweepSummary) -> Iterator[Sequence[Any]]:
    for row in summary.rows:
        recall = " | ".join(f"{text.safe_cell(name)}: {value!r}" for name, value in zip(row.class_names, row.recall, strict=True))
        sites = " | ".join(f"{text.safe_cell(site.name)}: {site.accuracy!r}" for site in row.sites)
        varied = " ".join(f"{key}={value}" for key, value in row.varied.items())
        figures = (row.accuracy, row.personal_mean, row.loss, row.majority_accuracy, row.epsilon, row.epsilon_rdp, row.delta)
        tail = (row.noise_multiplier, row.wall_s, recall, sites, row.plan_digest, row.data_fingerprint, row.digest)
        yield (row.target, row.seed, str(row.point.arm), varied, *figures, *tail)


def _audit_lines(audits: SweepAudits) -> Iterator[Sequence[Any]]:
    for found in (*audits.results, *audits.controls):
        result, membership = found.result, found.result.membership
        yield (
            found.target, found.row.seed, result.arm, result.kind, result.adversary, result.num_canaries, result.num_guesses, result.num_correct,
            result.audited.epsilon, result.audited.delta, result.lower_bound, result.perfect_bound, result.gaussian_estimate, membership.auc.value,
            membership.tpr_at_1.value, membership.tpr_at_01.value, int(result.refuted), int(result.no_power), found.row.digest,
        )  # fmt: skip


# --- Terminal -------------------------------------------------------------------------------------------------------------------


def print_report(
    summary: SweepSummary,
    audits: SweepAudits,
    recommendation: Recommendation,
    failures: Sequence[tuple[str, str]],
    page: Path,
    console: Console,
) -> None:
    """The frontier, what is missing, what is recommended, and where the page is."""
    if notice := partial_notice(summary, len(failures)):
        print_encodable(Text(notice, style="yellow"), console)
    table = Table(header_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    several = len(summary.series) > 1
    for name in (*(["series"] if several else []), "asked for", "ε spent", "accuracy", "cost", "audited ε"):
        table.add_column(name, justify="left" if name in ("series", "asked for") else "right", overflow="fold")
    for series in summary.series:
        for epsilon in summary.grid.epsilons:
            if not series[1].has_epsilon(epsilon):
                continue
            figure, price = summary.figure(series, epsilon), summary.price(series, epsilon)
            spent = text.epsilon(max(row.epsilon for row in figure.rows)) if figure else ""
            cost = points(price.mean) if price and math.isfinite(epsilon) else ""
            shown = max((item.result.lower_bound for item in audits.of(epsilon)), default=None) if series == summary.main else None
            cells = (
                epsilon_name(epsilon),
                spent,
                with_interval(figure) if figure else "missing",
                cost,
                f"≥ {shown:.2f}" if shown is not None else "",
            )
            table.add_row(*([series_name(series)] if several else []), *cells)
    print_encodable(table, console)
    for line in audit_lines(audits):
        print_encodable(Text(line), console)
    why = f"none: {recommendation.why_none}" if recommendation.epsilon is None else epsilon_name(recommendation.epsilon)
    print_encodable(Text(f"recommended: {why}"), console)
    for name, fault in failures:
        print_encodable(Text(f"failed twice: {name}: {text.printable((fault.splitlines() or [''])[-1], 200)}", style="yellow"), console)
    print_encodable(Text(f"page: {text.printable(str(page))}"), console)


def audit_lines(audits: SweepAudits) -> list[str]:
    """What audits and controls came to, a line each."""
    lines = []
    if audits.controls:
        lines.append(f"controls of the audit: {len(audits.controls) - len(audits.missed)} of {len(audits.controls)} caught")
    if audits.results:
        silent = sum(found.result.no_power and math.isfinite(found.result.audited.epsilon) for found in audits.results)
        lines.append(
            f"attacks: {len(audits.results)}, {len(audits.refuted)} refuted the claim"
            + (f"; {silent} could not have refuted it whatever they found" if silent else "")
        )
    if audits.pictures is not None:
        report = audits.pictures.report
        best = [
            max(found, key=report.mean_gain)
            for is_private in (False, True)
            if (found := [one for one in report.strongest() if one.sees != "nothing" and math.isfinite(one.epsilon) == is_private])
        ]
        said = "; ".join(
            f"{view_name(line)}: {line.mean:.1f} dB, {verdict_of(report, line)}, blind guess {report.baseline(line).mean:.1f} dB"
            for line in best
        )
        lines.append(f"pictures out of updates, at best: {said}")
    return lines


# --- JSON -----------------------------------------------------------------------------------------------------------------------


def report_json(
    summary: SweepSummary, audits: SweepAudits, recommendation: Recommendation, failures: Sequence[tuple[str, str]], *, page: str
) -> dict[str, Any]:
    """What ``--json`` prints: complete or not, the frontier, audits, the recommendation, what is missing."""
    return {
        "format": SWEEP_FORMAT,
        "fedsec_version": fedsec.__version__,
        "complete": summary.is_whole,
        "grid": summary.grid.to_json(),
        "frontier": [
            {"series": series_name(series), "epsilon": spell(epsilon), **_figure_json(figure), "cost": _cost_json(summary, series, epsilon)}
            for series in summary.series
            for epsilon in summary.grid.epsilons
            if (figure := summary.figure(series, epsilon)) is not None
        ],
        "majority": summary.majority.mean if summary.majority else None,
        "audits": {
            "attacks": len(audits.results),
            "refuted": len(audits.refuted),
            "controls": len(audits.controls),
            "controls_missed": len(audits.missed),
            **({"inversion": inversion_json(audits.pictures.report)} if audits.pictures is not None else {}),
            "strongest": {
                str(spell(epsilon)): max(item.result.lower_bound for item in found)
                for epsilon in summary.grid.epsilons
                if (found := audits.of(epsilon))
            },
        },
        "recommended": recommendation.epsilon,
        "why_none": recommendation.why_none,
        "missing": [str(point) for point in summary.missing],
        "audits_missing": summary.audits_missing,
        "failed": [{"name": name, "fault": text.printable(fault)} for name, fault in failures],
        "page": page,
    }


def _figure_json(figure: Figure) -> dict[str, Any]:
    return {"accuracy": figure.mean, "half_width_95": figure.half_width, "seeds": len(figure.values), "rows": list(figure.digests)}


def _cost_json(summary: SweepSummary, series: Any, epsilon: float) -> float | None:
    price = summary.price(series, epsilon) if math.isfinite(epsilon) else None
    return price.mean if price else None
