"""Who a client is by certificate: its key, its certificate and the root it trusts; and what it makes of a roster.

1. The root is pinned: in a client's own identity folder, or, in a simulation, in the run's folder. No message replaces it.
2. A roster counts if the CA signed it, it is in its period, not older than one seen before, and in the log that this client follows.
3. Every certificate of the client's own cohort is verified, chain and all, once a roster; the server's too.

Source: design note IDENTITY; decision 0010, finding 11.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from pathlib import Path

from client.settings import DeployedClient, SimulatedClient
from fedsec.clientstore.protocol import KeptRoster
from fedsec.errors import CertificateError, ConfigError, StorageError
from fedsec.flower.secure_records import KeptCohort, RosterOffer
from fedsec.identity.names import Role
from fedsec.identity.roster import Roster, SignedRoster, VerifiedRoster, verify_roster
from fedsec.identity.verify import claimed_name, verify_peer
from fedsec.secagg.cohorts import assign_cohorts
from fedsec.secagg.config import Member
from fedsec.signing import Signer, Verify
from fedsec.sim.identities import FEDERATION, load_client, load_federation
from fedsec.translog.entries import EntryKind, LogEntry
from fedsec.translog.head import KeptHead
from fedsec.translog.proof import verify_log_proof

IDENTITIES = "identities"
"""Folder of a simulated run's throw-away CA, beside the clients' stores."""


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """A client's identity.

    Attributes:
        client_id: its name.
        federation: whose member it is.
        signer: of its identity key.
        root_der: the pinned root certificate.
    """

    client_id: str
    federation: str
    signer: Signer = field(repr=False)
    root_der: bytes


def credentials_of(client: SimulatedClient | DeployedClient, simulation_dir: str) -> Credentials:
    """This client's key and root.

    Raises:
        ConfigError: a deployed client without an identity.
        StorageError: its files are missing or damaged.
    """
    if isinstance(client, DeployedClient):
        if client.identity is None:
            raise ConfigError(
                "secure aggregation needs a certificate",
                field="identity",
                mend="name the folder with key.pem, certificate.der and root.der",
            )
        return _deployed(client.client_id, client.identity)
    folder = Path(simulation_dir).parent / IDENTITIES
    try:
        made = folder.stat().st_mtime_ns
    except OSError as error:
        raise StorageError(f"the simulation's identities are not in {folder}: {error.strerror or error}") from error
    return _simulated(folder, client.client_id, made)


@lru_cache(maxsize=4096)
def _simulated(folder: Path, client_id: str, _made: int) -> Credentials:
    identity = load_client(folder, client_id)
    root = load_federation(folder).root_der
    return Credentials(client_id=client_id, federation=FEDERATION, signer=identity.signer, root_der=root)


@lru_cache(maxsize=4)
def _deployed(client_id: str, folder: Path) -> Credentials:
    try:
        signer = Signer.from_pem((folder / "key.pem").read_bytes())
        certificate, root = (folder / "certificate.der").read_bytes(), (folder / "root.der").read_bytes()
    except OSError as error:
        raise StorageError(f"the identity in {folder} cannot be read: {error.strerror or error}") from error
    name = claimed_name(certificate)
    if name.role is not Role.NODE or name.name != client_id:
        raise ConfigError(f"the certificate in {folder} is not that of {client_id}", field="identity")
    return Credentials(client_id=client_id, federation=name.federation, signer=signer, root_der=root)


def accept_roster(offer: RosterOffer, credentials: Credentials, *, kept: KeptRoster | None, now: datetime, verify: Verify) -> KeptRoster:
    """Check an offered roster, and make of it what this client keeps.

    Args:
        offer: as received.
        credentials: this client's.
        kept: what it went by before.
        now: aware.
        verify: checks signatures.

    Raises:
        VerificationError: not the CA's, out of its period, older than one seen before, not in the log, or a bad certificate.
        DecodeError: malformed.
    """
    verified = _verify(offer, credentials, now, kept.version if kept is not None else 0)
    roster = verified.roster
    before = KeptHead(size=kept.log_size, root=kept.log_root) if kept is not None and kept.log_size else None
    entry = LogEntry(kind=EntryKind.ROSTER, body=offer.roster).encode()
    head = verify_log_proof(offer.log_proof, log_public_key=roster.server_public_key, kept=before, entry=entry, verify=verify)
    cohorts = assign_cohorts(roster.cohort_seed, [member.client_id for member in roster.members], cohort_size=roster.cohort_size)
    number = next((n for n, names in enumerate(cohorts) if credentials.client_id in names), None)
    if number is None:
        raise CertificateError(f"{credentials.client_id} is not on the list of clients")
    members = _verify_cohort(offer, roster, cohorts[number], credentials, now)
    cohort = KeptCohort(
        cohort=number,
        num_cohorts=len(cohorts),
        num_clients=len(roster.members),
        index=cohorts[number].index(credentials.client_id),
        server_key=roster.server_public_key,
        members=members,
        not_before_s=int(roster.not_before.timestamp()),
        not_after_s=int(roster.not_after.timestamp()),
    )
    return KeptRoster(
        federation=roster.federation,
        version=roster.version,
        digest=verified.digest,
        body=cohort.encode(),
        log_size=head.size,
        log_root=head.root,
    )


def _verify(offer: RosterOffer, credentials: Credentials, now: datetime, minimum_version: int) -> VerifiedRoster:
    return verify_roster(
        SignedRoster(roster_bytes=offer.roster, signature=offer.signature),
        intermediate_der=offer.intermediate,
        root_der=credentials.root_der,
        federation=credentials.federation,
        now=now,
        minimum_version=minimum_version,
    )


def _verify_cohort(
    offer: RosterOffer, roster: Roster, names: tuple[str, ...], credentials: Credentials, now: datetime
) -> tuple[Member, ...]:  # fmt: skip
    """The members of the cohort, each with a certificate that says what the list says."""
    by_id = roster.by_id
    if len(offer.certificates) != len(names):
        raise CertificateError(f"{len(offer.certificates)} certificates for a cohort of {len(names)}")
    for name, certificate in zip(names, offer.certificates, strict=True):
        peer = _verified(certificate, offer.intermediate, credentials.root_der, credentials.federation, Role.NODE, now)
        if peer != (name, by_id[name].public_key):
            raise CertificateError(f"the certificate of {name} is not for the name and the key on the list")
    server = _verified(offer.server_certificate, offer.intermediate, credentials.root_der, credentials.federation, Role.SERVER, now)
    if server[1] != roster.server_public_key:
        raise CertificateError("the server's certificate is not for the key on the list")
    return tuple(Member(client_id=name, public_key=by_id[name].public_key) for name in names)


@lru_cache(maxsize=1 << 14)
def _verified(certificate: bytes, intermediate: bytes, root: bytes, federation: str, role: Role, now: datetime) -> tuple[str, bytes]:
    """Name and key of a verified certificate; memoised, since a simulator checks the same one for every member of a cohort."""
    peer = verify_peer(certificate, intermediate_der=intermediate, root_der=root, federation=federation, role=role, now=now)
    return peer.name.name, peer.public_key
