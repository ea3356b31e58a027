"""Gradient inversion: which pictures a server gets out of updates, sums, noised updates and sketches.

``python -m experiments.inversion.run [--seeds 3] [--steps 600]``

Fashion-MNIST; ten victims a seed, one of each class. Every attack is scored against the victim's own picture; the baseline is the mean public picture, for
attacks that are told the class that of the class.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.inversion.lab import ARMS, CLASSES, Guess, Scene, attacks_on, matching, seen_gradients
from experiments.inversion.picture import draw
from experiments.inversion.sketches import psnr_by_round
from experiments.seeded_runs import markdown_table, replace_block
from fedsec.data.download import ensure_images, find_data_root
from fedsec.data.idx import FASHION_MNIST, load_images
from fedsec.files import atomic_write_json
from fedsec.privacy.auditing.inversion import PicturePrior
from fedsec.privacy.auditing.inversion_results import CLASS_MEAN, CLASS_ROWS, MEAN
from fedsec.privacy.auditing.pictures import psnr, ssim
from fedsec.privacy.calibration import calibrate_noise_multiplier

HERE = Path(__file__).resolve().parent
RESULTS, PICTURE = HERE / "results.json", HERE / "inversion.png"
FORMAT = "fedsec/experiment/inversion/v1"
EPSILON, DELTA = 8.0, 1e-5
"""Spent on the one release that is attacked."""
SKETCH_ARMS: dict[str, float | None] = {"no privacy": None, "ε = 8": 8.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="seeds 1..N (default: 3)")
    parser.add_argument("--steps", type=int, default=600, help="of the matching attack (default: 600)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.monotonic()
    sigma = calibrate_noise_multiplier(epsilon=EPSILON, delta=DELTA, sample_rate=1.0, steps=1)
    dataset = load_images(FASHION_MNIST, ensure_images(FASHION_MNIST, find_data_root(None)))
    rows, shown = [], {}
    for seed in range(1, arguments.seeds + 1):
        scene = Scene.of(dataset, seed)
        found = guesses_of(scene, seed, sigma, steps=arguments.steps)
        rows += [row for key, guesses in found.items() for row in _scores(key, guesses, scene, seed)]
        if seed == 1:
            shown = {key: [guess.picture for guess in guesses] for key, guesses in found.items()}
            victims = scene.pictures
        print(f"seed {seed}: {time.monotonic() - begun:.0f} s", file=sys.stderr)
    sketches = {name: psnr_by_round(1, epsilon=epsilon) for name, epsilon in SKETCH_ARMS.items()}
    content = {
        "format": FORMAT,
        "command": shlex.join(["python", "-m", "experiments.inversion.run", *sys.argv[1:]]),
        "epsilon": EPSILON,
        "delta": DELTA,
        "noise_multiplier": sigma,
        "seconds": round(time.monotonic() - begun, 1),
        "rows": rows,
        "sketches": sketches,
    }
    atomic_write_json(RESULTS, content)
    draw(victims, shown, sketches, PICTURE)
    table = table_of(json.loads(json.dumps(rows)))
    replace_block(HERE / "README.md", table)
    print(table)


Key = tuple[str, str, str]
"""Model, arm, attack."""
TOLD = (CLASS_MEAN, CLASS_ROWS, "prior, class known")
"""Attacks that are told the class."""
WITHOUT_LABEL = (MEAN, *TOLD)
"""Attacks that do not guess the class."""


def guesses_of(scene: Scene, seed: int, sigma: float, *, steps: int) -> dict[Key, list[Guess]]:
    """All attacks on all arms: ten guesses each, one per victim."""
    found: dict[Key, list[Guess]] = {
        ("–", "nothing seen", MEAN): [_blind(scene.prior)] * CLASSES,
        ("–", "nothing seen", CLASS_MEAN): [_blind(scene.class_priors[label]) for label in scene.labels],
    }
    seen = seen_gradients(scene, "logistic", seed, noise_multiplier=sigma)
    for arm in ARMS:
        for place in range(CLASSES):
            for attack, guess in attacks_on(scene, seen[arm][place], arm, place, noise_multiplier=sigma):
                found.setdefault(("linear", arm, attack), []).append(guess)
    seen = seen_gradients(scene, "cnn", seed, noise_multiplier=sigma)
    for arm in ARMS:
        summed = arm in ("secure aggregation", "both")
        guesses = [matching("cnn", seed, seen[arm][place], steps=steps) for place in range(1 if summed else CLASSES)]
        found["CNN", arm, "matching"] = guesses * (CLASSES if summed else 1)
    return found


def _blind(prior: PicturePrior) -> Guess:
    return Guess(picture=prior.mean.reshape(28, 28), label=-1)


def _scores(key: Key, guesses: list[Guess], scene: Scene, seed: int) -> list[dict[str, Any]]:
    model, arm, attack = key
    return [
        {
            "model": model,
            "arm": arm,
            "attack": attack,
            "seed": seed,
            "victim": place,
            "psnr": psnr(guess.picture, scene.pictures[place]),
            "ssim": ssim(guess.picture, scene.pictures[place]),
            "label_right": bool(guess.label == scene.labels[place]),
        }
        for place, guess in enumerate(guesses)
    ]


def table_of(rows: list[dict[str, Any]]) -> str:
    """Means over victims and seeds."""
    lines = []
    for key in dict.fromkeys((row["model"], row["arm"], row["attack"]) for row in rows):
        some = [row for row in rows if (row["model"], row["arm"], row["attack"]) == key]
        values, gains = [row["psnr"] for row in some], gains_of(rows, key)
        told = "–" if key[2] in WITHOUT_LABEL else f"{np.mean([row['label_right'] for row in some]):.0%}"
        gain = "–" if key[1] == "nothing seen" else f"{np.mean(gains):+.1f} ± {_half(gains):.1f}"
        found = [
            f"**{np.mean(values):.1f}** ± {_half(values):.1f}",
            gain,
            f"{max(values):.1f}",
            f"{np.mean([row['ssim'] for row in some]):.2f}",
        ]
        lines.append([*key, *found, told])
    return markdown_table(
        ["model", "protection", "attack", "PSNR, dB", "over the blind guess", "best victim", "SSIM", "label right"], lines
    )


def gains_of(rows: list[dict[str, Any]], key: Key) -> list[float]:
    """Decibels over the blind guess of who knows as much beforehand, victim by victim."""
    blind = CLASS_MEAN if key[2] in TOLD else MEAN
    of = {
        attack: {(row["seed"], row["victim"]): row["psnr"] for row in rows if (row["model"], row["arm"], row["attack"]) == attack}
        for attack in (key, ("–", "nothing seen", blind))
    }
    return [value - of["–", "nothing seen", blind][victim] for victim, value in of[key].items()]


def _half(values: list[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values)) * 1.96 if len(values) > 1 else math.nan


if __name__ == "__main__":
    main()
