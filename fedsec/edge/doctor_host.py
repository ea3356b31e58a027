"""This host as the doctor sees it: versions, commands, proxies, disk, modes of folders and keys. Facts are gathered, then judged.

1. Each ``judge_*`` is pure: facts in, findings out. Each ``read_*`` asks the system and judges nothing.
2. A proxy variable may hold a password: only the host of its address is repeated.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from fedsec.edge.doctor_findings import Finding, finding, settle

WANTED: Mapping[str, tuple[tuple[int, ...], tuple[int, ...] | None]] = {
    "python": ((3, 11), None),
    "fedsec": ((0, 1), None),
    "flwr": ((1, 41), (1, 43)),
    "grpcio": ((1, 70), None),
    "protobuf": ((5, 26), None),
    "cryptography": ((44,), None),
    "torch": ((2, 4), None),
    "opacus": ((1, 6), None),
}
"""Package → lowest version, and the first that is too new; as pyproject.toml says (a test compares)."""

COMMANDS = {
    "client": ("flower-supernode", "flower-superexec", "flwr-clientapp"),
    "server": ("flower-superlink", "flower-superexec", "flwr-serverapp", "flwr"),
}
"""Flower's commands that a host of each kind starts; they are looked for beside Python."""

PROXIES = ("grpc_proxy", "https_proxy", "http_proxy", "all_proxy")
LOW_BYTES, FULL_BYTES = 1 << 30, 100 << 20


@dataclass(frozen=True)
class FileFacts:
    """A file or folder.

    Attributes:
        path: where.
        exists: whether anything is there.
        mode: permission bits.
        is_link: a symbolic link.
        is_folder: a folder.
        writable: by this process.
    """

    path: Path
    exists: bool
    mode: int = 0
    is_link: bool = False
    is_folder: bool = False
    writable: bool = True


def read_versions() -> dict[str, str | None]:
    """Version of each package of :data:`WANTED`; None: not installed. Nothing is imported."""
    found: dict[str, str | None] = {"python": ".".join(str(part) for part in sys.version_info[:3])}
    for name in WANTED:
        if name == "python":
            continue
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def judge_versions(versions: Mapping[str, str | None]) -> list[Finding]:
    """Each package against the range that fedsec is tested with."""
    found = []
    for name, (lowest, too_new) in WANTED.items():
        version = versions.get(name)
        if version is None:
            found.append(finding("versions.missing", f"{name} is not installed"))
            continue
        match = re.match(r"([0-9]+(?:\.[0-9]+)*)", version, re.ASCII)
        if match is None or len(version) > 60:
            found.append(finding("versions.unknown", f"{name} has the version {version!r}"))
            continue
        parts = tuple(int(part) for part in match[1].split("."))
        if parts < lowest or (too_new is not None and parts >= too_new):
            upper = f", below {_dotted(too_new)}" if too_new else ""
            found.append(finding("versions.outside", f"{name} {version}, fedsec needs {_dotted(lowest)} or later{upper}"))
    return settle("versions", found, ", ".join(f"{name} {versions[name]}" for name in WANTED if versions.get(name)))


def judge_library(*, has_tls13: bool) -> list[Finding]:
    """Python's TLS library."""
    return [] if has_tls13 else [finding("tls.old-library", "this Python's TLS library does not know TLS 1.3")]


def read_commands(kind: str) -> dict[str, bool]:
    """Which of Flower's commands lie beside this Python."""
    return {name: Path(sys.executable).with_name(name).exists() for name in COMMANDS[kind]}


def judge_commands(present: Mapping[str, bool]) -> list[Finding]:
    """Flower's commands."""
    missing = [finding("commands.missing", f"{name} is not beside {sys.executable}") for name, there in present.items() if not there]
    return settle("commands", missing, ", ".join(present))


def read_proc_options(mounts: Path = Path("/proc/mounts")) -> str:
    """Mount options of /proc; empty: unknown."""
    try:
        lines = [line.split() for line in mounts.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError):
        return ""
    return next((fields[3] for fields in lines if len(fields) > 3 and fields[1] == "/proc"), "")


def hides_processes(options: str) -> bool:
    """Whether a user cannot see what others' processes were started with."""
    return not {"hidepid=2", "hidepid=invisible", "hidepid=4", "hidepid=ptraceable", "hidepid=1", "hidepid=noaccess"}.isdisjoint(
        options.split(",")
    )


def judge_processes(options: str) -> list[Finding]:
    """Whether other local users can read the command lines of ours."""
    found = [] if hides_processes(options) else [finding("host.open-proc", "every local user can read command lines in /proc")]
    return settle("host", found, "/proc hides other users' processes")


def judge_proxies(environment: Mapping[str, str], host: str | None) -> list[Finding]:
    """Proxy variables that gRPC would follow for ``host``, in either case."""
    values = {name.lower(): value for name, value in environment.items() if value}
    exempt = [item.strip().lstrip("*.") for item in values.get("no_proxy", "").split(",") if item.strip()]
    if "*" in values.get("no_proxy", "").split(",") or (host and any(host == item or host.endswith(f".{item}") for item in exempt if item)):
        return settle("proxy", [], f"no_proxy covers {host}" if host else "no_proxy covers all")
    found = [finding("proxy.set", f"{name} is set ({_proxy_host(values[name])})") for name in PROXIES if name in values]
    return settle("proxy", found, "no proxy variable is set")


def _proxy_host(value: str) -> str:
    try:
        parts = urlsplit(value if "://" in value else f"//{value}")
        return f"{parts.hostname or 'no host'}{f':{parts.port}' if parts.port else ''}"
    except ValueError:
        return "an address that cannot be read"


def read_free_bytes(folder: Path) -> int:
    """Free bytes for this user on the folder's file system; 0 if it cannot be asked."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def judge_disk(folder: FileFacts, free_bytes: int) -> list[Finding]:
    """Room, and whether this user may write."""
    found = []
    if not folder.writable:
        found.append(finding("disk.read-only", f"{folder.path} cannot be written by this user"))
    if free_bytes < FULL_BYTES:
        found.append(finding("disk.full", f"{free_bytes / 2**20:.0f} MiB free at {folder.path}"))
    elif free_bytes < LOW_BYTES:
        found.append(finding("disk.low", f"{free_bytes / 2**20:.0f} MiB free at {folder.path}"))
    return settle("disk", found, f"{free_bytes / 2**30:.1f} GiB free")


def read_file(path: Path) -> FileFacts:
    """What lies there; a link is not followed for its mode."""
    try:
        status = path.lstat()
    except OSError:
        return FileFacts(path, exists=False)
    return FileFacts(
        path,
        exists=True,
        mode=stat.S_IMODE(status.st_mode),
        is_link=stat.S_ISLNK(status.st_mode),
        is_folder=path.is_dir(),
        writable=os.access(path, os.W_OK),
    )


def judge_folders(folders: Iterable[FileFacts]) -> list[Finding]:
    """Modes of the home folder and those below it that matter."""
    found, seen = [], []
    for folder in folders:
        if not folder.exists:
            continue
        seen.append(folder.path.name)
        if folder.mode & 0o022 and not folder.is_link:
            found.append(finding("folder.writable", f"{folder.path} may be written by others (mode {folder.mode:o})"))
        elif folder.mode & 0o055 and not folder.is_link:
            found.append(finding("folder.readable", f"{folder.path} may be read by others (mode {folder.mode:o})"))
    return settle("folder", found, f"{', '.join(seen)}: nobody else's")


def judge_keys(keys: Iterable[FileFacts], *, root_key: Path | None = None) -> list[Finding]:
    """Key files: there, plain, and their owner's alone.

    Args:
        keys: each must be there.
        root_key: of a CA; it should not be there.
    """
    found, seen = [], []
    for key in keys:
        seen.append(key.path.name)
        if not key.exists:
            found.append(finding("key.missing", f"{key.path} is not there"))
        elif key.is_link or key.is_folder:
            found.append(finding("key.link", f"{key.path} is not a plain file"))
        elif key.mode & 0o077:
            found.append(finding("key.readable", f"{key.path} may be read by others (mode {key.mode:o})"))
    if root_key is not None:
        found.append(finding("key.root-here", f"the root's key still lies on this host ({root_key})"))
    return settle("key", found, f"{', '.join(seen)}: mode 600")


def _dotted(parts: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in parts)
