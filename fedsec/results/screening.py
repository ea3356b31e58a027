"""What is kept of the screening of one round: scores, who was rejected and why, and what reputation made of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from fedsec.jsonfields import INTEGER, NUMBER, NUMBER_OR_NONE, TEXT, Table, build, dump, list_of, map_of, optional
from fedsec.results.fields import REJECTIONS, check_counts, pairs_of

MODES = ("open", "sketch")


@dataclass(frozen=True, kw_only=True)
class ScreeningRow:
    """Screening of one round.

    Attributes:
        rule: its name.
        mode: "open" (the server held updates) or "sketch" (it held sketches).
        scores: client id → score of each client that was judged, those in quarantine included; 1 is the edge of rejection. Never NaN.
        rejected: (client_id, reason) of each client that the rule rejected, sorted.
        quarantined: clients with weight 0 because of earlier rounds, sorted.
        events: (client_id, what) of each change of standing after this round.
        suspects: clients at or over the edge, before any limit on how many may be rejected.
        facts: what the rule measured, by name.
        failed: why the round failed closed; empty if it did not.
        aggregate_error: distance of the aggregate from the mean of the honest updates, over the spread of the honest (root mean square
            distance of an honest update from their mean). Simulation only; None where unknown.
        honest: honest clients among those judged. Simulation only; None where unknown.
    """

    rule: str
    mode: str
    scores: dict[str, float]
    rejected: tuple[tuple[str, str], ...] = ()
    quarantined: tuple[str, ...] = ()
    events: tuple[tuple[str, str], ...] = ()
    suspects: int = 0
    facts: dict[str, float] = field(default_factory=dict)
    failed: str = ""
    aggregate_error: float | None = None
    honest: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode is {self.mode!r}, not one of {MODES}")
        if any(math.isnan(score) for score in self.scores.values()):
            raise ValueError("a score is never NaN")
        if self.aggregate_error is not None and not self.aggregate_error >= 0.0:
            raise ValueError(f"aggregate_error is at least 0 or unknown (None), not {self.aggregate_error!r}")
        check_counts(suspects=self.suspects, honest=self.honest or 0)

    @property
    def kept_out(self) -> dict[str, str]:
        """Client id → why its update is not in the aggregate: rejected by the rule, or in quarantine."""
        return {**dict.fromkeys(self.quarantined, "in quarantine"), **dict(self.rejected)}

    def to_json(self) -> dict[str, Any]:
        """Plain values, strict JSON."""
        return dump(_SCREENING, self)

    @classmethod
    def from_json(cls, value: Any, what: str = "screening") -> ScreeningRow:
        """Inverse of :meth:`to_json`.

        Raises:
            DecodeError: not the JSON of this record.
        """
        return build(cls, _SCREENING, value, what)


_SCREENING: Table = {
    "rule": TEXT,
    "mode": TEXT,
    "scores": map_of(NUMBER),
    "rejected": REJECTIONS,
    "quarantined": list_of(TEXT),
    "events": pairs_of("client_id", "what"),
    "suspects": INTEGER,
    "facts": map_of(NUMBER),
    "failed": TEXT,
    "aggregate_error": NUMBER_OR_NONE,
    "honest": optional(INTEGER),
}
