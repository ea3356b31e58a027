"""PushMessages and PushObject at the gateway: what becomes of a reply, step by step (``collecting`` has the rules).

1. An announcement is answered here; nothing goes to the SuperLink.
2. The object that completes a reply is acknowledged when the SuperLink has all of it. If that fails, the repetition of any object of the
   reply tries again; a caller that is gone does not stop it half way.
3. A reply that the SuperLink does not want any more, as its run ended, is dropped: ``stored`` is false then, which costs the SuperNode that
   one message and not its loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError as ProtobufError

from fedsec.edge import fleet_pb2, paths
from fedsec.edge.collecting import Collection
from fedsec.edge.fleet_calls import Node, PushedObject
from fedsec.edge.gateway_state import GatewayState
from fedsec.edge.intake import Intake
from fedsec.edge.pulling import Forwarded
from fedsec.edge.refusal import Reason, Refused
from fedsec.edge.signing import Call
from fedsec.edge.upstream import PROTOBUF, Response, UpstreamError

SENDS_AT_A_TIME = 4
"""Objects of one reply on their way to the SuperLink."""

_OK = 200
_SERVER_FAULT = 500


async def push_messages(state: GatewayState, node: Node, request: fleet_pb2.PushMessagesRequest) -> Forwarded:
    """Take an announcement.

    Raises:
        Refused: it answers no message that the node got, or its tree is malformed.
        StorageError: the file system refused.
    """
    metadata = request.messages_list[0].metadata
    asked = state.deliveries.check_message(node.node_id, metadata.run_id, metadata.reply_to_message_id)
    # The SuperLink leaves out who asked; the ClientApp reads it inside the message and names it. It decides nothing in flwr 1.41.
    wrong_source = metadata.HasField("src_task_id") and metadata.src_task_id != asked.dst_task_id
    wrong_asker = asked.src_task_id is not None and metadata.HasField("dst_task_id") and metadata.dst_task_id != asked.src_task_id
    if wrong_source or wrong_asker:
        raise Refused(Reason.MESSAGE, "the reply names another task than the message that it answers")
    state.note_use(node.node_id)
    async with state.reply_lock(node.node_id):
        found = await asyncio.to_thread(state.collector.announce, node.node_id, request)
    answer = fleet_pb2.PushMessagesResponse(
        reconnect=fleet_pb2.Reconnect(reconnect=5),
        results={found.root: 0},
        objects_to_push=found.missing(),
        session_id=found.session_id,
    )
    return Forwarded(_OK, PROTOBUF, answer.SerializeToString())


async def push_object(
    state: GatewayState, node: Node, call: Call, pushed: PushedObject, check_again: Callable[[], None], intake: Intake | None = None
) -> Forwarded:
    """Take an object, and hand the reply over if it was the last one.

    Args:
        state: of the gateway.
        node: whose.
        call: with Flower's headers.
        pushed: the object.
        check_again: refuses if the caller may not be served any more; called right before the SuperLink hears of the reply.
        intake: what wrote its content into a file while it came; None: the content is in ``pushed``.

    Raises:
        Refused: the object is not declared, or not what was declared.
        UpstreamError: the SuperLink does not answer; the object is kept, and may be sent again.
        StorageError: the file system refused.
    """
    found = state.collector.find(node.node_id, pushed.session_id, pushed.run_id, pushed.object_id)
    state.note_use(node.node_id)
    if pushed.object_id in found.missing():
        if intake is not None:
            await asyncio.to_thread(state.collector.adopt, found, intake)
        else:
            await asyncio.to_thread(state.collector.take, node.node_id, found, pushed.object_id, pushed.content)
    stored = True
    if not found.done and not found.missing():
        task = asyncio.create_task(_hand_over(state, node, call, found, check_again))
        state.keep_task(task)
        stored = await asyncio.shield(task)
    return Forwarded(_OK, PROTOBUF, fleet_pb2.PushObjectResponse(stored=stored).SerializeToString())


async def _hand_over(state: GatewayState, node: Node, call: Call, found: Collection, check_again: Callable[[], None]) -> bool:
    """Announce a reply that is whole, and send its objects; False: the SuperLink does not want it any more."""
    async with found.lock:
        if found.done:
            return True
        try:
            await asyncio.to_thread(state.collector.check_whole, found)
        except Refused:
            state.collector.drop(found)
            raise
        check_again()
        answer = await state.ask(call, found.request.SerializeToString(), path=paths.PUSH_MESSAGES)
        if not _wanted(answer):
            state.collector.drop(found)
            return False
        told = _read(fleet_pb2.PushMessagesResponse, answer)
        await _send_all(state, node, call, found, told)
        await asyncio.to_thread(_finish, state, node, found)
        state.keep_task(asyncio.create_task(asyncio.to_thread(state.collector.tidy, found)))
        state.metrics.count("replies_total")
        return True


def _finish(state: GatewayState, node: Node, found: Collection) -> None:
    state.postbox.answered(found.message.metadata.reply_to_message_id)
    state.collector.finish(node.node_id, found)


async def _send_all(state: GatewayState, node: Node, call: Call, found: Collection, told: fleet_pb2.PushMessagesResponse) -> None:
    """The objects that the SuperLink asks for, some at a time; the root goes last, as in flwr, where children are first."""
    waiting, gate = set(told.objects_to_push), asyncio.Semaphore(SENDS_AT_A_TIME)

    async def send(object_id: str) -> None:
        async with gate:
            if not await _send(state, node, call, found, object_id, told.session_id):
                raise UpstreamError("the SuperLink did not take an object of a reply")

    names = [name for name in reversed(found.tree) if name in waiting and name != found.root]
    for failed in await asyncio.gather(*map(send, names), return_exceptions=True):
        if failed is not None:
            raise failed
    if found.root in waiting:
        await send(found.root)


async def _send(state: GatewayState, node: Node, call: Call, found: Collection, object_id: str, session_id: str) -> bool:
    content = await asyncio.to_thread(state.collector.content, found, object_id)
    head = fleet_pb2.PushObjectRequest(
        node=fleet_pb2.Node(node_id=node.node_id), run_id=found.message.metadata.run_id, object_id=object_id, session_id=session_id
    ).SerializeToString()
    length = _varint(len(content))
    answer = await state.ask(call, (head, b"\x22" + length, content), path=paths.PUSH_OBJECT)  # field 4, object_content
    return _wanted(answer) and bool(_read(fleet_pb2.PushObjectResponse, answer).stored)


def _wanted(answer: Response) -> bool:
    """Whether the SuperLink took it; False: it never will.

    Raises:
        UpstreamError: it might, later.
    """
    if answer.status >= _SERVER_FAULT:
        raise UpstreamError(f"the SuperLink answers a reply with HTTP {answer.status}")
    return answer.status == _OK


def _read(kind: Any, answer: Response) -> Any:
    try:
        return kind.FromString(answer.body)
    except ProtobufError:
        raise UpstreamError("the SuperLink's answer to a reply cannot be read") from None


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))
