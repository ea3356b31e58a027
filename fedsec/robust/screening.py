"""Calibrated spectral screening: which updates cannot be signal plus the noise that differential privacy puts into every honest one.

Under DP-SGD small clients send updates that are mostly noise, and a rule that measures distances lets colluders hide behind it. But that noise is
publicly known to the last digit, so it can be tested for:

1. :mod:`fedsec.robust.gate`: does the update hold as much noise as it must, and not much more than signal explains?
2. :mod:`fedsec.robust.spectrum`: do several clients agree on a direction that the others do not take?
3. :mod:`fedsec.robust.accumulated`: do they over many rounds, or does one push on and on? That is a suspicion, not a rejection.

At most ``view.num_byzantine`` clients are rejected, those with the highest scores; if the gate alone finds more, the round fails closed. The rule is
deterministic and changes nothing that it is given.

Source: design note ROBUST, "Under DP noise: calibrated spectral screening"; documentation and figures: docs/screening.md.
"""

from __future__ import annotations

import math

import numpy as np

from fedsec.errors import ConfigError
from fedsec.robust.accumulated import MOST_LIFTED, ScreeningState, suspicions
from fedsec.robust.base import Matrix, Mode, RoundView, Vector, Verdict
from fedsec.robust.gate import Gate, gate_of
from fedsec.robust.hiding_room import hiding_room
from fedsec.robust.levels import DEFAULT_SETTINGS, FEWEST_CLIENTS, ScreeningSettings
from fedsec.robust.spectrum import Spectrum, outlying
from fedsec.robust.standing_out import NEARLY

__all__ = ["DEFAULT_SETTINGS", "SUSPICION", "ScreeningSettings", "ScreeningState", "screen"]

SUSPICION = "suspicion:"
"""Facts whose name begins so are suspicions over rounds, of the client id that follows."""


def screen(
    view: RoundView,
    *,
    state: ScreeningState | None = None,
    lifted: Matrix | None = None,
    settings: ScreeningSettings = DEFAULT_SETTINGS,
) -> tuple[Verdict, ScreeningState]:
    """Screen one round.

    Args:
        view: rows in sum form, with ``noise_stddev`` over 0.
        state: of the rounds before; None in the first.
        lifted: float [n, d], the same updates as seen in the space of the updates: on sketches ``fedsec.robust.whitening.lift``. In the open the rows
            are that already. None on sketches: rounds are compared by their products only, which shows less.
        settings: levels of the tests.

    Returns:
        The verdict, and the state for the next round. Scores of 1 and more are over the edge of a test; ``weights`` is None. ``failed`` is
        set where more than ``num_byzantine`` clients are outside the gate. Facts, lengths in noise units: ``least``, ``most`` (of a client of median
        size), ``typical_signal``, ``edge``, ``eigenvalue_1`` to ``_3``, ``crowded`` (clients on a side that is too full for a collusion), ``excess``
        (clients outside the gate beyond ``num_byzantine``), ``signal_seen``, ``room_with_noise``, ``room_without_noise``, ``room_over_rounds`` (see
        ``fedsec.robust.hiding_room``), ``within_rounds_edge``, ``within_rounds_eigenvalue``, ``over_rounds_edge``,
        ``over_rounds_eigenvalue`` (of the sums so far), and for each suspect ``suspicion:<client id>``, at least 1.

    Raises:
        ConfigError: no known noise.
    """
    if not view.noise_stddev > 0:
        raise ConfigError(
            "screening is calibrated on the noise of differential privacy, and there is none", field="robust.rule", mend='use "auto"'
        )
    before = state if state is not None else ScreeningState.empty()
    if not view.num_clients:
        return Verdict(accepted=np.zeros(0, dtype=np.bool_), scores=np.zeros(0)), before
    rows = view.vectors.astype(np.float64) / view.noise_stddev
    sizes = view.batch_sizes / np.median(view.batch_sizes)
    gram = rows @ rows.T
    gate = gate_of(gram.diagonal().copy(), rows.shape[1], sizes, tail=settings.gate_tail, allowance=settings.signal_allowance)
    # What is too long counts as if it were just long enough: it must not drown what others do.
    shrink = np.minimum(1.0, gate.most / np.maximum(gate.norms, gate.least))
    products = gram * np.outer(shrink, shrink)
    scores, reasons, facts = _judge(view, gate, products, sizes, settings)
    after = before.add(view.client_ids, products, rows.shape[1], _lifted(view, rows, lifted, shrink))
    suspects, measured = suspicions(
        after,
        dict(zip(view.client_ids, sizes.tolist(), strict=True)),
        most=view.num_byzantine,
        settings=settings,
    )
    facts |= _room(view, products, after, settings)
    facts |= measured | {f"{SUSPICION}{name}": value for name, value in suspects.items() if value >= 1}
    return _verdict(view, scores, reasons, facts), after


def _lifted(view: RoundView, rows: Matrix, lifted: Matrix | None, shrink: Vector) -> Matrix | None:
    """Lifted rows in noise units, or None where there are none or they are too many."""
    if view.mode is Mode.OPEN:
        values = rows
    elif lifted is None:
        return None
    else:
        if lifted.shape != (view.num_clients, view.dimension):
            raise ValueError(f"lifted rows are {lifted.shape}, expected {(view.num_clients, view.dimension)}")
        values = lifted / view.noise_stddev
    return values * shrink[:, None] if values.size <= MOST_LIFTED else None


def _judge(
    view: RoundView, gate: Gate, products: Matrix, sizes: Vector, settings: ScreeningSettings
) -> tuple[Vector, dict[int, str], dict[str, float]]:
    """Gate and directions: scores, reasons by index, facts."""
    scores = gate.scores.copy()
    outside = scores >= 1
    reasons = {int(index): gate.reason(int(index)) for index in np.flatnonzero(outside)}
    facts = {"least": gate.least, "most": float(np.median(gate.most)), "typical_signal": gate.typical_signal}
    facts["excess"] = float(max(0, len(reasons) - view.num_byzantine)) if view.num_byzantine else 0.0
    if view.num_byzantine < 1 or view.num_clients < FEWEST_CLIENTS:
        return scores, reasons, facts
    columns = view.vectors.shape[1]
    inner = products.copy()
    np.fill_diagonal(inner, 0.0)
    spectrum = outlying(
        inner, sizes, unit=math.sqrt(columns), columns=columns, most=view.num_byzantine, settings=settings, left_out=outside
    )
    found = np.flatnonzero(spectrum.scores >= 1)
    reasons = {int(index): _direction_reason(spectrum, int(index), settings) for index in found} | reasons
    facts |= {"edge": spectrum.edge, "crowded": float(spectrum.crowded)}
    facts |= {f"eigenvalue_{rank + 1}": float(value) for rank, value in enumerate(spectrum.eigenvalues[:3])}
    return np.maximum(scores, spectrum.scores), reasons, facts


def _direction_reason(spectrum: Spectrum, index: int, settings: ScreeningSettings) -> str:
    return (
        f"{spectrum.scores[index] * settings.deviations:.1f} deviations from the others along a shared direction of strength"
        f" {spectrum.eigenvalue_of[index]:.0f}, where noise reaches {spectrum.edge:.0f}; {settings.deviations:g} deviations are allowed"
    )


def _room(view: RoundView, products: Matrix, after: ScreeningState, settings: ScreeningSettings) -> dict[str, float]:
    """What colluders could hide so far, and the signal that honest clients show, both as pushes of all of them in noise units of the update."""
    columns = view.vectors.shape[1]
    agreement = float(products.sum() - np.trace(products))
    facts = {"signal_seen": math.sqrt(max(0.0, agreement) * view.dimension / columns)}
    if view.num_clients >= FEWEST_CLIENTS and view.num_byzantine:
        room = hiding_room(
            num_clients=view.num_clients,
            num_byzantine=view.num_byzantine,
            num_columns=columns,
            dimension=view.dimension,
            rounds=after.rounds,
            lifted=after.sums.shape[1] > 0,
            settings=settings,
        )
        facts |= {
            "room_with_noise": room.with_noise,
            "room_without_noise": room.without_noise,
            "room_over_rounds": room.over_rounds,
        }
    return facts


def _verdict(view: RoundView, scores: Vector, reasons: dict[int, str], facts: dict[str, float]) -> Verdict:
    """At most f are rejected, the highest scores first; what is over the edge beyond that counts as just under it."""
    over = sorted(reasons, key=lambda index: (-scores[index], index))
    accepted = np.ones(view.num_clients, dtype=np.bool_)
    accepted[over[: view.num_byzantine]] = False
    scores[over[view.num_byzantine :]] = NEARLY
    failed = ""
    if facts["excess"]:
        outside = view.num_byzantine + round(facts["excess"])
        failed = f"{outside} of {view.num_clients} clients are outside the gate, and at most {view.num_byzantine} can be hostile"
    return Verdict(
        accepted=accepted,
        scores=scores,
        reasons={view.client_ids[index]: reasons[index] for index in over[: view.num_byzantine]},
        facts=facts,
        failed=failed,
    )
