"""``fedsec attack --list``: every attack and every rule, in a line or two each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, get_args

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedsec.plan.grid import ATTACKS, NO_ATTACK, RULES
from fedsec.plan.sections import AttackName
from fedsec.report import text
from fedsec.report.tables import print_encodable
from fedsec.robust.catalogue import RULES as REGISTRY
from fedsec.sim.attacks.catalogue import CATALOGUE, AttackInfo

_ATTACK_NAMES: tuple[AttackName, ...] = tuple(name for name in get_args(AttackName) if name != NO_ATTACK)
_SYMBOLS = "n clients, f attackers; x_i honest updates, μ their mean, σ their deviation in each coordinate; more in docs/attacks.md"
_MODES = {"open": "in clear", "sketch": "on sketches"}
_APART = {
    "auto": "screening with differential privacy; without it arc-nnm-geometric-median in clear, filter on sketches; mean for fewer than 8 clients",
    "screening": "rejects what differs from the known noise of differential privacy, in one round or accumulated over rounds",
}
"""Rules of a plan that the registry does not hold: one is a name for others, the other keeps accounts over rounds."""


def attack_notes(names: Sequence[str]) -> dict[str, str]:
    """Attack → a line about it."""
    return {name: _attack_note(CATALOGUE[name]) for name in names}  # type: ignore[index]


def rule_notes(names: Sequence[str]) -> dict[str, str]:
    """Rule → a line about it."""
    return {name: "; ".join(_rule_lines(name)) for name in names}


def _attack_note(info: AttackInfo) -> str:
    strength = f"number: {info.strength}" if info.strength else ""
    default = f"default {info.default:g}" if info.default is not None else ""
    return "; ".join(part for part in (f"{info.family}: {info.formula}", strength, default, info.paper) if part)


def _rule_facts(name: str) -> dict[str, str]:
    info = REGISTRY.get(name)
    if info is None:
        runs = "in clear, on sketches" if name in _APART else ""
        return {"summary": _APART.get(name, ""), "runs": runs, "breakdown": "", "paper": ""}
    runs = ", ".join(_MODES[mode] for mode in info.modes)
    return {"summary": info.summary, "runs": runs, "breakdown": info.breakdown, "paper": info.paper}


def print_list(*, as_json: bool) -> None:
    """Print all attacks and rules; symbols as in docs/attacks.md."""
    if as_json:
        print(
            json.dumps({"attacks": {name: _attack_facts(name) for name in ATTACKS}, "rules": {name: _rule_facts(name) for name in RULES}})
        )
        return
    console = Console()
    print_encodable(Text("Attacks", style="bold cyan"), console)
    print_encodable(Text(_SYMBOLS, style="dim"), console)
    for family in dict.fromkeys(CATALOGUE[name].family for name in _ATTACK_NAMES):
        print_encodable(Text(f"\n{family}", style="bold"), console)
        print_encodable(_table([(name, *_attack_lines(name)) for name in _ATTACK_NAMES if CATALOGUE[name].family is family]), console)
    print_encodable(Text("\nRules", style="bold cyan"), console)
    print_encodable(_table([(name, *_rule_lines(name)) for name in RULES]), console)


def _attack_facts(name: str) -> dict[str, Any]:
    info = CATALOGUE[name]  # type: ignore[index]
    facts = {"family": str(info.family), "formula": info.formula, "strength": info.strength, "default": info.default, "paper": info.paper}
    return {**facts, "knowledge": ["omniscient", "partial"] if info.sees_others else []}


def _attack_lines(name: AttackName) -> tuple[str, str]:
    info = CATALOGUE[name]
    number = f"number: {info.strength}{f'; default {info.default:g}' if info.default is not None else ''}" if info.strength else "no number"
    knows = "omniscient or partial knowledge" if info.sees_others else "knows its own updates only"
    return info.formula, "; ".join(part for part in (number, knows, info.paper) if part)


def _rule_lines(name: str) -> tuple[str, str]:
    facts = _rule_facts(name)
    parts = (f"runs {facts['runs']}", f"breakdown: {facts['breakdown']}" if facts["breakdown"] else "", facts["paper"])
    return facts["summary"], "; ".join(part for part in parts if part)


def _table(lines: Sequence[tuple[str, str, str]]) -> Table:
    """Name, what it is, and under that the rest."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, min_width=24)
    table.add_column(overflow="fold")
    for name, what, rest in lines:
        table.add_row(Text(f"  {name}"), Text(text.printable(what)))
        table.add_row("", Text(text.printable(rest), style="dim"))
    return table
