"""What agent and gateway prove to each other: a session by two signatures, every call and every answer in it by a MAC.

1. Both sign the Hello: the agent its nonce and its share, the gateway these, its own share, the session, its time and the certificate that
   the TLS layer showed it. An agent whose connection ends elsewhere sees another certificate, or another share, in that signature.
2. From the two shares (X25519, fresh for each Hello, forgotten with the session) and all that was signed follow two keys. Only who holds
   the certificate's key, or the server's, has them: a MAC says as much as a signature did, to the other end and to nobody else.
3. A call's MAC covers its session, counter, path, the body's hash and size, what was got so far, and Flower's own headers. A captured
   call is worth nothing: another body, path, session or counter needs another MAC.
4. An answer's MAC covers session and counter of its call, the status, type, size, hash and delivery. No other server, and no other
   call's answer, passes for it; an answer that was cut short or changed on the way does not either.
5. All are ``codec.digest`` of length-prefixed parts under labels; the two directions have keys of their own.

Source: RFC 7748 (X25519), RFC 5869 (HKDF), RFC 2104 (HMAC); SIGMA; design note IDENTITY, "Why an own edge over Flower".
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedsec.codec import digest
from fedsec.errors import SignatureError
from fedsec.signing import Signer, verify_signature

EDGE_HELLO_REQUEST_LABEL = "fedsec/edge/v1/hello-request"
"""What the agent's signature on a Hello stands under."""

EDGE_HELLO_LABEL = "fedsec/edge/v1/hello"
"""What the gateway's signature on a session stands under."""

EDGE_KEYS_LABEL = "fedsec/edge/v1/session-keys"
"""What a session's keys are derived under."""

EDGE_CALL_LABEL = "fedsec/edge/v1/call"
"""What an agent's MAC on a call stands under."""

EDGE_REPLY_LABEL = "fedsec/edge/v1/reply"
"""What the gateway's MAC on an answer stands under."""

NONCE_BYTES = 32
SHARE_BYTES = 32
PROOF_BYTES = 32
SESSION_ID_BYTES = 16
DELIVERY_BYTES = 32
MAX_CHUNK_BYTES = 1 << 20
"""Longest piece of a body in one gRPC message."""

_U64 = 8


@dataclass(frozen=True)
class Hello:
    """Both halves of a Hello, as they are signed.

    Attributes:
        client_nonce: 32 bytes.
        client_share: X25519, 32 bytes.
        session_id: 16 bytes.
        server_time_ms: Unix time.
        server_share: X25519, 32 bytes.
        client_certificate_der: as the TLS layer showed it.
    """

    client_nonce: bytes
    client_share: bytes
    session_id: bytes
    server_time_ms: int
    server_share: bytes
    client_certificate_der: bytes


@dataclass(frozen=True)
class SessionKeys:
    """What a session's calls and answers are proven with; secret.

    Attributes:
        call: of the agent's calls, 32 bytes.
        reply: of the gateway's answers, 32 bytes.
    """

    call: bytes = field(repr=False)
    reply: bytes = field(repr=False)


@dataclass(frozen=True)
class Call:
    """A forwarded call as it is signed; the fields of ``ForwardRequest``.

    Attributes:
        session_id: 16 bytes.
        counter: from 1, below 2^64.
        path: HTTP path.
        received_pull: delivery of the newest PullMessages answer got in full, or empty.
        public_key: Flower's header ``flwr-public-key``.
        timestamp: Flower's header ``flwr-timestamp``.
        flower_signature: Flower's header ``flwr-signature``.
        body_size: bytes.
        body_sha256: 32 bytes.
    """

    session_id: bytes
    counter: int
    path: str
    received_pull: bytes
    public_key: str
    timestamp: str
    flower_signature: str
    body_size: int
    body_sha256: bytes


@dataclass(frozen=True)
class Reply:
    """The head of an answer, as it is proven.

    Attributes:
        session_id: of its call.
        counter: of its call.
        status: HTTP status.
        content_type: of the body.
        body_size: bytes.
        body_sha256: 32 bytes.
        delivery: 32 bytes, or empty.
    """

    session_id: bytes
    counter: int
    status: int
    content_type: str
    body_size: int
    body_sha256: bytes
    delivery: bytes


def _certificate_hash(der: bytes) -> bytes:
    return hashlib.sha256(der).digest()


def _request_digest(client_nonce: bytes, agent_version: str, client_share: bytes, client_certificate_der: bytes) -> bytes:
    version, certificate = agent_version.encode("utf-8"), _certificate_hash(client_certificate_der)
    return digest(EDGE_HELLO_REQUEST_LABEL, client_nonce, version, client_share, certificate)


def sign_hello_request(
    signer: Signer, client_nonce: bytes, agent_version: str, client_share: bytes, client_certificate_der: bytes
) -> bytes:
    """The agent's signature on its half of a Hello: 64 bytes."""
    return signer.sign(EDGE_HELLO_REQUEST_LABEL, _request_digest(client_nonce, agent_version, client_share, client_certificate_der))


def verify_hello_request(
    public_key: bytes, client_nonce: bytes, agent_version: str, client_share: bytes, client_certificate_der: bytes, signature: bytes
) -> None:
    """Check :func:`sign_hello_request`.

    Raises:
        SignatureError: another key, nonce, version, share or certificate.
    """
    message = _request_digest(client_nonce, agent_version, client_share, client_certificate_der)
    verify_signature(public_key, EDGE_HELLO_REQUEST_LABEL, message, signature)


def hello_digest(hello: Hello) -> bytes:
    """What :func:`sign_hello` signs: 32 bytes."""
    return digest(
        EDGE_HELLO_LABEL,
        hello.client_nonce,
        hello.client_share,
        hello.session_id,
        hello.server_time_ms.to_bytes(_U64, "big"),
        hello.server_share,
        _certificate_hash(hello.client_certificate_der),
    )


def sign_hello(signer: Signer, hello: Hello) -> bytes:
    """The gateway's signature on a session: 64 bytes."""
    return signer.sign(EDGE_HELLO_LABEL, hello_digest(hello))


def verify_hello(public_key: bytes, hello: Hello, signature: bytes) -> None:
    """Check :func:`sign_hello`; the caller verified whose key it is.

    Raises:
        SignatureError: another key, or anything in the Hello is not as it was signed.
    """
    verify_signature(public_key, EDGE_HELLO_LABEL, hello_digest(hello), signature)


def new_share() -> X25519PrivateKey:
    """A share for one Hello, from the system's randomness."""
    return X25519PrivateKey.generate()


def derive_keys(private: X25519PrivateKey, peer_share: bytes, hello: Hello) -> SessionKeys:
    """The session's keys: the same at both ends, once both signatures were checked.

    Args:
        private: one's own share.
        peer_share: the other's, 32 bytes.
        hello: all that was signed.

    Raises:
        SignatureError: the share is none, or of small order.
    """
    try:
        shared = private.exchange(X25519PublicKey.from_public_bytes(peer_share))
    except ValueError:
        raise SignatureError("the other end's share is not a public key") from None
    info = EDGE_KEYS_LABEL.encode("ascii")
    keys = HKDF(algorithm=hashes.SHA256(), length=64, salt=hello_digest(hello), info=info).derive(shared)
    return SessionKeys(keys[:32], keys[32:])


def call_digest(call: Call) -> bytes:
    """What :func:`prove_call` covers: 32 bytes."""
    return digest(
        EDGE_CALL_LABEL,
        call.session_id,
        call.counter.to_bytes(_U64, "big"),
        b"POST",
        call.path.encode("utf-8"),
        call.received_pull,
        call.public_key.encode("utf-8"),
        call.timestamp.encode("utf-8"),
        call.flower_signature.encode("utf-8"),
        call.body_size.to_bytes(_U64, "big"),
        call.body_sha256,
    )


def reply_digest(reply: Reply) -> bytes:
    """What :func:`prove_reply` covers: 32 bytes."""
    return digest(
        EDGE_REPLY_LABEL,
        reply.session_id,
        reply.counter.to_bytes(_U64, "big"),
        reply.status.to_bytes(_U64, "big"),
        reply.content_type.encode("utf-8"),
        reply.body_size.to_bytes(_U64, "big"),
        reply.body_sha256,
        reply.delivery,
    )


def prove_call(keys: SessionKeys, call: Call) -> bytes:
    """The agent's proof on a call: 32 bytes."""
    return hmac.digest(keys.call, call_digest(call), "sha256")


def verify_call(keys: SessionKeys, call: Call, proof: bytes) -> None:
    """Check :func:`prove_call`.

    Raises:
        SignatureError: another session, or anything in the call is not as it was proven.
    """
    if not hmac.compare_digest(prove_call(keys, call), proof):
        raise SignatureError("the call is not the one that was proven")


def prove_reply(keys: SessionKeys, reply: Reply) -> bytes:
    """The gateway's proof on an answer: 32 bytes."""
    return hmac.digest(keys.reply, reply_digest(reply), "sha256")


def verify_reply(keys: SessionKeys, reply: Reply, proof: bytes) -> None:
    """Check :func:`prove_reply`.

    Raises:
        SignatureError: it is another server's or another call's answer, or was changed.
    """
    if not hmac.compare_digest(prove_reply(keys, reply), proof):
        raise SignatureError("the gateway's answer does not verify: another server's, another call's, or changed on its way")
