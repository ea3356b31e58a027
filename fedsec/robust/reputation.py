"""Who stays out, and for how long: what rounds say about clients, summed up over the run.

1. A *proven* fault excludes at once, for the rest of the run, and makes the client a candidate for revocation.
2. A *statistical* one is evidence, summed up over rounds: a rejection adds ``rejected_points``, a round in which only accumulated evidence speaks
   against the client ``suspected_points``, a clean round takes one away, and the sum never falls under 0. So nobody saves up good
   behaviour, and nobody is banned on one round: the threshold is at least five rejections.
3. At the threshold a client is quarantined: weight 0, still scored. It serves clean rounds; a round that speaks against it does not count. Then it
   is on probation, with its weight and half the evidence, until that is worked off. Each further quarantine takes twice as long, up to a limit.
4. At most ``num_byzantine`` clients are in quarantine at once. Most evidence goes first, then most rejections, then the lower client id; the
   others wait, and the rule goes on rejecting them round by round.
5. A client that is absent is not judged: its evidence stays, its quarantine does not pass.

Pure and deterministic: whole numbers only, so a resumed run comes to the same verdicts bit for bit.

Source: the one-sided cumulative sum of Page, "Continuous inspection schemes", Biometrika 41 (1954), on rejected or not (Reynolds and Stoumbos,
"A CUSUM chart for monitoring a proportion when inspecting continuously", J. Quality Technology 31 (1999)). How often it is wrong:
``fedsec.robust.false_alarms``. Design note ROBUST, "Three kinds of fault".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fedsec.errors import DecodeError
from fedsec.jsonfields import INTEGER, TEXT, Codec, Table, build, dump, map_of, read_object
from fedsec.robust.reputation_records import (
    RECORD_FIELDS,
    SETTINGS_FIELDS,
    ClientRecord,
    Event,
    Fault,
    ReputationSettings,
    RoundObservation,
    Standing,
)

FORMAT = "fedsec/reputation/v1"
_NEW = ClientRecord()


@dataclass(frozen=True, kw_only=True)
class Reputation:
    """The standing of every client after ``server_round`` rounds.

    Attributes:
        settings: how it judges.
        server_round: of the last observation; 0 before the first.
        clients: client id → what is known of it; who is not here is trusted.
    """

    settings: ReputationSettings
    server_round: int = 0
    clients: Mapping[str, ClientRecord] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.quarantined()) > self.settings.num_byzantine:
            raise ValueError(f"more than {self.settings.num_byzantine} clients are in quarantine")
        if any(record.evidence > self.settings.most_evidence for record in self.clients.values()):
            raise ValueError(f"evidence is at most {self.settings.most_evidence}")
        if any(record.since > self.server_round for record in self.clients.values()):
            raise ValueError("a standing began after the last round")

    @classmethod
    def initial(cls, settings: ReputationSettings) -> Reputation:
        """Before the first round: everybody is trusted."""
        return cls(settings=settings)

    def status(self, client_id: str) -> ClientRecord:
        """What is known of a client."""
        return _of(self.clients, client_id)

    def quarantined(self) -> frozenset[str]:
        """Clients with weight 0 that are still scored."""
        return self._standing(Standing.QUARANTINED)

    def excluded(self) -> dict[str, Fault]:
        """Clients with a proven fault, by id, with what proves it: out of the run, candidates for revocation."""
        names = sorted(self._standing(Standing.EXCLUDED))
        return {name: Fault(reason=self.clients[name].reason, evidence=self.clients[name].evidence_at) for name in names}

    def blocked(self) -> frozenset[str]:
        """Clients whose weight is 0 in the next round: in quarantine or excluded."""
        return frozenset(name for name, record in self.clients.items() if record.is_blocked)

    def observe(self, observation: RoundObservation) -> tuple[Reputation, tuple[Event, ...]]:
        """The reputation after one more round, and what changed, by client id.

        Raises:
            ValueError: the round is not after the last one.
        """
        if observation.server_round <= self.server_round:
            raise ValueError(f"round {observation.server_round} was observed after round {self.server_round}")
        clients = dict(self.clients)
        events = _exclude(clients, observation)
        if self.settings.over_rounds:
            judged = [name for name in observation.scores if _of(clients, name).standing is not Standing.EXCLUDED]
            for name in judged:
                clients[name], event = _judge(_of(clients, name), observation, name, self.settings)
                events += [event] if event is not None else []
            events += _quarantine(clients, judged, observation.server_round, self.settings)
        after = replace(self, server_round=observation.server_round, clients=clients)
        return after, tuple(sorted(events, key=lambda event: event.client_id))

    def to_json(self) -> dict[str, Any]:
        """Plain values, strict JSON."""
        return {"format": FORMAT, **dump(_REPUTATION, self)}

    @classmethod
    def from_json(cls, value: Any, what: str = "reputation") -> Reputation:
        """Inverse of :meth:`to_json`.

        Raises:
            DecodeError: not a reputation, one of another format, or one that contradicts itself.
        """
        fields = read_object({"format": TEXT, **_REPUTATION}, value, what)
        if fields.pop("format") != FORMAT:
            raise DecodeError(f"{what} is not of the format {FORMAT!r}")
        try:
            return cls(**fields)
        except ValueError as error:
            raise DecodeError(f"{what}: {error}") from None

    def _standing(self, standing: Standing) -> frozenset[str]:
        return frozenset(name for name, record in self.clients.items() if record.standing is standing)


def _of(clients: Mapping[str, ClientRecord], name: str) -> ClientRecord:
    """What is known of a client; whoever is not known yet is trusted."""
    return clients.get(name, _NEW)


def _exclude(clients: dict[str, ClientRecord], observation: RoundObservation) -> list[Event]:
    """Exclude whoever has a proven fault; the first one stays on record."""
    events = []
    for name, fault in observation.faults.items():
        record = _of(clients, name)
        if record.standing is Standing.EXCLUDED:
            continue
        clients[name] = replace(
            record,
            standing=Standing.EXCLUDED,
            term=0,
            served=0,
            since=observation.server_round,
            reason=fault.reason,
            evidence_at=fault.evidence,
        )
        events.append(_event(name, clients[name], f"excluded, proven fault: {fault.reason}"))
    return events


def _judge(
    record: ClientRecord, observation: RoundObservation, name: str, settings: ReputationSettings
) -> tuple[ClientRecord, Event | None]:
    """Add one round to what is known of a client; it may return from quarantine, or from probation."""
    rejected = observation.is_rejected(name)
    suspect = not rejected and observation.is_suspect(name)
    counts: dict[str, Any] = {
        "rounds": record.rounds + 1,
        "rejections": record.rejections + rejected,
        "suspicions": record.suspicions + suspect,
    }
    if record.standing is Standing.QUARANTINED:
        served = record.served + (not rejected and not suspect)
        if served < record.term:
            return replace(record, **counts, served=served), None
        what = f"back on probation after {record.term} clean rounds in quarantine"
        counts |= {"evidence": settings.probation_evidence, "term": 0, "served": 0, "since": observation.server_round}
        back = replace(record, **counts, standing=Standing.PROBATION)
        return back, _event(name, back, what)
    points = settings.rejected_points if rejected else settings.suspected_points if suspect else -1
    counts["evidence"] = min(max(0, record.evidence + points), settings.most_evidence)
    if record.standing is Standing.PROBATION and counts["evidence"] == 0:
        trusted = replace(record, **counts, standing=Standing.TRUSTED, since=observation.server_round)
        return trusted, _event(name, trusted, "trusted again, probation is over")
    return replace(record, **counts), None


def _quarantine(clients: dict[str, ClientRecord], judged: list[str], server_round: int, settings: ReputationSettings) -> list[Event]:
    """Fill the free places with whoever of the clients seen in this round has most evidence."""
    free = settings.num_byzantine - sum(record.standing is Standing.QUARANTINED for record in clients.values())
    due = [name for name in judged if not clients[name].is_blocked and clients[name].evidence >= settings.threshold]
    due.sort(key=lambda name: (-clients[name].evidence, -clients[name].rejections, name))
    events = []
    for name in due[: max(0, free)]:
        record = clients[name]
        offences = record.offences + 1
        clients[name] = replace(
            record, standing=Standing.QUARANTINED, offences=offences, term=settings.term(offences), served=0, since=server_round
        )
        seen = f"over the edge in {record.rejections} and suspect in {record.suspicions} of {record.rounds} rounds"
        events.append(_event(name, clients[name], f"quarantined for {clients[name].term} clean rounds: {seen}"))
    return events


def _event(name: str, record: ClientRecord, what: str) -> Event:
    return Event(client_id=name, server_round=record.since, standing=record.standing, what=what, evidence_at=record.evidence_at)


_REPUTATION: Table = {
    "settings": Codec(
        lambda settings: dump(SETTINGS_FIELDS, settings), lambda value, what: build(ReputationSettings, SETTINGS_FIELDS, value, what)
    ),
    "server_round": INTEGER,
    "clients": map_of(
        Codec(lambda record: dump(RECORD_FIELDS, record), lambda value, what: build(ClientRecord, RECORD_FIELDS, value, what))
    ),
}
