"""An agent's settings: ``agent.toml`` in the client's home folder, and where everything else lies there.

1. Who the client is, its federation and its site come from its certificate, never from this file.
2. The site says whose approvals make a release and how many are needed; without them nothing runs.
3. An unknown or ill-typed key is refused: a misspelt limit must not be a missing one.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedsec.errors import CertificateError, ConfigError, SignatureError
from fedsec.identity.crl_file import CRL_FILE
from fedsec.identity.names import check_name
from fedsec.identity.tokens import check_address
from fedsec.signing import decode_public_key

HOME_VARIABLE = "FEDSEC_CLIENT_HOME"
DEFAULT_HOME = "~/.fedsec-client"
SETTINGS_FILE = "agent.toml"
DEFAULT_SERVER_NAME = "main"
DEFAULT_PRELOAD = ("opacus", "client.warm:preload", "client.app")
"""What a copy of the fork server has loaded: modules, or functions that load."""
DEFAULT_OBJECT_BYTES = 256 * 1024 * 1024

_TOP = {"server": str, "server_name": str, "release": dict, "node": dict}
_RELEASE = {"approvers": list, "approvals": int, "keys": dict}
_NODE = {"warm_start": bool, "preload": list, "task_poll_s": (int, float), "object_bytes": int}


def client_home(given: Path | None = None) -> Path:
    """The client's home folder: as given, else ``$FEDSEC_CLIENT_HOME``, else ``~/.fedsec-client``; absolute."""
    return (given or Path(os.environ.get(HOME_VARIABLE) or DEFAULT_HOME)).expanduser().absolute()


@dataclass(frozen=True, kw_only=True)
class AgentSettings:
    """What an agent goes by.

    Attributes:
        home: the client's home folder, absolute.
        server: ``host:port`` of the gateway.
        server_name: the name that its certificate must have.
        approvers: names of the administrators whose approval counts here.
        approvals: how many of them a release needs.
        approver_keys: public keys that the site pins for them, 33 bytes by name.
        warm_start: whether a fork server starts ``flwr-clientapp``.
        preload: what it loads.
        task_poll_s: how often SuperExec asks for work, seconds; 0.01 to 60.
        object_bytes: most bytes of one body.
    """

    home: Path
    server: str
    server_name: str = DEFAULT_SERVER_NAME
    approvers: tuple[str, ...] = ()
    approvals: int = 1
    approver_keys: Mapping[str, bytes] = field(default_factory=dict)
    warm_start: bool = True
    preload: tuple[str, ...] = DEFAULT_PRELOAD
    task_poll_s: float = 0.1
    object_bytes: int = DEFAULT_OBJECT_BYTES

    @property
    def identity(self) -> Path:
        """Folder of key and certificate."""
        return self.home / "identity"

    @property
    def client_settings(self) -> Path:
        """The ClientApp's own settings file."""
        return self.home / "settings.toml"

    @property
    def releases(self) -> Path:
        """Folder of release files and the version floor."""
        return self.home / "releases"

    @property
    def floor_file(self) -> Path:
        """The newest release version accepted so far; outside of the folder that operators copy releases into."""
        return self.home / "floor.json"

    @property
    def crl_file(self) -> Path:
        """The newest revocation list, for the agent and the ClientApp; its floor lies beside it."""
        return self.home / CRL_FILE

    @property
    def loopback(self) -> Path:
        """Private folder that is made anew at each start."""
        return self.home / "loopback"

    @property
    def logs(self) -> Path:
        """Folder of the children's output."""
        return self.home / "logs"

    @property
    def status_file(self) -> Path:
        """The agent's live state."""
        return self.home / "status.json"

    @property
    def audit_file(self) -> Path:
        """One line for each decision."""
        return self.home / "audit.jsonl"


def load_agent_settings(home: Path) -> AgentSettings:
    """Read ``agent.toml``.

    Raises:
        ConfigError: unreadable, or a missing, unknown or ill-typed key; names it.
    """
    path = home / SETTINGS_FILE
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", file=str(path), mend="run 'fedsec client init', or mend the file") from None
    return read_agent_settings(raw, home=home, file=str(path))


def read_agent_settings(raw: Mapping[str, Any], *, home: Path, file: str) -> AgentSettings:
    """Settings of parsed TOML; raises as :func:`load_agent_settings`."""
    _check_keys(raw, _TOP, "", file)
    release, node = raw.get("release", {}), raw.get("node", {})
    _check_keys(release, _RELEASE, "release.", file)
    _check_keys(node, _NODE, "node.", file)
    for section, key in ((release, "approvers"), (node, "preload")):
        if not all(isinstance(item, str) for item in section.get(key, [])):
            raise ConfigError("must be a list of names", field=key, file=file)
    settings = AgentSettings(
        home=home,
        server=raw.get("server", ""),
        server_name=raw.get("server_name", DEFAULT_SERVER_NAME),
        approvers=tuple(release.get("approvers", ())),
        approvals=release.get("approvals", 1),
        approver_keys=_read_keys(release.get("keys", {}), release.get("approvers", []), file),
        warm_start=node.get("warm_start", True),
        preload=tuple(node.get("preload", DEFAULT_PRELOAD)),
        task_poll_s=float(node.get("task_poll_s", 0.1)),
        object_bytes=node.get("object_bytes", DEFAULT_OBJECT_BYTES),
    )
    _check_values(settings, file)
    return settings


def _read_keys(given: Mapping[str, Any], approvers: list[str], file: str) -> dict[str, bytes]:
    found = {}
    for name, text in given.items():
        try:
            key = bytes.fromhex(text)
            decode_public_key(key)
        except (TypeError, ValueError, SignatureError):
            raise ConfigError("not a public key: 66 hex digits", field=f"release.keys.{name}"[:80], file=file) from None
        if name not in approvers:
            raise ConfigError("a key for a name that is no approver", field=f"release.keys.{name}"[:80], file=file)
        found[name] = key
    return found


def _check_keys(given: Mapping[str, Any], known: Mapping[str, Any], where: str, file: str) -> None:
    for key, value in given.items():
        kind = known.get(key)
        if kind is None or not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ConfigError("unknown or ill-typed key", field=f"{where}{key}"[:80], file=file, mend=f"known: {', '.join(known)}")


def _check_values(settings: AgentSettings, file: str) -> None:
    try:
        check_address(settings.server)
    except ValueError as error:
        raise ConfigError(str(error), field="server", file=file, mend='write the gateway\'s address as "host:port"') from None
    try:
        for what, name in [("server name", settings.server_name), *(("approver", approver) for approver in settings.approvers)]:
            check_name(what, name)
    except CertificateError as error:
        raise ConfigError(str(error), file=file) from None
    if not 1 <= settings.approvals <= max(1, len(set(settings.approvers))) or len(set(settings.approvers)) != len(settings.approvers):
        raise ConfigError(
            f"{settings.approvals} approvals of {len(settings.approvers)} approvers",
            field="release.approvals",
            file=file,
            mend="name distinct approvers, and need at least one and at most all of them",
        )
    if not 0.01 <= settings.task_poll_s <= 60:
        raise ConfigError("must be 0.01 to 60 seconds", field="node.task_poll_s", file=file)
    if not 1 << 20 <= settings.object_bytes <= 1 << 31:
        raise ConfigError("must be 1 MiB to 2 GiB", field="node.object_bytes", file=file)
