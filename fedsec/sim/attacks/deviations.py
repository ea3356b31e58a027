"""ALIE and IPM, as published and with their one number optimised against the server's rule.

ALIE (a little is enough): μ + zσ, few deviations per coordinate, so that a coordinate-wise rule finds it in the crowd. IPM (inner product
manipulation): −εμ, so that the aggregate points backwards.

Source: Baruch et al. 2019 (arXiv 1902.06156), algorithm 3; Xie et al. 2020 (arXiv 1903.03936), section 4; optimised: the line search on
‖aggregate − honest mean‖ that the Byzantine-learning literature uses (design note ROBUST).
"""

from __future__ import annotations

from statistics import NormalDist

from fedsec.sim.attacks.geometry import Picture, maximise
from fedsec.sim.attacks.knowledge import Knowledge, Sent, send

IPM_FACTOR = 0.5
LARGEST_FACTOR = 64.0
"""Where the line search ends, if the plan does not say."""


def alie_deviations(num_clients: int, num_byzantine: int) -> float:
    """Give z = Φ⁻¹((n−f−s)/(n−f)) with s = ⌊n/2+1⌋−f: so many deviations that s honest clients lie beyond; at least 0.

    >>> round(alie_deviations(50, 24), 3), round(alie_deviations(20, 4), 3)
    (1.426, 0.157)
    """
    honest = num_clients - num_byzantine
    supporters = num_clients // 2 + 1 - num_byzantine
    share = (honest - supporters) / max(1, honest)
    return max(0.0, NormalDist().inv_cdf(min(max(share, 0.5), 0.999)))


def alie(knowledge: Knowledge) -> Sent:
    """Δ = μ + zσ; z is the strength, by default the paper's."""
    deviations = knowledge.strength(alie_deviations(knowledge.num_clients, knowledge.num_byzantine))
    return send(knowledge, knowledge.mean + deviations * knowledge.deviation)


def ipm(knowledge: Knowledge) -> Sent:
    """Δ = −εμ; ε is the strength."""
    return send(knowledge, -knowledge.strength(IPM_FACTOR) * knowledge.mean)


def optimised_alie(knowledge: Knowledge) -> Sent:
    """Δ = μ + zσ with the z in 0..strength that moves the aggregate farthest from the honest mean."""
    guess = alie_deviations(knowledge.num_clients, knowledge.num_byzantine)
    picture = Picture.of(knowledge, [knowledge.deviation])
    largest = max(abs(knowledge.strength(LARGEST_FACTOR)), 1e-9)
    size = maximise(lambda size: picture.influence(0, size), guess=min(guess, largest), largest=largest)
    return send(knowledge, knowledge.mean + size * knowledge.deviation)


def optimised_ipm(knowledge: Knowledge) -> Sent:
    """Δ = −εμ with the ε in 0..strength that moves the aggregate farthest from the honest mean."""
    picture = Picture.of(knowledge, [-knowledge.mean])
    largest = max(abs(knowledge.strength(LARGEST_FACTOR)), 1e-9)
    factor = maximise(lambda factor: picture.influence(0, 1.0 + factor), guess=min(IPM_FACTOR, largest), largest=largest)
    return send(knowledge, -factor * knowledge.mean)
