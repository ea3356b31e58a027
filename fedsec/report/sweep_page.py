"""One page about a sweep: first in plain words for people who decide, then every figure, then everything that made it.

1. The page is one file that asks nothing of the network: its policy forbids it, and there is no script. It is readable in light and dark, and on paper.
2. Every number comes from a row: tables name the rows by digest and link to them, at the end of the page.
3. A sweep that is not whole says so in its first line, in its title, and recommends nothing.
4. Names, reasons and the plan come from others: everything is escaped, and characters that act instead of showing are spelled out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from fedsec.plan.load import plan_to_toml
from fedsec.plan.model import Plan
from fedsec.plan.sweep import INVERSION, epsilon_name
from fedsec.report import text
from fedsec.report.literature import published
from fedsec.report.sweep_audit import Audited, SweepAudits
from fedsec.report.sweep_drawing import Plot, series_name
from fedsec.report.sweep_inversion import table_lines
from fedsec.report.sweep_pictures import Picture
from fedsec.report.sweep_rows import AuditRow, UtilityRow
from fedsec.report.sweep_settings import assumptions, settings
from fedsec.report.sweep_summary import Figure, Series, Slice, SweepSummary
from fedsec.report.sweep_verdict import Recommendation, best_guess, points
from fedsec.report.sweep_words import paragraphs, partial_notice, short_answer, with_interval

SHORT = 10
"""Hex digits of a row's digest that the page shows."""


@dataclass(frozen=True, kw_only=True)
class SweepFacts:
    """What the page says beside the rows.

    Attributes:
        plan: that all points start from.
        manifest: of the folder.
        failures: name and fault.
        plots: by name.
        pictures: of attacks.
    """

    plan: Plan
    manifest: Mapping[str, Any]
    failures: Sequence[tuple[str, str]] = ()
    plots: Mapping[str, Plot] = field(default_factory=dict)
    pictures: Sequence[Picture] = ()


def render_sweep(summary: SweepSummary, audits: SweepAudits, recommendation: Recommendation, facts: SweepFacts) -> str:
    """The page as HTML."""
    return str(_template().render(_context(summary, audits, recommendation, facts)))


@lru_cache(maxsize=1)
def _template() -> Any:
    import jinja2  # noqa: PLC0415 - only commands that write a page need it

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fedsec.report"), autoescape=True, undefined=jinja2.StrictUndefined, finalize=_shown
    )
    return environment.get_template("sweep.html.j2")


def _shown(value: Any) -> Any:
    return text.printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _context(summary: SweepSummary, audits: SweepAudits, recommendation: Recommendation, facts: SweepFacts) -> dict[str, Any]:
    from markupsafe import Markup  # noqa: PLC0415 - comes with jinja2

    plan, records = facts.plan, dict(facts.manifest.get("records", {}))
    return {
        "title": plan.name,
        "partial": partial_notice(summary, len(facts.failures)),
        "answer": "" if not summary.rows else short_answer(summary, recommendation),
        "said": [
            {"head": said.head, "words": said.words, "source": said.source, "rows": _links(said.digests)}
            for said in paragraphs(summary, audits, recommendation, plan, records)
        ],
        "plots": {name: Markup(plot.svg) for name, plot in facts.plots.items()},  # noqa: S704 - drawn here, labels escaped by matplotlib
        "frontier": [line for series in summary.series for line in _frontier(summary, series)],
        "several_series": len(summary.series) > 1,
        "baselines": [
            (name, text.percent(figure.mean), _links(figure.digests))
            for name, figure in (
                ("commonest class of each site" if summary.is_personal else "commonest class", summary.majority),
                ("each site alone", summary.alone),
            )
            if figure is not None
        ],
        "central": any("central" in p.what for p in published(plan.data.name)),
        "literature": [
            {"what": p.what, "epsilon": f"{p.epsilon:g}", "delta": f"{p.delta:g}", "accuracy": text.percent(p.accuracy), "source": p.source}
            for p in published(plan.data.name)
        ],
        "rules": _rules(recommendation),
        "chosen": recommendation.epsilon,
        "epsilons": [epsilon_name(epsilon) for epsilon in summary.grid.epsilons],
        "classes": _slices(summary, summary.classes()),
        "sites": _slices(summary, summary.sites()),
        "other_sites": [
            (series_name(series), _slices(summary, summary.sites(), series))
            for series in summary.series[1:]
            if summary.has_lasting_sites and series[1].kind == "all"
        ],
        "sizes": _slices(summary, summary.sizes()) if summary.has_lasting_sites else [],
        "lasting": summary.has_lasting_sites,
        "audits": [_audit(found) for found in audits.results],
        "controls": [_audit(found) for found in audits.controls],
        "audit_notes": audits.notes,
        "arms": _arms(summary),
        "inversion": _inversion(audits),
        "pictures": facts.pictures,
        "failures": [{"name": name, "lines": fault.splitlines()} for name, fault in facts.failures],
        "missing": [str(point) for point in summary.missing],
        "total": len(summary.grid.points()),
        "assumptions": assumptions(plan, summary, records),
        "settings": settings(plan, summary, facts.manifest),
        "plan_lines": plan_to_toml(plan).splitlines(),
        "command": str(facts.manifest.get("command", "fedsec sweep plan.toml")),
        "commit": str(facts.manifest.get("commit") or "unknown"),
        "runs": [_run(row) for row in summary.rows],
        "audit_rows": [_audit_row(row) for row in summary.audits],
        "seeds": len(summary.grid.seeds),
    }


def _links(digests: Sequence[str]) -> list[str]:
    return [digest[:SHORT] for digest in digests]


def _frontier(summary: SweepSummary, series: Any) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for epsilon in summary.grid.epsilons:
        if not series[1].has_epsilon(epsilon):
            continue
        figure = summary.figure(series, epsilon)
        if figure is None:
            lines.append({"series": series_name(series), "epsilon": epsilon_name(epsilon), "accuracy": ""})
            continue
        rows, price = figure.rows, summary.price(series, epsilon)
        spent, delta = max(row.epsilon for row in rows), rows[0].delta
        private = math.isfinite(spent) and delta is not None
        lines.append(
            {
                "series": series_name(series),
                "epsilon": epsilon_name(epsilon),
                "spent": text.epsilon(spent),
                "rdp": text.epsilon(max(row.epsilon_rdp for row in rows)),
                "sigma": text.decimal(max(row.noise_multiplier for row in rows)),
                "accuracy": with_interval(figure),
                "seeds": ", ".join(text.percent(value) for value in figure.values),
                "price": _price(price) if math.isfinite(epsilon) else "",
                "guess": _guess(best_guess(spent, delta or 0.0)) if private else "100%",
                "diverged": summary.diverged(series, epsilon),
                "rows": _links(figure.digests),
            }
        )
    return lines


def _guess(share: float) -> str:
    """A bound on right guesses, rounded up; never shown as certainty where it is not."""
    return "over 99.9%" if share > 0.999 else f"{math.ceil(1000 * share) / 10:.1f}%"


def _price(price: Figure | None) -> str:
    if price is None:
        return text.MISSING
    return f"{points(price.mean)}{f' ± {100 * price.half_width:.1f}' if price.half_width is not None else ''}"


def _rules(recommendation: Recommendation) -> list[dict[str, Any]]:
    marks = {True: "yes", False: "no", None: "not known"}
    return [
        {
            "epsilon": f"{verdict.epsilon:g}",
            "checks": [{"rule": check.rule, "mark": marks[check.passed], "why": check.why} for check in verdict.checks],
            "outcome": "recommended" if verdict.epsilon == recommendation.epsilon else ("passes" if verdict.passed else "does not pass"),
        }
        for verdict in recommendation.verdicts
    ]


def _slices(summary: SweepSummary, slices: Sequence[Slice], series: Series | None = None) -> list[dict[str, Any]]:
    """A line each: its figure at every ε, and what the smallest ε costs it, those that lose most first. Of a site that lasts also what needs no federation."""
    lines, of = [], series or summary.main
    for part in slices:
        figures = [summary.figure(of, epsilon, part.read) for epsilon in summary.grid.epsilons]
        price = summary.price(of, summary.finite[0], part.read) if summary.finite else None
        cells = [
            {"shown": text.percent(figure.mean), "range": _range(figure), "rows": " ".join(_links(figure.digests))}
            if figure
            else {"shown": "", "range": "", "rows": ""}
            for figure in figures
        ]
        lines.append(
            {
                "name": part.name,
                "tests": part.tests,
                "cells": cells,
                "price": _price(price),
                "order": price.mean if price else -math.inf,
                **_without_federation(summary, part),
            }
        )
    return (
        sorted(lines, key=lambda line: -line["order"])
        if summary.has_lasting_sites or all(part.kind == "class" for part in slices)
        else lines
    )


def _without_federation(summary: SweepSummary, part: Slice) -> dict[str, str]:
    """What a lasting site reaches with its own records alone, and by naming its own commonest class; empty for other slices."""
    rows = summary.at(summary.main, None)
    site = (
        next((one for one in rows[0].sites if one.name == part.name), None) if part.kind == "site" and summary.has_lasting_sites else None
    )
    if site is None:
        return {"alone": "", "commonest": ""}
    return {"alone": text.percent(site.local) if site.local is not None else "", "commonest": text.percent(site.majority)}


def _range(figure: Figure) -> str:
    """The ends of an interval, or why there is none."""
    if figure.bounds is not None:
        return f"{100 * figure.bounds[0]:.0f} to {100 * figure.bounds[1]:.0f}"
    return f"{text.counted(figure.missing, 'seed')} missing" if figure.missing else ""


def _arms(summary: SweepSummary) -> list[dict[str, Any]]:
    """Each arm of the ablation over layers, at every ε, with what its noise costs."""
    if len(summary.grid.arms) < 2:
        return []
    varied, lines = summary.main[0], []
    for arm in summary.grid.arms:
        series = (varied, arm)
        reference = summary.main if arm.kind == "noise" else series
        cells = []
        for epsilon in summary.grid.epsilons:
            figure = summary.figure(series, epsilon)
            price = summary.difference(series, epsilon, reference, math.inf) if math.isfinite(epsilon) else None
            shown = with_interval(figure) if figure else ("" if arm.has_epsilon(epsilon) else "–")
            cells.append(
                {"shown": shown, "price": _price(price) if price else "", "rows": " ".join(_links(figure.digests)) if figure else ""}
            )
        lines.append({"name": str(arm), "is_private": arm.kind != "noise", "cells": cells})
    return lines


def _audit(found: Audited) -> dict[str, Any]:
    result, membership = found.result, found.result.membership
    verdict = "REFUTED" if result.refuted else ("no power" if result.no_power else "not refuted")
    if math.isinf(result.audited.epsilon):
        verdict = "nothing claimed"
    if found.target is None:
        verdict = "caught" if result.refuted else "NOT CAUGHT"
    return {
        "name": epsilon_name(found.target) if found.target is not None else result.arm,
        "varied": ", ".join(f"{key}={value}" for key, value in found.row.varied.items()) if found.target is not None else "",
        "kind": result.kind,
        "adversary": result.adversary,
        "seed": found.row.seed,
        "canaries": f"{result.num_correct} of {result.num_guesses} right; {result.num_canaries} {'canaries' if result.kind == 'one-run' else 'records'}",
        "claim": f"({text.epsilon(result.audited.epsilon)}, {result.audited.delta:g})",
        "shown": f"{result.lower_bound:.2f}",
        "gaussian": text.decimal(result.gaussian_estimate),
        "perfect": f"{result.perfect_bound:.2f}",
        "auc": _estimate(membership.auc),
        "tpr1": _estimate(membership.tpr_at_1),
        "tpr01": _estimate(membership.tpr_at_01),
        "verdict": verdict,
        "bad": verdict in ("REFUTED", "NOT CAUGHT"),
        "row": found.row.digest[:SHORT],
    }


def _inversion(audits: SweepAudits) -> dict[str, Any] | None:
    """What was made of updates; None where nothing was tried."""
    if audits.pictures is None:
        return None
    report = audits.pictures.report
    return {
        "lines": table_lines(report),
        "clients": report.clients,
        "chance": text.percent(1 / report.classes),
        "victims": len(report.blind.psnr),
        "window": report.window,
        "row": audits.pictures.row.digest[:SHORT],
    }


def _estimate(estimate: Any) -> dict[str, str]:
    return {"value": f"{estimate.value:.3f}", "range": f"{estimate.low:.3f} to {estimate.high:.3f}"}


def _run(row: UtilityRow) -> dict[str, Any]:
    return {
        "row": row.digest[:SHORT],
        "digest": row.digest,
        "point": str(row.point),
        "accuracy": text.percent(row.accuracy),
        "loss": text.decimal(row.loss, 4),
        "epsilon": text.epsilon(row.epsilon),
        "sigma": text.decimal(row.noise_multiplier),
        "time": text.duration(row.wall_s),
        "plan": row.plan_digest[:SHORT],
    }


def _audit_row(row: AuditRow) -> dict[str, Any]:
    name = epsilon_name(row.target) if row.target is not None else row.what
    return {
        "row": row.digest[:SHORT],
        "digest": row.digest,
        "point": ", ".join([name, f"seed {row.seed}", *(f"{key}={value}" for key, value in row.varied.items())])
        if row.what != INVERSION
        else name,
        "time": text.duration(row.wall_s),
        "kinds": ", ".join(row.kinds),
    }
