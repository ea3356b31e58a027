"""Audits of real plans: what attacks show about epsilon, beside what the accountant says.

``python -m experiments.audit.run [--parts fashion,digits,lira] [--seeds 3]``

Parts: ``fashion``, 1000 gradient canaries at epsilon 1, 3, 8 and without privacy, and the three controls; ``digits``, the default plan with as many
canaries as ``fedsec`` takes by itself, canary clients beside them; ``lira``, shadow models against a network on digits, with epsilon 8 and without privacy.
Parts that are not asked for stay as they are in results.json; within a part finished seeds are not run again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from experiments.audit.picture import draw
from experiments.seeded_runs import NO_PRIVACY, markdown_table, replace_block
from fedsec.files import atomic_write_json
from fedsec.plan.load import load_plan
from fedsec.privacy.auditing.results import AuditReport, AuditResult
from fedsec.sim.audit import audit_clients, audit_controls, audit_plan

HERE = Path(__file__).resolve().parent
PLAN, RESULTS, PICTURE = HERE / "plan.toml", HERE / "results.json", HERE / "audit.png"
FORMAT = "fedsec/experiment/audit/v1"
SEEDS = 3

FASHION_CANARIES = 1000
FASHION_RECORDS = 2000
"""Of each client's 6,000: canaries need no records, and the run is three times as short."""
FASHION_ARMS: dict[str, tuple[str, ...]] = {
    "ε = 1": ("privacy.epsilon=1.0", "training.learning_rate=0.8"),
    "ε = 3": (),
    "ε = 8": ("privacy.epsilon=8.0", "training.learning_rate=3.2"),
    "no privacy": (*NO_PRIVACY, "training.learning_rate=0.025"),
}
_LIRA_BASE = (
    "attack.name=none",
    "secagg.enabled=false",
    "robust.rule=mean",
    "federation.num_clients=5",
    "federation.rounds=80",
    "model.name=mlp",
    "model.hidden=[64]",
    "training.steps=5",
    "training.learning_rate=1.0",
    "training.tail_average=0",
    "privacy.clipping=bookkeeping",
)
"""A model that can learn its records by heart, and time to do it: attacks on released models need that."""
LIRA_ARMS: dict[str, tuple[str, ...]] = {"MLP, ε = 8": _LIRA_BASE, "MLP, no privacy": (*_LIRA_BASE, *NO_PRIVACY)}
LIRA_SHADOWS = 16

Audit = Callable[[int], list[AuditResult]]


def audits_of(part: str) -> dict[str, Audit]:
    """The audits of a part by name; each takes a seed."""
    if part == "fashion":
        audits = {arm: _fashion(overrides) for arm, overrides in FASHION_ARMS.items()}
        audits["controls"] = lambda seed: list(
            audit_controls(load_plan(PLAN), seed, canaries=FASHION_CANARIES, most_records=FASHION_RECORDS)
        )
        return audits
    if part == "digits":
        return {"default plan": _digits, "canary clients": lambda seed: [audit_clients(load_plan(None), seed)]}
    if part == "lira":
        return {arm: _lira(overrides) for arm, overrides in LIRA_ARMS.items()}
    raise SystemExit(f"no part is called {part!r}")


def _fashion(overrides: tuple[str, ...]) -> Audit:
    def audit(seed: int) -> list[AuditResult]:
        plan = load_plan(PLAN, overrides=overrides)
        report = audit_plan(plan, seed, controls=(), canaries=FASHION_CANARIES, most_records=FASHION_RECORDS)
        return _checked(report)

    return audit


def _digits(seed: int) -> list[AuditResult]:
    return _checked(audit_plan(load_plan(None), seed))


def _lira(overrides: tuple[str, ...]) -> Audit:
    def audit(seed: int) -> list[AuditResult]:
        plan = load_plan(None, overrides=overrides)
        return _checked(audit_plan(plan, seed, kinds=("loss-threshold", "lira"), controls=(), shadow_models=LIRA_SHADOWS))

    return audit


def _checked(report: AuditReport) -> list[AuditResult]:
    report.check()
    return [*report.results, *report.controls]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="fashion,digits,lira", help="comma-separated (default: all)")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="seeds 1..N (default: 3)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    content = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"format": FORMAT, "rows": []}
    parts = arguments.parts.split(",")
    for part in parts:
        for name, audit in audits_of(part).items():
            for seed in range(1, arguments.seeds + 1):
                _run(content, part, name, seed, audit)
    content["commands"] = {**content.get("commands", {}), **{part: f"python -m experiments.audit.run --parts {part}" for part in parts}}
    atomic_write_json(RESULTS, content)
    draw(content["rows"], PICTURE)
    table = table_of(content["rows"])
    replace_block(HERE / "README.md", table)
    print(table)


def _run(content: dict[str, Any], part: str, name: str, seed: int, audit: Audit) -> None:
    """One audit, unless it is there; the file is written after each."""
    rows = content["rows"]
    if any((row["part"], row["name"], row["seed"]) == (part, name, seed) for row in rows):
        return
    begun = time.monotonic()
    results = [result.to_json() for result in audit(seed)]
    rows.append({"part": part, "name": name, "seed": seed, "seconds": round(time.monotonic() - begun, 1), "results": results})
    print(f"{part}, {name}, seed {seed}: {rows[-1]['seconds']} s", file=sys.stderr)
    atomic_write_json(RESULTS, content)


def table_of(rows: list[dict[str, Any]]) -> str:
    """One line for each attack, the seeds side by side."""
    found: dict[tuple[str, ...], list[AuditResult]] = {}
    for row in rows:
        for value in row["results"]:
            result = AuditResult.from_json(value)
            key = (row["part"], row["name"], result.arm, result.kind, result.adversary, result.unit)
            found.setdefault(key, []).append(result)
    lines = []
    for (part, name, arm, kind, adversary, unit), results in found.items():
        what = f"{part}: {name if arm == 'plan' else 'control, ' + arm}"
        attack = f"{kind}, sees the {adversary}" if unit == "example" else f"canary clients, sees the {adversary}"
        lines.append(
            [
                what,
                attack,
                str(results[0].num_canaries),
                str(results[0].num_guesses),
                f"{results[0].audited.epsilon:.3g}",
                " / ".join(f"**{result.lower_bound:.2f}**" for result in results),
                f"{results[0].perfect_bound:.2f}",
                " / ".join("–" if result.gaussian_estimate is None else f"{result.gaussian_estimate:.2g}" for result in results),
                " / ".join(f"{result.membership.auc.value:.2f}" for result in results),
                " / ".join(f"{result.membership.tpr_at_1.value:.2f}" for result in results),
                _verdict(results),
            ]
        )
    header = ["what ran", "attack", "m", "r", "ε tested", "lower bound", "perfect guesser", "Gaussian", "AUC", "TPR at 1 %", "verdict"]
    return markdown_table(header, lines)


def _verdict(results: list[AuditResult]) -> str:
    if all(result.refuted for result in results):
        return "refuted"
    if any(result.refuted for result in results):
        return "refuted in some seeds"
    if results[0].audited.epsilon == float("inf"):
        return "nothing claimed"
    return "no power" if any(result.no_power for result in results) else "not refuted"


if __name__ == "__main__":
    main()
