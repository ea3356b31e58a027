"""Min-Max and Min-Sum: the largest push that leaves the colluders within the honest updates' own distances.

Both limits are quadratic in the size γ of the push, so the largest γ is computed, not searched.

Source: Shejwalkar and Houmansadr, NDSS 2021, section IV.
"""

from __future__ import annotations

import math

import numpy as np

from fedsec.robust.base import Vector
from fedsec.sim.attacks.geometry import Picture
from fedsec.sim.attacks.knowledge import Knowledge, Sent, send, unit_vector


def pushes(knowledge: Knowledge) -> tuple[Vector, Vector, Vector]:
    """The three perturbations of the paper: −μ/‖μ‖, −sign μ, −σ."""
    return -unit_vector(knowledge.mean), -np.sign(knowledge.mean), -knowledge.deviation


def min_max(knowledge: Knowledge) -> Sent:
    """Δ = μ + γp, the largest γ with max_i‖Δ − x_i‖ ≤ max_ij‖x_i − x_j‖; the strength says which p (:func:`_chosen`)."""
    picture = Picture.of(knowledge, pushes(knowledge))
    return _chosen(knowledge, picture, [_largest_within_farthest(picture, push) for push in range(3)])


def min_sum(knowledge: Knowledge) -> Sent:
    """Δ = μ + γp, the largest γ with Σ_i‖Δ − x_i‖² ≤ max_i Σ_j‖x_i − x_j‖²; the strength says which p (:func:`_chosen`)."""
    picture = Picture.of(knowledge, pushes(knowledge))
    return _chosen(knowledge, picture, [_largest_within_sum(picture, push) for push in range(3)])


def _largest_within_farthest(picture: Picture, push: int) -> float:
    """For each i the larger root of γ²‖p‖² − 2γ⟨p, r_i⟩ + ‖r_i‖² = D²; the smallest of them. The mean is within D of all, so roots exist."""
    square = picture.push_square(push)
    if square == 0.0:
        return 0.0
    along, lengths = picture.along_push(push), np.diag(picture.residuals)
    room = np.maximum(picture.squared_distances().max() - lengths, 0.0)
    return float(np.min((along + np.sqrt(along**2 + square * room)) / square))


def _largest_within_sum(picture: Picture, push: int) -> float:
    """m·γ²‖p‖² + Σ‖r_i‖² = S, since residuals add up to zero."""
    square = picture.push_square(push)
    if square == 0.0:
        return 0.0
    limit = float(picture.squared_distances().sum(axis=1).max())
    return math.sqrt(max(0.0, limit - float(np.trace(picture.residuals))) / (picture.num_known * square))


def _chosen(knowledge: Knowledge, picture: Picture, sizes: list[float]) -> Sent:
    """Strength 1, 2 or 3: that push; else the one that, by the colluders' own picture, moves the aggregate farthest."""
    push = int(knowledge.strength(0.0)) - 1
    if push not in range(3):
        push = max(range(3), key=lambda push: picture.influence(push, sizes[push]))
    return send(knowledge, knowledge.mean + sizes[push] * pushes(knowledge)[push])
