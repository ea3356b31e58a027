"""The gateway's side of the edge protocol: every call is checked anew, refused with a reason, or forwarded to the SuperLink.

In this order, for each forwarded call:

1. TLS 1.3, a node's certificate that is valid now and not revoked (``trust``); calls a second and at a time (``limits``).
2. The head: the path is on the list, the size within the path's limit, the session is this key's, the counter is fresh, the proof
   covers all of it and the body's hash, Flower's key is the certificate's. Not a byte of the body was taken so far.
3. The body: paid for, in time, of the size and hash that was proven; it names the certificate's node only (``fleet_calls``).
4. What the node confirmed is forgotten; PullMessages is held (``pulling``), replies are collected (``collecting``), a node gets and
   confirms what was delivered to it (``deliveries``), everything else is forwarded as it came.
5. Certificate, list and session are looked at again right before anything goes to the SuperLink, and before an answer goes out.

A call that is refused leaves one audit line with the reason and changes nothing. The counter is used up by the proof's check.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import secrets
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from fedsec.edge import edge_pb2, paths
from fedsec.edge.authority import check_request
from fedsec.edge.fleet_calls import Node, check_body, check_headers, find_content
from fedsec.edge.gateway_state import GatewayState
from fedsec.edge.intake import LEAST_BYTES, MAX_TAIL_BYTES, Intake, Whole, collect
from fedsec.edge.pace import Pace, PacedReader
from fedsec.edge.pulling import Forwarded, pull_messages, pull_object
from fedsec.edge.refusal import Reason, Refused
from fedsec.edge.replies import push_messages, push_object
from fedsec.edge.service import GO_AHEAD, REPLY_CHUNK, STATEMENT_METADATA, encode_piece, pieces
from fedsec.edge.sessions import Session
from fedsec.edge.signing import (
    DELIVERY_BYTES,
    MAX_CHUNK_BYTES,
    NONCE_BYTES,
    SESSION_ID_BYTES,
    SHARE_BYTES,
    Call,
    Hello,
    Reply,
    derive_keys,
    new_share,
    prove_reply,
    sign_hello,
    verify_call,
    verify_hello_request,
)
from fedsec.edge.upstream import UpstreamError
from fedsec.errors import CertificateError, FedsecError, SignatureError
from fedsec.identity.tls import check_tls13, peer_certificate
from fedsec.identity.verify import VerifiedPeer

_OK = 200
_HASH_BYTES = 32
_THREAD_ABOVE = MAX_CHUNK_BYTES
_MAX_VERSION = 64
_INTAKE_THREADS = 8


@dataclass(eq=False)
class Running:
    """A call that runs: whose, and how to end it.

    Attributes:
        peer: the caller.
        certificate: that it showed, in DER.
        task: runs the call.
        revoked: the call was cut because the certificate was revoked.
        facts: what its audit line says.
    """

    peer: VerifiedPeer
    certificate: bytes
    task: asyncio.Task[Any]
    revoked: bool = False
    facts: dict[str, Any] = field(default_factory=dict)


class EdgeService:
    """Handlers of the gRPC service.

    Args:
        state: of the gateway.
    """

    def __init__(self, state: GatewayState) -> None:
        self._state = state
        self._running: set[Running] = set()
        self._pool = ThreadPoolExecutor(_INTAKE_THREADS, thread_name_prefix="intake")

    def cut_revoked(self) -> int:
        """End the running calls of certificates that are revoked by now; says how many."""
        cut = 0
        for call in [call for call in self._running if self._state.trust.is_revoked(call.peer.serial_number)]:
            if not call.revoked:
                call.revoked = True
                call.task.cancel()
                cut += 1
        return cut

    async def hello(self, request: edge_pb2.HelloRequest, context: Any) -> edge_pb2.HelloReply:
        """Open a session."""
        async with self._call("hello", context) as call:
            certificate = peer_certificate(context)
            self._check_hello(request, certificate, call)
            state, identity, share = self._state, self._state.trust.identity(), new_share()
            hello = Hello(
                client_nonce=request.client_nonce,
                client_share=request.client_share,
                session_id=secrets.token_bytes(SESSION_ID_BYTES),
                server_time_ms=int(state.clock().timestamp() * 1000),
                server_share=share.public_key().public_bytes_raw(),
                client_certificate_der=certificate,
            )
            try:
                keys = derive_keys(share, hello.client_share, hello)
            except SignatureError:
                raise Refused(Reason.MALFORMED, "the share is not a public key") from None
            state.sessions.open(call.peer.public_key, hello.session_id, keys)
            return edge_pb2.HelloReply(
                session_id=hello.session_id,
                server_time_ms=hello.server_time_ms,
                server_certificate=identity.certificate_der,
                intermediate=identity.intermediate_der,
                signature=sign_hello(identity.signer, hello),
                server_share=hello.server_share,
            )

    def _check_hello(self, request: edge_pb2.HelloRequest, certificate: bytes, call: Running) -> None:
        nonce, share, version = request.client_nonce, request.client_share, request.agent_version
        if len(nonce) != NONCE_BYTES or len(share) != SHARE_BYTES or len(version) > _MAX_VERSION:
            raise Refused(Reason.MALFORMED, "the nonce and the share have 32 bytes, the version at most 64 characters")
        self._state.limiter.hello(call.peer.public_key, self._state.monotonic())
        try:
            verify_hello_request(call.peer.public_key, nonce, version, share, certificate, request.signature)
        except SignatureError:
            raise Refused(Reason.SIGNATURE, "the Hello is not signed by the certificate's key") from None
        call.facts["version"] = version

    async def renew(self, request: edge_pb2.RenewRequest, context: Any) -> edge_pb2.RenewReply:
        """Hand a sound request for a renewed certificate to the CA, which checks it once more; a few an hour for each key."""
        async with self._call("renew", context) as call:
            shown, state = peer_certificate(context), self._state
            check_request(shown, call.peer, request, state.trust.identity(), now=state.clock())
            state.limiter.renewal(call.peer.public_key, state.monotonic())
            certificate, intermediate = await state.authority.renew(shown, call.peer, request)
            return edge_pb2.RenewReply(certificate=certificate, intermediate=intermediate)

    async def bundle(self, request: edge_pb2.BundleRequest, context: Any) -> edge_pb2.BundleReply:
        """The newest releases and lists, for the agent to verify."""
        del request
        async with self._call("bundle", context) as call:
            standing = self._state.trust.standing
            reply = edge_pb2.BundleReply(
                releases=self._state.releases.newest(),
                crl=standing.crl_der,
                intermediate=standing.identity.intermediate_der,
                roster_version=standing.roster.version if standing.roster is not None else 0,
                root_statement=standing.statement,
            )
            self._state.limiter.answer(call.peer.public_key, reply.ByteSize(), self._state.monotonic())
            return reply

    async def forward(self, request_iterator: Any, context: Any) -> None:
        """Check and forward one call."""
        del request_iterator  # read from the context, one message at a time
        async with self._call("forward", context) as call:
            first = await self._read(context, self._state.settings.head_timeout_s)
            forward, session = self._check_head(first, call)
            self._state.limiter.hold(call.peer.public_key, forward.body_size, self._state.monotonic())
            body: bytes | bytearray | Intake = b""
            try:
                if len(first.chunk) < forward.body_size:
                    await context.send_initial_metadata(
                        ((GO_AHEAD, "1"),)
                    )  # the caller waits with the rest of the body until its head was taken
                with self._paced(first, forward, context) as paced:
                    body = await self._body(first, forward, call, paced)
                answer = await self._serve(forward, body, call)
            finally:
                if isinstance(body, Intake):
                    self._let_go(body)
                del body
                self._state.limiter.release(call.peer.public_key, forward.body_size)
            call.facts |= {"status": answer.status, "answer_bytes": len(answer.body)}
            self._state.limiter.answer(call.peer.public_key, len(answer.body), self._state.monotonic())
            head = await _proven(session, forward, answer)
            self._check_again(call, forward)
            await _write(context, head, answer.body)

    def _check_again(self, call: Running, forward: Call) -> None:
        """The caller may still be served: much may have happened since the call came.

        Raises:
            Refused: revoked, expired, no good list, or the session ended.
        """
        self._state.trust.check_caller(call.certificate)
        if self._state.sessions.find(call.peer.public_key, forward.session_id) is None:
            raise Refused(Reason.SESSION, "the session ended while the call ran; say Hello again")

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

    async def _body(self, first: Any, forward: Call, call: Running, context: Any) -> bytes | bytearray | Intake:
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

    async def _serve(self, forward: Call, body: bytes | bytearray | Intake, call: Running) -> Forwarded:
        state = self._state
        node = state.registry.find(call.peer.public_key)
        if node is None:
            raise Refused(
                Reason.NOT_REGISTERED, "this client is not on the CA's list that the gateway has, or not registered yet; come back later"
            )
        request: Any = body.pushed(node) if isinstance(body, Intake) else check_body(forward.path, body, node)
        self._check_again(call, forward)
        if forward.received_pull:
            await state.confirm(node.node_id, forward.received_pull)
        if forward.path == paths.PUSH_OBJECT:
            intake = body if isinstance(body, Intake) else None
            return await push_object(state, node, forward, request, lambda: self._check_again(call, forward), intake)
        assert not isinstance(body, Intake)  # of push-object only
        if forward.path == paths.PULL_MESSAGES:
            return await pull_messages(state, node, forward, bytes(body))
        if forward.path == paths.PUSH_MESSAGES:
            return await push_messages(state, node, request)
        return await self._pass_on(forward, body, request, node)

    async def _pass_on(self, forward: Call, body: bytes | bytearray, request: Any, node: Node) -> Forwarded:
        state = self._state
        if forward.path != paths.SEND_NODE_HEARTBEAT:
            state.note_use(node.node_id)
        if forward.path == paths.PULL_OBJECT:
            state.deliveries.check_object(node.node_id, request.run_id, request.object_id)
        if forward.path == paths.CONFIRM_MESSAGE_RECEIVED:
            state.deliveries.check_message(node.node_id, request.run_id, request.message_object_id)
        response = await (pull_object(state, forward, body) if forward.path == paths.PULL_OBJECT else state.ask(forward, body))
        if forward.path == paths.CONFIRM_MESSAGE_RECEIVED and response.status == _OK:
            await state.confirm_message(node.node_id, request.message_object_id)
        return Forwarded(response.status, response.content_type, response.body)

    async def _read(self, context: Any, timeout_s: float) -> Any:
        try:
            async with asyncio.timeout(timeout_s):
                message = await context.read()
        except TimeoutError:
            raise Refused(Reason.SLOW, f"the call's head did not come within {timeout_s:g} s") from None
        if message is grpc.aio.EOF or isinstance(message, memoryview):
            raise Refused(Reason.MALFORMED, "a call without a head")
        return message

    @asynccontextmanager
    async def _call(self, method: str, context: Any) -> AsyncIterator[Running]:
        """Who calls, may it, and what became of it: a refusal ends the call with its status, every call leaves an audit line."""
        state = self._state
        started = state.monotonic()
        facts: dict[str, Any] = {"method": method}
        call: Running | None = None
        try:
            peer, certificate = self._caller(context, facts)
            state.limiter.enter(peer.public_key, started)
            task = asyncio.current_task()
            assert task is not None
            call = Running(peer, certificate, task, facts=facts)
            self._running.add(call)
            yield call
            refusal = None
        except Refused as error:
            refusal = error
        except UpstreamError as error:
            refusal = Refused(Reason.SUPERLINK, f"{error}; the call may be repeated later")
        except asyncio.CancelledError:
            if call is None or not call.revoked:
                state.log_call(facts | {"refused": "cancelled"}, started)
                raise
            call.task.uncancel()
            refusal = Refused(Reason.REVOKED, "the certificate was revoked while the call ran")
        except (FedsecError, grpc.RpcError, OSError) as error:
            state.log_fault(method, error)
            refusal = Refused(Reason.INTERNAL, "the gateway could not serve the call; its log says why")
        finally:
            if call is not None:
                self._running.discard(call)
                state.limiter.leave(call.peer.public_key)
        state.log_call(facts | ({"refused": refusal.reason.value} if refusal else {}), started)
        if refusal is not None:
            await context.abort(refusal.status, str(refusal), self._with_statement(refusal))

    def _with_statement(self, refusal: Refused) -> tuple[tuple[str, bytes], ...]:
        """The root's statement, for a caller whose intermediate may be void: it gets no bundle, and may be talking to a thief next."""
        statement = self._state.trust.standing.statement
        told = refusal.reason in (Reason.CERTIFICATE, Reason.NO_REVOCATION_LIST) and statement
        return ((STATEMENT_METADATA, statement),) if told else ()

    def _caller(self, context: Any, facts: dict[str, Any]) -> tuple[VerifiedPeer, bytes]:
        if self._state.stopping.is_set():
            raise Refused(Reason.STOPPING, "the gateway is being stopped; come back later")
        try:
            check_tls13(context)
        except CertificateError as error:
            raise Refused(Reason.TLS, str(error)) from None
        try:
            certificate = peer_certificate(context)
        except CertificateError as error:
            raise Refused(Reason.CERTIFICATE, str(error)) from None
        peer = self._state.trust.check_caller(certificate)
        if self._state.registry.saw(peer.public_key, peer.serial_number):
            self._state.sync_wanted.set()
        facts |= {"client": peer.name.name, "serial_number": f"{peer.serial_number:X}"}
        return peer, certificate


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


async def _proven(session: Session, forward: Call, answer: Forwarded) -> edge_pb2.ForwardReply:
    """The first message of an answer, with its proof and the first piece."""
    body = answer.body
    digest = (await asyncio.to_thread(hashlib.sha256, body) if len(body) > _THREAD_ABOVE else hashlib.sha256(body)).digest()
    reply = Reply(
        session_id=forward.session_id,
        counter=forward.counter,
        status=answer.status,
        content_type=answer.content_type,
        body_size=len(body),
        body_sha256=digest,
        delivery=answer.delivery,
    )
    return edge_pb2.ForwardReply(
        status=reply.status,
        content_type=reply.content_type,
        body_size=reply.body_size,
        body_sha256=digest,
        delivery=reply.delivery,
        proof=prove_reply(session.keys, reply),
        chunk=bytes(next(pieces(body))),
    )


async def _write(context: Any, head: edge_pb2.ForwardReply, body: bytes) -> None:
    await context.write(head)
    parts = pieces(body)
    next(parts)
    for piece in parts:
        await context.write(encode_piece(REPLY_CHUNK, piece))
