"""How a server host is: read from its files and its ports, without asking it anything that needs a key."""

from __future__ import annotations

import json
import socket
from datetime import UTC, datetime
from typing import Any

from fedsec.edge.registration import read_nodes
from fedsec.edge.server_settings import ServerSettings
from fedsec.edge.trust import Trust
from fedsec.errors import FedsecError

PROBE_S = 0.5


def read_status(settings: ServerSettings, *, now: datetime | None = None) -> dict[str, Any]:
    """Plain facts, for JSON.

    Args:
        settings: of the server.
        now: aware; the machine's clock by default.
    """
    moment = now or datetime.now(UTC)
    faults: list[str] = []
    ports = {
        "gateway": _listens(*_host_port(settings.gateway.listen)),
        "superlink": _listens("127.0.0.1", settings.superlink.port),
    }
    lists = _lists(settings, moment, faults)
    try:
        found = read_nodes(settings.home / "gateway" / "nodes.json")
        nodes = {str(node_id): member.client_id for node_id, member in sorted(found.items())}
    except FedsecError:
        nodes = {}
    faults += [f"the {name} does not listen; fedsec server up starts it" for name, listens in ports.items() if not listens]
    return {
        "home": str(settings.home),
        "federation": settings.federation,
        "name": settings.name,
        "ports": ports,
        **lists,
        "nodes": nodes,
        "processes": _processes(settings),
        "faults": faults,
        "healthy": not faults,
    }


def _lists(settings: ServerSettings, now: datetime, faults: list[str]) -> dict[str, Any]:
    """The identity and the CA's lists, verified as the gateway does; nothing is written."""
    told: list[tuple[str, FedsecError]] = []
    try:
        trust = Trust(
            settings.home,
            federation=settings.federation,
            server_name=settings.name,
            clock=lambda: now,
            on_fault=lambda what, error: told.append((what, error)),
            read_only=True,
        )
    except FedsecError as error:
        faults.append(str(error))
        return {"certificate": None, "revocation_list": None, "roster": None}
    nobody = not (settings.home / "federation" / "roster.json").exists() and trust.floors["roster_version"] == 0
    faults += [f"{what}: {error}" for what, error in told if not (nobody and what == "list of clients")]  # a state: nobody enrolled yet
    standing = trust.standing
    identity, crl, roster = standing.identity, standing.crl, standing.roster
    if not identity.not_before <= now <= identity.not_after:
        faults.append("the server's certificate is not valid now; enrol or renew it")
    return {
        "certificate": {
            "uri": identity.name.uri,
            "serial_number": f"{identity.serial_number:X}",
            "not_after": identity.not_after.isoformat(),
        },
        "revocation_list": crl and {"number": crl.number, "revoked": len(crl.serial_numbers), "next_update": crl.next_update.isoformat()},
        "roster": roster and {"version": roster.version, "clients": len(roster.members), "not_after": roster.not_after.isoformat()},
    }


def _processes(settings: ServerSettings) -> dict[str, Any]:
    try:
        found = json.loads((settings.home / "superlink" / "processes.json").read_text(encoding="utf-8"))
        return dict(found["processes"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _host_port(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), int(port)  # noqa: S104 - compared, not bound


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=PROBE_S).close()
    except OSError:
        return False
    return True


def describe(facts: dict[str, Any]) -> list[str]:
    """The facts as lines for people."""
    certificate, crl, roster = facts["certificate"], facts["revocation_list"], facts["roster"]
    lines = [
        f"server {facts['name']} of {facts['federation']} in {facts['home']}",
        *(f"  {name}: {'listening' if listens else 'down'}" for name, listens in facts["ports"].items()),
        f"  certificate: {certificate['uri']}, until {certificate['not_after']}" if certificate else "  certificate: none",
        f"  revocation list: number {crl['number']}, {crl['revoked']} revoked, until {crl['next_update']}"
        if crl
        else "  revocation list: none",
        f"  list of clients: version {roster['version']}, {roster['clients']} clients" if roster else "  list of clients: none yet",
        f"  nodes: {', '.join(facts['nodes'].values()) or 'none'}",
    ]
    return [*lines, *(f"fault: {fault}" for fault in facts["faults"])]
