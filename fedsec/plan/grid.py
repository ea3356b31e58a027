"""A grid of attacks and rules over one plan: which federations it holds, which settings make each of them, and what each is called.

1. A cell is one federation: attack, rule, share of attackers, seed. Every rule also runs without an attack, and the mean, which rejects
   nobody, always runs: without both a loss cannot be told from a price.
2. A cell's key is the digest of the plan with the cell's settings: the same federation has the same key in every grid.
3. All cells are checked before one runs: what the plan refuses is named at once, with what could run instead.
4. ``auto`` is written as the rule that it stands for, so that no rule stands in a grid twice.
5. The strength that a plan gives is the number of the plan's attack; every other attack has its own default.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from fedsec.codec import digest_json
from fedsec.errors import ConfigError
from fedsec.plan.load import parse_plan, plan_from_mapping, plan_to_toml
from fedsec.plan.model import Plan, plan_to_jsonable
from fedsec.plan.robust import UNDEFENDED, rule_of
from fedsec.plan.sections import AttackName, RuleName, Section
from fedsec.robust.base import Mode
from fedsec.robust.catalogue import RULES as CATALOGUE
from fedsec.robust.catalogue import rule_info

GRID_FORMAT = "fedsec/attack-grid/v1"
NO_ATTACK = "none"
RULES: tuple[str, ...] = get_args(RuleName)
ATTACKS: tuple[str, ...] = tuple(name for name in get_args(AttackName) if name != NO_ATTACK)
MOST_CELLS = 100_000


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One federation of a grid.

    Attributes:
        attack: name, or ``NO_ATTACK``.
        rule: name; never ``auto``.
        fraction: share of the clients that attack; None without an attack.
        seed: of the federation.
        strength: the attack's own number; None: the attack's default.
    """

    attack: str
    rule: str
    fraction: float | None
    seed: int
    strength: float | None = None

    def overrides(self) -> tuple[str, ...]:
        """``section.key=value``, as ``--set`` takes them: what makes this cell of the grid's plan."""
        attack = [f'attack.name="{self.attack}"']
        if self.fraction is not None:
            attack.append(f"attack.fraction={self.fraction!r}")
        if self.strength is not None:
            attack.append(f"attack.strength={self.strength!r}")
        return (*attack, f'robust.rule="{self.rule}"', f"federation.seed={self.seed}", "attack.compare=false")

    def __str__(self) -> str:
        share = f" by {100 * self.fraction:g}%" if self.fraction is not None else ""
        attack = "no attack" if self.attack == NO_ATTACK else self.attack
        return f"{attack}{share}, {self.rule}, seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class AttackGrid:
    """Which cells there are.

    Attributes:
        attacks: at least one, distinct, without ``NO_ATTACK``.
        rules: distinct, ``mean`` first, without ``auto``.
        fractions: shares of attackers, in (0, 0.5), rising.
        seeds: distinct.
        strengths: attack → its number, where it is not the attack's default.
    """

    attacks: tuple[str, ...]
    rules: tuple[str, ...]
    fractions: tuple[float, ...]
    seeds: tuple[int, ...]
    strengths: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for values in (self.attacks, self.rules, self.fractions, self.seeds):
            if not values or len(set(values)) != len(values):
                raise ValueError("a grid has one value of each kind at least, and none twice")
        if NO_ATTACK in self.attacks or "auto" in self.rules or self.rules[0] != UNDEFENDED:
            raise ValueError("the mean stands first; no attack and auto stand nowhere")

    def cells(self) -> tuple[Cell, ...]:
        """Seed by seed, without an attack first: a grid that is cut short has whole seeds."""
        found = []
        for seed in self.seeds:
            found += [Cell(attack=NO_ATTACK, rule=rule, fraction=None, seed=seed) for rule in self.rules]
            found += [
                Cell(attack=attack, rule=rule, fraction=fraction, seed=seed, strength=self.strengths.get(attack))
                for attack in self.attacks
                for fraction in self.fractions
                for rule in self.rules
            ]
        return tuple(found)


# --- From the command line --------------------------------------------------------------------------------------------------------


def parse_names(text: str, *, known: Sequence[str], option: str) -> tuple[str, ...]:
    """Names between commas, in their order.

    Raises:
        ConfigError: one is empty, unknown or there twice.
    """
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        if name == NO_ATTACK and name not in known:
            raise ConfigError("the run without an attack is always part of the grid", field=option, mend=f'leave "{NO_ATTACK}" out')
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            mend = f'did you mean "{close[0]}"?' if close else "fedsec attack --list explains every name"
            raise ConfigError(f'"{name[:60]}" is unknown', field=option, mend=mend)
    _refuse_twice(names, option)
    return names


def parse_fractions(text: str, *, option: str = "--fractions") -> tuple[float, ...]:
    """Shares of attackers between commas, rising.

    Raises:
        ConfigError: one is no number, outside (0, 0.5), or there twice.
    """
    fractions = []
    for part in text.split(","):
        try:
            value = float(part)
        except ValueError:
            value = math.nan
        if not 0.0 < value < 0.5:
            raise ConfigError(
                f'"{part.strip()[:60]}" is no share of attackers', field=option, mend="over 0 and under 0.5: attackers are a minority"
            )
        fractions.append(value)
    _refuse_twice(fractions, option)
    return tuple(sorted(fractions))


def _refuse_twice(values: Sequence[str] | Sequence[float], option: str) -> None:
    twice = [value for index, value in enumerate(values) if value in values[:index]]
    if twice:
        raise ConfigError(f"{twice[0]} is there twice", field=option, mend="name each once")


def make_grid(plan: Plan, *, attacks: Sequence[str], rules: Sequence[str], fractions: Sequence[float], seeds: int) -> AttackGrid:
    """The grid that was asked for, over the plan's seed and those after it; the plan's strength is its own attack's.

    Raises:
        ConfigError: fewer than one seed, ``auto`` beside the rule that it stands for, or too many cells.
    """
    if seeds < 1:
        raise ConfigError(f"{seeds} seeds run nothing", field="--seeds", mend="1 or more; intervals need 3")
    meant = [meant_rule(plan, rule) for rule in rules]
    if "auto" in rules and len(set(meant)) < len(meant):
        stands_for = meant_rule(plan, "auto")
        raise ConfigError(f'"auto" stands for "{stands_for}" in this plan', field="--rules", mend="leave one of the two out")
    count = len({UNDEFENDED, *meant}) * seeds * (1 + len(attacks) * len(fractions))
    if count > MOST_CELLS:
        raise ConfigError(f"{count} runs are more than {MOST_CELLS}", field="--seeds", mend="ask for a smaller grid")
    return AttackGrid(
        attacks=tuple(attacks),
        rules=tuple(dict.fromkeys([UNDEFENDED, *meant])),
        fractions=tuple(fractions),
        seeds=tuple(range(plan.federation.seed, plan.federation.seed + seeds)),
        strengths={plan.attack.name: plan.attack.strength} if plan.attack.strength is not None and plan.attack.name in attacks else {},
    )


def meant_rule(plan: Plan, rule: str) -> str:
    """What ``auto`` stands for in this plan; every other rule is meant as it is."""
    if rule != "auto":
        return rule
    return rule_of(plan.model_copy(update={"robust": plan.robust.model_copy(update={"rule": rule})}))


def base_plan(plan: Plan) -> Plan:
    """The plan without what the cells decide, so that two grids over the same federation have the same base."""
    attack = plan.attack.model_copy(update={"name": NO_ATTACK, "fraction": 0.2, "strength": None, "compare": False})
    robust = plan.robust.model_copy(update={"rule": UNDEFENDED})
    return plan_from_mapping(plan.model_dump(mode="python", exclude_none=True) | {"attack": _given(attack), "robust": _given(robust)})


def _given(section: Section) -> dict[str, Any]:
    return section.model_dump(mode="python", exclude_none=True)


def grid_digest(base: Plan) -> str:
    """Hex digest of all that the cells of this base share; unlike a plan's own, it holds settings that are idle without an attack."""
    return digest_json(GRID_FORMAT, plan_to_jsonable(base, include_name=False))


# --- Against the plan -------------------------------------------------------------------------------------------------------------


def plans_of(base: Plan, grid: AttackGrid) -> dict[Cell, Plan]:
    """Every cell's plan, in the order of the cells.

    Raises:
        ConfigError: rules or attacks that cannot run in this plan, all of them with which could; or the first cell that the plan refuses.
    """
    text = plan_to_toml(base)
    way_out = "; --open runs the grid without secure aggregation" if base.secagg.enabled else ""
    _refuse_all("--rules", grid.rules, _refusals(text, "robust.rule", RULES), way_out)
    _refuse_all("--attacks", grid.attacks, _refusals(text, "attack.name", ATTACKS), way_out)
    plans = {}
    for cell in grid.cells():
        try:
            plans[cell] = parse_plan(text, overrides=cell.overrides())
        except ConfigError as error:
            raise ConfigError(f"{cell}: {error.problem}", field=error.field, mend=error.mend) from None
    return plans


def _refusals(text: str, key: str, names: Sequence[str]) -> Mapping[str, str]:
    """Why the plan, or the rule itself, refuses each name for this key alone; empty for those that can run."""
    outcomes = dict.fromkeys(names, "")
    alone = [f'attack.name="{NO_ATTACK}"', f'robust.rule="{UNDEFENDED}"']
    for name in names:
        try:
            plan = parse_plan(text, overrides=[*alone, f'{key}="{name}"'])
            if plan.robust.rule in CATALOGUE:
                rule_info(plan.robust.rule, Mode.SKETCH if plan.secagg.enabled else Mode.OPEN)
        except ConfigError as error:
            outcomes[name] = error.problem
    return outcomes


def _refuse_all(option: str, asked: Sequence[str], outcomes: Mapping[str, str], way_out: str) -> None:
    bad = [name for name in asked if outcomes[name]]
    if not bad:
        return
    reasons = "; ".join(dict.fromkeys(outcomes[name] for name in bad))
    could = [name for name, refusal in outcomes.items() if not refusal and name != "auto"]
    raise ConfigError(
        f"cannot run in this plan: {', '.join(bad)} ({reasons})", field=option, mend=f"these can: {', '.join(could)}{way_out}"
    )
