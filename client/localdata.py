"""The client's own records: a partition of the plan's data set in a simulation, its own source at the edge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from client.settings import DeployedClient, SimulatedClient
from fedsec.codec import digest
from fedsec.data.base import Dataset
from fedsec.data.custom import dataset_from_arrays
from fedsec.data.entrypoint import call_entry_point, load_entry_point
from fedsec.data.federated import federated_data
from fedsec.data.sizes import simulated_batch_size
from fedsec.errors import ConfigError, DataError
from fedsec.plan.model import Plan

HELD_OUT_OF_256 = 51
"""A fifth of the records."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LocalData:
    """What one client holds.

    Attributes:
        x: float32 [n, *shape].
        y: int64 [n].
        x_test: float32 [m, *shape].
        y_test: int64 [m].
        num_classes: classes of the task.
        batch_size: declared, public expected batch size.
        fingerprint: names this data set in the ledger; a secret of the client's, since it is a hash of its records.
    """

    x: npt.NDArray[np.float32]
    y: npt.NDArray[np.int64]
    x_test: npt.NDArray[np.float32]
    y_test: npt.NDArray[np.int64]
    num_classes: int
    batch_size: int
    fingerprint: str


def local_data(plan: Plan, client: SimulatedClient | DeployedClient) -> LocalData:
    """This client's records under this plan.

    Raises:
        DataError: no records, or damaged ones.
        ConfigError: no declared batch size, or a source that cannot be loaded.
    """
    if isinstance(client, DeployedClient):
        return _deployed(client, plan)
    return _simulated(plan, client)


def _simulated(plan: Plan, client: SimulatedClient) -> LocalData:
    if client.num_partitions != plan.federation.num_clients:
        raise ConfigError(
            f"{client.num_partitions} nodes run, the plan has {plan.federation.num_clients} clients",
            field="federation.num_clients",
            mend="start as many nodes as the plan has clients",
        )
    data = federated_data(plan.data, num_clients=plan.federation.num_clients, seed=plan.federation.seed)
    x, y = data.client_arrays(client.partition)
    x_test, y_test = data.client_test_arrays(client.partition)
    batch_size = simulated_batch_size(plan, data, client.partition)
    fingerprint = digest("fedsec/partition/v1", data.dataset.fingerprint.encode(), data.train_parts[client.partition].tobytes()).hex()
    return LocalData(
        x=x, y=y, x_test=x_test, y_test=y_test, num_classes=data.dataset.num_classes, batch_size=batch_size, fingerprint=fingerprint
    )  # fmt: skip


def declared_batch_size(plan: Plan, client: SimulatedClient | DeployedClient) -> int:
    """The declared, public batch size, without a look at the records where it does not depend on them.

    Raises:
        ConfigError: a deployed client with no number.
    """
    if isinstance(client, DeployedClient):
        return _deployed_batch_size(client, plan)
    data = federated_data(plan.data, num_clients=plan.federation.num_clients, seed=plan.federation.seed)
    honest = simulated_batch_size(plan, data, client.partition)
    if plan.attack.name == "none":
        return honest
    from client.adversary import declared_size  # noqa: PLC0415 - simulations with attackers only

    return declared_size(plan, client, honest)


@lru_cache(maxsize=2)
def load_source(source: str) -> Dataset:
    """A deployed client's records; nothing about them may decide what another record does or what the server is told.

    The width of the model must be declared: read off the labels, it would tell whether a record of the last class exists.
    """
    given = call_entry_point(load_entry_point(source, field="source"), source)
    if isinstance(given, Dataset):
        return given
    if not isinstance(given, Mapping) or not ("num_classes" in given or "class_names" in given):
        raise ConfigError(
            "the source of a deployed client must give num_classes or class_names", field="source", mend="add num_classes to its dict"
        )
    arrays = dict(given) if "x_test" in given else _with_test_part(given)
    return dataset_from_arrays(arrays, name=source, test_fraction=0.2, seed=0)


def _with_test_part(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Hold records out by a hash of each one alone: adding a record then moves no other from one side to the other.

    A seeded permutation would: one more record changed the side of 60 in 500, and epsilon holds for one record.
    """
    x, y = np.asarray(arrays["x"]), np.asarray(arrays["y"])
    chosen = [
        digest("fedsec/hold-out/v1", np.ascontiguousarray(row).tobytes(), str(label).encode())[0] < HELD_OUT_OF_256
        for row, label in zip(x, y, strict=True)
    ]
    held = np.array(chosen, dtype=bool)
    if not held.any() or held.all():
        raise DataError("too few records to hold a test part out; give x_test and y_test")
    return {**arrays, "x": x[~held], "y": y[~held], "x_test": x[held], "y_test": y[held]}


def _deployed_batch_size(client: DeployedClient, plan: Plan) -> int:
    declared = client.batch_size if client.batch_size is not None else plan.training.batch_size
    if not isinstance(declared, int):
        raise ConfigError(
            f'"{declared}" needs to know every client\'s records, which nobody does in a deployment',
            field="training.batch_size",
            mend="give a number in the plan, or batch_size in the client's own settings",
        )
    return declared


def _deployed(client: DeployedClient, plan: Plan) -> LocalData:
    dataset = load_source(client.source)
    declared = _deployed_batch_size(client, plan)
    return LocalData(
        x=dataset.x, y=dataset.y, x_test=dataset.x_test, y_test=dataset.y_test,
        num_classes=dataset.num_classes, batch_size=declared, fingerprint=dataset.fingerprint,
    )  # fmt: skip
