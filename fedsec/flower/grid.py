"""The local engine's ``Grid``: hands messages to the workers of this process and keeps their replies until they are asked for.

1. ``push_messages`` and ``pull_messages`` never wait; whoever wants to wait without polling has ``wait_for_replies``.
2. A message is serialised when it is pushed, so what is done to it afterwards changes nothing.
3. Time-to-live is honoured: asking for the reply to an expired message gives Flower's "unavailable" error.
4. Node ids and message ids are the same in every run.
"""

from __future__ import annotations

import math
import threading
import time
from abc import abstractmethod
from collections.abc import Collection, Iterable
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedsec.flower import compat
from fedsec.flower.pool import Lost, Pool

FIRST_NODE_ID = 1000
"""Node id of partition 0; the others follow."""
LONGEST_WAIT_S = 0.25
"""How long a wait for replies goes on before it looks at the clock again, for messages that expire."""


class WaitingGrid(Grid):
    """A ``Grid`` that can wait for replies, and therefore needs no pause between polls."""

    @abstractmethod
    def wait_for_replies(self, message_ids: Collection[str], timeout_s: float) -> None:
        """Return as soon as a reply to one of ``message_ids`` may be pulled, or after ``timeout_s`` seconds."""

    def create_message(self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None) -> Message:
        """Flower's older spelling of ``Message(...)``."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push ``messages`` and return their replies once all are there, or those that came within ``timeout`` seconds."""
        waiting = set(self.push_messages(messages))
        deadline = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting:
            arrived = list(self.pull_messages(waiting))
            replies += arrived
            waiting -= {reply.metadata.reply_to_message_id for reply in arrived}
            left = LONGEST_WAIT_S if deadline is None else deadline - time.monotonic()
            if left <= 0:
                break
            if waiting:
                self.wait_for_replies(waiting, min(left, LONGEST_WAIT_S))
        return replies


class LocalGrid(WaitingGrid):
    """A ``Grid`` whose nodes are in this process's own workers; see :func:`run_local`.

    Nodes of a lost worker stay listed and answer with errors: the one that was busy "ClientApp crashed", later ones "node
    unavailable".

    Args:
        num_nodes: how many nodes.
        run_id: Flower's id of the run.
    """

    def __init__(self, *, num_nodes: int, run_id: int) -> None:
        self._run: Any = compat.make_run(run_id)
        self._num_nodes = num_nodes
        self._pool: Pool | None = None
        self._counter = 0
        self._sent: dict[str, bytes] = {}
        self._expiry: dict[str, float] = {}
        self._soonest = math.inf  # no message expires before; spares a look at each of them in every pull
        self._done: dict[str, list[bytes] | Lost] = {}
        self._arrived = threading.Condition()

    def attach(self, pool: Pool) -> None:
        """Use ``pool``, whose replies come to :meth:`deliver`."""
        self._pool = pool

    def deliver(self, message_id: str, outcome: list[bytes] | Lost) -> None:
        """Take a reply from a worker; one that nobody waits for any more is dropped."""
        with self._arrived:
            if message_id in self._sent:
                self._done[message_id] = outcome
                self._arrived.notify_all()

    def set_run(self, run: Any) -> None:
        """Set the run this grid says it serves."""
        self._run = run

    @property
    def run(self) -> Any:
        """Run information."""
        return self._run

    def get_node_ids(self) -> Iterable[int]:
        """All nodes, in order of partition."""
        return range(FIRST_NODE_ID, FIRST_NODE_ID + self._num_nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages for their nodes and return their ids at once.

        Raises:
            ValueError: a node that does not exist, or content that cannot be sent.
        """
        return [self._push(message) for message in messages]

    def _push(self, message: Message) -> str:
        slot = message.metadata.dst_node_id - FIRST_NODE_ID
        if not 0 <= slot < self._num_nodes:
            raise ValueError(f"no node {message.metadata.dst_node_id}: this grid has {self._num_nodes}, from {FIRST_NODE_ID}")
        if self._pool is None:
            raise ValueError("this grid has no workers: it is to be used inside run_local only")
        self._counter += 1
        message_id = f"message-{self._counter}"
        compat.assign_message_id(message, message_id)
        frames = compat.encode_message(message)
        with self._arrived:
            self._sent[message_id] = frames[0]
            self._expiry[message_id] = message.metadata.created_at + message.metadata.ttl
            self._soonest = min(self._soonest, self._expiry[message_id])
        self._pool.submit(slot, message_id, frames)
        return message_id

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies to ``message_ids`` that are there, in order of arrival, each given out once; never waits."""
        wanted = set(message_ids)
        now = time.time()
        with self._arrived:
            ready = {message_id: self._done.pop(message_id) for message_id in [m for m in self._done if m in wanted]}
            envelopes = {message_id: self._forget(message_id) for message_id in ready}
            gone = wanted - ready.keys() - self._sent.keys()
            if now > self._soonest:
                gone |= {message_id for message_id in wanted & self._expiry.keys() if self._expiry[message_id] < now}
            for message_id in gone:
                self._forget(message_id)
        replies = [self._read(envelopes[message_id], outcome) for message_id, outcome in ready.items()]
        return replies + [compat.unavailable_reply(message_id, run_id=self._run.run_id, created_at=now) for message_id in sorted(gone)]

    def _forget(self, message_id: str) -> bytes:
        self._expiry.pop(message_id, None)
        return self._sent.pop(message_id, b"")

    def _read(self, envelope: bytes, outcome: list[bytes] | Lost) -> Message:
        if not isinstance(outcome, Lost):
            return compat.decode_message(outcome)
        name = "CLIENT_APP_CRASHED" if outcome.started else "NODE_UNAVAILABLE"
        message = compat.decode_metadata(envelope)
        reply = compat.error_reply(message, code=compat.error_code(name), reason=outcome.reason)
        compat.assign_message_id(reply, f"{message.metadata.message_id}-lost")
        return reply

    def wait_for_replies(self, message_ids: Collection[str], timeout_s: float) -> None:
        """See :class:`WaitingGrid`."""
        wanted = set(message_ids)
        with self._arrived:
            self._arrived.wait_for(lambda: not wanted.isdisjoint(self._done), timeout_s)
