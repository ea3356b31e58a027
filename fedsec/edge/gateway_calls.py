"""The gateway's side of the edge protocol: every call is checked anew, refused with a reason, or forwarded to the SuperLink.

In this order, for each forwarded call:

1. TLS 1.3, a node's certificate that is valid now and not revoked (``callers``, ``trust``); calls a second and at a time (``limits``).
2. The head: path, size, session, counter, proof, Flower's key (``bodies``). Not a byte of the body was taken so far.
3. The body: paid for, in time, of the size and hash that was proven (``bodies``); it names the certificate's node only (``fleet_calls``).
4. What the node confirmed is forgotten; PullMessages is held (``pulling``), replies are collected (``collecting``), a node gets and
   confirms what was delivered to it (``deliveries``), everything else is forwarded as it came.
5. Certificate, list and session are looked at again right before anything goes to the SuperLink, and before an answer goes out.

A call that is refused leaves one audit line with the reason and changes nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from typing import Any

from fedsec.edge import edge_pb2, paths
from fedsec.edge.authority import check_request
from fedsec.edge.bodies import Bodies, Body
from fedsec.edge.callers import Callers, Running
from fedsec.edge.fleet_calls import Node, check_body
from fedsec.edge.gateway_state import GatewayState
from fedsec.edge.intake import Intake
from fedsec.edge.pulling import Forwarded, pull_messages, pull_object
from fedsec.edge.refusal import Reason, Refused
from fedsec.edge.replies import push_messages, push_object
from fedsec.edge.service import REPLY_CHUNK, encode_piece, pieces
from fedsec.edge.sessions import Session
from fedsec.edge.signing import (
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
    verify_hello_request,
)
from fedsec.errors import SignatureError
from fedsec.identity.tls import peer_certificate

_OK = 200
_THREAD_ABOVE = MAX_CHUNK_BYTES
_MAX_VERSION = 64


class EdgeService:
    """Handlers of the gRPC service.

    Args:
        state: of the gateway.
    """

    def __init__(self, state: GatewayState) -> None:
        self._state, self._callers, self._bodies = state, Callers(state), Bodies(state)

    def cut_revoked(self) -> int:
        """End the running calls of certificates that are revoked by now; says how many."""
        return self._callers.cut_revoked()

    async def hello(self, request: edge_pb2.HelloRequest, context: Any) -> edge_pb2.HelloReply:
        """Open a session."""
        async with self._callers.call("hello", context) as call:
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
        async with self._callers.call("renew", context) as call:
            shown, state = peer_certificate(context), self._state
            check_request(shown, call.peer, request, state.trust.identity(), now=state.clock())
            state.limiter.renewal(call.peer.public_key, state.monotonic())
            certificate, intermediate = await state.authority.renew(shown, call.peer, request)
            return edge_pb2.RenewReply(certificate=certificate, intermediate=intermediate)

    async def bundle(self, request: edge_pb2.BundleRequest, context: Any) -> edge_pb2.BundleReply:
        """The newest releases and lists, for the agent to verify."""
        del request
        async with self._callers.call("bundle", context) as call:
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
        async with self._callers.call("forward", context) as call:
            first, forward, session = await self._bodies.head(context, call)
            async with self._bodies.taken(first, forward, call, context) as body:
                try:
                    answer = await self._serve(forward, body, call)
                finally:
                    del body  # its room is given back with the block
            call.facts |= {"status": answer.status, "answer_bytes": len(answer.body)}
            self._state.limiter.answer(call.peer.public_key, len(answer.body), self._state.monotonic())
            head = await _proven(session, forward, answer)
            self._callers.check_again(call, forward)
            await _write(context, head, answer.body)

    async def _serve(self, forward: Call, body: Body, call: Running) -> Forwarded:
        state = self._state
        node = state.registry.find(call.peer.public_key)
        if node is None:
            raise Refused(
                Reason.NOT_REGISTERED, "this client is not on the CA's list that the gateway has, or not registered yet; come back later"
            )
        request: Any = body.pushed(node) if isinstance(body, Intake) else check_body(forward.path, body, node)
        self._callers.check_again(call, forward)
        if forward.received_pull:
            await state.confirm(node.node_id, forward.received_pull)
        if forward.path == paths.PUSH_OBJECT:
            intake = body if isinstance(body, Intake) else None
            return await push_object(state, node, forward, request, lambda: self._callers.check_again(call, forward), intake)
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
