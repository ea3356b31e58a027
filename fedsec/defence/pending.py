"""What was judged of a round under way, in a form that can be kept beside what a crash may cut off, and read back strictly."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Self

from fedsec.errors import DecodeError
from fedsec.jsonfields import INTEGER, NUMBER, NUMBER_OR_NONE, TEXT, Codec, Table, build, dump, list_of, map_of
from fedsec.robust.accumulated import ScreeningState


@dataclass(kw_only=True)
class Pending:
    """What was judged of the round under way; plain values, so that it can be kept beside what a crash may cut off.

    Attributes:
        server_round: which round.
        scores: client id → score.
        accepted: clients that count.
        reasons: client id → why it does not.
        facts: what the rule measured.
        suspicions: client id → score over rounds, 1 is the edge of quarantine.
        failed: why nobody counts; empty if somebody does.
        screening: state of the screening after this round, as JSON; None for other rules.
        aggregate_error: distance of the aggregate from the mean of the honest, in spreads of theirs; None where nobody can know it.
    """

    server_round: int
    scores: dict[str, float] = field(default_factory=dict)
    accepted: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    facts: dict[str, float] = field(default_factory=dict)
    suspicions: dict[str, float] = field(default_factory=dict)
    failed: str = ""
    screening: Any = None
    aggregate_error: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, strict JSON."""
        return dump(_PENDING, self)

    @classmethod
    def from_json(cls, kept: Any, *, server_round: int, client_ids: Collection[str]) -> Self:
        """Inverse of :meth:`to_json`.

        Args:
            kept: as :meth:`to_json` gave it.
            server_round: the round that goes on.
            client_ids: of the federation.

        Raises:
            DecodeError: it is something else.
        """
        pending = build(cls, _PENDING, kept, "judged")
        if pending.screening is not None:
            ScreeningState.from_json(pending.screening)
        named = {*pending.scores, *pending.accepted, *pending.reasons, *pending.suspicions}
        if pending.server_round != server_round or not named <= set(client_ids):
            raise DecodeError("judged: of another round, or of clients that the federation does not have")
        if any(math.isnan(value) for value in (*pending.scores.values(), *pending.suspicions.values())):
            raise DecodeError("judged: a score is never NaN")
        return pending


_PENDING: Table = {
    "server_round": INTEGER,
    "scores": map_of(NUMBER),
    "accepted": Codec(list, lambda value, what: list(list_of(TEXT).read(value, what))),
    "reasons": map_of(TEXT),
    "facts": map_of(NUMBER),
    "suspicions": map_of(NUMBER),
    "failed": TEXT,
    "screening": Codec(lambda value: value, lambda value, _what: value),
    "aggregate_error": NUMBER_OR_NONE,
}
