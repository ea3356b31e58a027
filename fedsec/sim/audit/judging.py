"""What is claimed, at which point it is tested, and what scores show about it."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from fedsec.plan.model import Plan
from fedsec.privacy.accounting import Segment, epsilon_prv
from fedsec.privacy.auditing.gaussian import gaussian_estimate, separation_of
from fedsec.privacy.auditing.membership import membership_of
from fedsec.privacy.auditing.one_run import CONFIDENCE, count_correct, epsilon_lower_bound, number_of_guesses, perfect_bound
from fedsec.privacy.auditing.results import Adversary, Arm, AuditResult, Kind, PrivacyPoint
from fedsec.privacy.calibration import calibrate_noise_multiplier
from fedsec.sim.audit.federation import Federation, Floats
from fedsec.sim.audit.hunt import runs_needed
from fedsec.sim.audit.sites import Coins, Flags

CANDIDATES = 1000
"""Real records in question, over all clients together."""

_BOOTSTRAP = 45
CONTROL_SEPARATION = 1.5
"""Of canaries' scores in the mildest control; r of the controls follows from it."""
_LEAST_GUESS_EPSILON, _MOST_GUESS_EPSILON = 0.1, 8.0
"""Between these r follows the claim; a claim of infinity is attacked as if it were 8."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Setting:
    """What all runs of one audit share.

    Attributes:
        federation: records, canaries, plan.
        coins: who is in.
        delta: of the point that is tested.
        wanted: canaries asked for; the federation has as many as fit.
    """

    federation: Federation
    coins: Coins
    delta: float
    wanted: int

    @classmethod
    def of(
        cls, plan: Plan, seed: int, kinds: Collection[Kind], *, canaries: int, delta: float, most_records: int | None
    ) -> Setting:  # fmt: skip
        """Lay a plan out for its audit; arguments as for ``audit_plan``."""
        asked = CANDIDATES if {"loss-threshold", "lira"} & set(kinds) else 0
        seeded = plan.model_copy(update={"federation": plan.federation.model_copy(update={"seed": seed})})
        federation = Federation.of(seeded, canaries=canaries, candidates=asked, most_records=most_records)
        return cls(federation=federation, coins=Coins.toss(federation.sites, seed), delta=delta, wanted=canaries)

    @property
    def plan(self) -> Plan:
        """With the audit's seed."""
        return self.federation.plan

    @property
    def runs(self) -> int:
        """Trainings for one set of canaries."""
        return runs_needed(self.federation, self.wanted)

    def noise(self, epsilon: float, steps: int) -> float:
        """The noise multiplier that spends this epsilon, at the audit's delta, over so many steps."""
        return calibrate_noise_multiplier(epsilon=epsilon, delta=self.delta, sample_rate=self.plan.training.sample_rate, steps=steps)

    def judge(
        self, scores: Floats, members: Flags, claim: Claim, *, kind: Kind, adversary: Adversary, sums: Floats | None = None
    ) -> AuditResult:
        """What these scores show about this claim."""
        m, r = len(scores), claim.guesses(len(scores))
        correct = count_correct(scores, members, r)
        seed = self.plan.federation.seed
        return AuditResult(
            kind=kind,
            arm=claim.arm,
            unit="example",
            adversary=adversary,
            seed=seed,
            num_canaries=m,
            num_guesses=r,
            num_correct=correct,
            claimed=claim.claimed,
            audited=claim.audited,
            confidence=CONFIDENCE,
            lower_bound=epsilon_lower_bound(num_canaries=m, num_guesses=r, num_correct=correct, delta=claim.audited.delta),
            perfect_bound=perfect_bound(num_canaries=m, num_guesses=r, delta=claim.audited.delta),
            gaussian_estimate=None if sums is None else gaussian_estimate(sums, members, delta=claim.audited.delta),
            membership=membership_of(scores, members, generator=np.random.default_rng([seed, _BOOTSTRAP])),
        )


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a run says of its own privacy.

    Attributes:
        arm: which run.
        claimed: the point at which it is stated.
        audited: the point at which it is tested.
    """

    arm: Arm
    claimed: PrivacyPoint
    audited: PrivacyPoint

    def guesses(self, num_canaries: int) -> int:
        """r, from public numbers alone."""
        if self.arm == "plan":
            epsilon = min(max(self.audited.epsilon, _LEAST_GUESS_EPSILON), _MOST_GUESS_EPSILON)
            separation = separation_of(epsilon, self.audited.delta)
        else:
            separation = CONTROL_SEPARATION
        return number_of_guesses(num_canaries=num_canaries, separation=separation, delta=self.audited.delta)


def claim_of(setting: Setting, sigma: float) -> Claim:
    """What the plan states, and the point of the same curve that is tested."""
    plan = setting.plan
    if not plan.is_private:
        nothing = PrivacyPoint(epsilon=math.inf, delta=setting.delta)
        return Claim(arm="plan", claimed=nothing, audited=nothing)
    spent = [Segment(noise_multiplier=sigma, sample_rate=plan.training.sample_rate, steps=plan.total_steps)]
    stated = plan.privacy.epsilon if plan.privacy.noise_multiplier is None else epsilon_prv(spent, plan.privacy.delta)
    return Claim(
        arm="plan",
        claimed=PrivacyPoint(epsilon=stated, delta=plan.privacy.delta),
        audited=PrivacyPoint(epsilon=epsilon_prv(spent, setting.delta), delta=setting.delta),
    )
