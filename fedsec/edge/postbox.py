"""Two files by which the ServerApp and the gateway of one host spare each other the waiting; both are hints, and nothing depends on them.

1. ``asked``: the ServerApp touches it when messages and all their objects are at the SuperLink. The gateway then asks for its nodes' messages
   at once, and not only at the next quarter of a second.
2. ``answered``: the gateway appends the id of each message whose reply is whole at the SuperLink, one a line. Whoever pulls a reply that is
   announced and whose objects are still on their way is put to sleep for a second by Flower.
3. Who may write to them can make the gateway ask, or the ServerApp look, a little more often: no more. What counts is at the SuperLink.

The reader is ``fedsec.flower.posted``.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from fedsec.errors import StorageError
from fedsec.files import atomic_write_bytes

ASKED, ANSWERED = "asked", "answered"
MAX_BYTES = 1 << 20
"""Of ``answered``; then a new file takes its place, and whoever has not read the old one to its end polls."""


class Postbox:
    """The gateway's end.

    Args:
        folder: the gateway's; must exist.

    Raises:
        StorageError: the file system refused.
    """

    def __init__(self, folder: Path) -> None:
        self._asked, self._answered = folder / ASKED, folder / ANSWERED
        try:
            self._asked.touch(mode=0o600)
        except OSError as error:
            raise StorageError(f"cannot make {self._asked}: {error.strerror or error}") from error
        self._begin()
        self._touched = self._look()

    def _begin(self) -> None:
        atomic_write_bytes(self._answered, b"", durable=False)
        self._size = 0

    def _look(self) -> int:
        with contextlib.suppress(OSError):
            return self._asked.stat().st_mtime_ns
        return 0

    def was_asked(self) -> bool:
        """Whether the ServerApp sent messages since the last look."""
        before, self._touched = self._touched, self._look()
        return self._touched != before

    def answered(self, message_id: str) -> None:
        """Say that the reply to a message is whole; blocks. A file system that refuses costs the ServerApp a wait."""
        line = f"{message_id}\n".encode("ascii")
        with contextlib.suppress(OSError, StorageError):
            if self._size + len(line) > MAX_BYTES:
                self._begin()
            with self._answered.open("ab") as handle:
                handle.write(line)
            self._size += len(line)
