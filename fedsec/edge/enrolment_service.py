"""The CA's service: enrolment, renewal, and what gateways go by; gRPC on a port of its own.

1. Its TLS certificate is its own, self-signed, pinned by hash in every token: a gRPC client cannot look at a server's URI, so that with
   a certificate of the federation the aggregator could pass for this service, collect tokens and mint clients.
2. Callers need no certificate: they show a token, or sign with the key of their certificate. Nothing is decided here; see
   ``identity.enrolment``.
3. Requests are small, few at a time, and few a second from one address; refusals are fewer still, and so are bytes of lists. A call waits in
   a worker for its request: for a few seconds only, few of one address, and never in all workers: with one more the oldest call of the
   address that has most is let go (``enrolment_limits.WaitingRoom``). Whoever sends headers and no body stops nobody else, from however many
   addresses; he has to open calls faster than an honest request takes from its headers to its end.
4. Who shows no token of this CA learns only that it is not accepted. Whoever holds a genuine one is told what is wrong with it.
5. One line of JSON is logged a decision; never a token. A used token that comes with another key is logged as an alarm, too.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import resource
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent import futures
from datetime import UTC, datetime
from typing import NoReturn

import grpc

from fedsec.edge.ca_host import CaHost
from fedsec.edge.enrolment_frames import (
    BUNDLE,
    CRL,
    ENROL,
    MAX_REPLY_BYTES,
    MAX_REQUEST_BYTES,
    RENEW,
    SERVICE,
    CrlReply,
    Empty,
    EnrolRequest,
    IssuedReply,
    RenewRequest,
    decode,
    encode,
)
from fedsec.edge.enrolment_limits import RateLimit, WaitingRoom, address_of
from fedsec.errors import DecodeError, FedsecError, SignatureError, StorageError, VerificationError
from fedsec.identity.enrolment import RenewalRequest, TokenReusedError
from fedsec.identity.register_rows import Record
from fedsec.identity.revocation import RevokedError
from fedsec.identity.tls import check_tls13, to_pem
from fedsec.identity.tokens import read_token
from fedsec.identity.verify import claimed_name

LOG = logging.getLogger("fedsec.enrolment")

WORKERS = 128
"""Calls that may wait for their request or for each other; the register takes one at a time anyway."""
AT_WORK = 8
"""Of these, how many may work at once."""
WAITING = 96
"""Of these, how many may wait for their request; the others are free for calls that bring it."""
CALLS_OF_ONE = 16
"""Calls of one address under way at once."""
MAX_CALLS_AT_ONCE = 1024
"""Begun or not; the rest is refused at once by gRPC."""
CONNECTION_FILES = 1 << 16
"""Open files that the process asks its system for: connections of strangers, too, are files."""
REQUEST_WITHIN_S = 5.0
"""How long a request may take to arrive."""
CALLS = {"burst": 200.0, "per_s": 20.0}
"""Calls of one method from one address; a gateway asks for the revocation list every few seconds, and devices may share its address."""
LISTS = {"burst": 64.0 * (1 << 20), "per_s": 4.0 * (1 << 20)}
"""Bytes of lists and bundles to one address: four of the largest bundles at once, then one every four seconds."""
REFUSALS = {"burst": 20.0, "per_s": 0.1}
"""Refused enrolments from one address, before it is not heard for a while."""

ALARM = "alarm"
"""Outcome in the log of a used token that was shown with another key."""

NOT_ACCEPTED = "the token is not accepted; ask for a new one"

_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.max_send_message_length", MAX_REPLY_BYTES),
    ("grpc.max_connection_idle_ms", 30_000),
    ("grpc.max_connection_age_ms", 120_000),
    ("grpc.max_connection_age_grace_ms", 30_000),
    ("grpc.max_concurrent_streams", CALLS_OF_ONE),
    ("grpc.server_handshake_timeout_ms", 5_000),
    ("grpc.so_reuseport", 0),
]

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """The machine's clock."""
    return datetime.now(tz=UTC)


class _Refused(Exception):  # noqa: N818 - a decision, not a fault
    """How a call ends that is not answered."""

    def __init__(self, status: grpc.StatusCode, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


class EnrolmentService:
    """The handlers, over a CA's folder.

    Args:
        host: the CA.
        clock: gives the time; aware.
    """

    def __init__(self, host: CaHost, *, clock: Clock = utc_now) -> None:
        self._host = host
        self._clock = clock
        self._calls = RateLimit(**CALLS)
        self._refusals = RateLimit(**REFUSALS)
        self._lists = RateLimit(**LISTS)
        self._waiting = WaitingRoom(WAITING)
        self._at_work = threading.BoundedSemaphore(AT_WORK)
        self._lock = threading.Lock()
        self._under_way: Counter[str] = Counter()

    def handler(self) -> grpc.GenericRpcHandler:
        """The service's methods, for ``grpc.Server.add_generic_rpc_handlers``."""
        methods = {ENROL: self._enrol, RENEW: self._renew, BUNDLE: self._bundle, CRL: self._crl}
        handlers = {name: grpc.stream_unary_rpc_method_handler(self._guarded(name, work)) for name, work in methods.items()}
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    def _guarded(self, method: str, work: Callable[[bytes], tuple[bytes, str]]) -> Callable[[Iterator[bytes], grpc.ServicerContext], bytes]:
        """On the wire a unary call is a stream of one request; taken as a stream, its caller is known before the request is there."""

        def handle(requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            address, now_s = address_of(context.peer()), time.monotonic()
            try:
                self._admit(context, method, address, now_s)
                with self._one_of_few(address):
                    request = self._one_request(requests, context, address)
                    with self._at_work:
                        answer, who = work(request)
                    self._weigh(method, answer, address, now_s)
            except TokenReusedError as error:
                _log(method, address, ALARM, str(error))
                refused = _refusal(error)
            except FedsecError as error:
                refused = _refusal(error)
            except _Refused as error:
                refused = error
            except Exception:  # a fault of ours: its words are for the log
                LOG.exception("a fault in %s", method)
                refused = _Refused(grpc.StatusCode.INTERNAL, "a fault of the service; its log has it")
            else:
                _log(method, address, "answered", who)
                return answer
            if method == ENROL and refused.status is not grpc.StatusCode.UNAVAILABLE:
                self._refusals.allows(address, now_s)
            _log(method, address, refused.status.name.lower(), str(refused.__cause__ or refused.detail))
            _abort(context, refused)

        return handle

    @contextlib.contextmanager
    def _one_of_few(self, address: str) -> Iterator[None]:
        """Count a call among those of its address."""
        with self._lock:
            if self._under_way[address] >= CALLS_OF_ONE:
                raise _Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many requests at once from this address; wait a moment")
            self._under_way[address] += 1
        try:
            yield
        finally:
            with self._lock:
                self._under_way[address] -= 1
                if not self._under_way[address]:
                    del self._under_way[address]

    def _weigh(self, method: str, answer: bytes, address: str, now_s: float) -> None:
        """Lists are large and for everybody: so much a second to one address."""
        if method in (BUNDLE, CRL) and not self._lists.allows(address, now_s, cost=float(len(answer))):
            raise _Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many lists to this address; wait a minute")

    def _one_request(self, requests: Iterator[bytes], context: grpc.ServicerContext, address: str) -> bytes:
        """The request of a call, which has exactly one and brings it in time."""
        late = threading.Timer(REQUEST_WITHIN_S, context.cancel)
        late.daemon = True
        late.start()
        place = self._waiting.enter(address, context.cancel)
        try:
            found = list(itertools.islice(requests, 2))
        except grpc.RpcError:  # the call ended: by its caller, by the timer, for another's sake, with the connection
            raise _Refused(grpc.StatusCode.DEADLINE_EXCEEDED, "the request did not come") from None
        finally:
            self._waiting.leave(place)
            late.cancel()
        if len(found) != 1:
            raise _Refused(grpc.StatusCode.INVALID_ARGUMENT, "not a request of this service")
        return found[0]

    def _admit(self, context: grpc.ServicerContext, method: str, address: str, now_s: float) -> None:
        """Each method has buckets of its own: what a client makes a gateway ask must not keep it from the revocation list."""
        check_tls13(context)
        guessing = method == ENROL and not self._refusals.allows(address, now_s, cost=0.0)
        if guessing or not self._calls.allows(f"{method} {address}", now_s):
            raise _Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many requests from this address; wait a minute")

    def _enrol(self, data: bytes) -> tuple[bytes, str]:
        request = decode(EnrolRequest, data)
        try:
            read_token(request.token)
            record = self._host.enrol(request.token, request.csr, now=self._clock())
        except (DecodeError, SignatureError) as error:
            raise _Refused(grpc.StatusCode.PERMISSION_DENIED, NOT_ACCEPTED) from error
        return self._issued(record)

    def _renew(self, data: bytes) -> tuple[bytes, str]:
        request = decode(RenewRequest, data)
        renewal = RenewalRequest(certificate_der=request.certificate, csr=request.csr, time_ms=request.time_ms, signature=request.signature)
        return self._issued(self._host.renew(renewal, now=self._clock()))

    def _issued(self, record: Record) -> tuple[bytes, str]:
        authority = self._host.authority
        reply = IssuedReply(record.certificate_der, authority.intermediate_der, authority.root_der, self._host.statement())
        return encode(reply), f"{claimed_name(record.certificate_der).uri} {record.serial_number:X}"

    def _bundle(self, data: bytes) -> tuple[bytes, str]:
        decode(Empty, data)
        return encode(self._host.bundle(now=self._clock())), ""

    def _crl(self, data: bytes) -> tuple[bytes, str]:
        decode(Empty, data)
        return encode(CrlReply(self._host.crl(now=self._clock()))), ""


def _refusal(error: FedsecError) -> _Refused:
    """The status and words of an error of ours; the log has the whole."""
    if isinstance(error, RevokedError):
        return _Refused(grpc.StatusCode.UNAUTHENTICATED, str(error))
    if isinstance(error, VerificationError):
        return _Refused(grpc.StatusCode.PERMISSION_DENIED, str(error))
    if isinstance(error, DecodeError):
        return _Refused(grpc.StatusCode.INVALID_ARGUMENT, "not a request of this service")
    refused = _Refused(grpc.StatusCode.UNAVAILABLE, "the CA cannot answer now; its log says why")
    refused.__cause__ = error if isinstance(error, StorageError) else None
    return refused


def _abort(context: grpc.ServicerContext, refused: _Refused) -> NoReturn:
    context.abort(refused.status, refused.detail)
    raise AssertionError("abort raises")


def _log(method: str, address: str, outcome: str, detail: str) -> None:
    level = {"answered": logging.INFO, ALARM: logging.ERROR}.get(outcome, logging.WARNING)
    if method in (BUNDLE, CRL) and outcome == "answered":
        level = logging.DEBUG
    LOG.log(level, "%s", json.dumps({"method": method, "from": address, "outcome": outcome, "detail": detail[:300]}))


def _want_files(number: int) -> None:
    """As many open files as the system lets us have, up to ``number``: some systems begin with 1024, which 1024 idle connections use up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = number if hard == resource.RLIM_INFINITY else min(number, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def make_server(host: CaHost, address: str, *, passphrase: bytes | None = None, clock: Clock = utc_now) -> tuple[grpc.Server, int]:
    """A server for the service, not started yet.

    Args:
        host: the CA.
        address: ``host:port`` to listen on; port 0 takes a free one.
        passphrase: of the service's key.
        clock: gives the time.

    Returns:
        The server, and its port.

    Raises:
        StorageError: the service's key, or the port is taken.
    """
    _want_files(CONNECTION_FILES)
    pool = futures.ThreadPoolExecutor(WORKERS, thread_name_prefix="enrolment")
    server = grpc.server(pool, options=_OPTIONS, maximum_concurrent_rpcs=MAX_CALLS_AT_ONCE)
    server.add_generic_rpc_handlers((EnrolmentService(host, clock=clock).handler(),))
    chain = to_pem(host.service.certificate_der)
    credentials = grpc.ssl_server_credentials([(host.service_key_pem(passphrase), chain)])
    try:
        port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise StorageError(f"cannot listen on {address}: is another service there?") from error
    return server, port
