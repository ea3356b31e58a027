"""What was delivered to each node, so that it gets, confirms and answers that and nothing else. One event loop uses it.

1. Object ids are hashes of contents, shared by all nodes: who may ask for any of them reads off another's small records by trying. Who
   may confirm any message deletes another's. So a node has the trees of its own messages, until it confirmed them.
2. A reply must answer a message that this node got, of the same run, and name no other task than that message did.
3. At most 64 messages a node, the oldest go first. One small file a node, on disk before the message goes out: a gateway that starts again
   knows them. What is missing is refused: fail closed, and the exchange's timeout deals with it.

Source: decision 0015, findings 1, 10 and 24.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fedsec.edge import fleet_pb2
from fedsec.edge.flower_objects import is_object_id, read_tree
from fedsec.edge.refusal import Reason, Refused
from fedsec.errors import StorageError
from fedsec.files import atomic_write_json

FORMAT = "fedsec/deliveries/v1"
MAX_MESSAGES = 64
MAX_SENT_OBJECTS = 1 << 16
"""Objects of a message of the ServerApp, which is believed more than a node."""


@dataclass(frozen=True)
class Delivered:
    """A message that a node got.

    Attributes:
        run_id: of it.
        src_task_id: who asked; None: not said.
        dst_task_id: who was asked; None: not said.
        objects: that the node may still get.
    """

    run_id: int
    src_task_id: int | None
    dst_task_id: int | None
    objects: frozenset[str]


class Deliveries:
    """All nodes' messages.

    Args:
        folder: exists; nobody else writes into it.

    Raises:
        StorageError: the folder cannot be read. A damaged file counts as empty.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._nodes: dict[int, dict[str, Delivered]] = {}
        try:
            for path in folder.iterdir():
                if path.name.isascii() and path.name.isdigit() and len(path.name) <= 20:
                    self._nodes[int(path.name)] = _read(path)
        except OSError as error:
            raise StorageError(f"cannot read {folder}: {error.strerror or error}") from error

    def note(self, node_id: int, answer: fleet_pb2.PullMessagesResponse) -> None:
        """A node is about to get an answer; it is on disk when this returns.

        Raises:
            Refused: the answer is not of Flower's form.
            StorageError: the file system refused.
        """
        if len(answer.messages_list) != len(answer.message_object_trees):
            raise Refused(Reason.SUPERLINK, "the SuperLink's answer has not as many trees as messages")
        known = dict(self._nodes.get(node_id, {}))
        for message, tree in zip(answer.messages_list, answer.message_object_trees, strict=True):
            known.pop(message.metadata.message_id, None)
            known[message.metadata.message_id] = _delivered(message.metadata, read_tree(tree, most=MAX_SENT_OBJECTS))
        while len(known) > MAX_MESSAGES:
            del known[next(iter(known))]
        self._nodes[node_id] = known
        atomic_write_json(self._folder / str(node_id), {"format": FORMAT, "messages": {name: _plain(one) for name, one in known.items()}})

    def knows(self, node_id: int, message_ids: Iterable[str]) -> bool:
        """Whether all of these were delivered to the node."""
        return self._nodes.get(node_id, {}).keys() >= set(message_ids)

    def check_object(self, node_id: int, run_id: int, object_id: str) -> None:
        """Refuse an object that is not of a message of this node; raises Refused."""
        if not any(one.run_id == run_id and object_id in one.objects for one in self._nodes.get(node_id, {}).values()):
            raise Refused(Reason.MESSAGE, "the object is of no message that this node got and has not confirmed")

    def check_message(self, node_id: int, run_id: int, message_id: str) -> Delivered:
        """Refuse a message that this node did not get; raises Refused."""
        found = self._nodes.get(node_id, {}).get(message_id)
        if found is None or found.run_id != run_id:
            raise Refused(Reason.MESSAGE, "the message is none that this node got")
        return found

    def confirmed(self, node_id: int, message_id: str) -> None:
        """The node has it in full: it needs no object of it any more. On disk with the next message: until then it may ask again."""
        known = self._nodes.get(node_id, {})
        if (found := known.get(message_id)) is not None:
            known[message_id] = Delivered(found.run_id, found.src_task_id, found.dst_task_id, frozenset())

    def forget(self, node_id: int) -> None:
        """The node is gone.

        Raises:
            StorageError: the file system refused.
        """
        self._nodes.pop(node_id, None)
        try:
            (self._folder / str(node_id)).unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"cannot remove what was delivered to a node: {error.strerror or error}") from error


def _delivered(metadata: fleet_pb2.Metadata, objects: Iterable[str]) -> Delivered:
    source = metadata.src_task_id if metadata.HasField("src_task_id") else None
    destination = metadata.dst_task_id if metadata.HasField("dst_task_id") else None
    return Delivered(metadata.run_id, source, destination, frozenset(objects))


def _plain(one: Delivered) -> dict[str, object]:
    tasks = [None if task is None else str(task) for task in (one.src_task_id, one.dst_task_id)]
    return {"run_id": str(one.run_id), "tasks": tasks, "objects": sorted(one.objects)}


def _read(path: Path) -> dict[str, Delivered]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            return {}
        found = {}
        for name, one in content["messages"].items():
            source, destination = (None if task is None else int(task) for task in one["tasks"])
            found[str(name)] = Delivered(int(one["run_id"]), source, destination, frozenset(filter(is_object_id, one["objects"])))
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
    return found
