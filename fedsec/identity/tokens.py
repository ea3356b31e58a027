"""One-time tokens: what an operator of the CA hands to whoever sets up a device, on a channel that the two trust.

1. A token is one line: ``fedsec-token-1.<payload>.<signature>``, both parts base64url without padding, the payload canonical JSON.
2. The intermediate signs it under a label of its own (ECDSA, P-256, SHA-256). There is no field that chooses an algorithm.
3. It says who the certificate will be for, and carries what the device must know before it trusts anything: SHA-256 of the root and of
   the enrolment service's TLS certificate. The device reads it **unverified**: it has no key to check it with, and trusts the channel.
4. It lives 15 minutes at most, by the CA's clock, and counts once (the register sees to that). Until then it is a **secret**.

Source: design note IDENTITY, "Certificates"; the role of RFC 7519, without its choices.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from fedsec.codec import canonical_json, decode_canonical_json
from fedsec.errors import CertificateError, DecodeError
from fedsec.identity.names import Role, uri_of
from fedsec.jsonfields import INTEGER, TEXT, Codec, Table, build, dump, optional
from fedsec.signing import SIGNATURE_BYTES, Signer, verify_signature

TOKEN_LABEL = "fedsec/identity/v1/enrolment-token"  # noqa: S105 - a label, no password
"""What the signature of a token is for."""

MAX_LIFETIME = timedelta(minutes=15)
ID_BYTES = 16
HASH_BYTES = 32
MAX_TOKEN_CHARS = 2048
PREFIX = "fedsec-token-1"

_ADDRESS = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9.-]{0,252}|\[[0-9a-fA-F:.]{2,45}\]):([1-9][0-9]{0,4})", re.ASCII)


def check_address(address: str) -> str:
    """The address itself, if it is ``host:port``.

    Raises:
        ValueError: it is not.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match[1]) > 65535:
        raise ValueError(f"{address[:80]!r} is not host:port")
    return address


@dataclass(frozen=True, kw_only=True)
class Token:
    """What a token says; who said it is another matter.

    Attributes:
        jti: its own number, 16 random bytes.
        federation: the trust domain.
        role: what the certificate's holder will be.
        site: a node's organisation; None for the others.
        name: client id, or name of the server or administrator.
        not_after: until when it counts; UTC, whole seconds.
        root_sha256: of the root's certificate, 32 bytes.
        service_sha256: of the enrolment service's TLS certificate, 32 bytes.
        address: ``host:port`` of the service, if the CA knows it.

    Raises:
        ValueError: a length, time or address that cannot be.
        CertificateError: a name that may not stand in a SPIFFE id.
    """

    jti: bytes = field(repr=False)
    federation: str
    role: Role
    site: str | None
    name: str
    not_after: datetime
    root_sha256: bytes
    service_sha256: bytes
    address: str | None = None

    def __post_init__(self) -> None:
        uri_of(self.federation, self.role, self.site, self.name)
        if [len(value) for value in (self.jti, self.root_sha256, self.service_sha256)] != [ID_BYTES, HASH_BYTES, HASH_BYTES]:
            raise ValueError("a value of a token has another length")
        if self.not_after.utcoffset() != timedelta(0) or self.not_after.microsecond:
            raise ValueError("a token's time is in UTC and whole seconds")
        if self.address is not None:
            check_address(self.address)

    @property
    def uri(self) -> str:
        """The SPIFFE id that the certificate will have."""
        return uri_of(self.federation, self.role, self.site, self.name)


def make_token(signer: Signer, token: Token) -> str:
    """Sign a token.

    Args:
        signer: of the intermediate's key.
        token: what it says.

    Returns:
        One printable line: **secret** until it is used or has ended.
    """
    payload = canonical_json(dump(_TABLE, token))
    return ".".join((PREFIX, _encode(payload), _encode(signer.sign(TOKEN_LABEL, payload))))


def read_token(text: str) -> Token:
    """What a token says, **unverified**: for the device, which got it on a trusted channel.

    Raises:
        DecodeError: not a token in its one spelling.
    """
    return _split(text)[0]


def verify_token(text: str, public_key: bytes, *, now: datetime) -> Token:
    """What a token says that this CA made and that has not ended; whether it was used before is the register's to say.

    Args:
        text: as received.
        public_key: the intermediate's.
        now: aware.

    Raises:
        DecodeError: not a token.
        SignatureError: forged, or another CA's.
        CertificateError: it has ended, or lives longer than a token may.
    """
    token, payload, signature = _split(text)
    verify_signature(public_key, TOKEN_LABEL, payload, signature)
    if now >= token.not_after:
        raise CertificateError(f"the token ended at {token.not_after:%Y-%m-%d %H:%M:%S} UTC; ask for a new one")
    if token.not_after - now > MAX_LIFETIME:
        raise CertificateError(f"the token is good for longer than {MAX_LIFETIME}")
    return token


def _split(text: str) -> tuple[Token, bytes, bytes]:
    if len(text) > MAX_TOKEN_CHARS:
        raise DecodeError(f"a token of {len(text)} characters is over the limit of {MAX_TOKEN_CHARS}")
    parts = text.split(".")
    if len(parts) != 3 or parts[0] != PREFIX:
        raise DecodeError(f"not a token: it is one line that begins with {PREFIX}. and has three parts")
    payload, signature = _decode(parts[1]), _decode(parts[2])
    if len(signature) != SIGNATURE_BYTES:
        raise DecodeError("a token whose signature has another length")
    value = decode_canonical_json(payload)
    try:
        token = build(Token, _TABLE, value, "token")
    except (CertificateError, OverflowError) as error:
        raise DecodeError(f"token: {error}") from None
    return token, payload, signature


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _decode(text: str) -> bytes:
    try:
        data = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error, UnicodeEncodeError):
        raise DecodeError("a part of the token is not base64url") from None
    if _encode(data) != text:
        raise DecodeError("a part of the token is not base64url in its one spelling")
    return data


def _read_bytes(value: Any, what: str) -> bytes:
    text = TEXT.read(value, what)
    if re.fullmatch(r"(?:[0-9a-f]{2})*", text, re.ASCII) is None:
        raise DecodeError(f"{what} is not lower-case hexadecimal")
    return bytes.fromhex(text)


def _read_time(value: Any, what: str) -> datetime:
    seconds = INTEGER.read(value, what)
    if not 0 <= seconds < 1 << 36:
        raise DecodeError(f"{what} is out of range")
    return datetime.fromtimestamp(seconds, tz=UTC)


def _read_role(value: Any, what: str) -> Role:
    try:
        return Role(TEXT.read(value, what))
    except ValueError:
        raise DecodeError(f"{what} is not a role") from None


_BYTES = Codec(bytes.hex, _read_bytes)
_TABLE: Table = {
    "jti": _BYTES,
    "federation": TEXT,
    "role": Codec(str, _read_role),
    "site": optional(TEXT),
    "name": TEXT,
    "not_after": Codec(lambda time: int(time.timestamp()), _read_time),
    "root_sha256": _BYTES,
    "service_sha256": _BYTES,
    "address": optional(TEXT),
}
