"""What the doctor may find, each with its mend: one table, which docs/doctor.md repeats and a test compares.

1. A finding has a stable code, ``<check>.<what>``, a level that the table gives it, and one sentence of fact.
2. A check without a fault or warning says ``<check>.ok``: silence is never good news.
3. Text that came from elsewhere is cut and made printable; nothing secret enters a finding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

MAX_TEXT = 300


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report.

    Attributes:
        code: ``<check>.<what>``.
        level: of the table.
        text: what was seen.
        mend: what to do; empty for what is in order.
    """

    code: str
    level: Level
    text: str
    mend: str

    @property
    def check(self) -> str:
        """What was looked at."""
        return self.code.partition(".")[0]


_FAULTS = {
    "settings.missing": "make the folder: fedsec client enroll on an edge device, fedsec server init on the server; or name it with --home",
    "settings.unsound": "mend the file; docs/agent.md and docs/gateway.md list every key",
    "versions.outside": "install fedsec anew, with constraints.txt, into an environment of its own",
    "versions.missing": "install fedsec anew, with constraints.txt, into an environment of its own",
    "commands.missing": "install fedsec and its dependencies into one environment, and use that environment's fedsec",
    "disk.full": "free space: the store and its ledger must be able to write, else a round is refused",
    "disk.read-only": "give the folder to the user that runs fedsec, or mount it writable; under systemd see ReadWritePaths in docs/deploy.md",
    "folder.writable": "chmod go-w the folder: whoever writes there can replace key, settings and ledger",
    "key.missing": "enrol (fedsec client enroll), or restore the folder from where it was moved; keys are never in a backup",
    "key.readable": "chmod 600 it; if others could read it, revoke the certificate and enrol again",
    "key.link": "put the key itself there: whoever owns the link's target knows the key",
    "key.locked": "give the key's passphrase: --passphrase-file, or FEDSEC_PASSPHRASE_FILE in the unit; if it is lost, enrol again with a fresh token",
    "certificate.missing": "enrol: fedsec client enroll with a fresh token",
    "certificate.unreadable": "remove nothing; enrol again into a new folder, or restore certificate.der (it is public)",
    "certificate.other-key": "key and certificate were mixed up: restore both from one enrolment, or enrol again",
    "certificate.expired": "fedsec client renew; a server renews by itself while it runs, else enrol again with a fresh token",
    "certificate.not-yet-valid": "set the clock: see the line about the clock",
    "certificate.wrong-ca": "the certificate is of another CA than this folder's root: enrol again with a token of the right CA",
    "certificate.wrong-usage": "a node needs clientAuth and a server serverAuth: enrol again with a token for the right role",
    "certificate.wrong-role": "this folder needs a certificate of the other role: enrol again with a token made for it",
    "certificate.wrong-federation": "enrol again with a token of this federation, or name the other home folder",
    "certificate.unsound": "enrol again; a CA of fedsec does not issue this",
    "certificate.refused": "compare the clocks of both hosts, and ask the operator whether the server trusts this root and has its newest lists",
    "source.missing": 'write source = "module:function" into settings.toml, or enrol with --source (docs/own-data-and-models.md)',
    "source.unsound": "mend the module, install it beside fedsec, or set PYTHONPATH for the agent and for this command; mount the data",
    "issuer.expired": "the CA's operator runs fedsec ca renew-intermediate and clients renew; an expired root is a new federation",
    "issuer.not-yet-valid": "set the clock: see the line about the clock",
    "issuer.void": "the CA was rekeyed: take a new token and enrol with --keep-key, the server first; a damaged statement: put back the CA's",
    "issuer.unsound": "restore root.der and intermediate.der from the CA (both are public); a root that changed is another federation",
    "clock.off": "set the clock and let NTP keep it (timedatectl set-ntp true); certificates allow for five minutes",
    "name.unresolved": "check the spelling in agent.toml and the DNS server, or write the IP address",
    "port.refused": "start the server (fedsec server up), or correct the port; a firewall that rejects looks the same",
    "port.timeout": "open the port in the firewall on the way, both hosts' own included; only this one port is needed",
    "port.reset": "something on the way closes connections: look at firewalls, load balancers and TLS inspection",
    "port.unreachable": "check the route and the network; IPv6 without a route looks like this too",
    "tls.not-tls": "another service listens there: correct the port in agent.toml",
    "tls.old-version": "something between ends the TLS connection, or the server is not fedsec's: TLS 1.3 must reach the gateway itself",
    "tls.closed": "something on the way closes TLS connections: look at firewalls that inspect TLS, and at the gateway's log",
    "tls.old-library": "use a Python whose OpenSSL knows TLS 1.3",
    "tls.no-http2": "a proxy ends the connection there: pass TCP through to the gateway",
    "server-certificate.unreadable": "the server shows something that is no certificate: is it the gateway?",
    "server-certificate.expired": "tell the server's operator to look at renewal in the gateway's log; if it is valid there, one of the two clocks is wrong",
    "server-certificate.not-yet-valid": "set the clock here: see the line about the clock",
    "server-certificate.self-signed": "this is not the gateway (the enrolment service is self-signed): correct the address in agent.toml",
    "server-certificate.wrong-ca": "another federation, or something between that ends TLS: correct the address, or pass TCP through",
    "server-certificate.wrong-usage": "the server's operator enrols with a token for a server; a client's certificate must never be trusted there",
    "server-certificate.wrong-role": "this is a peer of the federation but no server: do not send it anything, and tell the CA's operator",
    "server-certificate.wrong-federation": "correct the address in agent.toml, or enrol in that federation",
    "server-certificate.another-server": "correct address or server_name in agent.toml: both servers belong to this federation",
    "server-certificate.unsound": "tell the server's operator: a CA of fedsec does not issue this",
    "server-certificate.revoked": "do not connect; ask the CA's operator what happened",
    "connection.no-certificate": "enrol: fedsec client enroll; the gateway talks to nobody without a certificate",
    "connection.refused": "mend the certificate as the line about it says; gRPC shows all of these as 'Socket closed'",
    "session.unproven": "something between speaks for the server: pass TCP through, and tell the operator",
    "session.refused": "the gateway names the reason; if it is revocation, the CA's operator must issue anew",
    "session.failed": "look at the gateway's log and audit.jsonl for this time",
    "revocation.revoked": "enrol again with a fresh token, if the CA's operator agrees; a revoked key stays revoked",
    "idle.closed": "something on the way forgets quiet connections: raise its idle timeout above 60 s for this port",
    "token.unreadable": "copy the whole line, without line breaks; it begins with fedsec-token-1.",
    "token.expired": "ask for a fresh one (15 minutes at most), and check this clock",
    "token.other-federation": "ask the CA of this folder's federation, or enrol into a new home folder",
    "token.other-root": "this token comes from another CA: do not use it in this folder",
    "token.other-role": "ask for a token for the role of this folder",
    "token.other-service": "do not use the token: what answers there is not the CA that made it; ask on the trusted channel",
}
_WARNINGS = {
    "versions.unknown": "install a released version",
    "host.open-proc": "mount /proc with hidepid=2, or give nobody else an account here: Flower puts a task's token on a command line",
    "proxy.set": "clear it for fedsec, or put the server's name into no_proxy: a proxy that ends TLS breaks the connection",
    "disk.low": "free space soon: below 100 MiB it is a fault",
    "folder.readable": "chmod 700 the folder: names, status and lists are nobody else's business",
    "key.root-here": "move root-key.pem to offline storage; it is needed once a year",
    "certificate.expires-soon": "renewal is late: fedsec client renew on an edge device, and look at the agent's or the gateway's log for why",
    "issuer.expires-soon": "the CA's operator runs fedsec ca renew-intermediate with the root's key",
    "clock.drifts": "let NTP keep the clock (timedatectl set-ntp true)",
    "clock.unknown": "compare with another clock by hand: the server gave no time that is proven",
    "session.busy": "try again in a minute; the gateway limits calls of each client",
    "revocation.unknown": "tell the server's operator: the gateway hands out no revocation list",
    "revocation.ended": "tell the CA's operator: no newer list reaches the server, or one of the clocks is wrong",
    "token.used": "an identity is here already, so the token was probably used; it counts once, ask for a fresh one if you must enrol anew",
    "token.no-address": "give the enrolment service's address by hand, or set it in ca.toml",
    "token.unreachable": "check that the CA's enrolment service runs and that its port is open from here",
}
CATALOGUE: Mapping[str, tuple[Level, str]] = {
    **{code: (Level.FAULT, mend) for code, mend in _FAULTS.items()},
    **{code: (Level.WARNING, mend) for code, mend in _WARNINGS.items()},
}
"""Code → level and mend."""


def finding(code: str, text: str) -> Finding:
    """A fault or warning of the table."""
    level, mend = CATALOGUE[code]
    return Finding(code, level, printable(text), mend)


def ok(check: str, text: str) -> Finding:
    """A check that found nothing wrong."""
    return Finding(f"{check}.ok", Level.OK, printable(text), "")


def settle(check: str, found: Iterable[Finding], text: str) -> list[Finding]:
    """What was found, or that all is in order."""
    return list(found) or [ok(check, text)]


def printable(text: str) -> str:
    """One line of at most 300 characters."""
    line = "".join(letter if letter.isprintable() else " " for letter in text[: MAX_TEXT + 1])
    return line if len(line) <= MAX_TEXT else line[: MAX_TEXT - 1] + "…"
