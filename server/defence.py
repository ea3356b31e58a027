"""The defence of one run at the server: what its rule needs beside the updates, and what is reported of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from fedsec.data.base import Dataset
from fedsec.defence import Defence
from fedsec.errors import ConfigError
from fedsec.flower.state import ServerState
from fedsec.models.factory import Model
from fedsec.models.root_update import root_update
from fedsec.plan.model import Plan
from fedsec.plan.robust import rule_of
from fedsec.robust.noise import noise_stddev_of
from fedsec.sim.attacks.catalogue import attackers
from fedsec.sim.identities import client_name
from fedsec.vectors import FloatArray, Layout

RootUpdate = Callable[[FloatArray, int], npt.NDArray[np.float64]]


def attackers_of(plan: Plan) -> tuple[str, ...]:
    """Client ids that the simulation makes attackers, sorted; empty without an attack."""
    if plan.attack.name == "none":
        return ()
    return tuple(sorted(client_name(place) for place in attackers(plan.federation.num_clients, plan.attack.fraction, plan.federation.seed)))


def noise_stddev(plan: Plan, noise_multiplier: float) -> float:
    """Deviation of the noise in each coordinate of a sum-form update, as everybody can compute it; 0 without differential privacy."""
    if not plan.is_private:
        return 0.0
    return noise_stddev_of(
        steps=plan.training.steps,
        learning_rate=plan.training.learning_rate,
        momentum=plan.training.momentum,
        noise_multiplier=noise_multiplier,
        clip_norm=plan.privacy.clip_norm,
    )


def build_defence(plan: Plan, noise_multiplier: float, state: ServerState) -> Defence:
    """The run's defence, as it was at the checkpoint.

    Raises:
        DecodeError: what the checkpoint remembers is damaged.
    """
    defence = Defence(plan=plan, noise_stddev=noise_stddev(plan, noise_multiplier), attackers=frozenset(attackers_of(plan)))
    if state.defence is not None:
        defence.restore(state.defence)
    return defence


def check_attack(plan: Plan, num_classes: int) -> None:
    """Refuse an attack on classes that the task does not have, before anything runs.

    Raises:
        ConfigError: names the key.
    """
    if plan.attack.name == "none":
        return
    for field, given in (("source_class", plan.attack.source_class), ("target_class", plan.attack.target_class)):
        if given is not None and given >= num_classes:
            raise ConfigError(f"class {given} of {num_classes}", field=f"attack.{field}", mend=f"use 0 to {num_classes - 1}")


def build_root_update(plan: Plan, model: Model, dataset: Dataset, layout: Layout) -> RootUpdate | None:
    """The server's own update on ``robust.root_examples`` records, for FLTrust; None for other rules.

    They are drawn, seeded, from the training records that the server has: in a simulation the clients' (it has seen these few, whatever the masks
    hide), in a deployment those of its own source.
    """
    if rule_of(plan) != "fltrust":
        return None
    generator = np.random.default_rng([plan.federation.seed, 4])
    count = min(plan.robust.root_examples, len(dataset.x))
    chosen = np.sort(generator.choice(len(dataset.x), size=count, replace=False))
    x, y = dataset.x[chosen], dataset.y[chosen]

    def update(vector: FloatArray, _server_round: int) -> npt.NDArray[np.float64]:
        return root_update(model, layout.unflatten(vector), x, y, plan.training, layout=layout)

    return update
