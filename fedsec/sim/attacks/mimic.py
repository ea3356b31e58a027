"""Mimic: all colluders copy one honest client, the extreme one on the direction in which the honest differ most.

Nothing in the copy is malicious; under skew the copied client's records just count too often. Most rules hold it for the densest crowd.

Source: Karimireddy et al., ICLR 2022 (arXiv 2006.09365), appendix "mimic". There the direction is tracked over rounds; here it is that of the round, found exactly
on the Gram matrix, and the strength may name one client for all rounds.
"""

from __future__ import annotations

import numpy as np

from fedsec.sim.attacks.geometry import Picture
from fedsec.sim.attacks.knowledge import Knowledge, Sent, send_sums


def mimic(knowledge: Knowledge) -> Sent:
    """Δ = x_i / B_i of one known client i: the strength's (counted from 0), or the extreme one of the round."""
    if knowledge.settings.strength is not None:
        chosen = int(abs(knowledge.settings.strength)) % len(knowledge.known)
    else:
        _, vectors = np.linalg.eigh(Picture.of(knowledge, []).residuals)
        chosen = int(np.argmax(np.abs(vectors[:, -1])))  # ⟨z, r_i⟩ is the entry times the root of the eigenvalue
    return send_sums(knowledge, knowledge.deltas[chosen] * knowledge.own_batch_sizes[:, None].astype(np.float64))
