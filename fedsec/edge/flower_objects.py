r"""Flower's objects as the gateway checks them: a reply is a tree of them, each named by its SHA-256. Pure.

1. An object is ``TYPE CHILD,CHILD,… LENGTH \\0 BODY``; its id is the SHA-256 of that, in hex. A tree lists each object's children.
2. A tree has at most 4096 places and is at most eight deep; an object has the same children wherever it stands, each once.
3. The root of a reply is a ``Message`` and nothing else in it is one. Its body repeats the metadata, and the ServerApp goes by those:
   they must be the ones that the gateway looked at when the message was announced.
4. The bodies of the other objects must be ones that Flower can read (``flower_records``).
5. What a reply unpacks to is bounded: names that share an array and arrays that share a chunk cost their sender once and the ServerApp as
   often as they are named.

Source: flwr 1.41, ``supercore/inflatable`` and ``app/message/message.py``; decision 0015, findings 1 and 10.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError as ProtobufError
from google.protobuf.unknown_fields import UnknownFieldSet

from fedsec.edge import fleet_pb2
from fedsec.edge.flower_records import check_record, uses
from fedsec.edge.refusal import Reason, Refused

MAX_OBJECTS = 4096
MAX_DEPTH = 8
MAX_HEAD_BYTES = 300_000
"""A head names at most ``MAX_OBJECTS`` children of 65 bytes."""

MESSAGE = "Message"
_HOLDS: Mapping[str, frozenset[str]] = {
    MESSAGE: frozenset({"RecordDict"}),
    "RecordDict": frozenset({"ArrayRecord", "MetricRecord", "ConfigRecord"}),
    "ArrayRecord": frozenset({"Array"}),
    "Array": frozenset({"ArrayChunk"}),
    "ArrayChunk": frozenset(),
    "MetricRecord": frozenset(),
    "ConfigRecord": frozenset(),
}
"""Kinds of objects, and of which kinds their children are."""

_ID = re.compile(r"[0-9a-f]{64}", re.ASCII)
_LENGTH = re.compile(rb"0|[1-9][0-9]{0,11}")
_SAME = ("run_id", "src_node_id", "dst_node_id", "reply_to_message_id", "group_id", "ttl", "message_type", "created_at", "src_task_id")
_COMPARED = (*_SAME, "dst_task_id")


@dataclass(frozen=True)
class Head:
    """The head of an object.

    Attributes:
        kind: for example ``Array``.
        children: ids.
        body_at: where the body begins.
    """

    kind: str
    children: tuple[str, ...]
    body_at: int


def is_object_id(text: str) -> bool:
    """Whether a text is a SHA-256 in the one spelling that Flower writes."""
    return _ID.fullmatch(text) is not None


def read_tree(tree: fleet_pb2.ObjectTree, *, most: int = MAX_OBJECTS) -> dict[str, tuple[str, ...]]:
    """The objects of a tree, each with its children, the root first.

    Args:
        tree: as it came.
        most: places in it.

    Raises:
        Refused: malformed, too large or too deep, or an object has different children in two places.
    """
    found: dict[str, tuple[str, ...]] = {}
    waiting, places = [(tree, 1)], 0
    while waiting:
        node, depth = waiting.pop()
        places += 1
        children = tuple(child.object_id for child in node.children)
        if places + len(children) > most or depth > MAX_DEPTH:
            raise Refused(Reason.MESSAGE, f"a message's tree has over {most} objects, or is over {MAX_DEPTH} deep")
        if not is_object_id(node.object_id) or len(set(children)) != len(children):
            raise Refused(Reason.MESSAGE, "the tree's object ids are not SHA-256 in hex, or one stands twice among the children of one")
        if found.setdefault(node.object_id, children) != children:
            raise Refused(Reason.MESSAGE, "an object has other children in another place of the tree")
        waiting += [(child, depth + 1) for child in node.children]
    return found


def read_head(content: bytes | memoryview, size: int | None = None) -> Head:
    """The head of an object.

    Args:
        content: of it, or its beginning.
        size: of the whole, if that is more.

    Raises:
        Refused: it is not one.
    """
    start = bytes(content[:MAX_HEAD_BYTES])
    end = start.find(b"\0")
    parts = start[:end].split(b" ") if end >= 0 else []
    if (
        len(parts) != 3
        or not start[:end].isascii()
        or not _LENGTH.fullmatch(parts[2])
        or int(parts[2]) != (len(content) if size is None else size) - end - 1
    ):
        raise Refused(Reason.MESSAGE, "an object is not of Flower's form")
    kind, children = parts[0].decode("ascii"), tuple(parts[1].decode("ascii").split(",")) if parts[1] else ()
    if kind not in _HOLDS:
        raise Refused(Reason.MESSAGE, "an object is of an unknown kind")
    return Head(kind, children, end + 1)


def check_object(content: bytes | memoryview, children: tuple[str, ...], *, root: fleet_pb2.Message | None) -> str:
    """Refuse an object that is not what its tree says; gives its kind. The caller compared the hash.

    Args:
        content: of the object.
        children: as declared in the tree.
        root: the message as it was announced, if this is the tree's root; else None.

    Raises:
        Refused: says what is wrong.
    """
    head = read_head(content)
    check_head(head, children, root=root)
    if root is not None:
        _check_root(bytes(content[head.body_at :]), len(children), root)
    check_record(head.kind, memoryview(content)[head.body_at :], head.children)
    return head.kind


def check_head(head: Head, children: tuple[str, ...], *, root: fleet_pb2.Message | None) -> None:
    """The part of :func:`check_object` that needs the head only; raises Refused."""
    if len(head.children) != len(children) or set(head.children) != set(children):
        raise Refused(Reason.MESSAGE, "an object's children are not the declared ones")
    if (head.kind == MESSAGE) is not (root is not None):
        raise Refused(Reason.MESSAGE, "the root of a tree is a Message, and nothing else in it is one")


def _check_root(body: bytes, children: int, outer: fleet_pb2.Message) -> None:
    try:
        inner = fleet_pb2.Message.FromString(body)
    except ProtobufError:
        raise Refused(Reason.MESSAGE, "the message's object cannot be read") from None
    if has_unknown(inner) or inner.HasField("content") or inner.metadata.message_id:
        raise Refused(Reason.MESSAGE, "the message's object holds what Flower does not put there")
    if _facts(inner.metadata) != _facts(outer.metadata):
        raise Refused(Reason.MESSAGE, "the metadata in the message's object are not those that it was announced with")
    if inner.HasField("error") != outer.HasField("error") or children != (0 if inner.HasField("error") else 1):
        raise Refused(Reason.MESSAGE, "a message holds either an error or one record")


def _facts(metadata: fleet_pb2.Metadata) -> list[Any]:
    return [(getattr(metadata, name), "task_id" in name and metadata.HasField(name)) for name in _COMPARED]  # type: ignore[arg-type]


def check_kinds(tree: Mapping[str, tuple[str, ...]], kinds: Mapping[str, str]) -> None:
    """Refuse a tree whose objects do not fit into each other; all of ``kinds`` are known.

    Raises:
        Refused: a child of a kind that its parent cannot hold.
    """
    for parent, children in tree.items():
        if any(kinds[child] not in _HOLDS[kinds[parent]] for child in children):
            raise Refused(Reason.MESSAGE, "an object holds one of a kind that it cannot hold")


def check_unpacked(
    root: str, kinds: Mapping[str, str], sizes: Mapping[str, int], small: Callable[[str], bytes | memoryview], *, more_bytes: int
) -> None:  # fmt: skip
    """Refuse a reply that unpacks to much more than was sent.

    Args:
        root: id of the message's object; all objects passed :func:`check_object`, and their kinds :func:`check_kinds`.
        kinds: of all objects, by id.
        sizes: bytes of each.
        small: the content of an object that is no chunk.
        more_bytes: so much more than what was sent it may be: a model may have equal arrays, all zeros say.

    Raises:
        Refused: it is more.
    """
    known: dict[str, int] = {}

    def unpacked(name: str) -> int:
        if name not in known:
            known[name] = sizes[name]
            if kinds[name] != "ArrayChunk":
                content = small(name)
                head = read_head(content)
                known[name] += sum(map(unpacked, uses(head.kind, memoryview(content)[head.body_at :], head.children)))
        return known[name]

    most = sum(sizes.values()) + more_bytes
    if (found := unpacked(root)) > most:
        raise Refused(Reason.SIZE, f"a reply that unpacks to {found} bytes, of which {sum(sizes.values())} were sent; at most {most}")


def has_unknown(message: Any) -> bool:
    """Whether a message, or one in it, has fields that are not declared in our ``fleet.proto``."""
    if len(UnknownFieldSet(message)):
        return True
    return any(has_unknown(inner) for inner in _inner(message))


def _inner(message: Any) -> Iterator[Any]:
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            yield from value if descriptor.is_repeated else (value,)
