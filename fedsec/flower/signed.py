"""The server's signature on every message that a ClientApp acts on: put on in one place, checked in one place.

1. :class:`SignedGrid` is the only way of a certified server to its nodes: whatever is pushed through it is signed, so no kind of request can be
   forgotten. Equal requests (a broadcast) are signed once.
2. The signature covers the message type, Flower's run, the time, and every record: names, types and values. Of the model it covers
   ``model_hash`` in the record ``config``; ``records.read_request``, the only way to the arrays, holds them against it.
3. Where it goes is not covered: the same bytes are sent to all. A fellow node that sends them on repeats a question of the server's.
4. A client takes a signature by a certificate of a *server* of its federation under its pinned root, valid now and not revoked, made in
   the last twelve hours (Flower keeps no message longer), for the run that it is in. Everything else is refused before anything runs.

Source: design note IDENTITY; FLOWER, "Holes inside a federation of authenticated nodes".
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedsec.codec import digest
from fedsec.errors import CertificateError, SignatureError
from fedsec.flower.grid import WaitingGrid
from fedsec.identity.intermediates import AcceptedIntermediates
from fedsec.identity.names import Role
from fedsec.identity.revocation import RevocationList
from fedsec.identity.verify import BACKDATE, VerifiedPeer, verify_peer
from fedsec.signing import SIGNATURE_BYTES, Signer, Verify, verify_signature

SIGNATURE_RECORD = "fedsec.server-signature"
"""Name of the record."""

REQUEST_LABEL = "fedsec/request/v1/server"
"""What the signature stands under."""

_CONTENT_LABEL = "fedsec/request/v1/content"
_MODEL = "model"
MAX_AGE = timedelta(hours=12)
"""How long a signed request may be under way: the longest that Flower keeps a message."""

_MAX_CERTIFICATE_BYTES = 1 << 13
_KEYS = {"certificate": bytes, "intermediate": bytes, "signature": bytes, "signed_at": int}

VerifyPeer = Callable[..., VerifiedPeer]


@dataclass(frozen=True, kw_only=True)
class ServerIdentity:
    """What a server signs with.

    Attributes:
        signer: of its key.
        certificate_der: for that key.
        intermediate_der: issuer of the certificate.
    """

    signer: Signer = field(repr=False)
    certificate_der: bytes
    intermediate_der: bytes


@dataclass(frozen=True, kw_only=True)
class Trust:
    """Whose signature a client takes.

    Attributes:
        root_der: the pinned root.
        federation: the trust domain.
        server_name: the one server; None: any of the federation.
        revoked: the revocation list that counts now; None: there is none, and a revoked server is heard until its certificate ends.
        accepted: the root's newest statement of its intermediates; None: it never made one that came here.
    """

    root_der: bytes
    federation: str
    server_name: str | None = None
    revoked: RevocationList | None = None
    accepted: AcceptedIntermediates | None = None


def sign_request(message: Message, identity: ServerIdentity, *, flower_run_id: int, signed_at: datetime) -> ConfigRecord:
    """The record to add to a message under :data:`SIGNATURE_RECORD`; it fits every message of equal type and content.

    Args:
        message: whole, without signature.
        identity: the server's.
        flower_run_id: Flower's id of the run that the message is sent in.
        signed_at: aware.

    Raises:
        SignatureError: a record that no request of this protocol has.
    """
    at = int(signed_at.timestamp())
    return _sign(_signed_bytes(message.metadata.message_type, message.content, flower_run_id, at), identity, at)


def verify_request(
    message: Message, trust: Trust, *, flower_run_id: int, now: datetime, verify: Verify = verify_signature, check_peer: VerifyPeer = verify_peer
) -> VerifiedPeer:  # fmt: skip
    """Check the server's signature on a request. The arrays in it are held against ``model_hash`` by ``records.read_request``.

    Args:
        message: as received.
        trust: whose signature counts.
        flower_run_id: the run that the receiving node says it is in.
        now: aware.
        verify: checks signatures.
        check_peer: checks certificates, as ``verify_peer``.

    Returns:
        The server that signed.

    Raises:
        SignatureError: no signature, one for other content, another type or run, from the future, or too old.
        CertificateError: not the certificate of the server, now; or (RevokedError) a revoked one.
    """
    fields = _read(message)
    at = datetime.fromtimestamp(fields["signed_at"], UTC)
    peer = check_peer(
        fields["certificate"],
        intermediate_der=fields["intermediate"],
        root_der=trust.root_der,
        federation=trust.federation,
        role=Role.SERVER,
        now=now,
        accepted=trust.accepted,
    )
    if trust.revoked is not None:
        trust.revoked.check(peer.serial_number)
    if trust.server_name is not None and peer.name.name != trust.server_name:
        raise CertificateError(f"the request is signed by the server {peer.name.name}, this client follows {trust.server_name}")
    signed = _signed_bytes(message.metadata.message_type, message.content, flower_run_id, fields["signed_at"])
    try:
        verify(peer.public_key, REQUEST_LABEL, signed, fields["signature"])
    except SignatureError:
        kind = message.metadata.message_type[:60]
        raise SignatureError(f"the {kind} request is not what the server signed, or was signed for another run") from None
    if at > now + BACKDATE or at < now - MAX_AGE:
        raise SignatureError(
            f"the request was signed at {at:%Y-%m-%d %H:%M:%S} UTC, which is not about now; set this machine's clock if it is wrong"
        )
    return peer


def _read(message: Message) -> dict[str, Any]:
    record = message.content.config_records.get(SIGNATURE_RECORD) if message.has_content() else None
    if record is None:
        raise SignatureError(f"the {message.metadata.message_type[:60]} request carries no signature of the server")
    if set(record) != set(_KEYS) or any(type(record[key]) is not kind for key, kind in _KEYS.items()):
        raise SignatureError("the server's signature is malformed")
    fields: dict[str, Any] = dict(record)
    if len(fields["signature"]) != SIGNATURE_BYTES or not 0 <= fields["signed_at"] < 1 << 33:
        raise SignatureError("the server's signature is malformed")
    if max(len(fields["certificate"]), len(fields["intermediate"])) > _MAX_CERTIFICATE_BYTES:
        raise SignatureError("the server's signature holds a certificate that is too long")
    return fields


def _sign(signed: bytes, identity: ServerIdentity, at: int) -> ConfigRecord:
    return ConfigRecord(
        {
            "certificate": identity.certificate_der,
            "intermediate": identity.intermediate_der,
            "signature": identity.signer.sign(REQUEST_LABEL, signed),
            "signed_at": at,
        }
    )


def _signed_bytes(message_type: str, content: RecordDict, flower_run_id: int, at: int) -> bytes:
    """What is signed: 32 bytes that stand for type, run, time and all records but the signature."""
    parts = [message_type.encode(), str(flower_run_id).encode(), str(at).encode()]
    arrays, configs = content.array_records, content.config_records
    for name in sorted(content):
        if name == SIGNATURE_RECORD:
            continue
        if name in configs:
            parts += [b"config", name.encode(), _record_bytes(configs[name])]
        elif name in arrays and name == _MODEL and _names_model(configs):
            parts += [b"arrays", name.encode()]  # by model_hash in the record config
        else:
            raise SignatureError(f"a request holds a record {name[:60]!r} that this protocol does not know, or a model without its hash")
    return digest(_CONTENT_LABEL, *parts)


def _names_model(configs: Any) -> bool:
    config = configs.get("config")
    return config is not None and isinstance(config.get("model_hash"), str) and bool(config["model_hash"])


def _record_bytes(record: ConfigRecord) -> bytes:
    return digest(_CONTENT_LABEL, *(part for key in sorted(record) for part in (key.encode(), _value_bytes(record[key]))))


def _value_bytes(value: Any) -> bytes:
    """One encoding for each value and type: True is not 1, 1 is not 1.0."""
    if isinstance(value, bytes):
        return b"y" + value
    if isinstance(value, str):
        return b"s" + value.encode()
    if isinstance(value, bool):
        return b"b1" if value else b"b0"
    if isinstance(value, int):
        return b"i" + str(value).encode()
    if isinstance(value, float):
        return b"f" + value.hex().encode()
    if isinstance(value, list):
        return b"l" + digest(_CONTENT_LABEL, *map(_value_bytes, value))
    raise SignatureError(f"a request holds a value of type {type(value).__name__[:40]}")


class SignedGrid(WaitingGrid):
    """A ``Grid`` that signs whatever is pushed through it.

    Args:
        inner: the way to the nodes.
        identity: gives the server's identity, asked at each push, so that a renewed certificate is used.
        now: gives the time, aware.
    """

    def __init__(
        self, inner: Grid, identity: Callable[[], ServerIdentity], now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._inner = inner
        self._identity = identity
        self._now = now

    def set_run(self, run: Any) -> None:
        """See ``Grid``."""
        self._inner.set_run(run)

    @property
    def run(self) -> Any:
        """See ``Grid``."""
        return self._inner.run

    def get_node_ids(self) -> Iterable[int]:
        """See ``Grid``."""
        return self._inner.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Sign, each content once, and push; raises as :func:`sign_request` and the inner grid."""
        identity, at, run_id = self._identity(), int(self._now().timestamp()), self._inner.run.run_id
        known: dict[bytes, ConfigRecord] = {}
        signed = list(messages)
        for message in signed:
            content = _signed_bytes(message.metadata.message_type, message.content, run_id, at)
            if content not in known:
                known[content] = _sign(content, identity, at)
            message.content[SIGNATURE_RECORD] = known[content]
        return self._inner.push_messages(signed)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See ``Grid``."""
        return self._inner.pull_messages(message_ids)

    def wait_for_replies(self, message_ids: Collection[str], timeout_s: float) -> None:
        """See :class:`WaitingGrid`; a pause where the inner grid cannot wait."""
        if isinstance(self._inner, WaitingGrid):
            self._inner.wait_for_replies(message_ids, timeout_s)

    def never_answered(self, message_ids: set[str]) -> set[str]:
        """Messages that a simulation lost on purpose."""
        known = getattr(self._inner, "never_answered", None)
        return known(message_ids) if known is not None else set()
