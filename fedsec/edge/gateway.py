"""The gateway: the one port of a server host that the outside sees; ``python -m fedsec.edge.gateway --home DIR``.

1. Mutual TLS 1.3 with the server's identity, which is read anew for each handshake; trust is the pinned root.
2. What is checked for each call stands in ``gateway_calls``. Here: the port and its limits, and what goes on beside the calls: files are
   looked at every two seconds, the CA is asked, nodes are registered, revoked sessions are cut, the own certificate is renewed.
3. SIGTERM and SIGINT end it gracefully: no new calls, held ones are answered with no messages, answers on their way are written down.
4. A health service (grpc.health.v1) says SERVING while there are good lists and the SuperLink answers.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from fedsec.edge import edge_pb2
from fedsec.edge.audit import AuditLog
from fedsec.edge.authority import CaClient, NoAuthority
from fedsec.edge.collecting import Collector
from fedsec.edge.deliveries import Deliveries
from fedsec.edge.gateway_calls import EdgeService
from fedsec.edge.gateway_state import CallSettings, GatewayState, utc_now
from fedsec.edge.gateway_tasks import Caretaker
from fedsec.edge.limits import Limiter
from fedsec.edge.longpoll import Spool
from fedsec.edge.memory import keep_freed_memory
from fedsec.edge.metrics import Metrics, serve_metrics
from fedsec.edge.postbox import Postbox
from fedsec.edge.registration import Registry
from fedsec.edge.releases import Releases
from fedsec.edge.server_settings import GatewaySettings, ServerSettings, load_server_settings
from fedsec.edge.service import FRAME_BYTES, MAX_MESSAGE_BYTES, SERVICE, read_request, serialize
from fedsec.edge.trust import Trust
from fedsec.edge.upstream import Upstream
from fedsec.errors import FedsecError, StorageError
from fedsec.files import exclusive_lock
from fedsec.identity.folder import use_passphrase_file
from fedsec.identity.tls import server_credentials

GRACE_S = 5.0
MAX_STREAMS = 64
HANDSHAKE_TIMEOUT_MS = 10_000


def server_options(settings: GatewaySettings) -> list[tuple[str, int]]:
    """Options of gRPC for the port."""
    age_ms = int(settings.max_connection_age_s * 1000)
    return [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", MAX_STREAMS),
        ("grpc.max_metadata_size", 8192),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_MS),
        ("grpc.max_connection_age_ms", age_ms),
        ("grpc.max_connection_age_grace_ms", int((settings.hold_s + 10) * 1000)),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_frame_size", FRAME_BYTES),
        ("grpc.so_reuseport", 0),
    ]


def make_state(settings: ServerSettings) -> GatewayState:
    """Everything that the gateway keeps.

    Raises:
        FedsecError: the identity cannot be used, or a file is damaged.
    """
    home = settings.home
    folder = home / "gateway"
    try:
        for path in (folder, *(folder / name for name in ("spool", "delivered", "collect")), home / "federation"):
            path.mkdir(mode=0o700, exist_ok=True, parents=True)
    except OSError as error:
        raise StorageError(f"cannot make {folder}: {error.strerror or error}") from error
    gateway = settings.gateway
    faults: list[tuple[str, FedsecError]] = []
    trust = Trust(
        home,
        federation=settings.federation,
        server_name=settings.name,
        clock=utc_now,
        on_fault=lambda what, error: faults.append((what, error)),
    )
    state = GatewayState(
        settings=CallSettings(hold_s=gateway.hold_s, body_timeout_s=gateway.body_timeout_s, min_bytes_per_s=gateway.min_bytes_per_s),
        home=home,
        trust=trust,
        registry=Registry(folder / "nodes.json"),
        limiter=Limiter(settings.limits),
        spool=Spool(folder / "spool"),
        deliveries=Deliveries(folder / "delivered"),
        collector=Collector(folder / "collect", node_bytes=4 * settings.limits.object_bytes),
        postbox=Postbox(folder),
        upstream=Upstream(
            "127.0.0.1", settings.superlink.port, home / "superlink" / "ca.pem", max_answer_bytes=settings.limits.object_bytes + (1 << 20)
        ),
        authority=NoAuthority() if settings.ca is None else CaClient(settings.ca),
        releases=Releases(home / "releases"),
        audit=AuditLog(folder / "audit.jsonl"),
        metrics=Metrics(),
    )
    trust.on_fault = state.log_fault
    for what, fault in faults:
        state.log_fault(what, fault)
    return state


class Gateway:
    """One gateway in the running event loop.

    Args:
        settings: of the server.

    Raises:
        FedsecError: as :func:`make_state`.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self.state = make_state(settings)
        self._service = EdgeService(self.state)
        self._health = health.aio.HealthServicer()
        self._care = Caretaker(self.state, self._service, refresh_s=settings.gateway.refresh_s, on_health=self._set_health)
        self._server: Any = None
        self._metrics: asyncio.Server | None = None
        self.port = 0

    async def start(self) -> None:
        """Listen.

        Raises:
            StorageError: the port is taken.
        """
        server = grpc.aio.server(options=server_options(self._settings.gateway))
        server.add_generic_rpc_handlers((_handlers(self._service),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        address = self._settings.gateway.listen
        try:
            self.port = server.add_secure_port(address, server_credentials(self.state.trust.identity))
            if self._settings.gateway.metrics_port:
                port = self._settings.gateway.metrics_port
                self._metrics = await serve_metrics(self.state.metrics, port, self._care.is_healthy)
        except (RuntimeError, OSError) as error:
            raise StorageError(f"cannot listen on {address}: is another gateway there?") from error
        self._show_gauges()
        await self._set_health(healthy=False)
        await server.start()
        self._server = server
        self._care.start()
        self.state.audit.write(self.state.clock(), "start", {"listen": address, "port": self.port})

    async def stop(self, grace_s: float = GRACE_S) -> None:
        """End gracefully: see the module."""
        state = self.state
        state.stopping.set()
        await self._health.enter_graceful_shutdown()
        await self._care.stop()
        if self._server is not None:
            await self._server.stop(grace_s)
        if self._metrics is not None:
            self._metrics.close()
        await state.finish_tasks()
        await asyncio.to_thread(state.upstream.close)
        if isinstance(state.authority, CaClient):
            state.authority.close()
        state.audit.write(state.clock(), "stop", {})
        state.audit.close()

    async def _set_health(self, *, healthy: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if healthy else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", SERVICE):
            await self._health.set(name, status)

    def _show_gauges(self) -> None:
        state = self.state

        def seconds_left() -> float:
            return (state.trust.identity().not_after - state.clock()).total_seconds()

        for name, read in {
            "sessions": lambda: len(state.sessions),
            "nodes": lambda: len(state.registry),
            "held_pulls": lambda: len(state.holders),
            "unconfirmed_answers": lambda: len(state.spool),
            "unfinished_replies": lambda: len(state.collector),
            "held_bytes": lambda: state.limiter.held_bytes,
            "certificate_seconds_left": seconds_left,
            "healthy": lambda: float(self._care.is_healthy()),
        }.items():
            state.metrics.gauge(name, read)


def _handlers(service: EdgeService) -> grpc.GenericRpcHandler:
    """The service's methods, with their messages."""

    def unary(work: Callable[[Any, Any], Awaitable[Any]], request: Any, reply: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(
            work, request_deserializer=request.FromString, response_serializer=reply.SerializeToString
        )

    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            "Hello": unary(service.hello, edge_pb2.HelloRequest, edge_pb2.HelloReply),
            "Renew": unary(service.renew, edge_pb2.RenewRequest, edge_pb2.RenewReply),
            "Bundle": unary(service.bundle, edge_pb2.BundleRequest, edge_pb2.BundleReply),
            "Forward": grpc.stream_stream_rpc_method_handler(
                service.forward,
                request_deserializer=read_request,
                response_serializer=serialize,
            ),
        },
    )


async def run_gateway(settings: ServerSettings) -> None:
    """Run until SIGTERM or SIGINT.

    Raises:
        FedsecError: it cannot start.
    """
    end = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end.set)
    with exclusive_lock(settings.home / "gateway.lock", timeout_s=10.0, what="gateway"):
        gateway = Gateway(settings)
        await gateway.start()
        print(f"gateway: listening on port {gateway.port}", flush=True)  # noqa: T201 - whoever started it waits for this line
        await end.wait()
        await gateway.stop()


def main() -> None:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(prog="fedsec.edge.gateway", description="The gateway of a server host.")
    parser.add_argument("--home", type=Path, required=True, help="the server's folder, with server.toml")
    parser.add_argument(
        "--passphrase-file", type=Path, default=None, help="file with the key's passphrase; default $FEDSEC_PASSPHRASE_FILE"
    )
    arguments = parser.parse_args()
    keep_freed_memory()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    try:
        use_passphrase_file(arguments.passphrase_file)
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(run_gateway(load_server_settings(arguments.home)))
    except FedsecError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - a process of its own
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
