"""What the gateway's parts share: settings, trust, sessions, limits, nodes, the SuperLink, the log. One event loop uses it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from fedsec.edge import edge_pb2
from fedsec.edge.audit import AuditLog, Folding
from fedsec.edge.collecting import Collector
from fedsec.edge.deliveries import Deliveries
from fedsec.edge.limits import Limiter
from fedsec.edge.longpoll import Holders, Spool
from fedsec.edge.metrics import Metrics
from fedsec.edge.postbox import Postbox
from fedsec.edge.refusal import Reason, Refused
from fedsec.edge.registration import Registry
from fedsec.edge.releases import Releases
from fedsec.edge.sessions import Sessions
from fedsec.edge.signing import Call
from fedsec.edge.trust import Trust
from fedsec.edge.upstream import Response, Upstream, UpstreamBody, UpstreamError
from fedsec.identity.verify import VerifiedPeer

_UNAUTHORIZED = 401
log = logging.getLogger("fedsec.gateway")


def utc_now() -> datetime:
    """The machine's clock."""
    return datetime.now(UTC)


class Authority(Protocol):
    """Whoever renews certificates for the gateway's callers: the CA's service, or nobody."""

    async def renew(self, certificate_der: bytes, peer: VerifiedPeer, request: edge_pb2.RenewRequest) -> tuple[bytes, bytes]:
        """The renewed certificate and its issuer, in DER.

        Raises:
            Refused: the CA refuses, or is not there.
        """


@dataclass(frozen=True, kw_only=True)
class CallSettings:
    """How long the gateway waits.

    Attributes:
        hold_s: a PullMessages call is held for at most that long; below the 30 s after which a SuperNode gives up.
        head_timeout_s: for the first message of a call.
        body_timeout_s: for a body, beside its size at ``min_bytes_per_s``.
        min_bytes_per_s: slower senders are refused.
    """

    hold_s: float = 25.0
    head_timeout_s: float = 10.0
    body_timeout_s: float = 10.0
    min_bytes_per_s: float = 64 * 1024


@dataclass(kw_only=True, eq=False)
class GatewayState:
    """See the module.

    Attributes:
        settings: how long to wait.
        home: the server's folder.
        trust: whom to believe.
        registry: the nodes.
        limiter: how much one client may ask for.
        spool: pulled messages that were not confirmed.
        deliveries: what each node got.
        collector: replies that are not whole yet.
        postbox: hints from and for the ServerApp.
        upstream: the SuperLink.
        authority: the CA.
        releases: release files.
        audit: the audit log.
        metrics: counters.
        clock: gives the time, aware.
        monotonic: gives seconds that do not go back.
        sessions: of the agents.
        holders: of PullMessages calls.
        stopping: set when the gateway is about to end.
        sync_wanted: set when nodes and list may differ.
    """

    settings: CallSettings
    home: Path
    trust: Trust
    registry: Registry
    limiter: Limiter
    spool: Spool
    deliveries: Deliveries
    collector: Collector
    postbox: Postbox
    upstream: Upstream
    authority: Authority
    releases: Releases
    audit: AuditLog
    metrics: Metrics
    clock: Callable[[], datetime] = utc_now
    monotonic: Callable[[], float] = time.monotonic
    sessions: Sessions = field(default_factory=Sessions)
    holders: Holders = field(default_factory=Holders)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    sync_wanted: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.registry.on_gone = self.forget_node
        self._asked = asyncio.Event()
        self._folding = Folding()
        self._used: dict[int, float] = {}
        self._locks: dict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._reply_locks: dict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._tasks: set[asyncio.Task[Any]] = set()

    async def ask(self, call: Call, body: UpstreamBody, *, path: str = "") -> Response:
        """Send a checked call to the SuperLink.

        Args:
            call: with Flower's headers.
            body: protobuf.
            path: another than the call's.

        Raises:
            UpstreamError: it does not answer.
            Refused: it does not accept the node: an outage on this side, since the certificate is good. A node told 401 would end.
        """
        headers = {"flwr-public-key": call.public_key, "flwr-timestamp": call.timestamp, "flwr-signature": call.flower_signature}
        try:
            response = await self.upstream.post(path or call.path, body, headers)
        except UpstreamError:
            self.sync_wanted.set()  # asks the SuperLink at once, and again until it answers: the health follows
            raise
        if response.status == _UNAUTHORIZED:
            self.sync_wanted.set()
            raise Refused(Reason.SUPERLINK, "the SuperLink does not accept the node; it is registered again, come back later")
        return response

    async def confirm(self, node_id: int, delivery: bytes) -> None:
        """Forget a pulled answer that the node has."""
        waiting = self.spool.waiting(node_id)
        if waiting is not None and waiting.delivery == delivery:
            async with self.pull_lock(node_id):
                await asyncio.to_thread(self.spool.confirm, node_id, delivery)

    def pull_lock(self, node_id: int) -> asyncio.Lock:
        """Held while a node's messages are asked for, kept or forgotten."""
        return self._locks[node_id]

    async def confirm_message(self, node_id: int, message_id: str) -> None:
        """The node has a message in full: whatever of it was kept to be served again is not needed."""
        self.deliveries.confirmed(node_id, message_id)
        waiting = self.spool.waiting(node_id)
        if waiting is not None and waiting.message_ids == (message_id,):
            await self.confirm(node_id, waiting.delivery)

    async def forget_node(self, public_key: bytes, node_id: int) -> None:
        """A node was taken from the SuperLink for good: nothing of it is kept."""
        self.sessions.end(public_key)
        self.holders.oust(node_id)
        async with self.pull_lock(node_id):
            if (waiting := self.spool.waiting(node_id)) is not None:
                await asyncio.to_thread(self.spool.confirm, node_id, waiting.delivery)
            await asyncio.to_thread(self.deliveries.forget, node_id)
        async with self.reply_lock(node_id):
            await asyncio.to_thread(self.collector.forget, node_id)

    def reply_lock(self, node_id: int) -> asyncio.Lock:
        """Held while a node's replies begin or are forgotten."""
        return self._reply_locks[node_id]

    @property
    def asked(self) -> asyncio.Event:
        """Set when the ServerApp has sent messages again; another one each time, so that whoever takes it first misses none."""
        return self._asked

    def look_into_postbox(self) -> None:
        """Wake those who hold a node's PullMessages, if the ServerApp has sent messages."""
        if self.postbox.was_asked():
            woken, self._asked = self._asked, asyncio.Event()
            woken.set()

    def note_use(self, node_id: int) -> None:
        """The node got a message, or does something with one."""
        self._used[node_id] = self.monotonic()

    def quiet_s(self, node_id: int) -> float:
        """Seconds since the node was last in use; 0 when it is new."""
        return self.monotonic() - self._used.setdefault(node_id, self.monotonic())

    def keep_task(self, task: asyncio.Task[Any]) -> None:
        """Keep a task that nobody may wait for any more from being collected; its fault is then the log's."""
        self._tasks.add(task)
        task.add_done_callback(self._drop_task)

    def _drop_task(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited has it too

    async def finish_tasks(self) -> None:
        """Wait for answers of the SuperLink that are on their way, so that they are on disk."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=10.0)

    def log_call(self, facts: dict[str, Any], started: float) -> None:
        """One line and one count for a call."""
        result = facts.get("refused", "ok")
        key = tuple(facts.get(name) for name in ("client", "method", "path", "refused", "status"))
        folded = self._folding.left_out(key, self.monotonic())
        if folded is not None:
            more = {"folded_lines": folded} if folded else {}
            self.audit.write(self.clock(), "call", facts | {"seconds": round(self.monotonic() - started, 4), **more})
        path = str(facts.get("path", "")).rsplit("/", 1)[-1]
        self.metrics.count("calls_total", method=str(facts["method"]), path=path, result=str(result))
        self.metrics.count("received_bytes_total", float(facts.get("bytes", 0)) if result == "ok" else 0.0)
        self.metrics.count("sent_bytes_total", float(facts.get("answer_bytes", 0)))

    def log_fault(self, what: str, error: BaseException) -> None:
        """Something on our side went wrong."""
        log.warning("%s: %s", what, error)
        self.audit.write(self.clock(), "fault", {"what": what, "error": f"{type(error).__name__}: {error}"})
        self.metrics.count("faults_total", what=what.replace(" ", "-"))
