"""Which intermediates a federation's root stands by: a numbered statement under the root's own signature.

1. The intermediate's key lies on a host that the network reaches. If it is stolen, the root makes another, and says in a statement which
   ones count from now on, by the SHA-256 of their certificates.
2. A statement has a number that grows; a verifier keeps the highest and accepts none below it, nor another one of the same number.
3. The signature is the root's, under a label of its own.

Source: decision 0015, finding 21.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from fedsec.codec import canonical_json, decode_canonical_json
from fedsec.errors import CertificateError, DecodeError
from fedsec.identity.names import check_name
from fedsec.signing import Signer, encode_public_key, verify_signature

STATEMENT_LABEL = "fedsec/identity/v1/intermediates"
"""What the root's signature of a statement stands under."""

STATEMENT_FORMAT = "fedsec/intermediates/v1"
MAX_INTERMEDIATES = 16
MAX_NUMBER = (1 << 53) - 1


@dataclass(frozen=True)
class AcceptedIntermediates:
    """A verified statement; see :func:`verify_statement`.

    Attributes:
        federation: whose.
        number: of the statement.
        fingerprints: SHA-256 of the certificates that count.
    """

    federation: str
    number: int
    fingerprints: frozenset[bytes]

    def check(self, intermediate_der: bytes) -> None:
        """Refuse an intermediate that the root does not stand by.

        Raises:
            CertificateError: it is none of them.
        """
        if hashlib.sha256(intermediate_der).digest() not in self.fingerprints:
            raise CertificateError(f"intermediate: not one that the root stands by since its statement {self.number}; enrol anew")


def make_statement(root: Signer, *, federation: str, number: int, intermediates: list[bytes]) -> tuple[bytes, bytes]:
    """The root's side: body and signature of a statement.

    Args:
        root: signs.
        federation: whose.
        number: higher than that of every statement before.
        intermediates: certificates that count from now on, DER.

    Raises:
        ValueError: none or too many, or a number out of range.
    """
    if not 1 <= number <= MAX_NUMBER or not 1 <= len(intermediates) <= MAX_INTERMEDIATES:
        raise ValueError("a statement names 1 to 16 intermediates and has a positive number")
    prints = sorted({hashlib.sha256(der).hexdigest() for der in intermediates})
    body = canonical_json({"format": STATEMENT_FORMAT, "federation": federation, "number": number, "intermediates": prints})
    return body, root.sign(STATEMENT_LABEL, body)


def verify_statement(body: bytes, signature: bytes, *, root_der: bytes, federation: str, minimum_number: int = 0) -> AcceptedIntermediates:
    """Check a statement.

    Args:
        body: as received.
        signature: as received.
        root_der: the pinned root.
        federation: whose statement it must be.
        minimum_number: the highest seen so far.

    Raises:
        SignatureError: not the root's.
        DecodeError: signed, but no statement.
        CertificateError: another federation's, or older than one seen.
    """
    key = x509.load_der_x509_certificate(root_der).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    verify_signature(encode_public_key(key), STATEMENT_LABEL, body, signature)
    found = _read(body)
    if found.federation != federation:
        raise CertificateError(f"statement of the root: for the federation {found.federation}, not {federation}")
    if found.number < minimum_number:
        raise CertificateError(f"statement of the root: number {found.number} was replaced by {minimum_number}")
    return found


def _read(body: bytes) -> AcceptedIntermediates:
    value = decode_canonical_json(body)
    try:
        if not isinstance(value, dict) or value.keys() != {"format", "federation", "number", "intermediates"}:
            raise ValueError("other keys")
        number, prints = value["number"], value["intermediates"]
        if value["format"] != STATEMENT_FORMAT or type(number) is not int or not 1 <= number <= MAX_NUMBER:
            raise ValueError("another format, or a number out of range")
        fingerprints = frozenset(bytes.fromhex(text) for text in prints)
        if not 1 <= len(prints) <= MAX_INTERMEDIATES or len(fingerprints) != len(prints) or {len(item) for item in fingerprints} != {32}:
            raise ValueError("no fingerprints")
        return AcceptedIntermediates(check_name("federation", value["federation"]), number, fingerprints)
    except (ValueError, TypeError, CertificateError) as error:
        raise DecodeError(f"not a statement of a root: {error}") from None
