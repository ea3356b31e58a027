"""Attacks as Flower's FLANDERS baseline runs them, for the figures that are held against it.

1. They move models, not updates: ``w + Δ``. For our rules the result is turned back into an update.
2. Mean and deviation are over the models of all n clients as they were before the attack, the colluders' own among them.
3. Two of the four differ from the papers that they are named after, and are kept as they are there: ``lie`` takes the *root* of the deviation
   and the normal distribution function where Baruch et al. take its inverse; ``opt`` starts from one client's model of round 1 for the whole run
   and pushes against the sign of that model, where Fang et al. push against the sign of the honest change.

Source: formulas read from Flower, baselines/flanders, flanders/attacks.py and server.py (arXiv 2303.16668); nothing is copied.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Vector = npt.NDArray[np.float64]

MAGNITUDE = 10.0
LARGEST_PUSH, SMALLEST_PUSH = 999.0, 1e-5
NAMES = ("flanders-gauss", "flanders-lie", "flanders-opt")
FIRST_ROUND = 3
"""They let two rounds pass before they attack."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """One round as these attackers see it.

    Attributes:
        weights: global model, float64 [d].
        differences: float32 [n, d]: what everybody would send if all were honest, as model differences.
        attacking: bool [n].
        start: the model of the first honest client after round 1, float64 [d].
        layer_sizes: entries of each array of the model.
        generator: of the noise.
    """

    weights: Vector
    differences: Floats
    attacking: npt.NDArray[np.bool_]
    start: Vector
    layer_sizes: Sequence[int]
    generator: np.random.Generator

    @property
    def num_byzantine(self) -> int:
        """How many attack, f."""
        return int(np.count_nonzero(self.attacking))


def craft(name: str, scene: Scene) -> npt.NDArray[np.float64]:
    """Model differences that the colluders send: float64 [f, d].

    Raises:
        KeyError: no such attack.
    """
    return {"flanders-gauss": _gauss, "flanders-lie": _lie, "flanders-opt": _opt}[name](scene)


def _gauss(scene: Scene) -> npt.NDArray[np.float64]:
    own = scene.differences[scene.attacking].astype(np.float64)
    return own + scene.generator.normal(0.0, MAGNITUDE, size=own.shape)


def lie_factor(num_clients: int, num_byzantine: int) -> float:
    """Φ((n-f-s)/(n-f)), s = ⌊n/2+1⌋-f.

    >>> round(lie_factor(100, 20), 3)
    0.73
    """
    honest = num_clients - num_byzantine
    supporters = math.floor(num_clients / 2 + 1) - num_byzantine
    return NormalDist().cdf((honest - supporters) / honest)


def _lie(scene: Scene) -> npt.NDArray[np.float64]:
    factor = lie_factor(len(scene.differences), scene.num_byzantine)
    mean, deviation = scene.differences.mean(axis=0, dtype=np.float64), scene.differences.std(axis=0, dtype=np.float64)
    return np.broadcast_to(mean - factor * np.sqrt(deviation), (scene.num_byzantine, len(mean)))


def _opt(scene: Scene) -> npt.NDArray[np.float64]:
    """The longest ``start - λ sign(start)`` that Krum picks, by halving λ."""
    honest = scene.weights + scene.differences[~scene.attacking]
    away, signs = scene.start - honest, np.sign(scene.start)
    squares, along, length = np.einsum("ij,ij->i", away, away), away @ signs, float(signs @ signs)
    among = _squared_distances(honest)
    push = min(_first_push(scene, away, among), LARGEST_PUSH)
    while push > SMALLEST_PUSH and not _krum_picks(among, squares - 2.0 * push * along + push**2 * length, scene.num_byzantine):
        push /= 2.0
    return np.broadcast_to(scene.start - push * signs - scene.weights, (scene.num_byzantine, len(signs)))


def _first_push(scene: Scene, away: npt.NDArray[np.float64], among: npt.NDArray[np.float64]) -> float:
    count, f, layers = len(scene.differences), max(2, scene.num_byzantine), len(scene.layer_sizes)
    kept = min(len(among) - 1, count - f - 2)
    scores = np.sort(among, axis=1)[:, 1 : kept + 1].sum(axis=1)
    parts = np.split(away, np.cumsum(scene.layer_sizes)[:-1], axis=1)
    farthest = float((sum(np.linalg.norm(part, axis=1) for part in parts) ** 2).max())
    return float(scores.min()) / ((count - 2) * (f - 1) * math.sqrt(layers)) + farthest / math.sqrt(layers)


def _krum_picks(among: npt.NDArray[np.float64], to_colluders: Vector, f: int) -> bool:
    """Whether one of f colluders at one place has the smallest Krum score."""
    kept = len(among) - 2  # n - f - 2
    honest = np.sort(np.hstack([among, np.repeat(to_colluders[:, None], f, axis=1)]), axis=1)[:, 1 : kept + 1].sum(axis=1)
    colluder = np.sort(np.concatenate([np.zeros(f), to_colluders]))[1 : kept + 1].sum()
    return bool(colluder < honest.min())


def _squared_distances(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    centred = (rows - rows.mean(axis=0)).astype(np.float32)
    products = (centred @ centred.T).astype(np.float64)
    norms = np.diagonal(products)
    distances: npt.NDArray[np.float64] = np.maximum(norms[:, None] + norms[None, :] - 2.0 * products, 0.0)
    np.fill_diagonal(distances, 0.0)
    return distances
