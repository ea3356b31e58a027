"""Identities for a simulation: a throw-away CA, a server and as many clients as are asked for, in one folder.

1. The folder is made beside its place and renamed: a crash leaves nothing or the whole. A crash between the two renames of a renewal
   leaves the old folder under its other name, and the next call puts it back.
2. The same clients get the same keys: a second call changes nothing, one with other clients is refused.
3. Certificates that end within a day of ``now``, do not reach back to it, or are of an older form, are issued anew for the same keys, with
   the next version of the roster and the same cohort seed: a simulation may be resumed after weeks.
4. Nothing is fsynced, for all of it can be made again. This is no way to run a real federation: its keys lie in one place.

Layout: ``authority/``, ``server/{key.pem,certificate.der}``, ``nodes/<client id>/{key.pem,certificate.der}``, ``roster.json``,
``roster.signature``.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID

from fedsec.errors import DecodeError, StorageError
from fedsec.files import atomic_write_bytes, exclusive_lock
from fedsec.identity.ca import CertificateAuthority, Issued
from fedsec.identity.names import Role, check_name, subject_of
from fedsec.identity.roster import Roster, RosterMember, SignedRoster, make_roster
from fedsec.signing import Signer

FEDERATION = "simulation.fedsec"
"""Trust domain of simulations."""

SITE = "simulation"
SERVER_NAME = "server"
RENEW_BEFORE = timedelta(hours=24)
"""Certificates that end within this are issued anew."""

_SERVER_SUBJECT = subject_of(Role.SERVER, SERVER_NAME)
_RENEW_INTERMEDIATE_BEFORE = timedelta(days=30)
_LOCK_TIMEOUT_S = 60.0


def client_name(partition: int) -> str:
    """The client id of a simulation's partition: the same on every engine."""
    return f"client-{partition:04d}"


@dataclass(frozen=True)
class FederationFiles:
    """What everybody in the federation may see; nothing is verified yet.

    Attributes:
        root_der: the root to pin.
        intermediate_der: issuer of all certificates.
        signed_roster: the list of clients.
        server_certificate_der: the aggregator's certificate.
    """

    root_der: bytes
    intermediate_der: bytes
    signed_roster: SignedRoster
    server_certificate_der: bytes


@dataclass(frozen=True)
class ClientIdentity:
    """One client's own.

    Attributes:
        client_id: its name.
        signer: its key.
        certificate_der: its certificate.
    """

    client_id: str
    signer: Signer = field(repr=False)
    certificate_der: bytes


def ensure_identities(folder: Path, client_ids: Sequence[str], *, federation: str = FEDERATION, cohort_size: int, now: datetime) -> None:
    """Make the folder, or renew what ends soon, or do nothing.

    Args:
        folder: where; its parent must exist.
        client_ids: distinct, in any order.
        federation: its trust domain.
        cohort_size: largest number of members of a cohort.
        now: aware; the time at which the certificates are needed.

    Raises:
        StorageError: the folder is damaged, in use, or was made for other clients, another federation or cohort size.
        CertificateError: a name that may not stand in a SPIFFE id.
        ValueError: no clients, a client twice, or a cohort size out of range.
    """
    if not client_ids or len(set(client_ids)) != len(client_ids):
        raise ValueError("no clients, or a client twice")
    with exclusive_lock(_beside(folder, "lock"), timeout_s=_LOCK_TIMEOUT_S, what="folder of identities"), _undoing_failures(folder):
        if not folder.exists():
            signers = {client_id: Signer.generate() for client_id in client_ids}
            authority = CertificateAuthority.create(federation, now=now)
            _write(folder, authority, Signer.generate(), signers, cohort_size=cohort_size, now=now, previous=None)
            return
        roster = _decode_roster(folder)
        _check_same(folder, roster, client_ids, federation=federation, cohort_size=cohort_size)
        if not _is_current(folder, roster, now):
            _renew(folder, roster, now)


def load_federation(folder: Path) -> FederationFiles:
    """What is public of the folder.

    Raises:
        StorageError: a file is missing.
    """
    return FederationFiles(
        root_der=_read(folder / "authority" / "root.der"),
        intermediate_der=_read(folder / "authority" / "intermediate.der"),
        signed_roster=SignedRoster(_read(folder / "roster.json"), _read(folder / "roster.signature")),
        server_certificate_der=_read(folder / "server" / "certificate.der"),
    )


def load_server_signer(folder: Path) -> Signer:
    """The server's key.

    Raises:
        StorageError: the file is missing or damaged.
    """
    return Signer.from_pem(_read(folder / "server" / "key.pem"))


def load_client(folder: Path, client_id: str) -> ClientIdentity:
    """A client's key and certificate.

    Raises:
        StorageError: there is no such client, or a file is damaged.
        CertificateError: the id may not stand in a SPIFFE id.
    """
    signer = Signer.from_pem(_read(_node(folder, client_id) / "key.pem"))
    return ClientIdentity(client_id, signer, load_certificate(folder, client_id))


def load_certificate(folder: Path, client_id: str) -> bytes:
    """A client's certificate; raises as :func:`load_client`."""
    return _read(_node(folder, client_id) / "certificate.der")


def _node(folder: Path, client_id: str) -> Path:
    return folder / "nodes" / check_name("client id", client_id)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error


def _beside(folder: Path, suffix: str) -> Path:
    return folder.parent / f".{folder.name}.{suffix}"


@contextmanager
def _undoing_failures(folder: Path) -> Iterator[None]:
    """Tidy before, because the last call may have been killed, and after, because this one may fail."""
    try:
        _tidy(folder)
        try:
            yield
        finally:
            _tidy(folder)
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {error.strerror or error}") from error


def _tidy(folder: Path) -> None:
    """Undo what a crash left behind: half a new folder, or the old one moved away."""
    old = _beside(folder, "old")
    if old.exists() and not folder.exists():
        old.rename(folder)
    for leftover in (_beside(folder, "new"), old):
        shutil.rmtree(leftover, ignore_errors=True)


def _decode_roster(folder: Path) -> Roster:
    try:
        return Roster.decode(load_federation(folder).signed_roster.roster_bytes)
    except DecodeError as error:
        raise StorageError(f"the roster in {folder} is damaged: {error}") from error


def _check_same(folder: Path, roster: Roster, client_ids: Iterable[str], *, federation: str, cohort_size: int) -> None:
    for what, found, wanted in (
        ("federation", roster.federation, federation),
        ("cohort size", roster.cohort_size, cohort_size),
        ("clients", sorted(roster.by_id), sorted(client_ids)),
    ):
        if found != wanted:
            shown = "" if what == "clients" else f" ({found}, not {wanted})"
            raise StorageError(f"the identities in {folder} were made for another {what}{shown}; use another run folder")


def _is_current(folder: Path, roster: Roster, now: datetime) -> bool:
    """All leaves of a folder are issued together, so that one client speaks for all."""
    if not roster.not_before <= now <= roster.not_after - RENEW_BEFORE:
        return False
    server_der = _read(folder / "server" / "certificate.der")
    for der in (server_der, load_certificate(folder, roster.members[0].client_id)):
        try:
            certificate = x509.load_der_x509_certificate(der)
        except ValueError as error:
            raise StorageError(f"a certificate in {folder} is damaged") from error
        if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc - RENEW_BEFORE:
            return False
    return x509.load_der_x509_certificate(server_der).subject == x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _SERVER_SUBJECT)])


def _renew(folder: Path, roster: Roster, now: datetime) -> None:
    authority = CertificateAuthority.load(folder / "authority")
    if authority.intermediate_not_after - now < _RENEW_INTERMEDIATE_BEFORE:
        authority = authority.with_new_intermediate(now=now)
    server, signers = load_server_signer(folder), {client_id: load_client(folder, client_id).signer for client_id in roster.by_id}
    found = [server.public_key, *(signers[member.client_id].public_key for member in roster.members)]
    if found != [roster.server_public_key, *(member.public_key for member in roster.members)]:
        raise StorageError(f"a key in {folder} is not the one in its roster")
    _write(folder, authority, server, signers, cohort_size=roster.cohort_size, now=now, previous=roster)


def _write(
    folder: Path,
    authority: CertificateAuthority,
    server: Signer,
    clients: dict[str, Signer],
    *,
    cohort_size: int,
    now: datetime,
    previous: Roster | None,
) -> None:
    """Issue and write everything beside the folder, then put it in its place."""
    new, old = _beside(folder, "new"), _beside(folder, "old")
    for path in (new, new / "authority", new / "server", new / "nodes"):
        path.mkdir(mode=0o700)
    authority.save(new / "authority", durable=False)
    issued = authority.issue_server(SERVER_NAME, server.public_key, now=now)
    _write_peer(new / "server", server, issued)
    members = []
    for client_id, signer in clients.items():
        certificate = authority.issue_node(client_id, signer.public_key, site=SITE, now=now)
        node = _node(new, client_id)
        node.mkdir(mode=0o700)
        _write_peer(node, signer, certificate)
        members.append(RosterMember(client_id, signer.public_key, certificate.fingerprint))
    signed = make_roster(
        authority.signer,
        federation=authority.federation,
        members=members,
        cohort_size=cohort_size,
        server_public_key=server.public_key,
        server_fingerprint=issued.fingerprint,
        now=now,
        previous=previous,
    )
    atomic_write_bytes(new / "roster.json", signed.roster_bytes, durable=False)
    atomic_write_bytes(new / "roster.signature", signed.signature, durable=False)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)


def _write_peer(folder: Path, signer: Signer, issued: Issued) -> None:
    atomic_write_bytes(folder / "key.pem", signer.to_pem(), mode=0o600, durable=False)
    atomic_write_bytes(folder / "certificate.der", issued.certificate_der, durable=False)
