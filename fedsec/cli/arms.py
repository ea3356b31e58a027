"""The runs beside an attacked one: the same federation undefended, and without the attack. Each is a run folder of its own, resumable like any."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedsec.plan.model import Plan
    from fedsec.results import RunResult

UNDEFENDED, NO_ATTACK = "undefended", "no-attack"


def arms_of(plan: Plan) -> dict[str, Plan]:
    """Folder name → plan of each run to compare with; empty without an attack, or where the plan asks for none."""
    from fedsec.plan.load import plan_from_mapping
    from fedsec.plan.robust import UNDEFENDED as MEAN
    from fedsec.plan.robust import rule_of

    if plan.attack.name == "none" or not plan.attack.compare:
        return {}
    raw = plan.model_dump(mode="python", exclude_none=True)
    arms = {}
    if rule_of(plan) != MEAN:
        arms[UNDEFENDED] = plan_from_mapping(
            {**raw, "name": f"{plan.name}, undefended"[:120], "robust": {"rule": MEAN}, "attack": {**raw["attack"], "compare": False}}
        )
    arms[NO_ATTACK] = plan_from_mapping({**raw, "name": f"{plan.name}, no attack"[:120], "attack": {}})
    return arms


def check_arms(plan: Plan, folder: Path) -> None:
    """Find out before a run whether the runs beside it will have their folders.

    Raises:
        ConfigError: a folder of that name holds something else.
    """
    from fedsec.errors import ConfigError

    for name in arms_of(plan):
        path = folder / name
        if path.exists() and not (path / "run.json").exists():
            raise ConfigError(f"{path} is in the way of the run that this one is compared with", mend="remove it, or choose another --out")


def run_arms(plan: Plan, result: RunResult, run_one: Callable[[Plan, Path], RunResult | None]) -> RunResult:
    """Run what the attacked run is compared with, and write curves and numbers into its folder.

    Args:
        plan: of the attacked run.
        result: of the attacked run, whole.
        run_one: runs a plan in a folder; None if it was stopped.

    Returns:
        The result with the accuracies of the other runs; as it was if one of them was stopped: its folder stays, and a resumed run goes on.
    """
    from fedsec.report.rejection import plot_defence
    from fedsec.report.tables import write_result

    folder, others = Path(result.run_dir), {}
    for name, arm in arms_of(plan).items():
        other = run_one(arm, folder / name)
        if other is None or other.stopped_early:
            return result
        others[name] = other
    if not others or result.rejection is None:
        return result
    undefended, clean = others.get(UNDEFENDED), others[NO_ATTACK]
    whole = replace(
        result,
        rejection=replace(
            result.rejection,
            accuracy_undefended=undefended.accuracy if undefended is not None else result.accuracy,
            accuracy_no_attack=clean.accuracy,
        ),
    )
    plot_defence({"defended": result, **others}, folder / "defence.png")
    write_result(folder / "result.json", whole)
    return whole
