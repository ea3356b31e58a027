"""Fashion-MNIST over ten clients under local DP-SGD: accuracy against epsilon, over seeds.

``python -m experiments.fashion_mnist.run [--epsilon 1,2,3,4,8,inf] [--seeds 3] [--one-client]``

Every row is a real ``fedsec simulate`` run of ``plan.toml``, evaluated once on the test set after training. A finished (epsilon, seed) is
skipped; rows of earlier calls stay in the results file as long as the plan they ran is still the same.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.seeded_runs import Job, ResultsFile, markdown_table, privacy_overrides, replace_block, run_all, student_interval
from fedsec.data.federated import federated_data
from fedsec.plan.load import load_plan

HERE = Path(__file__).resolve().parent
PLAN = HERE / "plan.toml"
RESULTS = HERE / "results.json"
RUNS = Path("runs") / "fashion-mnist"
EPSILONS = "3"
SEEDS = 3

LEARNING_RATES = {"1": 0.8, "2": 1.2, "3": 1.6, "4": 2.0, "8": 3.2, "inf": 0.025}
"""Per epsilon, chosen on records held out of the training set (README.md). Without privacy nothing is clipped, so gradients are longer."""

ONE_CLIENT = ("federation.num_clients=1", "federation.min_clients=1", "federation.rounds=50")
ONE_CLIENT_RATES = {"1": 0.8, "2": 1.2, "3": 1.8, "4": 2.2, "8": 3.2, "inf": 0.025}
"""Control: one client holds all records, so the same noise is added once and not ten times. This is central DP-SGD, as the published rows are.
Which of the rates were compared, and which are guesses, is in README.md."""

PUBLISHED = (
    ("Tramèr & Boneh 2021, ScatterNet + linear, central", "3", 0.897),
    ("Tramèr & Boneh 2021, ScatterNet + CNN, central", "3", 0.890),
    ("Tramèr & Boneh 2021, CNN, central", "3", 0.860),
    ("Papernot et al. 2021, CNN with tempered sigmoids, central", "2.7", 0.861),
)
"""(what, epsilon, test accuracy), all at delta = 1e-5: arXiv 2011.11660 and arXiv 2007.14191."""


def overrides_of(epsilon: str, rates: Mapping[str, float] = LEARNING_RATES) -> tuple[str, ...]:
    """What differs from the plan file at a target epsilon."""
    privacy = () if epsilon == "3" else privacy_overrides(float(epsilon))
    if epsilon == "3" and rates is LEARNING_RATES:
        return ()
    return (*privacy, f"training.learning_rate={rates[epsilon]}")


def jobs_of(epsilons: list[str], seeds: int, *, one_client: bool = False) -> list[Job]:
    """Every epsilon with every seed, in the order of ``LEARNING_RATES``; then the same for the control."""
    asked = [epsilon for epsilon in LEARNING_RATES if epsilon in epsilons]
    arms = {f"eps{epsilon}": overrides_of(epsilon) for epsilon in asked}
    if one_client:
        arms |= {f"one-client-eps{epsilon}": (*ONE_CLIENT, *overrides_of(epsilon, ONE_CLIENT_RATES)) for epsilon in asked}
    return [Job(arm=arm, seed=seed, plan=PLAN, overrides=overrides) for arm, overrides in arms.items() for seed in range(1, seeds + 1)]


def asked_or_finished(asked: list[Job], file: ResultsFile) -> list[Job]:
    """The jobs asked for, and those of earlier calls whose rows are still good, in the table's order."""
    wanted = {(job.arm, job.seed) for job in asked}
    most = max([job.seed for job in asked] + [row["seed"] for row in file.rows])
    every = jobs_of(list(LEARNING_RATES), most, one_client=True)
    return [job for job in every if (job.arm, job.seed) in wanted or file.find(job) is not None]


def facts_of(command: str) -> dict[str, Any]:
    """What the results file says beside the runs."""
    plan = load_plan(PLAN)
    data = federated_data(plan.data, num_clients=plan.federation.num_clients, seed=1)
    return {
        "name": "fashion-mnist",
        "command": command,
        "cores": os.cpu_count(),
        "data": {
            "fingerprint": data.dataset.fingerprint,
            "train": len(data.dataset.y),
            "test": len(data.dataset.y_test),
            "smallest_client": data.smallest_client,
        },
        "published": [{"what": what, "epsilon": epsilon, "accuracy": accuracy} for what, epsilon, accuracy in PUBLISHED],
    }


def test_accuracy(row: dict[str, Any]) -> float:
    """Of the released model on the 10,000 test records."""
    return float(row["result"]["accuracy"])


def summary_of(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Per arm: mean and interval over seeds, times, and the privacy figures."""
    summary = {}
    for arm in dict.fromkeys(row["arm"] for row in rows):
        of_arm = sorted((row for row in rows if row["arm"] == arm), key=lambda row: row["seed"])
        accuracies = [test_accuracy(row) for row in of_arm]
        interval = student_interval(accuracies)
        epsilon = of_arm[0]["result"]["epsilon"]
        summary[arm] = {
            "seeds": [row["seed"] for row in of_arm],
            "accuracies": accuracies,
            "mean": interval.mean,
            "half_width_95": interval.half_width,
            "seconds": [row["wall_s"] for row in of_arm],
            "epsilon_prv": epsilon["prv"],
            "epsilon_rdp": epsilon["rdp"],
            "delta": epsilon["delta"],
            "noise_multiplier": epsilon["noise_multiplier"],
        }
    return summary


def table_of(content: dict[str, Any]) -> str:
    """The README's table: our rows, then the published ones."""
    rows = []
    for arm, line in content["summary"].items():
        what = "one client with all records, central" if arm.startswith("one-client") else "10 clients, local DP-SGD"
        private = line["delta"] is not None
        figures = [f"{float(line[key]):.3g}" for key in ("epsilon_prv", "epsilon_rdp", "noise_multiplier")] if private else ["∞", "∞", "0"]
        spread = f" ± {line['half_width_95']:.4f}" if line["half_width_95"] is not None else ""
        seeds = ", ".join(f"{accuracy:.4f}" for accuracy in line["accuracies"])
        rows.append([what, *figures, f"**{line['mean']:.4f}**{spread}", seeds, f"{max(line['seconds']):.0f} s"])
    rows += [[line["what"], line["epsilon"], "–", "–", f"{line['accuracy']:.3f}", "", ""] for line in content["published"]]
    return markdown_table(["", "ε (PRV)", "ε (RDP)", "σ", "test accuracy, 95 % over seeds", "each seed", "slowest run"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epsilon", default=EPSILONS, help=f"comma-separated, out of {', '.join(LEARNING_RATES)} (default: {EPSILONS})")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="seeds 1..N (default: 3)")
    parser.add_argument("--one-client", action="store_true", help="also the control: one client that holds all records")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the runs (default: runs/fashion-mnist)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="results file (default: the one beside this script)")
    parser.add_argument("--workers", type=int, help="worker processes of a run (default: one per core)")
    arguments = parser.parse_args()
    epsilons = [text.strip() for text in arguments.epsilon.split(",")]
    if arguments.seeds < 1 or not set(epsilons) <= set(LEARNING_RATES):
        parser.error(f"--seeds is at least 1, and every --epsilon one of {', '.join(LEARNING_RATES)}")
    arguments.runs.mkdir(parents=True, exist_ok=True)
    file = ResultsFile(arguments.results)
    facts = facts_of(shlex.join(["python", "-m", "experiments.fashion_mnist.run", *sys.argv[1:]]))
    jobs = asked_or_finished(jobs_of(epsilons, arguments.seeds, one_client=arguments.one_client), file)
    rows = run_all(jobs, file, facts, accuracy=test_accuracy, runs=arguments.runs, workers=arguments.workers)
    facts["summary"] = summary_of(rows)
    file.save(facts)
    table = table_of(facts)
    if arguments.results == RESULTS:
        replace_block(HERE / "README.md", table)
    print(table)


if __name__ == "__main__":
    main()
