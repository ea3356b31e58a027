"""One page about a grid of attacks and rules: first in plain words, then as a map, then everything that made it.

1. The page is one file that asks nothing of the network: its policy forbids it. It is readable in light and dark, and on paper.
2. Every figure on it comes from a row. A grid that is not whole says so in its first paragraph and marks what it concerns.
3. Names, reasons and plan come from others: everything is escaped, and characters that act instead of showing are spelled out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from fedsec.files import atomic_write_text
from fedsec.plan.grid import NO_ATTACK, Cell
from fedsec.plan.load import plan_to_toml
from fedsec.plan.model import Plan
from fedsec.plan.robust import UNDEFENDED, max_suspects
from fedsec.report import text
from fedsec.report.attack_rows import CellRow
from fedsec.report.attack_summary import Figure, Summary
from fedsec.report.attack_words import sentences, shares
from fedsec.report.heatmap import colour, columns_of, scale_of

_LEFT, _RIGHT, _TOP, _STEP = 206, 740, 40, 34
_RUN_COLUMNS = ("attack", "rule", "attackers", "seed", "accuracy", "precision", "recall", "honest rejected", "ε", "time")


@dataclass(frozen=True, kw_only=True)
class PageFacts:
    """What the page says beside the rows.

    Attributes:
        plan: that all cells start from.
        command: that makes this grid.
        failures: cell and why it failed.
        attack_notes: attack → a line about it.
        rule_notes: rule → a line about it.
    """

    plan: Plan
    command: str
    failures: Sequence[tuple[Cell, str]] = ()
    attack_notes: Mapping[str, str]
    rule_notes: Mapping[str, str]


def write_attack_page(summary: Summary, facts: PageFacts, path: Path) -> None:
    """Write the page.

    Raises:
        StorageError: the file system refused.
    """
    atomic_write_text(path, render(summary, facts))


def render(summary: Summary, facts: PageFacts) -> str:
    """The page as HTML."""
    return str(_template().render(_context(summary, facts)))


@lru_cache(maxsize=1)
def _template() -> Any:
    import jinja2  # noqa: PLC0415 - only commands that write a page need it

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fedsec.report"), autoescape=True, undefined=jinja2.StrictUndefined, finalize=_shown
    )
    return environment.get_template("attack.html.j2")


def _shown(value: Any) -> Any:
    return text.printable(value) if isinstance(value, str) else value


def _context(summary: Summary, facts: PageFacts) -> dict[str, Any]:
    grid, rows = summary.grid, summary.rows
    majority = [row.majority_accuracy for row in rows if row.majority_accuracy is not None]
    rejections = _rejections(summary)
    return {
        "title": facts.plan.name,
        "undefended": UNDEFENDED,
        "sentences": sentences(
            summary, failed=len(facts.failures), most_suspects=max_suspects(facts.plan, facts.plan.federation.num_clients)
        ),
        "columns": [name for name, _ in columns_of(summary)],
        "heat": _heat(summary),
        "top": text.percent(scale_of(summary)),
        "majority": text.percent(sum(majority) / len(majority)) if majority else "",
        "several_fractions": len(grid.fractions) > 1,
        "shares": [shares([fraction]) for fraction in grid.fractions],
        "by_share": _by_share(summary),
        "chart": _chart(summary),
        "rejections": rejections,
        "any_success": any(line["success"] != text.MISSING for line in rejections),
        "failures": [{"cell": str(cell), "lines": fault.splitlines()} for cell, fault in facts.failures],
        "missing": [str(cell) for cell in summary.missing],
        "total": len(grid.cells()),
        "attack_notes": [(name, facts.attack_notes.get(name, "")) for name in grid.attacks],
        "rule_notes": [(name, facts.rule_notes.get(name, "")) for name in grid.rules],
        "settings": _settings(summary, facts.plan),
        "plan_lines": plan_to_toml(facts.plan).splitlines(),
        "command": facts.command,
        "run_columns": _RUN_COLUMNS,
        "runs": [_run(row) for row in rows],
    }


def _heat(summary: Summary) -> list[dict[str, Any]]:
    columns, top = columns_of(summary), scale_of(summary)
    last = len(columns) - 1
    return [
        {"rule": rule, "cells": [_cell(summary, column[rule], top, is_worst=place == last) for place, (_, column) in enumerate(columns)]}
        for rule in summary.grid.rules
    ]


def _cell(summary: Summary, figure: Figure | None, top: float, *, is_worst: bool) -> dict[str, Any]:
    if figure is None:
        return {"accuracy": "", "background": "", "ink": "", "notes": ["no run ended"]}
    background, ink = colour(figure.accuracy, top)
    notes = [f"± {100 * figure.half_width:.1f}"] if figure.half_width is not None else []
    if is_worst:
        notes.append(figure.attack)
    if figure.fraction is not None and len(summary.grid.fractions) > 1:
        notes.append(f"by {shares([figure.fraction])}")
    if figure.diverged:
        notes.append(f"{figure.diverged} diverged")
    if figure.missing:
        notes.append(f"{text.counted(figure.missing, 'run')} missing")
    at_most = "≤ " if figure.missing and figure.attack != NO_ATTACK else ""
    return {"accuracy": f"{at_most}{text.percent(figure.accuracy)}", "background": background, "ink": ink, "notes": notes}


def _rejections(summary: Summary) -> list[dict[str, str]]:
    """Each rule without an attack and under each, at the share of attackers of the map; only where a result says who was rejected."""
    lines = []
    for rule in summary.grid.rules:
        for figure in (summary.no_attack(rule), *(summary.cell(rule, attack) for attack in summary.grid.attacks)):
            if figure is None:
                continue
            precision, recall = figure.mean_of(lambda row: row.precision), figure.mean_of(lambda row: row.recall)
            honest, success = figure.mean_of(lambda row: row.honest_rate), figure.mean_of(lambda row: row.attack_success)
            if (precision, recall, honest, success) == (None, None, None, None):
                continue
            shown = {"precision": precision, "recall": recall, "honest": honest, "success": success}
            attack = "no attack" if figure.attack == NO_ATTACK else figure.attack
            percent = {name: text.percent(value) for name, value in shown.items()}
            lines.append({"rule": rule, "attack": attack, "attackers": _attackers(figure.rows[0]), **percent})
    return lines


def _attackers(row: CellRow) -> str:
    if row.fraction is None:
        return "0"
    count = f" ({row.num_attackers} of {row.num_clients})" if row.num_attackers is not None else ""
    return f"{shares([row.fraction])}{count}"


def _by_share(summary: Summary) -> list[dict[str, Any]]:
    lines = []
    for rule in summary.grid.rules:
        for attack in summary.grid.attacks:
            figures = [summary.figures.get((rule, attack, fraction)) for fraction in summary.grid.fractions]
            lines.append({"rule": rule, "attack": attack, "accuracies": [_with_spread(figure) for figure in figures]})
    return lines


def _with_spread(figure: Figure | None) -> str:
    if figure is None:
        return text.MISSING
    spread = f" ± {100 * figure.half_width:.1f}" if figure.half_width is not None else ""
    return f"{text.percent(figure.accuracy)}{spread}{'*' if figure.missing else ''}"


def _chart(summary: Summary) -> dict[str, Any]:
    """Where everything of the drawing lies, in its own units."""
    lines = []
    for place, rule in enumerate(summary.grid.rules):
        worst, clean = summary.worst(rule), summary.no_attack(rule)
        others = [summary.cell(rule, attack) for attack in summary.grid.attacks]
        dots = [_dot(figure, figure.attack) for figure in others if figure is not None]
        lines.append(
            {
                "rule": text.printable(rule, 26),
                "y": _TOP + place * _STEP,
                "dots": dots,
                "worst": _dot(worst, f"worst case, {worst.attack}") if worst is not None else None,
                "clean": _dot(clean, "no attack") if clean is not None else None,
            }
        )
    ticks = [{"x": _x(share / 100), "label": f"{share}%"} for share in range(0, 101, 20)]
    return {"lines": lines, "ticks": ticks, "height": _TOP + len(lines) * _STEP + 12}


def _dot(figure: Figure, name: str) -> dict[str, Any]:
    return {"x": _x(figure.accuracy), "label": f"{figure.rule}, {name}: {text.percent(figure.accuracy)}"}


def _x(accuracy: float) -> float:
    return round(_LEFT + (_RIGHT - _LEFT) * accuracy, 1)


def _settings(summary: Summary, plan: Plan) -> list[tuple[str, str]]:
    rows, federation, privacy = summary.rows, plan.federation, plan.privacy
    seeds, strengths = summary.grid.seeds, summary.grid.strengths
    spent = max((row.epsilon for row in rows), default=None)
    private = f"ε = {privacy.epsilon:g} at δ = {privacy.delta:g} for each record; most spent: {text.epsilon(spent)}"
    records = f"{plan.data.name}, {plan.data.partition}{f' with α = {plan.data.alpha:g}' if plan.data.partition == 'dirichlet' else ''}"
    versions = dict.fromkeys(f"{name} {number}" for row in rows for name, number in {"fedsec": row.fedsec_version, **row.versions}.items())
    return [
        ("clients and rounds", f"{text.counted(federation.num_clients, 'client')}, {text.counted(federation.rounds, 'round')}"),
        ("records", records),
        ("model", plan.model.name),
        ("privacy", private if plan.is_private else "none"),
        ("secure aggregation", "on: rules see sketches" if plan.secagg.enabled else "off: rules see updates"),
        ("attackers know", f"{plan.attack.knowledge}{', and add the noise that honest clients add' if plan.attack.own_noise else ''}"),
        (
            "strength of the attacks",
            ", ".join([*(f"{name} {value:g}" for name, value in strengths.items()), "else each attack's own default"]),
        ),
        ("shares of attackers", shares(summary.grid.fractions)),
        ("most clients that a rule may suspect", str(max_suspects(plan, federation.num_clients))),
        ("seeds", ", ".join(map(str, seeds)) if len(seeds) <= 12 else f"{seeds[0]} to {seeds[-1]}"),
        ("time of all runs", text.duration(sum(row.wall_s for row in rows))),
        ("versions", ", ".join(versions)),
    ]


def _run(row: CellRow) -> list[str]:
    attack = "no attack" if row.attack == NO_ATTACK else row.attack
    figures = [text.percent(value) for value in (row.accuracy, row.precision, row.recall, row.honest_rate)]
    return [attack, row.rule, _attackers(row), str(row.seed), *figures, text.epsilon(row.epsilon), text.duration(row.wall_s)]
