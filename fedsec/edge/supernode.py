"""The stock commands at the edge: how ``flower-supernode`` and ``flower-superexec`` are started, and what they find in PATH.

1. Everything listens on 127.0.0.1 with the loopback's certificate; SuperExec proves itself with a secret of this start.
2. Proxies are cleared, telemetry and the search for updates are off, nothing is installed at run time, Flower's folder is private.
3. SuperExec starts commands by name: ``flwr-clientapp`` is the shim in front of the fork server, and the other kinds of task that a
   server could ask for (agents, models, connectors) end at once.
4. Whatever runs our packages reads their sources, which admission hashes, and no cache of byte code (``sourceonly``).

Source: flwr 1.41, ``flower-supernode --help``, ``flower-superexec --help``; design note FLOWER.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from fedsec.edge.loopback import HOST, Loopback, write_command
from fedsec.edge.shim import RUNTIME_FILE
from fedsec.edge.sourceonly import COMMAND
from fedsec.errors import ConfigError, StorageError
from fedsec.files import atomic_write_bytes

CLIENT_APP, COLD_CLIENT_APP = "flwr-clientapp", "flwr-clientapp-cold"
SOURCE_ONLY = (sys.executable, "-P", str(Path(__file__).with_name("sourceonly.py")))
"""Python, with our packages loaded from what admission hashes."""
REFUSED_COMMANDS = ("flwr-agentapp", "flwr-connector", "flwr-model", "flwr-serverapp", "flwr-simulation", "uv")
SETTINGS_KEY = "fedsec-settings"
"""Key of the node config that names the ClientApp's settings; ``client/settings.py`` reads it."""

_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "ftp_proxy", "no_proxy", "ws_proxy", "wss_proxy", "grpc_proxy")
_DROPPED = ("FLWR_", "SSL_CERT_", "SSLKEYLOGFILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def stock_command(name: str) -> Path:
    """Where a command of Flower's lies: beside this Python.

    Raises:
        ConfigError: it is not there.
    """
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        raise ConfigError(f"{name} is not beside {sys.executable}", mend="install fedsec with its dependencies into one environment")
    return path


def plain_environment(base: Mapping[str, str]) -> dict[str, str]:
    """The agent's own environment without proxies, other trust and Flower's settings: what the ClientApp sees of it.

    Args:
        base: the agent's environment.
    """
    kept = {key: value for key, value in base.items() if key.lower() not in _PROXIES and not key.upper().startswith(_DROPPED)}
    threads = {"OMP_NUM_THREADS": "1"} if "OMP_NUM_THREADS" not in kept else {}
    return {**kept, **threads, "NO_PROXY": "*", "no_proxy": "*", "PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1"}


def flower_environment(base: Mapping[str, str], loopback: Loopback, *, task_poll_s: float) -> dict[str, str]:
    """The environment of Flower's processes.

    Args:
        base: the agent's environment.
        loopback: of this start.
        task_poll_s: how often SuperExec asks for work.
    """
    kept = plain_environment(base)
    return {
        **kept,
        "PATH": os.pathsep.join((str(loopback.commands), kept.get("PATH", os.defpath))),
        "FLWR_HOME": str(loopback.flower_home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": f"{task_poll_s:g}",
    }


def write_commands(loopback: Loopback) -> None:
    """Fill the first folder of PATH.

    Raises:
        ConfigError: the stock command is not installed.
        StorageError: the file system refused.
    """
    stock_command(CLIENT_APP)
    real = loopback.commands / COLD_CLIENT_APP
    write_command(real, f'#!/bin/sh\nexec {shlex.join([*SOURCE_ONLY, COMMAND, CLIENT_APP])} "$@"\n')
    shim = [sys.executable, "-I", "-S", str(Path(__file__).with_name("shim.py")), str(loopback.folder), str(real)]
    write_command(loopback.commands / CLIENT_APP, f'#!/bin/sh\nexec {shlex.join(shim)} "$@"\n')
    for name in REFUSED_COMMANDS:
        write_command(loopback.commands / name, f'#!/bin/sh\necho "{name} is not run on this node" >&2\nexit 1\n')


def write_runtime(loopback: Loopback, port: int) -> None:
    """Tell the fork server which SuperNode its copies are for: it takes the address from nobody else.

    Raises:
        StorageError: the file system refused.
    """
    runtime = {"address": f"{HOST}:{port}", "root_certificates": str(loopback.ca)}
    atomic_write_bytes(loopback.folder / RUNTIME_FILE, json.dumps(runtime).encode("utf-8"), mode=0o600, durable=False)


def supernode_command(loopback: Loopback, *, agent_port: int, runtime_port: int, settings: Path) -> list[str]:
    """``flower-supernode`` for one start.

    Args:
        loopback: of this start.
        agent_port: of the agent's endpoint.
        runtime_port: that the SuperNode listens on.
        settings: the ClientApp's settings file.

    Raises:
        ConfigError: a path that Flower's node config cannot hold.
    """
    if not str(settings).isprintable() or any(letter in str(settings) for letter in "\"'\\"):
        raise ConfigError(
            f"Flower's node config cannot hold the path {str(settings)!r}", mend="choose a home folder without quotes in its name"
        )
    return [
        str(stock_command("flower-supernode")),
        *("--superlink", f"{HOST}:{agent_port}"),
        *("--root-certificates", str(loopback.ca)),
        *("--auth-supernode-private-key", str(loopback.node_key)),
        *("--isolation", "process"),
        *("--superexec-auth-secret-file", str(loopback.superexec_secret)),
        *("--host", HOST),
        *("--port", str(runtime_port)),
        *("--ssl-certfile", str(loopback.certificate)),
        *("--ssl-keyfile", str(loopback.key)),
        *("--ssl-ca-certfile", str(loopback.ca)),
        *("--trusted-entities", str(loopback.trusted_entities)),
        *("--node-config", f'{SETTINGS_KEY}="{settings}"'),
    ]


def superexec_command(loopback: Loopback, *, runtime_port: int) -> list[str]:
    """``flower-superexec`` for one start."""
    return [
        str(stock_command("flower-superexec")),
        *("--runtime-api-address", f"{HOST}:{runtime_port}"),
        *("--root-certificates", str(loopback.ca)),
        *("--superexec-auth-secret-file", str(loopback.superexec_secret)),
    ]


def forkserver_command(loopback: Loopback, preload: tuple[str, ...]) -> list[str]:
    """The fork server for one start."""
    return [*SOURCE_ONLY, "fedsec.edge.forkserver", str(loopback.folder), *preload]


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now.

    Raises:
        StorageError: the system has none.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind((HOST, 0))
            port: int = probe.getsockname()[1]
            return port
    except OSError as error:
        raise StorageError(f"no free port on {HOST}: {error.strerror or error}") from error
