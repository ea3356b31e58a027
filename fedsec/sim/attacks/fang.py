"""The directed deviation of Fang et al.: in every coordinate beyond all honest values, against the direction of the honest mean.

Source: Fang et al., USENIX Security 2020 (arXiv 1911.11815), section 4.3 (trimmed mean and median; full and partial knowledge). Their attack on Krum, the
longest ``−λ·sign μ`` that Krum still picks, is a case of ``adaptive`` and of ``min-max`` with strength 2.
"""

from __future__ import annotations

import numpy as np

from fedsec.sim.attacks.knowledge import Knowledge, Sent, send

STRETCH = 2.0
_NEAR, _FAR = 3.0, 4.0  # deviations, with partial knowledge


def fang(knowledge: Knowledge) -> Sent:
    """Uniformly drawn in each coordinate: under the smallest honest value where μ is positive, over the largest where it is negative.

    Omniscient: between the extreme value e and b·e (or e/b, whichever lies beyond); b is the strength, over 1. Partial: 3 to 4 deviations from μ.
    """
    backwards = np.where(knowledge.mean >= 0, -1.0, 1.0)
    if knowledge.settings.knowledge == "partial":
        near, far = (knowledge.mean + backwards * factor * knowledge.deviation for factor in (_NEAR, _FAR))
    else:
        stretch = max(1.0, abs(knowledge.strength(STRETCH)))
        lowest, highest = knowledge.deltas.min(axis=0).astype(np.float64), knowledge.deltas.max(axis=0).astype(np.float64)
        near = np.where(backwards > 0, highest, lowest)
        far = near * np.where(near * backwards > 0, stretch, 1.0 / stretch)
    return send(knowledge, near + (far - near) * knowledge.generator.random(knowledge.own.shape))
