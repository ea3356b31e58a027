"""The default plan over seeds: attacked and defended, undefended, without the attack, without secure aggregation, without privacy.

``python -m experiments.digits.run [--seeds 5]``

Every row is a real ``fedsec simulate`` run of the plan that ``fedsec simulate`` runs when it is given none. A seed decides the test part, the
partition, the sampling, the noise and who attacks. The run without privacy differs in three keys: no clipping, no noise, its own learning rate.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from experiments.seeded_runs import NO_PRIVACY, Job, ResultsFile, markdown_table, replace_block, run_all, student_interval
from fedsec.data.federated import federated_data
from fedsec.plan.load import load_plan

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.json"
RUNS = Path("runs") / "digits"
SEEDS = 5

ALONE = ("attack.compare=false",)  # the arms are the comparison
PEACE = ("attack.name=none",)
BARE = (*PEACE, "robust.rule=mean")
CLEAR = (*BARE, "secagg.enabled=false")
ARMS = {
    "default": ALONE,
    "undefended": (*ALONE, "robust.rule=mean"),
    "no attack": PEACE,
    "mean": BARE,
    "clear": CLEAR,
    "no-privacy": (*NO_PRIVACY, *CLEAR, "training.learning_rate=5.0"),
}
"""The learning rate without privacy was chosen on held-out training records (README.md)."""


def jobs_of(seeds: int) -> list[Job]:
    """All arms with every seed."""
    return [Job(arm=arm, seed=seed, plan=None, overrides=overrides) for arm, overrides in ARMS.items() for seed in range(1, seeds + 1)]


def facts_of(command: str, seeds: int) -> dict[str, Any]:
    """What the results file says beside the runs."""
    plan = load_plan()
    fingerprints = {}
    for seed in range(1, seeds + 1):
        fingerprints[str(seed)] = federated_data(plan.data, num_clients=plan.federation.num_clients, seed=seed).dataset.fingerprint
    return {"name": "digits", "command": command, "data": {"fingerprints": fingerprints}}


def test_accuracy(row: dict[str, Any]) -> float:
    """Of the released model on the server's test part."""
    return float(row["result"]["accuracy"])


def summary_of(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Per arm: mean and interval over seeds, the slowest run, and the privacy figures."""
    summary = {}
    for arm in dict.fromkeys(row["arm"] for row in rows):
        of_arm = [row for row in rows if row["arm"] == arm]
        accuracies = [test_accuracy(row) for row in of_arm]
        interval = student_interval(accuracies)
        epsilon = of_arm[0]["result"]["epsilon"]
        summary[arm] = {
            "seeds": [row["seed"] for row in of_arm],
            "accuracies": accuracies,
            "mean": interval.mean,
            "half_width_95": interval.half_width,
            "majority": student_interval([float(row["result"]["majority_accuracy"]) for row in of_arm]).mean,
            "slowest_wall_s": max(row["wall_s"] for row in of_arm),
            "epsilon_prv": epsilon["prv"],
            "epsilon_rdp": epsilon["rdp"],
            "delta": epsilon["delta"],
            "noise_multiplier": epsilon["noise_multiplier"],
            **rejection_of(of_arm),
        }
    return summary


def rejection_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean over seeds of each figure of rejection; None where it is not defined in some seed."""
    reports = [row["result"].get("rejection") or {} for row in rows]
    figures: dict[str, Any] = {}
    for key in ("precision", "recall", "auc", "honest_rate", "worst_honest_rate", "rounds_to_detection"):
        values = [report.get(key) for report in reports]
        figures[key] = None if None in values else sum(map(float, values)) / len(values)
    return figures


def table_of(content: dict[str, Any]) -> str:
    """The README's table."""
    names = {
        "default": "default plan: 4 of 20 attack, defended",
        "undefended": "the same, undefended",
        "no attack": "defended, nobody attacks",
        "mean": "no attack, no rule",
        "clear": "the same without secure aggregation",
        "no-privacy": "the same without privacy",
    }
    rows = []
    for arm, line in content["summary"].items():
        private = line["delta"] is not None
        spread = f" ± {line['half_width_95']:.3f}" if line["half_width_95"] is not None else ""
        figures = [f"{float(line[key]):.3g}" for key in ("epsilon_prv", "epsilon_rdp", "noise_multiplier")] if private else ["∞", "∞", "0"]
        seeds = ", ".join(f"{accuracy:.3f}" for accuracy in line["accuracies"])
        found = ["–" if line[key] is None else f"{line[key]:.3f}" for key in ("precision", "recall", "honest_rate")]
        rows.append([names[arm], *figures, f"**{line['mean']:.3f}**{spread}", seeds, *found])
    majority = next(iter(content["summary"].values()))["majority"]
    rows.append(["majority class", "–", "–", "–", f"{majority:.3f}", "", "", "", ""])
    return markdown_table(
        ["", "ε (PRV)", "ε (RDP)", "σ", "accuracy, 95 % over seeds", "each seed", "precision", "recall", "honest rejected"], rows
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="seeds 1..N (default: 5)")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the runs (default: runs/digits)")
    parser.add_argument("--results", type=Path, help="results file (default: the one beside this script, in a run with 5 seeds)")
    parser.add_argument("--workers", type=int, help="worker processes of a run (default: one per core)")
    arguments = parser.parse_args()
    if arguments.seeds < 1:
        parser.error("--seeds is at least 1")
    path = arguments.results or (RESULTS if arguments.seeds == SEEDS else arguments.runs / "results.json")
    arguments.runs.mkdir(parents=True, exist_ok=True)
    file = ResultsFile(path)
    facts = facts_of(shlex.join(["python", "-m", "experiments.digits.run", *sys.argv[1:]]), arguments.seeds)
    rows = run_all(jobs_of(arguments.seeds), file, facts, accuracy=test_accuracy, runs=arguments.runs, workers=arguments.workers)
    facts["summary"] = summary_of(rows)
    file.save(facts)
    table = table_of(facts)
    if path == RESULTS:
        replace_block(HERE / "README.md", table)
    print(table)


if __name__ == "__main__":
    main()
