"""What a client does with each message, and in which order: policy, ledger, training, store, reply.

1. Nothing is read from the records before the client's own policy has agreed to the plan.
2. The ledger is charged, durably, before training; the update is stored, durably, before it is sent. So a crash never forgets a
   spend, and the same question asked again gets the same bytes (docs/decisions/0003).
3. Noise and sampling derive from one round key: fresh from the operating system at the edge, from the plan's seed in a simulation.
4. Beside the update, a reply holds public constants only.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Message
from torch import nn

from client.localdata import LocalData, local_data
from client.requests import Client, about_client, admitted, open_store, require_model, round_key_of, run_terms, spend_of
from client.settings import SimulatedClient, identify, policy_of
from client.train import local_update
from fedsec.clientstore.store import FITTED, TRAINED, Answered, ClientStore, RoundQuestion
from fedsec.errors import ConfigError, DataError, DecodeError
from fedsec.flower import records
from fedsec.models.evaluation import evaluate
from fedsec.models.factory import build_model
from fedsec.models.parameters import get_arrays, set_arrays, split_names
from fedsec.models.personal import fit_personal
from fedsec.models.sparse import refuse_sparse_layers
from fedsec.plan.model import Plan
from fedsec.privacy.dpsgd import SgdSettings
from fedsec.privacy.streams import RoundStreams
from fedsec.robust.validation import MAX_ENTRY_PER_RECORD
from fedsec.vectors import FloatArray, Layout

_logger = logging.getLogger(__name__)


def answer_describe(message: Message, node_config: Mapping[str, Any]) -> Message:
    """Who this client is and what it will declare; reads the records only to know that they are there."""
    request, _ = records.read_request(message)
    client = identify(node_config)
    plan = admitted(request, client)
    policy_of(client, plan).check_training(plan, request.noise_multiplier)
    return records.make_reply(message, about_client(client, request, local_data(plan, client)))


def answer_train(message: Message, node_config: Mapping[str, Any]) -> Message:
    """One round.

    Raises:
        ConfigError: the plan asks for less protection than this client insists on, or is not for its records.
        PrivacyBudgetExceeded: the round would pass the cap; nothing was trained.
        StorageError: the store is damaged, rolled back, in use, or holds another answer for this round.
    """
    request, arrays = records.read_request(message)
    client = identify(node_config)
    plan = admitted(request, client)
    policy = policy_of(client, plan)
    policy.check_training(plan, request.noise_multiplier)
    policy.check_clear_update(plan)
    require_model(arrays)
    data = local_data(plan, client)
    question = RoundQuestion(
        run_id=request.run_id,
        server_round=request.server_round,
        attempt=request.attempt,
        request_hash=request.request_hash(),
        model_hash=request.model_hash,
        terms=run_terms(request),
    )
    with open_store(client, request) as store:
        ticket = store.begin_round(
            question,
            spend=spend_of(plan, request),
            round_key=round_key_of(client, plan, request),
            epsilon_cap=policy.epsilon_cap,
            delta=min(policy.delta, plan.privacy.delta),
            dataset_fingerprint=data.fingerprint,
            policy_digest=policy.digest(),
            now=datetime.now(UTC),
        )
        if isinstance(ticket, Answered):
            update = _decode(ticket.answer)
        else:
            update, personal = train_update(plan, request, arrays, data, store, ticket.round_key, client)
            store.finish_round(question, _encode(update), personal=personal)
        spends = store.segments() if plan.is_private else ()
    segments = tuple((spend.noise_multiplier, spend.sample_rate, spend.steps) for spend in spends)
    about = about_client(client, request, data, segments)
    if plan.attack.name != "none":
        from client import adversary  # noqa: PLC0415 - simulations with attackers only

        if (attacked := adversary.reply_in_clear(message, plan, client, about, update)) is not None:
            return attacked
    return records.make_reply(message, about, arrays=update)


def answer_personalise(message: Message, node_config: Mapping[str, Any]) -> Message:
    """Fit the personal parameters to this client's records and keep them; they are never used in training, and never sent."""
    request, arrays = records.read_request(message)
    client = identify(node_config)
    plan = admitted(request, client)
    require_model(arrays)
    data = local_data(plan, client)
    model, personal_names = _model(plan, data, arrays)
    if not personal_names or plan.model.personal_fit != "after-release":
        raise ConfigError("the plan has no parameters to fit after the release", field="model.personal")
    fitted = fit_personal(model, personal_names, data.x, data.y, device=plan.training.device)
    with open_store(client, request) as store:
        store.set_fitted(request.run_id, _encode(fitted))
    return records.make_reply(message, about_client(client, request, data))


def answer_evaluate(message: Message, node_config: Mapping[str, Any]) -> Message:
    """This client's own test result: a release in clear, so only by its policy's leave.

    Raises:
        ConfigError: the policy does not allow it, or the plan does not ask for it.
    """
    request, arrays = records.read_request(message)
    client = identify(node_config)
    plan = admitted(request, client)
    policy_of(client, plan).check_evaluation()
    if not plan.federation.evaluate_clients:
        raise ConfigError("the plan does not say that clients report test results", field="federation.evaluate_clients")
    require_model(arrays)
    data = local_data(plan, client)
    model, _ = _model(plan, data, arrays)
    shared = evaluate(model, data.x_test, data.y_test, num_classes=data.num_classes, device=plan.training.device)
    personal, kept = shared, None
    if isinstance(
        client, SimulatedClient
    ):  # parameters fitted without noise tell of training records: their result never leaves a real client
        with open_store(client, request) as store:
            kept = store.personal(request.run_id, TRAINED if plan.model.personal_fit == "dp" else FITTED)
    if kept is not None:
        set_arrays(model, _decode(kept))
        personal = evaluate(model, data.x_test, data.y_test, num_classes=data.num_classes, device=plan.training.device)
    metrics = {"accuracy": shared.accuracy, "personal_accuracy": personal.accuracy, "num_examples": shared.num_examples}
    return records.make_reply(message, about_client(client, request, data), metrics=metrics)


def _model(plan: Plan, data: LocalData, arrays: Mapping[str, npt.NDArray[np.generic]]) -> tuple[nn.Module, tuple[str, ...]]:
    """The model with the shared parameters that were sent, personal ones at their public constant; and the personal names."""
    model = build_model(plan.model, input_shape=data.x.shape[1:], num_classes=data.num_classes, seed=plan.federation.seed)
    shared, personal = split_names(model, plan.model.personal)
    try:
        Layout.of(get_arrays(model, shared)).check(arrays)
        set_arrays(model, {name: np.asarray(array, dtype=np.float32) for name, array in arrays.items()})
    except ValueError as error:
        _logger.warning("the model sent does not fit: %s", error)  # the server is not told the shapes that this client's records give
        raise DecodeError("the model sent is not the plan's") from None
    return model, personal


def train_update(
    plan: Plan,
    request: records.RoundRequest,
    arrays: Mapping[str, npt.NDArray[np.generic]],
    data: LocalData,
    store: ClientStore,
    round_key: bytes,
    client: Client,
) -> tuple[dict[str, FloatArray], bytes | None]:
    """The update, and with ``personal_fit = "dp"`` the personal parameters to keep along with it; a simulated attacker's is another.

    Raises:
        DataError: the training diverged: nothing that is not a number is ever sent.
    """
    if plan.attack.name != "none":
        from client import adversary  # noqa: PLC0415 - simulations with attackers only

        crew = adversary.crew_of(plan, client, request.server_round)
        if crew is not None and not adversary.is_protocol_attack(plan):
            return adversary.crafted(plan, request, arrays, crew, plain_update)[0], None
    kept = store.personal(request.run_id, TRAINED) if plan.model.personal and plan.model.personal_fit == "dp" else None
    update, personal = _train(plan, request, arrays, data, kept, round_key)
    largest = MAX_ENTRY_PER_RECORD * data.batch_size
    if not all(bool(np.all(np.abs(array) <= largest)) for array in update.values()):  # NaN fails this too
        raise DataError("the training diverged: an entry of the update is no number or enormous; a smaller training.learning_rate may help")
    return update, personal


def plain_update(
    plan: Plan, request: records.RoundRequest, arrays: Mapping[str, npt.NDArray[np.generic]], data: LocalData, round_key: bytes
) -> dict[str, FloatArray]:  # fmt: skip
    """One honest training of any client's records, without personal parameters: also what simulated attackers reckon with."""
    return _train(plan, request, arrays, data, None, round_key)[0]


def _train(
    plan: Plan,
    request: records.RoundRequest,
    arrays: Mapping[str, npt.NDArray[np.generic]],
    data: LocalData,
    kept: bytes | None,
    round_key: bytes,
) -> tuple[dict[str, FloatArray], bytes | None]:
    model, personal = _model(plan, data, arrays)
    inside = bool(personal) and plan.model.personal_fit == "dp"
    if inside:
        if kept is not None:
            set_arrays(model, _decode(kept))
    else:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in personal)
    if plan.secagg.enabled:
        refuse_sparse_layers(model, arrays)
    training, privacy = plan.training, plan.privacy
    settings = SgdSettings(
        steps=training.steps,
        sample_rate=training.sample_rate,
        batch_size=data.batch_size,
        learning_rate=training.learning_rate,
        momentum=training.momentum,
        clip_norm=privacy.clip_norm if plan.is_private else None,
        noise_multiplier=request.noise_multiplier if plan.is_private else 0.0,
        physical_batch_size=training.physical_batch_size,
        clipping=privacy.clipping,
    )
    update = local_update(
        model, data.x, data.y, settings, shared_names=tuple(sorted(arrays)), streams=RoundStreams.derive(round_key), device=training.device
    )
    return update, _encode(get_arrays(model, personal)) if inside else None


def _encode(arrays: Mapping[str, FloatArray]) -> bytes:
    from safetensors.numpy import save  # noqa: PLC0415

    return bytes(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))


def _decode(data: bytes) -> dict[str, FloatArray]:
    from safetensors.numpy import load  # noqa: PLC0415

    return dict(load(data))
