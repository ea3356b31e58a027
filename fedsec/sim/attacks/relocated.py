"""Relocated orthogonal perturbation: a push around the server's last step, at a right angle to where the model goes.

Centred clipping measures updates from its last aggregate. Colluders that sit on that point and lean out sideways are never clipped, and their push has the same
direction round after round.

Source: Özfatura et al. 2024 (arXiv 2208.09894), section IV.
"""

from __future__ import annotations

import numpy as np

from fedsec.robust.base import Vector
from fedsec.sim.attacks.knowledge import Knowledge, Sent, send, unit_vector

LENGTH = 1.0
_WEIGHT_OF_STEP = 0.9
"""λ of the paper: share of the last step in the reference that the push is orthogonal to."""


def relocated(knowledge: Knowledge) -> Sent:
    """Δ = m + z·ρ·p: m the server's last step (before there is one, μ), p the all-ones vector made orthogonal to 0.9·m + 0.1·μ.

    z is the strength, and ρ the root mean square distance of the known updates from μ, so that z = 1 lies among them.
    """
    step = next((past.step for past in reversed(knowledge.history) if past.step is not None), None)
    location = knowledge.mean if step is None else np.asarray(step, dtype=np.float64)
    reference = unit_vector(_WEIGHT_OF_STEP * location + (1 - _WEIGHT_OF_STEP) * knowledge.mean)
    push = _orthogonal(np.ones(knowledge.dimension), reference)
    radius = float(np.linalg.norm(knowledge.deviation))
    return send(knowledge, location + knowledge.strength(LENGTH) * radius * push)


def _orthogonal(vector: Vector, to: Vector) -> Vector:
    """Unit vector; zeros where nothing is left but rounding."""
    rest = vector - float(vector @ to) * to
    if float(np.linalg.norm(rest)) <= 1e-9 * float(np.linalg.norm(vector)):
        return np.zeros_like(vector)
    return unit_vector(rest)
