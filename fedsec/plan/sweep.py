"""A sweep over epsilon: which runs it holds, which settings make each of them, what each is called, and which are refused.

1. A point is one run: epsilon, seed, one choice of every ``--vary`` setting, and an arm (what of the model trains or gets noise).
2. A point's key is the digest of its whole plan and its arm: the same run has the same key in every sweep.
3. All points are checked before one runs: what the plan refuses is named at once.
4. Infinite epsilon is the same plan without clipping and noise: ``privacy.unit = "none"``. It is the reference that a price is measured from.
5. The default plan is swept in peace and in clear (:data:`PEACE`): the price of privacy alone, without attackers, rule or masks. Another plan is swept as it is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from fedsec.codec import digest_json
from fedsec.errors import ConfigError
from fedsec.plan.arms import ALL, Arm
from fedsec.plan.load import parse_plan, parse_value, plan_from_mapping, plan_to_toml
from fedsec.plan.model import Plan, plan_to_jsonable

SWEEP_FORMAT = "fedsec/sweep/v1"
EPSILONS = "0.5,1,2,4,8,inf"
"""Swept when none are named."""
PEACE = ('attack.name="none"', 'robust.rule="mean"', "secagg.enabled=false")
"""How the default plan is swept. Accuracy, recall and epsilon are those under masks (tests/cli/test_sweep_point.py); the loss differs by the rounding of their fixed point."""
AT = {
    0.5: ("training.learning_rate=0.5",),
    1.0: ("training.learning_rate=0.75",),
    2.0: ("training.learning_rate=2.0",),
    math.inf: ("training.learning_rate=5.0",),
}
"""Of the default plan: learning rates chosen on held-out training records, which are public (experiments/digits/README.md). At 4 its own is the best, at 8 nearly."""
MOST_POINTS = 100_000
INVERSION: Final = "inversion"
"""The audit that makes pictures out of updates."""
SHADOW_MODELS = 16
"""Of "lira" if not said; as ``fedsec.sim.audit`` has it."""

_OWN_KEYS = {
    "privacy.epsilon": "--epsilon says which",
    "privacy.unit": "--epsilon inf is the run without privacy",
    "privacy.noise_multiplier": "a sweep calibrates the noise to each epsilon",
    "privacy.epsilon_cap": "a sweep has no client that keeps a cap",
    "federation.seed": "--seeds says how many",
    "attack.compare": "a sweep compares by itself",
    "name": "it changes no result",
}


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run of a sweep.

    Attributes:
        epsilon: target for the whole run; infinite: no privacy.
        seed: of the federation.
        varied: (section.key, value as TOML) of each varied setting.
        arm: what of the model trains or gets noise.
    """

    epsilon: float
    seed: int
    varied: tuple[tuple[str, str], ...] = ()
    arm: Arm = ALL

    @property
    def series(self) -> tuple[tuple[tuple[str, str], ...], Arm]:
        """What all epsilons and seeds of one line of the frontier have in common."""
        return self.varied, self.arm

    def __str__(self) -> str:
        parts = [epsilon_name(self.epsilon), f"seed {self.seed}", *(f"{key}={value}" for key, value in self.varied)]
        return ", ".join([*parts, str(self.arm)] if self.arm != ALL else parts)


@dataclass(frozen=True, kw_only=True)
class SweepGrid:
    """Which points there are.

    Attributes:
        epsilons: rising, infinity last.
        seeds: distinct.
        varied: section.key → its values, as TOML.
        arms: distinct, the whole model first.
        at: epsilon → settings that hold there alone.
        audits: kinds of audit, without "none".
        canaries: of an audit.
        shadow_models: of "lira", for each point.
    """

    epsilons: tuple[float, ...]
    seeds: tuple[int, ...]
    varied: tuple[tuple[str, tuple[str, ...]], ...] = ()
    arms: tuple[Arm, ...] = (ALL,)
    at: Mapping[float, tuple[str, ...]] = field(default_factory=dict)
    audits: tuple[str, ...] = ()
    canaries: int = 4000
    shadow_models: int = SHADOW_MODELS

    @property
    def attacks(self) -> tuple[str, ...]:
        """Audits that hold something against a claim, point by point; pictures out of updates are another task."""
        return tuple(kind for kind in self.audits if kind != INVERSION)

    def choices(self) -> list[tuple[tuple[str, str], ...]]:
        """Every choice of the varied settings."""
        return [tuple(choice) for choice in itertools.product(*([(key, value) for value in values] for key, values in self.varied))]

    def points(self) -> tuple[Point, ...]:
        """Seed by seed: a sweep that is cut short has whole seeds."""
        return tuple(
            Point(epsilon=epsilon, seed=seed, varied=choice, arm=arm)
            for seed in self.seeds
            for arm in self.arms
            for choice in self.choices()
            for epsilon in self.epsilons
            if arm.has_epsilon(epsilon)
        )

    def overrides(self, point: Point) -> tuple[str, ...]:
        """``section.key=value``, as ``--set`` takes them: what makes this point of the sweep's plan."""
        privacy = ('privacy.unit="none"', "privacy.epsilon=inf") if math.isinf(point.epsilon) else (f"privacy.epsilon={point.epsilon!r}",)
        varied = tuple(f"{key}={value}" for key, value in point.varied)
        return (*self.at.get(point.epsilon, ()), *varied, *point.arm.overrides(), *privacy, f"federation.seed={point.seed}")

    def to_json(self) -> dict[str, Any]:
        """Plain values, strict JSON."""
        return {
            "epsilons": [spell(epsilon) for epsilon in self.epsilons],
            "seeds": list(self.seeds),
            "varied": {key: list(values) for key, values in self.varied},
            "arms": [arm.code for arm in self.arms],
            "at": {str(spell(epsilon)): list(settings) for epsilon, settings in self.at.items()},
            "audits": list(self.audits),
            "canaries": self.canaries,
            "shadow_models": self.shadow_models,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> SweepGrid:
        """Inverse of :meth:`to_json`.

        Raises:
            KeyError, TypeError, ValueError: it is not.
        """
        return cls(
            epsilons=tuple(float(epsilon) for epsilon in value["epsilons"]),
            seeds=tuple(int(seed) for seed in value["seeds"]),
            varied=tuple((str(key), tuple(map(str, values))) for key, values in value["varied"].items()),
            arms=tuple(Arm.from_code(code) for code in value["arms"]),
            at={float(epsilon): tuple(map(str, settings)) for epsilon, settings in value["at"].items()},
            audits=tuple(map(str, value["audits"])),
            canaries=int(value["canaries"]),
            shadow_models=int(value.get("shadow_models", SHADOW_MODELS)),  # sweeps of before there was a choice
        )


def spell(epsilon: float) -> float | str:
    """An epsilon as JSON holds it."""
    return "inf" if math.isinf(epsilon) else epsilon


def epsilon_name(epsilon: float) -> str:
    """An epsilon as people read it.

    >>> epsilon_name(0.5), epsilon_name(math.inf)
    ('ε = 0.5', 'no privacy')
    """
    return "no privacy" if math.isinf(epsilon) else f"ε = {epsilon:g}"


# --- From the command line --------------------------------------------------------------------------------------------------------


def parse_epsilons(text: str) -> tuple[float, ...]:
    """Epsilons between commas, rising.

    Raises:
        ConfigError: one is no number over 0, or there twice.
    """
    found: list[float] = []
    for part in (piece.strip() for piece in text.split(",")):
        value = _epsilon(part)
        if value in found:
            raise ConfigError(f"{part} is there twice", field="--epsilon", mend="name each once")
        found.append(value)
    return tuple(sorted(found))


def _epsilon(part: str) -> float:
    try:
        value = math.inf if part == "∞" else float(part)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise ConfigError(
            f'"{part[:60]}" is not a number',
            field="--epsilon",
            mend="for example --epsilon 0.5,1,2,4,8,inf; inf is the run without privacy",
        )
    if value <= 0.0:
        raise ConfigError(
            f"epsilon = {part[:60]} can be reached by no mechanism that learns anything", field="--epsilon", mend="give numbers over 0"
        )
    return value


def parse_varied(texts: Sequence[str]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Each ``section.key=a,b,c`` as its key and its values.

    Raises:
        ConfigError: it is not of that form, names a key twice or one that is the sweep's own, or a value twice.
    """
    varied: dict[str, tuple[str, ...]] = {}
    for text in texts:
        key, separator, tail = (part.strip() for part in text.partition("="))
        if not separator or key.count(".") != 1 or not all(key.split(".")) or not tail:
            raise ConfigError(f'"{text[:80]}" is not section.key=a,b,c', field="--vary", mend="for example --vary training.steps=1,3")
        _refuse_own(key, "--vary")
        values = tuple(_split(tail))
        meant = [repr(parse_value(value)) for value in values]
        if not all(values) or len(set(meant)) != len(meant):
            raise ConfigError(f"{key} has an empty value or one twice", field="--vary", mend="name each once, between commas")
        if key in varied:
            raise ConfigError(f"{key} is varied twice", field="--vary", mend="put all its values behind one --vary")
        varied[key] = values
    return tuple(varied.items())


def parse_at(texts: Sequence[str]) -> dict[float, tuple[str, ...]]:
    """Each ``EPSILON:section.key=value``: a setting of one epsilon alone.

    Raises:
        ConfigError: it is not of that form, or names a key that is the sweep's own.
    """
    at: dict[float, tuple[str, ...]] = {}
    for text in texts:
        head, separator, setting = text.partition(":")
        key = setting.partition("=")[0].strip()
        if not separator or "=" not in setting:
            raise ConfigError(
                f'"{text[:80]}" is not EPSILON:section.key=value', field="--at", mend="for example --at inf:training.learning_rate=5"
            )
        _refuse_own(key, "--at")
        epsilon = parse_epsilons(head)[0]
        at[epsilon] = (*at.get(epsilon, ()), setting.strip())
    return at


def _refuse_own(key: str, option: str) -> None:
    if key in _OWN_KEYS:
        raise ConfigError(f"{key} is the sweep's own setting", field=option, mend=_OWN_KEYS[key])


def _split(text: str) -> list[str]:
    """Parts between commas; commas inside quotes and brackets are part of a value."""
    parts, depth, quoted = [""], 0, ""
    for char in text:
        if quoted:
            quoted = "" if char == quoted else quoted
        elif char in "\"'":
            quoted = char
        depth += (char in "[{") - (char in "]}") if not quoted else 0
        if char == "," and not quoted and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts]


def make_sweep(
    plan: Plan,
    *,
    epsilons: Sequence[float],
    seeds: int,
    varied: Sequence[tuple[str, tuple[str, ...]]] = (),
    arms: Sequence[Arm] = (ALL,),
    at: Mapping[float, tuple[str, ...]] | None = None,
    audits: Sequence[str] = (),
    canaries: int = 4000,
    shadow_models: int = SHADOW_MODELS,
) -> SweepGrid:
    """The sweep that was asked for, over the plan's seed and those after it.

    Raises:
        ConfigError: fewer than one seed, a setting at an epsilon that is not swept, or too many points.
    """
    if seeds < 1:
        raise ConfigError(f"{seeds} seeds run nothing", field="--seeds", mend="1 or more; intervals need 3")
    settings = dict(at or {})
    for epsilon in settings:
        if epsilon not in epsilons:
            raise ConfigError(
                f"{epsilon_name(epsilon)} is not swept", field="--at", mend=f"add {epsilon:g} to --epsilon, or leave the setting out"
            )
    count = len(epsilons) * seeds * len(arms) * math.prod(len(values) for _, values in varied)
    if count > MOST_POINTS:
        raise ConfigError(f"{count} runs are more than {MOST_POINTS}", field="--vary", mend="ask for a smaller sweep")
    first = plan.federation.seed
    return SweepGrid(
        epsilons=tuple(epsilons),
        seeds=tuple(range(first, first + seeds)),
        varied=tuple(varied),
        arms=tuple(arms),
        at=settings,
        audits=tuple(audits),
        canaries=canaries,
        shadow_models=shadow_models,
    )


# --- Against the plan -------------------------------------------------------------------------------------------------------------


def sweep_base(plan: Plan) -> Plan:
    """The plan without what the points decide, so that two sweeps over the same federation have the same base.

    Raises:
        ConfigError: the plan fixes the noise, so that no epsilon can be swept.
    """
    if plan.privacy.noise_multiplier is not None:
        raise ConfigError(
            f"the plan fixes the noise at {plan.privacy.noise_multiplier:g}, so every epsilon would run the same",
            field="privacy.noise_multiplier",
            mend="remove it: a sweep calibrates the noise to each epsilon",
        )
    raw = plan.model_dump(mode="python", exclude_none=True)
    raw["privacy"].update(unit="example", epsilon=8.0)
    raw["privacy"].pop("epsilon_cap", None)
    raw["attack"]["compare"] = False
    return plan_from_mapping(raw)


def sweep_digest(base: Plan) -> str:
    """Hex digest of all that the points of this base share; the name is not part of it."""
    return digest_json(SWEEP_FORMAT, plan_to_jsonable(base, include_name=False))


def point_key(plan: Plan, arm: Arm) -> str:
    """Hex digest of one run: of its plan, and of what the plan does not say of the arm."""
    return digest_json(SWEEP_FORMAT, {"plan": plan.digest(), "noise_only": list(arm.noise_only)})


def plans_of_sweep(base: Plan, grid: SweepGrid) -> dict[Point, Plan]:
    """Every point's plan, in the order of the points.

    Raises:
        ConfigError: the plan refuses a point, or two points are the same run.
    """
    text, plans, keys = plan_to_toml(base), {}, dict[str, Point]()
    for point in grid.points():
        try:
            plans[point] = parse_plan(text, overrides=overrides_of(base, grid, point))
        except ConfigError as error:
            raise ConfigError(f"{point}: {error.problem}", field=error.field, mend=error.mend) from None
        key = point_key(plans[point], point.arm)
        if key in keys:
            raise ConfigError(f"{keys[key]} and {point} are the same run", field="--vary", mend="leave one of the two values out")
        keys[key] = point
    return plans


def overrides_of(base: Plan, grid: SweepGrid, point: Point) -> tuple[str, ...]:
    """All that makes a point of this base plan. Under secure aggregation the reference without privacy needs one key more: nobody real is in it."""
    overrides = grid.overrides(point)
    return (*overrides, "secagg.sketch_without_dp=true") if base.secagg.enabled and math.isinf(point.epsilon) else overrides
