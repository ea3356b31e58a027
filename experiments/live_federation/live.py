"""A live federation on loopback, made with fedsec's own commands as an operator would: CA, server host and clients, each a process of its own.

Everything that is started ends with this process, or with the block. Folders: ``ca/``, ``server/``, ``admin/``, ``client-NNNN/``, ``logs/``.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.live_federation.stock import ROOT, Processes, clean_environment, wait_for_port
from experiments.ports import free_ports

FEDERATION = "live.example"
ADMIN = "ada"
READY_S = 120.0


def copy_code(folder: Path) -> Path:
    """The code as it is now, to run and approve: what is edited meanwhile changes nothing."""
    for part in ("fedsec", "server", "client", "experiments/live_federation", "examples"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    (folder / "experiments" / "__init__.py").touch()
    return folder


class LiveError(Exception):
    """A part did not come up, or a command failed; holds what it said."""


@dataclass(kw_only=True)
class LiveFederation:
    """One federation.

    Attributes:
        root: folder for all of it; must exist.
        count: clients.
    """

    root: Path
    count: int
    names: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = [f"client-{number:04d}" for number in range(self.count)]
        self.ca, self.server, self.logs = self.root / "ca", self.root / "server", self.root / "logs"
        self.logs.mkdir()
        self.code = copy_code(self.root / "code")
        self.environment = clean_environment(FEDSEC_LIVE_PARTS=str(self.count)) | {"PYTHONPATH": str(self.code)}
        self.processes = Processes(logs=self.logs, environment=self.environment)
        self.ca_port, self.gateway_port, self.superlink_port = free_ports(3)

    # --- Commands -------------------------------------------------------------------------------------------------------------------

    def fedsec(self, *arguments: str, timeout_s: float = 120.0) -> str:
        """Run a command to its end; its stdout.

        Raises:
            LiveError: it failed.
        """
        command = [sys.executable, "-P", "-m", "fedsec", *arguments]
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=self.environment, timeout=timeout_s)
        if done.returncode:
            raise LiveError(f"fedsec {' '.join(arguments)}: exit {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def json(self, *arguments: str) -> Any:
        """The same with ``--json``."""
        return json.loads(self.fedsec(*arguments, "--json"))

    def token(self, *whom: str) -> Path:
        """A one-time token in a file that only its owner reads."""
        path = self.root / f"token-{'-'.join(part.strip('-') for part in whom)}"
        made = self.json("ca", "token", *whom, "--ca", str(self.ca))
        path.touch(mode=0o600)
        path.write_text(made["token"])
        return path

    # --- Coming up ------------------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Keep how long a step took."""
        started = time.monotonic()
        yield
        self.seconds[what] = round(time.monotonic() - started, 2)

    def up(self) -> None:
        """Everything, until every client is connected and has the release."""
        with self.timed("CA"):
            self.start_ca()
        with self.timed("server"):
            self.start_server()
        with self.timed("release"):
            self.release()
        with self.timed("clients enrolled"), ThreadPoolExecutor(2) as pool:
            list(pool.map(self.enrol, self.names))
        with self.timed("clients connected"):
            for name in self.names:
                self.start_client(name)
            self.wait("all clients online", lambda: set(self.online()) >= set(self.names))

    def start_ca(self) -> None:
        """``fedsec ca init`` and ``fedsec ca serve``."""
        if not self.ca.exists():
            self.fedsec("ca", "init", FEDERATION, "--address", f"127.0.0.1:{self.ca_port}", "--ca", str(self.ca))
        self.start("ca", "ca", "serve", "--port", str(self.ca_port), "--ca", str(self.ca))
        wait_for_port(self.ca_port)

    def start_server(self) -> None:
        """``fedsec server init``, ``enroll`` and ``up``."""
        where = ("--home", str(self.server))
        if not self.server.exists():
            listen = f"127.0.0.1:{self.gateway_port}"
            self.fedsec(
                "server", "init", "--federation", FEDERATION, "--listen", listen, "--superlink-port", str(self.superlink_port), *where
            )
            self.fedsec("server", "enroll", "--token-file", str(self.token("--server", "main")), *where)
        self.start("server", "server", "up", *where)

    def start(self, name: str, *arguments: str) -> None:
        """One of fedsec's services."""
        self.processes.start(name, [sys.executable, "-P", "-m", "fedsec", *arguments])

    def client_home(self, name: str) -> Path:
        """Of a client."""
        return self.root / name

    def enrol(self, name: str) -> None:
        """``fedsec client enroll``, with the client's own settings: where its records are, whose approval counts, and what it may spend."""
        home, number = self.client_home(name), self.names.index(name)
        self.fedsec(
            "client", "enroll", "--token-file", str(self.token("--node", name, "--site", "loopback")), "--server", f"127.0.0.1:{self.gateway_port}",
            "--approver", ADMIN, "--source", f"experiments.live_federation.data:client_{number}", "--epsilon-cap", "30", "--delta", "1e-3",
            "--batch-size", "120", "--home", str(home), *(["--no-check-source"] if number else []),  # one shows it: 2 s of a core each
        )  # fmt: skip

    def start_client(self, name: str) -> None:
        """``fedsec client up``."""
        self.start(name, "client", "up", "--home", str(self.client_home(name)))

    def release(self) -> None:
        """An administrator approves the code."""
        self.fedsec("release", "enroll", str(self.root / "admin"), "--token-file", str(self.token("--admin", ADMIN)))
        file = self.root / "release-1.json"
        self.fedsec("release", "build", "--federation", FEDERATION, "--version", "1", "--out", str(file))
        self.fedsec("release", "sign", str(file), "--identity", str(self.root / "admin"), "--yes")
        shutil.copy(file, self.server / "releases")

    # --- Looking --------------------------------------------------------------------------------------------------------------------

    def online(self) -> list[str]:
        """Clients whose agents say that they are connected and whose SuperNode runs."""
        found = []
        for name in self.names:
            with contextlib.suppress(OSError, ValueError):
                status = json.loads((self.client_home(name) / "status.json").read_text())
                node = status.get("node") or {}
                if (
                    status.get("state") == "connected"
                    and node.get("superexec_pid")
                    and "error" not in (status.get("release") or {"error": ""})
                ):
                    found.append(name)
        return found

    def status(self, name: str) -> dict[str, Any]:
        """What a client's agent says; empty if it says nothing."""
        with contextlib.suppress(OSError, ValueError):
            value: dict[str, Any] = json.loads((self.client_home(name) / "status.json").read_text())
            return value
        return {}

    def wait(self, what: str, ready: Callable[[], bool], timeout_s: float = READY_S) -> None:
        """Until something is so.

        Raises:
            LiveError: it is not within the time.
        """
        deadline = time.monotonic() + timeout_s
        while not ready():
            if time.monotonic() > deadline:
                raise LiveError(f"{what}: not within {timeout_s:.0f} s; the logs are in {self.logs}")
            time.sleep(0.25)

    # --- Running --------------------------------------------------------------------------------------------------------------------

    def run(self, *arguments: str) -> subprocess.Popen[str]:
        """``fedsec run`` on the server's host, not waited for."""
        command = [sys.executable, "-P", "-m", "fedsec", "run", *arguments, "--home", str(self.server)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.environment)

    def events(self, kind: str = "") -> list[dict[str, Any]]:
        """What the run said, of one kind or of all."""
        found = []
        for path in self.server.glob("runs/*/live.jsonl"):
            for line in path.read_text().splitlines():
                with contextlib.suppress(ValueError):
                    event = json.loads(line)
                    found += [event] if kind in ("", event.get("event")) else []
        return found

    def newest_event(self) -> str:
        """The kind of the last thing that the run said; empty before it said anything."""
        said = self.events()
        return str(said[-1].get("event")) if said else ""

    def revoke(self, name: str) -> None:
        """``fedsec ca revoke``."""
        self.fedsec("ca", "revoke", name, "--ca", str(self.ca))

    # --- Accidents ------------------------------------------------------------------------------------------------------------------

    def kill(self, part: str, name: str = "") -> int:
        """SIGKILL for one process; its pid.

        Args:
            part: ``gateway``, ``superlink``, ``serverapp``, ``agent`` or ``supernode``.
            name: of the client, for the last two.

        Raises:
            LiveError: it does not run.
        """
        pid = self._pid(part, name or self.names[-1])
        if not pid:
            raise LiveError(f"there is no {part} to kill")
        os.kill(pid, signal.SIGKILL)
        return pid

    def _pid(self, part: str, name: str) -> int | None:
        if part in ("gateway", "superlink", "superexec"):
            facts = json.loads((self.server / "superlink" / "processes.json").read_text())
            pid: int | None = facts["processes"][part]["pid"]
            return pid
        if part == "serverapp":
            return child_named("flwr-serverapp", self._pid("superexec", name))
        if part == "agent":
            return self.processes.running[name].pid
        found: int | None = (self.status(name).get("node") or {}).get("supernode_pid")
        return found


def child_named(word: str, parent: int | None) -> int | None:
    """Pid of a process below ``parent`` whose command line has this word; Linux."""
    from fedsec.flower.leftovers import descendants

    for pid, _ in descendants(parent) if parent else ():
        with contextlib.suppress(OSError):
            if word.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
    return None


@contextlib.contextmanager
def live_federation(root: Path, count: int, *, keep: bool = False) -> Iterator[LiveFederation]:
    """A live federation that is up; ended, and its folder removed unless ``keep``, with the block."""
    root.mkdir(parents=True)
    federation = LiveFederation(root=root, count=count)
    try:
        federation.up()
        yield federation
    finally:
        federation.processes.end_all()
        if not keep:
            shutil.rmtree(root, ignore_errors=True)
