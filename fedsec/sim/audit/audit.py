"""One plan, one seed: the attacks that it must withstand, and the controls that the audit must catch.

1. What the plan claims, (epsilon, delta), is on the accountant's curve; the audit tests the point of the same curve at ``AUDIT_DELTA``. At a delta of
   1e-3 a thousand canaries could refute next to nothing (``one_run``, rule 3).
2. r is fixed from the claim alone, before anything runs.
3. Controls claim epsilon = 1 and are false: no noise; a tenth of the noise; noise for one round in every round (an accountant that starts anew each
   round). They run on the same records, canaries and shapes, so they show that this audit would have seen such a fault.
4. Nothing is confirmed. What could not be refuted even by a perfect guesser is marked "no power".
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

import numpy as np

from fedsec.errors import ConfigError
from fedsec.plan.model import Plan
from fedsec.privacy.auditing.results import CONTROLS, Adversary, Arm, AuditReport, AuditResult, Kind, PrivacyPoint
from fedsec.sim.audit.federation import Floats, Progress
from fedsec.sim.audit.hunt import hunt
from fedsec.sim.audit.judging import Claim, Setting, claim_of
from fedsec.sim.audit.noise import noise_multiplier_of
from fedsec.sim.audit.shadows import SHADOW_MODELS, candidates_log_probabilities, lira_attack

AUDIT_DELTA = 1e-5
CONTROL_EPSILON = 1.0
"""What controls claim: a few thousand canaries can refute it with room to spare."""
WEAKER = 10.0
RESET_ROUNDS = 30
"""Fewest rounds of the control that forgets earlier ones: with few there is too little to forget to be seen for sure."""
CANARIES = 4000
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
    setting = Setting.of(plan, seed, kinds, canaries=canaries, delta=delta, most_records=most_records)
    steps = _Steps(progress, total=_trainings(setting, kinds, controls, shadow_models))
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
    setting = Setting.of(plan, seed, (), canaries=canaries, delta=delta, most_records=most_records)
    return _run_controls(setting, controls, _Steps(progress, total=_trainings(setting, (), controls, 0)))


def _trainings(setting: Setting, kinds: Collection[Kind], controls: Sequence[Arm], shadow_models: int) -> int:
    """How many federated trainings an audit takes."""
    caught = len(controls) + ("one-run" in kinds)
    on_the_model = bool({"loss-threshold", "lira"} & set(kinds)) + (max(2, shadow_models // 2 * 2) if "lira" in kinds else 0)
    return setting.runs * caught + on_the_model


class _Steps:
    """Progress over several trainings."""

    def __init__(self, report: Progress | None, *, total: int) -> None:
        self._report, self._total, self._done = report, max(1, total), 0

    def __call__(self, what: str, share: float) -> None:
        if self._report is not None:
            self._report(what, min(1.0, (self._done + share) / self._total))
        if share >= 1.0:
            self._done += 1


def _attack_plan(setting: Setting, kinds: Collection[Kind], steps: _Steps, shadow_models: int) -> tuple[AuditResult, ...]:
    plan, coins = setting.plan, setting.coins
    sigma = noise_multiplier_of(plan)
    claim = claim_of(setting, sigma)
    results: list[AuditResult] = []
    if "one-run" in kinds:
        adversaries: tuple[Adversary, ...] = ("updates", "sum", "sketches") if plan.secagg.enabled else ("updates",)
        caught = hunt(
            setting.federation,
            coins,
            runs=setting.runs,
            noise_multiplier=sigma,
            label="canaries",
            adversaries=adversaries,
            progress=steps,
        )
        results += [setting.judge(one.scores, one.members, claim, kind="one-run", adversary=one.adversary, sums=one.sums) for one in caught]
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


def _released_model(setting: Setting, sigma: float, steps: _Steps) -> Floats:
    """Log-probabilities of the candidates' classes under the model of a run without canaries."""
    federation = setting.federation
    released = federation.run(setting.coins.without_canaries(), noise_multiplier=sigma, label="model", progress=steps)
    return candidates_log_probabilities(federation, released)


def _run_controls(setting: Setting, controls: Sequence[Arm], steps: _Steps) -> tuple[AuditResult, ...]:
    return tuple(_control(setting, arm, steps) for arm in controls)


def _control(setting: Setting, arm: Arm, steps: _Steps) -> AuditResult:
    """A run whose claim is false; trained with clipping in any case, as a faulty private run would be."""
    plan, point = setting.plan, PrivacyPoint(epsilon=CONTROL_EPSILON, delta=setting.delta)
    if arm == "accountant-reset":
        sigma = setting.noise(CONTROL_EPSILON, plan.training.steps)
    else:
        sigma = 0.0 if arm == "no-noise" else setting.noise(CONTROL_EPSILON, plan.total_steps) / WEAKER
    (caught,) = hunt(
        setting.federation.as_control(least_rounds=RESET_ROUNDS if arm == "accountant-reset" else 1),
        setting.coins,
        runs=setting.runs,
        noise_multiplier=sigma,
        label=arm,
        adversaries=("updates",),
        progress=steps,
    )
    claim = Claim(arm=arm, claimed=point, audited=point)
    return setting.judge(caught.scores, caught.members, claim, kind="one-run", adversary="updates", sums=caught.sums)


def _notes(setting: Setting, kinds: Collection[Kind], controls: Sequence[Arm], results: Sequence[AuditResult]) -> tuple[str, ...]:
    federation, notes = setting.federation, []
    notes.append(
        "canaries are directions that no record's gradient has: they are looked for without disturbance"
        if federation.quiet
        else "canaries are random directions: what the other records add by chance of sampling hides them in part, which lowers the bounds"
    )
    if federation.num_canaries < setting.wanted:
        again = f"; {setting.runs} runs, each with as many of its own" if setting.runs > 1 else ""
        notes.append(f"{federation.num_canaries} canaries in a run: more do not stay apart in a model of this size{again}")
    if "accountant-reset" in controls and setting.plan.federation.rounds < RESET_ROUNDS:
        notes.append(f"the control accountant-reset ran for {RESET_ROUNDS} rounds, the plan has {setting.plan.federation.rounds}")
    if {"loss-threshold", "lira"} & set(kinds):
        notes.append("attacks on the released model are blind where the model does not overfit: an AUC near 0.5 proves nothing")
    if any(result.no_power for result in results):
        notes.append("no power: not even a perfect guesser could refute that epsilon with these canaries, so nothing follows from it")
    return tuple(notes)
