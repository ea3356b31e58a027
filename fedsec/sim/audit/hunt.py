"""One federation, run as often as it takes to have enough canaries, and what each attacker scored.

A small model has room for few canaries that stay apart. Several trainings, each with other coins and other noise, have more: they are separate runs, each
canary is in one of them only, and so all together are (epsilon, delta)-DP in each canary as one run is. Repeating is no second look at the same canaries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedsec.privacy.auditing.results import Adversary
from fedsec.sim.audit.federation import Federation, Floats, Progress
from fedsec.sim.audit.sites import Coins, Flags
from fedsec.sim.audit.views import View

FEWEST_CANARIES = 1000
"""Below it the run is repeated, if as many are wanted."""
MOST_RUNS = 20

_REPEAT = 9


@dataclass(frozen=True, kw_only=True, eq=False)
class Catch:
    """What one attacker scored.

    Attributes:
        adversary: who.
        scores: [m], likelihood ratios.
        sums: [m], plain sums.
        members: bool [m], the coins.
    """

    adversary: Adversary
    scores: Floats
    sums: Floats
    members: Flags


def runs_needed(federation: Federation, wanted: int) -> int:
    """How often to run: once, unless the model is too small for the canaries wanted."""
    return min(MOST_RUNS, max(1, -(-min(wanted, FEWEST_CANARIES) // max(1, federation.num_canaries))))


def hunt(
    federation: Federation,
    coins: Coins,
    *,
    runs: int,
    noise_multiplier: float,
    label: str,
    adversaries: Sequence[Adversary],
    progress: Progress | None = None,
) -> list[Catch]:
    """Run the federation with its canaries, and score them.

    Args:
        federation: with the canaries laid out.
        coins: of the first run; the records' coins hold for all.
        runs: how often.
        noise_multiplier: that the clients use.
        label: other labels, other noise.
        adversaries: who watches.
        progress: told after every round of every run.
    """
    scores: dict[Adversary, list[Floats]] = {name: [] for name in adversaries}
    sums: dict[Adversary, list[Floats]] = {name: [] for name in adversaries}
    members: list[Flags] = []
    for run in range(runs):
        tossed = coins
        if run:
            tossed = replace(coins, canaries=Coins.toss(federation.sites, federation.plan.federation.seed, _REPEAT, run).canaries)
        views = [View(federation=federation, adversary=name, noise_multiplier=noise_multiplier) for name in adversaries]
        named = label if runs == 1 else f"{label} {run + 1}"
        federation.run(tossed, noise_multiplier=noise_multiplier, label=named, observers=views, progress=progress)
        members += tossed.canaries
        for view in views:
            scores[view.adversary].append(view.scores)
            sums[view.adversary].append(view.sums)
    flags = np.concatenate(members)
    return [
        Catch(adversary=name, scores=np.concatenate(scores[name]), sums=np.concatenate(sums[name]), members=flags) for name in adversaries
    ]
