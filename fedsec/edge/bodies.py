"""A forwarded call's head and body: what can be refused before the body comes, and the body, in time, of the size and hash that was proven.

1. The head: the path is on the list, the size within the path's limit, the session is this key's, the counter is fresh, the proof covers
   all of it and the body's hash, Flower's key is the certificate's. Not a byte of the body beyond the first message was taken so far. The
   counter is used up by the proof's check.
2. The caller is told to go on, and the rest comes at a pace (``pace``); a large object of a reply goes into a file while it comes
   (``intake``), everything else into memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from fedsec.edge import paths
from fedsec.edge.callers import Running
from fedsec.edge.fleet_calls import check_headers, find_content
from fedsec.edge.gateway_state import GatewayState
from fedsec.edge.intake import LEAST_BYTES, MAX_TAIL_BYTES, Intake, Whole, collect
from fedsec.edge.pace import Pace, PacedReader
from fedsec.edge.refusal import Reason, Refused
from fedsec.edge.sessions import Session
from fedsec.edge.signing import DELIVERY_BYTES, SESSION_ID_BYTES, Call, verify_call
from fedsec.errors import SignatureError

_HASH_BYTES = 32
_INTAKE_THREADS = 8

Body = bytes | bytearray | Intake


class Bodies:
    """Takes heads and bodies.

    Args:
        state: of the gateway.
    """

    def __init__(self, state: GatewayState) -> None:
        self._state = state
        self._pool = ThreadPoolExecutor(_INTAKE_THREADS, thread_name_prefix="intake")

    async def head(self, context: Any, call: Running) -> tuple[Any, Call, Session]:
        """The first message, as it came and as it was proven, and its session.

        Raises:
            Refused: it did not come in time, or may not be served.
        """
        first = await _read(context, self._state.settings.head_timeout_s)
        return (first, *self._check_head(first, call))

    @contextlib.asynccontextmanager
    async def taken(self, first: Any, forward: Call, call: Running, context: Any) -> AsyncIterator[Body]:
        """The body, whose room is held for the duration of the block.

        Raises:
            Refused: no room, too slow, or another body than was announced.
        """
        state = self._state
        state.limiter.hold(call.peer.public_key, forward.body_size, state.monotonic())
        body: Body = b""
        try:
            with self._paced(first, forward, context) as paced:
                if len(first.chunk) < forward.body_size:
                    await paced.go_ahead()  # the caller waits with the rest until its head was taken
                body = await self._body(first, forward, call, paced)
            yield body
        finally:
            if isinstance(body, Intake):
                self._let_go(body)
            del body
            state.limiter.release(call.peer.public_key, forward.body_size)

    def _check_head(self, first: Any, call: Running) -> tuple[Call, Session]:
        """Everything that can be refused before the body is taken; uses the counter up."""
        state = self._state
        forward = _call_of(first)
        call.facts |= {"path": forward.path, "counter": forward.counter, "bytes": forward.body_size}
        if forward.path not in paths.BODY_LIMITS:
            call.facts["path"] = "other"
            raise Refused(Reason.PATH, "no such path at the edge; only the Fleet calls of a registered node pass")
        limit = paths.BODY_LIMITS[forward.path] or state.limiter.limits.object_bytes
        if forward.body_size > limit:
            raise Refused(Reason.SIZE, f"a body of {forward.body_size} bytes, at most {limit} on this path")
        session = state.sessions.find(call.peer.public_key, forward.session_id)
        if session is None:
            raise Refused(Reason.SESSION, "unknown session; say Hello again")
        if not session.window.may_come(forward.counter):
            raise Refused(Reason.COUNTER, "the counter was used, or is outside the window; say Hello again")
        try:
            verify_call(session.keys, forward, first.proof)
        except SignatureError:
            raise Refused(Reason.SIGNATURE, "the call is not proven for this session, counter, path and body") from None
        session.window.accept(forward.counter)
        check_headers(forward, call.peer.public_key)
        return forward, session

    @contextlib.contextmanager
    def _paced(self, first: Any, forward: Call, context: Any) -> Iterator[PacedReader]:
        """The rest of a body, which has to come at a pace, and may be let go for another while room is short."""
        settings, state = self._state.settings, self._state
        pace = Pace(
            begun=state.monotonic(),
            grace_s=settings.body_timeout_s,
            least_per_s=settings.min_bytes_per_s,
            size=forward.body_size,
            came=len(first.chunk),
        )
        reader = PacedReader(context, pace, settings.body_timeout_s, state.monotonic)
        state.limiter.coming.add(reader)
        try:
            yield reader
        finally:
            state.limiter.coming.remove(reader)

    async def _body(self, first: Any, forward: Call, call: Running, context: Any) -> Body:
        """The body, in time, of the announced size and hash."""
        settings, announced = self._state.settings, forward.body_size
        if len(first.chunk) == announced:
            _check_hash(hashlib.sha256(first.chunk).digest(), forward)
            chunk: bytes = first.chunk
            return chunk
        taker = self._intake(first.chunk, forward, call) or Whole(announced)
        try:
            async with asyncio.timeout(settings.body_timeout_s + announced / settings.min_bytes_per_s):
                await collect(taker, first.chunk, announced, context.read, settings.body_timeout_s)
                _check_hash(await taker.finish(), forward)
        except BaseException as error:
            if isinstance(taker, Intake):
                self._let_go(taker)
            if isinstance(error, TimeoutError):
                raise Refused(Reason.SLOW, f"the body of {announced} bytes did not come in time") from None
            raise
        return taker if isinstance(taker, Intake) else taker.body

    def _intake(self, first: bytes, forward: Call, call: Running) -> Intake | None:
        """A file for the object in this body; None if the body is to be taken as a whole."""
        if forward.path != paths.PUSH_OBJECT or forward.body_size < LEAST_BYTES:
            return None
        state = self._state
        node, place = state.registry.find(call.peer.public_key), find_content(first, forward.body_size)
        if node is None or place is None or forward.body_size - place.end > MAX_TAIL_BYTES:
            return None
        start = memoryview(first)[place.begin : place.end]
        part = state.collector.part(node.node_id, place.run_id, place.object_id, start, place.end - place.begin)
        if part is None:
            return None
        try:
            return Intake(part, place, self._pool)
        except BaseException:
            state.collector.release(part)
            raise

    def _let_go(self, intake: Intake) -> None:
        intake.close()
        self._state.collector.release(intake.part)


async def _read(context: Any, timeout_s: float) -> Any:
    try:
        async with asyncio.timeout(timeout_s):
            message = await context.read()
    except TimeoutError:
        raise Refused(Reason.SLOW, f"the call's head did not come within {timeout_s:g} s") from None
    if message is grpc.aio.EOF or isinstance(message, memoryview):
        raise Refused(Reason.MALFORMED, "a call without a head")
    return message


def _check_hash(digest: bytes, forward: Call) -> None:
    if not hmac.compare_digest(digest, forward.body_sha256):
        raise Refused(Reason.SIGNATURE, "the body is not the one that was proven")


def _call_of(first: Any) -> Call:
    """The head of a call; sizes are checked here, so that a hostile one costs little."""
    if (
        len(first.session_id) != SESSION_ID_BYTES
        or len(first.body_sha256) != _HASH_BYTES
        or len(first.received_pull) not in (0, DELIVERY_BYTES)
    ):
        raise Refused(Reason.MALFORMED, "the session, hash or delivery has a wrong length")
    if len(first.path) > 100 or len(first.public_key) > 1000 or len(first.timestamp) > 40 or len(first.flower_signature) > 300:
        raise Refused(Reason.MALFORMED, "a path or header of Flower is too long")
    return Call(
        session_id=first.session_id,
        counter=first.counter,
        path=first.path,
        received_pull=first.received_pull,
        public_key=first.public_key,
        timestamp=first.timestamp,
        flower_signature=first.flower_signature,
        body_size=first.body_size,
        body_sha256=first.body_sha256,
    )
