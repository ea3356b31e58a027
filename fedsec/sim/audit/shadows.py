"""LiRA against a plan's released model: shadow federations, each on its own half of the records in question."""

from __future__ import annotations

import numpy as np

from fedsec.privacy.auditing.confidence import true_class_log_probabilities
from fedsec.privacy.auditing.lira import lira_scores, log_odds
from fedsec.sim.audit.federation import Federation, Floats, Progress
from fedsec.sim.audit.sites import Coins
from fedsec.vectors import FloatArray

SHADOW_MODELS = 16
"""Each is a whole federated training. Carlini et al. use 256; with 16 one deviation is shared by all records."""

_SHADOW = 7


def lira_attack(
    federation: Federation, target: Floats, *, noise_multiplier: float, shadow_models: int, progress: Progress | None = None
) -> Floats:
    """Scores of the candidate records, client by client, of an attacker who knows all records and the plan, and not who is in.

    Shadow models come in pairs: a record that is in the one is out of the other, so that each record has as many of either kind.

    Args:
        federation: trained anew for every shadow model.
        target: [m], log-probabilities of the candidates' classes under the model that is attacked.
        noise_multiplier: the plan's.
        shadow_models: at least 2; an odd number is rounded down.
        progress: told after every round of every shadow model.
    """
    shadows, members = [], []
    for pair in range(max(1, shadow_models // 2)):
        coins = Coins.toss(federation.sites, federation.plan.federation.seed, _SHADOW, pair).without_canaries()
        other = Coins(canaries=coins.canaries, records=tuple(~flags for flags in coins.records))
        for half, tossed in enumerate((coins, other)):
            label = f"shadow model {2 * pair + half + 1}"
            released = federation.run(tossed, noise_multiplier=noise_multiplier, label=label, progress=progress)
            shadows.append(log_odds(np.exp(candidates_log_probabilities(federation, released))))
            members.append(np.concatenate(tossed.records))
    return lira_scores(log_odds(np.exp(target)), np.stack(shadows), np.stack(members))


def candidates_log_probabilities(federation: Federation, released: dict[str, FloatArray]) -> Floats:
    """[m]: log-probability that a released model gives each candidate's class, client by client."""
    model = federation.model(released)
    found = [true_class_log_probabilities(model, site.x[site.candidates], site.y[site.candidates]) for site in federation.sites]
    return np.concatenate(found)
