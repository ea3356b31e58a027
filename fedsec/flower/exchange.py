"""Send messages, collect the replies until all are there, the deadline passes, or the run is asked to stop.

Flower's own ``send_and_receive`` sleeps three seconds between polls on a deployed grid; this loop starts at a millisecond and
backs off to a quarter of a second, which costs a SuperLink nothing that can be measured.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from flwr.app import Message
from flwr.serverapp import Grid

FIRST_POLL_S = 0.001
LONGEST_POLL_S = 0.25
BACK_OFF = 1.5


class StopRequested(Exception):  # noqa: N818 - not an error: someone asked the run to stop
    """The run was asked to stop while it waited for replies."""


def _never_answered(grid: Grid, message_ids: set[str]) -> set[str]:
    """Messages that a simulation lost on purpose: the deadline would pass without them, so nobody needs to sit it out."""
    known = getattr(grid, "never_answered", None)
    return known(message_ids) if known is not None else set()


def exchange(
    grid: Grid,
    messages: Iterable[Message],
    *,
    timeout_s: float,
    stop: threading.Event,
    on_answers: Callable[[int, int], None] = lambda _answered, _asked: None,
) -> list[Message]:
    """Push ``messages`` and return the replies that came within ``timeout_s`` seconds, in order of arrival.

    Args:
        grid: where to.
        messages: what to send.
        timeout_s: seconds to wait at most.
        stop: set by whoever wants the wait to end.
        on_answers: told (answers so far, messages sent) whenever answers arrive.

    Raises:
        StopRequested: ``stop`` was set while waiting; replies still under way are left alone.
    """
    waiting = set(grid.push_messages(messages))
    asked = len(waiting)
    deadline = time.monotonic() + timeout_s
    replies: list[Message] = []
    pause = FIRST_POLL_S
    while waiting:
        arrived = list(grid.pull_messages(waiting))
        replies += arrived
        waiting -= {reply.metadata.reply_to_message_id for reply in arrived}
        if arrived:
            on_answers(len(replies), asked)
        if stop.is_set():
            raise StopRequested
        if not waiting or time.monotonic() >= deadline or waiting <= _never_answered(grid, waiting):
            break
        pause = FIRST_POLL_S if arrived else min(pause * BACK_OFF, LONGEST_POLL_S)
        stop.wait(min(pause, max(0.0, deadline - time.monotonic())))
    return replies
