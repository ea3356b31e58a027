"""The agent of an edge client: everything that one node needs, in one process and its children; ``python -m fedsec.edge.agent --home DIR``.

::

    flower-superexec ── flwr-clientapp        loopback, TLS of this start
           │
    flower-supernode ── agent ══ mutual TLS 1.3 ══ gateway

1. One agent a home folder. It ends its children when it ends, in order on SIGTERM and SIGINT; the system kills them should it be killed.
2. Flower's processes are ``agent_node``'s, the connection is ``agent_link``'s, the endpoint ``agent_proxy``'s.
3. SIGHUP renews the certificate now.
4. A task that ends unasked ends the agent with an error: half an agent is worse than none.

Source: design notes IDENTITY and FLOWER.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvicorn

from fedsec.edge.agent_channel import CallFailedError, LinkSettings, LinkState
from fedsec.edge.agent_guard import RunGuard
from fedsec.edge.agent_link import Link
from fedsec.edge.agent_node import NodeProcesses
from fedsec.edge.agent_proxy import FleetApp
from fedsec.edge.agent_releases import ReleaseStore
from fedsec.edge.agent_renewal import Renewal
from fedsec.edge.agent_settings import AgentSettings, client_home, load_agent_settings
from fedsec.edge.agent_status import Status, utc_now
from fedsec.edge.audit import AuditLog
from fedsec.edge.loopback import HOST, make_loopback
from fedsec.edge.memory import keep_freed_memory
from fedsec.errors import ConfigError, FedsecError, StorageError
from fedsec.files import exclusive_lock
from fedsec.identity.folder import Identity, keep_private, load_identity, use_passphrase_file
from fedsec.identity.intermediates import keep_statement
from fedsec.identity.names import Role

_logger = logging.getLogger(__name__)

BUNDLE_EVERY_S = 60.0
BUNDLE_RETRY_S = 5.0
CLOCK_JUMP_S = 5.0


class _Server(uvicorn.Server):
    """uvicorn without signal handlers: the agent has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


class Agent:
    """One node. Make it inside a running event loop.

    Args:
        settings: of the home folder.
        identity: the node's.

    Raises:
        FedsecError: something that it needs is missing or damaged.
    """

    def __init__(self, settings: AgentSettings, identity: Identity) -> None:
        self._settings = settings
        self._status = Status(settings.status_file, AuditLog(settings.audit_file))
        self._loopback = make_loopback(settings.loopback, now=utc_now())
        self._stop = asyncio.Event()
        self._releases = ReleaseStore(
            settings.releases,
            identity,
            approvers=settings.approvers,
            approvals=settings.approvals,
            floor_file=settings.floor_file,
            keys=settings.approver_keys,
            clock=utc_now,
        )
        self._link = Link(
            LinkSettings(settings.server, settings.server_name),
            identity,
            on_state=self._on_state,
            clock=utc_now,
            is_revoked=self._releases.is_revoked,
            on_statement=self._take_statement,
        )
        guard = RunGuard(self._releases, self._loopback, self._status, clock=utc_now)
        self._app = FleetApp(
            self._link,
            guard,
            self._loopback,
            self._status,
            clock=utc_now,
            object_bytes=settings.object_bytes,
            restart_node=lambda: self._node.restart_supernode(),  # noqa: PLW0108 - it is made below
        )
        self._renewal = Renewal(self._link, settings.identity, self._status, clock=utc_now)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.bind((HOST, 0))
        self._node = NodeProcesses(
            settings,
            self._loopback,
            self._link,
            self._status,
            agent_port=self._socket.getsockname()[1],
            node_id=lambda: self._app.node_id,
        )
        self._say_who(identity)

    def _say_who(self, identity: Identity) -> None:
        name = identity.name
        self._status.set(
            state=self._link.state.value, federation=name.federation, client_id=name.name, site=name.site, server=self._settings.server
        )

    # --- What happens ---------------------------------------------------------------------------------------------------------------

    def _on_state(self, state: LinkState, sentence: str) -> None:
        if self._status.get("state") != state.value:
            self._status.event("link", state=state.value, detail=sentence)
            self._status.set(since=utc_now().isoformat(timespec="seconds"))
        self._status.set(state=state.value, detail=sentence, clock_offset_s=round(self._link.offset_s, 1))
        self._node.look()

    def _take_statement(self, statement: bytes) -> None:
        """What the root says about its intermediates, with a bundle or with a refusal: kept, and in force from here on."""
        identity = self._link.identity
        try:
            accepted = keep_statement(self._settings.identity, statement, root_der=identity.root_der, federation=identity.name.federation)
        except FedsecError as error:
            self._status.event("bundle", reason=str(error))
            return
        if accepted != identity.accepted:
            _logger.warning("the root says anew which of its intermediates count: statement %d", accepted.number if accepted else 0)
            self._link.identity = replace(identity, accepted=accepted)
        self._releases.use(self._link.identity)

    # --- What goes on -----------------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Be a node until a signal comes.

        Raises:
            FedsecError: a part of it failed.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._renewal.ask)
        server = self._make_server()
        stopping = asyncio.create_task(self._stop.wait(), name="wait for a signal")
        serving = asyncio.create_task(server.serve([self._socket]), name="serve the SuperNode")
        working = [
            asyncio.create_task(work, name=name)
            for name, work in (
                ("link", self._link.run()),
                ("renewal", self._renewal.run()),
                ("bundle", self._keep_bundle()),
                ("node", self._node.run()),
                ("status", self._status.keep_written()),
                ("watch", self._watch()),
            )
        ]
        try:
            done, _ = await asyncio.wait([stopping, serving, *working], return_when=asyncio.FIRST_COMPLETED)
        finally:
            await self._end(server, serving, [stopping, *working])
        self._raise_fault(done - {stopping})

    def _raise_fault(self, ended: set[asyncio.Task[Any]]) -> None:
        for task in ended:
            if not task.cancelled():
                fault = task.exception()
                raise FedsecError(f"the agent's part {task.get_name()!r} ended: {fault or 'unasked'}") from fault

    def _make_server(self) -> _Server:
        config = uvicorn.Config(
            self._app,
            ssl_certfile=str(self._loopback.certificate),
            ssl_keyfile=str(self._loopback.key),
            log_config=None,
            access_log=False,
            lifespan="off",
            loop="asyncio",
            ws="none",
            server_header=False,
            date_header=False,
            timeout_keep_alive=60,
            timeout_graceful_shutdown=1,
            h11_max_incomplete_event_size=64 * 1024,
        )
        return _Server(config)

    async def _end(self, server: _Server, serving: asyncio.Task[None], tasks: list[asyncio.Task[Any]]) -> None:
        """Flower's processes first, while the SuperNode can still say goodbye through us; then the rest."""
        self._status.set(state="stopping")
        for task in tasks:
            if task.get_name() in ("node", "watch", "bundle", "renewal"):
                task.cancel()
        await self._node.stop()
        server.should_exit = True
        with contextlib.suppress(TimeoutError, Exception):
            await asyncio.wait_for(serving, 3.0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._status.set(state="stopped", node=None)
        self._status.write()
        shutil.rmtree(self._settings.loopback, ignore_errors=True)

    async def _keep_bundle(self) -> None:
        """Fetch releases and revocation list, and judge them, so that the status says what counts."""
        while True:
            wait_s = BUNDLE_EVERY_S
            try:
                bundle = await self._link.bundle()
                self._take_statement(bundle.root_statement)
                faults = await asyncio.to_thread(self._releases.offer, list(bundle.releases), bundle.crl)
                for fault in faults:
                    self._status.event("bundle", reason=fault)
                self._link.check_server()
            except CallFailedError:
                wait_s = BUNDLE_RETRY_S
            except StorageError as error:
                self._status.event("bundle", reason=str(error))
            await self._say_release()
            await asyncio.sleep(wait_s)

    async def _say_release(self) -> None:
        try:
            release = await asyncio.to_thread(self._releases.current)
        except FedsecError as error:
            self._status.set(release={"error": str(error)})
            return
        manifest = release.manifest
        self._status.set(
            release={
                "name": manifest.release,
                "version": manifest.version,
                "manifest_sha256": release.manifest_sha256,
                "approvers": list(release.approvers),
                "not_after": manifest.not_after.isoformat(),
            }
        )

    async def _watch(self) -> None:
        """A machine that slept: the monotonic clock stood still, so the gateway's time would lag from now on."""
        ahead = utc_now().timestamp() - time.monotonic()
        while True:
            await asyncio.sleep(1.0)
            now = utc_now().timestamp() - time.monotonic()
            if abs(now - ahead) > CLOCK_JUMP_S:
                _logger.warning("the clock moved by %.0f s", now - ahead)
                self._link.check_again()
            ahead = now


def load_agent(home: Path) -> tuple[AgentSettings, Identity]:
    """Settings and identity of a client that was set up.

    Raises:
        FedsecError: something is missing, or does not belong together; names the mend.
    """
    settings = load_agent_settings(home)
    identity = load_identity(settings.identity)
    if identity.name.role is not Role.NODE:
        raise ConfigError(f"the identity in {settings.identity} is a {identity.name.role.value}'s, not a node's", mend="enrol this client")
    keep_private(home)
    _check_client_settings(settings, identity)
    for folder in (settings.releases, settings.logs):
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot make {folder}: {error.strerror or error}") from error
    return settings, identity


def _check_client_settings(settings: AgentSettings, identity: Identity) -> None:
    """The ClientApp goes by the same identity and the same revocation list; without them it would believe any request, or a revoked peer."""
    path = settings.client_settings
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", file=str(path), mend="run 'fedsec client init', or mend the file") from None
    if raw.get("client_id") != identity.name.name:
        raise ConfigError(f"is not {identity.name.name}, as the certificate says", field="client_id", file=str(path))
    if raw.get("identity") != str(settings.identity):
        raise ConfigError(
            f"must be {settings.identity}", field="identity", file=str(path), mend="the ClientApp goes by this node's identity"
        )
    if raw.get("crl") != str(settings.crl_file):
        raise ConfigError(
            f"must be {settings.crl_file}", field="crl", file=str(path), mend="the ClientApp goes by the list that this agent keeps"
        )


def main(arguments: list[str] | None = None) -> int:
    """Run an agent; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m fedsec.edge.agent", description="The agent of an edge client.")
    parser.add_argument("--home", type=Path, default=None, help="the client's home folder; default $FEDSEC_CLIENT_HOME or ~/.fedsec-client")
    parser.add_argument(
        "--passphrase-file", type=Path, default=None, help="file with the key's passphrase; default $FEDSEC_PASSPHRASE_FILE"
    )
    given = parser.parse_args(arguments)
    keep_freed_memory()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        use_passphrase_file(given.passphrase_file)
        home = client_home(given.home)
        settings, identity = load_agent(home)
        os.umask(0o077)
        with exclusive_lock(home / "agent.lock", what="client's home folder"):
            asyncio.run(_run(settings, identity))
    except FedsecError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - a program's last word
        return error.exit_code
    return 0


async def _run(settings: AgentSettings, identity: Identity) -> None:
    await Agent(settings, identity).run()


if __name__ == "__main__":
    sys.exit(main())
