"""Fed-Heart-Disease under DP-SGD, with and without an intercept of each hospital's own, over epsilons and seeds.

``python -m experiments.heart_disease.run [--seeds 5] [--epsilon inf,5,1,0.1]``

Every row is a real ``fedsec simulate`` run of ``plan.toml``. The accuracy of a run is the mean over the four hospitals' test sets. The
baselines need no run: they are computed here, from the training parts alone, and are the same for every seed.
"""

from __future__ import annotations

import argparse
import math
import shlex
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np

from experiments.seeded_runs import Job, ResultsFile, markdown_table, privacy_overrides, replace_block, run_all, student_interval
from fedsec.data.federated import FederatedData, federated_data
from fedsec.data.heart import HOSPITALS
from fedsec.models.evaluation import evaluate
from fedsec.models.factory import build_model
from fedsec.models.parameters import set_arrays
from fedsec.models.personal import fit_personal
from fedsec.plan.load import load_plan

HERE = Path(__file__).resolve().parent
PLAN = HERE / "plan.toml"
RESULTS = HERE / "results.json"
RUNS = Path("runs") / "heart-disease"
EPSILONS = "inf,5,1,0.1"
SEEDS = 5

ARMS = {"personal": (), "plain": ("model.personal=[]",)}
"""personal: the plan as it is; plain: one intercept for all, in the shared model."""

LOCAL_L2 = 10.0
"""Pull of the local-only fit to zero, chosen by cross-validation inside the training parts (README.md)."""

FLAMBY = {"inf": 0.712, "5": 0.704, "1": 0.685, "0.1": 0.606}
FLAMBY_POOLED_SCALES = {"inf": 0.789, "5": 0.774, "1": 0.781, "0.1": 0.664}
"""Mean of seeds 42 to 46 at delta = 1e-4 in FLamby's ``flamby/dp_example/results_fed_heart_disease.csv``, FedAvg, one model for all.
First: commit b00c657a, each hospital standardised by its own mean and deviation. Second: commit 2285669a of the same file, other scaling."""


def jobs_of(epsilons: list[str], seeds: int) -> list[Job]:
    """Every arm at every epsilon with every seed."""
    return [
        Job(arm=f"{arm}-eps{epsilon}", seed=seed, plan=PLAN, overrides=(*overrides, *privacy_overrides(float(epsilon))))
        for arm, overrides in ARMS.items()
        for epsilon in epsilons
        for seed in range(1, seeds + 1)
    ]


def hospital_accuracies(result: dict[str, Any]) -> dict[str, float]:
    """Accuracy on each hospital's test set, with what that hospital fitted itself."""
    return {name: float(result["personal_accuracy"][f"client-{index:04d}"]) for index, name in enumerate(HOSPITALS)}


def mean_accuracy(row: dict[str, Any]) -> float:
    """Mean over the four test sets, each hospital counting the same."""
    return statistics.fmean(hospital_accuracies(row["result"]).values())


def majority(data: FederatedData) -> dict[str, float]:
    """Each hospital names the commonest label of its own training part."""
    accuracies = {}
    for index, name in enumerate(HOSPITALS):
        common = np.bincount(data.client_arrays(index)[1]).argmax()
        accuracies[name] = float((data.client_test_arrays(index)[1] == common).mean())
    return accuracies


def local_only(data: FederatedData) -> dict[str, float]:
    """Each hospital fits all parameters of the same logistic regression to its own records; no privacy, nothing sent."""
    plan = load_plan(PLAN)
    accuracies = {}
    for index, name in enumerate(HOSPITALS):
        model = build_model(plan.model, input_shape=data.dataset.x.shape[1:], num_classes=2, seed=1)
        set_arrays(model, fit_personal(model, ("weight", "bias"), *data.client_arrays(index), l2=LOCAL_L2))
        accuracies[name] = evaluate(model, *data.client_test_arrays(index), num_classes=2).accuracy
    return accuracies


def facts_of(command: str) -> dict[str, Any]:
    """What the results file says beside the runs."""
    plan = load_plan(PLAN)
    data = federated_data(plan.data, num_clients=plan.federation.num_clients, seed=1)
    return {
        "name": "heart-disease",
        "command": command,
        "data": {
            "fingerprint": data.dataset.fingerprint,
            "train": dict(zip(HOSPITALS, map(len, data.train_parts), strict=True)),
            "test": dict(zip(HOSPITALS, map(len, data.test_parts), strict=True)),
        },
        "baselines": {"local-only": {"l2": LOCAL_L2, "accuracy": local_only(data)}, "majority": {"accuracy": majority(data)}},
        "published": {"FLamby, own standardisation": FLAMBY, "FLamby, other commit": FLAMBY_POOLED_SCALES},
    }


def summary_of(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Per arm: mean and interval over seeds, per hospital means, and the privacy figures."""
    summary = {}
    for arm in dict.fromkeys(row["arm"] for row in rows):
        of_arm = [row for row in rows if row["arm"] == arm]
        interval = student_interval([mean_accuracy(row) for row in of_arm])
        sites = [hospital_accuracies(row["result"]) for row in of_arm]
        epsilon = of_arm[0]["result"]["epsilon"]
        summary[arm] = {
            "seeds": [row["seed"] for row in of_arm],
            "mean": interval.mean,
            "half_width_95": interval.half_width,
            "hospitals": {name: statistics.fmean(site[name] for site in sites) for name in HOSPITALS},
            "epsilon_prv": epsilon["prv"],
            "epsilon_rdp": epsilon["rdp"],
            "delta": epsilon["delta"],
            "noise_multiplier": epsilon["noise_multiplier"],
        }
    return summary


def table_of(content: dict[str, Any]) -> str:
    """The README's table."""
    names = {"personal": "personal intercept", "plain": "plain global model"}
    rows = []
    for arm, line in content["summary"].items():
        kind, _, target = arm.partition("-eps")
        private = line["delta"] is not None
        spread = f" ± {line['half_width_95']:.3f}" if line["half_width_95"] is not None else ""
        figures = [f"{float(line[key]):.3g}" for key in ("epsilon_prv", "epsilon_rdp", "noise_multiplier")] if private else ["∞", "∞", "0"]
        peer = (f"{FLAMBY[target]:.3f}" if target in FLAMBY else "") if kind == "plain" else ""
        rows.append([names[kind], *figures, f"**{line['mean']:.3f}**{spread}", *_cells(line["hospitals"]), peer])
    for name, baseline in content["baselines"].items():
        sites = baseline["accuracy"]
        rows.append([name.replace("-", " "), "–", "–", "–", f"**{statistics.fmean(sites.values()):.3f}**", *_cells(sites), ""])
    header = ["model", "ε (PRV)", "ε (RDP)", "σ", "mean of four, 95 % over seeds", "Cleveland", "Hungarian", "Switzerland", "VA", "FLamby"]
    return markdown_table(header, rows)


def _cells(sites: dict[str, float]) -> list[str]:
    return [f"{sites[name]:.3f}" for name in HOSPITALS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="seeds 1..N (default: 5)")
    parser.add_argument("--epsilon", default=EPSILONS, help=f"comma-separated targets (default: {EPSILONS})")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the runs (default: runs/heart-disease)")
    parser.add_argument(
        "--results", type=Path, help="results file (default: the one beside this script, in a run with the default settings)"
    )
    parser.add_argument("--workers", type=int, help="worker processes of a run (default: one per core)")
    arguments = parser.parse_args()
    epsilons = [text.strip() for text in arguments.epsilon.split(",")]
    if arguments.seeds < 1 or not all(_is_target(text) for text in epsilons):
        parser.error("--seeds is at least 1, and every --epsilon a number over 0 or inf")
    standard = arguments.seeds == SEEDS and arguments.epsilon == EPSILONS
    path = arguments.results or (RESULTS if standard else arguments.runs / "results.json")
    arguments.runs.mkdir(parents=True, exist_ok=True)
    file = ResultsFile(path)
    facts = facts_of(shlex.join(["python", "-m", "experiments.heart_disease.run", *sys.argv[1:]]))
    rows = run_all(jobs_of(epsilons, arguments.seeds), file, facts, accuracy=mean_accuracy, runs=arguments.runs, workers=arguments.workers)
    facts["summary"] = summary_of(rows)
    file.save(facts)
    table = table_of(facts)
    if path == RESULTS:
        replace_block(HERE / "README.md", table)
    print(table)


def _is_target(text: str) -> bool:
    try:
        return float(text) > 0 and not math.isnan(float(text))
    except ValueError:
        return False


if __name__ == "__main__":
    main()
