"""``fedsec doctor``: every check in order, each a line with its mend, and what could not be checked because of what failed before it.

1. This host first, then the folder, then the way to the server, hop by hop: the first fault is most often the cause of the others.
2. It changes nothing, here or there: one Hello and one Bundle are all that a server sees of it.
3. A fault ends what needs it and no more. What was not looked at is listed: it is not in order, it is unknown.
"""

from __future__ import annotations

import os
import secrets
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import fedsec
from fedsec.edge.agent_settings import DEFAULT_SERVER_NAME
from fedsec.edge.doctor_certificates import Chain, Expected, examine_crl, examine_service, examine_token
from fedsec.edge.doctor_findings import Finding, Level, finding, ok
from fedsec.edge.doctor_home import NOBODY, Home, Own, judge_ca, read_home, read_own
from fedsec.edge.doctor_host import (
    judge_commands,
    judge_disk,
    judge_folders,
    judge_library,
    judge_processes,
    judge_proxies,
    judge_versions,
    read_commands,
    read_file,
    read_free_bytes,
    read_proc_options,
    read_versions,
)
from fedsec.edge.doctor_judge import SessionView, judge_connection, judge_port, judge_server, judge_session, judge_tls
from fedsec.edge.doctor_network import Address, OwnTls, TlsFacts, fetch_certificate, parse_address, probe_port, probe_session, probe_tls
from fedsec.edge.signing import NONCE_BYTES
from fedsec.edge.source_check import check_source, source_of
from fedsec.errors import CertificateError, ConfigError
from fedsec.identity.folder import KEY, make_identity
from fedsec.identity.names import Role

_LOCAL = ("settings", "versions", "commands", "host", "proxy", "disk", "folder", "key", "certificate", "issuer")
_WAY = ("name", "port", "tls", "server-certificate", "connection")
CHECKS: Mapping[str, tuple[str, ...]] = {
    "client": (*_LOCAL, "source", *_WAY, "session", "clock", "revocation", "idle"),
    "server": (*_LOCAL, "revocation", "name", "port", "tls", "server-certificate"),
    "ca": ("settings", "versions", "disk", "folder", "key", "issuer"),
    "none": ("settings", "versions", "proxy", *_WAY),
}
"""What is looked at, by the kind of the folder."""

_REFUSED_BY_TLS = tuple(f"server-certificate.{what}" for what in ("another-server", "self-signed", "expired", "not-yet-valid"))
"""What keeps gRPC from connecting: a session is not tried then, it would only repeat the fault in OpenSSL's words."""

_QUICK_LEAVES_OUT = ("source", "tls", "server-certificate", "connection", "session", "clock", "revocation", "idle")


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a doctor is asked.

    Attributes:
        home: the folder.
        clock: this host's, aware.
        server: ``host:port``; None: as the settings say.
        token: a token's line; secret.
        passphrase: of the key; secret.
        idle_s: how long the connection is left alone.
        timeout_s: for each step.
        quick: this host and the port only, as a health check wants it.
        check_source: whether a client's records are loaded, once.
        proc_options: mount options of /proc; None: read.
        environment: for proxy variables.
    """

    home: Path
    clock: Callable[[], datetime]
    server: str | None = None
    token: str | None = field(default=None, repr=False)
    passphrase: bytes | None = field(default=None, repr=False)
    idle_s: float = 3.0
    timeout_s: float = 5.0
    quick: bool = False
    check_source: bool = True
    proc_options: str | None = None
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ), repr=False)


@dataclass(frozen=True)
class Report:
    """What a doctor found.

    Attributes:
        home: the folder.
        kind: of the folder.
        server: that was looked at.
        findings: in order.
        not_checked: checks that could not be made.
    """

    home: Path
    kind: str
    server: str | None
    findings: tuple[Finding, ...]
    not_checked: tuple[str, ...]

    def count(self, level: Level) -> int:
        """How many findings have a level."""
        return sum(item.level is level for item in self.findings)

    def to_json(self) -> dict[str, Any]:
        """One plain object."""
        lines = [
            {"check": item.check, "code": item.code, "level": str(item.level), "text": item.text, "mend": item.mend}
            for item in self.findings
        ]
        return {
            "home": str(self.home),
            "kind": self.kind,
            "server": self.server,
            "faults": self.count(Level.FAULT),
            "warnings": self.count(Level.WARNING),
            "findings": lines,
            "not_checked": list(self.not_checked),
        }


def examine(question: Question) -> Report:
    """Make every check.

    Raises:
        ConfigError: ``server`` is not an address.
    """
    home = read_home(question.home)
    address = _address(question.server or home.address)
    found = [*home.findings, *judge_versions(read_versions()), *judge_library(has_tls13=ssl.HAS_TLSv1_3)]
    if home.kind in ("client", "server"):
        found += judge_commands(read_commands(home.kind))
        found += judge_processes(read_proc_options() if question.proc_options is None else question.proc_options)
    if home.kind != "ca":
        found += judge_proxies(question.environment, address.host if address else None)
    if home.path.is_dir():
        found += _folder(home)
    own = _own(home, question)
    found += own.findings
    if home.kind == "client" and question.check_source and not question.quick:
        found += _source(home, question)
    if home.kind == "ca":
        found += judge_ca(home.path, now=question.clock())
    if home.kind == "server":
        found += _server_lists(home, own, question.clock())
    if question.token is not None:
        found += _token(question, home, own)
    if address is not None and home.kind != "ca":
        found += _way(question, address, home, own)
    elif question.server is not None and address is not None:
        found += judge_port(str(address), probe_port(address, timeout_s=question.timeout_s))
    checks = CHECKS[home.kind]
    seen = {item.check for item in found}
    left_out = (*(_QUICK_LEAVES_OUT if question.quick else ()), *(() if question.check_source else ("source",)))
    missing = [check for check in checks if check not in seen and check not in left_out]
    return Report(home.path, home.kind, str(address) if address else None, tuple(dict.fromkeys(found)), tuple(missing))


def _address(text: str | None) -> Address | None:
    if text is None:
        return None
    try:
        return parse_address(text)
    except ValueError as error:
        raise ConfigError(str(error), field="--server", mend="for example --server gateway.example:9443") from None


def _folder(home: Home) -> list[Finding]:
    folders = [
        read_file(home.path),
        *(read_file(home.path / name) for name in ("identity", "store", "federation", "gateway", "log", "tls")),
    ]
    return [*judge_disk(folders[0], read_free_bytes(home.path)), *judge_folders(folders)]


def _own(home: Home, question: Question) -> Own:
    if home.role is None:
        return NOBODY
    name = home.server_name if home.kind == "server" else None
    expected = Expected(home.role, home.federation, name)
    return read_own(home.path / "identity", expected, passphrase=question.passphrase, now=question.clock())


def _source(home: Home, question: Question) -> list[Finding]:
    """The site's records, loaded once as a round does."""
    source = source_of(home.path / "settings.toml")
    if not source:
        return [finding("source.missing", f"{home.path / 'settings.toml'} names no source")]
    try:
        given = check_source(source, base=question.environment)
    except ConfigError as error:
        return [finding("source.unsound", error.problem)]
    return [ok("source", f"{source}: {given.records} records to train on, {given.test_records} to test on, {given.classes} classes")]


def _server_lists(home: Home, own: Own, now: datetime) -> list[Finding]:
    """The revocation list that the gateway goes by."""
    try:
        crl = (home.path / "federation" / "crl.der").read_bytes()
    except OSError:
        crl = b""
    if own.name is None:
        return []
    return examine_crl(crl, Chain(own.certificate_der, own.intermediate_der, own.root_der), {"certificate": own.serial_number}, now=now)


def _token(question: Question, home: Home, own: Own) -> list[Finding]:
    assert question.token is not None
    found, token = examine_token(question.token, role=home.role, name=own.name, root_der=own.root_der or None, now=question.clock())
    if token is None or token.address is None or question.quick:
        return found
    shown = fetch_certificate(parse_address(token.address), timeout_s=question.timeout_s)
    service = finding("token.unreachable", f"nothing answers at {token.address}") if shown is None else examine_service(token, shown)
    return [*found, service] if service.level is not Level.OK or not found else found


def _way(question: Question, address: Address, home: Home, own: Own) -> list[Finding]:
    """The way to the server, as far as it goes."""
    port = probe_port(address, timeout_s=question.timeout_s)
    found = judge_port(str(address), port)
    if port.outcome != "open" or question.quick:
        return found
    tls, problem = _tls(question, address, home, own)
    found += [problem] if problem else []
    found += judge_tls(tls)
    if tls.outcome != "done":
        return found
    expected = Expected(Role.SERVER, own.name.federation if own.name else home.federation, home.server_name)
    if own.root_der and tls.certificate_der:
        chain = Chain(tls.certificate_der, own.intermediate_der, own.root_der)
        found += judge_server(tls, chain, expected, now=question.clock())
    if home.kind == "server":
        return found  # a server's certificate is none for a client: the rest is an agent's to try
    found += judge_connection(tls, own.findings)
    refused = any(item.code in _REFUSED_BY_TLS for item in found)
    if tls.accepted and not refused and own.signer is not None and tls.version == "TLSv1.3":
        found += _session(question, address, own, expected, tls)
    return found


def _tls(question: Question, address: Address, home: Home, own: Own) -> tuple[TlsFacts, Finding | None]:
    shown = None
    if home.kind == "client" and own.signer is not None and own.certificate_der and own.intermediate_der:
        shown = OwnTls(home.path / "identity" / KEY, question.passphrase, own.certificate_der, own.intermediate_der)
    try:
        return probe_tls(address, shown, own.root_der or None, timeout_s=question.timeout_s), None
    except (OSError, ValueError) as error:
        facts = probe_tls(address, None, own.root_der or None, timeout_s=question.timeout_s)
        return facts, finding("certificate.unsound", f"key and certificate cannot be used for TLS: {error}")


def _session(question: Question, address: Address, own: Own, expected: Expected, tls: TlsFacts) -> list[Finding]:
    assert own.signer is not None
    try:
        identity = make_identity(own.signer, own.certificate_der, own.intermediate_der, own.root_der)
    except CertificateError:
        return []  # named before
    facts = probe_session(
        address,
        identity,
        secrets.token_bytes(NONCE_BYTES),
        server_name=expected.name or DEFAULT_SERVER_NAME,
        clock=question.clock,
        version=f"fedsec doctor {fedsec.__version__}",
        idle_s=question.idle_s,
        timeout_s=question.timeout_s,
    )
    view = SessionView(own.certificate_der, identity.serial_number, own.root_der, expected, tls.certificate_der)
    return judge_session(facts, view, now=question.clock())
