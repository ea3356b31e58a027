"""The model part of backdoors that scale: what was learnt from poisoned records must survive the mean.

Both work on ``own``, which the colluders trained on poisoned records (``poison.py``).

Source: Bagdasaryan et al. 2020 (arXiv 1807.00459), sections 3.1 (model replacement) and 3.3 (train-and-scale).
"""

from __future__ import annotations

import numpy as np

from fedsec.sim.attacks.knowledge import Knowledge, Sent, send_sums

SHARE_OF_NORM = 1.0


def replacement_factor(knowledge: Knowledge) -> float:
    """γ = n/η, shared by the colluders: n/(η·f), with n counted by declared batch size. With it their mean survives the server's mean unweakened."""
    own, known = float(knowledge.own_batch_sizes.sum()), knowledge.batch_sizes.astype(np.float64)
    honest = float(known.mean()) * (knowledge.num_clients - knowledge.num_byzantine)
    return (honest + own) / (own * knowledge.server_learning_rate)


def model_replacement(knowledge: Knowledge) -> Sent:
    """Send x = γ·own; γ is the strength, by default :func:`replacement_factor`."""
    return send_sums(knowledge, knowledge.strength(replacement_factor(knowledge)) * knowledge.own.astype(np.float64))


def constrain_and_scale(knowledge: Knowledge) -> Sent:
    """Send own at the norm S = c·(median L2 norm of the known updates), c being the strength.

    It is scaled up by no more than :func:`replacement_factor`.
    """
    limit = knowledge.strength(SHARE_OF_NORM) * float(np.median(np.linalg.norm(knowledge.known.astype(np.float64), axis=1)))
    own = knowledge.own.astype(np.float64)
    norms = np.linalg.norm(own, axis=1)
    factors = np.divide(limit, norms, out=np.ones_like(norms), where=norms > 0)
    return send_sums(knowledge, own * np.minimum(factors, replacement_factor(knowledge))[:, None])
