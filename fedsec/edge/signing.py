"""What agent and gateway sign for each other: the answer to a Hello, and every forwarded call.

1. The gateway proves that a session is its own: over the client's nonce, the session, its time and the certificate that the TLS layer
   showed it. An agent whose connection ends elsewhere sees another certificate in that signature.
2. An agent signs each call over its session, its counter, the path, the body's hash and size, what it got so far, and Flower's own
   headers. A captured call is worth nothing: another body, path, session or counter needs another signature.
3. Both are ``codec.digest`` of length-prefixed parts under a label, signed under the same label.

Source: design note IDENTITY, "Why an own edge over Flower".
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from fedsec.codec import digest
from fedsec.signing import Signer, verify_signature

EDGE_HELLO_LABEL = "fedsec/edge/v1/hello"
"""What the gateway's signature on a session stands under."""

EDGE_CALL_LABEL = "fedsec/edge/v1/call"
"""What an agent's signature on a call stands under."""

NONCE_BYTES = 32
SESSION_ID_BYTES = 16
DELIVERY_BYTES = 32
MAX_CHUNK_BYTES = 1 << 20
"""Longest piece of a body in one gRPC message."""

_U64 = 8


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


def hello_digest(client_nonce: bytes, session_id: bytes, server_time_ms: int, client_certificate_der: bytes) -> bytes:
    """What :func:`sign_hello` signs: 32 bytes."""
    certificate = hashlib.sha256(client_certificate_der).digest()
    return digest(EDGE_HELLO_LABEL, client_nonce, session_id, server_time_ms.to_bytes(_U64, "big"), certificate)


def sign_hello(signer: Signer, client_nonce: bytes, session_id: bytes, server_time_ms: int, client_certificate_der: bytes) -> bytes:
    """The gateway's signature on a session: 64 bytes."""
    return signer.sign(EDGE_HELLO_LABEL, hello_digest(client_nonce, session_id, server_time_ms, client_certificate_der))


def verify_hello(
    public_key: bytes, client_nonce: bytes, session_id: bytes, server_time_ms: int, client_certificate_der: bytes, signature: bytes
) -> None:
    """Check :func:`sign_hello`; the caller verified whose key it is.

    Raises:
        SignatureError: another key, nonce, session, time or client certificate.
    """
    message = hello_digest(client_nonce, session_id, server_time_ms, client_certificate_der)
    verify_signature(public_key, EDGE_HELLO_LABEL, message, signature)


def call_digest(call: Call) -> bytes:
    """What :func:`sign_call` signs: 32 bytes."""
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


def sign_call(signer: Signer, call: Call) -> bytes:
    """The agent's signature on a call: 64 bytes."""
    return signer.sign(EDGE_CALL_LABEL, call_digest(call))


def verify_call(public_key: bytes, call: Call, signature: bytes) -> None:
    """Check :func:`sign_call`.

    Raises:
        SignatureError: another key, or anything in the call is not as it was signed.
    """
    verify_signature(public_key, EDGE_CALL_LABEL, call_digest(call), signature)
