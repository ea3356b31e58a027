"""Secure aggregation at the server: identities, roster, log and encoding of one run, put together.

In a simulation the run's folder holds a throw-away CA (``identities/``) that certifies the server and every client. The aggregator of a
real federation does not own its CA; that is the identity layer's business.
"""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime

from flwr.serverapp import Grid

from fedsec.data.federated import FederatedData
from fedsec.data.sizes import weight_limit_of
from fedsec.defence import Defence
from fedsec.errors import StorageError
from fedsec.flower.journal import Journal
from fedsec.flower.roster import Membership
from fedsec.flower.stages import SecureRounds
from fedsec.identity.roster import verify_roster
from fedsec.plan.model import Plan
from fedsec.plan.secure import cohort_numbers, update_bound
from fedsec.runfolder import RunFolder
from fedsec.secagg.cohorts import assign_cohorts
from fedsec.secagg.config import Member
from fedsec.secagg.fixedpoint import FixedPoint
from fedsec.signing import Signer
from fedsec.sim.identities import FEDERATION, client_name, ensure_identities, load_certificate, load_federation, load_server_signer
from fedsec.translog.entries import EntryKind, LogEntry
from fedsec.translog.log import TransparencyLog
from server.session import Session


def build_secure_rounds(
    grid: Grid, plan: Plan, folder: RunFolder, data: FederatedData, *, dimension: int, noise_multiplier: float, defence: Defence,
    session: Session,
    cleanup: contextlib.ExitStack,
) -> SecureRounds:  # fmt: skip
    """Everything that the stages need, from the run's folder.

    Args:
        grid: way to the nodes.
        plan: what to run.
        folder: of the run.
        data: of the simulation.
        dimension: parameters of the model.
        noise_multiplier: sigma over clip norm.
        defence: who counts.
        session: listeners.
        cleanup: closes the log at the end of the run.

    Raises:
        StorageError: the folder's identities, journal or log are damaged.
        ConfigError: no sound encoding for this model.
    """
    now = datetime.now(UTC)
    identities = folder.path / "identities"
    names = [client_name(partition) for partition in range(plan.federation.num_clients)]
    ensure_identities(identities, names, federation=FEDERATION, cohort_size=plan.secagg.cohort_size, now=now)
    signer = load_server_signer(identities)
    log = cleanup.enter_context(TransparencyLog.open(folder.path / "log", signer, durable=False))
    weight_limit = weight_limit_of(plan, data)
    bound = update_bound(plan, dimension=dimension, noise_multiplier=noise_multiplier, weight_limit=weight_limit)
    sizes = [numbers.limits.num_clients for numbers in cohort_numbers(plan.secagg, plan.federation.num_clients)]
    return SecureRounds(
        grid=grid,
        plan=plan,
        membership=_membership(folder, log, signer, now),
        signer=signer,
        journal=Journal.load(folder.path / "rounds.json"),
        log=log,
        evidence_dir=folder.path / "evidence",
        saved_dir=folder.path / "unmasking",
        fixed_points={size: FixedPoint.for_norm(bound, num_clients=size, dimension=dimension) for size in sizes},
        weight_limit=weight_limit,
        defence=defence,
        stop=session.stop,
        on_answers=session.on_answers,
    )


def _membership(folder: RunFolder, log: TransparencyLog, signer: Signer, now: datetime) -> Membership:
    identities = folder.path / "identities"
    files = load_federation(identities)
    verified = verify_roster(
        files.signed_roster, intermediate_der=files.intermediate_der, root_der=files.root_der, federation=FEDERATION, now=now
    )
    roster = verified.roster
    if roster.server_public_key != signer.public_key:
        raise StorageError(f"the list of clients in {identities} names another server")
    by_id = roster.by_id
    cohorts = assign_cohorts(roster.cohort_seed, sorted(by_id), cohort_size=roster.cohort_size)
    return Membership(
        federation=roster.federation,
        roster=files.signed_roster.roster_bytes,
        signature=files.signed_roster.signature,
        roster_hash=verified.digest,
        intermediate=files.intermediate_der,
        server_certificate=files.server_certificate_der,
        certificates={name: load_certificate(identities, name) for name in sorted(by_id)},
        cohorts=tuple(tuple(Member(client_id=name, public_key=by_id[name].public_key) for name in names) for names in cohorts),
        log_index=_logged(log, LogEntry(kind=EntryKind.ROSTER, body=files.signed_roster.roster_bytes)),
    )


def _logged(log: TransparencyLog, entry: LogEntry) -> int:
    """The entry's place in the log; it is added if it is not there yet."""
    for index, known in enumerate(log.entries()):
        if known == entry:
            return index
    return log.append(entry)
