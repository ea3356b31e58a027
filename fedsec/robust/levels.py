"""The levels that screening's tests are cut at: one place for the tests, and for what is said of them before a run."""

from __future__ import annotations

from dataclasses import dataclass

FEWEST_CLIENTS = 6
"""With fewer clients the gate alone decides: no majority stands out from noise."""


@dataclass(frozen=True, kw_only=True)
class ScreeningSettings:
    """Levels of the tests.

    Attributes:
        gate_tail: chance of an honest client to fall outside the gate, on each side.
        signal_allowance: how many times the typical squared signal a client of median size may show before the gate calls it too much.
        edge_tail: chance of pure noise to show an eigenvalue above the edge; a key of ``fedsec.robust.tails.TRACY_WIDOM``.
        deviations: robust deviations from the others, along a direction above the edge, at which a client is rejected.
    """

    gate_tail: float = 5e-4
    signal_allowance: float = 6.0
    edge_tail: float = 0.01
    deviations: float = 4.0


DEFAULT_SETTINGS = ScreeningSettings()
