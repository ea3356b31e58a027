"""The agent's end of the edge protocol: a session with a gateway that proved who it is, and calls and answers proven within it.

1. The channel's TLS pins the root, but any certificate of the federation passes there: :func:`open_session` checks that the other
   end is a server, which one, and that it saw our own certificate.
2. Nothing of an answer is handed on before its proof was checked: its head, and the hash of its whole body. An answer that does not
   verify ends the session: somebody else is speaking.
3. Each call has a counter of its own; a call that failed is repeated under a new one, never under the old.
4. A body of more than one piece goes on once the gateway took the head, so that a refusal arrives (gRPC loses one that meets a piece).
5. Time is the gateway's: its clock at the Hello and our monotonic one since. The edge's own clock does not matter.

Errors of the wire are ``grpc.aio.AioRpcError``, with the statuses that ``edge.proto`` lists.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedsec.edge import edge_pb2
from fedsec.edge.service import GO_AHEAD, REQUEST_CHUNK, EdgeStub, encode_piece, pieces
from fedsec.edge.signing import (
    MAX_CHUNK_BYTES,
    NONCE_BYTES,
    SESSION_ID_BYTES,
    SHARE_BYTES,
    Call,
    Hello,
    Reply,
    SessionKeys,
    derive_keys,
    new_share,
    prove_call,
    sign_hello_request,
    verify_hello,
    verify_reply,
)
from fedsec.errors import CertificateError, DecodeError, SignatureError
from fedsec.identity.intermediates import AcceptedIntermediates
from fedsec.identity.names import Role
from fedsec.identity.verify import verify_peer
from fedsec.signing import Signer

_MAX_TIME_MS = 1 << 47


@dataclass(frozen=True)
class FlowerHeaders:
    """Flower's own authentication of a node, as text; made by the agent in gateway time.

    Attributes:
        public_key: base64 of the PEM of the node's key.
        timestamp: ISO 8601 with a zone.
        signature: base64 of the DER signature over the time stamp.
    """

    public_key: str
    timestamp: str
    signature: str


@dataclass(frozen=True)
class Answer:
    """What the SuperLink answered.

    Attributes:
        status: HTTP status.
        content_type: of the body.
        body: the whole.
        delivery: not empty: name it as ``received_pull`` in later calls once the node has the answer.
    """

    status: int
    content_type: str
    body: bytes
    delivery: bytes


class EdgeSession:
    """A session; made by :func:`open_session`.

    Args:
        stub: of the channel on which it was opened; it may be used on another channel of the same identity.
        keys: of the session.
        session_id: 16 bytes.
        server_time: the gateway's clock at the Hello, aware.
        opened_at: ``time.monotonic()`` then.
        server_serial_number: of the certificate that the gateway proved to hold.
    """

    def __init__(
        self,
        stub: EdgeStub,
        keys: SessionKeys,
        session_id: bytes,
        server_time: datetime,
        opened_at: float,
        *,
        server_serial_number: int,
    ) -> None:
        self.server_serial_number = server_serial_number
        self._stub = stub
        self._keys = keys
        self._session_id = session_id
        self._server_time = server_time
        self._opened_at = opened_at
        self._counter = itertools.count(1)

    def now(self) -> datetime:
        """The gateway's time, aware."""
        return self._server_time + timedelta(seconds=time.monotonic() - self._opened_at)

    async def forward(
        self, path: str, body: bytes, headers: FlowerHeaders, *, received_pull: bytes = b"", timeout_s: float | None = None
    ) -> Answer:
        """Forward one call.

        Args:
            path: Fleet path.
            body: the request's body.
            headers: Flower's.
            received_pull: ``delivery`` of the newest PullMessages answer that the node has in full.
            timeout_s: for the whole call.

        Raises:
            grpc.aio.AioRpcError: the gateway refused, or the wire failed.
            DecodeError: the answer is cut short.
            SignatureError: it is not the gateway's answer to this call.
        """
        call = Call(
            session_id=self._session_id,
            counter=next(self._counter),
            path=path,
            received_pull=received_pull,
            public_key=headers.public_key,
            timestamp=headers.timestamp,
            flower_signature=headers.signature,
            body_size=len(body),
            body_sha256=hashlib.sha256(body).digest(),
        )
        return await send_call(self._stub, call, self._keys, body, timeout_s=timeout_s)


async def send_call(
    stub: EdgeStub, call: Call, keys: SessionKeys, body: bytes, *, proof: bytes | None = None, timeout_s: float | None = None
) -> Answer:
    """Send a call, collect the answer and check its proof; raises as :meth:`EdgeSession.forward`.

    Args:
        stub: of the channel.
        call: the call.
        keys: of its session.
        body: what it announces.
        proof: another one than the call's own, for tests.
        timeout_s: for the whole call.
    """
    stream: Any = None

    async def may_go_on() -> bool:
        if GO_AHEAD in await stream.initial_metadata():
            return True
        await stream.code()  # refused: nothing more is sent, not even that this was all, before the refusal is here
        return False

    stream = stub.forward(_messages(call, prove_call(keys, call) if proof is None else proof, body, may_go_on), timeout=timeout_s)
    try:
        return await _answer(stream, call, keys)
    finally:
        stream.cancel()  # of a call that has ended it ends nothing; of one that is left, its sending too


async def _answer(stream: Any, call: Call, keys: SessionKeys) -> Answer:
    first: Any = None
    collected: list[bytes | memoryview] = []
    size = 0
    async for message in stream:
        if first is None:
            if isinstance(message, memoryview):
                raise DecodeError("the gateway's answer has no head")
            first = message
            verify_reply(keys, _reply_of(call, first), first.proof)  # before anything of it is believed, its length included
        piece = message if isinstance(message, memoryview) else message.chunk
        size += len(piece)
        if size > first.body_size:
            raise DecodeError(f"the gateway's answer is longer than {first.body_size} bytes")
        collected.append(piece)
    if first is None:
        raise DecodeError("the gateway's answer is empty")
    content = first.chunk if len(collected) == 1 else b"".join(collected)
    if len(content) != first.body_size:
        raise DecodeError(f"the gateway's answer has {len(content)} bytes, not {first.body_size}")
    if not hmac.compare_digest(hashlib.sha256(content).digest(), first.body_sha256):
        raise SignatureError("the gateway's answer does not verify: its body was changed")
    return Answer(first.status, first.content_type, content, first.delivery)


def _reply_of(call: Call, first: edge_pb2.ForwardReply) -> Reply:
    return Reply(
        session_id=call.session_id,
        counter=call.counter,
        status=first.status,
        content_type=first.content_type,
        body_size=first.body_size,
        body_sha256=first.body_sha256,
        delivery=first.delivery,
    )


async def _messages(
    call: Call, proof: bytes, body: bytes, may_go_on: Callable[[], Awaitable[bool]]
) -> AsyncIterator[edge_pb2.ForwardRequest | bytes]:
    """The head, and once the gateway took it, the rest.

    While a piece is under way, gRPC loses a refusal: the piece fails, and its failure hides the status (four times in five at 3 MB). So the
    rest of a body waits until the head was accepted, and what is refused by its head is refused with the reason and before the bytes come.
    """
    parts = pieces(body)
    yield edge_pb2.ForwardRequest(
        session_id=call.session_id,
        counter=call.counter,
        path=call.path,
        received_pull=call.received_pull,
        public_key=call.public_key,
        timestamp=call.timestamp,
        flower_signature=call.flower_signature,
        body_size=call.body_size,
        body_sha256=call.body_sha256,
        proof=proof,
        chunk=bytes(next(parts)),
    )
    if len(body) > MAX_CHUNK_BYTES and not await may_go_on():
        return
    for piece in parts:
        yield encode_piece(REQUEST_CHUNK, piece)


def hello_request(
    signer: Signer, nonce: bytes, share: X25519PrivateKey, certificate_der: bytes, agent_version: str
) -> edge_pb2.HelloRequest:
    """The client's half of a Hello, signed."""
    version, public = agent_version[:64], share.public_key().public_bytes_raw()
    signature = sign_hello_request(signer, nonce, version, public, certificate_der)
    return edge_pb2.HelloRequest(client_nonce=nonce, agent_version=version, client_share=public, signature=signature)


def hello_of(request: edge_pb2.HelloRequest, reply: edge_pb2.HelloReply, certificate_der: bytes) -> Hello:
    """All that the gateway must have signed.

    Raises:
        DecodeError: a part of the answer has a wrong length or size.
    """
    if len(reply.session_id) != SESSION_ID_BYTES or len(reply.server_share) != SHARE_BYTES or not 0 < reply.server_time_ms < _MAX_TIME_MS:
        raise DecodeError("the gateway's Hello is malformed; is it of another version?")
    return Hello(request.client_nonce, request.client_share, reply.session_id, reply.server_time_ms, reply.server_share, certificate_der)


async def open_session(
    stub: EdgeStub,
    signer: Signer,
    *,
    certificate_der: bytes,
    root_der: bytes,
    federation: str,
    server_name: str,
    agent_version: str,
    now: datetime,
    timeout_s: float = 10.0,
    accepted: AcceptedIntermediates | None = None,
) -> EdgeSession:
    """Say Hello and check who answers.

    Args:
        stub: of an open channel.
        signer: the node's key.
        certificate_der: the certificate that the channel shows.
        root_der: the pinned root.
        federation: the federation.
        server_name: the name that the gateway's certificate must have, for example ``main``.
        agent_version: for the gateway's audit log.
        now: aware; the edge's clock, against which the gateway's certificate is checked.
        timeout_s: for the call.
        accepted: the root's newest statement that the agent has.

    Raises:
        CertificateError: the other end is not that server.
        SignatureError: it is, but signed another session, nonce or client certificate.
        grpc.aio.AioRpcError: the gateway refused, or the wire failed.
    """
    share, opened_at = new_share(), time.monotonic()
    request = hello_request(signer, secrets.token_bytes(NONCE_BYTES), share, certificate_der, agent_version)
    reply = await stub.hello(request, timeout=timeout_s)
    peer = verify_peer(
        reply.server_certificate,
        intermediate_der=reply.intermediate,
        root_der=root_der,
        federation=federation,
        role=Role.SERVER,
        now=now.astimezone(UTC),
        accepted=accepted,
    )
    if peer.name.name != server_name:
        raise CertificateError(f"the gateway is the server {peer.name.name}, not {server_name}")
    hello = hello_of(request, reply, certificate_der)
    verify_hello(peer.public_key, hello, reply.signature)
    keys = derive_keys(share, hello.server_share, hello)
    server_time = datetime.fromtimestamp(reply.server_time_ms / 1000, UTC)
    return EdgeSession(stub, keys, reply.session_id, server_time, opened_at, server_serial_number=peer.serial_number)
