"""Who this client is and what it allows: from its own settings, or, in a simulation, from the partition it plays.

1. A deployed client is named by ``fedsec-settings`` in its node config, a file of its own; nothing the server sends replaces it.
2. A simulated client has ``partition-id`` and ``num-partitions``, and its operator said that this is a simulation: it runs inside Flower's
   engine on Ray, or the environment says so (our local engine's does). Flower's guides start deployed nodes with partitions too.
3. A node with neither refuses to act: it does not know where its data lie or what it may spend.
"""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fedsec.errors import ConfigError
from fedsec.identity.crl_file import DEPLOYED_VARIABLE
from fedsec.plan.model import Plan
from fedsec.policy import ClientPolicy
from fedsec.sim.identities import client_name

SETTINGS_KEY = "fedsec-settings"
SIMULATION_VARIABLE = "FEDSEC_SIMULATION"
_KEYS = {"client_id": str, "home": str, "source": str, "batch_size": int, "identity": str, "server": str, "crl": str, "policy": dict}
_POLICY_KEYS = tuple(field.name for field in fields(ClientPolicy))


def in_simulation() -> bool:
    """Whether whoever started this process said that it simulates; nothing that a server sends can."""
    ray = sys.modules.get("ray")
    return os.environ.get(SIMULATION_VARIABLE) == "1" or (ray is not None and ray.is_initialized())


@dataclass(frozen=True, kw_only=True)
class SimulatedClient:
    """A client of a simulation.

    Attributes:
        partition: from 0.
        num_partitions: clients in the simulation.
    """

    partition: int
    num_partitions: int

    @property
    def client_id(self) -> str:
        """Stable name: the same partition has the same name on every engine."""
        return client_name(self.partition)


@dataclass(frozen=True, kw_only=True)
class DeployedClient:
    """A client with settings of its own.

    Attributes:
        client_id: its name.
        home: folder of its store.
        source: ``module:function`` that gives its records.
        batch_size: declared expected batch size; None takes the plan's number.
        policy: what it insists on.
        identity: folder with key.pem, certificate.der and root.der: with it only requests that the server signed are acted on, and secure
            aggregation works.
        server: name of the one server whose signature counts; None: any server of the federation.
        crl: the revocation list that the agent keeps, without which nothing is then done. An agent's client must name it; elsewhere None is
            ``crl.der`` beside ``identity``, if there is one.
    """

    client_id: str
    home: Path
    source: str
    batch_size: int | None
    policy: ClientPolicy
    identity: Path | None = None
    server: str | None = None
    crl: Path | None = None


def identify(node_config: Mapping[str, Any]) -> SimulatedClient | DeployedClient:
    """Who this node is.

    Raises:
        ConfigError: the node config says neither, or its settings file is unsound.
    """
    if (path := node_config.get(SETTINGS_KEY)) is not None:
        return read_settings(Path(str(path)))
    partition, count = node_config.get("partition-id"), node_config.get("num-partitions")
    if type(partition) is int and not in_simulation():
        raise ConfigError(
            "this node has a partition but is not part of a simulation",
            field="node-config",
            mend=f"give it settings of its own ({SETTINGS_KEY}), or start it with {SIMULATION_VARIABLE}=1 if its records are not private",
        )
    if type(partition) is int and type(count) is int and 0 <= partition < count:
        return SimulatedClient(partition=partition, num_partitions=count)
    raise ConfigError(
        "this node knows neither settings nor a partition",
        field="node-config",
        mend=f"start the SuperNode with --node-config '{SETTINGS_KEY}=\"/path/settings.toml\"'",
    )


def read_settings(path: Path) -> DeployedClient:
    """Read a deployed client's settings file.

    Raises:
        ConfigError: unreadable, or a missing, unknown or ill-typed key.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", file=str(path), mend="mend the client's settings file") from None
    for key, value in raw.items():
        if key not in _KEYS or type(value) is not _KEYS[key]:
            raise ConfigError(f"unknown or ill-typed key {key[:60]!r}", file=str(path), mend=f"known: {', '.join(_KEYS)}")
    if missing := [key for key in ("client_id", "home", "source", "policy") if key not in raw]:
        raise ConfigError(f"missing: {', '.join(missing)}", file=str(path))
    policy = raw["policy"]
    if unknown := sorted(set(policy) - set(_POLICY_KEYS)):
        raise ConfigError(f"unknown key {unknown[0][:60]!r} in [policy]", file=str(path), mend=f"known: {', '.join(_POLICY_KEYS)}")
    factories = policy.get("model_factories", [])
    if not isinstance(factories, list) or not all(isinstance(item, str) for item in factories):
        raise ConfigError("model_factories is a list of module:function", file=str(path))
    _check_paths(raw, str(path))
    try:
        limits = ClientPolicy(**{**policy, "model_factories": tuple(factories)})
    except TypeError as error:
        raise ConfigError(f"[policy] is incomplete or ill-typed: {error}", file=str(path)) from None
    if raw.get("batch_size", 1) < 1 or not raw["client_id"].isprintable() or not 0 < len(raw["client_id"]) <= 128:
        raise ConfigError("batch_size must be at least 1, client_id 1..128 printable characters", file=str(path))
    return DeployedClient(
        client_id=raw["client_id"],
        home=Path(raw["home"]),
        source=raw["source"],
        batch_size=raw.get("batch_size"),
        policy=limits,
        identity=Path(raw["identity"]) if "identity" in raw else None,
        server=raw.get("server"),
        crl=Path(raw["crl"]) if "crl" in raw else None,
    )


def _check_paths(raw: Mapping[str, Any], file: str) -> None:
    if not all(Path(raw.get(key, "/")).is_absolute() for key in ("home", "identity", "crl")):
        raise ConfigError("home, identity and crl must be absolute: elsewhere a new ledger would begin, with the whole budget", file=file)
    if "crl" in raw and "identity" not in raw:
        raise ConfigError("a revocation list without an identity: there is no root to check it by", field="crl", file=file)
    if os.environ.get(DEPLOYED_VARIABLE) == "1" and not {"identity", "crl"} <= raw.keys():
        raise ConfigError(
            "a client of an agent names its identity and its revocation list",
            field="crl",
            file=file,
            mend="put identity = …/identity and crl = …/crl.der of the client's home into it, as 'fedsec client init' does",
        )


def policy_of(client: SimulatedClient | DeployedClient, plan: Plan) -> ClientPolicy:
    """The client's own policy; a simulated client's is its plan's."""
    return client.policy if isinstance(client, DeployedClient) else ClientPolicy.of_plan(plan)
