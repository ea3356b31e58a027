"""Held PullMessages calls: what was pulled and not yet confirmed, and when to ask the SuperLink again.

1. The SuperLink forgets a message once it is pulled. So an answer with messages is on disk before it goes anywhere, and it is served
   again until the node's agent names its delivery in a later call; a gateway that is killed serves it again after its start.
2. What is left: killed between the SuperLink's answer and the file, the message is lost; the exchange's timeout deals with it.
3. A node has one held call. A second one takes its place, and the first is answered with no messages.
4. A node that was quiet for two minutes is asked for less often.

One file a node, ``<node id>``: ``delivery (32) ‖ length of content type (2) ‖ content type ‖ body``, then SHA-256 of all that.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError as ProtobufError

from fedsec.edge import fleet_pb2
from fedsec.edge.signing import DELIVERY_BYTES
from fedsec.errors import StorageError
from fedsec.files import atomic_write_bytes, fsync_folder

POLL_S = 0.25
"""How often the SuperLink is asked for a node that is in use; every 50 ms would cost it half a core for three nodes."""

IDLE_POLL_S = 1.0
QUIET_AFTER_S = 120.0
MAX_SPOOL_BYTES = 16 * 1024 * 1024
MAX_SPOOL_TOTAL = 1024 * 1024 * 1024
"""Of all nodes together."""

_HASH_BYTES = 32


@dataclass(frozen=True)
class Pulled:
    """An answer of the SuperLink that holds messages.

    Attributes:
        delivery: 32 random bytes that stand for this answer.
        content_type: of the body.
        body: PullMessagesResponse.
    """

    delivery: bytes
    content_type: str
    body: bytes

    @functools.cached_property
    def message_ids(self) -> tuple[str, ...]:
        """Which messages it holds; none if it cannot be read."""
        try:
            messages = fleet_pb2.PullMessagesResponse.FromString(self.body).messages_list
        except ProtobufError:
            return ()
        return tuple(message.metadata.message_id for message in messages)


def encode_pulled(pulled: Pulled) -> bytes:
    """The content of a spool file."""
    kind = pulled.content_type.encode("utf-8")
    data = pulled.delivery + len(kind).to_bytes(2, "big") + kind + pulled.body
    return data + hashlib.sha256(data).digest()


def decode_pulled(data: bytes) -> Pulled:
    """Read a spool file.

    Raises:
        StorageError: it is damaged.
    """
    content, check = data[:-_HASH_BYTES], data[-_HASH_BYTES:]
    if len(content) < DELIVERY_BYTES + 2 or hashlib.sha256(content).digest() != check:
        raise StorageError("a kept answer is damaged")
    start = DELIVERY_BYTES + 2
    end = start + int.from_bytes(content[DELIVERY_BYTES:start], "big")
    try:
        kind = content[start:end].decode("utf-8")
    except UnicodeDecodeError:
        raise StorageError("a kept answer is damaged") from None
    return Pulled(content[:DELIVERY_BYTES], kind, content[end:])


class Spool:
    """The answers that were not confirmed yet, one file a node.

    Args:
        folder: exists; nobody else writes into it.

    Raises:
        StorageError: a file cannot be read. A damaged one is moved aside (``.damaged``): the exchange's timeout deals with its message.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept: dict[int, Pulled] = {}
        try:
            for path in sorted(folder.iterdir()):
                if path.name.isascii() and path.name.isdigit() and len(path.name) <= 20:
                    self._load(path)
        except OSError as error:
            raise StorageError(f"cannot read the spool {folder}: {error.strerror or error}") from error

    def _load(self, path: Path) -> None:
        try:
            self._kept[int(path.name)] = decode_pulled(path.read_bytes())
        except StorageError:
            path.rename(path.with_suffix(".damaged"))

    def __len__(self) -> int:
        return len(self._kept)

    def _bytes(self) -> int:
        return sum(len(pulled.body) for pulled in list(self._kept.values()))

    def waiting(self, node_id: int) -> Pulled | None:
        """What the node has not confirmed."""
        return self._kept.get(node_id)

    def keep(self, node_id: int, pulled: Pulled) -> None:
        """Write an answer down; it is on disk when this returns.

        Raises:
            StorageError: the file system refused.
        """
        if len(pulled.body) > MAX_SPOOL_BYTES:
            raise StorageError(f"an answer of {len(pulled.body)} bytes is over the limit of {MAX_SPOOL_BYTES}")
        if self._bytes() + len(pulled.body) > MAX_SPOOL_TOTAL:
            raise StorageError(f"unconfirmed answers would have over {MAX_SPOOL_TOTAL} bytes")
        atomic_write_bytes(self._folder / str(node_id), encode_pulled(pulled), mode=0o600)
        self._kept[node_id] = pulled

    def confirm(self, node_id: int, delivery: bytes) -> bool:
        """Forget an answer that the node has; False if another or none is waiting.

        Raises:
            StorageError: the file system refused; the answer is still waiting.
        """
        pulled = self._kept.get(node_id)
        if pulled is None or pulled.delivery != delivery:
            return False
        try:
            (self._folder / str(node_id)).unlink(missing_ok=True)
            fsync_folder(self._folder)
        except OSError as error:
            raise StorageError(f"cannot remove a kept answer: {error.strerror or error}") from error
        del self._kept[node_id]
        return True


class Holders:
    """Which call holds each node's PullMessages: the newest."""

    def __init__(self) -> None:
        self._newest: dict[int, int] = {}
        self._ousted: dict[tuple[int, int], Callable[[], None]] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._newest)

    def take(self, node_id: int, on_ousted: Callable[[], None]) -> int:
        """Hold the node's place; whoever held it is told so.

        Args:
            node_id: whose.
            on_ousted: called once if another call takes the place.

        Returns:
            A ticket for :meth:`holds` and :meth:`leave`.
        """
        self._next += 1
        previous = self._newest.get(node_id)
        self._newest[node_id] = self._next
        self._ousted[node_id, self._next] = on_ousted
        if previous is not None:
            self._ousted.pop((node_id, previous))()
        return self._next

    def holds(self, node_id: int, ticket: int) -> bool:
        """Whether the place is still this call's."""
        return self._newest.get(node_id) == ticket

    def oust(self, node_id: int) -> None:
        """End the node's held call, if there is one."""
        ticket = self._newest.get(node_id)
        if ticket is not None:
            self._ousted[node_id, ticket]()

    def leave(self, node_id: int, ticket: int) -> None:
        """Give the place up; nothing happens if it is another's by now."""
        if self._newest.get(node_id) == ticket:
            del self._newest[node_id]
        self._ousted.pop((node_id, ticket), None)


def poll_after_s(quiet_s: float) -> float:
    """How long to wait before asking the SuperLink again.

    Args:
        quiet_s: seconds since the node last got a message or called anything else than PullMessages and heartbeats.
    """
    return POLL_S if quiet_s < QUIET_AFTER_S else IDLE_POLL_S
