"""The noise multiplier that spends a given epsilon over a whole run, calibrated once; and the cache shipped with the package.

1. The result's PRV epsilon is at most the target and above 99.9 % of it; whoever reports the run's epsilon gets that very number.
2. Targets that cannot be met are refused with what could be.
3. A cached sigma is a guess like any other: it is returned only after its PRV epsilon was looked up (itself checked, see
   :mod:`fedsec.privacy.accounting`) and lies in that window. A weakened entry is noticed and calibrated again.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsec.errors import ConfigError
from fedsec.privacy import cache
from fedsec.privacy.accounting import Segment, epsilon_prv, epsilon_rdp
from fedsec.privacy.crosscheck import quick_epsilon

TOLERANCE = 1e-3
"""The result's epsilon lies in (target * (1 - TOLERANCE), target]."""
MAX_NOISE_MULTIPLIER = 1e6
"""Beyond it the update is noise alone."""
MIN_NOISE_MULTIPLIER = 1e-2
MIN_EPSILON, MAX_EPSILON = 1e-3, 200.0
"""Outside, the accountants lose their resolution; above, no protection is left to speak of."""
MAX_STEPS = 10**9

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunShape:
    """What decides a run's sigma and its epsilon after each round.

    Attributes:
        epsilon: target for the whole run.
        delta: of the guarantee.
        sample_rate: Poisson rate of a step.
        steps: local steps a round.
        rounds: rounds of the run.
    """

    epsilon: float
    delta: float
    sample_rate: float
    steps: int
    rounds: int


def calibrate_noise_multiplier(*, epsilon: float, delta: float, sample_rate: float, steps: int) -> float:
    """Smallest noise multiplier, to six digits, that keeps ``steps`` steps within ``(epsilon, delta)`` by PRV.

    Args:
        epsilon: target for all steps of the run together, in [0.001, 200].
        delta: of the guarantee, in (0, 1).
        sample_rate: chance of each record to be in a batch, in (0, 1].
        steps: of the whole run: rounds times local steps.

    Returns:
        Sigma over clip norm, dimensionless; its PRV epsilon lies in (0.999 * epsilon, epsilon].

    Raises:
        ConfigError: an argument is out of range, or no noise reaches the target; says what would.

    >>> calibrate_noise_multiplier(epsilon=8.0, delta=1e-3, sample_rate=0.25, steps=60)
    1.14533
    """
    _check(epsilon=epsilon, delta=delta, sample_rate=sample_rate, steps=steps)
    target = _Target(epsilon=float(epsilon), delta=float(delta), sample_rate=float(sample_rate), steps=int(steps))
    for value in cache.candidates("sigma", target.key()):
        if MIN_NOISE_MULTIPLIER <= value <= MAX_NOISE_MULTIPLIER and target.is_met(target.prv(value)):
            return value
        _log.warning("a cached noise multiplier of %g does not meet its target; calibrating again", value)
    sigma = _solve(target)
    cache.remember("sigma", target.key(), sigma)
    return sigma


def warm(shapes: Iterable[RunShape], *, path: Path) -> int:
    """Write a cache file with sigma and, for the end of each round, both epsilons; numbers already in ``path`` stay.

    Meant for the file shipped with the package, ``fedsec.privacy.cache.SHIPPED``.

    Returns:
        how many numbers the file holds.

    Raises:
        ConfigError: a shape cannot be calibrated.
        StorageError: the file cannot be written.
    """
    numbers = cache.read_numbers(path)
    for shape in shapes:
        total = shape.rounds * shape.steps
        sigma = calibrate_noise_multiplier(epsilon=shape.epsilon, delta=shape.delta, sample_rate=shape.sample_rate, steps=total)
        numbers["sigma"][_Target(epsilon=shape.epsilon, delta=shape.delta, sample_rate=shape.sample_rate, steps=total).key()] = sigma
        for done in range(1, shape.rounds + 1):
            spent = (Segment(noise_multiplier=sigma, sample_rate=float(shape.sample_rate), steps=done * shape.steps),)
            key = cache.key_of(((sigma, float(shape.sample_rate), done * shape.steps),), shape.delta)
            numbers["prv"][key] = epsilon_prv(spent, shape.delta)
            numbers["rdp"][key] = epsilon_rdp(spent, shape.delta)
    cache.write_numbers(path, {kind: dict(sorted(numbers[kind].items())) for kind in numbers})
    return sum(map(len, numbers.values()))


@dataclass(frozen=True, kw_only=True)
class _Target:
    epsilon: float
    delta: float
    sample_rate: float
    steps: int

    def key(self) -> str:
        return f"{self.epsilon!r};{self.delta!r};{self.sample_rate!r},{self.steps}"

    def is_met(self, epsilon: float) -> bool:
        return self.epsilon * (1.0 - TOLERANCE) < epsilon <= self.epsilon

    def _segments(self, sigma: float) -> tuple[Segment]:
        return (Segment(noise_multiplier=sigma, sample_rate=self.sample_rate, steps=self.steps),)

    def prv(self, sigma: float) -> float:
        return epsilon_prv(self._segments(sigma), self.delta)

    def rdp(self, sigma: float) -> float:
        return epsilon_rdp(self._segments(sigma), self.delta)

    def rough(self, sigma: float) -> float:
        """Milliseconds where the quick estimate answers, RDP where it does not: aims the search, decides nothing."""
        quick = quick_epsilon([(sigma, self.sample_rate, self.steps)], self.delta)
        return quick if quick is not None else self.rdp(sigma)


def _check(*, epsilon: Any, delta: Any, sample_rate: Any, steps: Any) -> None:
    if not _is_number(epsilon) or not epsilon > 0.0:
        raise ConfigError(f"epsilon must be a number > 0, not {epsilon!r}", field="privacy.epsilon")
    if epsilon > MAX_EPSILON:
        raise ConfigError(
            f"epsilon = {epsilon:g} is no protection that could be calibrated (the limit is {MAX_EPSILON:g})",
            field="privacy.epsilon",
            mend='use a smaller epsilon, or unit = "none" openly',
        )
    if epsilon < MIN_EPSILON:
        raise ConfigError(
            f"epsilon = {epsilon:g} is below what can be calibrated", field="privacy.epsilon", mend=f"use at least {MIN_EPSILON:g}"
        )
    if not _is_number(delta) or not 0.0 < delta < 1.0:
        raise ConfigError(f"delta must be in (0, 1), not {delta!r}", field="privacy.delta")
    if not _is_number(sample_rate) or not 0.0 < sample_rate <= 1.0:
        raise ConfigError(f"sample_rate must be in (0, 1], not {sample_rate!r}", field="training.sample_rate")
    if type(steps) is not int or not 1 <= steps <= MAX_STEPS:
        raise ConfigError(f"the steps of the whole run must be 1..{MAX_STEPS}, not {steps!r}", field="training.steps")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def _solve(target: _Target) -> float:
    low, high = _bracket(target)
    aim = target.epsilon * (1.0 - TOLERANCE / 2.0)
    # PRV's bound lies above its estimate by a known margin: aim the rough search under it, so that PRV runs once or twice.
    margin = min(0.01, 0.005 * aim)
    start = _root(target.rough, low, high, aim - margin, lambda value: abs(value - (aim - margin)) < 1e-4 * aim, tries=40)
    sigma = _root(target.prv, low / 1.2, high * 1.2, aim, target.is_met, tries=10, start=start)
    if sigma is None:
        raise ConfigError(
            f"the accountant cannot resolve epsilon = {target.epsilon:g} over {target.steps} steps at delta = {target.delta:g}",
            field="privacy.epsilon",
            mend="use a somewhat larger epsilon or delta, or set privacy.noise_multiplier yourself",
        )
    return sigma


def _bracket(target: _Target) -> tuple[float, float]:
    """A sigma that spends more than the target and one that spends less, a factor of at most two apart."""
    sigma = 1.0
    while target.rough(sigma) > target.epsilon:
        sigma *= 2.0
        if sigma > MAX_NOISE_MULTIPLIER:
            raise _too_strict(target)
    while target.rough(sigma / 2.0) <= target.epsilon:
        sigma /= 2.0
        if sigma < MIN_NOISE_MULTIPLIER:
            raise ConfigError(
                f"epsilon = {target.epsilon:g} allows {target.steps} steps with almost no noise",
                field="privacy.epsilon",
                mend="use a smaller epsilon",
            )
    return sigma / 2.0, sigma


def _too_strict(target: _Target) -> ConfigError:
    """The refusal of a target that no noise reaches, with the number of steps that some noise would."""

    def reaches(steps: int) -> bool:
        fewer = _Target(epsilon=target.epsilon, delta=target.delta, sample_rate=target.sample_rate, steps=steps)
        return fewer.rough(MAX_NOISE_MULTIPLIER) <= target.epsilon

    low, high = 0, target.steps
    while high - low > max(1, low // 100):
        middle = (low + high) // 2
        low, high = (middle, high) if reaches(middle) else (low, middle)
    return ConfigError(
        f"no noise up to {MAX_NOISE_MULTIPLIER:g} keeps {target.steps} steps within epsilon = {target.epsilon:g} at delta = {target.delta:g}",
        field="privacy.epsilon",
        mend=f"use at most {low} steps in all (rounds times steps), or a larger epsilon" if low else "use a larger epsilon or delta",
    )


def _root(
    function: Callable[[float], float],
    low: float,
    high: float,
    aim: float,
    is_met: Callable[[float], bool],
    *,
    tries: int,
    start: float | None = None,
) -> float | None:
    """A sigma of six digits in [low, high] whose epsilon ``is_met``, for a falling ``function``; None if no try finds one.

    Secant in log-log, where epsilon is nearly a straight line, inside a shrinking bracket.
    """
    sigma, slope = start if start is not None else math.sqrt(low * high), -1.2
    last: tuple[float, float] | None = None
    for _ in range(tries):
        sigma = _six_digits(sigma)
        value = function(sigma)
        if is_met(value):
            return sigma
        low, high = (sigma, high) if value > aim else (low, sigma)
        if value <= 0.0 or not math.isfinite(value):
            sigma = math.sqrt(low * high)
            continue
        if last is not None and last[0] != sigma and last[1] != value:
            slope = min(-0.1, math.log(value / last[1]) / math.log(sigma / last[0]))
        last = (sigma, value)
        step = sigma * math.exp(math.log(aim / value) / slope)
        sigma = step if low < step < high else math.sqrt(low * high)
    return None


def _six_digits(value: float) -> float:
    return float(f"{value:.5e}")
