"""Flower's processes of one node: SuperNode, SuperExec and our fork server, started and stopped as the connection's state says.

1. The SuperNode starts with the first connection, SuperExec once the SuperNode answers; both stop when the gateway says that this node may
   not take part, and start again when that has changed.
2. A SuperNode that starts has an empty folder for apps and a port that is free then; SuperExec and the fork server follow it.
3. When a SuperNode dies, the server is told at once: what it had in hand is lost, and nobody should wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from fedsec.edge import fleet_pb2
from fedsec.edge.agent_channel import CallFailedError, LinkState
from fedsec.edge.agent_link import Link
from fedsec.edge.agent_settings import AgentSettings
from fedsec.edge.agent_status import Status
from fedsec.edge.children import Child
from fedsec.edge.loopback import HOST, Loopback
from fedsec.edge.paths import DEACTIVATE_NODE
from fedsec.edge.supernode import (
    flower_environment,
    forkserver_command,
    free_port,
    superexec_command,
    supernode_command,
    write_commands,
    write_runtime,
)
from fedsec.identity.crl_file import DEPLOYED_VARIABLE

READY_POLL_S = 0.1
LOOK_EVERY_S = 1.0
GOODBYE_WITHIN_S = 5.0
STOPPED_STATES = frozenset({LinkState.UNAUTHORISED, LinkState.EXPIRED})


class NodeProcesses:
    """The processes.

    Args:
        settings: of the home folder.
        loopback: of this start.
        link: the connection.
        status: told what happens.
        agent_port: of the agent's endpoint.
        node_id: gives Flower's id of the node, or 0.

    Raises:
        ConfigError: Flower's commands are not installed.
        StorageError: the file system refused.
    """

    def __init__(
        self, settings: AgentSettings, loopback: Loopback, link: Link, status: Status, *, agent_port: int, node_id: Callable[[], int]
    ) -> None:
        self._settings, self._loopback, self._link, self._status = settings, loopback, link, status
        self._agent_port, self._node_id = agent_port, node_id
        self._runtime_port = 0
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        write_commands(loopback)
        environment = flower_environment(os.environ, loopback, task_poll_s=settings.task_poll_s) | {DEPLOYED_VARIABLE: "1"}

        def child(name: str, command: Callable[[], Sequence[str]]) -> Child:
            log = settings.logs / f"{name}.log"
            return Child(name, command, environment=environment, log=log, cwd=loopback.folder, on_end=self._on_end)

        self._forkserver = child("forkserver", lambda: forkserver_command(loopback, settings.preload))
        self._supernode = child("supernode", self._supernode_command)
        self._superexec = child("superexec", lambda: superexec_command(loopback, runtime_port=self._runtime_port))

    def look(self) -> None:
        """The connection's state changed."""
        self._changed.set()

    def restart_supernode(self) -> None:
        """Have the SuperNode start anew."""
        self._spawn(self._supernode.restart())

    async def run(self) -> None:
        """Start and stop as the state says until cancelled."""
        if self._settings.warm_start:
            self._forkserver.start()
        was_connected = False
        while True:
            self._changed.clear()
            state = self._link.state
            was_connected = was_connected or state is LinkState.CONNECTED
            if state in STOPPED_STATES:
                was_connected = False
                await asyncio.gather(self._superexec.stop(), self._supernode.stop())
            elif was_connected:
                self._supernode.start()
                if self._superexec.pid is None and await self._runtime_answers():
                    self._superexec.start()
            self._say()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(READY_POLL_S if self._superexec.pid is None else LOOK_EVERY_S):  # not wait_for: see children
                    await self._changed.wait()

    async def stop(self) -> None:
        """End everything, the fork server last; the SuperNode says goodbye through the agent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(self._superexec.stop(), self._supernode.stop(), return_exceptions=True)
        await self._forkserver.stop(grace_s=0.0)

    def _say(self) -> None:
        self._status.set(
            node={
                "supernode_pid": self._supernode.pid,
                "superexec_pid": self._superexec.pid,
                "forkserver_pid": self._forkserver.pid,
                "restarts": self._supernode.restarts + self._superexec.restarts,
            }
        )

    def _supernode_command(self) -> list[str]:
        """For one start: a fresh folder for Flower's apps, and a port that is free now."""
        shutil.rmtree(self._loopback.flower_home, ignore_errors=True)
        self._loopback.flower_home.mkdir(mode=0o700, exist_ok=True)
        self._runtime_port = free_port()
        write_runtime(self._loopback, self._runtime_port)
        return supernode_command(
            self._loopback, agent_port=self._agent_port, runtime_port=self._runtime_port, settings=self._settings.client_settings
        )

    async def _runtime_answers(self) -> bool:
        if self._supernode.pid is None or not self._runtime_port:
            return False
        try:
            _, writer = await asyncio.open_connection(HOST, self._runtime_port)
        except OSError:
            return False
        writer.close()
        return True

    def _on_end(self, name: str, status: int) -> None:
        """A child ended unasked."""
        self._status.event("child-ended", child=name, status=status)
        if name == "supernode":
            self._spawn(self._after_supernode())

    async def _after_supernode(self) -> None:
        """Have the server know at once what the SuperNode cannot tell it, and SuperExec meet the new one's port."""
        await self._superexec.stop()
        if node_id := self._node_id():
            body = fleet_pb2.DeactivateNodeRequest(node_id=node_id).SerializeToString()
            with contextlib.suppress(CallFailedError):
                await self._link.forward(DEACTIVATE_NODE, body, timeout_s=GOODBYE_WITHIN_S)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="of the node's processes")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
