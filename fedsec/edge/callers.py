"""Who calls, may it, and what became of it: the frame around every call at the edge.

1. TLS 1.3, a node's certificate that is valid now and not revoked, calls a second and at a time: before the call does anything.
2. A call of a certificate that is revoked while it runs is ended; before anything goes to the SuperLink, and before an answer goes out,
   certificate, list and session are looked at again.
3. A refusal ends the call with its status and one sentence; whatever else goes wrong is the gateway's fault, and its log says what. Every
   call leaves one audit line.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from fedsec.edge.gateway_state import GatewayState
from fedsec.edge.refusal import Reason, Refused
from fedsec.edge.service import STATEMENT_METADATA
from fedsec.edge.signing import Call
from fedsec.edge.upstream import UpstreamError
from fedsec.errors import CertificateError, FedsecError
from fedsec.identity.tls import check_tls13, peer_certificate
from fedsec.identity.verify import VerifiedPeer


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


class Callers:
    """The calls that run.

    Args:
        state: of the gateway.
    """

    def __init__(self, state: GatewayState) -> None:
        self._state = state
        self._running: set[Running] = set()

    def cut_revoked(self) -> int:
        """End the running calls of certificates that are revoked by now; says how many."""
        cut = 0
        for call in [call for call in self._running if self._state.trust.is_revoked(call.peer.serial_number)]:
            if not call.revoked:
                call.revoked = True
                call.task.cancel()
                cut += 1
        return cut

    def check_again(self, call: Running, forward: Call) -> None:
        """The caller may still be served: much may have happened since the call came.

        Raises:
            Refused: revoked, expired, no good list, or the session ended.
        """
        self._state.trust.check_caller(call.certificate)
        if self._state.sessions.find(call.peer.public_key, forward.session_id) is None:
            raise Refused(Reason.SESSION, "the session ended while the call ran; say Hello again")

    @asynccontextmanager
    async def call(self, method: str, context: Any) -> AsyncIterator[Running]:
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
