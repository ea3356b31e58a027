"""A simulated client that attacks: certified like any other, and in league with the other attackers of the plan. Nothing here runs at the edge.

1. Who attacks and when follows from the plan alone, so every engine and every resumed run sees the same attack.
2. What the attackers know of others they compute themselves: in a simulation all records are at hand and all noise derives from the plan's seed.
   An omniscient attacker trains for every honest client; a partial one only for the colluders.
3. A process computes a round's knowledge once, whichever of its colluders asks first; equal knowledge gives equal bytes.

The attacks themselves are in ``fedsec.sim.attacks``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, Message

from client.collusion import remember
from client.localdata import LocalData, local_data
from client.pipeline import pipeline, rule_weights
from client.settings import SimulatedClient
from fedsec.data.federated import federated_data
from fedsec.data.sizes import weight_limit_of
from fedsec.errors import PeerError
from fedsec.flower.records import About, RoundRequest, make_reply
from fedsec.plan.model import Plan
from fedsec.privacy.streams import derive_key, simulation_root
from fedsec.robust.noise import noise_stddev_of
from fedsec.secagg.fixedpoint import IntVector
from fedsec.secagg.labels import Phase
from fedsec.secagg.seat import MakeMatrix
from fedsec.secagg.wire import Record
from fedsec.signing import Signer
from fedsec.sim.attacks.catalogue import CATALOGUE, Family, attackers, is_active
from fedsec.sim.attacks.knowledge import Knowledge, Sent
from fedsec.sim.attacks.malformed import RawArray, malform
from fedsec.sim.attacks.poison import poison_records
from fedsec.sim.attacks.protocol import Lie, tamper
from fedsec.vectors import FloatArray, Layout

ArrayMap = Mapping[str, npt.NDArray[np.generic]]
Train = Callable[[Plan, RoundRequest, ArrayMap, LocalData, bytes], dict[str, FloatArray]]
"""Train one client's update: plan, request, model, records, round key."""

REMEMBERED = ("replay", "free-rider")
"""Attacks that look back; for these the colluders keep what they had."""


@dataclass(frozen=True, kw_only=True)
class Crew:
    """The attackers of one round.

    Attributes:
        partitions: of all colluders, sorted.
        place: of this client among them.
    """

    partitions: tuple[int, ...]
    place: int


def crew_of(plan: Plan, client: object, server_round: int) -> Crew | None:
    """The crew, if this client is an attacker of this round; None for everybody else, and for every deployed client."""
    if plan.attack.name == "none" or not isinstance(client, SimulatedClient) or not is_active(plan.attack, server_round):
        return None
    partitions = attackers(plan.federation.num_clients, plan.attack.fraction, plan.federation.seed)
    if client.partition not in partitions:
        return None
    return Crew(partitions=partitions, place=partitions.index(client.partition))


def poisoned(plan: Plan, crew: Crew, data: LocalData) -> LocalData:
    """The records that an attacker trains on: its own, changed where the attack changes records."""
    if not CATALOGUE[plan.attack.name].poisons_records:
        return data
    generator = np.random.default_rng([plan.federation.seed, 5, crew.partitions[crew.place]])
    x, y = poison_records(
        plan.attack, data.x, data.y, num_classes=data.num_classes, place=crew.place, num_attackers=len(crew.partitions), generator=generator
    )
    return replace(data, x=x, y=y)


def crafted(plan: Plan, request: RoundRequest, arrays: ArrayMap, crew: Crew, train: Train) -> tuple[dict[str, FloatArray], int]:
    """What this attacker sends: arrays in sum form, and the batch size that it declares."""
    sent = _sent(_Round(plan=plan, request=request, arrays=arrays, crew=replace(crew, place=0), train=train))
    update = Layout.of(arrays).unflatten(sent.updates[crew.place])
    return update, int(sent.batch_sizes[crew.place])


def declared_size(plan: Plan, client: SimulatedClient, honest: int) -> int:
    """The batch size that a client declares before it trains: an attacker that dilutes declares more, as far as the federation lets anybody."""
    crew = crew_of(plan, client, plan.attack.first_round)
    if plan.attack.name != "dilution" or crew is None:
        return honest
    factor = plan.attack.strength if plan.attack.strength is not None else CATALOGUE["dilution"].default or 1.0
    data = federated_data(plan.data, num_clients=plan.federation.num_clients, seed=plan.federation.seed)
    return min(max(1, round(honest * max(1.0, abs(factor)))), weight_limit_of(plan, data))


def reply_in_clear(
    message: Message, plan: Plan, client: object, about: About, update: Mapping[str, FloatArray]
) -> Message | None:  # fmt: skip
    """What an attacker answers instead of its update in clear: a malformed message, or another declared batch size; None: as it is."""
    crew = crew_of(plan, client, about.server_round)
    if crew is None or not isinstance(client, SimulatedClient):
        return None
    if CATALOGUE[plan.attack.name].family is Family.MALFORMED:
        malformed = malform(plan.attack.name, update, about.batch_size)
        reply = make_reply(message, replace(about, batch_size=malformed.batch_size))
        reply.content["update"] = ArrayRecord({name: _on_the_wire(array) for name, array in malformed.arrays})
        return reply
    if plan.attack.name == "dilution":
        return make_reply(message, replace(about, batch_size=declared_size(plan, client, about.batch_size)), arrays=update)
    return None


def _on_the_wire(array: npt.NDArray[np.generic] | RawArray) -> Array:
    if isinstance(array, RawArray):
        return Array(dtype=array.dtype, shape=array.shape, stype="numpy.ndarray", data=array.data)
    return Array(np.ascontiguousarray(array))


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of secure aggregation at a simulated client, done honestly and not yet sent.

    Attributes:
        phase: that is answered.
        server_round: of the request.
        signer: of the client's identity key.
        matrix: how to make R.
    """

    phase: Phase
    server_round: int
    signer: Signer
    matrix: MakeMatrix


def lie_to(
    plan: Plan, client: object, stage: Stage, state: Record, body: bytes, *, honest: IntVector, poison: IntVector | None = None
) -> tuple[Record, bytes]:  # fmt: skip
    """What is kept and sent instead; the same two for everybody who does not lie here.

    Args:
        plan: with or without an attack.
        client: this one.
        stage: what is answered.
        state: next phase.
        body: honest answer.
        honest: int32 [d], its encoded update.
        poison: int32 [d], what it wants in the sum instead; only an upload needs it.

    Raises:
        PeerError: the liar says nothing at this stage.
    """
    crew = crew_of(plan, client, stage.server_round)
    if crew is None or not is_protocol_attack(plan):
        return state, body
    lie = Lie(
        name=plan.attack.name,
        honest=honest,
        poison=poison if poison is not None else honest,
        place=crew.place,
        num_attackers=len(crew.partitions),
        server_round=stage.server_round,
        seed=plan.federation.seed,
        signer=stage.signer,
        matrix=stage.matrix,
    )
    told = tamper(lie, stage.phase, state, body)
    if told is None:
        raise PeerError("server", stage.phase, "this client says nothing")
    return told


def is_protocol_attack(plan: Plan) -> bool:
    """Whether the attackers lie inside secure aggregation, with honest updates."""
    return plan.attack.name != "none" and CATALOGUE[plan.attack.name].family is Family.PROTOCOL


@dataclass(frozen=True, kw_only=True, eq=False)
class _Round:
    plan: Plan
    request: RoundRequest
    arrays: ArrayMap
    crew: Crew
    train: Train

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Round) and self._key == other._key

    @property
    def _key(self) -> tuple[str, int, str, str]:
        return self.request.run_id, self.request.server_round, self.request.model_hash, self.request.plan_json


@lru_cache(maxsize=1)
def _sent(of: _Round) -> Sent:
    """The whole crew's messages; computed once a process and round."""
    plan, request = of.plan, of.request
    own, own_sizes = _updates(of, of.crew.partitions)
    known, sizes = own, own_sizes
    if plan.attack.knowledge == "omniscient" and CATALOGUE[plan.attack.name].sees_others:
        honest = tuple(place for place in range(plan.federation.num_clients) if place not in of.crew.partitions)
        known, sizes = _updates(of, honest)
    history = remember(request, of.arrays, own, own_sizes) if plan.attack.name in REMEMBERED else ()
    stddev = _noise_stddev(plan, request.noise_multiplier)
    knowledge = Knowledge(
        known=known,
        batch_sizes=sizes,
        own=own,
        own_batch_sizes=own_sizes,
        num_clients=plan.federation.num_clients,
        server_round=request.server_round,
        noise_stddev=stddev,
        settings=plan.attack,
        generator=np.random.default_rng([plan.federation.seed, 6, request.server_round]),
        run_seed=plan.federation.seed,
        direction=_raise_class(Layout.of(of.arrays), plan.attack.target_class or 0),
        server_learning_rate=plan.training.server_learning_rate,
        aggregate=rule_weights(plan),
        screen=pipeline(plan, stddev, np.concatenate([sizes, own_sizes])),
        history=history,
    )
    return CATALOGUE[plan.attack.name].craft(knowledge)


def _updates(of: _Round, partitions: tuple[int, ...]) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """Updates in sum form as these clients train them, [m, d], and what they declare, [m]; attackers on their changed records."""
    layout, rows, sizes = Layout.of(of.arrays), [], []
    for partition in partitions:
        client = SimulatedClient(partition=partition, num_partitions=of.plan.federation.num_clients)
        data = local_data(of.plan, client)
        if partition in of.crew.partitions:
            data = poisoned(of.plan, replace(of.crew, place=of.crew.partitions.index(partition)), data)
        round_key = derive_key(simulation_root(of.plan.federation.seed), "round-key", client.client_id, str(of.request.server_round), "1")
        rows.append(layout.flatten(of.train(of.plan, of.request, of.arrays, data, round_key)))
        sizes.append(data.batch_size)
    return np.stack(rows), np.array(sizes, dtype=np.int64)


def _noise_stddev(plan: Plan, noise_multiplier: float) -> float:
    if not plan.is_private:
        return 0.0
    training = plan.training
    return noise_stddev_of(
        steps=training.steps,
        learning_rate=training.learning_rate,
        momentum=training.momentum,
        noise_multiplier=noise_multiplier,
        clip_norm=plan.privacy.clip_norm,
    )


def _raise_class(layout: Layout, target: int) -> npt.NDArray[np.float64] | None:
    """The direction that raises one class's score whatever the record: its bias up, the others down; None for a model without such a bias."""
    biases = [name for name, shape in layout.entries if name.endswith("bias") and len(shape) == 1]
    if not biases:
        return None
    arrays = {name: np.zeros(shape, dtype=np.float32) for name, shape in layout.entries}
    last = arrays[biases[-1]]
    if len(last) < 2 or target >= len(last):
        return None
    last[:] = -1.0 / (len(last) - 1)
    last[target] = 1.0
    direction: npt.NDArray[np.float64] = layout.flatten(arrays).astype(np.float64)
    return direction
