"""The lists that follow from a register: revocations and clients. Each is made within a transaction, and its number only grows.

1. The revocation list is made anew when something was revoked, and when a quarter of its life is over.
2. The list of clients holds each client whose name is bound and whose newest certificate is valid now and not revoked: a client that
   let its certificate end is not on the next list (its cohort could not verify it), and comes back by enrolling again.
3. It names one server, by the name in the settings. The same clients, keys and server need no new list until half of its period is over.
4. A list of clients lives for days, not for a year: whoever withholds newer ones keeps a client that left in its group until then.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from fedsec.errors import CertificateError, DecodeError, SignatureError, StorageError
from fedsec.identity.ca import CertificateAuthority
from fedsec.identity.names import Role
from fedsec.identity.register import Register
from fedsec.identity.register_rows import Document, JournalKind, Record
from fedsec.identity.revocation import CRL_LIFETIME, make_crl
from fedsec.identity.roster import ROSTER_LABEL, Roster, RosterMember, SignedRoster, make_roster
from fedsec.signing import verify_signature

LIVE_ROSTER_LIFETIME = timedelta(days=7)
"""Usual and longest period of a live federation's list of clients."""


def latest_crl(
    authority: CertificateAuthority, register: Register, *, now: datetime, anew: bool = False, lifetime: timedelta = CRL_LIFETIME
) -> bytes:
    """The revocation list.

    Args:
        authority: signs.
        register: says what was revoked; within a transaction.
        now: aware.
        anew: make one in any case.
        lifetime: of a new list.

    Raises:
        StorageError: the register.
    """
    found = register.document("crl")
    if found is not None and not anew and _is_fresh(found.body, now, lifetime):
        return found.body
    number = 1 if found is None else found.number + 1
    der = make_crl(authority, register.revocations(), number=number, now=now, lifetime=lifetime)
    register.put_document("crl", Document(number, der, b""))
    return der


def _is_fresh(der: bytes, now: datetime, lifetime: timedelta) -> bool:
    try:
        crl = x509.load_der_x509_crl(der)
    except ValueError as error:
        raise StorageError("the revocation list in the register is damaged; make one with `fedsec ca crl`") from error
    made, end = crl.last_update_utc, crl.next_update_utc
    return end is not None and made <= now < made + min(lifetime, end - made) / 4


def latest_roster(register: Register) -> SignedRoster | None:
    """The newest list of clients, if there is one."""
    found = register.document("roster")
    return None if found is None else SignedRoster(found.body, found.signature)


def current_roster(
    authority: CertificateAuthority,
    register: Register,
    server: str,
    cohort_size: int,
    *,
    now: datetime,
    anew: bool,
    lifetime: timedelta = LIVE_ROSTER_LIFETIME,
) -> SignedRoster | None:
    """The list of clients as the register has them now.

    Args:
        authority: signs.
        register: says who they are; within a transaction.
        server: name of the server.
        cohort_size: largest number of members of a cohort.
        now: aware.
        anew: make one in any case, and say what is missing.
        lifetime: of a new list.

    Returns:
        The list; without ``anew``, None while there is no server or no client.

    Raises:
        CertificateError: ``anew``, and there is no server or no client.
        StorageError: the register.
    """
    nodes = register.current(Role.NODE, now=now)
    servers = [record for record in register.current(Role.SERVER, now=now) if record.name == server]
    if not nodes or not servers:
        if anew:
            missing = "client" if servers else f"server {server}"
            raise CertificateError(f"no {missing} has a valid certificate; enrol it first")
        return None
    kept = latest_roster(register)
    ours = kept is not None and is_signed_by(kept, authority.signer.public_key)
    previous = None if kept is None else _decode(kept)
    if ours and previous is not None and not anew and _says(previous, nodes, servers[0], cohort_size, now, lifetime):
        return kept
    return _make(authority, register, nodes, servers[0], cohort_size, previous, now, lifetime)


def is_signed_by(roster: SignedRoster, public_key: bytes) -> bool:
    """Whether a list is by this key: after a change of the intermediate's, the lists from before count no more."""
    try:
        verify_signature(public_key, ROSTER_LABEL, roster.roster_bytes, roster.signature)
    except SignatureError:
        return False
    return True


def _make(
    authority: CertificateAuthority,
    register: Register,
    nodes: list[Record],
    server: Record,
    cohort_size: int,
    previous: Roster | None,
    now: datetime,
    lifetime: timedelta,
) -> SignedRoster:
    signed = make_roster(
        authority.signer,
        federation=authority.federation,
        members=[RosterMember(node.name, node.public_key, _fingerprint(node)) for node in nodes],
        cohort_size=cohort_size,
        server_public_key=server.public_key,
        server_fingerprint=_fingerprint(server),
        now=now,
        lifetime=lifetime,
        previous=previous,
    )
    version = 1 if previous is None else previous.version + 1
    register.put_document("roster", Document(version, signed.roster_bytes, signed.signature))
    register.add_to_journal(JournalKind.ROSTER, signed.roster_bytes)
    return signed


def _says(roster: Roster, nodes: list[Record], server: Record, cohort_size: int, now: datetime, lifetime: timedelta) -> bool:
    clients = [(member.client_id, member.public_key) for member in roster.members]
    same = clients == sorted((node.name, node.public_key) for node in nodes)
    lasting = roster.not_before <= now <= roster.not_before + min(lifetime, roster.not_after - roster.not_before) / 2
    return same and lasting and roster.server_public_key == server.public_key and roster.cohort_size == cohort_size


def _decode(signed: SignedRoster) -> Roster:
    try:
        return Roster.decode(signed.roster_bytes)
    except DecodeError as error:
        raise StorageError(f"the roster in the register is damaged: {error}") from error


def _fingerprint(record: Record) -> bytes:
    return x509.load_der_x509_certificate(record.certificate_der).fingerprint(hashes.SHA256())
