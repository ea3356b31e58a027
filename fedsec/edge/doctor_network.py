"""Probes: what an address, a port, a handshake and a session look like from here. Facts only; ``doctor_judge`` says what they mean.

1. The handshake is made with Python's ``ssl``, twice: once without verification, to see what is shown whatever it is, and once against
   our root, for OpenSSL's own opinion. gRPC shows "Socket closed" for every fault of a certificate.
2. In TLS 1.3 the client is done before the server has looked at its certificate. So HTTP/2's first frame is sent, and only a server that
   accepted the certificate answers it; gRPC's closes without an alert.
3. Nothing is believed here: the session's proof is checked by whoever reads the facts. No probe sends anything secret.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Self

import grpc

from fedsec.edge import edge_pb2
from fedsec.edge.edge_client import hello_request
from fedsec.edge.service import CLIENT_OPTIONS, EdgeStub
from fedsec.edge.signing import NONCE_BYTES, new_share
from fedsec.identity.folder import Identity
from fedsec.identity.tls import secure_channel, to_pem

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
"""How an HTTP/2 client begins (RFC 9113, 3.4): the preface and an empty SETTINGS frame."""

_SETTINGS_TYPE = 4


@dataclass(frozen=True)
class Address:
    """A host and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """``host:port`` or ``[IPv6]:port``.

    Raises:
        ValueError: neither.
    """
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not (port.isascii() and port.isdigit()) or not 1 <= int(port) <= 65535 or not host.isprintable():
        raise ValueError(f"{text[:80]!r} is not host:port")
    return Address(host, int(port))


@dataclass(frozen=True)
class PortFacts:
    """What the name and the port did.

    Attributes:
        addresses: that the name resolved to; empty: it did not.
        outcome: ``open``, ``refused``, ``timeout``, ``reset``, ``unreachable`` or ``unresolved``.
        detail: the system's words.
        milliseconds: to connect.
    """

    addresses: tuple[str, ...]
    outcome: str
    detail: str = ""
    milliseconds: float = 0.0


def probe_port(address: Address, *, timeout_s: float) -> PortFacts:
    """Resolve and connect."""
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return PortFacts((), "unresolved", f"{error}")
    addresses = tuple(dict.fromkeys(str(item[4][0]) for item in found))
    started = time.monotonic()
    try:
        socket.create_connection((address.host, address.port), timeout_s).close()
    except OSError as error:
        return PortFacts(addresses, outcome_of(error), error.strerror or str(error))
    return PortFacts(addresses, "open", "", (time.monotonic() - started) * 1000)


def outcome_of(error: OSError) -> str:
    """One word for a connection's failure."""
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    return "reset" if isinstance(error, ConnectionError) else "unreachable"


@dataclass(frozen=True)
class TlsFacts:
    """What a handshake without verification showed.

    Attributes:
        outcome: ``done``, ``not-tls``, ``version``, ``closed`` or ``timeout``.
        version: of TLS, for example ``TLSv1.3``.
        http2: HTTP/2 was agreed on.
        certificate_der: of the server.
        showed_certificate: a certificate of ours was shown.
        accepted: the server spoke HTTP/2 after it had seen ours.
        detail: OpenSSL's words, or the alert.
        verify_message: OpenSSL's opinion of the server's chain under our root; empty: none wrong; None: not asked.
    """

    outcome: str
    version: str = ""
    http2: bool = False
    certificate_der: bytes = b""
    showed_certificate: bool = False
    accepted: bool = False
    detail: str = ""
    verify_message: str | None = None


@dataclass(frozen=True)
class OwnTls:
    """What of ours goes into a handshake.

    Attributes:
        key: file of the key.
        passphrase: of the key.
        certificate_der: ours.
        intermediate_der: its issuer.
    """

    key: Path
    passphrase: bytes | None
    certificate_der: bytes
    intermediate_der: bytes


def probe_tls(address: Address, own: OwnTls | None, root_der: bytes | None, *, timeout_s: float) -> TlsFacts:
    """Shake hands.

    Args:
        address: where.
        own: shown to the server; None: nothing is.
        root_der: for OpenSSL's opinion; None: not asked.
        timeout_s: for each step.

    Raises:
        OSError: our own key cannot be used for TLS.
    """
    context = _context(own)
    facts = _shake(address, context, showed=own is not None, timeout_s=timeout_s)
    if facts.outcome != "done" or root_der is None:
        return facts
    message = _opinion(address, own, root_der, timeout_s=timeout_s)
    return TlsFacts(**{**vars(facts), "verify_message": message})


def _context(own: OwnTls | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # a server's certificate names a SPIFFE id, and is judged by doctor_certificates
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    if own is not None:
        with _chain_file(own) as chain:
            context.load_cert_chain(chain, str(own.key), lambda: own.passphrase or b"")
    return context


@contextlib.contextmanager
def _chain_file(own: OwnTls) -> Iterator[str]:
    """Public certificates only; the key stays where it is."""
    with tempfile.NamedTemporaryFile(prefix="fedsec-doctor-", suffix=".pem") as handle:
        handle.write(to_pem(own.certificate_der, own.intermediate_der))
        handle.flush()
        yield handle.name


def _shake(address: Address, context: ssl.SSLContext, *, showed: bool, timeout_s: float) -> TlsFacts:
    try:
        with socket.create_connection((address.host, address.port), timeout_s) as plain, context.wrap_socket(plain) as wrapped:
            facts = TlsFacts(
                "done",
                version=wrapped.version() or "",
                http2=wrapped.selected_alpn_protocol() == "h2",
                certificate_der=wrapped.getpeercert(binary_form=True) or b"",
                showed_certificate=showed,
            )
            accepted, detail = _speaks_http2(wrapped)
            return TlsFacts(**{**vars(facts), "accepted": accepted, "detail": detail})
    except TimeoutError:
        return TlsFacts("timeout")
    except ssl.SSLError as error:
        return TlsFacts(_outcome_of_tls(error), detail=error.reason or str(error))
    except OSError as error:
        return TlsFacts("closed", detail=error.strerror or str(error))


def _speaks_http2(wrapped: ssl.SSLSocket) -> tuple[bool, str]:
    """Whether the first frame that comes is SETTINGS, and what came instead."""
    try:
        wrapped.sendall(_PREFACE)
        head = wrapped.recv(9)
    except (ssl.SSLError, OSError) as error:
        return False, getattr(error, "reason", None) or str(error)
    if len(head) < 4 or head[3] != _SETTINGS_TYPE:
        return False, "closed without a word" if not head else "not HTTP/2"
    return True, ""


def _outcome_of_tls(error: ssl.SSLError) -> str:
    reason = error.reason or ""
    if reason in ("WRONG_VERSION_NUMBER", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "BAD_RECORD_TYPE"):
        return "not-tls"
    if reason in ("UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION", "NO_PROTOCOLS_AVAILABLE", "VERSION_TOO_LOW"):
        return "version"
    return "closed"


def _opinion(address: Address, own: OwnTls | None, root_der: bytes, *, timeout_s: float) -> str | None:
    context = _context(own)
    try:
        context.load_verify_locations(cadata=root_der)
        context.verify_mode = ssl.CERT_REQUIRED
        with socket.create_connection((address.host, address.port), timeout_s) as plain, context.wrap_socket(plain):
            return ""
    except ssl.SSLCertVerificationError as error:
        return str(error.verify_message)
    except (OSError, ValueError):
        return None


@dataclass(frozen=True)
class SessionFacts:
    """What ``Hello`` gave.

    Attributes:
        status: name of the gRPC status, ``OK`` for an answer.
        detail: of a refusal.
        request: our half of it; None: not sent.
        reply: the answer; None: none.
        asked_at: our clock in the middle of the call, aware.
        round_trip_s: seconds.
        bundle_crl: of ``Bundle``, after the idle time; None: no answer.
        bundle_intermediate: of ``Bundle``.
        idle_s: how long the connection lay idle.
        idle_outcome: ``open``, ``closed`` or ``not-tried``.
    """

    status: str
    detail: str = ""
    request: edge_pb2.HelloRequest | None = None
    reply: edge_pb2.HelloReply | None = None
    asked_at: datetime | None = None
    round_trip_s: float = 0.0
    bundle_crl: bytes | None = None
    bundle_intermediate: bytes = b""
    idle_s: float = 0.0
    idle_outcome: str = "not-tried"


def probe_session(
    address: Address,
    identity: Identity,
    nonce: bytes,
    *,
    server_name: str,
    clock: Callable[[], datetime],
    version: str,
    idle_s: float,
    timeout_s: float,
) -> SessionFacts:
    """Say Hello, lie idle, and ask for the bundle on the same connection.

    Args:
        address: of the gateway.
        identity: ours.
        nonce: 32 random bytes.
        server_name: of the gateway's certificate.
        clock: this host's, aware.
        version: for the gateway's audit log.
        idle_s: how long the connection is left alone, seconds.
        timeout_s: for each call.
    """
    if len(nonce) != NONCE_BYTES:
        raise ValueError("a nonce has 32 bytes")
    with secure_channel(str(address), identity, server_name, options=CLIENT_OPTIONS) as channel, _Watch(channel) as watch:
        stub = EdgeStub(channel)
        began, began_at = time.monotonic(), clock()
        request = hello_request(identity.signer, nonce, new_share(), identity.certificate_der, version)
        try:
            reply = stub.hello(request, timeout=timeout_s)
        except grpc.RpcError as error:
            return SessionFacts(*_status_of(error))
        trip = time.monotonic() - began
        facts = SessionFacts("OK", "", request, reply, began_at + timedelta(seconds=trip / 2), trip, idle_s=idle_s)
        watch.ready.wait(timeout_s)
        time.sleep(idle_s)
        status, bundle = _ask_bundle(stub, timeout_s)
        outcome = "open" if not watch.lost.is_set() and status not in ("UNAVAILABLE", "DEADLINE_EXCEEDED") else "closed"
        known = {"bundle_crl": bundle.crl, "bundle_intermediate": bundle.intermediate} if bundle is not None else {}
        return SessionFacts(**{**vars(facts), "idle_outcome": outcome, **known})


class _Watch:
    """Whether a channel's connection was made, and whether it was lost again; told by gRPC's own thread, a little later."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.ready, self.lost = threading.Event(), threading.Event()
        self._channel = channel
        channel.subscribe(self._on_change)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.unsubscribe(self._on_change)  # before the channel is closed: gRPC's thread would fail on a closed one

    def _on_change(self, state: grpc.ChannelConnectivity) -> None:
        if state is grpc.ChannelConnectivity.READY:
            self.ready.set()
        elif self.ready.is_set():
            self.lost.set()


def _ask_bundle(stub: EdgeStub, timeout_s: float) -> tuple[str, Any]:
    try:
        return "OK", stub.bundle(edge_pb2.BundleRequest(), timeout=timeout_s)
    except grpc.RpcError as error:
        return _status_of(error)[0], None


def _status_of(error: grpc.RpcError) -> tuple[str, str]:
    code = error.code()
    return code.name, error.details() or ""


def fetch_certificate(address: Address, *, timeout_s: float) -> bytes | None:
    """The certificate that a TLS server shows, unverified, in DER; None: there is none."""
    return _shake(address, _context(None), showed=False, timeout_s=timeout_s).certificate_der or None
