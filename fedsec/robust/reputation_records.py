"""The records of reputation: what it is told of a round, what it keeps of a client, what it says has changed.

All are frozen; the ones that are kept have one JSON form each, read back strictly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from fedsec.errors import DecodeError
from fedsec.jsonfields import FLAG, INTEGER, TEXT, Codec, Table
from fedsec.robust.base import Verdict

EDGE = 1.0
"""Score of a verdict at which a client is rejected."""

SHORTEST_EVIDENCE = 5
"""Fewest rounds of evidence behind a first quarantine: nobody is banned on one round."""


class Standing(StrEnum):
    """Where a client stands."""

    TRUSTED = "trusted"
    """As everybody starts."""
    QUARANTINED = "quarantined"
    """Weight 0, still scored."""
    PROBATION = "probation"
    """Back with its weight; less evidence brings it back into quarantine."""
    EXCLUDED = "excluded"
    """Proven fault: out for the rest of the run."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault that the client's own message proves.

    Attributes:
        reason: what it shows, for people.
        evidence: where it is kept: a path in the result folder or an entry of the log; empty if only the server saw it.
    """

    reason: str
    evidence: str = ""


@dataclass(frozen=True, kw_only=True)
class RoundObservation:
    """One round as reputation is told of it.

    A client without a score was absent, or not asked: nothing is learned about it. Whoever leaves a round out neither gains nor loses by it.

    Attributes:
        server_round: from 1, higher than that of the observation before.
        scores: client id → score of each client that was judged, those in quarantine included; 1 or more: over the edge. Not NaN.
        suspicions: client id → score of evidence accumulated over rounds; 1 or more: suspect. Counts for clients that have a score. Not NaN.
        faults: client id → proven fault; of anybody.
    """

    server_round: int
    scores: Mapping[str, float] = field(default_factory=dict)
    suspicions: Mapping[str, float] = field(default_factory=dict)
    faults: Mapping[str, Fault] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.server_round < 1:
            raise ValueError(f"rounds count from 1, not {self.server_round!r}")
        if any(math.isnan(score) for score in (*self.scores.values(), *self.suspicions.values())):
            raise ValueError("a score is never NaN")

    @classmethod
    def from_verdict(
        cls,
        server_round: int,
        client_ids: tuple[str, ...],
        verdict: Verdict,
        *,
        suspicions: Mapping[str, float] | None = None,
        faults: Mapping[str, Fault] | None = None,
    ) -> RoundObservation:
        """The observation of a round that one rule judged; ``client_ids`` are those of its view, in that order."""
        scores = dict(zip(client_ids, verdict.scores.tolist(), strict=True))
        return cls(server_round=server_round, scores=scores, suspicions=suspicions or {}, faults=faults or {})

    def is_rejected(self, client_id: str) -> bool:
        """Whether its update was over the edge in this round."""
        return self.scores[client_id] >= EDGE

    def is_suspect(self, client_id: str) -> bool:
        """Whether evidence over rounds speaks against it."""
        return self.suspicions.get(client_id, 0.0) >= EDGE


@dataclass(frozen=True, kw_only=True)
class ReputationSettings:
    """How reputation judges.

    Attributes:
        num_byzantine: most clients in quarantine at once.
        quarantine_rounds: clean rounds that a first quarantine takes.
        over_rounds: whether clients are judged over rounds at all; without it only proven faults count.
        rejected_points: evidence of a round over the edge.
        suspected_points: evidence of a round in which only evidence accumulated over rounds speaks against a client.
        threshold: evidence that leads to quarantine; a clean round takes one point away.
        longest_factor: each further quarantine takes twice as long as the one before, up to so many times the first.
    """

    num_byzantine: int
    quarantine_rounds: int = 5
    over_rounds: bool = True
    rejected_points: int = 3
    suspected_points: int = 2
    threshold: int = 15
    longest_factor: int = 8

    def __post_init__(self) -> None:
        if self.num_byzantine < 0 or self.quarantine_rounds < 1 or self.longest_factor < 1:
            raise ValueError("num_byzantine is at least 0, quarantine_rounds and longest_factor are at least 1")
        if not 1 <= self.suspected_points <= self.rejected_points:
            raise ValueError("a suspicion counts for 1 point at least, and for no more than a rejection")
        if self.threshold < SHORTEST_EVIDENCE * self.rejected_points:
            raise ValueError(f"the threshold is at least {SHORTEST_EVIDENCE} rejections: nobody is banned on less")

    @property
    def probation_evidence(self) -> int:
        """Evidence that a client comes back with; it is on probation until it is worked off."""
        return self.threshold // 2

    @property
    def most_evidence(self) -> int:
        """Evidence never counts for more, while a client waits for a place in quarantine."""
        return 2 * self.threshold

    def term(self, offences: int) -> int:
        """Clean rounds that the quarantine with this number (from 1) takes."""
        return self.quarantine_rounds * min(1 << min(offences - 1, 30), self.longest_factor)


@dataclass(frozen=True, kw_only=True)
class ClientRecord:
    """What is known of one client.

    Attributes:
        standing: where it stands.
        evidence: points of the cumulative sum, 0 to ``most_evidence``.
        rounds: rounds in which it was scored.
        rejections: those of them in which it was over the edge.
        suspicions: those of them in which only accumulated evidence spoke against it.
        offences: quarantines so far, this one included.
        term: clean rounds that the present quarantine takes; 0 outside.
        served: those of them that are done.
        since: round after which it came to stand so; 0: from the start.
        reason: of the exclusion; else empty.
        evidence_at: where the evidence of the exclusion is kept; else empty.
    """

    standing: Standing = Standing.TRUSTED
    evidence: int = 0
    rounds: int = 0
    rejections: int = 0
    suspicions: int = 0
    offences: int = 0
    term: int = 0
    served: int = 0
    since: int = 0
    reason: str = ""
    evidence_at: str = ""

    def __post_init__(self) -> None:
        counts = (self.evidence, self.rounds, self.rejections, self.suspicions, self.offences, self.term, self.served, self.since)
        if min(counts) < 0 or self.rejections + self.suspicions > self.rounds:
            raise ValueError("counts of a client are at least 0, and rejections are among its rounds")
        if (self.standing is Standing.QUARANTINED) != (self.term > 0) or self.served > max(0, self.term - 1):
            raise ValueError("a client in quarantine, and no other, has a term that is not yet served")
        if self.standing is not Standing.TRUSTED and self.since < 1:
            raise ValueError("a change of standing has a round")
        if self.standing in (Standing.QUARANTINED, Standing.PROBATION) and self.offences < 1:
            raise ValueError("quarantine and probation follow an offence")

    @property
    def is_blocked(self) -> bool:
        """Whether its weight is 0."""
        return self.standing in (Standing.QUARANTINED, Standing.EXCLUDED)


@dataclass(frozen=True, kw_only=True)
class Event:
    """A change of standing.

    Attributes:
        client_id: whose.
        server_round: after which round; it holds from the next one on.
        standing: the new one.
        what: in words, the reason included.
        evidence_at: where the evidence of a proven fault is kept; else empty.
    """

    client_id: str
    server_round: int
    standing: Standing
    what: str
    evidence_at: str = ""


def _read_standing(value: object, what: str) -> Standing:
    try:
        return Standing(TEXT.read(value, what))
    except ValueError:
        raise DecodeError(f"{what} is not a standing") from None


RECORD_FIELDS: Table = {
    "standing": Codec(str, _read_standing),
    **dict.fromkeys(("evidence", "rounds", "rejections", "suspicions", "offences", "term", "served", "since"), INTEGER),
    "reason": TEXT,
    "evidence_at": TEXT,
}
SETTINGS_FIELDS: Table = {
    "over_rounds": FLAG,
    **dict.fromkeys(("num_byzantine", "quarantine_rounds", "rejected_points", "suspected_points", "threshold", "longest_factor"), INTEGER),
}
