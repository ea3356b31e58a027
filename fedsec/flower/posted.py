"""A deployment's grid that asks the SuperLink when the gateway says that there is something, instead of again and again.

1. Flower's grid sleeps a second whenever it pulls a reply that is announced and whose objects are still on their way. So only replies are
   pulled that the gateway says are whole; all are asked for every three seconds, since Flower itself answers for a node that is gone.
2. After a push the gateway is told, so that it asks for its nodes' messages at once.
3. Both are hints in files (``fedsec.edge.postbox``). Without them, as with a stock SuperLink alone, this is the inner grid.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

ASKED, ANSWERED = "asked", "answered"
LOOK_AT_ALL_S = 3.0
POLL_S = 0.02
"""How often to look for a hint: one ``stat``."""
MAX_KNOWN = 1 << 16
"""Message ids that are remembered; many more than are waited for at a time."""

_ID = re.compile(rb"[0-9a-f]{64}")


class Answered:
    """The gateway's list of messages whose replies are whole.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file, self._at = (0, 0), 0
        self._known: dict[str, None] = {}

    def read(self) -> bool:
        """Read what is new; False if there is no such file, or it cannot be read."""
        try:
            found = self._path.stat()
            file = (found.st_dev, found.st_ino)
            if file == self._file and found.st_size == self._at:
                return True
            if file != self._file or found.st_size < self._at:
                self._file, self._at = file, 0
            with self._path.open("rb") as handle:
                handle.seek(self._at)
                data = handle.read()
        except OSError:
            return False
        whole = data[: data.rfind(b"\n") + 1]
        self._at += len(whole)
        self._known.update(dict.fromkeys(line.decode("ascii") for line in whole.splitlines() if _ID.fullmatch(line)))
        while len(self._known) > MAX_KNOWN:
            del self._known[next(iter(self._known))]
        return True

    def among(self, message_ids: Iterable[str]) -> set[str]:
        """Those of the messages whose replies are whole."""
        return {message_id for message_id in message_ids if message_id in self._known}


class PostedGrid(Grid):
    """See the module.

    Args:
        inner: the way to the nodes.
        folder: the gateway's.
        clock: gives seconds that do not go back.

    """

    def __init__(self, inner: Grid, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._inner, self._asked, self._clock = inner, folder / ASKED, clock
        self._answered = Answered(folder / ANSWERED)
        self._hinted, self._looked_at = self._answered.read(), clock()

    @property
    def longest_poll_s(self) -> float:
        """How long a caller should wait at most between two pulls: with hints they cost nothing, without them the SuperLink 10 ms each."""
        return POLL_S if self._hinted else math.inf

    def set_run(self, run: Any) -> None:
        """See ``Grid``."""
        self._inner.set_run(run)

    @property
    def run(self) -> Any:
        """See ``Grid``."""
        return self._inner.run

    def create_message(self, content: Any, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None) -> Message:
        """Flower's older spelling of ``Message(...)``."""
        return self._inner.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """See ``Grid``."""
        return self._inner.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Push, then tell the gateway: all objects are there now."""
        pushed = self._inner.push_messages(messages)
        with contextlib.suppress(OSError):
            os.utime(self._asked)
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that are whole. Those that Flower makes itself come within three seconds."""
        wanted = set(message_ids)
        self._hinted = self._answered.read()
        if self._hinted and self._clock() - self._looked_at < LOOK_AT_ALL_S:
            wanted = self._answered.among(wanted)
        else:
            self._looked_at = self._clock()
        return self._inner.pull_messages(wanted) if wanted else []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """See ``Grid``."""
        return self._inner.send_and_receive(messages, timeout=timeout)
