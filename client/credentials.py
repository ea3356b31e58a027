"""Who a client is by certificate: its key, its certificate and the root it trusts; and what it makes of a roster.

1. The root is pinned: in a client's own identity folder, or, in a simulation, in the run's folder. No message replaces it.
2. A roster counts if the CA signed it, it is in its period, not older than one seen before, and in the log that this client follows.
3. Every certificate of the client's own cohort is verified, chain and all, once a roster; the server's too. Whether one of them was revoked
   since is asked at every round.
4. A deployed client goes by the revocation list that its agent keeps. One that is missing, has ended or is older than one seen stops the
   client: whoever can withhold the list could otherwise keep a revoked peer alive.

Source: design note IDENTITY; decision 0010, finding 11.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from client.settings import DeployedClient, SimulatedClient
from fedsec.clientstore.protocol import KeptRoster
from fedsec.errors import CertificateError, ConfigError, StorageError
from fedsec.flower.secure_records import SERIAL_BYTES, KeptCohort, RosterOffer
from fedsec.identity.crl_file import CRL_FILE, FLOOR_FILE, load_verified_crl
from fedsec.identity.folder import load_own_key
from fedsec.identity.intermediates import AcceptedIntermediates, load_statement
from fedsec.identity.names import Role
from fedsec.identity.revocation import RevocationList, RevokedError
from fedsec.identity.roster import Roster, SignedRoster, VerifiedRoster, verify_roster
from fedsec.identity.verify import VerifiedPeer, claimed_name, verify_peer
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
        revoked: the revocation list that counts now; None: this client has none (a simulation, or one that was set up without).
        accepted: the root's newest statement of its intermediates; None: it never made one that came here.
    """

    client_id: str
    federation: str
    signer: Signer = field(repr=False)
    root_der: bytes
    revoked: RevocationList | None = None
    accepted: AcceptedIntermediates | None = None


def credentials_of(client: SimulatedClient | DeployedClient, simulation_dir: str) -> Credentials:
    """This client's key and root.

    Raises:
        ConfigError: a deployed client without an identity.
        StorageError: its files are missing or damaged, its revocation list included.
        CertificateError: its revocation list has ended, or is not the newest that was seen.
    """
    if isinstance(client, DeployedClient):
        if client.identity is None:
            raise ConfigError(
                "secure aggregation needs a certificate",
                field="identity",
                mend="name the folder with key.pem, certificate.der and root.der",
            )
        found = _deployed(client.client_id, client.identity)
        accepted = load_statement(client.identity, root_der=found.root_der, federation=found.federation)  # anew: it may just have come
        found = replace(found, accepted=accepted)
        return replace(found, revoked=_revocations(client, client.identity, found))
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
        signer = load_own_key(folder)
        certificate, root = (folder / "certificate.der").read_bytes(), (folder / "root.der").read_bytes()
    except OSError as error:
        raise StorageError(f"the identity in {folder} cannot be read: {error.strerror or error}") from error
    name = claimed_name(certificate)
    if name.role is not Role.NODE or name.name != client_id:
        raise ConfigError(f"the certificate in {folder} is not that of {client_id}", field="identity")
    return Credentials(client_id=client_id, federation=name.federation, signer=signer, root_der=root)


def _revocations(client: DeployedClient, identity: Path, credentials: Credentials) -> RevocationList | None:
    """The list that the agent keeps, read anew: it may have come a second ago."""
    path = client.crl or identity.parent / CRL_FILE
    floor_path = path.with_name(FLOOR_FILE)
    if client.crl is None and not path.exists() and not floor_path.exists():
        return None
    try:
        intermediate = (identity / "intermediate.der").read_bytes()
    except OSError as error:
        raise StorageError(f"the identity in {identity} cannot be read: {error.strerror or error}") from error
    return load_verified_crl(
        path,
        floor_path,
        intermediate_der=intermediate,
        root_der=credentials.root_der,
        federation=credentials.federation,
        now=datetime.now(UTC),
        accepted=credentials.accepted,
    )


def check_cohort(cohort: KeptCohort, credentials: Credentials, *, num_corrupt: int) -> None:
    """Refuse a group of which more members were revoked than this client assumes to be corrupt.

    A revoked member may be anybody's by now: it is one of the c that the protocol stands, and the gateway lets it take no part.

    Args:
        cohort: the group.
        credentials: this client's.
        num_corrupt: c of this client's own policy.

    Raises:
        RevokedError: names the members.
    """
    serial_numbers = (int.from_bytes(number, "big") for number in cohort.serial_numbers)
    _check_members(dict(zip((member.client_id for member in cohort.members), serial_numbers, strict=True)), credentials, num_corrupt)


def _check_members(serial_numbers: Mapping[str, int], credentials: Credentials, num_corrupt: int) -> None:
    if credentials.revoked is None:
        return
    revoked = [name for name, number in serial_numbers.items() if number in credentials.revoked.serial_numbers]
    if len(revoked) > num_corrupt:
        raise RevokedError(
            f"{', '.join(sorted(revoked))} of this client's group {'was' if len(revoked) == 1 else 'were'} revoked, and it assumes at most "
            f"{num_corrupt} corrupt: the list of clients that the server goes by is out of date"
        )


def accept_roster(
    offer: RosterOffer, credentials: Credentials, *, kept: KeptRoster | None, now: datetime, verify: Verify, num_corrupt: int
) -> KeptRoster:  # fmt: skip
    """Check an offered roster, and make of it what this client keeps.

    Args:
        offer: as received.
        credentials: this client's.
        kept: what it went by before.
        now: aware.
        verify: checks signatures.
        num_corrupt: c of this client's own policy.

    Raises:
        VerificationError: not the CA's, out of its period, older than one seen before, not in the log, a bad certificate, or more revoked
            ones than c.
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
    members, serial_numbers = _verify_cohort(offer, roster, cohorts[number], credentials, now)
    numbers = (int.from_bytes(serial_number, "big") for serial_number in serial_numbers)
    _check_members(dict(zip(cohorts[number], numbers, strict=True)), credentials, num_corrupt)
    cohort = KeptCohort(
        cohort=number,
        num_cohorts=len(cohorts),
        num_clients=len(roster.members),
        index=cohorts[number].index(credentials.client_id),
        server_key=roster.server_public_key,
        members=members,
        serial_numbers=serial_numbers,
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
        accepted=credentials.accepted,
    )


def _verify_cohort(
    offer: RosterOffer, roster: Roster, names: tuple[str, ...], credentials: Credentials, now: datetime
) -> tuple[tuple[Member, ...], tuple[bytes, ...]]:  # fmt: skip
    """The members of the cohort, each with a certificate that says what the list says; and the serial numbers of these."""
    by_id = roster.by_id
    if len(offer.certificates) != len(names):
        raise CertificateError(f"{len(offer.certificates)} certificates for a cohort of {len(names)}")
    serial_numbers = []
    for name, certificate in zip(names, offer.certificates, strict=True):
        peer = _verified(
            certificate, offer.intermediate, credentials.root_der, credentials.federation, Role.NODE, now, credentials.accepted
        )
        if (peer.name.name, peer.public_key) != (name, by_id[name].public_key):
            raise CertificateError(f"the certificate of {name} is not for the name and the key on the list")
        serial_numbers.append(peer.serial_number.to_bytes(SERIAL_BYTES, "big"))
    server = _verified(
        offer.server_certificate, offer.intermediate, credentials.root_der, credentials.federation, Role.SERVER, now, credentials.accepted
    )
    if server.public_key != roster.server_public_key:
        raise CertificateError("the server's certificate is not for the key on the list")
    if credentials.revoked is not None:
        credentials.revoked.check(server.serial_number)
    return tuple(Member(client_id=name, public_key=by_id[name].public_key) for name in names), tuple(serial_numbers)


@lru_cache(maxsize=1 << 14)
def _verified(
    certificate: bytes, intermediate: bytes, root: bytes, federation: str, role: Role, now: datetime, accepted: AcceptedIntermediates | None
) -> VerifiedPeer:  # fmt: skip
    """A verified certificate; memoised, since a simulator checks the same one for every member of a cohort."""
    return verify_peer(
        certificate, intermediate_der=intermediate, root_der=root, federation=federation, role=role, now=now, accepted=accepted
    )
