"""Which certificates count no more: an X.509 revocation list, signed by the intermediate, read strictly.

1. A list names serial numbers. It has a number that grows and an end; a reader accepts none below one it has seen, and none that ended:
   whoever withholds newer lists (a malicious server may) gains until ``next_update`` and no longer.
2. A number stays on the list after its certificate ended: approvals are checked at the time they were given.
3. No deltas, no partial lists, no unknown critical extension, no entry that takes something off: the list says everything.
4. Only :func:`verify_crl` makes a :class:`RevocationList` that means anything; revoked is refused (:class:`RevokedError`).

Source: RFC 5280, section 5.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TypeAlias

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import CRLEntryExtensionOID, ExtensionOID, SignatureAlgorithmOID

from fedsec.errors import CertificateError
from fedsec.identity.ca import CertificateAuthority
from fedsec.identity.intermediates import AcceptedIntermediates
from fedsec.identity.verify import BACKDATE, Issuers, check_issuers
from fedsec.signing import decode_public_key

CRL_LIFETIME = timedelta(hours=24)
"""Usual time that a list is good for: how long hiding a newer one keeps a revoked peer going."""

MAX_CRL_BYTES = 4 * 1024 * 1024
"""Upper limit on a list: some 100,000 revocations."""

MAX_NUMBER = (1 << 53) - 1

_KNOWN_EXTENSIONS = frozenset({ExtensionOID.CRL_NUMBER, ExtensionOID.AUTHORITY_KEY_IDENTIFIER})
_KNOWN_ENTRY_EXTENSIONS = frozenset({CRLEntryExtensionOID.CRL_REASON, CRLEntryExtensionOID.INVALIDITY_DATE})


class RevokedError(CertificateError):
    """The certificate was revoked by its CA."""

    code = "revoked"


class Reason(StrEnum):
    """Why a certificate was revoked; the spellings of RFC 5280 that fit."""

    UNSPECIFIED = "unspecified"
    KEY_COMPROMISE = "key-compromise"
    """The key may be in other hands: it never gets another certificate."""
    AFFILIATION_CHANGED = "affiliation-changed"
    SUPERSEDED = "superseded"
    CESSATION = "cessation"
    PRIVILEGE_WITHDRAWN = "privilege-withdrawn"


_FLAGS = {
    Reason.UNSPECIFIED: x509.ReasonFlags.unspecified,
    Reason.KEY_COMPROMISE: x509.ReasonFlags.key_compromise,
    Reason.AFFILIATION_CHANGED: x509.ReasonFlags.affiliation_changed,
    Reason.SUPERSEDED: x509.ReasonFlags.superseded,
    Reason.CESSATION: x509.ReasonFlags.cessation_of_operation,
    Reason.PRIVILEGE_WITHDRAWN: x509.ReasonFlags.privilege_withdrawn,
}


@dataclass(frozen=True)
class Revocation:
    """One revoked certificate.

    Attributes:
        serial_number: its number.
        revoked_at: when; aware.
        reason: why.
    """

    serial_number: int
    revoked_at: datetime
    reason: Reason = Reason.UNSPECIFIED


@dataclass(frozen=True)
class RevocationList:
    """A verified list; see :func:`verify_crl`.

    Attributes:
        number: of the list; later lists have higher ones.
        this_update: when it was made; UTC.
        next_update: until when it counts; UTC.
        serial_numbers: of the revoked certificates.
    """

    number: int
    this_update: datetime
    next_update: datetime
    serial_numbers: frozenset[int]

    def check(self, serial_number: int) -> None:
        """Refuse a revoked certificate.

        Raises:
            RevokedError: it is on the list.
        """
        if serial_number in self.serial_numbers:
            raise RevokedError(f"the certificate {serial_number:X} was revoked; its holder needs a new one from the CA")

    def check_time(self, now: datetime) -> None:
        """Refuse to go by a list that is not good now; :func:`verify_crl` has done so for its own ``now``.

        Raises:
            CertificateError: made later than now, or it has ended.
        """
        if self.this_update > now + BACKDATE:
            raise CertificateError(f"revocation list: made at {self.this_update:%Y-%m-%d %H:%M:%S} UTC, which is to come; check the clock")
        if now >= self.next_update:
            raise CertificateError(f"revocation list: ended at {self.next_update:%Y-%m-%d %H:%M:%S} UTC; get a newer one from the CA")


def make_crl(
    authority: CertificateAuthority, revoked: Iterable[Revocation], *, number: int, now: datetime, lifetime: timedelta = CRL_LIFETIME
) -> bytes:
    """The CA's side: sign a list.

    Args:
        authority: whose intermediate signs.
        revoked: everything that was ever revoked.
        number: higher than that of every list before.
        now: aware.
        lifetime: the list counts until that long after ``now``.

    Returns:
        DER.

    Raises:
        ValueError: a number out of range, or a naive time.
    """
    if not 1 <= number <= MAX_NUMBER or now.tzinfo is None:
        raise ValueError(f"list number {number} is out of range, or now is naive")
    moment = now.replace(microsecond=0)
    key = decode_public_key(authority.signer.public_key)
    builder = x509.CertificateRevocationListBuilder().issuer_name(x509.load_der_x509_certificate(authority.intermediate_der).subject)
    builder = builder.last_update(moment).next_update(moment + lifetime)
    builder = builder.add_extension(x509.CRLNumber(number), critical=False)
    builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key), critical=False)
    for entry in sorted(revoked, key=lambda item: item.serial_number):
        item = x509.RevokedCertificateBuilder().serial_number(entry.serial_number).revocation_date(entry.revoked_at.replace(microsecond=0))
        if entry.reason is not Reason.UNSPECIFIED:  # RFC 5280 5.3.1: it is then left out
            item = item.add_extension(x509.CRLReason(_FLAGS[entry.reason]), critical=False)
        builder = builder.add_revoked_certificate(item.build())
    return authority.signer.sign_revocations(builder).public_bytes(serialization.Encoding.DER)


def verify_crl(
    der: bytes,
    *,
    intermediate_der: bytes,
    root_der: bytes,
    federation: str,
    now: datetime,
    minimum_number: int = 0,
    accepted: AcceptedIntermediates | None = None,
) -> RevocationList:
    """Check a revocation list.

    Args:
        der: as received.
        intermediate_der: the CA that should have signed it.
        root_der: the pinned root.
        federation: whose list it must be.
        now: aware.
        minimum_number: the highest number seen so far.
        accepted: the root's newest statement that the verifier has.

    Raises:
        CertificateError: unsound issuers, not theirs, older than one seen, ended, or anything that this reader does not know.
        ValueError: ``now`` is naive.
    """
    issuers = check_issuers(intermediate_der, root_der)
    issuers.check(federation=federation, now=now, accepted=accepted)
    crl = _parse(der)
    _check_signed(crl, issuers)
    found = _read(crl)
    if found.number < minimum_number:
        raise CertificateError(f"revocation list: number {found.number} was replaced by {minimum_number}")
    found.check_time(now)
    return found


_Crl: TypeAlias = x509.CertificateRevocationList


def _parse(der: bytes) -> _Crl:
    if len(der) > MAX_CRL_BYTES:
        raise CertificateError(f"a revocation list of {len(der)} bytes is over the limit of {MAX_CRL_BYTES}")
    try:
        return x509.load_der_x509_crl(der)
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion):
        raise CertificateError("not a revocation list that can be read") from None


def _check_signed(crl: _Crl, issuers: Issuers) -> None:
    """The issuer's name and signature, before anything else of the list is looked at."""
    key = issuers.intermediate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    try:
        named = crl.issuer == issuers.intermediate.subject
        algorithm = crl.signature_algorithm_oid
        sound = algorithm == SignatureAlgorithmOID.ECDSA_WITH_SHA256 and crl.is_signature_valid(key)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise CertificateError("not a revocation list that can be read") from None
    if not named:
        raise CertificateError("revocation list: of another issuer")
    if not sound:
        raise CertificateError("revocation list: not signed by the intermediate with ECDSA and SHA-256")


def _read(crl: _Crl) -> RevocationList:
    try:
        extensions = list(crl.extensions)
        entries = [(entry.serial_number, list(entry.extensions)) for entry in crl]
        this_update, next_update = crl.last_update_utc, crl.next_update_utc
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        raise CertificateError("not a revocation list that can be read") from None
    _check_known(extensions, _KNOWN_EXTENSIONS, "revocation list")
    for serial, found in entries:
        _check_known(found, _KNOWN_ENTRY_EXTENSIONS, f"revocation list: entry {serial:X}")
        if any(isinstance(item.value, x509.CRLReason) and item.value.reason is x509.ReasonFlags.remove_from_crl for item in found):
            raise CertificateError("revocation list: an entry takes a certificate off, which only a delta may")
    serials = frozenset(serial for serial, _ in entries)
    if len(serials) != len(entries):
        raise CertificateError("revocation list: a certificate is on it twice")
    numbers = [item.value.crl_number for item in extensions if isinstance(item.value, x509.CRLNumber)]
    if len(numbers) != 1 or not 1 <= numbers[0] <= MAX_NUMBER:
        raise CertificateError("revocation list: no number, or one out of range")
    if next_update is None or next_update <= this_update:
        raise CertificateError("revocation list: it does not say until when it counts")
    return RevocationList(numbers[0], this_update, next_update, serials)


def _check_known(extensions: list[x509.Extension[x509.ExtensionType]], known: frozenset[x509.ObjectIdentifier], what: str) -> None:
    for extension in extensions:
        if extension.critical and extension.oid not in known:
            raise CertificateError(f"{what}: unknown critical extension {extension.oid.dotted_string}")
