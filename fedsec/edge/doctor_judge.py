"""What the facts of a network mean: pure, each finding from facts alone.

1. A connection that the server closes once it saw our certificate is explained by what is wrong with that certificate: here, the alerts
   and statuses say nothing.
2. The server's time counts only when its key signed it. Where a wrong clock here keeps gRPC from connecting at all, a server that accepts
   a certificate which this clock calls expired says the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from fedsec.edge.doctor_certificates import Chain, Expected, examine_chain, examine_crl
from fedsec.edge.doctor_findings import Finding, Level, finding, ok, settle
from fedsec.edge.doctor_network import PortFacts, SessionFacts, TlsFacts
from fedsec.edge.edge_client import hello_of
from fedsec.edge.signing import verify_hello
from fedsec.errors import DecodeError, SignatureError
from fedsec.identity.verify import BACKDATE
from fedsec.signing import encode_public_key

_HOUR_S = 3600.0
DRIFT = timedelta(seconds=30)
"""A clock that is off by more is warned about; by more than a certificate's margin, it is a fault."""


def judge_port(address: str, facts: PortFacts) -> list[Finding]:
    """Name resolution and the port."""
    if facts.outcome == "unresolved":
        return [finding("name.unresolved", f"{address} does not resolve: {facts.detail}")]
    found = [ok("name", ", ".join(facts.addresses))]
    if facts.outcome == "open":
        return [*found, ok("port", f"{address} accepts connections ({facts.milliseconds:.0f} ms)")]
    words = {
        "refused": f"{address} refuses connections",
        "timeout": f"{address} does not answer",
        "reset": f"the connection to {address} was closed at once",
        "unreachable": f"{address} cannot be reached: {facts.detail}",
    }
    return [*found, finding(f"port.{facts.outcome}", words[facts.outcome])]


def judge_tls(facts: TlsFacts) -> list[Finding]:
    """The version, and HTTP/2."""
    if facts.outcome == "done":
        found = []
        if facts.version != "TLSv1.3":
            found.append(finding("tls.old-version", f"the other end speaks {facts.version or 'no TLS'}, TLS 1.3 is needed"))
        if not facts.http2:
            found.append(finding("tls.no-http2", "the other end does not speak HTTP/2, which gRPC needs"))
        return settle("tls", found, f"{facts.version}, HTTP/2")
    words = {
        "not-tls": ("tls.not-tls", "what listens there does not speak TLS"),
        "version": ("tls.old-version", "the other end speaks no TLS version that is allowed here"),
        "closed": ("tls.closed", "the connection was closed during the handshake"),
        "timeout": ("tls.closed", "the handshake got no answer"),
    }
    code, text = words[facts.outcome]
    return [finding(code, f"{text} ({facts.detail})" if facts.detail else text)]


def judge_server(facts: TlsFacts, chain: Chain, expected: Expected, *, now: datetime) -> list[Finding]:
    """The certificate that the server showed.

    Args:
        facts: of the handshake.
        chain: with the issuer as this folder has it; the server's may be newer, in which case OpenSSL's opinion of the chain counts.
        expected: role, federation and name.
        now: aware.
    """
    found = examine_chain("server-certificate", chain, expected, now=now)
    codes = [item.code for item in found]
    if codes == ["server-certificate.wrong-ca"] and facts.verify_message == "":
        return [ok("server-certificate", "issued below our root by an intermediate that is newer than ours")]
    if codes == ["server-certificate.ok"] and facts.verify_message:
        return [finding("server-certificate.unsound", f"OpenSSL refuses the chain that the server shows: {facts.verify_message}")]
    return found


def judge_connection(facts: TlsFacts, own: Sequence[Finding]) -> list[Finding]:
    """Whether the server took us, and if not, why.

    Args:
        facts: of the handshake.
        own: what was found about our own certificate.
    """
    if facts.accepted and facts.showed_certificate:
        wrong = [item for item in own if item.code in ("certificate.expired", "certificate.not-yet-valid")]
        clock = [finding("clock.off", f"the server's clock accepts our certificate, this one does not: {item.text}") for item in wrong]
        return [ok("connection", "the server accepts our certificate's chain"), *clock]
    if facts.accepted:
        return [finding("session.failed", "the server talks to clients without a certificate: is it the gateway?")]
    if not facts.showed_certificate:
        if any(item.check == "key" and item.level is Level.FAULT for item in own):
            return []  # a key that cannot be used was named already; what the server would say to it is unknown
        return [finding("connection.no-certificate", f"the server closed the connection: we showed no certificate ({facts.detail})")]
    reasons = [f"{item.code.partition('.')[2]}: {item.text}" for item in own if item.level is Level.FAULT]
    if reasons:
        return [finding("connection.refused", f"the server closed the connection once it saw our certificate; {'; '.join(reasons)}")]
    return [
        finding(
            "certificate.refused", f"the server closed the connection once it saw our certificate, which is sound here ({facts.detail})"
        )
    ]


def judge_clock(server_time: datetime, here: datetime, uncertainty: timedelta) -> list[Finding]:
    """This clock against the server's.

    Args:
        server_time: as signed.
        here: our clock at the same moment.
        uncertainty: half of the round trip.
    """
    skew = here - server_time
    seconds = abs(skew.total_seconds())
    span = f"{seconds:.1f} s" if seconds < _HOUR_S else f"{seconds / _HOUR_S:.1f} h"
    text = f"this clock is {span} {'ahead of' if skew > timedelta(0) else 'behind'} the server's (± {uncertainty.total_seconds():.1f} s)"
    if abs(skew) - uncertainty > BACKDATE:
        return [finding("clock.off", text)]
    if abs(skew) - uncertainty > DRIFT:
        return [finding("clock.drifts", text)]
    return [ok("clock", text)]


@dataclass(frozen=True)
class SessionView:
    """What a session is judged against.

    Attributes:
        certificate_der: ours.
        serial_number: of ours.
        root_der: pinned.
        expected: the server.
        shown_der: certificate that the server showed in the handshake.
    """

    certificate_der: bytes
    serial_number: int
    root_der: bytes
    expected: Expected
    shown_der: bytes


def judge_session(facts: SessionFacts, view: SessionView, *, now: datetime) -> list[Finding]:
    """Hello: who signed it, what time it is there, what the lists say, and whether the connection stayed."""
    if facts.reply is None or facts.asked_at is None:
        return [_judge_refusal(facts)]
    reply = facts.reply
    chain = Chain(reply.server_certificate, reply.intermediate, view.root_der)
    problem = _proof_problem(facts, view)
    if problem:
        return [finding("session.unproven", problem), finding("clock.unknown", "the server's time is not proven")]
    there = datetime.fromtimestamp(reply.server_time_ms / 1000, UTC)
    found = [item for item in examine_chain("server-certificate", chain, view.expected, now=there) if item.level is not Level.OK]
    if any(item.code.endswith((".wrong-ca", ".self-signed", ".unsound", ".unreadable")) for item in found):
        return [*found, finding("clock.unknown", "the server's time is not proven")]
    found += [ok("session", f"the server proved itself over this connection ({facts.round_trip_s * 1000:.0f} ms)")]
    clock = judge_clock(there, facts.asked_at, timedelta(seconds=facts.round_trip_s / 2))
    if any(item.level is Level.FAULT for item in clock):  # what is out of its time by that clock is so because of it
        found = [item for item in found if not item.code.endswith((".expired", ".not-yet-valid"))]
    found += clock
    return found + _judge_lists(facts, view, now=now) + _judge_idle(facts)


def _judge_refusal(facts: SessionFacts) -> Finding:
    text = f"Hello was refused: {facts.status}: {facts.detail}"
    if facts.status == "UNAUTHENTICATED":
        return finding("revocation.revoked" if facts.detail.startswith("revoked") else "session.refused", text)
    return finding("session.busy" if facts.status == "RESOURCE_EXHAUSTED" else "session.failed", text)


def _proof_problem(facts: SessionFacts, view: SessionView) -> str:
    request, reply = facts.request, facts.reply
    assert request is not None
    assert reply is not None
    try:
        hello = hello_of(request, reply, view.certificate_der)
        key = x509.load_der_x509_certificate(reply.server_certificate).public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            return "its certificate's key is not on P-256"
        public_key = encode_public_key(key)
        verify_hello(public_key, hello, reply.signature)
    except DecodeError:
        return "its Hello is malformed"
    except (ValueError, SignatureError) as error:
        return f"its Hello is not signed over this connection: {error}"
    return ""


def _judge_lists(facts: SessionFacts, view: SessionView, *, now: datetime) -> list[Finding]:
    if facts.bundle_crl is None:
        return [finding("revocation.unknown", "the gateway did not hand out its bundle")]
    numbers = {"certificate": view.serial_number}
    for der in (view.shown_der,):
        try:
            numbers["server-certificate"] = x509.load_der_x509_certificate(der).serial_number
        except ValueError:
            continue
    return examine_crl(facts.bundle_crl, Chain(view.certificate_der, facts.bundle_intermediate, view.root_der), numbers, now=now)


def _judge_idle(facts: SessionFacts) -> list[Finding]:
    if facts.idle_outcome == "not-tried":
        return []
    if facts.idle_outcome == "closed":
        return [finding("idle.closed", f"the connection did not survive {facts.idle_s:g} s without a call")]
    return [ok("idle", f"the connection lay idle for {facts.idle_s:g} s and was still the same")]
