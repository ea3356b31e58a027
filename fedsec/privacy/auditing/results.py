"""What an audit found, as plain data: pages, tables and row files draw from here.

1. An audit refutes or it does not; it never confirms. ``refuted``: the lower bound lies above the epsilon that was audited.
2. ``no_power``: even a guesser that is right every time could not have refuted that epsilon with these canaries, so its silence says nothing.
   Where nothing is claimed there is nothing to refute, and the bound says how much leaks at least.
3. Both follow from the numbers; a file in which they do not is refused.
4. An audit whose controls were not caught is blind, and :meth:`AuditReport.check` says so before it says anything else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from fedsec.errors import AuditError, DecodeError, PrivacyClaimRefuted
from fedsec.jsonfields import FLAG, INTEGER, NUMBER, NUMBER_OR_NONE, TEXT, Codec, Table, build, dump, list_of

R = TypeVar("R")

REPORT_FORMAT = "fedsec/audit/v1"

Kind = Literal["one-run", "loss-threshold", "lira"]
"""One-run: canaries that the auditor made, found again in what was released. The other two: real records, by the loss of the released model."""

Arm = Literal["plan", "no-noise", "weak-noise", "accountant-reset"]
"""What ran: the plan as it is, or one of the three controls, which an audit must catch."""

Adversary = Literal["updates", "sum", "sketches", "model"]
"""What the attacker sees: every client's update in clear; only their sum, every round; every client's sketch, every round; the released model."""

CONTROLS: tuple[Arm, ...] = ("no-noise", "weak-noise", "accountant-reset")


@dataclass(frozen=True, kw_only=True)
class PrivacyPoint:
    """One point of a privacy curve.

    Attributes:
        epsilon: >= 0; infinite where nothing is claimed.
        delta: in [0, 1).
    """

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        if not self.epsilon >= 0.0 or not 0.0 <= self.delta < 1.0:  # NaN fails this too
            raise ValueError(f"({self.epsilon}, {self.delta}) is no point of a privacy curve")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its 95 % bootstrap interval over the canaries.

    Attributes:
        value: point estimate.
        low: lower end.
        high: upper end.
    """

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.low <= self.high <= 1.0 or not 0.0 <= self.value <= 1.0:
            raise ValueError(f"a share with its interval lies in 0..1, not {self.value} in [{self.low}, {self.high}]")


@dataclass(frozen=True, kw_only=True)
class Membership:
    """How well scores tell members from others.

    Attributes:
        auc: area under the ROC curve; 0.5 is a coin.
        tpr_at_1: share of the members found at a false positive rate of 1 %.
        tpr_at_01: the same at 0.1 %.
        roc: ``(false positive rate, true positive rate)``, both rising, from (0, 0) to (1, 1); thinned for drawing.
    """

    auc: Estimate
    tpr_at_1: Estimate
    tpr_at_01: Estimate
    roc: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        if any(len(point) != 2 or not all(0.0 <= value <= 1.0 for value in point) for point in self.roc):
            raise ValueError("a ROC point is a pair of shares")


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    """One attack on one run.

    Attributes:
        kind: of attack.
        arm: what ran.
        unit: "example" or "client": whose presence is guessed.
        adversary: what the attacker sees.
        seed: of the run.
        num_canaries: m, each in the run with probability 1/2, over all clients together.
        num_guesses: r, fixed before the run; the attacker abstains on the others.
        num_correct: guesses that were right.
        claimed: the point at which the plan states its privacy; epsilon is infinite where it claims none.
        audited: the point that is tested: another one of the same accountant's curve where delta would swallow the test.
        confidence: of the lower bound, for example 0.95.
        lower_bound: of epsilon at ``audited.delta``.
        perfect_bound: the lower bound that a guesser which is always right would have reached.
        gaussian_estimate: epsilon at ``audited.delta`` if scores are Gaussian: an estimate, no bound; None where it says nothing.
        membership: how well the scores tell members from others.
    """

    kind: Kind
    arm: Arm
    unit: Literal["example", "client"]
    adversary: Adversary
    seed: int
    num_canaries: int
    num_guesses: int
    num_correct: int
    claimed: PrivacyPoint
    audited: PrivacyPoint
    confidence: float
    lower_bound: float
    perfect_bound: float
    gaussian_estimate: float | None
    membership: Membership

    def __post_init__(self) -> None:
        for field, choices in (("kind", Kind), ("arm", Arm), ("adversary", Adversary), ("unit", Literal["example", "client"])):
            if getattr(self, field) not in get_args(choices):
                raise ValueError(f"unknown {field} {str(getattr(self, field))[:40]!r}")
        if not 0 <= self.num_correct <= self.num_guesses <= self.num_canaries:
            raise ValueError(f"{self.num_correct} of {self.num_guesses} of {self.num_canaries} cannot be")
        if not 0.0 <= self.lower_bound <= self.perfect_bound + 1e-9 or not 0.0 < self.confidence < 1.0:
            raise ValueError(f"a lower bound of {self.lower_bound} with {self.perfect_bound} for a perfect guesser cannot be")

    @property
    def refuted(self) -> bool:
        """Whether the audited epsilon is false, at this confidence."""
        return self.lower_bound > self.audited.epsilon

    @property
    def no_power(self) -> bool:
        """Whether something is claimed, and not even a perfect guesser could have refuted it."""
        return math.isfinite(self.audited.epsilon) and self.perfect_bound <= self.audited.epsilon

    def check(self) -> None:
        """Fail loudly on a refuted claim.

        Raises:
            PrivacyClaimRefuted: the lower bound lies above the audited epsilon.
        """
        if self.refuted:
            raise PrivacyClaimRefuted(
                self.lower_bound, self.audited.epsilon, delta=self.audited.delta, attack=f"{self.kind}, {self.adversary}"
            )

    def sentence(self) -> str:
        """What may be said of it, in one sentence."""
        bound = f"epsilon is at least {self.lower_bound:.2f} at delta = {self.audited.delta:g} ({self.confidence:.0%} confidence)"
        perfect = f"a perfect guesser would reach {self.perfect_bound:.2f}"
        if math.isinf(self.audited.epsilon):
            return f"nothing is claimed: {bound}; {perfect}"
        if self.refuted:
            return f"REFUTED: {bound}, but {self.audited.epsilon:.2f} was claimed"
        if self.no_power:
            return f"no power: {bound}; {perfect}, so {self.audited.epsilon:.3g} cannot be refuted with {self.num_canaries} canaries"
        return f"not refuted: {bound}, {self.audited.epsilon:.2f} is claimed; {perfect}"

    def to_json(self) -> dict[str, Any]:
        """Plain values, strict JSON."""
        return {**dump(_RESULT, self), "refuted": self.refuted, "no_power": self.no_power}

    @classmethod
    def from_json(cls, value: Any, what: str = "audit") -> AuditResult:
        """Inverse of :meth:`to_json`.

        Raises:
            DecodeError: not the JSON of this record, or one whose verdict does not follow from its numbers.
        """
        return _with_verdict(cls, _RESULT, value, what, ("refuted", "no_power"))


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """All attacks on one plan with one seed, and the controls beside them.

    Attributes:
        plan_digest: hex digest of the plan that was audited.
        seed: of all runs.
        results: attacks on the plan itself.
        controls: one-run audits of the three controls, with the claims that they must break; empty where they were left out.
        notes: what a reader must know, one sentence each.
        duration_s: wall time.
    """

    plan_digest: str
    seed: int
    results: tuple[AuditResult, ...]
    controls: tuple[AuditResult, ...] = ()
    notes: tuple[str, ...] = ()
    duration_s: float = 0.0

    def __post_init__(self) -> None:
        if any(result.arm != "plan" for result in self.results) or any(result.arm == "plan" for result in self.controls):
            raise ValueError("results are of the plan, controls are not")

    @property
    def controls_caught(self) -> bool:
        """Whether every control was refuted; true where there are none."""
        return all(control.refuted for control in self.controls)

    @property
    def refuted(self) -> bool:
        """Whether any attack refutes the plan's claim."""
        return any(result.refuted for result in self.results)

    def check(self) -> None:
        """Fail loudly.

        Raises:
            AuditError: a control was not caught: this audit cannot see.
            PrivacyClaimRefuted: the plan's claim is false.
        """
        for control in self.controls:
            if not control.refuted:
                raise AuditError(
                    f"the audit is blind: the control {control.arm!r} claims epsilon = {control.audited.epsilon:g}, which is false, "
                    f"and only {control.lower_bound:.2f} was shown; use more canaries or rounds"
                )
        for result in self.results:
            result.check()

    def to_json(self) -> dict[str, Any]:
        """Plain values, strict JSON."""
        return {"format": REPORT_FORMAT, **dump(_REPORT, self), "refuted": self.refuted, "controls_caught": self.controls_caught}

    @classmethod
    def from_json(cls, value: Any, what: str = "audit report") -> AuditReport:
        """Inverse of :meth:`to_json`.

        Raises:
            DecodeError: not a report, or one whose verdict does not follow from its numbers.
        """
        if not isinstance(value, dict) or value.get("format") != REPORT_FORMAT:
            raise DecodeError(f"{what} is not of the format {REPORT_FORMAT!r}")
        rest = {key: item for key, item in value.items() if key != "format"}
        return _with_verdict(cls, _REPORT, rest, what, ("refuted", "controls_caught"))


def _with_verdict(cls: type[R], table: Table, value: Any, what: str, verdicts: tuple[str, ...]) -> R:
    if not isinstance(value, dict):
        raise DecodeError(f"{what} is not an object")
    record = build(cls, table, {key: item for key, item in value.items() if key not in verdicts}, what)
    for name in verdicts:
        if FLAG.read(value.get(name), f"{what}.{name}") != getattr(record, name):
            raise DecodeError(f"{what}.{name} does not follow from the numbers")
    return record


def _record(cls: type[Any], table: Table) -> Codec:
    return Codec(lambda record: dump(table, record), lambda value, what: build(cls, table, value, what))


_POINT = _record(PrivacyPoint, {"epsilon": NUMBER, "delta": NUMBER})
_ESTIMATE = _record(Estimate, {"value": NUMBER, "low": NUMBER, "high": NUMBER})
_MEMBERSHIP = _record(Membership, {"auc": _ESTIMATE, "tpr_at_1": _ESTIMATE, "tpr_at_01": _ESTIMATE, "roc": list_of(list_of(NUMBER))})
_RESULT: Table = {
    "kind": TEXT,
    "arm": TEXT,
    "unit": TEXT,
    "adversary": TEXT,
    "seed": INTEGER,
    "num_canaries": INTEGER,
    "num_guesses": INTEGER,
    "num_correct": INTEGER,
    "claimed": _POINT,
    "audited": _POINT,
    "confidence": NUMBER,
    "lower_bound": NUMBER,
    "perfect_bound": NUMBER,
    "gaussian_estimate": NUMBER_OR_NONE,
    "membership": _MEMBERSHIP,
}
_RESULTS = list_of(Codec(AuditResult.to_json, AuditResult.from_json))
_REPORT: Table = {
    "plan_digest": TEXT,
    "seed": INTEGER,
    "results": _RESULTS,
    "controls": _RESULTS,
    "notes": list_of(TEXT),
    "duration_s": NUMBER,
}
