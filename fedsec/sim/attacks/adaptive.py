"""The adaptive attack: run the defender's own pipeline, and push as hard as it lets pass.

1. Each colluder sends its honest update, with its own noise, plus one common push: against μ or, if the caller names a direction, along it,
   whichever can be longer.
2. The length is found by halving from far too long until all colluders are accepted, and bisecting from there: at most 16 runs of the pipeline for
   a direction.
3. Partial attackers fill the places of honest clients that they do not know with stand-ins: μ plus fresh noise, or, without privacy, plus the known residuals with
   random signs.

Source: design note ROBUST, "adaptive: the attacker runs our own pipeline".
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from fedsec.robust.base import Vector
from fedsec.sim.attacks.knowledge import LARGEST, Knowledge, Sent, send_honestly, send_sums, unit_vector
from fedsec.vectors import FloatArray

SHARE_OF_LARGEST = 1.0
_TOO_LONG = 64.0
_HALVINGS, _BISECTIONS = 10, 6


def adaptive(knowledge: Knowledge) -> Sent:
    """Send x = own + c·p with the largest c at which the whole crew is accepted, times the strength (1: all of it).

    Without a pipeline to run the colluders stay honest.
    """
    if knowledge.screen is None:
        return send_honestly(knowledge)
    honest = stand_ins(knowledge)
    best = np.zeros(knowledge.dimension)
    for direction in _directions(knowledge):
        length = _longest(partial(_passes, knowledge, honest, direction), _too_long(knowledge))
        if length > np.linalg.norm(best):
            best = length * direction
    return send_sums(knowledge, knowledge.own + knowledge.strength(SHARE_OF_LARGEST) * best)


def stand_ins(knowledge: Knowledge) -> FloatArray:
    """The honest updates as the colluders picture them, sum form: the known ones, and stand-ins for the others; float32 [max(m, n − f), d]."""
    missing = knowledge.num_clients - knowledge.num_byzantine - len(knowledge.known)
    if missing <= 0:
        return knowledge.known
    size = float(np.median(knowledge.batch_sizes))
    if knowledge.noise_stddev > 0:
        spread = knowledge.generator.normal(0.0, knowledge.noise_stddev, size=(missing, knowledge.dimension))
    else:
        signs = knowledge.generator.choice([-1.0, 1.0], size=(missing, len(knowledge.known)))
        residuals = (knowledge.deltas - knowledge.mean) * size
        spread = signs @ residuals / np.sqrt(max(1, len(knowledge.known) - 1))
    rows = np.clip(size * knowledge.mean + spread, -LARGEST, LARGEST).astype(np.float32)
    return np.vstack([knowledge.known, rows])


def _directions(knowledge: Knowledge) -> list[Vector]:
    fixed = [] if knowledge.direction is None else [knowledge.push_direction]
    return [direction for direction in (*fixed, -unit_vector(knowledge.mean)) if direction.any()]


def _too_long(knowledge: Knowledge) -> float:
    size = float(np.median(knowledge.own_batch_sizes))
    return _TOO_LONG * max(size * float(np.linalg.norm(knowledge.mean)), knowledge.unit)


def _passes(knowledge: Knowledge, honest: FloatArray, direction: Vector, length: float) -> bool:
    assert knowledge.screen is not None
    candidates = send_sums(knowledge, knowledge.own + length * direction).updates
    accepted = knowledge.screen(np.vstack([honest, candidates]))
    return bool(np.all(accepted[len(honest) :]))


def _longest(passes: Callable[[float], bool], too_long: float) -> float:
    """The largest length seen to pass; 0 if none does. A length over ``too_long`` is never tried."""
    low, high = 0.0, too_long
    for _ in range(_HALVINGS):
        if high > 0 and passes(high):
            low = high
            break
        high /= 2
    if low in (0.0, too_long):
        return low
    high = 2 * low
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if passes(middle) else (low, middle)
    return low
