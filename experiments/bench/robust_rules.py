"""The rules that the benchmark of robust aggregation runs: ours, Flower's and ByzFL's, each as a function of updates and f.

ByzFL is installed without its dependencies in a folder of its own: it pins an older torch of several GB, and its aggregators run beside the
one that is here. Only its aggregators are imported; its package also imports torchvision, which they do not need.

Where definitions differ, ours is given theirs for the comparison: ByzFL's Krum counts n - f - 1 neighbours (the paper n - f - 2); its
geometric median and centred clipping start at the origin and make a fixed number of steps, so ours runs until it stands and ByzFL's with
the fewest steps that come within 1e-6 of the same point.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fedsec.robust import coordinatewise, selecting, weighting
from fedsec.robust.base import Matrix, Vector
from fedsec.robust.decision import GramDecision, distances_from
from fedsec.robust.gram import Updates, combine, gram_matrix

BYZFL = "byzfl==0.0.11"
THREADS = 1
STEPS = 10
SMALLEST = 1e-6
NEAR = 1e-6

Rule = Callable[[Updates, int], Vector]


def by_weights(decide: Callable[[Matrix, int], GramDecision]) -> Rule:
    """Gram matrix, rule, weighted sum."""

    def run(updates: Updates, f: int) -> Vector:
        return combine(updates, decide(gram_matrix(updates, threads=THREADS), f).weights, threads=THREADS)

    return run


def largest_bulyan(count: int) -> int:
    """F that Bulyan stands with ``count`` clients."""
    return (count - 3) // 4


def our_bulyan(updates: Updates, _: int) -> Vector:
    f = largest_bulyan(len(updates))
    return coordinatewise.bulyan(updates, gram_matrix(updates, threads=THREADS), num_byzantine=f, threads=THREADS)[0]


def from_the_origin(gram: Matrix, f: int) -> GramDecision:
    """Centred clipping as ByzFL's: from the origin, one radius for all steps."""
    return weighting.centred_clipping(gram, num_byzantine=f, radius=radius_of(gram, f), start=np.zeros(len(gram)), steps=STEPS)


def radius_of(gram: Matrix, f: int) -> float:
    """The (n-f)-th smallest norm: at most f updates are clipped in the first step."""
    return float(np.sort(np.sqrt(np.diagonal(gram)))[len(gram) - f - 1])


OURS: dict[str, Rule] = {
    "median": lambda x, _: coordinatewise.median(x, threads=THREADS),
    "trimmed mean": lambda x, f: coordinatewise.trimmed_mean(x, num_byzantine=f, threads=THREADS),
    "MeaMed": lambda x, f: coordinatewise.meamed(x, num_byzantine=f, threads=THREADS),
    "Bulyan": our_bulyan,
    "Krum": by_weights(lambda gram, f: selecting.krum(gram, num_byzantine=f)),
    "Krum, n-f-1": by_weights(lambda gram, f: selecting.krum(gram, num_byzantine=f, neighbours=len(gram) - f - 1)),
    "Multi-Krum": by_weights(lambda gram, f: selecting.multi_krum(gram, num_byzantine=f)),
    "Multi-Krum, n-f-1": by_weights(lambda gram, f: selecting.multi_krum(gram, num_byzantine=f, neighbours=len(gram) - f - 1)),
    "geometric median": by_weights(lambda gram, f: weighting.geometric_median(gram, num_byzantine=f)),
    "centred clipping": by_weights(from_the_origin),
    "NNM + geometric median": by_weights(lambda gram, f: weighting.nnm_geometric_median(gram, num_byzantine=f)),
    "ARC + NNM + geometric median": by_weights(lambda gram, f: weighting.arc_nnm_geometric_median(gram, num_byzantine=f)),
    "filter": by_weights(lambda gram, f: selecting.norm_and_distance_filter(gram, num_byzantine=f)),
    "spectral": by_weights(lambda gram, f: selecting.spectral_filter(gram, num_byzantine=f)),
}


def fewest_steps(gram: Matrix) -> int:
    """Weiszfeld steps from the origin until it is within ``NEAR`` (of the median norm) of where ours stands."""
    stands, _ = weighting.median_weights(gram)
    weights = np.zeros(len(gram))
    scale = float(np.sqrt(np.median(np.diagonal(gram))))
    for step in range(1, 10_000):
        inverse = 1.0 / np.maximum(distances_from(gram, weights), SMALLEST)
        weights = inverse / inverse.sum()
        rest = weights - stands
        if np.sqrt(max(0.0, float(rest @ gram @ rest))) <= NEAR * scale:
            return step
    raise SystemExit("Weiszfeld's steps do not come near")


def flower_rules() -> dict[str, Rule]:
    """Flower's own aggregation functions, on one layer a client."""
    from flwr.server.strategy.aggregate import aggregate_bulyan, aggregate_krum, aggregate_median, aggregate_trimmed_avg

    def results(updates: Updates) -> list[Any]:
        return [([row], 1) for row in updates]

    def bulyan(updates: Updates, _: int) -> Any:
        return aggregate_bulyan(results(updates), largest_bulyan(len(updates)), aggregate_krum, to_keep=0)[0]

    return {
        "median": lambda x, _: aggregate_median(results(x))[0],
        "trimmed mean": lambda x, f: aggregate_trimmed_avg(results(x), f / len(x))[0],
        "Krum": lambda x, f: aggregate_krum(results(x), f, 0)[0],
        "Multi-Krum": lambda x, f: aggregate_krum(results(x), f, len(x) - f)[0],
        "Bulyan": bulyan,
    }


def byzfl_rules(folder: Path, gram: Matrix, f: int) -> dict[str, Callable[[Any], Any]]:
    """ByzFL's aggregators, set up for updates with this Gram matrix; each takes a 2-D numpy array or torch tensor."""
    byzfl = load_byzfl(folder)
    scale = weighting.adaptive_clipping(gram, num_byzantine=f)

    def mixed(matrix: Matrix) -> Matrix:
        return weighting.congruent(matrix, weighting.nearest_neighbour_mixing(matrix, num_byzantine=f))

    def median(matrix: Matrix) -> Any:
        return byzfl.GeometricMedian(SMALLEST, fewest_steps(matrix))

    def clipping(x: Any) -> Any:
        return byzfl.CenteredClipping(None, STEPS, radius)(x)  # a fresh one: it keeps its last result

    plain, after_mixing, after_both = median(gram), median(mixed(gram)), median(mixed(gram * np.outer(scale, scale)))
    nnm, arc = byzfl.NNM(f), byzfl.ARC(f)
    radius = radius_of(gram, f)
    return {
        "median": byzfl.Median(),
        "trimmed mean": byzfl.TrMean(f),
        "MeaMed": byzfl.Meamed(f),
        "Krum, n-f-1": byzfl.Krum(f),
        "Multi-Krum, n-f-1": byzfl.MultiKrum(f),
        "geometric median": plain,
        "centred clipping": clipping,
        "NNM + geometric median": lambda x: after_mixing(nnm(x)),
        "ARC + NNM + geometric median": lambda x: after_both(nnm(arc(x))),
    }


def load_byzfl(folder: Path) -> Any:
    """ByzFL's module of aggregators out of ``folder``; installed there first if it is not."""
    if not (folder / "byzfl" / "aggregators").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), BYZFL], check=True)
    package = types.ModuleType("byzfl")
    package.__path__ = [str(folder / "byzfl")]
    sys.modules["byzfl"] = package
    return importlib.import_module("byzfl.aggregators")


def default_folder() -> Path:
    """Where ByzFL is kept between runs."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "fedsec-bench" / BYZFL.replace("==", "-")
