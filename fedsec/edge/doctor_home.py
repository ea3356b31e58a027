"""The folder that a doctor is shown: of an edge device, a server or a CA; and what lies in it, faults of each part apart.

1. What a folder is for is read from its settings file: ``agent.toml``, ``server.toml``, ``ca.toml``.
2. ``load_identity`` refuses the whole at its first fault. Here key and certificates are read one by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509

from fedsec.edge.agent_settings import SETTINGS_FILE as AGENT_FILE
from fedsec.edge.agent_settings import load_agent_settings
from fedsec.edge.ca_settings import FILE as CA_FILE
from fedsec.edge.ca_settings import load_ca_settings
from fedsec.edge.doctor_certificates import Chain, Expected, examine_chain, examine_issuers
from fedsec.edge.doctor_findings import Finding, Level, finding, ok
from fedsec.edge.doctor_host import judge_keys, read_file
from fedsec.edge.server_settings import SETTINGS_FILE as SERVER_FILE
from fedsec.edge.server_settings import load_server_settings
from fedsec.errors import CertificateError, ConfigError, StorageError
from fedsec.identity.folder import CERTIFICATE, INTERMEDIATE, KEY, MAX_FILE_BYTES, ROOT, is_encrypted, load_key
from fedsec.identity.intermediates import STATEMENT_FILE
from fedsec.identity.names import PeerName, Role
from fedsec.identity.verify import claimed_name
from fedsec.signing import Signer, encode_public_key

CA_KEYS = ("intermediate-key.pem", "log-key.pem", "tls/key.pem")
CA_ROOT_KEY = "root-key.pem"

_EVERYWHERE = "0.0.0.0"  # noqa: S104 - read from settings, not bound to


@dataclass(frozen=True)
class Home:
    """What a folder is for.

    Attributes:
        path: where.
        kind: ``client``, ``server``, ``ca``, or ``none``: no settings file.
        address: ``host:port`` to look at, if the settings say one.
        server_name: the server that a client expects.
        federation: if the settings say it.
        findings: about the settings.
    """

    path: Path
    kind: str
    address: str | None
    server_name: str | None
    federation: str | None
    findings: tuple[Finding, ...]

    @property
    def role(self) -> Role | None:
        """What an identity in it must be."""
        return {"client": Role.NODE, "server": Role.SERVER}.get(self.kind)


def read_home(path: Path) -> Home:
    """Find out what a folder is for."""
    try:
        if (path / SERVER_FILE).exists():
            server = load_server_settings(path)
            found = ok("settings", f"server {server.name} of {server.federation} in {path}")
            return Home(path, "server", _reachable(server.gateway.listen), server.name, server.federation, (found,))
        if (path / CA_FILE).exists():
            ca = load_ca_settings(path)
            return Home(path, "ca", ca.address or None, None, None, (ok("settings", f"CA in {path}"),))
        if (path / AGENT_FILE).exists():
            agent = load_agent_settings(path)
            found = ok("settings", f"client of {agent.server_name} at {agent.server} in {path}")
            return Home(path, "client", agent.server, agent.server_name, None, (found,))
    except (ConfigError, StorageError) as error:
        kind = next(kind for kind, file in (("server", SERVER_FILE), ("ca", CA_FILE), ("client", AGENT_FILE)) if (path / file).exists())
        return Home(path, kind, None, None, None, (finding("settings.unsound", f"{error}"),))
    return Home(path, "none", None, None, None, (finding("settings.missing", f"{path} has no {AGENT_FILE}, {SERVER_FILE} or {CA_FILE}"),))


def _reachable(listen: str) -> str:
    """A server's own port, as seen from its host."""
    host, _, port = listen.rpartition(":")
    return f"{'127.0.0.1' if host == _EVERYWHERE else '[::1]' if host == '[::]' else host}:{port}"


@dataclass(frozen=True)
class Own:
    """What could be read of an identity.

    Attributes:
        signer: the key; None: it cannot be used.
        certificate_der: of the peer; empty: none.
        intermediate_der: its issuer; empty: none.
        root_der: the pinned root; empty: none.
        name: that the certificate claims.
        findings: about all of them.
    """

    signer: Signer | None
    certificate_der: bytes
    intermediate_der: bytes
    root_der: bytes
    name: PeerName | None
    findings: tuple[Finding, ...]

    @property
    def serial_number(self) -> int:
        """Of the certificate."""
        return x509.load_der_x509_certificate(self.certificate_der).serial_number


NOBODY = Own(None, b"", b"", b"", None, ())


def read_own(folder: Path, expected: Expected, *, passphrase: bytes | None, now: datetime) -> Own:
    """Read an identity's folder and judge each part.

    Args:
        folder: ``identity`` of a home.
        expected: whom it should name.
        passphrase: of the key, if it is encrypted.
        now: aware.
    """
    certificate, intermediate, root = (_read(folder / name) for name in (CERTIFICATE, INTERMEDIATE, ROOT))
    key = read_file(folder / KEY)
    if not certificate and not key.exists:
        return Own(None, b"", intermediate, root, None, (finding("certificate.missing", f"there is no identity in {folder}"),))
    found = judge_keys([key])
    signer = None
    if all(item.level is Level.OK for item in found):
        try:
            signer = load_key(folder / KEY, passphrase=passphrase)
        except StorageError as error:
            locked = f"{folder / KEY} is encrypted, and no passphrase is given"
            found = [finding("key.locked", locked if passphrase is None and is_encrypted(folder / KEY) else f"{error}")]
    if not certificate:
        return Own(signer, b"", intermediate, root, None, (*found, finding("certificate.missing", f"{folder / CERTIFICATE} is not there")))
    found += _judge_certificate(Chain(certificate, intermediate, root), signer, expected, now)
    found += examine_issuers(intermediate, root, now=now, statement=_read(folder / STATEMENT_FILE))
    return Own(signer, certificate, intermediate, root, _name(certificate), tuple(dict.fromkeys(found)))


def _judge_certificate(chain: Chain, signer: Signer | None, expected: Expected, now: datetime) -> list[Finding]:
    found = examine_chain("certificate", chain, expected, now=now)
    if signer is None or any(item.code == "certificate.unreadable" for item in found):
        return found
    try:
        fits = encode_public_key(x509.load_der_x509_certificate(chain.certificate_der).public_key()) == signer.public_key  # type: ignore[arg-type]
    except (ValueError, AttributeError):
        fits = False
    if fits:
        return found
    return [
        *(item for item in found if item.level is not Level.OK),
        finding("certificate.other-key", "the certificate is for another key than key.pem"),
    ]


def judge_ca(path: Path, *, now: datetime) -> list[Finding]:
    """Keys and issuers of a CA's folder."""
    root_key = path / CA_ROOT_KEY
    found = judge_keys([read_file(path / name) for name in CA_KEYS], root_key=root_key if root_key.exists() else None)
    return found + examine_issuers(_read(path / INTERMEDIATE), _read(path / ROOT), now=now)


def _name(certificate_der: bytes) -> PeerName | None:
    try:
        return claimed_name(certificate_der)
    except CertificateError:
        return None


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as handle:
            return handle.read(MAX_FILE_BYTES)
    except OSError:
        return b""
