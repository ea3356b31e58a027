"""systemd units of a federation's hosts, from templates: gateway (with SuperLink), agent, renewal timer, CA.

1. One table says what each unit runs; one template holds the hardening for all, so that no unit has less by oversight.
2. A value that comes in (user, folder, command) is checked strictly: a unit file has its own quoting, ``%`` and line breaks, and none of
   these may be anybody's to write.
3. A folder under ``/var/lib`` lies in the unit's ``StateDirectory``; one elsewhere is the only path that the unit may write. ``ProtectHome`` hides
   ``/home``, ``/root`` and ``/run/user``: folders there are refused.

``MemoryDenyWriteExecute`` is the CA's only: PyTorch's convolutions make code at run time and fail under it ("could not create a primitive").
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from pathlib import Path, PurePosixPath

from fedsec.errors import ConfigError
from fedsec.files import atomic_write_text

STATE_ROOT = PurePosixPath("/var/lib")

_HIDDEN = tuple(PurePosixPath(path) for path in ("/home", "/root", "/run/user"))
_TOO_WIDE = tuple(
    PurePosixPath(path) for path in ("/bin", "/boot", "/dev", "/etc", "/lib", "/opt", "/proc", "/run", "/srv", "/sys", "/tmp", "/usr", "/var", "/var/lib", "/var/tmp")  # noqa: S108 - refused
)  # fmt: skip
_PATH = re.compile(r"/[A-Za-z0-9._@+/-]{1,200}", re.ASCII)
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,30}", re.ASCII)
_HOST = re.compile(r"[0-9A-Za-z.:-]{1,80}", re.ASCII)


class UnitKind(StrEnum):
    """What a unit runs."""

    GATEWAY = "gateway"
    AGENT = "agent"
    RENEW = "renew-timer"
    CA = "ca"


@dataclass(frozen=True)
class _Profile:
    """One row of the table: what a kind of unit is."""

    description: str
    command: str
    home_option: str
    default_user: str
    folder: str
    file: str
    runs_torch: bool
    is_long: bool = True


_PROFILES = {
    UnitKind.GATEWAY: _Profile("fedsec gateway with Flower's SuperLink", "server up", "--home", "fedsec-server", "/var/lib/fedsec-server", "fedsec-gateway", runs_torch=True),
    UnitKind.AGENT: _Profile("fedsec agent of an edge device", "client up", "--home", "fedsec-client", "/var/lib/fedsec-client", "fedsec-agent", runs_torch=True),
    UnitKind.RENEW: _Profile(
        "Renewal of an edge device's certificate", "client renew", "--home", "fedsec-client", "/var/lib/fedsec-client", "fedsec-renew", runs_torch=False, is_long=False
    ),
    UnitKind.CA: _Profile("fedsec enrolment service of a CA", "ca serve", "--ca", "fedsec-ca", "/var/lib/fedsec-ca/ca", "fedsec-ca", runs_torch=False),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class UnitSettings:
    """What an operator chooses; None takes the default of the kind.

    Attributes:
        kind: which unit.
        command: absolute path of the ``fedsec`` script.
        user: Unix user and group of that name.
        home: folder of the client, server or CA.
        passphrase_file: source of the key's passphrase, readable by root only; None: the key is not encrypted.
        listen: for the CA, the address to listen on.
        port: for the CA.

    Raises:
        ConfigError: a value that may not stand in a unit.
    """

    kind: UnitKind
    command: str
    user: str | None = None
    home: str | None = None
    passphrase_file: str | None = None
    listen: str = "0.0.0.0"  # noqa: S104 - the enrolment service is for devices elsewhere; the firewall decides who
    port: int = 9444

    def __post_init__(self) -> None:
        if not _USER.fullmatch(self.user_name) or self.user_name == "root":
            raise ConfigError(
                f"{self.user_name[:60]!r} cannot be the unit's user", field="--user", mend="a system user of its own, not root"
            )
        for option, path in (("--command", self.command), ("--home", self.home), ("--passphrase-file", self.passphrase_file)):
            if path is not None:
                _check_path(path, option)
        if any(self.folder == hidden or hidden in self.folder.parents for hidden in _HIDDEN):
            raise ConfigError(
                f"ProtectHome hides {self.folder} from the unit", field="--home", mend="choose a folder under /var/lib or /srv"
            )
        if self.folder in _TOO_WIDE:
            raise ConfigError(
                f"{self.folder} is not a folder of fedsec alone", field="--home", mend="a folder of its own, as /var/lib/fedsec-client"
            )
        if not _HOST.fullmatch(self.listen) or not 1 <= self.port <= 65535:
            raise ConfigError(
                f"{self.listen[:80]!r}:{self.port} is not an address to listen on", field="--listen", mend="an IP address and a port"
            )

    @property
    def user_name(self) -> str:
        """The unit's user."""
        return _PROFILES[self.kind].default_user if self.user is None else self.user

    @property
    def folder(self) -> PurePosixPath:
        """The unit's folder."""
        return PurePosixPath(_PROFILES[self.kind].folder if self.home is None else self.home)


def render_units(settings: UnitSettings) -> dict[str, str]:
    """File name → content; a timer has two files."""
    profile = _PROFILES[settings.kind]
    values = {
        "DESCRIPTION": profile.description,
        "EXEC": _command_line(settings, profile),
        "USER": settings.user_name,
        "TYPE": _lines(
            "Type=exec", "Restart=on-failure", "RestartSec=5", "RestartPreventExitStatus=2", "TimeoutStopSec=60", "KillMode=mixed"
        )
        if profile.is_long
        else _lines("Type=oneshot", "TimeoutStartSec=300"),
        "LIMITS": "StartLimitIntervalSec=0" if profile.is_long else "# started by its timer",
        "FOLDER": _folder_lines(settings.folder),
        "ENVIRONMENT": _environment(settings, profile),
        "MEMORY": _memory(profile),
        "INSTALL": _lines("[Install]", "WantedBy=multi-user.target") if profile.is_long else "# fedsec-renew.timer starts it",
    }
    units = {f"{profile.file}.service": _fill(_template("service.in"), values)}
    if not profile.is_long:
        units[f"{profile.file}.timer"] = _template("renew-timer.in")
    return units


def render_users(settings: UnitSettings) -> str:
    """A line for ``sysusers.d`` that makes the unit's user."""
    return f'u {settings.user_name} - "{_PROFILES[settings.kind].description}" {settings.folder} -\n'


def write_units(settings: UnitSettings, folder: Path) -> list[Path]:
    """Write the units' files.

    Args:
        settings: which, and for whom.
        folder: for example ``/etc/systemd/system``; must exist.

    Returns:
        The files.

    Raises:
        StorageError: the file system refused.
    """
    paths = []
    for name, text in render_units(settings).items():
        atomic_write_text(folder / name, text)
        paths.append(folder / name)
    return paths


def _check_path(path: str, option: str) -> None:
    if not _PATH.fullmatch(path) or "//" in path or path.endswith("/") or {".", ".."} & set(path.split("/")):
        raise ConfigError(
            f"{path[:120]!r} may not stand in a unit", field=option, mend="an absolute path of letters, digits and . _ @ + - without blanks"
        )


def _command_line(settings: UnitSettings, profile: _Profile) -> str:
    words = [settings.command, profile.command, profile.home_option, str(settings.folder)]
    if settings.kind is UnitKind.CA:
        words += ["--host", settings.listen, "--port", str(settings.port)]
        if settings.passphrase_file is not None:
            words += ["--passphrase-file", "%d/passphrase"]
    return " ".join(words)


def _folder_lines(folder: PurePosixPath) -> str:
    if STATE_ROOT in folder.parents:
        return _lines(f"StateDirectory={folder.relative_to(STATE_ROOT).parts[0]}", "StateDirectoryMode=0700")
    return f"ReadWritePaths={folder}"


def _environment(settings: UnitSettings, profile: _Profile) -> str:
    lines = ["Environment=PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONSAFEPATH=1", f"Environment=HOME={settings.folder}"]
    if profile.runs_torch:
        lines.append("Environment=FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1")
    if settings.passphrase_file is not None:
        lines += [f"LoadCredential=passphrase:{settings.passphrase_file}", "Environment=FEDSEC_PASSPHRASE_FILE=%d/passphrase"]
    return _lines(*lines)


def _memory(profile: _Profile) -> str:
    if profile.runs_torch:
        return "# no MemoryDenyWriteExecute: PyTorch's convolutions make code at run time and fail under it"
    return _lines("MemoryDenyWriteExecute=yes", "ProcSubset=pid")


def _template(name: str) -> str:
    return resources.files("fedsec.edge").joinpath("deploy").joinpath(name).read_text(encoding="utf-8")


def _fill(template: str, values: dict[str, str]) -> str:
    return re.sub(r"@([A-Z]+)@", lambda match: values[match[1]], template)


def _lines(*lines: str) -> str:
    return "\n".join(lines)
