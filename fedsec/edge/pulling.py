"""PullMessages at the gateway: held until there is a message, on disk before it goes out, served again until it is confirmed.

1. One question at a time goes to the SuperLink for a node, and its answer is written down by a task of its own: a caller that is gone
   stops the asking, but never an answer that is on its way.
2. The SuperLink is asked every quarter of a second, and at once when the ServerApp says that it has sent messages (``postbox``).
3. The call returns with no messages after ``hold_s``, when a newer one takes its place, and when the gateway stops.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass

from google.protobuf.message import DecodeError as ProtobufError

from fedsec.edge import fleet_pb2
from fedsec.edge.fleet_calls import Node
from fedsec.edge.gateway_state import GatewayState
from fedsec.edge.longpoll import Pulled, poll_after_s
from fedsec.edge.signing import DELIVERY_BYTES, Call
from fedsec.edge.upstream import Response, UpstreamError

OBJECT_HOLD_S = 8.0
FIRST_OBJECT_WAIT_S, LONGEST_OBJECT_WAIT_S = 0.02, 0.5
_SHORT = 64
"""Bytes of an answer without an object, at most; longer ones hold one and are not read here."""
_OK = 200


@dataclass(frozen=True)
class Forwarded:
    """What goes back to the agent.

    Attributes:
        status: HTTP status.
        content_type: of the body.
        body: the whole.
        delivery: not empty: to be confirmed.
    """

    status: int
    content_type: str
    body: bytes
    delivery: bytes = b""


async def pull_messages(state: GatewayState, node: Node, call: Call, body: bytes) -> Forwarded:
    """Answer a PullMessages call, sooner or later.

    Args:
        state: of the gateway.
        node: whose messages.
        call: with Flower's headers, which are good for five minutes, longer than a call is held.
        body: PullMessagesRequest.

    Raises:
        UpstreamError: the SuperLink does not answer.
        Refused: it does not know the node.
    """
    ousted = asyncio.Event()
    ticket = state.holders.take(node.node_id, ousted.set)
    try:
        ends_at = state.monotonic() + state.settings.hold_s
        while True:
            asked = state.asked  # taken before the question: what is sent while it is under way is asked for again
            question = asyncio.create_task(_ask(state, node, call, body))
            state.keep_task(question)
            answer = await asyncio.shield(question)
            if answer.delivery or answer.status != _OK:
                return answer
            left = ends_at - state.monotonic()
            if left <= 0 or ousted.is_set() or state.stopping.is_set():
                return answer
            await _pause(min(left, poll_after_s(state.quiet_s(node.node_id))), ousted, state.stopping, asked)
    finally:
        state.holders.leave(node.node_id, ticket)


async def pull_object(state: GatewayState, call: Call, body: bytes | bytearray) -> Response:
    """Answer a PullObject call: wait a while for an object that the ServerApp has announced and not sent yet.

    Flower's nodes sleep a second for each "not yet", and the objects of a message are a moment later than the message.

    Raises:
        UpstreamError: the SuperLink does not answer.
        Refused: it does not know the node.
    """
    ends_at, wait_s = state.monotonic() + OBJECT_HOLD_S, FIRST_OBJECT_WAIT_S
    while True:
        response = await state.ask(call, body)
        left_s = ends_at - state.monotonic()
        if left_s <= 0 or state.stopping.is_set() or not _is_under_way(response):
            return response
        await _pause(min(left_s, wait_s), state.stopping)
        wait_s = min(2 * wait_s, LONGEST_OBJECT_WAIT_S)


def _is_under_way(response: Response) -> bool:
    """Whether the SuperLink knows the object and waits for it itself."""
    if response.status != _OK or len(response.body) > _SHORT:
        return False
    try:
        found = fleet_pb2.PullObjectResponse.FromString(response.body)
    except ProtobufError:
        return False  # it goes on as it is
    return bool(found.object_found) and not found.object_available


async def _pause(seconds: float, *events: asyncio.Event) -> None:
    """Wait, or until one of the events is set."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


async def _ask(state: GatewayState, node: Node, call: Call, body: bytes) -> Forwarded:
    """Ask the SuperLink once, unless an answer is waiting; what it gives is on disk when this returns."""
    async with state.pull_lock(node.node_id):
        waiting = state.spool.waiting(node.node_id)
        if waiting is None:
            response = await state.ask(call, body)
            if response.status != _OK or not _messages(response):
                return Forwarded(response.status, response.content_type, response.body)
            waiting = Pulled(secrets.token_bytes(DELIVERY_BYTES), response.content_type, response.body)
            await asyncio.to_thread(_keep, state, node.node_id, waiting)
            state.note_use(node.node_id)
        elif not state.deliveries.knows(node.node_id, waiting.message_ids):  # the gateway was killed between the two files
            await asyncio.to_thread(_keep, state, node.node_id, waiting)
        return Forwarded(_OK, waiting.content_type, waiting.body, waiting.delivery)


def _keep(state: GatewayState, node_id: int, pulled: Pulled) -> None:
    """Write down what the node is about to get: the answer first, so that it is not lost, then what it may ask for by it."""
    state.spool.keep(node_id, pulled)
    state.deliveries.note(node_id, fleet_pb2.PullMessagesResponse.FromString(pulled.body))


def _messages(response: Response) -> bool:
    """Whether there are any."""
    if not response.body:
        return False
    try:
        return bool(fleet_pb2.PullMessagesResponse.FromString(response.body).messages_list)
    except ProtobufError:
        raise UpstreamError("the SuperLink's answer to PullMessages cannot be read") from None
