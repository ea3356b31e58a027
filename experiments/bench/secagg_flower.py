"""Flower's own SecAgg+ in this process: the real workflow at the server, the real mod at every client, a ``Grid`` that only hands over.

One round of training that is none: each client answers with a ready update. CPU time of the clients is what the mod takes (message records
included, serialisation not), that of the server everything else. Bytes up are those of the records' values that a client sends.

Parameters: ``reconstruction_threshold`` and ``num_shares`` have no defaults in ``SecAggPlusWorkflow``; all else is left at Flower's.
``num_shares=1.0`` is its SecAgg: everybody shares with everybody, the graph that fedsec uses, too.

The aggregate is compared with the mean of what the surviving clients sent.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.common import Code, FitIns, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage
from flwr.compat.common import recorddict_compat
from flwr.server import LegacyContext
from flwr.server.client_manager import SimpleClientManager
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey
from flwr.server.workflow.secure_aggregation.secaggplus_workflow import SecAggPlusWorkflow
from flwr.serverapp import Grid

from fedsec.flower import compat

EXAMPLES = 10
RUN_ID = 1
FIRST_NODE = 1
TOLERANCE = 1e-3
"""Of the mean: weights of 10 in 1000 and 22 bits for -8 to 8 leave a step of 4e-4."""


@dataclass(frozen=True)
class Proxy:
    """All that the workflow asks of a client's proxy."""

    node_id: int


class Hand:
    """A strategy that samples all nodes and keeps the aggregate."""

    def __init__(self, nodes: Sequence[int]) -> None:
        self.nodes = nodes
        self.mean: list[npt.NDArray[Any]] = []

    def configure_fit(self, _round: int, parameters: Any, _manager: Any) -> list[tuple[Proxy, FitIns]]:
        """Everybody, with the same instructions."""
        return [(Proxy(node), FitIns(parameters, {})) for node in self.nodes]

    def aggregate_fit(self, _round: int, results: list[Any], _failures: list[Any]) -> tuple[Any, dict[str, Any]]:
        """The workflow puts the same aggregate into every result."""
        self.mean = parameters_to_ndarrays(results[0][1].parameters)
        return results[0][1].parameters, {}


class HandingGrid(Grid):
    """Runs the mod of each addressed client and returns the replies."""

    def __init__(self, updates: dict[int, npt.NDArray[np.float32]], dropped: frozenset[int]) -> None:
        self.updates, self.dropped = updates, dropped
        self.contexts = {node: Context(RUN_ID, node, {}, RecordDict(), {}) for node in updates}
        self.client_seconds = dict.fromkeys(updates, 0.0)
        self.transport_seconds = 0.0
        self.up = dict.fromkeys(updates, 0)
        self._count = 0

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Dropped clients answer as long as keys are shared: Flower survives no earlier loss."""
        del timeout
        replies = []
        for message in messages:
            node = message.metadata.dst_node_id
            stage = message.content.config_records[RECORD_KEY_CONFIGS][Key.STAGE]
            if node in self.dropped and stage not in (Stage.SETUP, Stage.SHARE_KEYS):
                continue
            started = time.process_time()
            self._count += 1
            compat.assign_message_id(message, f"message-{self._count}")
            received = compat.decode_message(compat.encode_message(message))  # the mod changes what it is given
            self.transport_seconds += time.process_time() - started
            started = time.process_time()
            reply = secaggplus_mod(received, self.contexts[node], self._train)
            self.client_seconds[node] += time.process_time() - started
            self.up[node] += sum(_size(value) for record in reply.content.config_records.values() for value in record.values())
            replies.append(reply)
        return replies

    def _train(self, message: Message, _context: Context) -> Message:
        parameters = ndarrays_to_parameters([self.updates[message.metadata.dst_node_id]])
        result = FitRes(Status(Code.OK, ""), parameters, EXAMPLES, {})
        return Message(recorddict_compat.fitres_to_recorddict(result, keep_input=False), reply_to=message)

    def set_run(self, run: Any) -> None:
        """Not asked for."""

    @property
    def run(self) -> Any:
        """Not asked for."""
        return None

    def create_message(self, *_: Any, **__: Any) -> Message:
        """Not asked for."""
        raise AssertionError("the workflow under test calls send_and_receive only")

    def get_node_ids(self) -> Iterable[int]:
        """All."""
        return self.updates

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:  # noqa: ARG002
        """Not asked for."""
        raise AssertionError("the workflow under test calls send_and_receive only")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:  # noqa: ARG002
        """Not asked for."""
        raise AssertionError("the workflow under test calls send_and_receive only")


def _size(value: Any) -> int:
    if isinstance(value, bytes):
        return len(value)
    return sum(_size(part) for part in value) if isinstance(value, list) else 8


@dataclass(frozen=True, kw_only=True)
class FlowerCost:
    """What one round took.

    Attributes:
        clients: CPU seconds of each client.
        server: CPU seconds of the server.
        up: bytes that each surviving client sent.
    """

    clients: tuple[float, ...]
    server: float
    up: tuple[int, ...]

    @property
    def total(self) -> float:
        """CPU seconds of all."""
        return sum(self.clients) + self.server


def flower_round(base: npt.NDArray[np.float32], num_clients: int, *, num_shares: float, threshold: int, dropped: int) -> FlowerCost:
    """One round; ``dropped`` clients vanish before their upload.

    Raises:
        SystemExit: it failed, or its aggregate is wrong.
    """
    nodes = list(range(FIRST_NODE, FIRST_NODE + num_clients))
    updates = {node: np.roll(base, node) for node in nodes}
    grid, hand = HandingGrid(updates, frozenset(nodes[:dropped])), Hand(nodes)
    state = RecordDict()
    state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({WorkflowKey.CURRENT_ROUND: 1})
    start = ndarrays_to_parameters([np.zeros_like(base)])
    state.array_records[MAIN_PARAMS_RECORD] = recorddict_compat.parameters_to_arrayrecord(start, keep_input=True)
    with compat.task_identity(RUN_ID), compat.quiet_logger():
        context = LegacyContext(Context(RUN_ID, 0, {}, state, {}), strategy=hand, client_manager=SimpleClientManager())
        workflow = SecAggPlusWorkflow(num_shares=num_shares, reconstruction_threshold=threshold)
        started = time.process_time()
        workflow(grid, context)
        spent = time.process_time() - started
    survivors = [node for node in nodes if node not in grid.dropped]
    mean = np.mean([updates[node] for node in survivors], axis=0)
    if not hand.mean or float(np.abs(hand.mean[0] - mean).max()) > TOLERANCE:
        raise SystemExit("Flower's round failed, or its aggregate is not the mean")
    clients = tuple(grid.client_seconds.values())
    return FlowerCost(clients=clients, server=spent - sum(clients) - grid.transport_seconds, up=tuple(grid.up[node] for node in survivors))
