"""Which learning rate suits the default plan at each epsilon, chosen on held-out training records alone.

``python -m experiments.digits.rates [--epsilon 0.5,1,2,4,8] [--seeds 3]``

Eightfold cross-validation inside each client's training part, with a stacked copy of the clients' training (one numpy step for all clients). Scored only
on images that are in no seed's test part: nothing of a test part is looked at. The plan's other settings stay; only the learning rate and the number of
rounds in the released mean (post-processing, which costs no privacy) are tried.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedsec.data.federated import FederatedData, federated_data
from fedsec.data.sizes import simulated_batch_size
from fedsec.files import atomic_write_json
from fedsec.plan.load import load_plan
from fedsec.plan.model import Plan
from fedsec.plan.sweep import PEACE
from fedsec.robust.rules import capped_weights
from fedsec.sim.audit.noise import noise_multiplier_of

RESULTS = Path(__file__).resolve().parent / "rates.json"
FORMAT = "fedsec/experiment/digits-rates/v1"
FOLDS = 8
RATES = (0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0)
TAILS = (5, 10, 20)
_FOLD, _RUN = 71, 72

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Stack:
    """All clients' training records of one fold, padded to one length.

    Attributes:
        x: float32 [clients, n, features + 1], a 1 behind each record; zeros where there is none.
        y: float32 [clients, n, classes], one-hot; zeros where there is none.
        real: bool [clients, n].
        batch_sizes: float64 [clients], as declared.
        weights: float64 [clients], capped.
    """

    x: Floats
    y: Floats
    real: npt.NDArray[np.bool_]
    batch_sizes: npt.NDArray[np.float64]
    weights: npt.NDArray[np.float64]

    @classmethod
    def of(cls, plan: Plan, data: FederatedData, rows: list[npt.NDArray[np.int64]]) -> Stack:
        """From the records that each client trains on."""
        longest, classes = max(map(len, rows)), data.dataset.num_classes
        x = np.zeros((len(rows), longest, math.prod(data.dataset.input_shape) + 1), dtype=np.float32)
        y = np.zeros((len(rows), longest, classes), dtype=np.float32)
        real = np.zeros((len(rows), longest), dtype=np.bool_)
        for place, chosen in enumerate(rows):
            x[place, : len(chosen)] = with_one(data.dataset.x[chosen])
            y[place, np.arange(len(chosen)), data.dataset.y[chosen]] = 1.0
            real[place, : len(chosen)] = True
        sizes = np.array([float(simulated_batch_size(plan, data, place)) for place in range(len(rows))])
        return cls(
            x=x, y=y, real=real, batch_sizes=sizes, weights=np.array(capped_weights(sizes.tolist(), weight_cap=plan.training.weight_cap))
        )


def with_one(x: Floats) -> Floats:
    """Flat records with a 1 behind each: the bias's feature."""
    return np.concatenate([x.reshape(len(x), -1), np.ones((len(x), 1), dtype=np.float32)], axis=1)


def trained(
    plan: Plan, stack: Stack, rate: float, *, sigma: float, generator: np.random.Generator, sample_rate: float | None = None
) -> list[Floats]:
    """The model after each round, [classes, features + 1]: logistic regression by (DP-)SGD at each client and the server's mean.

    Args:
        plan: rounds, steps, sample rate, clip norm.
        stack: the records.
        rate: learning rate.
        sigma: noise multiplier; 0 without privacy.
        generator: batches and noise.
        sample_rate: instead of the plan's.
    """
    q = plan.training.sample_rate if sample_rate is None else sample_rate
    clip = plan.privacy.clip_norm if plan.is_private else math.inf
    size = np.sqrt((stack.x**2).sum(axis=2))
    model, models = np.zeros((stack.y.shape[2], stack.x.shape[2]), dtype=np.float32), []
    for _ in range(plan.federation.rounds):
        local = np.repeat(model[None], len(stack.x), axis=0)
        for _ in range(plan.training.steps):
            scores = np.einsum("knf,kcf->knc", stack.x, local, optimize=True)
            odds = np.exp(scores - scores.max(axis=2, keepdims=True))
            slope = odds / odds.sum(axis=2, keepdims=True) - stack.y
            norm = np.sqrt((slope**2).sum(axis=2)) * size
            kept = stack.real & (generator.random(stack.real.shape) < q)
            factor = kept * np.minimum(1.0, clip / np.maximum(norm, 1e-12))
            total = np.einsum("knc,knf->kcf", slope * factor[..., None].astype(np.float32), stack.x, optimize=True)
            if sigma:
                total += generator.normal(scale=sigma * clip, size=total.shape).astype(np.float32)
            local -= (rate / stack.batch_sizes[:, None, None]).astype(np.float32) * total
        mean = np.tensordot(stack.weights / stack.weights.sum(), local - model, axes=1)
        model = (model + mean).astype(np.float32)
        models.append(model)
    return models


def folds_of(plan: Plan, data: FederatedData, fair: npt.NDArray[np.bool_]) -> Iterator[tuple[Stack, npt.NDArray[np.int64]]]:
    """Each fold: what the clients train on, and the held-out training records that may be scored."""
    generator = np.random.default_rng([plan.federation.seed, _FOLD])
    dealt = [(part, generator.permutation(len(part)) % FOLDS) for part in data.train_parts]
    for fold in range(FOLDS):
        held = np.concatenate([part[place == fold] for part, place in dealt])
        yield Stack.of(plan, data, [part[place != fold] for part, place in dealt]), held[fair[held]]


def in_no_test_part(datas: list[FederatedData]) -> list[npt.NDArray[np.bool_]]:
    """For each seed, which of its training records are test records of no seed."""
    tested = {record.tobytes() for data in datas for record in data.dataset.x_test}
    return [np.array([record.tobytes() not in tested for record in data.dataset.x]) for data in datas]


def score(epsilon: float, seeds: int) -> list[dict[str, Any]]:
    """Held-out accuracy of every rate and tail at one epsilon; a line each, best first."""
    privacy = ['privacy.unit="none"', "privacy.epsilon=inf"] if math.isinf(epsilon) else [f"privacy.epsilon={epsilon!r}"]
    plans = [load_plan(overrides=[*PEACE, *privacy, f"federation.seed={seed}"]) for seed in range(1, seeds + 1)]
    datas = [federated_data(one.data, num_clients=one.federation.num_clients, seed=one.federation.seed) for one in plans]
    sigma, found = noise_multiplier_of(plans[0]), dict[tuple[float, int], list[list[float]]]()
    for one, data, fair in zip(plans, datas, in_no_test_part(datas), strict=True):
        right: dict[tuple[float, int], list[float]] = {}
        for fold, (stack, held) in enumerate(folds_of(one, data, fair)):
            x, y = with_one(data.dataset.x[held]), data.dataset.y[held]
            for rate in RATES:
                models = trained(one, stack, rate, sigma=sigma, generator=np.random.default_rng([one.federation.seed, _RUN, fold]))
                for tail in TAILS:
                    guess = (x @ np.mean(models[-tail:], axis=0).T).argmax(axis=1)
                    right.setdefault((rate, tail), []).append(float((guess == y).mean()))
        for key, values in right.items():
            found.setdefault(key, []).append(values)
    lines = [
        {
            "epsilon": "inf" if math.isinf(epsilon) else epsilon,
            "learning_rate": rate,
            "tail_average": tail,
            "accuracy": round(statistics.fmean(value for seed in values for value in seed), 4),
            "by_seed": [round(statistics.fmean(seed), 4) for seed in values],
        }
        for (rate, tail), values in found.items()
    ]
    return sorted(lines, key=lambda line: -line["accuracy"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epsilon", default="0.5,1,2,4,8", help="comma-separated targets (default: 0.5,1,2,4,8)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 1..N (default: 3)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="results file (default: beside this script)")
    arguments = parser.parse_args()
    lines = []
    for epsilon in map(float, arguments.epsilon.split(",")):
        found = score(epsilon, arguments.seeds)
        lines += found
        for line in found[:5]:
            print(json.dumps(line), flush=True)
        planned = next(line for line in found if (line["learning_rate"], line["tail_average"]) == (3.0, 5))
        print(f"as planned: {planned['accuracy']}", flush=True)
    command = shlex.join(["python", "-m", "experiments.digits.rates", *sys.argv[1:]])
    atomic_write_json(arguments.results, {"format": FORMAT, "command": command, "folds": FOLDS, "lines": lines})


if __name__ == "__main__":
    main()
