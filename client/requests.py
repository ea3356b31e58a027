"""What every handler of a client does with a request: who am I, does my policy let this plan in, which store is mine. Needs no torch."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from client.localdata import LocalData
from client.settings import DeployedClient, SimulatedClient, policy_of
from fedsec.clientstore.store import ClientStore
from fedsec.codec import digest_json
from fedsec.errors import DecodeError
from fedsec.flower import records
from fedsec.plan.model import Plan
from fedsec.policy import PolicyRefusedError
from fedsec.privacy.ledger import Spend
from fedsec.privacy.streams import derive_key, fresh_root, simulation_root

Client = SimulatedClient | DeployedClient


def run_terms(request: records.RoundRequest) -> str:
    """Hex digest of what stays the same over a run: the plan and its noise."""
    return digest_json("fedsec/run-terms/v1", [request.plan_json, request.noise_multiplier.hex()])


def admitted(request: records.RoundRequest, client: Client) -> Plan:
    """The plan of a request, once this client's policy lets the code that it names run."""
    plan = _plan(request.plan_json)
    if isinstance(client, DeployedClient) and plan.attack.name != "none":
        raise PolicyRefusedError("a plan with an attack is for simulations", field="attack.name", mend="remove the section [attack]")
    policy_of(client, plan).check_code(plan)
    return plan


@lru_cache(maxsize=8)
def _plan(text: str) -> Plan:
    return records.plan_from_canonical(text)


def require_model(arrays: records.ArrayMap) -> None:
    """Refuse a request without the model that it is about; ``records.read_request`` has held its hash against the request's.

    Raises:
        DecodeError: there is none.
    """
    if not arrays:
        raise DecodeError("the request holds no model: it is not the plan's")


def about_client(
    client: Client, request: records.RoundRequest, data: LocalData, segments: tuple[tuple[float, float, int], ...] = ()
) -> records.About:
    """The public constants beside a reply in clear."""
    return records.About(
        client_id=client.client_id,
        run_id=request.run_id,
        server_round=request.server_round,
        batch_size=data.batch_size,
        randomness="simulation seed" if isinstance(client, SimulatedClient) else "operating system",
        segments=segments,
    )


def open_store(client: Client, request: records.RoundRequest) -> ClientStore:
    """A deployed client's store lies where its own settings say; a simulated one's in the run's folder."""
    if isinstance(client, DeployedClient):
        return ClientStore.open(client.home, client_id=client.client_id, durable=True)
    folder = Path(request.simulation_dir) / client.client_id
    return ClientStore.open(folder, client_id=client.client_id, durable=False)


def spend_of(plan: Plan, request: records.RoundRequest) -> Spend:
    """What one round of the plan costs."""
    if not plan.is_private:
        return Spend(
            mechanism="none", noise_multiplier=0.0, sample_rate=plan.training.sample_rate, steps=plan.training.steps, clip_norm=0.0
        )
    return Spend(
        mechanism="dp-sgd",
        noise_multiplier=request.noise_multiplier,
        sample_rate=plan.training.sample_rate,
        steps=plan.training.steps,
        clip_norm=plan.privacy.clip_norm,
    )


def round_key_of(client: Client, plan: Plan, request: records.RoundRequest) -> bytes:
    """The secret that this round's sampling and noise derive from. The plan's seed is for simulations: a deployed client takes none."""
    if isinstance(client, DeployedClient):
        return fresh_root()
    return derive_key(simulation_root(plan.federation.seed), "round-key", client.client_id, str(request.server_round), str(request.attempt))
