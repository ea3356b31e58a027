"""Release files for the agents: handed out as the operator put them into ``releases/``, never looked into.

1. The gateway does not judge a release; each site does. So a file that is none does no harm beyond its size.
2. Newest first by modification time; at most 32 files and 4 MiB together, larger or unreadable ones are left out.
"""

from __future__ import annotations

import stat
from pathlib import Path

MAX_RELEASES = 32
MAX_TOTAL_BYTES = 4 * 1024 * 1024


class Releases:
    """The files of a folder, read again when one of them changes.

    Args:
        folder: need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mark: object = None
        self._newest: list[bytes] = []

    def newest(self) -> list[bytes]:
        """Their contents, newest first."""
        found = []
        try:
            for path in self._folder.glob("*.json"):
                status = path.lstat()
                if stat.S_ISREG(status.st_mode):
                    found.append((status.st_mtime_ns, path.name, status.st_size))
        except OSError:
            return []
        found.sort(reverse=True)
        if found != self._mark:
            self._newest = self._read([(name, size) for _, name, size in found])
            self._mark = found
        return self._newest

    def _read(self, files: list[tuple[str, int]]) -> list[bytes]:
        contents: list[bytes] = []
        left = MAX_TOTAL_BYTES
        for name, size in files[:MAX_RELEASES]:
            if size > left:
                continue
            try:
                with (self._folder / name).open("rb") as handle:
                    content = handle.read(left + 1)
            except OSError:
                continue
            if len(content) <= left:
                contents.append(content)
                left -= len(content)
        return contents
