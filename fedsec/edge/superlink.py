"""The stock SuperLink and SuperExec on a server host, and our gateway beside them: started, watched, started again, ended together.

1. The SuperLink listens on 127.0.0.1 with loopback TLS of its own; nodes are authenticated, the ServerApp runs in a process of its own,
   and only who holds the secret of ``superexec.secret`` gets its tasks. Nothing is installed at run time.
2. PATH begins with a folder of ours in which the commands for other kinds of tasks than a ServerApp's end at once, and a ServerApp's is
   ``edge.serverapp``, which runs the installed app and no other. The children's environment has no proxy, no telemetry, no search for updates, and Flower's settings are ours alone. ``FEDSEC_HOME``
   is what the ServerApp finds its folder by.
3. A child cannot outlive this process (``launch.py``). One that ends is started again after a wait that doubles up to half a minute.
4. SIGTERM or SIGINT ends all: the gateway first, so that no node is told of an outage that is none, then SuperExec, then the SuperLink;
   each is asked, then killed with all that it started.
5. Whatever a child prints goes to ``superlink/<name>.log``, rotated; the SuperLink's line for each empty poll is left out.

Source: flwr 1.41, ``flower-superlink --help``; design note FLOWER, "A deployment that worked".
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import logging.handlers
import os
import secrets
import shlex
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedsec.edge.children import bound_command, end_group, kill_group
from fedsec.edge.doctor_host import hides_processes, read_proc_options
from fedsec.edge.loopback_tls import CA_FILE, CERTIFICATE_FILE, KEY_FILE, ensure_loopback_tls
from fedsec.edge.server_settings import ServerSettings, UserSettings
from fedsec.edge.server_users import DATABASE, STATE, SUPEREXEC_SECRET, SUPERLINK_SECRET, are_apart, check_users, hand_over, owner_of
from fedsec.edge.serverapp import COMMAND as SERVER_APP
from fedsec.errors import ConfigError, StorageError
from fedsec.files import atomic_write_bytes, atomic_write_json, atomic_write_text, exclusive_lock
from fedsec.identity.folder import PASSPHRASE_VARIABLE

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 30.0
STEADY_S = 60.0
GRACE_S = 6.0
LAST_WORDS_S = 1.0
READY_S = 60.0
LOG_BYTES = 8 * 1024 * 1024
LOG_BACKUPS = 3
MAX_LINE_BYTES = 64 * 1024
CONNECTION = "fedsec"
"""Name of the connection in Flower's ``config.toml``: ``flwr run APP fedsec``."""

REFUSED_COMMANDS = ("flwr-agentapp", "flwr-connector", "flwr-model", "flwr-clientapp", "flwr-simulation", "uv")
"""What SuperExec would start for tasks that no run of ours has."""

_SECRET_BYTES = 32
_NOISE = (
    b"No match found for server name",  # gRPC, for each handshake
    b'/v1/fleet/pull-messages HTTP/1.1" 200',
    b'/v1/runtime/acquire-task HTTP/1.1" 200',
    b'/v1/fleet/send-node-heartbeat HTTP/1.1" 200',
)
_PROXIES = frozenset({"http_proxy", "https_proxy", "all_proxy", "ftp_proxy", "no_proxy", "ws_proxy", "wss_proxy", "grpc_proxy"})
_DROPPED = (
    "FLWR_",
    "FEDSEC_HOME",
    "PYTHONPYCACHEPREFIX",
    "PYTHONSTARTUP",
    "PYTHONINSPECT",
    "SSL_CERT_",
    "SSLKEYLOGFILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
)

ALONE = "this host must have no users but its operators (docs/gateway.md), or mount /proc with hidepid=2"

log = logging.getLogger("fedsec.server")


def stock_command(name: str) -> str:
    """Where a command of Flower's lies: beside this Python.

    Raises:
        ConfigError: it is not there.
    """
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        raise ConfigError(f"{name} is not beside {sys.executable}", mend="install fedsec and Flower into one environment")
    return str(path)


def prepare_superlink(settings: ServerSettings, *, now: datetime) -> None:
    """Make what the SuperLink needs and is not there: loopback certificates, the secret, Flower's folder and its ``config.toml``.

    Raises:
        StorageError: the file system refused.
    """
    folder = settings.home / "superlink"
    try:
        for path in (folder, folder / "flwr", folder / "commands"):
            path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make {folder}: {error.strerror or error}") from error
    ensure_loopback_tls(folder, now=now)
    if not (folder / SUPEREXEC_SECRET).exists():
        atomic_write_bytes(folder / SUPEREXEC_SECRET, secrets.token_bytes(_SECRET_BYTES), mode=0o600)
    for name in REFUSED_COMMANDS:
        text = f'#!/bin/sh\necho "{name} is not run on this host" >&2\nexit 1\n'
        atomic_write_bytes(folder / "commands" / name, text.encode("ascii"), mode=0o755, durable=False)
    guarded = [sys.executable, "-P", str(Path(__file__).with_name("sourceonly.py")), "fedsec.edge.serverapp"]
    text = f'#!/bin/sh\nexec {shlex.join(guarded)} "$@"\n'
    atomic_write_bytes(folder / "commands" / SERVER_APP, text.encode("utf-8"), mode=0o755, durable=False)
    root = str(folder / CA_FILE)
    if not root.isprintable() or '"' in root or "\\" in root:
        raise ConfigError(f"Flower's settings cannot hold the path {root!r}", mend="choose a home folder without quotes in its name")
    lines = (
        f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
        f'address = "{settings.superlink_address}"\nroot-certificates = "{root}"\n'
    )
    atomic_write_text(folder / "flwr" / "config.toml", lines, mode=0o600)


def server_environment(base: Mapping[str, str], settings: ServerSettings) -> dict[str, str]:
    """The children's environment.

    Args:
        base: this process's.
        settings: of the server.
    """
    kept = {key: value for key, value in base.items() if key.lower() not in _PROXIES and not key.upper().startswith(_DROPPED)}
    return {
        **kept,
        "PATH": os.pathsep.join(
            (str(settings.home / "superlink" / "commands"), str(Path(sys.executable).parent), kept.get("PATH", os.defpath))
        ),
        "NO_PROXY": "*",
        "no_proxy": "*",
        "FEDSEC_HOME": str(settings.home),
        "FEDSEC_SERVER_HOST": "1",
        "FLWR_HOME": str(settings.home / "superlink" / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": f"{settings.superlink.task_poll_s:g}",
        "PYTHONUNBUFFERED": "1",
    }


def environment_as(shared: Mapping[str, str], user: str, flower_home: Path) -> dict[str, str]:
    """A child's environment where it is another user: a home folder that it can write.

    Args:
        shared: of all children.
        user: empty: this process's.
        flower_home: of that user.
    """
    return {**shared, **({"HOME": str(flower_home), "USER": user, "LOGNAME": user, "FLWR_HOME": str(flower_home)} if user else {})}


def superlink_command(settings: ServerSettings) -> list[str]:
    """``flower-superlink`` on loopback."""
    folder = settings.home / "superlink"
    return [
        stock_command("flower-superlink"),
        *("--host", "127.0.0.1"),
        *("--port", str(settings.superlink.port)),
        *("--ssl-ca-certfile", str(folder / CA_FILE)),
        *("--ssl-certfile", str(folder / CERTIFICATE_FILE)),
        *("--ssl-keyfile", str(folder / KEY_FILE)),
        "--enable-supernode-auth",
        *("--isolation", "process"),
        *("--superexec-auth-secret-file", str(folder / (SUPERLINK_SECRET if are_apart(settings.users) else SUPEREXEC_SECRET))),
        "--disable-runtime-dependency-installation",
        *("--database", str((settings.home / DATABASE if settings.users != UserSettings() else folder) / STATE)),
    ]


def superexec_command(settings: ServerSettings) -> list[str]:
    """``flower-superexec`` for ServerApps."""
    folder = settings.home / "superlink"
    return [
        stock_command("flower-superexec"),
        *("--runtime-api-address", settings.superlink_address),
        *("--root-certificates", str(folder / CA_FILE)),
        *("--superexec-auth-secret-file", str(folder / SUPEREXEC_SECRET)),
    ]


def gateway_command(settings: ServerSettings) -> list[str]:
    """The gateway as a process of its own."""
    return [sys.executable, "-P", "-m", "fedsec.edge.gateway", "--home", str(settings.home)]


@dataclass(kw_only=True, eq=False)
class Service:
    """One child that is kept running.

    Attributes:
        name: of its log.
        command: program and arguments.
        environment: all of it.
        log_file: where its output goes.
        user: Unix user; empty: this process's.
        on_change: told that a process began or ended.
        restarts: how often it was started again.
        process: the running one.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log_file: Path
    user: str = ""
    on_change: Callable[[], None] = lambda: None
    restarts: int = 0
    process: asyncio.subprocess.Process | None = field(default=None)

    async def keep(self) -> None:
        """Run it, and again whenever it ends; cancel to end."""
        wait_s = FIRST_WAIT_S
        loop = asyncio.get_running_loop()
        writer = _log_writer(self.log_file)
        try:
            while True:
                began = loop.time()
                try:
                    await self._run_once(writer)
                except OSError as error:
                    log.warning("%s cannot be started: %s", self.name, error)
                wait_s = FIRST_WAIT_S if loop.time() - began > STEADY_S else min(2 * wait_s, LONGEST_WAIT_S)
                self.restarts += 1
                self.on_change()
                await asyncio.sleep(wait_s)
        finally:
            await self._end(writer)
            writer.close()

    async def _run_once(self, writer: logging.Handler) -> None:
        self.process = await asyncio.create_subprocess_exec(
            *bound_command(self.command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=dict(self.environment),
            limit=MAX_LINE_BYTES,
            process_group=0,
            **_identity_of(self.user),
        )
        self.on_change()
        assert self.process.stdout is not None
        await _pump(self.process.stdout, writer)
        code = await self.process.wait()
        kill_group(self.process.pid)  # what it left behind
        log.warning("%s ended with status %s; see %s", self.name, code, self.log_file)
        self.process = None

    async def _end(self, writer: logging.Handler) -> None:
        """What it says last is in the log too."""
        process, self.process = self.process, None
        if process is None:
            return
        assert process.stdout is not None
        last_words = asyncio.create_task(_pump(process.stdout, writer))
        try:
            await end_group(process, signal.SIGTERM, GRACE_S)
            await asyncio.wait({last_words}, timeout=LAST_WORDS_S)  # a grandchild of another session may hold the pipe for ever
        finally:
            last_words.cancel()


def _identity_of(user: str) -> dict[str, Any]:
    """What ``subprocess`` needs to become a user.

    Raises:
        ConfigError: no such user, or this process may not.
    """
    owner = owner_of(user)
    if owner.uid == os.geteuid():
        return {}
    return {"user": owner.uid, "group": owner.gid, "extra_groups": os.getgrouplist(user, owner.gid)}


def _log_writer(path: Path) -> logging.Handler:
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=LOG_BACKUPS, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(message)s"))
    return handler


async def _pump(stream: asyncio.StreamReader, writer: logging.Handler) -> None:
    """Copy lines into the log until the stream ends; lines that say nothing new are dropped."""
    while True:
        try:
            line = await stream.readline()
        except ValueError:  # longer than the limit: the reader dropped it
            continue
        if not line:
            return
        if any(noise in line for noise in _NOISE):
            continue
        text = line.decode("utf-8", "backslashreplace").rstrip("\n")
        writer.emit(logging.LogRecord("child", logging.INFO, "", 0, text, None, None))


async def wait_for_port(port: int, *, timeout_s: float = READY_S) -> bool:
    """Whether somebody listens on a port of 127.0.0.1 within the time."""
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout_s
    while loop.time() < end:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.2)
            continue
        writer.close()
        return True
    return False


def check_port_free(port: int, what: str) -> None:
    """Refuse a port that somebody listens on.

    Raises:
        ConfigError: it is taken.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigError(
                f"port {port} is taken ({error.strerror})", field=what, mend="end what listens there, or choose another"
            ) from error


class ServerHost:
    """All processes of a server host.

    Args:
        settings: of the server.
        environment: this process's.
    """

    def __init__(self, settings: ServerSettings, environment: Mapping[str, str]) -> None:
        self._settings = settings
        folder = settings.home / "superlink"
        shared = server_environment(environment, settings)
        users = settings.users

        keyless = {key: value for key, value in shared.items() if key != PASSPHRASE_VARIABLE}

        def service(name: str, command: list[str], user: str) -> Service:
            stock = name == "superlink"  # needs no key of ours
            flower_home = settings.home / DATABASE if stock else folder / "flwr"
            environment = environment_as(keyless if stock else shared, user, flower_home)
            return Service(
                name=name, command=command, environment=environment, log_file=folder / f"{name}.log", user=user, on_change=self.write_status
            )

        self.superlink = service("superlink", superlink_command(settings), users.superlink)
        self.superexec = service("superexec", superexec_command(settings), users.superexec)
        self.gateway = service("gateway", gateway_command(settings), users.gateway)

    @property
    def services(self) -> tuple[Service, ...]:
        """In the order in which they are ended."""
        return self.gateway, self.superexec, self.superlink

    def write_status(self) -> None:
        """``superlink/processes.json``: what runs, for ``fedsec server status``."""
        running = {
            service.name: {"pid": service.process.pid if service.process else None, "restarts": service.restarts}
            for service in self.services
        }
        with contextlib.suppress(StorageError):
            atomic_write_json(self._settings.home / "superlink" / "processes.json", {"supervisor": os.getpid(), "processes": running})

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Run until SIGTERM or SIGINT.

        Args:
            on_ready: told when the SuperLink and the gateway listen.
        """
        if not hides_processes(read_proc_options()):
            log.warning("other local users can read command lines in /proc, and so a task's token: %s", ALONE)
        end = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, end.set)
        tasks = [
            (service, asyncio.create_task(service.keep(), name=service.name)) for service in (self.superlink, self.superexec, self.gateway)
        ]
        watch = asyncio.create_task(self._tell_ready(on_ready))
        try:
            await asyncio.wait([asyncio.create_task(end.wait()), *(task for _, task in tasks)], return_when=asyncio.FIRST_COMPLETED)
        finally:
            watch.cancel()
            for _, task in reversed(tasks):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            self.write_status()

    async def _tell_ready(self, on_ready: Callable[[], None]) -> None:
        port = int(self._settings.gateway.listen.rsplit(":", 1)[1])
        if await wait_for_port(self._settings.superlink.port) and await wait_for_port(port):
            on_ready()


def run_server(settings: ServerSettings, *, on_ready: Callable[[], None]) -> None:
    """Bring a server host up and keep it so until SIGTERM or SIGINT.

    Args:
        settings: of the server.
        on_ready: told once it listens.

    Raises:
        ConfigError: a port is taken, a user cannot be become, or Flower's commands are missing.
        StorageError: another one runs on this folder, or the file system refused.
    """
    check_users(settings)
    with exclusive_lock(settings.home / "server.lock", what="server host"):
        check_port_free(settings.superlink.port, "superlink.port")
        prepare_superlink(settings, now=datetime.now(UTC))
        hand_over(settings)
        asyncio.run(ServerHost(settings, os.environ).run(on_ready))
