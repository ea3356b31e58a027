"""Room to hide: how far colluders can push the sum before screening's own tests see them; known before the first round.

All lengths are in noise units of the *update* (the deviation of the privacy noise in one coordinate of a sum-form update). A sketch shows ``√(k/d)`` of a
push, so with equal k the room grows with ``√d``, and a large model under local noise hides more than honest signals are worth:
compare with the signal that a round shows (fact ``signal_seen``).

1. *With noise*: each colluder adds an honest client's noise to the same push. Seen when the shared direction passes the edge and its members the
   deviations allowed.
2. *Without*: colluders choose what stands in for noise. Rows of the largest norm that the gate lets pass, as far from parallel as the edge asks, may still
   add up to one direction: nothing in one round tells such a row from an honest one.
3. *Over rounds*: a push that stays the same, by all or by one, when the sums over rounds pass their edge.

Numbers are for expected values: at the room itself a test sees about every second attempt.

Source: the tests' own formulas (gate.py, spectrum.py, accumulated.py); measured against them in tests and docs/screening.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from fedsec.robust.gate import allowed_signal
from fedsec.robust.levels import DEFAULT_SETTINGS, FEWEST_CLIENTS, ScreeningSettings
from fedsec.robust.tails import chi_squared_quantile, normal_quantile, spectral_edge

_LARGEST = 1e9
_MARGIN = 1.2  # the edge follows what the rest differ by, and noise alone moves that by as much


@dataclass(frozen=True, kw_only=True)
class HidingRoom:
    """What stays unseen, as the push of all f colluders together, in noise units of the update.

    Attributes:
        with_noise: in one round, each colluder with an honest client's noise.
        without_noise: in one round, with chosen noise.
        over_rounds: kept up for ``rounds`` rounds, by all f with noise.
        alone_over_rounds: the push of a single client that keeps it up; infinite where rounds are compared by products only.
        rounds: T.
    """

    with_noise: float
    without_noise: float
    over_rounds: float
    alone_over_rounds: float
    rounds: int


def hiding_room(
    *, num_clients: int, num_byzantine: int, num_columns: int, dimension: int, rounds: int, lifted: bool,
    settings: ScreeningSettings = DEFAULT_SETTINGS,
) -> HidingRoom:  # fmt: skip
    """The room that the tests leave, where honest clients differ by noise alone; differences among them add to it.

    Args:
        num_clients: n, at least ``FEWEST_CLIENTS``.
        num_byzantine: f, 1 to (n - 1) // 2.
        num_columns: k of the whitened sketches; d in the open.
        dimension: d.
        rounds: T, of the whole run.
        lifted: whether rounds are compared in the space of the updates.
        settings: levels of the tests.

    Raises:
        ValueError: numbers out of range.

    >>> room = hiding_room(num_clients=20, num_byzantine=5, num_columns=128, dimension=650, rounds=20, lifted=True)
    >>> round(room.with_noise), round(room.without_noise), round(room.over_rounds), round(room.alone_over_rounds)
    (84, 107, 23, 10)
    """
    if not (
        num_clients >= FEWEST_CLIENTS and 1 <= num_byzantine <= (num_clients - 1) // 2 and 1 <= num_columns <= dimension and rounds >= 1
    ):
        raise ValueError(f"no room for {num_byzantine} of {num_clients} clients, {num_columns} of {dimension} numbers, {rounds} rounds")
    n, f, k = num_clients, num_byzantine, num_columns
    stretch = math.sqrt(dimension / k)
    apart = 1.0 - f / n
    edge = _MARGIN * spectral_edge(n, k, settings.edge_tail)
    # A lone client agrees with nobody within a round; two is what the test is made for.
    group = max(f, 2)
    one = _least(lambda a: (group - 1) * apart * a * a >= edge and _place(a * a / math.sqrt(k), group, k) >= settings.deviations)
    signal = allowed_signal(0.0, k, n, allowance=settings.signal_allowance)
    longest = chi_squared_quantile(k, normal_quantile(settings.gate_tail), signal)
    shared = edge / apart if f > 1 else 0.0
    variance = k * rounds + (k * k / dimension * rounds * (rounds - 1) if lifted else 0.0)
    columns = (k * rounds) ** 2 / variance
    late_edge = _MARGIN * spectral_edge(n, columns, settings.edge_tail) / math.sqrt(columns)
    own_share = (k * k / dimension * rounds * (rounds - 1)) / variance if lifted else 0.0

    def seen(amplitude: float, members: int) -> bool:
        product = amplitude * amplitude * math.sqrt(variance) / dimension
        strength = product * (members - 1 + own_share) * (1.0 - members / n)
        return strength >= late_edge and _place(product, members, columns) >= settings.deviations

    return HidingRoom(
        with_noise=f * one * stretch,
        without_noise=math.sqrt(f * (longest + shared)) * stretch,
        over_rounds=f * _least(lambda a: seen(a, group)),
        alone_over_rounds=_least(lambda a: seen(a, 1)) if own_share > 0 else math.inf,
        rounds=rounds,
    )


def _place(product: float, members: int, columns: float) -> float:
    """Expected deviations of a member of a group along the group's direction, for inner products in their unit of noise."""
    return product * math.sqrt(members) / math.sqrt(1.0 + product * members / math.sqrt(columns))


def _least(seen: Callable[[float], bool]) -> float:
    """The least amplitude that is seen, by bisection; infinite if none is."""
    if not seen(_LARGEST):
        return math.inf
    low, high = 0.0, _LARGEST
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if seen(middle) else (middle, high)
    return high
