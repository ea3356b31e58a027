"""Send messages, collect the replies until all are there, the deadline passes, or the run is asked to stop.

1. Flower's own ``send_and_receive`` sleeps three seconds between polls on a deployed grid; this loop starts at a millisecond and
   backs off to a quarter of a second, which costs a SuperLink nothing that can be measured; less where the grid knows what is there (``posted``).
2. A reply is its who was asked: one that says it is from another node that was asked, and a second reply to one message, are dropped.
   Callers go by the node in a reply, and SuperLink does not compare it with what it knows.
3. A reply that Flower cannot put together raises in the middle of a pull, for all. Then every message is asked for by itself, and what
   still raises counts as silence: no client ends a run.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping

from flwr.app import Message
from flwr.serverapp import Grid
from google.protobuf.message import DecodeError as ProtobufError

_logger = logging.getLogger(__name__)

FIRST_POLL_S = 0.001
LONGEST_POLL_S = 0.25
BACK_OFF = 1.5
_UNREADABLE = (AttributeError, AssertionError, LookupError, RecursionError, TypeError, ValueError, ProtobufError)
"""What Flower raises on a reply whose objects are not what it expects."""


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
    sent = list(messages)
    asked = dict(_pushed(grid, sent))
    waiting = set(asked)
    deadline = time.monotonic() + timeout_s
    replies: list[Message] = []
    pause = FIRST_POLL_S
    while waiting:
        arrived, unreadable = _pull(grid, waiting)
        waiting -= unreadable
        fresh = _attributed(arrived, asked, waiting)
        replies += fresh
        if fresh:
            on_answers(len(replies), len(sent))
        if stop.is_set():
            raise StopRequested
        if not waiting or time.monotonic() >= deadline or waiting <= _never_answered(grid, waiting):
            break
        pause = FIRST_POLL_S if fresh else min(pause * BACK_OFF, LONGEST_POLL_S, getattr(grid, "longest_poll_s", LONGEST_POLL_S))
        stop.wait(min(pause, max(0.0, deadline - time.monotonic())))
    return replies


def _pushed(grid: Grid, sent: list[Message]) -> Iterable[tuple[str, int]]:
    """Message id → node, of what was pushed: Flower has None for a message that it could not push, and nothing at all if all are too large."""
    ids: list[str | None] = list(grid.push_messages(sent))
    for message_id, message in zip(ids, sent, strict=False):
        if message_id is not None:
            yield message_id, message.metadata.dst_node_id
    if len(ids) != len(sent) or None in ids:
        _logger.warning("%d of %d messages could not be pushed", len(sent) - sum(item is not None for item in ids), len(sent))


def _pull(grid: Grid, waiting: set[str]) -> tuple[list[Message], set[str]]:
    """What arrived, and which messages have a reply that cannot be read."""
    try:
        return list(grid.pull_messages(waiting)), set()
    except _UNREADABLE:
        _logger.warning("a reply cannot be read; every message is asked for by itself", exc_info=True)
    arrived: list[Message] = []
    unreadable: set[str] = set()
    for message_id in sorted(waiting):
        try:
            arrived += grid.pull_messages({message_id})
        except _UNREADABLE:
            unreadable.add(message_id)
    return arrived, unreadable


def _attributed(arrived: Iterable[Message], asked: Mapping[str, int], waiting: set[str]) -> list[Message]:
    """The replies that are their sender's first to what it was asked; they are no longer waited for."""
    known = set(asked.values())
    fresh = []
    for reply in arrived:
        message_id, source = reply.metadata.reply_to_message_id, reply.metadata.src_node_id
        if message_id not in waiting:
            _logger.warning("a reply to nothing that is waited for is dropped")
        elif source != asked[message_id] and source in known:
            _logger.warning("node %d answered in the name of node %d; the reply is dropped", asked[message_id], source)
        else:
            waiting.discard(message_id)
            fresh.append(reply)
    return fresh
