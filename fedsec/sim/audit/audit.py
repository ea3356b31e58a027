"""One plan, one seed: the attacks that it must withstand, and the controls that the audit must catch.

1. What the plan claims, (epsilon, delta), is on the accountant's curve; the audit tests the point of the same curve at ``AUDIT_DELTA``. At a delta of
   1e-3 a thousand canaries could refute next to nothing (``one_run``, rule 3).
2. r is fixed from the claim alone, before anything runs.
3. Controls claim epsilon = 1 and are false: no noise; a tenth of the noise; noise for one round in every round (an accountant that starts anew each
   round). They run on the same records, canaries and shapes, so they show that this audit would have seen such a fault.
4. Nothing is confirmed. What could not be refuted even by a perfect guesser is marked "no power".
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from fedsec.errors import ConfigError
from fedsec.plan.model import Plan
from fedsec.privacy.accounting import Segment, epsilon_prv
from fedsec.privacy.auditing.gaussian import gaussian_estimate, separation_of
from fedsec.privacy.auditing.membership import membership_of
from fedsec.privacy.auditing.one_run import CONFIDENCE, count_correct, epsilon_lower_bound, number_of_guesses, perfect_bound
from fedsec.privacy.auditing.results import CONTROLS, Adversary, Arm, AuditReport, AuditResult, Kind, PrivacyPoint
from fedsec.privacy.calibration import calibrate_noise_multiplier
from fedsec.sim.audit.federation import Coins, Federation, Flags, Floats, Progress
from fedsec.sim.audit.noise import noise_multiplier_of
from fedsec.sim.audit.shadows import SHADOW_MODELS, candidates_log_probabilities, lira_attack
from fedsec.sim.audit.views import View

AUDIT_DELTA = 1e-5
CONTROL_EPSILON = 1.0
"""What controls claim: a few thousand canaries can refute it with room to spare."""
WEAKER = 10.0
FEWEST_ROUNDS_FOR_RESET = 15
"""With fewer rounds, forgetting the earlier ones understates epsilon by too little to be seen for sure."""
CANARIES = 4000
CANDIDATES = 1000
"""Real records in question, over all clients together."""

_BOOTSTRAP = 45
_CONTROL_SEPARATION = 1.5
"""Of canaries' scores in the mildest control; r of the controls follows from it."""
_LEAST_GUESS_EPSILON, _MOST_GUESS_EPSILON = 0.1, 8.0
"""Between these r follows the claim; a claim of infinity is attacked as if it were 8."""

DEFAULT_KINDS: tuple[Kind, ...] = ("one-run", "loss-threshold")


def audit_plan(
    plan: Plan,
    seed: int,
    *,
    kinds: Collection[Kind] = DEFAULT_KINDS,
    controls: Sequence[Arm] = CONTROLS,
    canaries: int = CANARIES,
    delta: float = AUDIT_DELTA,
    most_records: int | None = None,
    shadow_models: int = SHADOW_MODELS,
    progress: Progress | None = None,
) -> AuditReport:
    """Attack a plan, in this process.

    The caller sets torch to one thread. A refuted claim is in the report; :meth:`AuditReport.check` raises it.

    Args:
        plan: its attack, defence and seed play no part.
        seed: of records, coins, directions and noise.
        kinds: attacks to run; "one-run" is one training, the other two share one, and "lira" needs ``shadow_models`` more.
        controls: which; each is one more training. They depend on the plan's shape and the seed, not on its epsilon: see :func:`audit_controls`.
        canaries: m wanted, over all clients together.
        delta: of the point that is tested.
        most_records: records of each client that are used, for a shorter run; None: all.
        shadow_models: for "lira".
        progress: ``(what is done, share of the whole that is done)``.

    Raises:
        ConfigError: an unknown kind, or a plan that cannot be trained or calibrated.
        DataError: no records.
    """
    if unknown := sorted(set(kinds) - {"one-run", "loss-threshold", "lira"}):
        raise ConfigError(f"no attack is called {unknown[0][:40]!r}", field="kinds", mend="one-run, loss-threshold or lira")
    begun = time.monotonic()
    steps = _Steps(progress, total=2 + len(controls) + (shadow_models if "lira" in kinds else 0))
    setting = _Setting.of(plan, seed, kinds, canaries=canaries, delta=delta, most_records=most_records)
    results = _attack_plan(setting, kinds, steps, shadow_models)
    found = _run_controls(setting, controls, steps)
    notes = _notes(setting, kinds, controls, [*results, *found])
    return AuditReport(
        plan_digest=plan.digest(), seed=seed, results=results, controls=found, notes=notes, duration_s=time.monotonic() - begun
    )  # fmt: skip


def audit_controls(
    plan: Plan,
    seed: int,
    *,
    controls: Sequence[Arm] = CONTROLS,
    canaries: int = CANARIES,
    delta: float = AUDIT_DELTA,
    most_records: int | None = None,
    progress: Progress | None = None,
) -> tuple[AuditResult, ...]:
    """The controls alone; arguments as for :func:`audit_plan`. A plan without privacy is given the clip norm of its section."""
    setting = _Setting.of(plan, seed, (), canaries=canaries, delta=delta, most_records=most_records)
    return _run_controls(setting, controls, _Steps(progress, total=len(controls)))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Setting:
    federation: Federation
    coins: Coins
    delta: float
    wanted: int

    @classmethod
    def of(
        cls, plan: Plan, seed: int, kinds: Collection[Kind], *, canaries: int, delta: float, most_records: int | None
    ) -> _Setting:  # fmt: skip
        asked = CANDIDATES if {"loss-threshold", "lira"} & set(kinds) else 0
        seeded = plan.model_copy(update={"federation": plan.federation.model_copy(update={"seed": seed})})
        federation = Federation.of(seeded, canaries=canaries, candidates=asked, most_records=most_records)
        return cls(federation=federation, coins=Coins.toss(federation.sites, seed), delta=delta, wanted=canaries)

    @property
    def plan(self) -> Plan:
        return self.federation.plan

    def noise(self, epsilon: float, steps: int) -> float:
        """The noise multiplier that spends this epsilon, at the audit's delta, over so many steps."""
        return calibrate_noise_multiplier(epsilon=epsilon, delta=self.delta, sample_rate=self.plan.training.sample_rate, steps=steps)

    def judge(
        self, scores: Floats, members: Flags, claim: _Claim, *, kind: Kind, adversary: Adversary, sums: Floats | None = None
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
class _Claim:
    arm: Arm
    claimed: PrivacyPoint
    audited: PrivacyPoint

    def guesses(self, num_canaries: int) -> int:
        """r, from public numbers alone."""
        if self.arm == "plan":
            epsilon = min(max(self.audited.epsilon, _LEAST_GUESS_EPSILON), _MOST_GUESS_EPSILON)
            separation = separation_of(epsilon, self.audited.delta)
        else:
            separation = _CONTROL_SEPARATION
        return number_of_guesses(num_canaries=num_canaries, separation=separation, delta=self.audited.delta)


class _Steps:
    """Progress over several trainings."""

    def __init__(self, report: Progress | None, *, total: int) -> None:
        self._report, self._total, self._done = report, max(1, total), 0

    def __call__(self, what: str, share: float) -> None:
        if self._report is not None:
            self._report(what, min(1.0, (self._done + share) / self._total))
        if share >= 1.0:
            self._done += 1


def _attack_plan(setting: _Setting, kinds: Collection[Kind], steps: _Steps, shadow_models: int) -> tuple[AuditResult, ...]:
    plan, coins = setting.plan, setting.coins
    sigma = noise_multiplier_of(plan)
    claim = _claim_of(setting, sigma)
    results: list[AuditResult] = []
    if "one-run" in kinds:
        adversaries: tuple[Adversary, ...] = ("updates", "sum", "sketches") if plan.secagg.enabled else ("updates",)
        views = [View(federation=setting.federation, adversary=name, noise_multiplier=sigma) for name in adversaries]
        setting.federation.run(coins, noise_multiplier=sigma, label="canaries", observers=views, progress=steps)
        members = np.concatenate(coins.canaries)
        results += [
            setting.judge(view.scores, members, claim, kind="one-run", adversary=view.adversary, sums=view.sums) for view in views
        ]  # fmt: skip
    on_the_model: tuple[Kind, ...] = ("loss-threshold", "lira")
    asked = [kind for kind in on_the_model if kind in kinds]
    if asked:
        records = np.concatenate(coins.records)
        target = _released_model(setting, sigma, steps)
        for kind in asked:
            scores = target
            if kind == "lira":
                scores = lira_attack(setting.federation, target, noise_multiplier=sigma, shadow_models=shadow_models, progress=steps)
            results.append(setting.judge(scores, records, claim, kind=kind, adversary="model"))
    return tuple(results)


def _released_model(setting: _Setting, sigma: float, steps: _Steps) -> Floats:
    """Log-probabilities of the candidates' classes under the model of a run without canaries."""
    federation = setting.federation
    released = federation.run(setting.coins.without_canaries(), noise_multiplier=sigma, label="model", progress=steps)
    return candidates_log_probabilities(federation, released)


def _claim_of(setting: _Setting, sigma: float) -> _Claim:
    """What the plan states, and the point of the same curve that is tested."""
    plan = setting.plan
    if not plan.is_private:
        nothing = PrivacyPoint(epsilon=math.inf, delta=setting.delta)
        return _Claim(arm="plan", claimed=nothing, audited=nothing)
    spent = [Segment(noise_multiplier=sigma, sample_rate=plan.training.sample_rate, steps=plan.total_steps)]
    stated = plan.privacy.epsilon if plan.privacy.noise_multiplier is None else epsilon_prv(spent, plan.privacy.delta)
    return _Claim(
        arm="plan",
        claimed=PrivacyPoint(epsilon=stated, delta=plan.privacy.delta),
        audited=PrivacyPoint(epsilon=epsilon_prv(spent, setting.delta), delta=setting.delta),
    )


def _run_controls(setting: _Setting, controls: Sequence[Arm], steps: _Steps) -> tuple[AuditResult, ...]:
    return tuple(_control(setting, arm, steps) for arm in controls if arm != "accountant-reset" or _can_reset(setting.plan))


def _can_reset(plan: Plan) -> bool:
    return plan.federation.rounds >= FEWEST_ROUNDS_FOR_RESET


def _control(setting: _Setting, arm: Arm, steps: _Steps) -> AuditResult:
    """A run whose claim is false; trained with clipping in any case, as a faulty private run would be."""
    plan, point = setting.plan, PrivacyPoint(epsilon=CONTROL_EPSILON, delta=setting.delta)
    if arm == "accountant-reset":
        sigma = setting.noise(CONTROL_EPSILON, plan.training.steps)
    else:
        sigma = 0.0 if arm == "no-noise" else setting.noise(CONTROL_EPSILON, plan.total_steps) / WEAKER
    private = setting.federation.with_privacy()
    view = View(federation=private, adversary="updates", noise_multiplier=sigma)
    private.run(setting.coins, noise_multiplier=sigma, label=arm, observers=[view], progress=steps)
    claim = _Claim(arm=arm, claimed=point, audited=point)
    members = np.concatenate(setting.coins.canaries)
    return setting.judge(view.scores, members, claim, kind="one-run", adversary="updates", sums=view.sums)


def _notes(setting: _Setting, kinds: Collection[Kind], controls: Sequence[Arm], results: Sequence[AuditResult]) -> tuple[str, ...]:
    federation, notes = setting.federation, []
    notes.append(
        "canaries are directions that no record's gradient has: they are looked for without disturbance"
        if federation.quiet
        else "canaries are random directions: what the other records add by chance of sampling hides them in part, which lowers the bounds"
    )
    if federation.num_canaries < setting.wanted:
        notes.append(f"{federation.num_canaries} canaries: more do not stay apart in a model of this size")
    if "accountant-reset" in controls and not _can_reset(setting.plan):
        notes.append(f"the control accountant-reset needs {FEWEST_ROUNDS_FOR_RESET} rounds and was left out")
    if {"loss-threshold", "lira"} & set(kinds):
        notes.append("attacks on the released model are blind where the model does not overfit: an AUC near 0.5 proves nothing")
    if any(result.no_power for result in results):
        notes.append("no power: not even a perfect guesser could refute that epsilon with these canaries, so nothing follows from it")
    return tuple(notes)
