"""What travels between the enrolment service and its callers: canonical JSON, bytes in base64, one table a message.

1. Exactly the keys of a message's table, each of its type and within its limit; anything else is a DecodeError.
2. Nothing here is verified: whoever reads a certificate, list or signature out of a message checks it.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fedsec.codec import canonical_json, decode_canonical_json
from fedsec.errors import DecodeError
from fedsec.jsonfields import INTEGER, TEXT, Codec, Table, build, dump, map_of

SERVICE = "fedsec.enrolment.v1.Enrolment"
ENROL, RENEW, BUNDLE, CRL = "Enrol", "Renew", "Bundle", "Crl"

LOG_KEY_LABEL = "fedsec/identity/v1/log-key"
"""What the intermediate's signature of the log's key stands under."""

SERVICE_TARGET = "fedsec-enrolment"
"""Host name in the enrolment service's own certificate."""

MAX_REQUEST_BYTES = 16 * 1024
MAX_REPLY_BYTES = 16 * 1024 * 1024
"""Largest reply; a bundle for some 15,000 clients."""

M = TypeVar("M")


@dataclass(frozen=True)
class EnrolRequest:
    """A device asks for its certificate.

    Attributes:
        token: **secret** until used.
        csr: DER.
    """

    token: str = field(repr=False)
    csr: bytes = field(repr=False)


@dataclass(frozen=True)
class RenewRequest:
    """A holder asks for a new certificate for the same key; see ``identity.enrolment.RenewalRequest``."""

    certificate: bytes = field(repr=False)
    csr: bytes = field(repr=False)
    time_ms: int
    signature: bytes = field(repr=False)


@dataclass(frozen=True)
class Empty:
    """A request that says nothing."""


@dataclass(frozen=True)
class IssuedReply:
    """A certificate, the chain above it, and the root's newest statement (empty: none)."""

    certificate: bytes = field(repr=False)
    intermediate: bytes = field(repr=False)
    root: bytes = field(repr=False)
    root_statement: bytes = field(repr=False)


@dataclass(frozen=True)
class Bundle:
    """What a gateway goes by; nothing is verified yet, see ``enrolment_client.verify_bundle``.

    Attributes:
        roster: the list of clients; empty while there is no server or no client.
        roster_signature: the intermediate's.
        intermediate: the CA's certificate.
        crl: the revocation list, DER.
        certificates: the newest certificate of each client on the roster, by client id.
        log_key: the key of the CA's transparency log, 33 bytes.
        log_key_signature: the intermediate's.
        log_head: an encoded ``translog.head.SignedHead``: the log of all that was issued, revoked and listed.
        root_statement: which intermediates the root stands by (``identity.intermediates``); empty: all of them.
    """

    roster: bytes = field(repr=False)
    roster_signature: bytes = field(repr=False)
    intermediate: bytes = field(repr=False)
    crl: bytes = field(repr=False)
    certificates: dict[str, bytes] = field(repr=False)
    log_key: bytes = field(repr=False)
    log_key_signature: bytes = field(repr=False)
    log_head: bytes = field(repr=False)
    root_statement: bytes = field(repr=False)


@dataclass(frozen=True)
class CrlReply:
    """The revocation list alone, for callers that ask often."""

    crl: bytes = field(repr=False)


def encode(message: object) -> bytes:
    """The bytes of a message of this module."""
    return canonical_json(dump(_TABLES[type(message)], message))


def decode(kind: type[M], data: bytes) -> M:
    """Read a message.

    Raises:
        DecodeError: not this kind of message.
    """
    return build(kind, _TABLES[kind], decode_canonical_json(data), kind.__name__)


def _write_bytes(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _read_bytes(value: Any, what: str) -> bytes:
    text = TEXT.read(value, what)
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (ValueError, binascii.Error):
        raise DecodeError(f"{what} is not base64") from None
    if _write_bytes(data) != text:
        raise DecodeError(f"{what} is not base64 in its one spelling")
    return data


_BYTES = Codec(_write_bytes, _read_bytes)
_TABLES: dict[type, Table] = {
    EnrolRequest: {"token": TEXT, "csr": _BYTES},
    RenewRequest: {"certificate": _BYTES, "csr": _BYTES, "time_ms": INTEGER, "signature": _BYTES},
    Empty: {},
    IssuedReply: {"certificate": _BYTES, "intermediate": _BYTES, "root": _BYTES, "root_statement": _BYTES},
    Bundle: {
        "roster": _BYTES,
        "roster_signature": _BYTES,
        "intermediate": _BYTES,
        "crl": _BYTES,
        "certificates": map_of(_BYTES),
        "log_key": _BYTES,
        "log_key_signature": _BYTES,
        "log_head": _BYTES,
        "root_statement": _BYTES,
    },
    CrlReply: {"crl": _BYTES},
}
