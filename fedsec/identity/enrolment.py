"""Who gets a certificate: the rules of enrolment, renewal and revocation, over a register, with no network and no clock.

1. Enrolment: a token of this CA that has not ended nor been used, and a request whose sender holds its key. Everything in the
   certificate but the key comes from the token.
2. The register is written before the certificate leaves. If the answer is lost (a crash in between), the same token brings the **same
   certificate** to the **same key** until the token ends. To any other key the token is used, and that is an **alarm**: a stolen token
   shows itself there and nowhere else.
3. A name belongs to its first key until it is revoked; a key that was revoked never gets a certificate again.
4. Renewal: the same key and name, for a certificate of the register that is valid now and not revoked, asked for under a signature of
   that key that names certificate and time. There is **no grace**: who comes too late needs a token, and may keep the key.
   A certificate has one successor: asked again, the same one is the answer, so that nobody collects several by requests dated ahead.
   Administrators are not renewed: their 12 hours are what a stolen key is worth.
5. Revocation is of a peer: a serial number or a name stands for its key, all of whose living certificates go on the list, and the name is
   free again; tokens for it that were not used yet count no more. Certificates of nodes and servers that ended in the last seven days go along: whoever checked one with a list of clients that
   still counts must find it. After a compromise all go: what they approved was perhaps not theirs.
6. A name that reads like a serial number (32 hex digits or more) is not given: whoever revokes by one must not hit another peer.

Source: design note IDENTITY, "Certificates".
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509

from fedsec.codec import digest
from fedsec.errors import CertificateError
from fedsec.identity.ca import CertificateAuthority, Issued
from fedsec.identity.csr import make_csr, read_csr
from fedsec.identity.intermediates import AcceptedIntermediates
from fedsec.identity.issuing import LIVE_ROSTER_LIFETIME
from fedsec.identity.names import Role, parse_uri
from fedsec.identity.register import Register
from fedsec.identity.register_rows import Binding, Record
from fedsec.identity.revocation import Reason, RevokedError
from fedsec.identity.tokens import verify_token
from fedsec.identity.verify import VerifiedPeer, claimed_name, verify_peer
from fedsec.signing import Signer, verify_signature

RENEWAL_LABEL = "fedsec/identity/v1/renewal"
"""What the signature of a request for renewal is for."""

RENEWAL_WINDOW = timedelta(minutes=10)
"""How far the time in a request for renewal may be from the CA's."""

_SERIAL_NUMBER: Final = re.compile(r"[0-9A-Fa-f]{32,}", re.ASCII)

USED = "the token was used before"
MAX_SERIAL_DIGITS = 40
"""Of a serial number in hex: RFC 5280 allows 20 bytes."""
MAX_RENEWALS_A_DAY = 100
"""For one name; more is a fault of its holder, and would fill the register."""


class TokenReusedError(CertificateError):
    """A token that was used was shown again with another key."""

    code = "token-reused"


@dataclass(frozen=True, kw_only=True)
class RenewalRequest:
    """A request for renewal; nothing is checked yet.

    Attributes:
        certificate_der: the one to renew.
        csr: a request with the same key.
        time_ms: when it was made, milliseconds since 1970.
        signature: by the same key over the three.
    """

    certificate_der: bytes = field(repr=False)
    csr: bytes = field(repr=False)
    time_ms: int
    signature: bytes = field(repr=False)


def make_renewal(signer: Signer, certificate_der: bytes, *, time_ms: int) -> RenewalRequest:
    """Ask for the renewal of a certificate.

    Args:
        signer: of its key.
        certificate_der: it.
        time_ms: now, in milliseconds since 1970, by a clock near the CA's (the gateway's time, where there is one).
    """
    csr = make_csr(signer)
    signature = signer.sign(RENEWAL_LABEL, _renewal_message(certificate_der, csr, time_ms))
    return RenewalRequest(certificate_der=certificate_der, csr=csr, time_ms=time_ms, signature=signature)


def check_renewal(
    request: RenewalRequest,
    *,
    intermediate_der: bytes,
    root_der: bytes,
    federation: str,
    now: datetime,
    accepted: AcceptedIntermediates | None = None,
) -> VerifiedPeer:
    """Everything about a request for renewal that needs no register: a gateway may do so before it forwards one.

    Raises:
        CertificateError: a certificate that is not valid now, another key in the request, an administrator, or a time too far away.
        SignatureError: not signed by the certificate's key.
    """
    role = claimed_name(request.certificate_der).role
    peer = verify_peer(
        request.certificate_der,
        intermediate_der=intermediate_der,
        root_der=root_der,
        federation=federation,
        role=role,
        now=now,
        accepted=accepted,
    )
    if role is Role.ADMIN:
        raise CertificateError("an administrator's certificate is not renewed: ask for a token")
    if read_csr(request.csr) != peer.public_key:
        raise CertificateError("a renewal keeps the key: a new key needs a token")
    message = _renewal_message(request.certificate_der, request.csr, request.time_ms)
    verify_signature(peer.public_key, RENEWAL_LABEL, message, request.signature)
    if abs(request.time_ms - now.timestamp() * 1000) > RENEWAL_WINDOW.total_seconds() * 1000:
        raise CertificateError(f"the request for renewal was not made within {RENEWAL_WINDOW} of now; check the clock")
    return peer


def _renewal_message(certificate_der: bytes, csr: bytes, time_ms: int) -> bytes:
    if not 0 <= time_ms < 1 << 53:
        raise CertificateError("the time in a request for renewal is out of range")
    return digest(RENEWAL_LABEL, certificate_der, csr, time_ms.to_bytes(8, "big"))


def enrol(authority: CertificateAuthority, register: Register, token_text: str, csr: bytes, *, now: datetime) -> Record:
    """Issue for a token.

    Args:
        authority: the CA.
        register: its register; not within a transaction.
        token_text: as received.
        csr: as received.
        now: aware.

    Returns:
        The row that is on disk now.

    Raises:
        DecodeError: not a token.
        SignatureError: a forged token.
        TokenReusedError: a used token with another key; the register keeps that.
        CertificateError: a token that ended, was used or is another federation's; a bad request; a name or key that is taken or revoked.
        StorageError: the register.
    """
    token = verify_token(token_text, authority.signer.public_key, now=now)
    if token.federation != authority.federation:
        raise CertificateError(f"the token is for the federation {token.federation}")
    public_key = read_csr(csr)
    with register.transaction():
        known, serial_number = register.token_use(token)
        if not known:
            raise CertificateError("the token is not in the register: its name was revoked since, or the register was put back from a copy")
        if serial_number is None:
            record = _issue(authority, register, Binding(token.role, token.site, token.name, public_key), "token", now)
            register.use_token(token, record.serial_number)
            return record
        before = register.certificate(serial_number)
        reused = before is None or before.public_key != public_key
        if reused:
            register.add_alarm(token, serial_number, now=now)
    if reused:  # outside of the transaction: the alarm stays
        raise TokenReusedError(f"{USED}: another key has it; if that was not your device, tell the CA's operator at once")
    if before is None or before.revoked_at is not None:
        raise CertificateError(f"{USED}; ask for a new one")
    return before  # rule 2: the answer may have been lost


def check_new_name(name: str) -> None:
    """Refuse a name that reads like a serial number.

    Raises:
        CertificateError: it has 32 characters or more, all of them hex digits.
    """
    if _SERIAL_NUMBER.fullmatch(name):
        raise CertificateError(f"{name[:40]!r} reads like a serial number, by which peers are revoked: take another name")


def issue_offline(authority: CertificateAuthority, register: Register, binding: Binding, csr: bytes, *, now: datetime) -> Record:
    """Issue for a request that an operator brought in a file: the operator's word stands for a token.

    Args:
        authority: the CA.
        register: its register.
        binding: who; its key must be that of the request.
        csr: the request.
        now: aware.

    Raises:
        CertificateError: as :func:`enrol`.
        StorageError: the register.
    """
    if read_csr(csr) != binding.public_key:
        raise CertificateError("the request is for another key")
    check_new_name(binding.name)
    with register.transaction():
        return _issue(authority, register, binding, "offline", now)


def renew(authority: CertificateAuthority, register: Register, request: RenewalRequest, *, now: datetime) -> Record:
    """Issue for the same key and name again.

    Raises:
        RevokedError: the certificate was revoked.
        CertificateError: as :func:`check_renewal`, or a certificate that is not in the register.
        SignatureError: as :func:`check_renewal`.
        StorageError: the register.
    """
    peer = check_renewal(
        request,
        intermediate_der=authority.intermediate_der,
        root_der=authority.root_der,
        federation=authority.federation,
        now=now,
        accepted=None,  # the CA goes by its one intermediate, and after a rekey by no other
    )
    name = peer.name
    with register.transaction():
        record = register.certificate(peer.serial_number)
        if record is None or record.public_key != peer.public_key:
            raise CertificateError("the certificate is not in the register: was the register put back from a copy?")
        if record.revoked_at is not None:
            raise RevokedError(f"the certificate {peer.serial_number:X} was revoked; its holder needs a token and a new key")
        before = register.successor(peer.serial_number)
        if before is not None and before.revoked_at is None and before.not_after >= now:
            return before
        if register.count_since(name.role, name.name, now - timedelta(days=1)) >= MAX_RENEWALS_A_DAY:
            raise CertificateError(f"{name.name} was issued {MAX_RENEWALS_A_DAY} certificates within a day; wait")
        issued = _issue(authority, register, Binding(name.role, name.site, name.name, peer.public_key), "renewal", now)
        register.add_successor(peer.serial_number, issued.serial_number)
        return issued


def _issue(authority: CertificateAuthority, register: Register, wanted: Binding, origin: str, now: datetime) -> Record:
    """Check that name and key go together, issue, write down; within a transaction."""
    if register.was_revoked(wanted.public_key):
        raise RevokedError("a certificate of this key was revoked; make a new key")
    bound, other = register.binding(wanted.role, wanted.name), register.binding_of_key(wanted.public_key)
    if bound is not None and bound != wanted:
        raise CertificateError(f"{wanted.name} belongs to another key or site; revoke it first, then enrol anew")
    if other is not None and other != wanted:
        raise CertificateError(f"this key has another name already: {other.role.value} {other.name}; make a key of its own")
    issued = authority.issue(wanted.role, wanted.site, wanted.name, wanted.public_key, now=now)
    record = _record(issued, wanted, origin, now)
    register.add(record)
    return record


def _record(issued: Issued, binding: Binding, origin: str, now: datetime) -> Record:
    return Record(
        serial_number=issued.serial_number,
        role=binding.role,
        site=binding.site,
        name=binding.name,
        public_key=binding.public_key,
        not_before=x509.load_der_x509_certificate(issued.certificate_der).not_valid_before_utc,
        not_after=issued.not_after,
        certificate_der=issued.certificate_der,
        issued_at=now.astimezone(UTC).replace(microsecond=0),
        origin=origin,
    )


def revoke(register: Register, target: str, reason: Reason, *, now: datetime) -> list[Record]:
    """Revoke a peer, within a transaction of the caller's.

    Args:
        register: the register.
        target: a serial number in hex, a SPIFFE id, or a name that only one role has.
        reason: why.
        now: aware.

    Returns:
        The certificates that are revoked now and were not before.

    Raises:
        CertificateError: there is no such peer, or several.
        StorageError: the register.
    """
    chosen = find_peer(register, target)
    named = chosen.serial_number if target.upper() == f"{chosen.serial_number:X}" else None
    recent = now - LIVE_ROSTER_LIFETIME if chosen.role is not Role.ADMIN else now
    hit = [
        record
        for record in register.certificates_of(chosen.role, chosen.name)
        if record.revoked_at is None
        and record.public_key == chosen.public_key
        and (record.not_after >= recent or reason is Reason.KEY_COMPROMISE or record.serial_number == named)
    ]
    for record in hit:
        register.revoke(record.serial_number, reason, now=now)
    bound = register.binding(chosen.role, chosen.name)
    if bound is not None and bound.public_key == chosen.public_key:
        if not hit:  # nothing lives, but the key must not come back
            register.revoke(chosen.serial_number, reason, now=now)
        register.unbind(chosen.role, chosen.name)
    register.void_tokens(chosen.role, chosen.name)
    return hit


def find_peer(register: Register, target: str) -> Record:
    """The newest certificate that a serial number, SPIFFE id or name stands for.

    Raises:
        CertificateError: none, a name that several roles have, or a serial number that is a name too.
    """
    named = [record for role in Role for record in register.certificates_of(role, target)[:1]]
    numbered = register.certificate(int(target, 16)) if _SERIAL_NUMBER.fullmatch(target) and len(target) <= MAX_SERIAL_DIGITS else None
    if numbered is not None and named:  # a name of before rule 6
        raise CertificateError(f"{target[:140]!r} is a serial number and a name: give the SPIFFE id")
    if numbered is not None:
        return numbered
    if target.startswith("spiffe://"):
        name = parse_uri(target)
        found = register.certificates_of(name.role, name.name)[:1]
    else:
        found = named
    if len(found) != 1:
        several = "is the name of several peers: give the SPIFFE id" if found else "is no serial number or name in the register"
        raise CertificateError(f"{target[:140]!r} {several}")
    return found[0]
