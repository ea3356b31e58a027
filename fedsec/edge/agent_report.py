"""What ``fedsec client status`` says: the agent's live state, the certificate on disk, and what the ledger holds.

1. Nothing here talks to a network or changes a file; a report is possible with the agent up, down or never started.
2. A part that cannot be read is reported as such, and the others all the same.
3. ε is computed anew from the ledger's entries, its chain checked, by the same rule that lets a spend pass.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from fedsec.clientstore.inspect import read_ledger
from fedsec.clientstore.store import DATABASE
from fedsec.edge.agent_settings import load_agent_settings
from fedsec.edge.agent_status import read_status
from fedsec.errors import FedsecError, StorageError
from fedsec.identity.folder import load_identity
from fedsec.privacy.accounting import epsilon_filter, epsilon_prv
from fedsec.privacy.ledger import segments_of


def client_report(home: Path, *, now: datetime) -> dict[str, Any]:
    """Everything that is known of a client, as plain values.

    Args:
        home: its home folder.
        now: aware.

    Raises:
        ConfigError: there are no settings here.
    """
    settings = load_agent_settings(home)
    live = _part(lambda: read_status(settings.status_file, now=now) or {})
    running = bool(live.get("alive"))
    return {
        "home": str(home),
        "state": live.get("state", "unknown") if running else "stopped",
        "detail": live.get("detail") if running else "the agent is not running",
        "server": settings.server,
        "clock_offset_s": live.get("clock_offset_s") if running else None,
        "certificate": _part(lambda: _certificate(settings.identity, now)) | _renewals(live),
        "round": live.get("round"),
        "release": live.get("release"),
        "last_refusal": live.get("last_refusal"),
        "refusals": live.get("refusals", 0),
        "privacy": _part(lambda: _privacy(settings.client_settings)),
        "pid": live.get("pid") if running else None,
    }


def _part(read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return read()
    except FedsecError as error:
        return {"error": str(error)}


def _certificate(folder: Path, now: datetime) -> dict[str, Any]:
    identity = load_identity(folder)
    return {
        "uri": identity.name.uri,
        "serial_number": f"{identity.serial_number:X}",
        "not_after": identity.not_after.isoformat(),
        "left_s": int((identity.not_after - now).total_seconds()),
    }


def _renewals(live: Mapping[str, Any]) -> dict[str, Any]:
    known = live.get("certificate") or {}
    return {key: known.get(key) for key in ("renewal_at", "renewed_at", "renewal_error") if known.get(key) is not None}


def _privacy(path: Path) -> dict[str, Any]:
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
        store, cap, delta = Path(raw["home"]), float(raw["policy"]["epsilon_cap"]), float(raw["policy"]["delta"])
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
        raise StorageError(f"{path} cannot be read: {error}") from None
    facts: dict[str, Any] = {"epsilon_cap": cap, "delta": delta, "epsilon_spent": 0.0, "rounds": 0}
    if not (store / DATABASE).exists():  # it is made in the first round
        return facts
    entries = read_ledger(store)
    segments = segments_of(entries)
    spent = epsilon_filter(segments, delta) if len(segments) > 1 else epsilon_prv(segments, delta)
    return {**facts, "epsilon_spent": spent if spent != float("inf") else "inf", "rounds": len(entries)}


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """The report in words."""
    certificate, privacy, release = report["certificate"], report["privacy"], report["release"] or {}
    lines = [f"agent        {report['state']}: {report['detail']}"]
    if report["clock_offset_s"]:
        lines.append(f"clock        the gateway's is {report['clock_offset_s']:+g} s from ours")
    if "error" in certificate:
        lines.append(f"certificate  {certificate['error']}")
    else:
        left_h = certificate["left_s"] / 3600
        when = f"{left_h:.1f} h left" if left_h > 0 else "expired: enrol again with a new token"
        lines.append(f"certificate  {certificate['uri']}, {when}, renewal at {certificate.get('renewal_at', 'start')}")
    if certificate.get("renewal_error"):
        lines.append(f"             last renewal failed: {certificate['renewal_error']}")
    if "error" in release:
        lines.append(f"release      none: {release['error']}")
    elif release:
        lines.append(f"release      {release['name']} version {release['version']}, approved by {', '.join(release['approvers'])}")
    if report["round"]:
        known = report["round"]
        lines.append(f"round        {known.get('doing', '?')}; last message {known.get('message', '-')} at {known.get('received_at', '-')}")
    lines.append(
        f"privacy      {privacy['error']}"
        if "error" in privacy
        else f"privacy      ε {_number(privacy['epsilon_spent'])} spent of {privacy['epsilon_cap']:g} at δ = {privacy['delta']:g}, {privacy['rounds']} rounds"
    )
    if report["last_refusal"]:
        refusal = report["last_refusal"]
        lines.append(f"last refusal {refusal['at']}: {refusal['reason']} ({report['refusals']} in all)")
    return lines


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"
