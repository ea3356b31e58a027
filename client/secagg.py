"""A client's stages of secure aggregation over Flower's messages: check, step the state machine, store the reply, send it. Needs no torch.

1. What the server may ask is decided three times: by this client's policy (before anything else), by its store (what was answered before, and to
   whom), and by the state machine (``fedsec.secagg.client``), which checks every byte of the request.
2. The reply is stored, durably, before it is sent; the same request gets the same bytes. The machine's phase lives in ``Context.state``: in
   memory, so that a restart forgets every secret of a round and sits the rest of it out.
3. Randomness comes from the operating system, in simulations too: masks cancel, so results do not depend on it.
4. Beside its masked vector a client sends its declared weight and protocol messages; nothing else leaves in clear.

The stage that trains is in ``client/secagg_input.py``: it alone imports torch.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from flwr.app import ConfigRecord, Context, Message

from client.credentials import Credentials, accept_roster, check_cohort, credentials_of
from client.localdata import declared_batch_size
from client.requests import Client, admitted, open_store, run_terms
from client.settings import SimulatedClient, identify, policy_of
from fedsec.clientstore.protocol import Attempt, KeptRoster, Reply
from fedsec.clientstore.store import ClientStore
from fedsec.codec import digest
from fedsec.errors import ConfigError, DecodeError, LogProofError, PeerError, VerificationError
from fedsec.flower import records
from fedsec.flower.secure_records import KeptCohort, RosterOffer, RosterReply, make_stage_reply, read_body
from fedsec.plan.model import Plan
from fedsec.plan.robust import rule_of
from fedsec.plan.secure import cohort_limits
from fedsec.secagg.checks import read_config
from fedsec.secagg.client import Consented, Ready, Sketched, Uploaded
from fedsec.secagg.client_blame import Unmasked
from fedsec.secagg.client_keys import JOIN_BYTES, Advertised, Dealt, deal_bytes, join
from fedsec.secagg.config import RoundConfig
from fedsec.secagg.labels import SEED_BYTES, Phase
from fedsec.secagg.messages import (
    BlameRequest,
    BlameValues,
    ConsistencyRequest,
    MaskedInputRequest,
    OpenEdgeRequest,
    ShareKeysRequest,
    SketchRequest,
    UnmaskRequest,
)
from fedsec.secagg.seat import MakeMatrix, plain_matrix
from fedsec.secagg.sketch import SketchMatrix
from fedsec.secagg.wire import Record
from fedsec.signing import VerificationCache, Verify, verify_signature

_STATE = "secagg"
_PHASES: dict[int, type[Record]] = {kind.TYPE: kind for kind in (Advertised, Dealt, Ready, Uploaded, Sketched, Consented, Unmasked)}
_REQUESTS: dict[Phase, type[Record]] = {
    Phase.SHARE_KEYS: ShareKeysRequest,
    Phase.MASKED_INPUT: MaskedInputRequest,
    Phase.SKETCH: SketchRequest,
    Phase.CONSISTENCY_CHECK: ConsistencyRequest,
    Phase.BLAME: BlameRequest,
}
_REQUEST_LABEL = "fedsec/secagg-request/v1"
_shared_cache = VerificationCache()

P = TypeVar("P", bound=Record)


@dataclass(frozen=True, kw_only=True)
class Call:
    """One stage's request at this client, admitted by its policy.

    Attributes:
        message: as received.
        context: Flower's, with this client's phase.
        request: the ordinary part of it.
        arrays: the model, where the stage is sent one.
        body: the stage's record.
        client: who this is.
        plan: admitted.
        credentials: key and root.
    """

    message: Message
    context: Context
    request: records.RoundRequest
    arrays: records.ArrayMap
    body: bytes
    client: Client
    plan: Plan
    credentials: Credentials

    @classmethod
    def of(cls, message: Message, context: Context) -> Call:
        """Read a request and hold its plan against this client's policy."""
        request, arrays = records.read_request(message)
        client = identify(context.node_config)
        plan = admitted(request, client)
        policy_of(client, plan).check_training(plan, request.noise_multiplier)
        if not plan.secagg.enabled:
            raise ConfigError("the plan has no secure aggregation", field="secagg.enabled")
        credentials = credentials_of(client, request.simulation_dir)
        return cls(
            message=message,
            context=context,
            request=request,
            arrays=arrays,
            body=read_body(message),
            client=client,
            plan=plan,
            credentials=credentials,
        )

    @property
    def verify(self) -> Verify:
        """How signatures are checked: each once a process in simulations, where many clients check the same one."""
        return _shared_cache if isinstance(self.client, SimulatedClient) else verify_signature

    @property
    def matrix(self) -> MakeMatrix:
        """How R is made: once a process in simulations."""
        return _shared_matrix if isinstance(self.client, SimulatedClient) else plain_matrix

    def phase(self, store: ClientStore, *kinds: type[P]) -> P:
        """This client's phase, which must be one of ``kinds``, in the run and round of the request.

        Raises:
            PeerError: it is another, or was lost: this client sits the round out.
        """
        record = self.context.state.config_records.get(_STATE)
        kind, data = (record["kind"], record["data"]) if record is not None else store.protocol.phase(self.request.run_id) or (None, b"")
        found = _PHASES.get(kind) if isinstance(kind, int) else None
        if found not in kinds or not isinstance(data, bytes):
            raise PeerError("server", str(self.message.metadata.message_type), "this client is not in the phase that the request is for")
        phase: P = found.decode(data)
        return phase

    def keep(self, phase: tuple[int, bytes]) -> None:
        """Be in a phase, given as kind and bytes, from now on."""
        self.context.state[_STATE] = ConfigRecord({"kind": phase[0], "data": phase[1]})

    def to_reply(self, ctx: bytes, stage: str, request_hash: bytes, data: bytes, phase: tuple[int, bytes]) -> Reply:
        """What the store keeps of an answer.

        A simulated client's phase goes along: where a simulation is resumed, its nodes are new processes, as no SuperNode would be. Its
        secrets protect nobody. At the edge the phase is in memory only.
        """
        kept = phase if isinstance(self.client, SimulatedClient) else None
        return Reply(context=ctx, stage=stage, request_hash=request_hash, data=data, phase=kept)

    def reply(self, body: bytes) -> Message:
        """The answer to this request."""
        return make_stage_reply(self.message, body)


@lru_cache(maxsize=1)
def _shared_matrix(seed: bytes, num_rows: int, dimension: int) -> SketchMatrix:
    return SketchMatrix(seed=seed, num_rows=num_rows, dimension=dimension, keep=True)


def stored_form(phase: Record) -> tuple[int, bytes]:
    """Kind and bytes of a phase."""
    return phase.TYPE, phase.encode()


def answer_roster(message: Message, context: Context) -> Message:
    """Check the CA's list of clients, keep this client's cohort, and follow the log."""
    call = Call.of(message, context)
    offer = RosterOffer.decode(call.body)
    now = datetime.now(UTC).replace(second=0, microsecond=0)  # to the minute: simulated clients then share what was verified
    num_corrupt = policy_of(call.client, call.plan).num_corrupt
    with open_store(call.client, call.request) as store:
        kept = store.protocol.roster(call.credentials.federation)
        try:
            accepted = accept_roster(offer, call.credentials, kept=kept, now=now, verify=call.verify, num_corrupt=num_corrupt)
        except LogProofError:
            if kept is None:
                raise
            return call.reply(RosterReply(accepted=0, log_size=kept.log_size).encode())
        store.protocol.keep_roster(accepted)
    return call.reply(RosterReply(accepted=1, log_size=accepted.log_size).encode())


def answer_advertise_keys(message: Message, context: Context) -> Message:
    """Stage 0 and 1: hold CONFIG against roster, plan and policy; join once; advertise fresh keys."""
    call = Call.of(message, context)
    with open_store(call.client, call.request) as store:
        kept = store.protocol.roster(call.credentials.federation)
        if kept is None:
            raise PeerError("server", Phase.ADVERTISE_KEYS, "this client has no list of clients yet")
        cohort = KeptCohort.decode(kept.body)
        check_cohort(cohort, call.credentials, num_corrupt=policy_of(call.client, call.plan).num_corrupt)
        config = read_config(call.body, server_key=cohort.server_key, verify=call.verify)
        ctx = config.context()
        if (known := store.protocol.known_reply(ctx, Phase.ADVERTISE_KEYS, ctx)) is not None:
            return call.reply(known)
        _check_config(call, config, kept, cohort)
        policy = policy_of(call.client, call.plan).local_policy(is_private=call.plan.is_private)
        advertised, data = join(
            config,
            cohort.members,
            cohort.index,
            policy=policy,
            weight=declared_batch_size(call.plan, call.client),
            signer=call.credentials.signer,
            randomness=secrets.token_bytes(JOIN_BYTES),
        )
        attempt = Attempt(
            run_id=config.run_id,
            server_round=config.server_round,
            attempt=config.attempt,
            context=ctx,
            retry=config.retry_digest(),
            commitment=config.nonce_commitment,
        )
        phase = stored_form(advertised)
        store.protocol.join(attempt, call.to_reply(ctx, Phase.ADVERTISE_KEYS, ctx, data, phase))
    call.keep(phase)
    return call.reply(data)


def _check_config(call: Call, config: RoundConfig, kept: KeptRoster, cohort: KeptCohort) -> None:
    """CONFIG is for this roster, cohort, plan and request, and its numbers are those that the plan gives.

    Raises:
        PeerError: it is not; nothing was joined.
    """
    limits = cohort_limits(call.plan.secagg, num_clients=cohort.num_clients, size=len(cohort.members), cohorts=cohort.num_cohorts)
    secagg, request = call.plan.secagg, call.request
    facts = (
        (config.federation, call.credentials.federation, "federation"),
        (config.roster_hash, kept.digest, "roster"),
        ((config.cohort, config.num_cohorts), (cohort.cohort, cohort.num_cohorts), "cohort"),
        ((config.run_id, config.server_round, config.attempt), (request.run_id, request.server_round, request.attempt), "round"),
        (config.model_hash.hex(), request.model_hash, "model"),
        (config.terms_hash.hex(), run_terms(request), "plan"),
        (config.limits, limits, "limits of the cohort"),
        ((config.num_rows, config.norm_slack, config.rule), (secagg.sketch_rows, secagg.norm_slack, rule_of(call.plan)), "rule"),
        (config.attempt <= secagg.attempts, True, "attempt"),
        (cohort.not_before_s <= config.time_s <= cohort.not_after_s, True, "time"),
        (int(time.time()) <= cohort.not_after_s, True, "list of clients, whose period is over by this client's clock,"),
    )
    for given, expected, what in facts:
        if given != expected:
            raise PeerError("server", Phase.ADVERTISE_KEYS, f"the {what} in CONFIG is not the one that this client knows")


def answer_share_keys(message: Message, context: Context) -> Message:
    """Stage 2."""

    def step(call: Call, phase: Advertised, _store: ClientStore) -> tuple[Record, bytes]:
        randomness = secrets.token_bytes(deal_bytes(phase.seat.config.threshold))
        return phase.share_keys(call.body, signer=call.credentials.signer, verify=call.verify, randomness=randomness)

    return run_stage(message, context, Phase.SHARE_KEYS, (Advertised,), step)


def answer_sketch(message: Message, context: Context) -> Message:
    """Stage 4: of the very vector that was uploaded, as the store holds it."""

    def step(call: Call, phase: Uploaded, store: ClientStore) -> tuple[Record, bytes]:
        stored = store.answer(call.request.run_id, call.request.server_round)
        if stored is None:
            raise PeerError("server", Phase.SKETCH, "the input of this round is kept no longer")
        encoded = np.frombuffer(stored, dtype="<i4").astype(np.int32, copy=False)
        salt = secrets.token_bytes(SEED_BYTES)
        return phase.sketch(call.body, encoded, signer=call.credentials.signer, salt=salt, matrix=call.matrix)

    return run_stage(message, context, Phase.SKETCH, (Uploaded,), step)


def answer_consistency_check(message: Message, context: Context) -> Message:
    """Stage 5."""

    def step(call: Call, phase: Sketched, _store: ClientStore) -> tuple[Record, bytes]:
        return phase.consent(call.body, signer=call.credentials.signer, verify=call.verify)

    return run_stage(message, context, Phase.CONSISTENCY_CHECK, (Sketched,), step)


def answer_unmask(message: Message, context: Context) -> Message:
    """Stage 6: shares leave here, once, against a certificate."""

    def step(call: Call, phase: Sketched | Consented, _store: ClientStore) -> tuple[Record, bytes]:
        return phase.unmask(call.body, signer=call.credentials.signer, verify=call.verify)

    return run_stage(message, context, Phase.UNMASK, (Sketched, Consented), step, unmask=True)


def answer_blame(message: Message, context: Context) -> Message:
    """Stage 8: sign the sketches of the masks with other accepted members."""

    def step(call: Call, phase: Unmasked, _store: ClientStore) -> tuple[Record, bytes]:
        return phase, phase.blame_values(call.body, signer=call.credentials.signer, matrix=call.matrix)

    return run_stage(message, context, Phase.BLAME, (Unmasked,), step)


def answer_blame_open(message: Message, context: Context) -> Message:
    """Stage 8: open one edge to a peer that signed another value for it."""

    def step(call: Call, phase: Unmasked, _store: ClientStore) -> tuple[Record, bytes]:
        return phase.open_edge(call.body, signer=call.credentials.signer, verify=call.verify, matrix=call.matrix)

    return run_stage(message, context, Phase.BLAME_OPEN, (Unmasked,), step)


def run_stage(
    message: Message,
    context: Context,
    stage: Phase,
    kinds: tuple[type[Record], ...],
    step: Callable[[Call, Any, ClientStore], tuple[Record, bytes]],
    *,
    unmask: bool = False,
) -> Message:
    """Answer one stage: with what was answered before, or with one step of the machine, stored before it is sent."""
    call = Call.of(message, context)
    ctx, name, request_hash = address_of(stage, call.body)
    with open_store(call.client, call.request) as store:
        if (known := store.protocol.known_reply(ctx, name, request_hash)) is not None:
            return call.reply(known)
        stepped, data = step(call, call.phase(store, *kinds), store)
        if call.plan.attack.name != "none":
            stepped, data = _attacked(call, stage, store, stepped, data)
        phase = stored_form(stepped)
        store.protocol.store_reply(call.to_reply(ctx, name, request_hash, data, phase), unmask=unmask)
    call.keep(phase)
    return call.reply(data)


def _attacked(call: Call, stage: Phase, store: ClientStore, stepped: Record, data: bytes) -> tuple[Record, bytes]:
    """What a simulated client that lies says instead; a deployed one never gets here: it refuses plans with attacks."""
    from client import adversary  # noqa: PLC0415 - simulations with attackers only

    stored = store.answer(call.request.run_id, call.request.server_round)
    if stored is None:
        return stepped, data
    honest = np.frombuffer(stored, dtype="<i4").astype(np.int32, copy=False)
    at = adversary.Stage(phase=stage, server_round=call.request.server_round, signer=call.credentials.signer, matrix=call.matrix)
    return adversary.lie_to(call.plan, call.client, at, stepped, data, honest=honest)


def address_of(stage: Phase, body: bytes) -> tuple[bytes, str, bytes]:
    """Context, outbox name and request hash of a stage's body.

    The hash covers what is asked, not the signatures under it: of UNMASK without the certificate, of BLAME_OPEN the peer. Any certificate for
    the same sets gets the same bytes.
    """
    try:
        if stage is Phase.UNMASK:
            agreement: ConsistencyRequest = UnmaskRequest.decode(body).agreement()
            return agreement.context, stage, digest(_REQUEST_LABEL, stage.encode(), agreement.encode())
        if stage is Phase.BLAME_OPEN:
            request = OpenEdgeRequest.decode(body)
            peer = BlameValues.decode(request.peer_values.content).sender
            return request.context, f"{stage}:{peer}", digest(_REQUEST_LABEL, stage.encode(), str(peer).encode())
        kind = _REQUESTS[stage]
        decoded = kind.decode(body)
    except (DecodeError, VerificationError) as error:
        raise PeerError("server", stage, str(error)) from None
    context: bytes = decoded.context  # type: ignore[attr-defined]
    return context, stage, digest(_REQUEST_LABEL, stage.encode(), body)
