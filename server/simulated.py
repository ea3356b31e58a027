"""The world of a simulation: a throw-away CA in the run's folder certifies server and clients, and this process knows all records."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial

from fedsec.data.federated import federated_data
from fedsec.data.sizes import weight_limit_of
from fedsec.errors import StorageError
from fedsec.flower.signed import ServerIdentity
from fedsec.identity.roster import verify_roster
from fedsec.plan.model import Plan
from fedsec.runfolder import RunFolder
from fedsec.sim.identities import FEDERATION, client_name, ensure_identities, load_certificate, load_federation, load_server_signer
from server.world import Federation, World


def simulated_world(plan: Plan, folder: RunFolder) -> World:
    """Load the records, and make or renew the identities where the plan needs them.

    Raises:
        DataError, ConfigError: the plan's records cannot be had.
        StorageError: the folder's identities are damaged.
    """
    data = federated_data(plan.data, num_clients=plan.federation.num_clients, seed=plan.federation.seed)
    return World(
        dataset=data.dataset,
        parts=data,
        weight_limit=weight_limit_of(plan, data),
        randomness="simulation seed",
        simulation_dir=str(folder.clients),
        federation=_federation(plan, folder) if plan.secagg.enabled else None,
    )


def _federation(plan: Plan, folder: RunFolder) -> Federation:
    now = datetime.now(UTC)
    identities = folder.path / "identities"
    names = [client_name(number) for number in range(plan.federation.num_clients)]
    ensure_identities(identities, names, federation=FEDERATION, cohort_size=plan.secagg.cohort_size, now=now)
    files, signer = load_federation(identities), load_server_signer(identities)
    verified = verify_roster(
        files.signed_roster,
        intermediate_der=files.intermediate_der,
        root_der=files.root_der,
        federation=FEDERATION,
        now=now,
        accepted=None,  # a throw-away CA that nobody rekeys
    )
    if verified.roster.server_public_key != signer.public_key:
        raise StorageError(f"the list of clients in {identities} names another server")
    identity = ServerIdentity(signer=signer, certificate_der=files.server_certificate_der, intermediate_der=files.intermediate_der)
    return Federation(
        identity=lambda: identity,
        signed=files.signed_roster,
        verified=verified,
        certificates={name: load_certificate(identities, name) for name in sorted(verified.roster.by_id)},
        log_folder=folder.path / "log",
        durable=False,
        now=partial(datetime.now, UTC),
    )
