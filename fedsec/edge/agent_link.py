"""An agent's connection to the gateway: one keep-alive channel with a proven session, opened anew as often as it takes.

1. No call goes out before the other end proved that it is the server which the settings name, and that it sees our own certificate. That
   it is that server TLS checks anew at every reconnection (``identity.tls.server_target``), before a byte of a call. A channel that left
   the connection it was proven on is let go all the same, and the next one begins with another Hello.
2. Whatever the wire does, a call either gets the SuperLink's answer, or ends within its time with a status that the SuperNode handles:
   503 comes back later, 401 ends the node. 401 is for a node that the gateway told it is not to come back, and for nothing else.
3. Reconnecting waits longer each time, up to 15 s, with jitter, so that a restarted gateway is not met by all clients at once; a node that
   is refused asks once a minute.
4. A renewed certificate gets a connection of its own; the old one ends when its last call has.

Source: design note IDENTITY; ``edge.proto`` for the statuses.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable
from datetime import datetime, timedelta

import grpc
import grpc.aio

import fedsec
from fedsec.edge import edge_pb2
from fedsec.edge.agent_channel import (
    CallFailedError,
    Connection,
    FlowerSigner,
    LinkSettings,
    LinkState,
    reason_of,
    sentence_of,
    statement_of,
)
from fedsec.edge.edge_client import Answer, EdgeSession, open_session
from fedsec.edge.refusal import Reason
from fedsec.edge.service import CLIENT_OPTIONS, EdgeStub
from fedsec.errors import CertificateError, DecodeError, FedsecError, SignatureError, VerificationError
from fedsec.identity.enrolment import make_renewal
from fedsec.identity.folder import Identity
from fedsec.identity.revocation import RevokedError
from fedsec.identity.tls import channel_credentials, channel_options

_logger = logging.getLogger(__name__)

RETRY_WAIT_S = 0.5
HELLO_TIMEOUT_S = 10.0
CONTROL_TIMEOUT_S = 20.0
DRAIN_S = 600.0
"""How long an old connection may serve the calls that it has."""

MAX_CLOCK_OFFSET = timedelta(hours=24)

_CODE = grpc.StatusCode
_OUTAGES_BEHIND = frozenset({Reason.NOT_REGISTERED, Reason.NO_REVOCATION_LIST, Reason.SUPERLINK, Reason.CA})
"""The gateway is well and says what is not: no reason for another Hello."""

_OTHER_SUBJECT = "Hostname Verification Check failed"
"""What gRPC says when the certificate's subject is another than the server's that was asked for."""


class Link:
    """The connection.

    Args:
        settings: where to.
        identity: the node's; replaced by :meth:`adopt`.
        on_state: told about each change, with a sentence; must not block.
        clock: this machine's, aware; the gateway's certificate is checked against it.
        jitter: draws from 0 to 1.
        is_revoked: whether the newest revocation list names a certificate; asked about the gateway's at each Hello.
        on_statement: told of a root's statement that a refusal brought, unverified.
    """

    def __init__(
        self,
        settings: LinkSettings,
        identity: Identity,
        *,
        on_state: Callable[[LinkState, str], None],
        clock: Callable[[], datetime],
        jitter: Callable[[], float] = random.random,
        is_revoked: Callable[[int], bool] = lambda _serial_number: False,
        on_statement: Callable[[bytes], None] = lambda _statement: None,
    ) -> None:
        self._on_statement = on_statement
        self._is_revoked = is_revoked
        self._settings, self._on_state, self._clock, self._jitter = settings, on_state, clock, jitter
        self.identity = identity
        self.state = LinkState.CONNECTING
        self.offset_s = 0.0
        self._current: Connection | None = None
        self._ready = asyncio.Event()
        self._stale = asyncio.Event()
        self._opening = asyncio.Lock()
        self._drains: set[asyncio.Task[None]] = set()

    # --- Staying connected --------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Stay connected until cancelled."""
        attempt = 0
        try:
            while True:
                self._stale.clear()
                if await self._try_to_connect():
                    attempt = 0
                    await self._stale.wait()
                    self._ready.clear()
                    if self.state is LinkState.CONNECTED:
                        self._change(LinkState.CONNECTING, "the session ended; a new one is being opened")
                    continue
                await asyncio.sleep(self._wait_s(attempt))
                attempt += 1
        finally:
            await self._close_all()

    def _wait_s(self, attempt: int) -> float:
        refused = self.state in (LinkState.UNAUTHORISED, LinkState.EXPIRED)
        longest = self._settings.refused_wait_s if refused else self._settings.longest_wait_s
        wait_s = longest if refused else min(longest, self._settings.first_wait_s * 2.0 ** min(attempt, 20))
        return wait_s * (0.5 + 0.5 * self._jitter())

    async def _try_to_connect(self) -> bool:
        try:
            async with self._opening:
                await self._replace(await self._open(self.identity, self._current))
        except grpc.aio.AioRpcError as error:
            self._ready.clear()
            self._note_failure(error)
            return False
        except (VerificationError, DecodeError) as error:
            self._ready.clear()
            self._change(LinkState.WRONG_SERVER, str(error))
            await self._drop_current()
            return False
        return True

    async def _open(self, identity: Identity, known: Connection | None = None) -> Connection:
        """A session, on the channel that is there already if it is this identity's and works, else on a new one."""
        if known is not None and known.identity is identity and known.is_ready():
            with contextlib.suppress(grpc.aio.AioRpcError):
                session = await self._hello(known.stub, identity)
                return Connection(identity, known.channel, known.stub, session, known.flower)
        options = [*channel_options(self._settings.server_name), *CLIENT_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
        channel = grpc.aio.secure_channel(self._settings.server, channel_credentials(identity), options=options)
        stub = EdgeStub(channel)
        try:
            session = await self._hello(stub, identity)
        except BaseException:
            await channel.close()
            raise
        return Connection(identity, channel, stub, session, FlowerSigner(identity.signer))

    async def _hello(self, stub: EdgeStub, identity: Identity) -> EdgeSession:
        session = await open_session(
            stub,
            identity.signer,
            certificate_der=identity.certificate_der,
            root_der=identity.root_der,
            federation=identity.name.federation,
            server_name=self._settings.server_name,
            agent_version=f"fedsec {fedsec.__version__}",
            now=self._clock(),
            timeout_s=HELLO_TIMEOUT_S,
            accepted=identity.accepted,
        )
        if self._is_revoked(session.server_serial_number):
            raise RevokedError(f"the gateway's certificate {session.server_serial_number:X} was revoked; its operator must enrol it anew")
        offset = session.now() - self._clock()
        if abs(offset) > MAX_CLOCK_OFFSET:  # it serves for Flower's time stamps only; a gateway that is days off is up to something
            raise CertificateError(f"the gateway's clock is {offset} from ours; set this machine's clock, or ask the server's operator")
        return session

    async def _replace(self, connection: Connection) -> None:
        old, self._current = self._current, connection
        if old is not None:
            if old.watch is not None:
                old.watch.cancel()
            if old.channel is not connection.channel:
                self._drain(old)
        connection.watch = asyncio.create_task(self._watch(connection), name="watch the channel")
        self.offset_s = (connection.session.now() - self._clock()).total_seconds()
        self._ready.set()
        self._change(LinkState.CONNECTED, f"connected to {self._settings.server}")

    async def _watch(self, connection: Connection) -> None:
        """Let go of a channel as soon as it leaves the connection that was proven."""
        while connection.is_ready():
            await connection.channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
        self._let_go(connection)

    def _let_go(self, connection: Connection) -> None:
        if connection is self._current:
            self._ready.clear()
            self._stale.set()

    def _drain(self, connection: Connection) -> None:
        async def drain() -> None:
            if connection.calls:
                with contextlib.suppress(TimeoutError):  # not wait_for: in Python 3.11 it can swallow a cancellation
                    async with asyncio.timeout(DRAIN_S):
                        await connection.idle.wait()
            await connection.channel.close()

        task = asyncio.create_task(drain(), name="drain an old connection")
        self._drains.add(task)
        task.add_done_callback(self._drains.discard)

    async def _drop(self, connection: Connection) -> None:
        if connection is self._current:
            await self._drop_current()

    async def _drop_current(self) -> None:
        current, self._current = self._current, None
        if current is not None:
            if current.watch is not None:
                current.watch.cancel()
            await current.channel.close()

    async def _close_all(self) -> None:
        for task in list(self._drains):
            task.cancel()
        await self._drop_current()

    def _note_failure(self, error: grpc.aio.AioRpcError) -> None:
        sentence = sentence_of(error)
        if (statement := statement_of(error)) is not None:
            self._on_statement(statement)
        if error.code() is _CODE.UNAUTHENTICATED:
            self._change(LinkState.UNAUTHORISED, sentence)
        elif self._clock() > self.identity.not_after:
            ended = f"{self.identity.not_after:%Y-%m-%d %H:%M:%S} UTC"
            self._change(LinkState.EXPIRED, f"this node's certificate expired at {ended}; enrol again with a new token")
        elif _OTHER_SUBJECT in (error.details() or ""):
            wanted = self._settings.server_name
            self._change(LinkState.WRONG_SERVER, f"whoever answers at {self._settings.server} is not the server {wanted}: TLS ended it")
        else:
            self._change(LinkState.CONNECTING, f"no connection to {self._settings.server}: {sentence}")

    def _change(self, state: LinkState, sentence: str) -> None:
        if state is not self.state:
            _logger.log(logging.INFO if state is LinkState.CONNECTED else logging.WARNING, "%s: %s", state.value, sentence)
        self.state = state
        self._on_state(state, sentence)

    def check_server(self) -> None:
        """Another revocation list or statement of the root came: leave a server that may not count any more, at once."""
        current = self._current
        if current is None:
            return
        if self._is_revoked(current.session.server_serial_number) or current.identity.accepted != self.identity.accepted:
            self._ready.clear()
            self._stale.set()

    def check_again(self) -> None:
        """Open a new session at the next opportunity: the answer said that something about this one is off."""
        self._stale.set()

    # --- Calls ------------------------------------------------------------------------------------------------------------------------

    def public_key(self) -> bytes:
        """The node's public key, as Flower writes it."""
        return FlowerSigner(self.identity.signer).public_key

    async def forward(self, path: str, body: bytes, *, received_pull: bytes = b"", timeout_s: float) -> Answer:
        """Forward one call of the SuperNode, again and again if need be, within its time.

        Raises:
            CallFailedError: with the status that the SuperNode is to see.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            connection = await self._connection(deadline)
            if not connection.is_ready():
                self._let_go(connection)
                await asyncio.sleep(0)
                continue
            left_s = max(0.05, deadline - time.monotonic())
            try:
                with connection.used():
                    headers = connection.flower.headers(connection.session.now())
                    return await connection.session.forward(path, body, headers, received_pull=received_pull, timeout_s=left_s)
            except grpc.aio.AioRpcError as error:
                wait_s = self._after(error, connection)
            except DecodeError:
                wait_s = RETRY_WAIT_S
            except SignatureError as error:  # somebody else answered: nothing of it was handed on, and nothing more goes there
                _logger.warning("an answer was not the gateway's: %s", error)
                self._let_go(connection)
                await self._drop(connection)
                wait_s = RETRY_WAIT_S
            except asyncio.CancelledError:  # the channel was closed under the call; or this task is to end
                if (task := asyncio.current_task()) is None or task.cancelling():
                    raise
                wait_s = RETRY_WAIT_S
            if time.monotonic() + wait_s >= deadline:
                raise CallFailedError(503, "the gateway did not answer in time")
            await asyncio.sleep(wait_s * (0.5 + 0.5 * self._jitter()))

    async def _connection(self, deadline: float) -> Connection:
        if self.state in (LinkState.UNAUTHORISED, LinkState.EXPIRED):
            raise CallFailedError(401, f"this node is {self.state.value}")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                while not self._ready.is_set():  # again and again: a connection may have gone before this task got to see it
                    await self._ready.wait()
        if self._current is None or not self._ready.is_set():
            status = 401 if self.state in (LinkState.UNAUTHORISED, LinkState.EXPIRED) else 503
            raise CallFailedError(status, f"no connection to the gateway ({self.state.value})")
        return self._current

    def _after(self, error: grpc.aio.AioRpcError, connection: Connection) -> float:
        """What a failed call means for the link; seconds until it may be tried again.

        Raises:
            CallFailedError: it may not.
        """
        code, reason = error.code(), reason_of(error)
        if code in (_CODE.PERMISSION_DENIED, _CODE.INVALID_ARGUMENT):
            _logger.error("the gateway forbids a call: %s", sentence_of(error))
            raise CallFailedError(400, sentence_of(error))
        if code is _CODE.RESOURCE_EXHAUSTED:
            if reason is Reason.SIZE or reason is None:  # None: gRPC's own limit on a message
                raise CallFailedError(413, sentence_of(error))
            return 2 * RETRY_WAIT_S
        if connection is not self._current:  # an old connection's trouble: the call goes on on the new one
            return 0.0
        if code is _CODE.UNAUTHENTICATED:
            self._ready.clear()
            self._change(LinkState.UNAUTHORISED, sentence_of(error))
            self._stale.set()
            raise CallFailedError(401, sentence_of(error))
        if code is _CODE.FAILED_PRECONDITION:
            self._ready.clear()
            self._stale.set()
            return 0.0
        if code is _CODE.UNAVAILABLE and reason not in _OUTAGES_BEHIND:
            self._ready.clear()
            self._stale.set()
        return RETRY_WAIT_S

    # --- Certificate and releases ---------------------------------------------------------------------------------------------------

    async def renew(self) -> tuple[bytes, bytes]:
        """Ask for a certificate for the same key; it is not used yet.

        Returns:
            Certificate and intermediate, unverified.

        Raises:
            CallFailedError: no connection, or the CA refused.
        """
        connection = await self._connection(time.monotonic() + CONTROL_TIMEOUT_S)
        time_ms = int(connection.session.now().timestamp() * 1000)
        request = make_renewal(connection.identity.signer, connection.identity.certificate_der, time_ms=time_ms)
        message = edge_pb2.RenewRequest(csr=request.csr, issued_for_ms=request.time_ms, signature=request.signature)
        try:
            with connection.used():
                reply = await connection.stub.renew(message, timeout=CONTROL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise CallFailedError(503, f"the certificate was not renewed: {sentence_of(error)}") from None
        return reply.certificate, reply.intermediate

    async def bundle(self) -> edge_pb2.BundleReply:
        """Releases and revocation list as the gateway has them, unverified.

        Raises:
            CallFailedError: no connection, or refused.
        """
        connection = await self._connection(time.monotonic() + CONTROL_TIMEOUT_S)
        try:
            with connection.used():
                reply: edge_pb2.BundleReply = await connection.stub.bundle(edge_pb2.BundleRequest(), timeout=CONTROL_TIMEOUT_S)
                return reply
        except grpc.aio.AioRpcError as error:
            raise CallFailedError(503, f"no bundle: {sentence_of(error)}") from None

    async def adopt(self, identity: Identity) -> None:
        """Go on with a renewed certificate: a new connection first, then the old one ends with its last call.

        Raises:
            FedsecError: the new connection did not come about; the old one is still in use, and the next one will be the new identity's.
        """
        self.identity = identity
        try:
            async with self._opening:
                await self._replace(await self._open(identity))
        except grpc.aio.AioRpcError as error:
            raise FedsecError(f"no connection with the new certificate: {sentence_of(error)}") from None
