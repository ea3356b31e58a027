"""Rules that weight updates by the angle between them: FLTrust, against the server's own update, and FoolsGold, against one another.

Symbols as in ``fedsec.robust.weighting``. Both count on directions and not on a number f: who gets weight 0 is not accepted, be it many.
"""

from __future__ import annotations

import numpy as np

from fedsec.robust.base import Matrix, Vector
from fedsec.robust.decision import GramDecision, check_gram

CONFIDENCE = 0.99
"""FoolsGold: largest weight before the logit."""


def fltrust(gram: Matrix, *, root_products: Vector, root_norm: float) -> GramDecision:
    """FLTrust: ``sum_i t_i (||r|| / ||x_i||) x_i / sum_i t_i``, trust ``t_i = max(0, cos(x_i, r))``.

    Symbols: r the root update, trained by the server on its own trusted records. Score: ``1 - cos(x_i, r)``, so 1 is the edge.
    Breakdown point: any number of hostile updates, while r points the right way: every accepted update has the norm of r and an acute angle
    to it. Nobody trusted: all weights are 0. Cost: n, and one more row in the Gram matrix.
    Paper: Cao, Fang, Liu, Gong, NDSS 2021, arXiv 2012.13995.

    Args:
        gram: G.
        root_products: ``<x_i, r>``, float64 [n].
        root_norm: ``||r||``.

    >>> fltrust(np.diag([4.0, 1.0]), root_products=np.array([2.0, -1.0]), root_norm=1.0).weights
    array([0.5, 0. ])
    """
    check_gram(gram)
    norms = np.sqrt(np.diagonal(gram))
    both = norms * root_norm
    cosines = np.where(both > 0, root_products / np.where(both > 0, both, 1.0), 0.0)
    trust = np.maximum(cosines, 0.0)
    total = float(trust.sum())
    weights = trust * root_norm / (np.where(norms > 0, norms, 1.0) * total) if total > 0 else np.zeros(len(gram))
    return GramDecision(weights=weights, accepted=weights > 0, scores=1.0 - cosines, facts={"trust": total})


def foolsgold(gram: Matrix) -> GramDecision:
    """FoolsGold: updates that point the same way as another count less; weights ``a_i / sum a``.

    ``c_ij = cos(x_i, x_j)``, ``m_i = max_j c_ij`` over others; where ``m_j > m_i``, ``c_ij`` is multiplied with ``m_i / m_j`` (pardoning);
    ``a_i = 1 - max_j c_ij`` within 0..1, divided by the largest; then ``ln(a / (1 - a)) + 1/2`` within 0..1. Score: ``1 - a_i``.
    Of this round's updates; the paper adds them up over rounds. If all point the same way, nobody stands out, and all count equally.
    Breakdown point: none against a lone attacker, who is unlike all others; any number of sybils that send the same. Cost: n².
    Paper: Fung, Yoon, Beschastnikh, RAID 2020, arXiv 1808.04866, algorithm 1.

    >>> foolsgold(np.array([[1.0, 0, 0], [0, 1, 1], [0, 1, 1]])).accepted
    array([ True, False, False])
    """
    count = check_gram(gram)
    norms = np.sqrt(np.diagonal(gram))
    unit = np.where(norms > 0, 1.0 / np.where(norms > 0, norms, 1.0), 0.0)
    cosines = gram * np.outer(unit, unit)
    np.fill_diagonal(cosines, -1.0)
    largest = np.maximum(cosines.max(axis=1), 0.0)
    pardon = largest[:, None] < largest[None, :]
    cosines = np.where(pardon & (largest[None, :] > 0), cosines * largest[:, None] / np.where(largest > 0, largest, 1.0), cosines)
    apart = np.clip(1.0 - cosines.max(axis=1), 0.0, 1.0) if count > 1 else np.ones(1)
    if not apart.max() > 0:
        return GramDecision(weights=np.full(count, 1.0 / count), accepted=np.ones(count, dtype=np.bool_), scores=np.zeros(count))
    apart = np.minimum(apart / apart.max(), CONFIDENCE)
    odds = apart / (1.0 - apart)
    trust = np.clip(np.log(odds, out=np.full(count, -np.inf), where=odds > 0) + 0.5, 0.0, 1.0)
    return GramDecision(weights=trust / trust.sum(), accepted=trust > 0, scores=1.0 - trust)
