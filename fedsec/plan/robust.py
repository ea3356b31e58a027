"""Which rule a plan runs, how many clients it may reject, and which pairs of rule, view and attack make no sense.

1. ``auto`` becomes one rule here, so that server, CONFIG, report and guarantees name the same: with differential privacy the calibrated screening,
   whose scale is the known noise; without it the rule that was best in the worst case, in clear or on sketches.
2. Fewer than ``MIN_CLIENTS`` clients cannot be told apart: ``auto`` is the mean then, and the notes say so.
3. An attack is for simulations; a deployed client refuses a plan that has one.

Source: design note ROBUST, "Which rule".
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fedsec.errors import ConfigError
from fedsec.robust.base import Mode
from fedsec.robust.catalogue import RULES, rule_info

if TYPE_CHECKING:
    from fedsec.plan.model import Plan

MIN_CLIENTS = 8
"""Fewest clients for which ``auto`` rejects anybody: with a quarter of them suspect, at least six are left to compare with."""

OPEN_ONLY = tuple(name for name, info in RULES.items() if Mode.SKETCH not in info.modes)
"""Rules that need more of an update than a sketch tells, or that would make one client's update the result."""

UNDEFENDED = "mean"

MALFORMED_ATTACKS = (
    "nan-value", "infinity", "huge-value", "denormal", "wrong-shape", "wrong-dtype", "wrong-names", "duplicate-names", "huge-array",
    "negative-count", "huge-count",
)  # fmt: skip
"""Messages that no honest client sends; in clear they are arrays, which masks do not carry."""

PROTOCOL_ATTACKS = ("sketch-lie", "sketch-lie-mod", "wrong-mask", "cancelling-pair", "silence")
"""Lies inside secure aggregation."""


def rule_of(plan: Plan) -> str:
    """The rule that the plan runs: its own, or what ``auto`` stands for."""
    if plan.robust.rule != "auto":
        return plan.robust.rule
    if plan.federation.num_clients < MIN_CLIENTS:
        return UNDEFENDED
    if plan.is_private:
        return "screening"
    return "group-filter" if plan.secagg.enabled else "arc-nnm-geometric-median"


def max_suspects(plan: Plan, present: int, *, excluded: int = 0) -> int:
    """The f of a round with ``present`` clients: the plan's number, less those already excluded, or a quarter of them; always fewer than half."""
    wanted = plan.robust.num_byzantine - excluded if plan.robust.num_byzantine is not None else present // 4
    return max(0, min(wanted, (present - 1) // 2))


def robust_rules(plan: Plan) -> None:
    """Refuse rules that cannot run where they are asked to, and attacks that cannot be sent.

    Raises:
        ConfigError: names the field and what could run instead.
    """
    rule, f = rule_of(plan), plan.robust.num_byzantine
    if rule != "screening":
        rule_info(rule, Mode.SKETCH if plan.secagg.enabled else Mode.OPEN, root=True)
    if rule == "screening" and not plan.is_private:
        raise ConfigError(
            "screening is calibrated on the noise of differential privacy, and this plan has none",
            field="robust.rule",
            mend='use "auto", or privacy.unit = "example"',
        )
    if f is not None and f > (plan.federation.num_clients - 1) // 2:
        raise ConfigError(
            f"{f} of {plan.federation.num_clients} clients are no minority",
            field="robust.num_byzantine",
            mend=f"lower it to {(plan.federation.num_clients - 1) // 2} or less",
        )
    asked = max(1, math.floor(plan.federation.num_clients * plan.federation.fraction + 1e-9))
    most = max_suspects(plan, asked)
    if rule in RULES and asked < RULES[rule].fewest_clients(most):
        raise ConfigError(
            f"{rule} needs {RULES[rule].fewest_clients(most)} clients to stand {most} hostile ones, {asked} are asked in a round",
            field="robust.num_byzantine",
            mend="lower it, or use another rule",
        )
    _attack_rules(plan)


def _attack_rules(plan: Plan) -> None:
    name = plan.attack.name
    if plan.secagg.enabled and name in MALFORMED_ATTACKS:
        raise ConfigError(
            f'attack "{name}" is about arrays in clear; under secure aggregation an update travels masked',
            field="attack.name",
            mend='set secagg.enabled to false, or use "sketch-lie" or "wrong-mask"',
        )
    if not plan.secagg.enabled and name in PROTOCOL_ATTACKS:
        raise ConfigError(f'attack "{name}" lies inside secure aggregation', field="attack.name", mend="set secagg.enabled to true")
