"""``[users]`` of a server host that is started as root: what of its home belongs to which Unix user, so that each process can do its work and no more.

1. The stock SuperLink, which every local user reaches, may be a user of its own: it then holds its database and its loopback key, and neither the
   server's identity nor a run.
2. The gateway and SuperExec with its ServerApps are one user: both need the server's key, and a key has one reader. Two names are refused.
3. The home and ``superlink/`` stay root's and are for passing through: root writes logs there, so nobody else may put a link there.
   What a process writes lies in a folder of its user's, or is a file that is made here.
4. Only root's own things are given away, once: what a service wrote stays as it is, and no link is followed.
"""

from __future__ import annotations

import os
import pwd
import stat
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import fedsec
from fedsec.edge.server_settings import ServerSettings, UserSettings
from fedsec.errors import ConfigError, StorageError
from fedsec.files import atomic_write_bytes
from fedsec.identity.folder import PASSPHRASE_VARIABLE

DATABASE = Path("superlink") / "database"
"""The SuperLink's folder where it is a user of its own."""
STATE = "state.db"
SUPEREXEC_SECRET = "superexec.secret"  # noqa: S105 - a name
SUPERLINK_SECRET = "superlink.secret"  # noqa: S105 - a name
"""The same bytes for the SuperLink, where it is a user of its own."""

OWN_FOLDERS = ("identity", "federation", "gateway", "releases", "runs", "log", "superlink/flwr")
"""Of the gateway's and the ServerApp's user."""
OWN_FILES = ("gateway.lock", "superlink/refused-apps.jsonl")
HOME_MODE, PASSED_THROUGH, READ_BY_ALL = 0o751, 0o711, 0o755
"""The home may be listed by the group of the gateway's user: ``fedsec run`` looks at it."""


class _Owner(NamedTuple):
    uid: int
    gid: int


def are_apart(users: UserSettings) -> bool:
    """Whether the SuperLink is a user of its own."""
    return users.superlink != users.gateway


def owner_of(user: str) -> _Owner:
    """A user's numbers; of this process for the empty name.

    Raises:
        ConfigError: no such user, or this process may not become it.
    """
    if not user:
        return _Owner(os.geteuid(), os.getegid())
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise ConfigError("there is no such Unix user", field=f"users ({user})", mend=f"useradd --system {user}, or take it out") from None
    if os.geteuid() not in (0, entry.pw_uid):
        raise ConfigError(
            "only root can start processes as other users", field=f"users ({user})", mend="start as root, or take [users] out"
        )
    return _Owner(entry.pw_uid, entry.pw_gid)


def check_users(settings: ServerSettings) -> None:
    """Refuse users that cannot be become, or cannot work.

    Raises:
        ConfigError: as :func:`owner_of`; two users where one key has one reader; or a place that they cannot reach or read.
    """
    users = settings.users
    for user in (users.superlink, users.superexec, users.gateway):
        owner_of(user)
    if users.superexec != users.gateway:
        raise ConfigError(
            "the gateway and the ServerApp both need the server's key, which one user may read",
            field="users.superexec",
            mend="give superexec and gateway the same name; superlink may be another",
        )
    for user in {users.superlink, users.gateway} - {""}:
        if owner_of(user).uid != os.geteuid():
            for place in (settings.home, Path(sys.executable).resolve(), Path(fedsec.__file__).resolve()):
                _check_reachable(place, user)
    _check_passphrase(users.gateway)


def _check_reachable(place: Path, user: str) -> None:
    for parent in place.parents:
        if not parent.stat().st_mode & stat.S_IXOTH:
            raise ConfigError(
                f"{user} cannot get to {place}: {parent} is closed to it", field="users", mend="put it below /srv, /opt or /var/lib"
            )


def _check_passphrase(user: str) -> None:
    """The gateway and the ServerApp read it themselves, as their user."""
    named = os.environ.get(PASSPHRASE_VARIABLE)
    if user and named and Path(named).exists() and Path(named).stat().st_uid != owner_of(user).uid:
        raise ConfigError(f"{user} cannot read the passphrase", file=named, mend=f"chown {user} it, and leave it at mode 600")


def hand_over(settings: ServerSettings) -> None:
    """Give each user what is its; does nothing unless root does it for others.

    Args:
        settings: of the server; ``prepare_superlink`` and :func:`check_users` went before.

    Raises:
        StorageError: the file system refused.
    """
    users, home = settings.users, settings.home
    if os.geteuid() != 0 or users == UserSettings():
        return
    own, link = owner_of(users.gateway), owner_of(users.superlink)
    try:
        kept = ((home, own.gid, HOME_MODE), (home / "superlink", 0, PASSED_THROUGH), (home / "superlink" / "commands", 0, READ_BY_ALL))
        for path, group, mode in kept:
            os.chown(path, 0, group)
            path.chmod(mode)
        for name in OWN_FOLDERS:
            (home / name).mkdir(mode=0o700, exist_ok=True)
            _give_tree(home / name, own)
        for name in OWN_FILES:
            (home / name).touch(mode=0o600)
            _give((home / name,), own)
        _hand_over_superlink(home / "superlink", own, link, apart=are_apart(users))
    except OSError as error:
        raise StorageError(f"cannot give the users of [users] what is theirs in {home}: {error}") from error


def _hand_over_superlink(folder: Path, own: _Owner, link: _Owner, *, apart: bool) -> None:
    secret = (folder / SUPEREXEC_SECRET).read_bytes()
    _give((folder / SUPEREXEC_SECRET,), own)
    _give((folder / "key.pem",), link)
    if apart:
        atomic_write_bytes(folder / SUPERLINK_SECRET, secret, mode=0o600)
        _give((folder / SUPERLINK_SECRET,), link)
    database = folder / DATABASE.name
    database.mkdir(mode=0o700, exist_ok=True)
    for path in folder.glob(f"{STATE}*"):  # of a time without [users]
        if not (database / path.name).exists():
            path.rename(database / path.name)
    _give_tree(database, link)


def _give_tree(folder: Path, owner: _Owner) -> None:
    _give((folder,), owner)
    for parent, folders, names in os.walk(folder):
        _give((Path(parent) / name for name in (*folders, *names)), owner)


def _give(paths: Iterable[Path], owner: _Owner) -> None:
    """Root's plain files and folders only; a second name of a file (a hard link) would give away what lies elsewhere."""
    for path in paths:
        status = path.lstat()
        plain = stat.S_ISDIR(status.st_mode) or (stat.S_ISREG(status.st_mode) and status.st_nlink == 1)
        if status.st_uid == 0 and plain:
            os.chown(path, owner.uid, owner.gid, follow_symlinks=False)
