"""``server.toml``: everything that an operator decides about a server host, in one file, read strictly.

1. An unknown section or key, another type, or a value out of range is refused, naming the file, the key and the mend.
2. The SuperLink listens on loopback only: there is no setting for its address, only for its port.
3. Nothing secret is in the file.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fedsec.edge.limits import Limits
from fedsec.errors import CertificateError, ConfigError
from fedsec.files import atomic_write_text
from fedsec.identity.names import check_name

SETTINGS_FILE = "server.toml"
HOME_VARIABLE = "FEDSEC_HOME"
DEFAULT_LISTEN = "0.0.0.0:9443"
DEFAULT_SUPERLINK_PORT = 18000
MAX_HOLD_S = 28.0

_ADDRESS = re.compile(r"(?:[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\]):([0-9]{1,5})", re.ASCII)
_IS_HINT = re.compile(r"# (\[ca\]|address = \"ca|fingerprint = )")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class GatewaySettings:
    """``[gateway]``.

    Attributes:
        listen: ``host:port`` on which agents connect.
        metrics_port: on 127.0.0.1; 0: none.
        max_connection_age_s: after that long a connection is ended gracefully and comes back.
        hold_s: a PullMessages call is held for at most that long.
        body_timeout_s: for a body, beside its size at ``min_bytes_per_s``.
        min_bytes_per_s: slower senders are refused.
        refresh_s: how often the files are looked at; also the CA, if there is one.
    """

    listen: str = DEFAULT_LISTEN
    metrics_port: int = 0
    max_connection_age_s: float = 600.0
    hold_s: float = 25.0
    body_timeout_s: float = 10.0
    min_bytes_per_s: float = 64 * 1024
    refresh_s: float = 2.0


@dataclass(frozen=True, kw_only=True)
class SuperlinkSettings:
    """``[superlink]``.

    Attributes:
        port: on 127.0.0.1.
        task_poll_s: how often SuperExec looks for a task.
    """

    port: int = DEFAULT_SUPERLINK_PORT
    task_poll_s: float = 0.25


@dataclass(frozen=True, kw_only=True)
class CaSettings:
    """``[ca]``; without it an operator copies the CA's lists into ``federation/`` and renews the certificate by hand.

    Attributes:
        address: ``host:port`` of the enrolment service.
        fingerprint: SHA-256 of its TLS certificate, 64 hex digits.
    """

    address: str
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class UserSettings:
    """``[users]``: the Unix users that the processes become; only when started as root. Empty: the starting user.

    Attributes:
        superlink: of the SuperLink.
        superexec: of SuperExec and the ServerApp; must be the gateway's, since both need the server's key.
        gateway: of the gateway.
    """

    superlink: str = ""
    superexec: str = ""
    gateway: str = ""


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """The whole file.

    Attributes:
        home: the folder in which it lies.
        federation: trust domain.
        name: this server's, as in its certificate.
        gateway: see there.
        superlink: see there.
        ca: see there; None: an operator copies files.
        limits: per client.
        users: see there.
    """

    home: Path
    federation: str
    name: str = "main"
    gateway: GatewaySettings = field(default_factory=GatewaySettings)
    superlink: SuperlinkSettings = field(default_factory=SuperlinkSettings)
    ca: CaSettings | None = None
    limits: Limits = field(default_factory=Limits)
    users: UserSettings = field(default_factory=UserSettings)

    @property
    def superlink_address(self) -> str:
        """``host:port`` on loopback."""
        return f"127.0.0.1:{self.superlink.port}"


class _Key(NamedTuple):
    """How one key is read: its type's name, the check, and the mend."""

    kind: type
    fits: Callable[[Any], bool]
    mend: str


def _number(low: float, high: float) -> _Key:
    return _Key(float, lambda value: low <= value <= high, f"a number from {low:g} to {high:g}")


def _whole(low: int, high: int) -> _Key:
    return _Key(int, lambda value: low <= value <= high, f"a whole number from {low} to {high}")


def _text(pattern: re.Pattern[str], mend: str, *, empty: bool = False) -> _Key:
    return _Key(str, lambda value: (empty and not value) or pattern.fullmatch(value) is not None, mend)


def _is_name(value: str) -> bool:
    try:
        return bool(check_name("name", value))
    except CertificateError:
        return False


def _is_address(value: str) -> bool:
    match = _ADDRESS.fullmatch(value)
    return match is not None and 1 <= int(match[2]) <= 65535


_NAME = _Key(str, _is_name, "1 to 128 of a-z 0-9 . _ - with a letter or digit first")
_HOST_PORT = _Key(str, _is_address, 'host:port, for example "0.0.0.0:9443"')
_USER_KEY = _text(_USER, 'the name of a Unix user, or ""', empty=True)
_PORT = _whole(1, 65535)

_SECTIONS: Mapping[str, Mapping[str, _Key]] = {
    "server": {"federation": _NAME, "name": _NAME},
    "gateway": {
        "listen": _HOST_PORT,
        "metrics_port": _whole(0, 65535),
        "max_connection_age_s": _number(1, 86400),
        "hold_s": _number(0, MAX_HOLD_S),
        "body_timeout_s": _number(0.1, 600),
        "min_bytes_per_s": _number(1, 1e9),
        "refresh_s": _number(0.1, 2),
    },
    "superlink": {"port": _PORT, "task_poll_s": _number(0.01, 60)},
    "ca": {"address": _HOST_PORT, "fingerprint": _text(re.compile("[0-9a-f]{64}", re.ASCII), "64 hex digits in lower case")},
    "limits": {
        "calls_per_s": _number(0.1, 1e6),
        "calls_burst": _whole(1, 10**6),
        "bytes_per_s": _number(1024, 1e12),
        "bytes_burst": _whole(1024, 10**12),
        "concurrent_calls": _whole(1, 1000),
        "object_bytes": _whole(1024, (1 << 31) - 1),
        "inflight_bytes": _whole(1024, 10**12),
    },
    "users": {"superlink": _USER_KEY, "superexec": _USER_KEY, "gateway": _USER_KEY},
}


def server_home(home: Path | None) -> Path:
    """The server's folder: the given one, ``$FEDSEC_HOME``, or ``~/.fedsec``; absolute."""
    if home is None:
        home = Path(os.environ.get(HOME_VARIABLE) or Path.home() / ".fedsec")
    return home.expanduser().absolute()


def load_server_settings(home: Path) -> ServerSettings:
    """Read ``server.toml``.

    Args:
        home: the server's folder.

    Raises:
        ConfigError: missing, not TOML, or anything in it that is not known or not allowed.
    """
    path = home / SETTINGS_FILE
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError("there are no settings", file=str(path), mend="fedsec server init makes them") from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror or error}", file=str(path)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"not TOML: {error}", file=str(path)) from error
    return parse_server_settings(raw, home.absolute(), file=str(path))


def parse_server_settings(raw: Mapping[str, Any], home: Path, *, file: str) -> ServerSettings:
    """The settings in parsed TOML; raises as :func:`load_server_settings`."""
    sections: dict[str, dict[str, Any]] = {}
    for name, content in raw.items():
        if name not in _SECTIONS:
            raise ConfigError(f"unknown section [{name[:60]}]", file=file, mend=_nearest(name, _SECTIONS))
        if not isinstance(content, dict):
            raise ConfigError("not a section", field=name, file=file, mend=f"write [{name}]")
        sections[name] = {key: _read(name, key, value, file) for key, value in content.items()}
    server = sections.get("server", {})
    if "federation" not in server:
        raise ConfigError("missing", field="server.federation", file=file, mend='for example federation = "hearts.example"')
    ca = sections.get("ca")
    if ca is not None and len(ca) != len(_SECTIONS["ca"]):
        raise ConfigError("incomplete", field="ca", file=file, mend="address and fingerprint go together; fedsec server enroll writes both")
    settings = ServerSettings(
        home=home,
        federation=server["federation"],
        name=server.get("name", "main"),
        gateway=GatewaySettings(**sections.get("gateway", {})),
        superlink=SuperlinkSettings(**sections.get("superlink", {})),
        ca=None if ca is None else CaSettings(**ca),
        limits=Limits(**sections.get("limits", {})),
        users=UserSettings(**sections.get("users", {})),
    )
    _check_together(settings, file)
    return settings


def _check_together(settings: ServerSettings, file: str) -> None:
    if settings.limits.inflight_bytes < settings.limits.object_bytes:
        raise ConfigError(
            "below limits.object_bytes: no large object could pass", field="limits.inflight_bytes", file=file, mend="raise it"
        )
    ports = [int(settings.gateway.listen.rsplit(":", 1)[1]), settings.superlink.port, settings.gateway.metrics_port or -1]
    if len(set(ports)) != len(ports):
        raise ConfigError("two of gateway.listen, gateway.metrics_port and superlink.port are the same port", file=file, mend="change one")


def _read(section: str, key: str, value: Any, file: str) -> Any:
    known = _SECTIONS[section]
    name = f"{section}.{key[:60]}"
    if key not in known:
        raise ConfigError("unknown key", field=name, file=file, mend=_nearest(key, known))
    kind, fits, mend = known[key]
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or not fits(value):
        raise ConfigError(f"{str(value)[:80]!r} is not allowed", field=name, file=file, mend=f"give {mend}")
    return value


def _nearest(word: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"


def write_ca_settings(home: Path, *, address: str, fingerprint: str) -> None:
    """Put ``[ca]`` into ``server.toml``; the rest of the file stays as it is, comments too.

    Raises:
        ConfigError: the result would not be allowed; nothing was written.
        StorageError: the file system refused.
    """
    path = home / SETTINGS_FILE
    load_server_settings(home)
    for key, value in (("address", address), ("fingerprint", fingerprint)):
        _read("ca", key, value, str(path))  # of a form that needs no quoting
    lines, skipping = [], False
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip().startswith("["):
            skipping = line.strip().split("#")[0].strip() == "[ca]"
        if not skipping and not _IS_HINT.match(line):
            lines.append(line)
    while lines and not lines[-1].strip():
        lines.pop()
    text = "\n".join([*lines, "", "[ca]", f'address = "{address}"', f'fingerprint = "{fingerprint}"', ""])
    parse_server_settings(tomllib.loads(text), home, file=str(path))
    atomic_write_text(path, text)


TEMPLATE = """\
# The server host of a fedsec federation. Every key is optional but for federation; docs/gateway.md explains them.

[server]
federation = "{federation}"
name = "{name}"                     # as in this server's certificate

[gateway]
listen = "{listen}"        # where agents connect: mutual TLS 1.3
metrics_port = 0                    # Prometheus on 127.0.0.1; 0: none
max_connection_age_s = 600.0        # then a connection is renewed

[superlink]
port = {port}                        # on 127.0.0.1 only

# [ca]                              # written by: fedsec server enroll
# address = "ca.{federation}:9444"
# fingerprint = "…"

[limits]                            # per client
calls_per_s = 100.0
bytes_per_s = 134217728.0
object_bytes = 268435456            # largest object or answer

# [users]                           # Unix users, when started as root
# superlink = "fedsec-superlink"
# superexec = "fedsec-server"       # the same two: one key has one reader
# gateway = "fedsec-server"
"""
"""What ``fedsec server init`` writes."""
