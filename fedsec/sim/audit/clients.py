"""Is it noticed whether a whole *client* took part? Canary clients that send random directions, looked for in the sums.

1. Each of m canary clients is in the run with probability 1/2. One that is in sends its own random unit direction every round, as long as the median
   honest update: nothing about its norm gives it away. The attacker sees the sum of all updates of a round, as under secure aggregation.
2. No plan protects whole clients yet: noise is calibrated for single records. So nothing is claimed here and nothing can be refuted; the
   result says how far a client is from being hidden.

Source: Andrew et al. 2023 (arXiv 2302.03098), algorithm 2. Differs: several rounds, by the sum of the inner products.
"""

from __future__ import annotations

import math

import numpy as np

from fedsec.plan.model import Plan
from fedsec.privacy.auditing.canaries import lay_out
from fedsec.privacy.auditing.gaussian import gaussian_estimate
from fedsec.privacy.auditing.membership import membership_of
from fedsec.privacy.auditing.one_run import CONFIDENCE, count_correct, epsilon_lower_bound, number_of_guesses, perfect_bound
from fedsec.privacy.auditing.results import AuditResult, PrivacyPoint
from fedsec.privacy.auditing.scores import CanaryScores
from fedsec.sim.audit.federation import Federation, Floats, Progress
from fedsec.sim.audit.noise import noise_multiplier_of
from fedsec.sim.audit.sites import Coins
from fedsec.vectors import FloatArray

CANARY_CLIENTS = 200
_COINS, _DIRECTIONS, _BOOTSTRAP = 51, 52, 53
_SEPARATION = 3.0
"""Expected of the scores; r follows from it."""


def audit_clients(
    plan: Plan, seed: int, *, canaries: int = CANARY_CLIENTS, delta: float = 1e-5, progress: Progress | None = None
) -> AuditResult:
    """Plant canary clients in a run of the plan and look for them in the sums.

    Args:
        plan: its attack and defence play no part.
        seed: of records, coins, directions and noise.
        canaries: m, at most half the number of parameters.
        delta: of the point that is tested.
        progress: told after every round.
    """
    seeded = plan.model_copy(update={"federation": plan.federation.model_copy(update={"seed": seed})})
    federation = Federation.of(seeded, canaries=1, candidates=0)
    coins = Coins.toss(federation.sites, seed).without_canaries()
    directions = lay_out(federation.layout, clients=1, wanted=canaries, quiet=None, generator=np.random.default_rng([seed, _DIRECTIONS]))[
        0
    ].inner
    members = np.random.default_rng([seed, _COINS]).random(len(directions)) < 0.5
    watch = _Sums(directions, len(federation.sites))
    federation.run(
        coins,
        noise_multiplier=noise_multiplier_of(plan),
        label="canary clients",
        observers=[watch],
        guests=directions[members],
        progress=progress,
    )
    guesses = number_of_guesses(num_canaries=len(members), separation=_SEPARATION, delta=delta)
    correct = count_correct(watch.seen.scores, members, guesses)
    nothing = PrivacyPoint(epsilon=math.inf, delta=delta)
    return AuditResult(
        kind="one-run",
        arm="plan",
        unit="client",
        adversary="sum",
        seed=seed,
        num_canaries=len(members),
        num_guesses=guesses,
        num_correct=correct,
        claimed=nothing,
        audited=nothing,
        confidence=CONFIDENCE,
        lower_bound=epsilon_lower_bound(num_canaries=len(members), num_guesses=guesses, num_correct=correct, delta=delta),
        perfect_bound=perfect_bound(num_canaries=len(members), num_guesses=guesses, delta=delta),
        gaussian_estimate=gaussian_estimate(watch.seen.sums, members, delta=delta),
        membership=membership_of(watch.seen.scores, members, generator=np.random.default_rng([seed, _BOOTSTRAP])),
    )


class _Sums:
    """An attacker who sees the sum of every round."""

    def __init__(self, directions: FloatArray, clients: int) -> None:
        self._directions, self._clients = directions, clients
        self.seen = CanaryScores(count=len(directions), weights=np.ones(1), sample_rate=1.0, noise_multiplier=0.0)

    def __call__(self, updates: Floats) -> None:
        """See one round; the median norm of the honest updates is public enough: each is mostly noise of a public deviation."""
        length = float(np.median(np.linalg.norm(updates[: self._clients], axis=1)))
        self.seen.see(-updates.sum(axis=0) / max(length, 1e-12), self._directions, slice(0, len(self._directions)))
