"""A ``Grid`` that loses, delays and spoils messages, as a rule says; around any grid that can wait.

1. The rule sees partition, group id (the round) and message type, nothing else, so what fails does not depend on timing.
2. ``drop``: the node never hears of the message. ``drop-after``: it does its work, and the reply is lost. In both cases there is no
   reply, ever: the caller's deadline decides.
3. ``delay``: the reply comes that much later than it would have. ``error``: the node answers with an error and does nothing.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from typing import Any, Protocol

from flwr.app import Message

from fedsec.flower import compat
from fedsec.flower.grid import FIRST_NODE_ID, WaitingGrid


class FaultLike(Protocol):
    """What goes wrong with one message; ``fedsec.sim.faults.Fault`` is one."""

    @property
    def kind(self) -> str:
        """``drop``, ``drop-after``, ``delay`` or ``error``."""

    @property
    def delay_s(self) -> float:
        """Seconds, for ``delay``."""


class FaultRule(Protocol):
    """Says what goes wrong; ``fedsec.sim.faults.FaultPlan`` is one."""

    def decide(self, *, partition: int, group_id: str, message_type: str) -> FaultLike | None:
        """What goes wrong with this message, if anything does."""


class FaultyGrid(WaitingGrid):
    """``inner``, with the faults of ``rule``."""

    def __init__(self, inner: WaitingGrid, rule: FaultRule) -> None:
        self._inner = inner
        self._rule = rule
        self._counter = 0
        self._silent: dict[str, float] = {}  # answered by nobody, until they expire
        self._losing: dict[str, float] = {}  # under way; the reply will be lost
        self._slow: dict[str, float] = {}  # under way; the reply will be held back
        self._held: dict[str, tuple[float, Message]] = {}  # replies, and when they may be seen

    def set_run(self, run: Any) -> None:
        """See ``Grid``."""
        self._inner.set_run(run)

    @property
    def run(self) -> Any:
        """See ``Grid``."""
        return self._inner.run

    def get_node_ids(self) -> Iterable[int]:
        """See ``Grid``; a node that drops messages is still listed."""
        return self._inner.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Push what the rule lets through; every message gets an id."""
        return [self._push(message) for message in messages]

    def _push(self, message: Message) -> str:
        metadata = message.metadata
        fault = self._rule.decide(
            partition=metadata.dst_node_id - FIRST_NODE_ID, group_id=metadata.group_id, message_type=metadata.message_type
        )
        expiry = metadata.created_at + metadata.ttl
        if fault is None or fault.kind in ("drop-after", "delay"):
            (message_id,) = self._inner.push_messages([message])
            if fault is not None and fault.kind == "delay":
                self._slow[message_id] = fault.delay_s
            elif fault is not None:
                self._losing[message_id] = expiry
            return message_id
        self._counter += 1
        message_id = f"faulty-{self._counter}"
        compat.assign_message_id(message, message_id)
        if fault.kind == "drop":
            self._silent[message_id] = expiry
        else:
            reply = compat.error_reply(message, code=compat.error_code("CLIENT_APP_RAISED_EXCEPTION"), reason="injected fault")
            compat.assign_message_id(reply, f"{message_id}-reply")
            self._held[message_id] = (0.0, reply)
        return message_id

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that the faults let through; see ``LocalGrid``."""
        wanted = set(message_ids)
        now = time.monotonic()
        replies: list[Message] = []
        for reply in self._inner.pull_messages(wanted - self._silent.keys() - self._held.keys()):
            message_id = reply.metadata.reply_to_message_id
            if message_id in self._losing:
                self._silent[message_id] = self._losing.pop(message_id)
            elif message_id in self._slow:
                self._held[message_id] = (now + self._slow.pop(message_id), reply)
            else:
                replies.append(reply)
        due = [message_id for message_id, (when, _) in self._held.items() if message_id in wanted and when <= now]
        replies += [self._held.pop(message_id)[1] for message_id in due]
        return replies + self._expired(wanted)

    def never_answered(self, message_ids: Collection[str]) -> set[str]:
        """Those of ``message_ids`` that the rule lost for good."""
        return set(message_ids) & self._silent.keys()

    def _expired(self, wanted: set[str]) -> list[Message]:
        now = time.time()
        gone = [message_id for message_id, expiry in self._silent.items() if expiry < now and message_id in wanted]
        for message_id in gone:
            del self._silent[message_id]
        return [compat.unavailable_reply(message_id, run_id=self.run.run_id, created_at=now) for message_id in gone]

    def wait_for_replies(self, message_ids: Collection[str], timeout_s: float) -> None:
        """See ``WaitingGrid``."""
        wanted = set(message_ids)
        now = time.monotonic()
        waits = [when - now for message_id, (when, _) in self._held.items() if message_id in wanted]
        self._inner.wait_for_replies(wanted - self._silent.keys() - self._held.keys(), max(0.0, min([timeout_s, *waits])))
