"""How much room the screening leaves colluders under a plan, before anything runs: ``fedsec plan check`` prints it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fedsec.data.federated import federated_data
from fedsec.errors import DataError
from fedsec.models.factory import build_model
from fedsec.models.parameters import get_arrays, split_names
from fedsec.plan.model import Plan
from fedsec.plan.robust import max_suspects, rule_of
from fedsec.robust.accumulated import MOST_LIFTED
from fedsec.robust.hiding_room import HidingRoom, hiding_room
from fedsec.robust.levels import FEWEST_CLIENTS
from fedsec.vectors import Layout


def room_of(plan: Plan) -> tuple[HidingRoom, int] | None:
    """The room, and the model's number of parameters; None where there is no screening, or the data set is not on this machine.

    Raises:
        ConfigError: the model cannot be built.
    """
    count = plan.federation.num_clients
    most = max_suspects(plan, count)
    if rule_of(plan) != "screening" or count < FEWEST_CLIENTS or most < 1:
        return None
    try:
        dataset = federated_data(plan.data, num_clients=count, seed=plan.federation.seed).dataset
    except DataError:
        return None
    model = build_model(plan.model, input_shape=dataset.x_test.shape[1:], num_classes=dataset.num_classes, seed=plan.federation.seed)
    dimension = Layout.of(get_arrays(model, split_names(model, plan.model.personal)[0])).size
    columns = min(plan.secagg.sketch_rows, dimension) if plan.secagg.enabled else dimension
    room = hiding_room(
        num_clients=count,
        num_byzantine=most,
        num_columns=columns,
        dimension=dimension,
        rounds=plan.federation.rounds,
        lifted=count * dimension <= MOST_LIFTED,
    )
    return room, dimension


def room_facts(plan: Plan) -> dict[str, Any] | None:
    """The numbers for scripts."""
    found = room_of(plan)
    return None if found is None else {**asdict(found[0]), "dimension": found[1]}


def room_sentence(plan: Plan) -> str | None:
    """The numbers in words; lengths in noise units: the deviation of the privacy noise in one coordinate of an update."""
    found = room_of(plan)
    if found is None:
        return None
    room, dimension = found
    return (
        f"Room to hide from the screening ({dimension} parameters): the colluders together can push the sum by about {room.with_noise:.0f} noise units in one "
        f"round if each adds honest noise, by {room.without_noise:.0f} if they choose what stands in for it, and by {room.over_rounds:.0f} if they keep it up for {room.rounds} "
        f"rounds; the sum's own noise has a length of about {(plan.federation.num_clients * dimension) ** 0.5:.0f}. "
        "Fewer shared parameters, more sketch rows, larger clients or less noise leave less."
    )
