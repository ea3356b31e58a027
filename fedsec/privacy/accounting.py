"""Epsilon of what was done, for all rounds together: by PRV (reported) and by RDP (beside it).

1. What happened is a list of immutable :class:`Segment` events; how loss is computed knows nothing else.
2. Both numbers are upper bounds. GDP is not offered: it is an approximation from below (4.01 where PRV says 5.16).
3. One relation only, add/remove; anything else is refused, never translated silently.
4. A number from disk is used only if an independent estimate agrees (:mod:`fedsec.privacy.crosscheck`); else it is computed.
5. Opacus, and torch with it, is imported only when a number has to be computed.

Sources: PRV, Gopi et al. 2021 (arXiv 2106.02848); RDP, Mironov et al. 2019 (arXiv 1908.10530) with the conversion of Balle et al.
2020 (arXiv 1905.09982), both as in Opacus.
"""

from __future__ import annotations

import functools
import logging
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from fedsec.privacy import cache
from fedsec.privacy.crosscheck import quick_epsilon

EPS_ERROR = 0.01
"""Most that the PRV bound may lie above the PRV estimate."""
RELATIVE_EPS_ERROR = 0.005
"""The same in relation to epsilon; the smaller of the two holds. Opacus' fixed 0.01 gives 0.082 where 0.073 is right."""
MAX_PRV_POINTS = 1 << 22
"""Longest PRV grid, about 400 MB in all; beyond it the bound gets looser instead (it stays a bound)."""
AGREEMENT = 1e-3
"""How far below the independent estimate a number from disk may lie: all that an edited file can gain, relative to epsilon."""

_WHOLE_ORDERS = (*map(float, range(2, 64)), 72.0, 80.0, 96.0, 128.0, 192.0, 256.0, 512.0, 1024.0)
_RDP_ORDERS = (*(1.0 + x / 10.0 for x in range(1, 100) if x % 10), *_WHOLE_ORDERS)
"""Opacus' orders and some larger ones, without which no epsilon below 0.2 could be shown. Whole orders are the cheap ones."""
_FILTER_ORDERS = (2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0, 64.0)
"""Fixed once and for all: see :func:`epsilon_filter`."""
_TRIED_BOUNDS = 3
"""Numbers on record that are tried as a bound before one is computed."""
_LEAST_DELTA = 1e-300
_MAX_LOSS = 650.0
"""PRV computes exp(loss); doubles end at 709."""
_log = logging.getLogger(__name__)


class NeighboringRelation(StrEnum):
    """Which data sets count as neighbours."""

    ADD_REMOVE = "add-remove"


@dataclass(frozen=True, kw_only=True, order=True)
class Segment:
    """Equal steps of the Poisson-subsampled Gaussian mechanism.

    Attributes:
        noise_multiplier: sigma over clip norm, >= 0; 0 is no protection.
        sample_rate: chance of each record to be in a batch, in (0, 1].
        steps: how many, >= 0.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 0:
            raise ValueError(f"steps must be an integer >= 0, not {self.steps!r}")
        if not (_is_number(self.noise_multiplier) and 0.0 <= self.noise_multiplier < math.inf):
            raise ValueError(f"noise_multiplier must be finite and >= 0, not {self.noise_multiplier!r}")
        if not (_is_number(self.sample_rate) and 0.0 < self.sample_rate <= 1.0):
            raise ValueError(f"sample_rate must be in (0, 1], not {self.sample_rate!r}")


def merge_segments(segments: Iterable[Segment]) -> tuple[Segment, ...]:
    """One segment for each (noise multiplier, sample rate), in sorted order; segments without steps vanish.

    >>> one = Segment(noise_multiplier=1.0, sample_rate=0.5, steps=3)
    >>> merge_segments([one, one])
    (Segment(noise_multiplier=1.0, sample_rate=0.5, steps=6),)
    """
    steps: dict[tuple[float, float], int] = {}
    for segment in segments:
        pair = (float(segment.noise_multiplier), float(segment.sample_rate))
        steps[pair] = steps.get(pair, 0) + segment.steps
    return tuple(Segment(noise_multiplier=sigma, sample_rate=rate, steps=count) for (sigma, rate), count in sorted(steps.items()) if count)


def epsilon_prv(
    segments: Iterable[Segment], delta: float, *, relation: NeighboringRelation | str = NeighboringRelation.ADD_REMOVE
) -> float:
    """Epsilon of all segments together, by PRV: the *upper bound*, not the estimate.

    Guarantee: at least the true epsilon, and above PRV's estimate by at most 0.01 and 0.5 % (where the grid stays under
    ``MAX_PRV_POINTS``; beyond, or where PRV cannot be computed at all, the RDP bound takes over if it is smaller).

    | case | result |
    |---|---|
    | no steps | 0.0 |
    | some step without noise | inf |
    | sample rate 1 | the Gaussian mechanism, no amplification |

    Args:
        segments: everything that ever touched the records.
        delta: in (0, 1).
        relation: must be add-remove.

    Raises:
        ValueError: delta or relation is not one that this accountant knows.

    >>> epsilon_prv([], 1e-5)
    0.0
    """
    check_relation(relation)
    merged, trivial = _prepare(segments, delta)
    return trivial if trivial is not None else _cached_prv(merged, float(delta))


def epsilon_rdp(
    segments: Iterable[Segment], delta: float, *, relation: NeighboringRelation | str = NeighboringRelation.ADD_REMOVE
) -> float:
    """Epsilon of all segments together, by RDP: an upper bound that is 8-14 % looser than PRV, and cheap.

    Arguments, edge cases and errors as for :func:`epsilon_prv`.
    """
    check_relation(relation)
    merged, trivial = _prepare(segments, delta)
    return trivial if trivial is not None else _cached_rdp(merged, float(delta))


def epsilon_filter(segments: Iterable[Segment], delta: float) -> float:
    """An epsilon that holds even if each mechanism was chosen after seeing what the ones before it released.

    Renyi divergences at one order, fixed beforehand, add up under adaptive choice (Feldman and Zrnic 2021, arXiv 2008.11193); PRV's
    convolutions do not. The best of a short fixed list of orders may be taken, since each gets its share of delta.
    """
    merged, trivial = _prepare(segments, delta)
    if trivial is not None:
        return trivial
    return _compute_rdp(merged, delta / len(_FILTER_ORDERS), orders=_FILTER_ORDERS)


def known_bound(segments: Iterable[Segment], delta: float, *, limit: float) -> float | None:
    """An upper bound on epsilon that is at most ``limit`` and needs no new computation; None if there is none on record.

    More steps of the same mechanism never lower epsilon, so a recorded run of the same mechanism with at least as many steps is a
    bound. Answers in milliseconds and imports nothing.
    """
    merged, trivial = _prepare(segments, delta)
    if trivial is not None:
        return trivial if trivial <= limit else None
    if len(merged) > 1:
        value = _on_record("prv", merged, float(delta))
        return value if value is not None and value <= limit else None
    part = merged[0]
    prefix = _key(merged, float(delta)).rpartition(",")[0] + ","
    counts = {
        int(rest): value
        for rest, value in cache.starting_with("prv", prefix).items()
        if rest.isdecimal() and len(rest) <= 10 and value <= limit
    }
    # The longest run first: it covers every round of a run, so the estimate that supports it is computed once.
    for count in sorted((count for count in counts if count >= part.steps), reverse=True)[:_TRIED_BOUNDS]:
        if _agrees(counts[count], (replace(part, steps=count),), float(delta)):
            return counts[count]
    return None


def check_relation(relation: NeighboringRelation | str) -> NeighboringRelation:
    """The relation as an enum.

    Raises:
        ValueError: not one that this accountant knows; no number is ever given for a guess.
    """
    try:
        return NeighboringRelation(relation)
    except ValueError:
        raise ValueError(f"unknown neighbouring relation {str(relation)[:60]!r}; known: {', '.join(NeighboringRelation)}") from None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _prepare(segments: Iterable[Segment], delta: float) -> tuple[tuple[Segment, ...], float | None]:
    """Merged segments, and epsilon where it needs no computation."""
    if not (_is_number(delta) and 0.0 < delta < 1.0):
        raise ValueError(f"delta must be in (0, 1), not {delta!r}")
    merged = merge_segments(segments)
    if not merged:
        return merged, 0.0
    return merged, math.inf if merged[0].noise_multiplier == 0.0 else None


def _parts(merged: Sequence[Segment]) -> list[tuple[float, float, int]]:
    return [(part.noise_multiplier, part.sample_rate, part.steps) for part in merged]


def _key(merged: Sequence[Segment], delta: float) -> str:
    return cache.key_of(_parts(merged), delta)


@functools.lru_cache(maxsize=4096)
def _quick(merged: tuple[Segment, ...], delta: float) -> float | None:
    return quick_epsilon(_parts(merged), delta)


def _agrees(value: float, merged: tuple[Segment, ...], delta: float, *, kind: cache.Kind = "prv") -> bool:
    """Whether the independent estimate supports ``value`` as a bound; False where it has no answer."""
    quick = _quick(merged, delta)
    if quick is None:
        return False
    slack = 1.01 if kind == "prv" else 2.0
    return quick * (1.0 - AGREEMENT) <= value <= quick * slack


def _on_record(kind: cache.Kind, merged: tuple[Segment, ...], delta: float) -> float | None:
    for value in cache.candidates(kind, _key(merged, delta)):
        if _agrees(value, merged, delta, kind=kind):
            return value
        _log.warning("a cached epsilon of %g is not supported by the independent estimate; computing it again", value)
    return None


@functools.lru_cache(maxsize=4096)
def _cached_prv(merged: tuple[Segment, ...], delta: float) -> float:
    value = _on_record("prv", merged, delta)
    if value is None:
        value = _compute_prv(merged, delta)
        if not _agrees(value, merged, delta):
            value = min(value, _cached_rdp(merged, delta))
        if _agrees(value, merged, delta):
            cache.remember("prv", _key(merged, delta), value)
    return value


@functools.lru_cache(maxsize=4096)
def _cached_rdp(merged: tuple[Segment, ...], delta: float) -> float:
    value = _on_record("rdp", merged, delta)
    if value is None:
        value = _compute_rdp(merged, delta)
        if _agrees(value, merged, delta, kind="rdp"):
            cache.remember("rdp", _key(merged, delta), value)
    return value


@functools.lru_cache(maxsize=1024)
def _rdp_of_one_step(noise_multiplier: float, sample_rate: float, orders: tuple[float, ...]) -> npt.NDArray[np.float64]:
    """RDP of one step at each order; inf at orders that Opacus cannot compute."""
    from opacus.accountants.analysis.rdp import compute_rdp  # noqa: PLC0415 - imports torch

    values = np.full(len(orders), math.inf)
    for index, order in enumerate(orders):
        try:
            value = float(compute_rdp(q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=order))
        except (ValueError, ArithmeticError):
            continue  # a series that cancels: this order shows nothing, the others still do
        if value >= 0.0:
            values[index] = value
    values.flags.writeable = False
    return values


def _compute_rdp(merged: tuple[Segment, ...], delta: float, *, orders: tuple[float, ...] = _RDP_ORDERS) -> float:
    if delta < _LEAST_DELTA:
        return math.inf
    order = np.asarray(orders)
    rdp = np.zeros(len(orders))
    for part in merged:
        rdp += part.steps * _rdp_of_one_step(part.noise_multiplier, part.sample_rate, orders)
    epsilons = rdp - (math.log(delta) + np.log(order)) / (order - 1.0) + np.log1p(-1.0 / order)
    return max(0.0, float(epsilons.min()))


def _compute_prv(merged: tuple[Segment, ...], delta: float) -> float:
    """PRV's upper bound by Opacus; inf where it cannot be computed."""
    loosest = _eps_error_that_fits(merged, delta)
    if not math.isfinite(loosest):
        return math.inf
    aim = _quick(merged, delta)
    eps_error = min(EPS_ERROR, RELATIVE_EPS_ERROR * (aim if aim is not None else 0.7 * _compute_rdp(merged, delta)))
    value = math.inf
    for _ in range(6):
        eps_error = max(eps_error, loosest)
        value = _opacus_prv(merged, delta, eps_error)
        if eps_error <= max(RELATIVE_EPS_ERROR * value * 1.0001, loosest):
            break
        eps_error = 0.9 * RELATIVE_EPS_ERROR * value
    if aim is not None and value < aim * (1.0 - AGREEMENT):
        _log.warning("PRV gave %g where an independent estimate gives %g; using the RDP bound", value, aim)
        return math.inf
    return value


def _eps_error_that_fits(merged: tuple[Segment, ...], delta: float) -> float:
    """Smallest eps_error whose grid has at most ``MAX_PRV_POINTS`` points; inf if the losses are too large for doubles."""
    delta_error = delta / 1000.0
    steps = sum(part.steps for part in merged)
    # The grid spans twice this reach, with a spacing of eps_error over the root below.
    reach = _reach(merged, delta_error)
    if not reach <= _MAX_LOSS:
        return math.inf
    return 2.0 * reach * math.sqrt(steps * math.log(12.0 / delta_error) / 2.0) / MAX_PRV_POINTS


def _prv_accountant(merged: tuple[Segment, ...]) -> Any:
    """Opacus' PRV accountant, with the reach of its grid from RDP at whole orders.

    Opacus takes that reach from RDP at its fractional orders too, which costs most of its time (0.5 s and more at high rates) and
    changes nothing: any RDP bound on the tail is a valid reach (Gopi et al. 2021, remark 5.6), and fewer orders only widen it.
    """
    from opacus.accountants import PRVAccountant  # noqa: PLC0415 - imports torch
    from opacus.accountants.analysis.prv.domain import Domain  # noqa: PLC0415

    class WholeOrders(PRVAccountant):  # type: ignore[misc]  # Opacus has no types
        def _get_domain(self, prvs: Any, num_self_compositions: Any, eps_error: float, delta_error: float) -> Any:
            del prvs
            steps = sum(num_self_compositions)
            mesh = eps_error / math.sqrt(steps * math.log(12.0 / delta_error) / 2.0)
            reach = max(_reach(merged, delta_error), eps_error + 3.0)
            return Domain.create_aligned(-reach, reach, mesh)

    accountant = WholeOrders()
    accountant.history = _parts(merged)
    return accountant


def _reach(merged: tuple[Segment, ...], delta_error: float) -> float:
    """How far privacy losses must be followed for an error of ``delta_error`` at most, with Opacus' margin of 3."""
    steps = sum(part.steps for part in merged)
    whole = _compute_rdp(merged, delta_error / 4.0, orders=_WHOLE_ORDERS)
    single = max(_compute_rdp((replace(part, steps=1),), delta_error / (8.0 * steps), orders=_WHOLE_ORDERS) for part in merged)
    return max(whole, single) + 3.0


def _opacus_prv(merged: tuple[Segment, ...], delta: float, eps_error: float) -> float:
    accountant = _prv_accountant(merged)
    try:
        # Opacus warns of its own RDP orders and takes the logarithm of 0 at sample rate 1; neither touches the result.
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            value = float(accountant.get_epsilon(delta, eps_error=eps_error))
    except (ValueError, RuntimeError, ArithmeticError, MemoryError) as error:
        _log.info("PRV cannot compute this case: %s", error)
        return math.inf
    return max(0.0, value) if math.isfinite(value) else math.inf
