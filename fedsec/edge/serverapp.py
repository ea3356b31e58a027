"""``flwr-serverapp`` as SuperExec finds it first in PATH on a server host: Flower's own command, in which only the installed app can run.

1. The Control API takes any bundle (FAB) from whoever has an account on this host, and Flower starts its ServerApp as the service's user, with
   the server's key in reach. So the command is started through here: before the first module is looked for in a folder that is not of
   this installation, that folder must be, byte for byte, the app that ``fedsec run`` submits (``appfolder``). Whatever else was
   submitted ends as a failed run that says why; not a line of it was run.
2. The check is an audit hook: it cannot be removed, and it sees each module before its first line runs, whoever asked for it. What passed is
   the installed app byte for byte; so it is the installed one that runs, loaded before, and the folder is not looked into any more: another
   bundle, whose hash begins with the same eight digits, may be unpacked over it at any time.
3. Which plan the app runs, and where, ``server/setup.py`` decides: on such a host only what lies in the server's home.
4. Flower's installer makes the app's folder by the version that the bundle says, ``1/../../../../runs/x`` say: with that, a bundle could put a
   plan of its own where only ``fedsec run`` puts one. So no folder is made by a path that goes up from
   within Flower's home, nor in another app's folder.
5. The task's token is wiped from the command line, as the client's is.

Source: decision 0015, finding 14; PEP 578.
"""

from __future__ import annotations

import contextlib
import hmac
import importlib
import os
import sys
import threading
import tomllib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from fedsec.edge.appfolder import app_files
from fedsec.edge.audit import AuditLog
from fedsec.edge.shim import wipe_command_line
from fedsec.errors import AdmissionError, StorageError

COMMAND = "flwr-serverapp"
APP = "server.app"
"""The module of the app's ServerApp; what else it needs is loaded from where this one was."""
PROJECT = "pyproject.toml"
APP_FOLDERS = "apps"
"""In Flower's home: one folder for each app."""
OWN_LIST = ".info/CONTENT"
"""Flower's list of a FAB's files; the one file that the app folder has beside them."""
MAX_FILES = 4096
REFUSALS = "refused-apps.jsonl"
"""Beside the logs of the server host: SuperExec keeps nothing of what a ServerApp says."""

_EVENTS = frozenset({"import", "exec", "compile"})
"""``import`` statements, and loading of extensions; and each module's own code, which ``importlib.import_module`` gets to without the first."""
_MAKES_FOLDER = "os.mkdir"


def check_app_folder(folder: Path, expected: Mapping[str, bytes]) -> None:
    """Refuse a folder that is not the app.

    Args:
        folder: from which modules would be loaded.
        expected: every file of the app, by path.

    Raises:
        AdmissionError: names the first file that differs.
    """
    found = dict(_files(folder))
    found.pop(OWN_LIST, None)
    for name in sorted(found.keys() | expected.keys()):
        if name not in expected:
            raise AdmissionError(f"{name} in {folder} is not a file of the installed app")
        if name not in found or not _is_same(name, found[name], expected[name]):
            raise AdmissionError(f"{name} in {folder} is not that of the installed app, or missing; remove the folder if it is damaged")


class Guard:
    """Looks at the places that Python would load modules from.

    Args:
        expected: every file of the app, by path.
        trusted: places that count as they are: those of this installation.
        within: folders below which everything counts, but for Flower's own.
        flower_home: where Flower unpacks what was submitted: nothing below counts as it is.
        report: told why something was refused.
    """

    def __init__(
        self, expected: Mapping[str, bytes], trusted: list[str], within: list[str], flower_home: str, report: Callable[[str], None]
    ) -> None:
        self._expected, self._report = expected, report
        self._flower_home = Path(os.path.realpath(flower_home))
        self._within = [Path(os.path.realpath(folder)) for folder in within]
        self._good = {place for place in trusted if not Path(os.path.realpath(place)).is_relative_to(self._flower_home)}
        self._here = threading.local()
        self._made: set[str] = set()

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        """See ``sys.addaudithook``."""
        if event == _MAKES_FOLDER:
            self._check_way(os.fsdecode(arguments[0]))
        if event not in _EVENTS:
            return
        if getattr(self._here, "checking", False):
            raise AdmissionError("what looks at an app loads nothing: it could be a file of the app")
        places = arguments[2] if event == "import" and arguments[2] is not None else sys.path
        self._here.checking = True  # of this thread
        try:
            for place in list(places):
                if place not in self._good:
                    self._look(str(place))
        finally:
            self._here.checking = False

    def _check_way(self, path: str) -> None:
        parts = Path(path).parts
        from_where = [Path(os.path.realpath(Path(*parts[:place]))) for place, part in enumerate(parts) if part == os.path.pardir]
        up = any(folder.is_relative_to(self._flower_home) for folder in from_where)  # the server's own home may be named by one
        if up or self._is_in_anothers(Path(os.path.realpath(path))):
            why = f"the app's own version, or another name in it, leads out of its folder: {path[:200]!r}"
            self._report(f"refused to unpack an app: {why}")
            raise AdmissionError(f"this host runs the installed app only, submitted with fedsec run: {why}")

    def _is_in_anothers(self, path: Path) -> bool:
        """Whether a folder would be made in an app's folder that this process did not make: the installed app's, say, which it would spoil."""
        apps = self._flower_home / APP_FOLDERS
        below = path.relative_to(apps).parts if path.is_relative_to(apps) else ()
        self._made.update(below if len(below) == 1 else ())
        return len(below) > 1 and below[0] not in self._made

    def _look(self, place: str) -> None:
        if self.check(place):
            self._good.add(place)
            return
        while place in sys.path:  # looked at, and not looked into from here on
            sys.path.remove(place)

    def check(self, place: str) -> bool:
        """Refuse a place that is neither of this installation nor the app; False: it is the app.

        Raises:
            AdmissionError: said as well to who reports.
        """
        real = Path(os.path.realpath(place))
        if real.is_relative_to(self._flower_home) or not any(real.is_relative_to(folder) for folder in self._within):
            try:
                check_app_folder(real, self._expected)
            except (AdmissionError, OSError) as error:
                self._report(f"refused to run an app that is not the installed one: {error}")
                raise AdmissionError(f"this host runs the installed app only, submitted with fedsec run: {error}") from None
            return False
        return True


def _files(folder: Path) -> list[tuple[str, Path]]:
    """Every file below, by path; the caches of byte code, which a source stands before, are left out.

    Raises:
        AdmissionError: a link, something else than files and folders, or too many.
        OSError: it cannot be read.
    """
    found: list[tuple[str, Path]] = []
    for parent, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in (*folders, *names):
            path = Path(parent) / name
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise AdmissionError(f"{path} is not a plain file or folder")
        found += [((Path(parent) / name).relative_to(folder).as_posix(), Path(parent) / name) for name in names]
        if len(found) > MAX_FILES:
            raise AdmissionError(f"{folder} has over {MAX_FILES} files")
    return found


def _raise(error: OSError) -> None:
    raise error


def _is_same(name: str, path: Path, expected: bytes) -> bool:
    """Byte for byte; of the project file, which Flower writes anew when it builds the FAB, what it says."""
    data = path.read_bytes()
    if name != PROJECT:
        return hmac.compare_digest(data, expected)
    try:
        return tomllib.loads(data.decode("utf-8")) == tomllib.loads(expected.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError):
        return False


def main() -> None:
    """Become Flower's command, guarded."""
    wipe_command_line(COMMAND)
    (entry,) = entry_points(group="console_scripts", name=COMMAND)
    run = entry.load()
    home = os.environ.get("FLWR_HOME") or str(Path.home() / ".flwr")
    log_file = Path(os.environ.get("FEDSEC_HOME") or Path(home).parent) / "superlink" / REFUSALS

    def report(why: str) -> None:
        print(f"error: {why}", file=sys.stderr)  # noqa: T201 - goes to the run's log
        with contextlib.suppress(StorageError, OSError):
            AuditLog(log_file).write(datetime.now(UTC), "refused-app", {"reason": why})

    importlib.import_module(APP)
    guard = Guard(app_files(), list(sys.path), [sys.prefix, sys.base_prefix], home, report)
    sys.addaudithook(guard.hook)
    sys.argv[0] = COMMAND
    sys.exit(run())


if __name__ == "__main__":
    main()
