"""What secure aggregation puts into Flower's messages: canonical bytes beside the ordinary request, and nothing else of a client.

1. A stage's message is ``train.masked_input`` or ``query.<stage>``; its body is one canonical record of ``fedsec.secagg.messages``.
2. A reply is a body and nothing else: no client id, no metrics, no sizes. Who speaks is in the signature.
3. Before the first round each client gets the roster: the CA's signed list, the certificates of its own cohort, and the log's proof that
   the list is in the log. It keeps its cohort and the log's head.
"""

from __future__ import annotations

from dataclasses import dataclass

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from fedsec.errors import DecodeError, PeerError
from fedsec.flower.records import RoundRequest, make_request
from fedsec.secagg.config import Member
from fedsec.secagg.labels import IDENTITY_KEY_BYTES, MAX_COHORT, SIGNATURE_BYTES, Phase
from fedsec.secagg.wire import Blob, Fixed, ListOf, Part, Record, UInt

ROSTER = "query.roster"

MAX_BODY_BYTES = 1 << 29
MAX_ROSTER_BYTES = 1 << 24
SERIAL_BYTES = 20
"""Longest serial number of a certificate: RFC 5280 4.1.2.2."""

_CERTIFICATE = Blob(1 << 13)


def stage_type(phase: Phase) -> str:
    """Flower's message type of a stage."""
    return f"train.{phase}" if phase is Phase.MASKED_INPUT else f"query.{phase}"


STAGES = (Phase.ADVERTISE_KEYS, Phase.SHARE_KEYS, Phase.MASKED_INPUT, Phase.SKETCH, Phase.CONSISTENCY_CHECK, Phase.UNMASK)
"""The stages of a round without BLAME, in order."""


@dataclass(frozen=True, kw_only=True)
class RosterOffer(Record):
    """What a client needs to know its cohort.

    Attributes:
        roster: the CA's list, canonical.
        signature: of the intermediate CA under it.
        intermediate: its certificate, DER.
        server_certificate: DER.
        certificates: of the receiver's cohort, in order, DER.
        log_proof: bundle that proves the list to be in the log, from the head that the client kept.
    """

    TYPE = 70
    FIELDS = (
        ("roster", Blob(MAX_ROSTER_BYTES)),
        ("signature", Fixed(SIGNATURE_BYTES)),
        ("intermediate", _CERTIFICATE),
        ("server_certificate", _CERTIFICATE),
        ("certificates", ListOf(_CERTIFICATE, MAX_COHORT)),
        ("log_proof", Blob(1 << 16)),
    )
    roster: bytes
    signature: bytes
    intermediate: bytes
    server_certificate: bytes
    certificates: tuple[bytes, ...]
    log_proof: bytes


@dataclass(frozen=True, kw_only=True)
class RosterReply(Record):
    """Whether the list was taken; if not, the size of the log that the client saw last, so that a proof from there can be made."""

    TYPE = 71
    FIELDS = (("accepted", UInt(1)), ("log_size", UInt(8)))
    accepted: int
    log_size: int


@dataclass(frozen=True, kw_only=True)
class KeptCohort(Record):
    """What a client makes of the roster: its own cohort.

    Attributes:
        cohort: its number.
        num_cohorts: of the federation.
        num_clients: of the federation.
        index: the client's place in its cohort.
        server_key: identity key of the server that may send CONFIG.
        members: of the cohort, in order.
        serial_numbers: of the certificates with which they were checked, in the same order, 20 bytes each: what a revocation list names.
        not_before_s: begin of the list's period, seconds since 1970.
        not_after_s: its end.
    """

    TYPE = 72
    FIELDS = (
        ("cohort", UInt(2)),
        ("num_cohorts", UInt(2)),
        ("num_clients", UInt(4)),
        ("index", UInt(2)),
        ("server_key", Fixed(IDENTITY_KEY_BYTES)),
        ("members", ListOf(Part(Member), MAX_COHORT)),
        ("serial_numbers", ListOf(Fixed(SERIAL_BYTES), MAX_COHORT)),
        ("not_before_s", UInt(8)),
        ("not_after_s", UInt(8)),
    )
    cohort: int
    num_cohorts: int
    num_clients: int
    index: int
    server_key: bytes
    members: tuple[Member, ...]
    serial_numbers: tuple[bytes, ...]
    not_before_s: int
    not_after_s: int


def make_stage_request(
    request: RoundRequest, body: bytes, *, node_id: int, message_type: str, arrays: ArrayRecord | None = None
) -> Message:
    """One stage's message to one node."""
    message = make_request(request, node_id=node_id, message_type=message_type, arrays=arrays)
    message.content["secagg"] = ConfigRecord({"body": body})
    return message


def make_stage_reply(message: Message, body: bytes) -> Message:
    """A client's answer: the body and nothing else."""
    return Message(RecordDict({"secagg": ConfigRecord({"body": body})}), reply_to=message)


def read_body(message: Message) -> bytes:
    """The canonical bytes of a stage's request.

    Raises:
        DecodeError: there are none.
    """
    record = message.content.config_records.get("secagg")
    body = record.get("body") if record is not None else None
    if not isinstance(body, bytes) or len(body) > MAX_BODY_BYTES:
        raise DecodeError("the message has no body, or one that is too long")
    return body


def read_reply(message: Message, *, sender: str, phase: str) -> bytes:
    """The body of a reply.

    Raises:
        PeerError: an error reply, or anything but one body.
    """
    if message.has_error():
        raise PeerError(sender, phase, f"error reply {message.error.code}: {(message.error.reason or '')[:300]}")
    content = message.content
    if set(content.keys()) != {"secagg"} or set(content.config_records.get("secagg", {})) != {"body"}:
        raise PeerError(sender, phase, "the reply holds something else than a body")
    try:
        return read_body(message)
    except DecodeError as error:
        raise PeerError(sender, phase, str(error)) from None
