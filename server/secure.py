"""Secure aggregation at the server: identities, roster, log and encoding of one run, put together."""

from __future__ import annotations

import contextlib

from flwr.serverapp import Grid

from fedsec.defence import Defence
from fedsec.errors import LocalProtocolError
from fedsec.flower.journal import Journal
from fedsec.flower.roster import Membership
from fedsec.flower.stages import SecureRounds
from fedsec.plan.model import Plan
from fedsec.plan.secure import update_bound
from fedsec.runfolder import RunFolder
from fedsec.secagg.cohorts import assign_cohorts
from fedsec.secagg.config import Member
from fedsec.secagg.fixedpoint import FixedPoint
from fedsec.translog.entries import EntryKind, LogEntry
from fedsec.translog.log import TransparencyLog
from server.session import Session
from server.world import Federation, World


def build_secure_rounds(
    grid: Grid, plan: Plan, folder: RunFolder, world: World, *, dimension: int, noise_multiplier: float, defence: Defence,
    session: Session,
    cleanup: contextlib.ExitStack,
) -> SecureRounds:  # fmt: skip
    """Everything that the stages need.

    Args:
        grid: way to the nodes, signing (``World.way``).
        plan: what to run.
        folder: of the run.
        world: what it stands on.
        dimension: parameters of the model.
        noise_multiplier: sigma over clip norm.
        defence: who counts.
        session: listeners.
        cleanup: closes the log at the end of the run.

    Raises:
        StorageError: journal or log are damaged.
        ConfigError: no sound encoding for this model.
    """
    federation = world.federation
    if federation is None:
        raise LocalProtocolError("secure aggregation without identities")
    signer = federation.identity().signer
    log = cleanup.enter_context(TransparencyLog.open(federation.log_folder, signer, durable=federation.durable))
    bound = update_bound(plan, dimension=dimension, noise_multiplier=noise_multiplier, weight_limit=world.weight_limit)
    membership = _membership(federation, log)

    def encodings(of: Membership) -> dict[int, FixedPoint]:
        return {size: FixedPoint.for_norm(bound, num_clients=size, dimension=dimension) for size in {len(cohort) for cohort in of.cohorts}}

    def newer() -> tuple[Membership, dict[int, FixedPoint]] | None:
        found = world.newer()
        return None if found is None else ((members := _membership(found, log)), encodings(members))

    return SecureRounds(
        grid=grid,
        plan=plan,
        membership=membership,
        signer=signer,
        journal=Journal.load(folder.path / "rounds.json"),
        log=log,
        evidence_dir=folder.path / "evidence",
        saved_dir=folder.path / "unmasking",
        fixed_points=encodings(membership),
        newer=newer,
        weight_limit=world.weight_limit,
        defence=defence,
        stop=session.stop,
        on_answers=session.on_answers,
    )


def _membership(federation: Federation, log: TransparencyLog) -> Membership:
    roster, identity = federation.verified.roster, federation.identity()
    by_id = roster.by_id
    cohorts = assign_cohorts(roster.cohort_seed, sorted(by_id), cohort_size=roster.cohort_size)
    return Membership(
        federation=roster.federation,
        roster=federation.signed.roster_bytes,
        signature=federation.signed.signature,
        roster_hash=federation.verified.digest,
        intermediate=identity.intermediate_der,
        server_certificate=identity.certificate_der,
        certificates=dict(federation.certificates),
        cohorts=tuple(tuple(Member(client_id=name, public_key=by_id[name].public_key) for name in names) for names in cohorts),
        log_index=_logged(log, LogEntry(kind=EntryKind.ROSTER, body=federation.signed.roster_bytes)),
    )


def _logged(log: TransparencyLog, entry: LogEntry) -> int:
    """The entry's place in the log; it is added if it is not there yet."""
    for index, known in enumerate(log.entries()):
        if known == entry:
            return index
    return log.append(entry)
