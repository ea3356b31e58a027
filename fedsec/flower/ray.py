"""The Ray engine: Flower's Simulation Engine, with the same two app objects, quiet, and nothing left behind.

1. The ServerApp runs in the caller's thread, Flower's engine in another: Ctrl-C and the ServerApp's own exceptions arrive where the
   caller is, as on the local engine.
2. Clients compute with one numeric thread and see the run config, as on the local engine; their node config is Flower's.
3. Ray is started by us: no dashboard, no usage reports, no look at a network, a folder of its own that goes with it. ``RAY_ADDRESS``
   names a cluster to use instead.
4. However the run ends, the processes that Ray started for it are gone, and Ray does not start by itself in this process
   any more, if it was imported here for the first time.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import Context, Message, UserConfigValue
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedsec.environment import environment
from fedsec.errors import ConfigError, LocalProtocolError
from fedsec.flower import compat
from fedsec.flower.engine_thread import EngineGrid, EngineThread
from fedsec.flower.leftovers import Process, descendants, end_processes, kill_processes, named
from fedsec.flower.local import checked_workers
from fedsec.flower.node import run_client

STOP_GRACE_S = 3.0
"""How long clients that are still busy may hold up the end of a run; Flower's own threads need a second of it."""

END_S = 30.0
"""How long Flower may take to end once its clients are gone: on a machine that has much else to do, more than a second."""

ACTOR_NAME = "ray::ClientAppActor"
"""What Ray calls the processes in which Flower runs ClientApps."""

POLL_S = 0.2

_NO_SECOND_RAY = {"RAY_ENABLE_AUTO_CONNECT": "0"}
"""Read by Ray when it is imported. Without it, whatever Flower still asks of a Ray that was shut down starts another one, which nobody ends."""

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DISABLE_DOCKER_CPU_WARNING": "1",
    "RAY_DEDUP_LOGS": "0",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


@dataclass(frozen=True)
class OneThreadClient:
    """A ClientApp as Ray's actors call it: with the run config in its context, and one numeric thread.

    Attributes:
        client_app: the real one.
        run_config: Flower gives clients none when a simulation is started from Python.
    """

    client_app: Callable[..., Message]
    run_config: dict[str, UserConfigValue]

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer ``message``; an exception becomes the same error reply as on every engine, before Ray writes a page about it."""
        if (torch := sys.modules.get("torch")) is not None:
            torch.set_num_threads(1)
        before, context.run_config = context.run_config, self.run_config
        try:
            return run_client(self.client_app, message, context, lambda reply: reply)
        except BaseException as error:  # noqa: BLE001 - also a ClientApp that calls sys.exit must not take its actor along
            return compat.client_error_reply(message, error)
        finally:
            context.run_config = before  # Flower refuses a context whose run config comes back changed


def run_ray(
    *,
    server_app: ServerApp,
    client_app: ClientApp,
    num_nodes: int,
    run_config: Mapping[str, UserConfigValue],
    workers: int | None = None,
) -> None:
    """Run ``server_app`` against ``num_nodes`` nodes on Flower's Simulation Engine; returns when the ServerApp does.

    Args:
        server_app: called as ``server_app(grid=, context=)`` in this thread.
        client_app: called in Ray's processes: it, and what it uses, must be importable there, or survive cloudpickle.
        num_nodes: how many nodes.
        run_config: ``context.run_config`` of server and clients.
        workers: actors, each with one core, of the Ray that is started here; default: one for each core that this process may use.

    Raises:
        ConfigError: ray is not installed or cannot be started, bad arguments, or a version of flwr whose internals moved.
        LocalProtocolError: Ray already runs in this process; it would be shut down at the end.
        FedsecError: the engine broke while the ServerApp ran.
        BaseException: whatever the ServerApp raised, unchanged; KeyboardInterrupt among it.
    """
    workers = checked_workers(num_nodes, workers, run_config)
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("the ray engine needs Ray, which is not installed", mend="pip install 'fedsec[ray]', or use --engine local")
    compat.disable_telemetry()
    with environment(_NO_SECOND_RAY):
        importlib.import_module("ray")
    compat.check_compat(simulation=True)
    with compat.quiet_logger(logging.CRITICAL + 1), _own_ray(workers) as processes:
        engine = EngineThread(
            client_app=OneThreadClient(client_app, dict(run_config)),
            num_nodes=num_nodes,
            run_id=secrets.randbits(62) + 1,
            run_config=run_config,
            backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
        )
        engine.start()
        try:
            grid, context = engine.take(num_nodes)
            server_app(grid=EngineGrid(grid, engine.check), context=context)
        finally:
            processes.note()
            _end(engine, processes)


def _end(engine: EngineThread, processes: _Started) -> None:
    """Wait until Flower's threads are through with Ray; clients that are still busy, for whom Flower waits, end with their process."""
    engine.finish()
    engine.join(STOP_GRACE_S)
    deadline = time.monotonic() + END_S
    while engine.is_alive() and time.monotonic() < deadline:
        processes.note()
        kill_processes(named(processes.seen, ACTOR_NAME))
        engine.join(POLL_S)


class _Started:
    """The processes below this one that were not there before; to be noted while Ray lives, since its death hides whose they were."""

    def __init__(self) -> None:
        self._before = descendants(os.getpid())
        self.seen: frozenset[Process] = frozenset()

    def note(self) -> None:
        """Look again."""
        self.seen |= descendants(os.getpid()) - self._before


@contextlib.contextmanager
def _own_ray(workers: int) -> Iterator[_Started]:
    """Ray for the duration of the block; at its end all processes started since are gone, and its folder with them."""
    import ray  # noqa: PLC0415 - optional, and slow to import

    if ray.is_initialized():
        raise LocalProtocolError("Ray already runs in this process; call ray.shutdown() first, or name a cluster with RAY_ADDRESS")
    processes = _Started()
    folder = tempfile.mkdtemp(prefix="fr-")  # short: Ray puts sockets below it, whose paths may have 107 bytes
    try:
        with environment(_ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(sys.path)}), _sigterm_kept():
            try:
                _start(workers, folder)
            except Exception as error:
                raise ConfigError(f"Ray cannot be started: {error}", mend="use --engine local, or see that Ray runs by itself") from error
        yield processes
    finally:
        processes.note()
        _shut_down()
        end_processes(processes.seen)
        shutil.rmtree(folder, ignore_errors=True)


def _start(workers: int, folder: str) -> None:
    import ray  # noqa: PLC0415 - optional, and slow to import

    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": False}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    else:
        ray.init(address="local", num_cpus=workers, num_gpus=0, _temp_dir=folder, **common)


def _shut_down() -> None:
    import ray  # noqa: PLC0415 - optional, and slow to import

    if ray.is_initialized():
        ray.shutdown()


@contextlib.contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Ray replaces the handler of SIGTERM; the caller's comes back at the end of the block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
