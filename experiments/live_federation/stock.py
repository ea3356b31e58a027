"""A deployment of Flower's stock commands alone on loopback: SuperLink and SuperNodes, no gateway, no agent. What ours is compared with, and tried on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from experiments.ports import free_ports

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = ROOT / "fedsec" / "sim" / "launch.py"


@dataclass(kw_only=True)
class Processes:
    """Processes that end with this one, and with the block."""

    logs: Path
    environment: Mapping[str, str]
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, command: Sequence[str], **more: str) -> subprocess.Popen[bytes]:
        """Start one; its output goes to ``logs/name.log``."""
        bound = [sys.executable, "-I", "-S", str(LAUNCHER), str(os.getpid()), *command]
        with (self.logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                bound, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**self.environment, **more}, start_new_session=True
            )
        self.running[name] = process
        return process

    def end(self, name: str, *, hard: bool = False) -> None:
        """End one and all that it started."""
        process = self.running.pop(name, None)
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL if hard else signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)

    def end_all(self) -> None:
        """End everything, the last started first."""
        for name in reversed(list(self.running)):
            self.end(name)


def clean_environment(**more: str) -> dict[str, str]:
    """This environment without proxies, with Flower quiet and the repository on the path."""
    kept = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    path = f"{BIN}{os.pathsep}{kept.get('PATH', '')}"
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1"}
    return {**kept, **quiet, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def loopback_certificate(folder: Path) -> None:
    """``ca.pem``, ``cert.pem`` and ``key.pem`` for 127.0.0.1 in the folder: one self-signed certificate."""
    import ipaddress
    from datetime import timedelta

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "loopback")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5)).not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = made.public_bytes(serialization.Encoding.PEM)
    for name_, data in (("ca.pem", pem), ("cert.pem", pem)):
        (folder / name_).write_bytes(data)
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def settings_of(client_id: str, folder: Path, *, source: str, batch_size: int = 120) -> str:
    """A client's settings file: cautious, and enough for ``examples/live.toml``."""
    return (
        f'client_id = "{client_id}"\nhome = "{folder / "store"}"\nsource = "{source}"\nbatch_size = {batch_size}\nidentity = "{folder / "identity"}"\n'
        "[policy]\nepsilon_cap = 30.0\ndelta = 1e-3\nrequire_secagg = false\nmin_cohort = 4\nnum_corrupt = 1\n"
    )


@dataclass(kw_only=True)
class StockFederation:
    """A CA in this process, a server's home, and clients, with Flower's commands between them.

    Attributes:
        root: folder for all of it.
        count: clients.
    """

    root: Path
    count: int
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    nodes: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.home = self.root / "server"
        self.superlink = self.home / "superlink"
        (self.superlink / "flwr").mkdir(parents=True)
        self.environment = clean_environment(
            FEDSEC_HOME=str(self.home), FLWR_HOME=str(self.superlink / "flwr"), FEDSEC_LIVE_PARTS=str(self.count)
        )
        self.processes = Processes(logs=self.superlink, environment=self.environment)
        self.port, *self.node_ports = free_ports(self.count + 1)
        self.names = [f"client-{number:04d}" for number in range(self.count)]

    def make(self) -> None:
        """CA, identities, list of clients, and an empty revocation list."""
        from fedsec.identity.ca import CertificateAuthority
        from fedsec.identity.folder import create_identity
        from fedsec.signing import Signer

        self.authority = CertificateAuthority.create("live.example", now=self.now)
        signer, issuers = Signer.generate(), (self.authority.intermediate_der, self.authority.root_der)
        server = self.authority.issue_server("main", signer.public_key, now=self.now)
        create_identity(self.home / "identity", signer, server.certificate_der, *issuers)
        folder = self.home / "federation"
        (folder / "certificates").mkdir(parents=True)
        self.certificates = {}
        for number, name in enumerate(self.names):
            home, key = self.root / name, Signer.generate()
            home.mkdir()
            issued = self.authority.issue_node(name, key.public_key, site="loopback", now=self.now)
            create_identity(home / "identity", key, issued.certificate_der, *issuers)
            (folder / "certificates" / f"{name}.der").write_bytes(issued.certificate_der)
            (home / "settings.toml").write_text(settings_of(name, home, source=f"experiments.live_federation.data:client_{number}"))
            self._write_node_key(home)
            self.certificates[name] = (issued, key.public_key)
        self._server, self._roster = (signer.public_key, server.fingerprint), None
        self.list(*self.names)
        self.revoke(number=1)

    def list(self, *names: str) -> None:
        """A new list of clients."""
        from fedsec.identity.roster import Roster, RosterMember, make_roster

        members = [RosterMember(name, self.certificates[name][1], self.certificates[name][0].fingerprint) for name in names]
        signed = make_roster(
            self.authority.signer, federation="live.example", members=members, cohort_size=64, server_public_key=self._server[0],
            server_fingerprint=self._server[1], now=self.now, previous=self._roster,
        )  # fmt: skip
        self._roster = Roster.decode(signed.roster_bytes)
        folder = self.home / "federation"
        (folder / "roster.json").write_bytes(signed.roster_bytes)
        (folder / "roster.signature").write_bytes(signed.signature)

    def revoke(self, *names: str, number: int) -> None:
        """A new revocation list with these clients on it."""
        from fedsec.identity.revocation import Revocation, make_crl

        now = datetime.now(UTC)
        revoked = [Revocation(serial_number=self.certificates[name][0].serial_number, revoked_at=now) for name in names]
        new = self.home / "federation" / ".crl.new"
        new.write_bytes(make_crl(self.authority, revoked, number=number, now=now))
        new.rename(new.with_name("crl.der"))

    @staticmethod
    def _write_node_key(home: Path) -> None:
        key = serialization.load_pem_private_key((home / "identity" / "key.pem").read_bytes(), password=None)
        private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
        public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        (home / "node").write_bytes(private)
        (home / "node").chmod(0o600)
        (home / "node.pub").write_bytes(public + b"\n")

    def start_superlink(self) -> None:
        """Start it, and wait until it listens."""
        from fedsec.files import atomic_write_text

        if not (self.superlink / "ca.pem").exists():
            loopback_certificate(self.superlink)
        config = f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{self.port}"\nroot-certificates = "{self.superlink / "ca.pem"}"\n'
        atomic_write_text(self.superlink / "flwr" / "config.toml", config)
        self.processes.start(
            "superlink",
            [
                str(BIN / "flower-superlink"), "--host", "127.0.0.1", "--port", str(self.port), "--ssl-ca-certfile", str(self.superlink / "ca.pem"),
                "--ssl-certfile", str(self.superlink / "cert.pem"), "--ssl-keyfile", str(self.superlink / "key.pem"), "--enable-supernode-auth",
                "--disable-runtime-dependency-installation", "--database", str(self.superlink / "state.db"),
            ],
        )  # fmt: skip
        wait_for_port(self.port)

    def register(self) -> None:
        """Register every key, and write which node is whose, as the gateway would."""
        waiting = {name: self._register(name) for name in self.names}
        for name, process in waiting.items():
            out, err = process.communicate(timeout=120)
            if process.returncode:
                raise RuntimeError(f"{name} was not registered: {out} {err}")
            self.nodes[name] = int(json.loads(out[out.index("{") :])["node-id"])
        self.write_nodes()

    def _register(self, name: str) -> subprocess.Popen[str]:
        command = [str(BIN / "flwr"), "supernode", "register", str(self.root / name / "node.pub"), "--name", name, "--format", "json"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.environment)

    def write_nodes(self, **other: Any) -> None:
        """``nodes.json``; ``other`` replaces the client id of some nodes."""
        nodes = {
            str(node): {
                "client_id": other.get(name, name),
                "public_key": self.certificates[name][1].hex(),
                "serial_number": f"{self.certificates[name][0].serial_number:X}",
            }
            for name, node in self.nodes.items()
        }
        path = self.home / "gateway" / "nodes.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"format": "fedsec/nodes/v1", "nodes": nodes}))

    def start_node(self, name: str) -> None:
        """One SuperNode."""
        home, port = self.root / name, self.node_ports[self.names.index(name)]
        self.processes.start(
            name,
            [
                str(BIN / "flower-supernode"), "--root-certificates", str(self.superlink / "ca.pem"), "--superlink", f"127.0.0.1:{self.port}",
                "--auth-supernode-private-key", str(home / "node"), "--host", "127.0.0.1", "--port", str(port),
                "--node-config", f'fedsec-settings="{home / "settings.toml"}"',
            ],
            FLWR_HOME=str(home / "flwr"),
        )  # fmt: skip

    def fedsec(self, *arguments: str) -> subprocess.Popen[str]:
        """A fedsec command on the server's host."""
        command = [sys.executable, "-m", "fedsec", *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.environment)


@contextlib.contextmanager
def stock_federation(root: Path, count: int) -> Iterator[StockFederation]:
    """A stock federation with all its nodes started; ended with the block."""
    federation = StockFederation(root=root, count=count)
    try:
        federation.make()
        federation.start_superlink()
        federation.register()
        for name in federation.names:
            federation.start_node(name)
        yield federation
    finally:
        federation.processes.end_all()


def wait_for_port(port: int, timeout_s: float = 60.0) -> None:
    """Until somebody listens."""
    import socket

    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.2)
    raise TimeoutError(f"nobody listens on port {port}")
