"""The world of a deployment: identity, clients and revocations from the server's home, all of it held against the pinned root.

::

    $FEDSEC_HOME/identity/      key.pem certificate.der intermediate.der root.der
    $FEDSEC_HOME/federation/    roster.json roster.signature crl.der certificates/<client id>.der
    $FEDSEC_HOME/gateway/       nodes.json: which node belongs to which certificate, as the gateway saw it
    $FEDSEC_HOME/log/           the transparency log, one for all runs: clients follow it

1. The clients are the members of the CA's list. Whoever was revoked is gone: not asked, and shown as gone with the reason. Clients take no part in a
   group with more revoked members than they assume corrupt ones, so the run goes over to the CA's next list, without it, before the next
   round; a list with too few clients for the plan is left alone, and the run goes on by the old one while its tolerance lasts.
2. A node is a client's if the gateway saw that client's certificate on it, the list has its key, and the revocation list lacks its number.
3. A certificate, list or revocation list out of its period: the run does not begin, or ends after the round, and can be resumed. Fail closed.
4. What a simulation reads off everybody's records comes from the plan here (batch sizes), or is the server's own (its test records).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from fedsec.data.datasets import load_dataset
from fedsec.errors import CertificateError, ConfigError, StorageError, VerificationError
from fedsec.flower.signed import ServerIdentity
from fedsec.identity.folder import Identity, load_identity
from fedsec.identity.intermediates import load_statement
from fedsec.identity.names import Role
from fedsec.identity.revocation import RevocationList, verify_crl
from fedsec.identity.roster import SignedRoster, VerifiedRoster, verify_roster
from fedsec.identity.verify import VerifiedPeer, verify_peer
from fedsec.plan.model import Plan
from fedsec.plan.secure import cohort_numbers
from fedsec.runfolder import RunFolder
from server.nodes import SeenNode, read_floor, read_nodes
from server.world import Federation, World

IDENTITY = "identity"
FEDERATION = "federation"
NODES = Path("gateway") / "nodes.json"
LOG = "log"
MAX_FILE_BYTES = 1 << 25

Now = Callable[[], datetime]
Certificates = dict[str, tuple[bytes, VerifiedPeer]]


@dataclass(kw_only=True, eq=False)
class DeployedAttendance:
    """Who may take part, read from the server's home at each look.

    Attributes:
        home: of the server.
        identity: of the server, for the issuers.
        roster: the list that the run goes by.
        serial_numbers: client id → number of the certificate that was on a list of this run when it was read.
        now: gives the time, aware.
        newest: number of the newest revocation list seen; an older one is refused.
    """

    home: Path
    identity: Identity
    roster: VerifiedRoster
    serial_numbers: dict[str, int]
    now: Now
    newest: int = 0

    def admitted(self) -> dict[int, str]:
        """See ``Attendance``.

        Raises:
            StorageError, VerificationError: the revocation list or ``nodes.json`` cannot be gone by.
        """
        revoked = self._revoked()
        return {node: seen.client_id for node, seen in self._members().items() if seen.serial_number not in revoked}

    def gone(self) -> dict[str, str]:
        """See ``Attendance``: members whose newest certificate is revoked; raises as :meth:`admitted`."""
        revoked = self._revoked()
        newest = {**self.serial_numbers, **{seen.client_id: seen.serial_number for seen in self._members().values()}}
        return {name: f"its certificate {number:X} was revoked" for name, number in sorted(newest.items()) if number in revoked}

    def _members(self) -> dict[int, SeenNode]:
        by_id = self.roster.roster.by_id
        nodes = read_nodes(self.home / NODES).items()
        return {node: seen for node, seen in nodes if seen.client_id in by_id and seen.public_key == by_id[seen.client_id].public_key}

    def _revoked(self) -> frozenset[int]:
        listed = _read_revocations(self.home, self.identity, self.now(), self.newest)
        self.newest = listed.number
        return listed.serial_numbers


def deployed_world(plan: Plan, folder: RunFolder, home: Path, now: Now = lambda: datetime.now(UTC)) -> World:
    """Read and check the server's home.

    Args:
        plan: what to run.
        folder: of the run; one that has a checkpoint may have fewer clients than the plan, since some may be revoked by then.
        home: of the server.
        now: gives the time, aware.

    Raises:
        ConfigError: the plan is for simulations, lacks a public number, or is for another number of clients.
        StorageError: a file is missing or damaged.
        VerificationError: a certificate, the list of clients or the revocation list does not hold.
    """
    check_deployable(plan)
    identity, signed, verified, certificates = _opened(home, now())
    attendance = _attendance(home, identity, verified, certificates, now)
    check_number(plan, len(certificates), len(attendance.gone()), begun=folder.checkpoints.exists())
    return World(
        dataset=load_dataset(plan.data, seed=plan.federation.seed),
        parts=None,
        weight_limit=deployed_weight_limit(plan),
        randomness="operating system",
        simulation_dir="",
        federation=_federation(home, signed, verified, certificates, now),
        attendance=attendance,
        gateway=home / NODES.parent,
        newer=partial(_newer, plan, home, attendance, now),
    )


def _newer(plan: Plan, home: Path, attendance: DeployedAttendance, now: Now) -> Federation | None:
    """The federation by the CA's newer list, if there is one without anybody who is gone; the attendance goes by it from then on.

    Raises:
        ConfigError: it has more clients than the plan's guarantees are for.
        StorageError, VerificationError: as :func:`deployed_world`.
    """
    identity, gone = load_identity(home / IDENTITY), attendance.gone()
    try:
        signed, verified = _read_roster(home, identity, now())
    except (StorageError, VerificationError):
        return None  # the gateway may be writing it this moment; until it holds, the run goes by the list that it has
    if verified.roster.version <= attendance.roster.roster.version or gone.keys() & verified.roster.by_id.keys():
        return None
    certificates = _read_certificates(home, identity, verified, now())  # they are written before the list
    check_number(plan, len(certificates), 0, begun=True)
    if plan.secagg.enabled:
        try:
            cohort_numbers(plan.secagg, len(certificates))
        except ConfigError:
            return None  # too few for this plan: who is gone counts as one of the corrupt and the silent that it provides for
    attendance.roster = verified
    attendance.serial_numbers |= {name: peer.serial_number for name, (_, peer) in certificates.items()}
    return _federation(home, signed, verified, certificates, now)


def check_home(plan: Plan, home: Path, now: Now = lambda: datetime.now(UTC)) -> None:
    """Refuse a new run of a plan that could not begin in this home: what :func:`deployed_world` checks, without the records."""
    identity, _, verified, certificates = _opened(home, now())
    attendance = _attendance(home, identity, verified, certificates, now)
    check_number(plan, len(certificates), len(attendance.gone()), begun=False)


def check_deployable(plan: Plan) -> None:
    """Refuse what only a simulation can do.

    Raises:
        ConfigError: names the key and the mend.
    """
    if plan.attack.name != "none":
        raise ConfigError("real clients attack for nobody's sake", field="attack.name", mend="remove [attack], or use fedsec simulate")
    if plan.federation.dropout:
        raise ConfigError("real clients vanish by themselves", field="federation.dropout", mend="remove it, or use fedsec simulate")
    deployed_weight_limit(plan)


def deployed_weight_limit(plan: Plan) -> int:
    """The largest batch size that a client may declare: from the plan, since nobody knows all records.

    Raises:
        ConfigError: the plan has no number.
    """
    if plan.secagg.enabled and plan.secagg.weight_limit is not None:
        return plan.secagg.weight_limit
    if isinstance(plan.training.batch_size, int):
        return plan.training.batch_size
    raise ConfigError(
        f'"{plan.training.batch_size}" needs to know every client\'s records, which nobody does in a deployment',
        field="training.batch_size",
        mend="give a number; or clients give their own, up to secagg.weight_limit",
    )


def check_number(plan: Plan, listed: int, gone: int, *, begun: bool) -> None:
    """A run begins with the number of clients that its guarantees were computed for; later some may be revoked.

    Raises:
        ConfigError: another number is on the CA's list.
    """
    here = listed - gone
    if here > plan.federation.num_clients or (here < plan.federation.num_clients and not begun):
        raise ConfigError(
            f"the CA's list has {here} clients that are not revoked, the plan {plan.federation.num_clients}",
            field="federation.num_clients",
            mend=f"set it to {here}, or have the CA issue another list",
        )


def _opened(home: Path, now: datetime) -> tuple[Identity, SignedRoster, VerifiedRoster, Certificates]:
    identity = load_identity(home / IDENTITY)
    _verified(identity, identity.certificate_der, Role.SERVER, now)
    signed, verified = _read_roster(home, identity, now)
    return identity, signed, verified, _read_certificates(home, identity, verified, now)


def _attendance(home: Path, identity: Identity, roster: VerifiedRoster, certificates: Certificates, now: Now) -> DeployedAttendance:
    numbers = {name: peer.serial_number for name, (_, peer) in certificates.items()}
    return DeployedAttendance(home=home, identity=identity, roster=roster, serial_numbers=numbers, now=now)


def _federation(home: Path, signed: SignedRoster, verified: VerifiedRoster, certificates: Certificates, now: Now) -> Federation:
    return Federation(
        identity=partial(_current, home / IDENTITY),
        signed=signed,
        verified=verified,
        certificates={name: der for name, (der, _) in certificates.items()},
        log_folder=home / LOG,
        durable=True,
        now=now,
    )


def _verified(identity: Identity, certificate_der: bytes, role: Role, now: datetime) -> VerifiedPeer:
    return verify_peer(
        certificate_der,
        intermediate_der=identity.intermediate_der,
        root_der=identity.root_der,
        federation=identity.name.federation,
        role=role,
        now=now,
        accepted=identity.accepted,
    )


def _read_roster(home: Path, identity: Identity, now: datetime) -> tuple[SignedRoster, VerifiedRoster]:
    folder = home / FEDERATION
    signed = SignedRoster(_read(folder / "roster.json"), _read(folder / "roster.signature"))
    verified = verify_roster(
        signed,
        intermediate_der=identity.intermediate_der,
        root_der=identity.root_der,
        federation=identity.name.federation,
        now=now,
        accepted=identity.accepted,
    )
    if verified.roster.server_public_key != identity.signer.public_key:
        raise CertificateError("the CA's list names another server; have the CA issue a list for this one")
    return signed, verified


def _read_certificates(home: Path, identity: Identity, verified: VerifiedRoster, now: datetime) -> Certificates:
    """Client id → certificate. Clients check those of their cohort, so one that ended would have all of them refuse the list."""
    found = {}
    for member in verified.roster.members:
        path = home / FEDERATION / "certificates" / f"{member.client_id}.der"
        der = _read(path)
        try:
            peer = _verified(identity, der, Role.NODE, now)
        except CertificateError as error:
            raise CertificateError(
                f"{member.client_id} on the CA's list: {error}; it must renew, or the CA must issue a list without it"
            ) from None
        if (peer.name.name, peer.public_key) != (member.client_id, member.public_key):
            raise CertificateError(f"{path} is not for the name and the key of {member.client_id} on the CA's list")
        found[member.client_id] = (der, peer)
    return found


def _read_revocations(home: Path, identity: Identity, now: datetime, least: int) -> RevocationList:
    """Not older than the gateway's, which this process may not have seen, and not another list of the same number."""
    floor = read_floor(home / NODES.with_name("floors.json"))  # first: the gateway writes the list before its number
    der = _read(home / FEDERATION / "crl.der")
    root_der, federation = identity.root_der, identity.name.federation
    accepted = load_statement(home / IDENTITY, root_der=root_der, federation=federation)  # anew: one may come while a run goes on
    found = verify_crl(
        der,
        intermediate_der=identity.intermediate_der,
        root_der=root_der,
        federation=federation,
        now=now,
        minimum_number=max(least, floor.number),
        accepted=accepted,
    )
    if floor.sha256 and found.number == floor.number and not hmac.compare_digest(hashlib.sha256(der).hexdigest(), floor.sha256):
        raise CertificateError(
            f"revocation list: number {found.number} was another list before; the CA must issue one with a higher number"
        )
    return found


def _current(folder: Path) -> ServerIdentity:
    """The server's identity as it is now: the gateway renews its certificate while a run goes on."""
    identity = load_identity(folder)
    return ServerIdentity(signer=identity.signer, certificate_der=identity.certificate_der, intermediate_der=identity.intermediate_der)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as handle:
            data = handle.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}; the gateway fetches it from the CA") from error
    if len(data) > MAX_FILE_BYTES:
        raise StorageError(f"{path} is over the limit of {MAX_FILE_BYTES} bytes")
    return data
