"""Stage 3 at a client: check the boxes, charge the ledger, train, encode, mask, and send; one message for training and upload.

1. Everything about the request is checked before the ledger is charged: boxes, model hash, and that the model has as many parameters as CONFIG says.
2. The ledger is charged before training; encoded input, masked input and sketch rows are stored in one commit before anything is sent.
3. A retry masks the *stored* input anew. It is never trained again, so nothing more is spent.
"""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
from flwr.app import Context, Message

from client.localdata import LocalData, local_data
from client.requests import open_store, require_model, round_key_of, run_terms, spend_of
from client.rounds import plain_update, train_update
from client.secagg import Call, address_of, stored_form
from client.settings import policy_of
from fedsec.clientstore.store import Answered, Charged, ClientStore, RoundQuestion
from fedsec.errors import PeerError
from fedsec.flower.records import ArrayMap
from fedsec.privacy.streams import Domain, KeyedStream, derive_key
from fedsec.secagg.client import Ready
from fedsec.secagg.client_keys import Dealt
from fedsec.secagg.fixedpoint import BYTES_PER_ENTRY, IntVector
from fedsec.secagg.labels import Phase
from fedsec.secagg.wire import Record
from fedsec.vectors import Layout


def answer_masked_input(message: Message, context: Context) -> Message:
    """Train and upload.

    Raises:
        PeerError: the request is unsound, or was answered in another form.
        PrivacyBudgetExceeded: the round would pass the cap; nothing was trained.
        StorageError: the store is damaged, rolled back or in use.
    """
    call = Call.of(message, context)
    ctx, name, request_hash = address_of(Phase.MASKED_INPUT, call.body)
    with open_store(call.client, call.request) as store:
        if (known := store.protocol.known_reply(ctx, name, request_hash)) is not None:
            return call.reply(known)
        ready = call.phase(store, Dealt).accept_dealings(call.body, verify=call.verify)
        arrays = call.arrays
        _check_model(call, ready, arrays)
        data = local_data(call.plan, call.client)
        question = _question(call, ready)
        ticket = store.begin_round(
            question,
            spend=spend_of(call.plan, call.request),
            # One training a round: in a simulation its key is the same for all attempts, so that a resumed run gives the same model.
            round_key=round_key_of(call.client, call.plan, call.request.with_attempt(1)),
            epsilon_cap=policy_of(call.client, call.plan).epsilon_cap,
            delta=min(policy_of(call.client, call.plan).delta, call.plan.privacy.delta),
            dataset_fingerprint=data.fingerprint,
            policy_digest=policy_of(call.client, call.plan).digest(),
            now=datetime.now(UTC),
        )
        num_rows = ready.seat.config.num_rows
        if isinstance(ticket, Answered):
            encoded = np.frombuffer(ticket.answer, dtype="<i4").astype(np.int32, copy=False)
            uploaded, body = _uploaded(call, ready, arrays, encoded)
            phase = stored_form(uploaded)
            store.protocol.store_upload(call.to_reply(ctx, name, request_hash, body, phase), num_rows=num_rows)
        else:
            encoded, personal = _trained(call, ready, arrays, data, store, ticket)
            uploaded, body = _uploaded(call, ready, arrays, encoded)
            phase = stored_form(uploaded)
            reply = call.to_reply(ctx, name, request_hash, body, phase)
            store.finish_round(
                question,
                encoded.astype("<i4", copy=False).tobytes(),
                personal=personal,
                also=lambda connection: store.protocol.write_upload(connection, reply, num_rows=num_rows),
            )
    call.keep(phase)
    return call.reply(body)


def _uploaded(call: Call, ready: Ready, arrays: ArrayMap, encoded: IntVector) -> tuple[Record, bytes]:
    """The masked vector; of a simulated client that lies in it, another."""
    uploaded, body = ready.upload(encoded, signer=call.credentials.signer)
    if call.plan.attack.name == "none":
        return uploaded, body
    from client import adversary  # noqa: PLC0415 - simulations with attackers only

    crew = adversary.crew_of(call.plan, call.client, call.request.server_round)
    if crew is None or not adversary.is_protocol_attack(call.plan):
        return uploaded, body
    wanted, _ = adversary.crafted(call.plan, call.request, arrays, crew, plain_update)
    fixed_point = ready.seat.config.fixed_point
    vector = Layout.of(arrays).flatten(wanted)
    poison = fixed_point.encode(vector, bytes(BYTES_PER_ENTRY * len(vector)))
    at = adversary.Stage(
        phase=Phase.MASKED_INPUT, server_round=call.request.server_round, signer=call.credentials.signer, matrix=call.matrix
    )  # fmt: skip
    return adversary.lie_to(call.plan, call.client, at, uploaded, body, honest=encoded, poison=poison)


def _check_model(call: Call, ready: Ready, arrays: ArrayMap) -> None:
    require_model(arrays)
    config = ready.seat.config
    if config.model_hash.hex() != call.request.model_hash or config.terms_hash.hex() != run_terms(call.request):
        raise PeerError("server", Phase.MASKED_INPUT, "the model or the plan is not the one in CONFIG")
    if (config.run_id, config.server_round, config.attempt) != (call.request.run_id, call.request.server_round, call.request.attempt):
        raise PeerError("server", Phase.MASKED_INPUT, "the request is for another round than CONFIG")
    if Layout.of(arrays).size != config.dimension:
        raise PeerError("server", Phase.MASKED_INPUT, f"the model has {Layout.of(arrays).size} parameters, CONFIG says {config.dimension}")


def _question(call: Call, ready: Ready) -> RoundQuestion:
    """The same for all attempts of a round: they are answered with one training."""
    return RoundQuestion(
        run_id=call.request.run_id,
        server_round=call.request.server_round,
        attempt=call.request.attempt,
        request_hash=ready.seat.config.retry_digest().hex(),
        model_hash=call.request.model_hash,
        terms=run_terms(call.request),
    )


def _trained(
    call: Call, ready: Ready, arrays: ArrayMap, data: LocalData, store: ClientStore, ticket: Charged
) -> tuple[IntVector, bytes | None]:  # fmt: skip
    """The encoded update, and the personal parameters to keep along with it."""
    update, personal = train_update(call.plan, call.request, arrays, data, store, ticket.round_key, call.client)
    vector = Layout.of(arrays).flatten(update)
    rounding = KeyedStream(derive_key(ticket.round_key, Domain.ROUNDING)).random_bytes(BYTES_PER_ENTRY * len(vector))
    return ready.seat.config.fixed_point.encode(vector, rounding), personal
