"""The agent's loopback endpoint: the Fleet calls of its own SuperNode, and of nobody else.

1. POST on exactly the paths of ``paths.py``; everything else is 404 and goes nowhere.
2. The caller signs with the key of this start, which only our SuperNode has; another local process is refused.
3. Answers about runs and FABs pass through ``agent_guard``.
4. What the gateway served is acknowledged when the SuperNode has shown that it took it: by its next pull or its confirmation. A SuperNode
   that starts anew gets an unacknowledged answer again.
5. Every call is answered within the 30 s that Flower waits. A large transfer that takes longer goes on, and the repetition joins it.

Source: ASGI 3.0; flwr 1.41's Fleet client; design note FLOWER.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import hmac
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.message import DecodeError as ProtobufError

from fedsec.edge import fleet_pb2
from fedsec.edge.agent_channel import CallFailedError
from fedsec.edge.agent_guard import RunGuard
from fedsec.edge.agent_link import Link
from fedsec.edge.agent_status import Status
from fedsec.edge.edge_client import Answer
from fedsec.edge.loopback import Loopback
from fedsec.edge.paths import (
    ACTIVATE_NODE,
    BODY_LIMITS,
    CONFIRM_MESSAGE_RECEIVED,
    DEACTIVATE_NODE,
    GET_FAB,
    GET_RUN,
    PULL_MESSAGES,
    PULL_OBJECT,
    PUSH_MESSAGES,
    PUSH_OBJECT,
    SEND_NODE_HEARTBEAT,
)
from fedsec.errors import DecodeError

_logger = logging.getLogger(__name__)

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

ANSWER_WITHIN_S = 28.0
"""Flower's client waits for 30 s."""
HEARTBEAT_WITHIN_S = 4.0
"""Flower's client waits for 5 s."""
OUTAGE_WITHIN_S = 20.0
TRANSFER_WITHIN_S = 600.0
KEPT_S = 60.0
"""How long the answer of a transfer is kept for a SuperNode that gave up; it waits 20 s at most before it asks again."""
CLOCK_SLACK_S = 10.0
"""Both clocks are this machine's; a request may wait a little."""
SEEN_SIGNATURES = 1 << 14
"""Each counts once; so many are made in 10 s by nobody."""
TEXT = "text/plain; charset=utf-8"
_MAY_FAIL = frozenset({PUSH_MESSAGES, PUSH_OBJECT, PULL_OBJECT, CONFIRM_MESSAGE_RECEIVED, DEACTIVATE_NODE})
"""Calls whose failure costs the SuperNode one message, and not its loop."""


class FleetApp:
    """The endpoint, as an ASGI application.

    Args:
        link: to the gateway.
        guard: decides about runs and FABs.
        loopback: of this start.
        status: told what happens.
        clock: this machine's, aware.
        object_bytes: most bytes of one body.
        restart_node: has the SuperNode start anew; must not block.

    Attributes:
        node_id: Flower's id of the node; 0 before it is known. It goes into no log and no file.
    """

    def __init__(
        self,
        link: Link,
        guard: RunGuard,
        loopback: Loopback,
        status: Status,
        *,
        clock: Callable[[], datetime],
        object_bytes: int,
        restart_node: Callable[[], None],
    ) -> None:
        self._link, self._guard, self._status = link, guard, status
        self._clock, self._object_bytes, self._restart_node = clock, object_bytes, restart_node
        self.node_id = 0
        self._seen: dict[bytes, None] = {}
        self._node_header = base64.b64encode(loopback.node_public_key)
        self._node_key = _load_public_key(loopback.node_public_key)
        self._delivered = b""
        self._transfers: dict[bytes, asyncio.Task[Answer]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One HTTP request."""
        if scope["type"] != "http":
            return
        try:
            path: str = scope["path"]
            self._check(scope)
            body = await self._body(receive, BODY_LIMITS[path])
            answer = await self._until_gone(self._answer(path, body), receive)
        except CallFailedError as error:
            answer = Answer(error.status, TEXT, str(error).encode(), b"")
        except Exception:  # a fault of ours: the SuperNode is to come back, not to end
            _logger.exception("a call failed")
            answer = Answer(503, TEXT, b"the agent failed; its log says where", b"")
        if answer is None:  # the SuperNode is gone, or has given up
            return
        headers = [(b"content-type", answer.content_type.encode("latin-1", "replace")), (b"content-length", b"%d" % len(answer.body))]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})
        if answer.delivery:
            self._delivered = answer.delivery

    # --- The request ------------------------------------------------------------------------------------------------------------------

    def _check(self, scope: Scope) -> None:
        if scope["method"] != "POST" or scope["path"] not in BODY_LIMITS or scope.get("query_string"):
            _logger.warning("a local process asked for %s %s", scope["method"], scope["path"][:80])
            raise CallFailedError(404, "no such path here")
        headers = {name: value for name, value in scope["headers"] if name.startswith(b"flwr-")}
        if not self._is_our_node(headers):
            self._status.event("stranger", path=scope["path"])
            raise CallFailedError(401, "this endpoint serves its own SuperNode only")

    def _is_our_node(self, headers: dict[bytes, bytes]) -> bool:
        key, timestamp = headers.get(b"flwr-public-key", b""), headers.get(b"flwr-timestamp", b"")
        if not hmac.compare_digest(key, self._node_header):
            return False
        try:
            age_s = abs((self._clock() - datetime.fromisoformat(timestamp.decode("ascii"))).total_seconds())
            signature = base64.b64decode(headers.get(b"flwr-signature", b""), validate=True)
            self._node_key.verify(signature, timestamp, ec.ECDSA(hashes.SHA256()))
        except (ValueError, TypeError, InvalidSignature, binascii.Error):
            return False
        if age_s > CLOCK_SLACK_S or signature in self._seen:
            return False
        self._seen[signature] = None
        while len(self._seen) > SEEN_SIGNATURES:
            del self._seen[next(iter(self._seen))]
        return True

    async def _body(self, receive: Receive, limit: int | None) -> bytes:
        most, pieces, size = limit or self._object_bytes, [], 0
        while True:
            event = await receive()
            if event["type"] == "http.disconnect":
                raise CallFailedError(400, "the request ended early")
            pieces.append(event.get("body", b""))
            size += len(pieces[-1])
            if size > most:
                raise CallFailedError(413, f"a body over the limit of {most} bytes")
            if not event.get("more_body"):
                return b"".join(pieces)

    async def _until_gone(self, answering: Awaitable[Answer], receive: Receive) -> Answer | None:
        """The answer; None if the caller goes away first, which ends the call."""
        task = asyncio.ensure_future(answering)
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
            return None if gone.done() else task.result()  # an answer that came too late was not delivered
        finally:
            for item in (task, gone):
                item.cancel()

    # --- The answer -------------------------------------------------------------------------------------------------------------------

    async def _answer(self, path: str, body: bytes) -> Answer:
        try:
            if (handler := self._handlers.get(path)) is not None:
                return await handler(body)
            return await self._forward(path, body, within_s=HEARTBEAT_WITHIN_S if path == SEND_NODE_HEARTBEAT else OUTAGE_WITHIN_S)
        except CallFailedError as error:
            if error.status == 400 and path not in _MAY_FAIL:  # the SuperNode's loop would end for it
                raise CallFailedError(503, str(error)) from None
            raise

    @property
    def _handlers(self) -> dict[str, Callable[[bytes], Awaitable[Answer]]]:
        return {
            ACTIVATE_NODE: self._activate,
            PULL_MESSAGES: self._pull,
            CONFIRM_MESSAGE_RECEIVED: self._confirm,
            GET_RUN: self._get_run,
            GET_FAB: self._get_fab,
            PUSH_MESSAGES: self._push,
            PUSH_OBJECT: lambda body: self._transfer(PUSH_OBJECT, body),
            PULL_OBJECT: lambda body: self._transfer(PULL_OBJECT, body),
        }

    async def _activate(self, body: bytes) -> Answer:
        """A SuperNode starts: whatever an earlier one was given, this one does not have, and it knows no run."""
        self._delivered = b""
        self._guard.forget()
        answer = await self._forward(ACTIVATE_NODE, _with_key(body, self._link.public_key()), within_s=OUTAGE_WITHIN_S)
        if answer.status == 200:
            with contextlib.suppress(ProtobufError):
                self.node_id = fleet_pb2.ActivateNodeResponse.FromString(answer.body).node_id
        return answer

    async def _confirm(self, body: bytes) -> Answer:
        answer = await self._forward(CONFIRM_MESSAGE_RECEIVED, body, received_pull=self._delivered, within_s=OUTAGE_WITHIN_S)
        if answer.status == 200:
            self._delivered = b""
        return answer

    async def _get_run(self, body: bytes) -> Answer:
        return await self._guard.run_answer(body, await self._forward(GET_RUN, body, within_s=OUTAGE_WITHIN_S))

    async def _get_fab(self, body: bytes) -> Answer:
        return await self._guard.fab_answer(body, await self._transfer(GET_FAB, body))

    async def _push(self, body: bytes) -> Answer:
        self._note(doing="sending")
        return await self._forward(PUSH_MESSAGES, body, within_s=OUTAGE_WITHIN_S)

    async def _pull(self, body: bytes) -> Answer:
        received = self._delivered
        self._note(doing="waiting")
        answer = await self._forward(PULL_MESSAGES, body, received_pull=received, within_s=ANSWER_WITHIN_S)
        if answer.status != 200:
            return answer
        self._delivered = b"" if self._delivered == received else self._delivered
        for run_id in self._note_messages(answer.body):
            if not await self._guard.may_go_on(run_id):
                self._restart_node()
                raise CallFailedError(503, "this run may not go on here; the SuperNode starts anew")
        return answer

    def _note(self, **facts: str) -> None:
        known = self._status.get("round") or {}
        if any(known.get(key) != value for key, value in facts.items()):
            self._status.set(round={**known, **facts})

    def _note_messages(self, body: bytes) -> list[int]:
        """Say in the status what came; the runs that it is of."""
        try:
            messages = fleet_pb2.PullMessagesResponse.FromString(body).messages_list
        except ProtobufError:
            raise DecodeError("not an answer with messages") from None
        for message in messages:
            now = self._clock().isoformat(timespec="seconds")
            self._note(
                flower_run_id=str(message.metadata.run_id), message=message.metadata.message_type[:80], received_at=now, doing="working"
            )
        return [message.metadata.run_id for message in messages]

    async def _transfer(self, path: str, body: bytes) -> Answer:
        """A call that may take longer than the SuperNode waits: it goes on, and the same call again joins it."""
        key = hashlib.sha256(path.encode() + b"\0" + body).digest()
        task = self._transfers.get(key)
        if task is None:
            task = asyncio.create_task(self._forward(path, body, within_s=TRANSFER_WITHIN_S), name=f"transfer {path}")
            self._transfers[key] = task
            task.add_done_callback(lambda done: self._keep_or_forget(key, path, done))
        if task.done():
            return task.result()
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):  # not wait_for: in Python 3.11 it can swallow a cancellation
                return await asyncio.shield(task)
        except TimeoutError:
            raise CallFailedError(503, "the transfer is not complete yet; ask again") from None

    def _keep_or_forget(self, key: bytes, path: str, task: asyncio.Task[Answer]) -> None:
        """Keep an answer for a while, for the SuperNode may be waiting to ask again. Not kept: a failure, and an object that is not there yet."""
        good = not task.cancelled() and task.exception() is None and _is_final(path, task.result())
        asyncio.get_running_loop().call_later(KEPT_S if good else 0.0, self._transfers.pop, key, None)

    async def _forward(self, path: str, body: bytes, *, received_pull: bytes = b"", within_s: float) -> Answer:
        answer = await self._link.forward(path, body, received_pull=received_pull, timeout_s=within_s)
        if answer.status == 401:  # our time or our registration is off there; the SuperNode would end for it
            self._link.check_again()
            raise CallFailedError(503, "the SuperLink does not know this node now")
        return answer


def _is_final(path: str, answer: Answer) -> bool:
    """Whether the same call would get the same answer later: the ServerApp may push an object after the message that names it."""
    if answer.status != 200 or path != PULL_OBJECT:
        return answer.status == 200
    try:
        return bool(fleet_pb2.PullObjectResponse.FromString(answer.body).object_available)
    except ProtobufError:
        return False


def _with_key(body: bytes, public_key: bytes) -> bytes:
    """The activation, for the node's key instead of the SuperNode's key of this start."""
    try:
        request = fleet_pb2.ActivateNodeRequest.FromString(body)
    except ProtobufError:
        raise CallFailedError(400, "not an activation") from None
    request.public_key = public_key
    return bytes(request.SerializeToString())


def _load_public_key(pem: bytes) -> ec.EllipticCurvePublicKey:
    key = serialization.load_pem_public_key(pem)
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
