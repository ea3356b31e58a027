"""What may stand in a forwarded call: the body speaks of the certificate's node and of nobody else, a message goes to the ServerApp only.

1. Flower checks that the caller is the node it names, and then believes the message inside: any node can command another by pushing a
   message that claims to be the server's. Here a pushed message is from the certificate's node, to the ServerApp, and answers one.
2. Bodies are decoded with the same field numbers and types as Flower's, by the same library: what is checked is what the SuperLink
   reads. A test compares both on hostile bytes. Requests that push, pull or confirm have no field that we do not know; of a pushed
   message only our own serialisation goes on.
3. Flower's headers are text of a form that cannot break out of an HTTP header; the key in them is the certificate's.

Source: flwr 1.41, ``superlink/routers/fleet``; design note FLOWER, "Holes inside a federation of authenticated nodes".
"""

from __future__ import annotations

import base64
import functools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives import serialization
from google.protobuf.message import DecodeError as ProtobufError

from fedsec.edge import fleet_pb2, paths
from fedsec.edge.flower_objects import has_unknown
from fedsec.edge.refusal import Reason, Refused
from fedsec.edge.signing import Call
from fedsec.signing import decode_public_key

SERVER_APP_NODE_ID = 1
"""Flower's node id of the ServerApp."""

_LENGTH_FIRST = 2
_OBJECT_CONTENT = 4 << 3 | 2
_OBJECT_TAGS = frozenset({1 << 3 | 2, 2 << 3, 3 << 3 | 2, _OBJECT_CONTENT, 5 << 3 | 2})
"""Node, run id, object id, content, session id: tags of PushObjectRequest's fields."""

MAX_RUNTIME_S = 86_400.0
"""How long a ClientApp may say that it ran."""

_TIMESTAMP = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?\+00:00", re.ASCII)
_BASE64 = re.compile(r"[A-Za-z0-9+/]{40,200}={0,2}", re.ASCII)


@dataclass(frozen=True)
class Node:
    """A node as the gateway knows it.

    Attributes:
        client_id: from its certificate.
        public_key: 33 bytes.
        node_id: the SuperLink's id for its key.
    """

    client_id: str
    public_key: bytes
    node_id: int


@dataclass(frozen=True)
class PushedObject:
    """An object of a reply, as it was pushed.

    Attributes:
        run_id: of the reply.
        object_id: 64 hex digits, if it is honest.
        session_id: that the gateway gave for the reply.
        content: a view into the body.
    """

    run_id: int
    object_id: str
    session_id: str
    content: memoryview


@dataclass(frozen=True)
class ObjectPlace:
    """Where an object is in a body that pushes it, as its beginning says.

    Attributes:
        run_id: as it stands there.
        object_id: as it stands there.
        tag_at: where the content's field begins.
        begin: where the content begins.
        end: where it ends.
    """

    run_id: int
    object_id: str
    tag_at: int
    begin: int
    end: int


@functools.lru_cache(maxsize=1 << 14)
def flower_public_key(public_key: bytes) -> bytes:
    """A key as Flower writes it: PEM.

    Raises:
        SignatureError: not a key.
    """
    key = decode_public_key(public_key)
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


@functools.lru_cache(maxsize=1 << 14)
def public_key_header(public_key: bytes) -> str:
    """A key as Flower writes it into its header: base64 of the PEM."""
    return base64.b64encode(flower_public_key(public_key)).decode("ascii")


def check_headers(call: Call, public_key: bytes) -> None:
    """Refuse headers that are not this node's.

    Raises:
        Refused: another key, or text of another form.
    """
    if call.public_key != public_key_header(public_key):
        raise Refused(Reason.PUBLIC_KEY, "Flower's key is not the certificate's")
    if not _TIMESTAMP.fullmatch(call.timestamp) or not _BASE64.fullmatch(call.flower_signature):
        raise Refused(Reason.MALFORMED, "Flower's time stamp or signature is not of its form")


def check_body(path: str, body: bytes | bytearray, node: Node) -> Any:
    """Refuse a body that speaks of another node, or a message that does not go from the node to the ServerApp.

    Args:
        path: one of ``paths.BODY_LIMITS``.
        body: the whole.
        node: the certificate's.

    Returns:
        The request as it was read; of ``push-object`` a :class:`PushedObject`.

    Raises:
        Refused: says what is wrong; nothing of the body is repeated.
    """
    if path == paths.PUSH_OBJECT:
        return _pushed_object(body, node)
    kind, check = _CHECKS[path]
    try:
        request = kind.FromString(bytes(body))
    except (ProtobufError, ValueError):
        raise Refused(Reason.MALFORMED, "the body is not a message of this path") from None
    if path in _WHOLE and has_unknown(request):
        raise Refused(Reason.MALFORMED, "the body has fields that are not known here; is it of a newer Flower?")
    check(request, node)
    return request


def _pushed_object(body: bytes | bytearray, node: Node) -> PushedObject:
    """A PushObjectRequest whose largest part is not copied.

    Only what Flower's own protobuf library writes is read: each field at most once, one byte for a tag, texts and bytes that end within
    the body. Anything else is refused.
    """
    place, end, before, view = 0, len(body), 0, memoryview(body)
    kept: list[memoryview] = []
    content = view[:0]
    while place < end:
        tag, start = body[place], place
        value, place = _varint(body, place + 1)
        if tag not in _OBJECT_TAGS or tag <= before or value is None:
            raise Refused(Reason.MALFORMED, "the body is not an object as Flower pushes it")
        before = tag
        if tag & 7 == _LENGTH_FIRST:
            place += value
            if place > end:
                raise Refused(Reason.MALFORMED, "the body is cut short")
        if tag == _OBJECT_CONTENT:
            content = view[place - value : place]
        else:
            kept.append(view[start:place])
    try:
        request = fleet_pb2.PushObjectRequest.FromString(b"".join(kept))
    except (ProtobufError, ValueError):
        raise Refused(Reason.MALFORMED, "the body is not a message of this path") from None
    if has_unknown(request):
        raise Refused(Reason.MALFORMED, "the body has fields that are not known here; is it of a newer Flower?")
    _check_same(request.node.node_id, node)
    return PushedObject(request.run_id, request.object_id, request.session_id, content)


def find_content(first: bytes | memoryview, size: int) -> ObjectPlace | None:
    """Where the object is in the body of a ``push-object``; None if its beginning does not say so in the one spelling that Flower writes.

    Args:
        first: the beginning of the body.
        size: of the whole body.
    """
    place, end, before = 0, len(first), 0
    while place < end:
        tag, start = first[place], place
        value, place = _varint(first, place + 1)
        if tag not in _OBJECT_TAGS or tag <= before or value is None:
            return None
        before = tag
        if tag == _OBJECT_CONTENT:
            return _place(bytes(first[:start]), place, place + value) if place + value <= size else None
        place += value if tag & 7 == _LENGTH_FIRST else 0
    return None


def _place(fields: bytes, begin: int, end: int) -> ObjectPlace | None:
    try:
        request = fleet_pb2.PushObjectRequest.FromString(fields)
    except (ProtobufError, ValueError):
        return None
    return ObjectPlace(request.run_id, request.object_id, len(fields), begin, end)


def pushed_without_content(rest: bytes | bytearray, place: ObjectPlace, node: Node) -> PushedObject:
    """A PushObjectRequest whose content is elsewhere; the fields around it are read as those of any other.

    Args:
        rest: the body without the content.
        place: where that was.
        node: the certificate's.

    Raises:
        Refused: as :func:`check_body`.
    """
    return _pushed_object(rest[: place.tag_at] + bytes((_OBJECT_CONTENT, 0)) + rest[place.begin :], node)


def _varint(body: bytes | bytearray | memoryview, place: int) -> tuple[int | None, int]:
    """A number of 64 bits in its one spelling, and the place after it; None: something else."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(body):
            return None, place
        byte = body[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (None if (byte == 0 and shift) or value >= 1 << 64 else value), place
    return None, place


def _check_same(claimed: int, node: Node) -> None:
    if claimed != node.node_id:
        raise Refused(Reason.NODE, "the body names another node than the certificate's")


def _check_activation(request: fleet_pb2.ActivateNodeRequest, node: Node) -> None:
    if request.public_key != flower_public_key(node.public_key):
        raise Refused(Reason.PUBLIC_KEY, "the body's key is not the certificate's")


def _check_deactivation(request: fleet_pb2.DeactivateNodeRequest, node: Node) -> None:
    _check_same(request.node_id, node)


def _check_node(request: Any, node: Node) -> None:
    _check_same(request.node.node_id, node)


def _check_push(request: fleet_pb2.PushMessagesRequest, node: Node) -> None:
    _check_same(request.node.node_id, node)
    if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
        raise Refused(Reason.MESSAGE, "a push holds exactly one message and the tree of its objects")
    metadata = request.messages_list[0].metadata
    if metadata.src_node_id != node.node_id:
        raise Refused(Reason.MESSAGE, "the message's source is another node: no node speaks for another or for the server")
    if metadata.dst_node_id != SERVER_APP_NODE_ID:
        raise Refused(Reason.MESSAGE, "the message does not go to the ServerApp: no node commands another")
    if not metadata.reply_to_message_id:
        raise Refused(Reason.MESSAGE, "the message answers none")
    if not metadata.message_id or request.message_object_trees[0].object_id != metadata.message_id:
        raise Refused(Reason.MESSAGE, "the tree of objects is not the message's")
    if not (math.isfinite(metadata.ttl) and math.isfinite(metadata.created_at)):
        raise Refused(Reason.MESSAGE, "the message has a time that is none")
    runtimes = [min(max(value, 0.0), MAX_RUNTIME_S) if math.isfinite(value) else 0.0 for value in request.clientapp_runtime_list[:1]]
    request.ClearField("clientapp_runtime_list")
    request.clientapp_runtime_list.extend(runtimes)


_CHECKS: Mapping[str, tuple[Any, Callable[[Any, Node], None]]] = {
    paths.ACTIVATE_NODE: (fleet_pb2.ActivateNodeRequest, _check_activation),
    paths.DEACTIVATE_NODE: (fleet_pb2.DeactivateNodeRequest, _check_deactivation),
    paths.SEND_NODE_HEARTBEAT: (fleet_pb2.SendNodeHeartbeatRequest, _check_node),
    paths.PULL_MESSAGES: (fleet_pb2.PullMessagesRequest, _check_node),
    paths.PUSH_MESSAGES: (fleet_pb2.PushMessagesRequest, _check_push),
    paths.GET_RUN: (fleet_pb2.GetRunRequest, _check_node),
    paths.GET_FAB: (fleet_pb2.GetFabRequest, _check_node),
    paths.PULL_OBJECT: (fleet_pb2.PullObjectRequest, _check_node),
    paths.CONFIRM_MESSAGE_RECEIVED: (fleet_pb2.ConfirmMessageReceivedRequest, _check_node),
}
_WHOLE = frozenset({paths.PUSH_MESSAGES, paths.PULL_OBJECT, paths.CONFIRM_MESSAGE_RECEIVED})
"""Requests that our ``fleet.proto`` declares whole."""

assert _CHECKS.keys() | {paths.PUSH_OBJECT} == paths.BODY_LIMITS.keys()
