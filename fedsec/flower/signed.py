"""The server's signature on every message that a ClientApp acts on: put on in one place, checked in one place.

1. :class:`SignedGrid` is the only way of a certified server to its nodes: whatever is pushed through it is signed, so no kind of request can be
   forgotten. Equal requests (a broadcast) are signed once for all their nodes.
2. The signature covers the message type, Flower's run, the time, and every record: names, types and values. Of the model it covers
   ``model_hash`` in the record ``config``; ``records.read_request``, the only way to the arrays, holds them against it.
3. It covers where the message goes, too: the nodes that one content is sent to are the leaves of a Merkle tree whose root is signed, and each
   message has the way from its own leaf. So a question to one client is none to another, no client learns another's node id, and a
   broadcast costs one signature all the same.
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
from fedsec.errors import CertificateError, LogProofError, SignatureError
from fedsec.flower.grid import WaitingGrid
from fedsec.identity.intermediates import AcceptedIntermediates
from fedsec.identity.names import Role
from fedsec.identity.revocation import RevocationList
from fedsec.identity.verify import BACKDATE, VerifiedPeer, verify_peer
from fedsec.merkle import HASH_BYTES, inclusion_proofs, leaf_hash, merkle_root, root_above
from fedsec.signing import SIGNATURE_BYTES, Signer, Verify, verify_signature

SIGNATURE_RECORD = "fedsec.server-signature"
"""Name of the record."""

REQUEST_LABEL = "fedsec/request/v2/server"
"""What the signature stands under."""

_CONTENT_LABEL = "fedsec/request/v1/content"
_NODES_LABEL = "fedsec/request/v2/nodes"
_MODEL = "model"
MAX_AGE = timedelta(hours=12)
"""How long a signed request may be under way: the longest that Flower keeps a message."""

_MAX_CERTIFICATE_BYTES = 1 << 13
_KEYS = {"certificate": bytes, "intermediate": bytes, "signature": bytes, "signed_at": int, "index": int, "count": int, "path": bytes}
_MAX_NODES = 1 << 32
_MAX_PATH_BYTES = 32 * HASH_BYTES

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
    """The record to add to a message under :data:`SIGNATURE_RECORD`; it fits every message of equal type and content to the same node.

    Args:
        message: whole, without signature.
        identity: the server's.
        flower_run_id: Flower's id of the run that the message is sent in.
        signed_at: aware.

    Raises:
        SignatureError: a record that no request of this protocol has.
    """
    at = int(signed_at.timestamp())
    content = _signed_bytes(message.metadata.message_type, message.content, flower_run_id, at)
    node_id = message.metadata.dst_node_id
    return _sign(content, {node_id}, identity, at)[node_id]


def verify_request(
    message: Message, trust: Trust, *, node_id: int, flower_run_id: int, now: datetime, verify: Verify = verify_signature, check_peer: VerifyPeer = verify_peer
) -> VerifiedPeer:  # fmt: skip
    """Check the server's signature on a request. The arrays in it are held against ``model_hash`` by ``records.read_request``.

    Args:
        message: as received.
        trust: whose signature counts.
        node_id: of the receiving node: the message must be for it.
        flower_run_id: the run that the receiving node says it is in.
        now: aware.
        verify: checks signatures.
        check_peer: checks certificates, as ``verify_peer``.

    Returns:
        The server that signed.

    Raises:
        SignatureError: no signature, one for other content, another type, run or node, from the future, or too old.
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
        verify(peer.public_key, REQUEST_LABEL, _with_nodes(signed, fields["count"], _root_of(fields, node_id)), fields["signature"])
    except SignatureError:
        kind = message.metadata.message_type[:60]
        raise SignatureError(f"the {kind} request is not what the server signed, or was signed for another run or node") from None
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
    if (
        not 0 <= fields["index"] < fields["count"] <= _MAX_NODES
        or len(fields["path"]) > _MAX_PATH_BYTES
        or len(fields["path"]) % HASH_BYTES
    ):
        raise SignatureError("the server's signature is malformed")
    if max(len(fields["certificate"]), len(fields["intermediate"])) > _MAX_CERTIFICATE_BYTES:
        raise SignatureError("the server's signature holds a certificate that is too long")
    return fields


def _sign(content: bytes, node_ids: Collection[int], identity: ServerIdentity, at: int) -> dict[int, ConfigRecord]:
    """One signature for all nodes that the content goes to; the record of each."""
    nodes = sorted(set(node_ids))
    leaves = [_leaf(node) for node in nodes]
    signature = identity.signer.sign(REQUEST_LABEL, _with_nodes(content, len(nodes), merkle_root(leaves)))
    ways = inclusion_proofs(leaves)

    def record(index: int) -> ConfigRecord:
        return ConfigRecord(
            {
                "certificate": identity.certificate_der,
                "intermediate": identity.intermediate_der,
                "signature": signature,
                "signed_at": at,
                "index": index,
                "count": len(nodes),
                "path": b"".join(ways[index]),
            }
        )

    return {node: record(index) for index, node in enumerate(nodes)}


def _leaf(node_id: int) -> bytes:
    return leaf_hash(str(node_id).encode())


def _with_nodes(content: bytes, count: int, root: bytes) -> bytes:
    return digest(_NODES_LABEL, content, count.to_bytes(8, "big"), root)


def _root_of(fields: dict[str, Any], node_id: int) -> bytes:
    """The root that the way from this node's leaf leads to; whether it is the signed one, the signature says.

    Raises:
        SignatureError: no way of a tree of that size.
    """
    path = [fields["path"][at : at + HASH_BYTES] for at in range(0, len(fields["path"]), HASH_BYTES)]
    try:
        return root_above(_leaf(node_id), fields["index"], fields["count"], path)
    except LogProofError:
        raise SignatureError("the server's signature is malformed") from None


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
        nodes: dict[bytes, set[int]] = {}
        signed = list(messages)
        contents = [_signed_bytes(message.metadata.message_type, message.content, run_id, at) for message in signed]
        for message, content in zip(signed, contents, strict=True):
            nodes.setdefault(content, set()).add(message.metadata.dst_node_id)
        records = {content: _sign(content, node_ids, identity, at) for content, node_ids in nodes.items()}
        for message, content in zip(signed, contents, strict=True):
            message.content[SIGNATURE_RECORD] = records[content][message.metadata.dst_node_id]
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
