"""One measurement of one engine in a process of its own; prints one JSON object. Started by ``experiments.bench.engine``.

``python -c "from experiments.bench.engine_case import main; main()" ENGINE NODES ROUNDS SIZE [--memory]``

Time runs from the call of the engine to its return, imports excluded. Memory is the proportional set size (PSS) of this process and
all processes below it, sampled every 20 ms and at the end of the ServerApp, above the PSS before the call; it is measured in runs of its own, for looking costs time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedsec.flower.leftovers import descendants

SAMPLE_S = 0.02


def make_apps(nodes: int, rounds: int, size: int, at_end: Callable[[], None]) -> tuple[ServerApp, ClientApp]:
    """A server that sends ``size`` float32 to every node in every round, and clients that send them back.

    ``at_end`` is called when the ServerApp is done, before the engine ends.
    """
    server, client = ServerApp(), ClientApp()

    @client.train()
    def train(message: Message, context: Context) -> Message:  # noqa: ARG001 - Flower's signature
        values = message.content["model"]["w"].numpy()
        return Message(RecordDict({"model": ArrayRecord({"w": Array(values)})}), reply_to=message)

    @server.main()
    def serve(grid: Grid, context: Context) -> None:  # noqa: ARG001 - Flower's signature
        values = np.arange(size, dtype=np.float32)
        while len(node_ids := list(grid.get_node_ids())) < nodes:  # Flower starts the ServerApp before its nodes
            time.sleep(0.01)
        for server_round in range(1, rounds + 1):
            record = ArrayRecord({"w": Array(values)})
            replies = list(
                grid.send_and_receive(
                    [
                        Message(RecordDict({"model": record}), dst_node_id=node, message_type="train", group_id=str(server_round))
                        for node in node_ids
                    ]
                )
            )
            total = sum(reply.content["model"]["w"].numpy() for reply in replies)
            if len(replies) != nodes or not np.array_equal(total / nodes, values):
                raise RuntimeError("the engine lost or changed a message")
        at_end()

    return server, client


def engine_call(engine: str, nodes: int, rounds: int, size: int, at_end: Callable[[], None]) -> Callable[[], None]:
    """The run as a function without arguments; everything that it needs is imported here."""
    server, client = make_apps(nodes, rounds, size, at_end)
    if engine == "flower":
        import ray
        from flwr.simulation import run_simulation

        backend: Any = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"log_to_driver": False}}
        return lambda: run_simulation(server_app=server, client_app=client, num_supernodes=nodes, backend_config=backend)
    apps: Any = {"server_app": server, "client_app": client, "num_nodes": nodes, "run_config": {}}
    if engine == "ray":
        import ray  # noqa: F401 - so that its import is not measured

        from fedsec.flower.compat import check_compat
        from fedsec.flower.ray import run_ray

        check_compat(simulation=True)
        return lambda: run_ray(**apps)
    from fedsec.flower.local import run_local

    return lambda: run_local(**apps)


def pss_bytes() -> int:
    """Proportional set size of this process and all below it: shared pages count once in the sum."""
    total = 0
    for pid in (os.getpid(), *(pid for pid, _ in descendants(os.getpid()))):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


class PeakMemory:
    """Largest PSS seen, above the one before the run."""

    def __init__(self) -> None:
        self._before = pss_bytes()
        self._peak = 0
        self._over = threading.Event()

    def look(self) -> None:
        """One sample."""
        self._peak = max(self._peak, pss_bytes())

    def during(self, run: Callable[[], None]) -> int:
        """The peak while ``run`` runs, in bytes."""
        watcher = threading.Thread(target=self._watch)
        watcher.start()
        try:
            run()
        finally:
            self._over.set()
            watcher.join()
        return max(0, self._peak - self._before)

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_S):
            self.look()


def main() -> None:
    """Measure once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", choices=("local", "ray", "flower"))
    for name in ("nodes", "rounds", "size"):
        parser.add_argument(name, type=int)
    parser.add_argument("--memory", action="store_true")
    arguments = parser.parse_args()
    work = (arguments.engine, arguments.nodes, arguments.rounds, arguments.size)
    if arguments.memory:
        looks: list[PeakMemory] = []
        run = engine_call(*work, lambda: looks[0].look())  # noqa: PLW0108 - the list is still empty here
        looks.append(PeakMemory())
        print(json.dumps({"bytes": looks[0].during(run)}))
        return
    run = engine_call(*work, lambda: None)
    started = time.perf_counter()
    run()
    print(json.dumps({"seconds": time.perf_counter() - started}))
