"""The local engine: Flower's two app objects in this process and its forked workers, with no start-up cost.

1. Each node has one ``Context``, in the worker that it belongs to for the whole run; what a failed message did to it is undone.
2. Messages travel serialised, also between threads, so nothing works here that could not be sent.
3. A ClientApp that raises becomes the error reply that Flower makes of it; a ServerApp that raises, raises here.
4. Workers are forked before the ServerApp starts: whatever the caller has loaded by then, they share.
5. However the run ends, no process of it is left.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping

from flwr.app import Context, Message, RecordDict, UserConfigValue
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedsec.codec import digest
from fedsec.errors import ConfigError, FedsecError, LocalProtocolError
from fedsec.flower import compat
from fedsec.flower.faulty import FaultRule, FaultyGrid
from fedsec.flower.grid import FIRST_NODE_ID, LocalGrid, WaitingGrid
from fedsec.flower.node import run_client
from fedsec.flower.pool import Kind, Pool, default_kind

MAX_NODES = 1_000_000

_logger = logging.getLogger(__name__)
_one_run = threading.Lock()


def run_local(
    *,
    server_app: ServerApp,
    client_app: ClientApp,
    num_nodes: int,
    run_config: Mapping[str, UserConfigValue],
    faults: FaultRule | None = None,
    workers: int | None = None,
    seed: int | None = None,
    kind: Kind | None = None,
) -> None:
    """Run ``server_app`` against ``num_nodes`` nodes that each run ``client_app``; returns when the ServerApp does.

    Call it from the thread that owns the run: on Linux, workers are killed when that thread ends. Threads of the caller that hold
    locks while it forks are a danger, as with every fork.

    Args:
        server_app: called as ``server_app(grid=, context=)`` in this thread.
        client_app: called in a worker, with one numeric thread; each node sees ``partition-id`` and ``num-partitions`` as in
            Flower's simulation.
        num_nodes: how many nodes.
        run_config: ``context.run_config`` of server and clients.
        faults: which messages are lost, late or answered with an error; see ``fedsec.sim.faults``.
        workers: default: one for each core that this process may use, at most one for each node.
        seed: makes the run id and the workers' global random generators repeatable (the latter for one number of workers:
            clients that must not depend on it use streams of their own). None: different in every run.
        kind: ``fork`` or ``thread``. Default: fork for more than one worker, on Linux, unless CUDA is in use here; else thread.
            Threads share the caller's stdout and random generators, and cannot be ended while busy.

    Raises:
        ConfigError: bad arguments, no process can be started, or a version of flwr whose internals moved.
        LocalProtocolError: another local run is going on in this process.
        BaseException: whatever the ServerApp raised, unchanged; KeyboardInterrupt among it.
    """
    workers = checked_workers(num_nodes, workers, run_config)
    compat.check_compat()
    compat.disable_telemetry()
    if not _one_run.acquire(blocking=False):
        raise LocalProtocolError("a local run is already going on in this process; wait for it to end")
    try:
        run_id = secrets.randbits(62) + 1 if seed is None else int.from_bytes(digest("fedsec/run-id/v1", str(seed).encode())[:7], "big") + 1
        runner = NodeRunner(client_app, run_id=run_id, run_config=run_config, num_nodes=num_nodes)
        with compat.quiet_logger():
            _run(server_app, runner, LocalGrid(num_nodes=num_nodes, run_id=run_id), faults, workers, kind or default_kind(workers), seed)
    finally:
        _one_run.release()


def _run(
    server_app: Callable[..., None],
    runner: NodeRunner,
    local: LocalGrid,
    faults: FaultRule | None,
    workers: int,
    kind: Kind,
    seed: int | None,
) -> None:
    try:
        pool = Pool(runner, workers=workers, kind=kind, deliver=local.deliver, seed=seed)
    except OSError as error:
        raise ConfigError(f"cannot start {workers} workers: {error.strerror or error}", mend="ask for fewer workers") from error
    try:
        local.attach(pool)
        grid: WaitingGrid = local if faults is None else FaultyGrid(local, faults)
        with compat.task_identity(runner.run_id):
            server_app(grid=grid, context=compat.server_context(runner.run_id, runner.run_config))
    finally:
        pool.close()


def checked_workers(num_nodes: int, workers: int | None, run_config: Mapping[str, UserConfigValue]) -> int:
    """The number of workers to use.

    Raises:
        ConfigError: an argument is out of range or of the wrong type.
    """
    if type(num_nodes) is not int or not 1 <= num_nodes <= MAX_NODES:
        raise ConfigError(f"cannot simulate {num_nodes!r} clients", field="federation.num_clients", mend=f"1 to {MAX_NODES}")
    if workers is not None and (type(workers) is not int or workers < 1):
        raise ConfigError(f"cannot work with {workers!r} workers", mend="give a number from 1, or none for one a core")
    for key, value in run_config.items():
        if not isinstance(key, str) or not isinstance(value, bool | int | float | str):
            raise ConfigError(f"run config {key!r} is {type(value).__name__}", mend="Flower passes on bool, int, float and str")
    return min(workers or usable_cores(), num_nodes)


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class NodeRunner:
    """Answers messages with the ClientApp, each node with its own context; lives in a worker.

    Args:
        client_app: called as ``client_app(message=, context=)``.
        run_id: Flower's id of the run.
        run_config: of every node's context.
        num_nodes: in the federation.
    """

    def __init__(
        self, client_app: Callable[..., Message], *, run_id: int, run_config: Mapping[str, UserConfigValue], num_nodes: int
    ) -> None:
        self._client_app = client_app
        self.run_id = run_id
        self.run_config = dict(run_config)
        self._num_nodes = num_nodes
        self._contexts: dict[int, Context] = {}
        self._traced: set[type[BaseException]] = set()

    def __call__(self, frames: list[bytes]) -> list[bytes]:
        """One request to its reply; never raises."""
        message = compat.decode_message(frames)
        metadata = message.metadata
        if metadata.created_at + metadata.ttl < time.time():
            late = "the message expired before its turn came"
            return compat.encode_message(compat.error_reply(message, code=compat.error_code("MESSAGE_UNAVAILABLE"), reason=late))
        try:
            return run_client(self._client_app, message, self._context(metadata.dst_node_id), self._seal)
        except BaseException as error:  # noqa: BLE001 - also a ClientApp that calls sys.exit must not take its worker along
            self._trace(metadata.dst_node_id, error)
            return compat.encode_message(compat.client_error_reply(message, error))

    def _context(self, node_id: int) -> Context:
        if node_id not in self._contexts:
            node_config = compat.client_node_config(node_id - FIRST_NODE_ID, self._num_nodes)
            self._contexts[node_id] = Context(
                run_id=self.run_id, node_id=node_id, node_config=node_config, state=RecordDict(), run_config=self.run_config
            )
        return self._contexts[node_id]

    @staticmethod
    def _seal(reply: Message) -> list[bytes]:
        compat.assign_message_id(reply, f"{reply.metadata.reply_to_message_id}-reply")
        return compat.encode_message(reply)

    def _trace(self, node_id: int, error: BaseException) -> None:
        """Log the stack of an unexpected exception the first time its type is seen here; the others, and refusals, at debug."""
        known = isinstance(error, FedsecError) or type(error) in self._traced
        self._traced.add(type(error))
        level = logging.DEBUG if known else logging.WARNING
        _logger.log(level, "the ClientApp of partition %d raised", node_id - FIRST_NODE_ID, exc_info=error)
