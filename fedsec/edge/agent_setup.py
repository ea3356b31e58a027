"""Setting up an edge client: its home folder, its settings, its enrolment; and renewing by hand.

1. Nothing that is there is overwritten: an identity, a settings file, a version floor.
2. What a site must decide itself (whose approvals count, what may be spent, where its records lie) is asked for, never guessed.

Files are written whole or not at all; keys are 0600, the home folder is 0700.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from fedsec.edge.agent_channel import LinkSettings, LinkState
from fedsec.edge.agent_link import Link
from fedsec.edge.agent_releases import begin_floor
from fedsec.edge.agent_settings import SETTINGS_FILE, load_agent_settings, read_agent_settings
from fedsec.edge.agent_status import read_status, utc_now
from fedsec.edge.enrolment_client import EnrolmentUnavailable, ca_channel, enrol_folder, fetch_crl
from fedsec.errors import ConfigError, FedsecError, StorageError
from fedsec.files import atomic_write_text, exclusive_lock
from fedsec.identity.crl_file import CRL_FILE, FLOOR_FILE, CrlFile
from fedsec.identity.folder import Identity, keep_private, load_identity, replace_certificate
from fedsec.identity.names import Role
from fedsec.identity.tokens import Token, read_token
from fedsec.policy import ClientPolicy

RENEW_WITHIN_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Site:
    """What the site decides.

    Attributes:
        server: ``host:port`` of the gateway.
        server_name: of its certificate.
        approvers: names whose approval of a release counts, or ``name=key`` with the public key in hex, which then is pinned.
        approvals: how many are needed.
        source: ``module:function`` that gives the records.
        epsilon_cap: most that may be spent.
        delta: that the cap is stated at.
        batch_size: declared batch size, or None.
    """

    server: str
    server_name: str
    approvers: tuple[str, ...]
    approvals: int
    source: str
    epsilon_cap: float
    delta: float
    batch_size: int | None = None


def write_home(home: Path, site: Site, *, client_id: str) -> list[str]:
    """Make the home folder and its settings; what is there stays.

    Returns:
        The files that were written.

    Raises:
        ConfigError: a value that the agent or the client would refuse.
        StorageError: the file system refused.
    """
    agent: dict[str, Any] = {
        "server": site.server,
        "server_name": site.server_name,
        "release": _release_settings(site),
    }
    read_agent_settings(agent, home=home, file=SETTINGS_FILE)
    ClientPolicy(epsilon_cap=site.epsilon_cap, delta=site.delta)
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        keep_private(home)
        for name in ("releases", "store", "logs"):
            (home / name).mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make {home}: {error.strerror or error}") from error
    written = []
    for path, table in ((home / SETTINGS_FILE, agent), (home / "settings.toml", _client_settings(home, site, client_id))):
        if not path.exists():
            atomic_write_text(path, tomli_w.dumps(table), mode=0o600)
            written.append(path.name)
    begin_floor(home / "floor.json")
    return written


def _release_settings(site: Site) -> dict[str, Any]:
    pairs = [text.partition("=") for text in site.approvers]
    keys = {name: key for name, given, key in pairs if given}
    return {"approvers": [name for name, _, _ in pairs], "approvals": site.approvals, **({"keys": keys} if keys else {})}


def _client_settings(home: Path, site: Site, client_id: str) -> dict[str, Any]:
    """``settings.toml``, every limit of the policy spelled out, so that a site sees what it may turn."""
    policy = ClientPolicy(epsilon_cap=site.epsilon_cap, delta=site.delta, require_secagg=True)
    limits = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(policy).items()}
    batch = {} if site.batch_size is None else {"batch_size": site.batch_size}
    return {
        "client_id": client_id,
        "home": str(home / "store"),
        "source": site.source,
        **batch,
        "identity": str(home / "identity"),
        "crl": str(home / CRL_FILE),
        "server": site.server_name,
        "policy": limits,
    }


def enrol_client(home: Path, token: str, *, address: str | None, passphrase: bytes | None = None, keep_key: bool = False) -> Identity:
    """Spend a token for this client.

    Args:
        home: the client's home folder; exists.
        token: as the operator of the CA gave it.
        address: ``host:port`` of the enrolment service; None takes the token's hint.
        passphrase: encrypts the key.
        keep_key: as ``enrolment_client.enrol_folder``.

    Raises:
        ConfigError: the token is not for a client.
        FedsecError: as ``enrolment_client.enrol_folder``.
    """
    claims = read_token(token.strip())
    if claims.role is not Role.NODE:
        raise ConfigError(f"this token is for a {claims.role.value}, not for a client", mend="ask the CA for 'fedsec ca token --node …'")
    identity = enrol_folder(home / "identity", token, address=address, passphrase=passphrase, keep_key=keep_key)
    with contextlib.suppress(EnrolmentUnavailable):  # the agent gets the list from the gateway as well
        _fetch_crl(home, identity, claims, address or claims.address)
    return identity


def _fetch_crl(home: Path, identity: Identity, claims: Token, address: str | None) -> None:
    """The revocation list from its maker, before any server is spoken to."""
    assert address is not None  # enrol_folder reached it
    with ca_channel(address, claims.service_sha256) as channel:
        der = fetch_crl(channel)
    kept = CrlFile(
        path=home / CRL_FILE,
        floor_path=home / FLOOR_FILE,
        intermediate_der=identity.intermediate_der,
        root_der=identity.root_der,
        federation=identity.name.federation,
        accepted=identity.accepted,
    )
    kept.take(der, now=utc_now())


def renew_now(home: Path) -> Identity:
    """Renew the certificate: by the running agent, or by ourselves if there is none.

    Raises:
        FedsecError: it was not renewed; says why.
    """
    settings = load_agent_settings(home)
    before = load_identity(settings.identity)
    status = read_status(settings.status_file, now=utc_now())
    if status is not None and status["alive"]:
        os.kill(int(status["pid"]), signal.SIGHUP)
        return _await_renewal(settings.identity, before, settings.status_file)
    with exclusive_lock(home / "agent.lock", what="client's home folder"):
        return asyncio.run(_renew_alone(LinkSettings(settings.server, settings.server_name), settings.identity, before))


def _await_renewal(folder: Path, before: Identity, status_file: Path) -> Identity:
    deadline = time.monotonic() + RENEW_WITHIN_S
    while time.monotonic() < deadline:
        time.sleep(0.2)
        found = load_identity(folder)
        if found.certificate_der != before.certificate_der:
            return found
    status: Mapping[str, Any] = read_status(status_file, now=utc_now()) or {}
    why = (status.get("certificate") or {}).get("renewal_error") or status.get("detail") or "no answer"
    raise FedsecError(f"the running agent did not renew the certificate within {RENEW_WITHIN_S:g} s: {why}")


async def _renew_alone(settings: LinkSettings, folder: Path, identity: Identity) -> Identity:
    states: list[tuple[LinkState, str]] = []
    link = Link(settings, identity, on_state=lambda state, sentence: states.append((state, sentence)), clock=utc_now)
    running = asyncio.create_task(link.run())
    try:
        certificate, intermediate = await link.renew()
    except FedsecError as error:
        raise FedsecError(f"{error}: {states[-1][1]}" if states else str(error)) from None
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    return replace_certificate(folder, certificate, intermediate)


def names_of(given: Iterable[str]) -> tuple[str, ...]:
    """Names from the command line, each once, in order."""
    return tuple(dict.fromkeys(given))
