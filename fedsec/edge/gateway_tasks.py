"""What a gateway does beside its calls: looks at its files, asks the CA, registers nodes, cuts what was revoked, renews itself.

1. Each task goes on after a fault, which is logged once until it changes; none of them can end the gateway.
2. A revocation is in effect at the next look at the file, every two seconds: running calls of the certificate end, its key's sessions
   too, its node leaves the SuperLink. Calls that begin are checked anew in any case.
3. Nodes are compared with the list when it changes, when the SuperLink refuses a node, and every half minute.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Protocol

from fedsec.edge.authority import CaClient, renew_own, store_bundle, store_crl, wants_renewal
from fedsec.edge.gateway_calls import EdgeService
from fedsec.edge.gateway_state import GatewayState
from fedsec.edge.registration import members_of
from fedsec.edge.upstream import UpstreamError
from fedsec.errors import FedsecError, VerificationError

SYNC_S = 30.0
RETRY_S = 1.0
BUNDLE_S = 10.0
RENEW_RETRY_S = 60.0
POSTBOX_S = 0.02
"""How often to look whether the ServerApp has sent messages: one ``stat``."""


class HealthTold(Protocol):
    """Told when the gateway's health changes."""

    async def __call__(self, *, healthy: bool) -> None:
        """Take note."""


class Caretaker:
    """Runs the tasks.

    Args:
        state: of the gateway.
        service: whose calls are cut.
        refresh_s: how often files and the CA are looked at.
        on_health: told of changes.
    """

    def __init__(self, state: GatewayState, service: EdgeService, *, refresh_s: float, on_health: HealthTold) -> None:
        self._state, self._service, self._refresh_s, self._on_health = state, service, refresh_s, on_health
        self._tasks: list[asyncio.Task[None]] = []
        self._said: dict[str, str] = {}
        self._superlink_answers = False
        self._healthy = False
        self._bundle_at = 0.0
        self._renew_at = 0.0

    def is_healthy(self) -> bool:
        """Whether the gateway can serve its nodes."""
        return self._superlink_answers and self._state.trust.can_serve() and not self._state.stopping.is_set()

    def start(self) -> None:
        """Start all tasks."""
        jobs: list[tuple[str, Callable[[], Awaitable[float]]]] = [
            ("files", self._look),
            ("nodes", self._sync),
            ("postbox", self._look_into_postbox),
        ]
        if isinstance(self._state.authority, CaClient):
            jobs += [("ca", self._ask_ca), ("renewal", self._renew)]
        self._state.sync_wanted.set()
        self._tasks = [asyncio.create_task(self._repeat(name, job), name=name) for name, job in jobs]

    async def stop(self) -> None:
        """End all tasks."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _repeat(self, name: str, job: Callable[[], Awaitable[float]]) -> None:
        """Do the job again and again; it says after how many seconds."""
        while not self._state.stopping.is_set():
            try:
                pause_s = await job()
                self._said.pop(name, None)
            except (FedsecError, OSError) as error:
                pause_s = RETRY_S
                if self._said.get(name) != str(error):
                    self._said[name] = str(error)
                    self._state.log_fault(name, error)
            except Exception as error:  # noqa: BLE001 - a fault of ours must not end the care for revocations
                pause_s = RETRY_S
                self._state.log_fault(f"{name} (our fault)", error)
            await self._tell_health()
            await self._wait(name, pause_s)

    async def _wait(self, name: str, pause_s: float) -> None:
        if name != "nodes" or name in self._said:
            await asyncio.sleep(pause_s)
            return
        # Not wait_for: in Python 3.11 it swallows a cancellation that comes together with the event, and the task would never end.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._state.sync_wanted.wait()

    async def _tell_health(self) -> None:
        healthy = self.is_healthy()
        if healthy != self._healthy:
            self._healthy = healthy
            await self._on_health(healthy=healthy)

    async def _look(self) -> float:
        if self._state.trust.reload():
            self._apply()
        return self._refresh_s

    def _apply(self) -> None:
        """The lists or the identity changed."""
        state = self._state
        cut = self._service.cut_revoked()
        for key in state.registry.keys | state.sessions.keys:
            if state.trust.is_revoked(state.registry.serial_number(key) or 0):
                state.sessions.end(key)
        crl, roster = state.trust.standing.crl, state.trust.standing.roster
        state.audit.write(
            state.clock(),
            "lists",
            {
                "crl_number": crl.number if crl else None,
                "revoked": len(crl.serial_numbers) if crl else None,
                "roster_version": roster.version if roster else None,
                "calls_cut": cut,
            },
        )
        state.sync_wanted.set()

    async def _look_into_postbox(self) -> float:
        self._state.look_into_postbox()
        return POSTBOX_S

    async def _sync(self) -> float:
        state = self._state
        state.sync_wanted.clear()
        try:
            done = await state.registry.sync(state.upstream, members_of(state.trust.standing, state.clock()), state.trust.is_revoked)
        except UpstreamError:
            self._superlink_answers = False
            raise
        self._superlink_answers = True
        for what in done:
            state.audit.write(state.clock(), "node", {"what": what})
        state.limiter.forget_idle(state.registry.keys)
        return SYNC_S

    async def _ask_ca(self) -> float:
        state, client = self._state, self._state.authority
        assert isinstance(client, CaClient)
        folder, floors = state.home / "federation", state.trust.floors
        changed = True  # a list that does not verify may be that of a fresh intermediate: the bundle says whether the root stands by it
        with contextlib.suppress(VerificationError):
            changed = store_crl(
                folder,
                await client.crl(),
                state.trust.identity(),
                now=state.clock(),
                minimum_number=floors["crl_number"],
                check=state.trust.check_twin,
            )
        if changed or state.monotonic() >= self._bundle_at:
            store_bundle(
                folder,
                await client.bundle(),
                state.trust.identity(),
                now=state.clock(),
                minimum_version=floors["roster_version"],
                minimum_number=floors["crl_number"],
                check=state.trust.check_twin,
            )
            self._bundle_at = state.monotonic() + BUNDLE_S
        if state.trust.reload():
            self._apply()
        return self._refresh_s

    async def _renew(self) -> float:
        state, client = self._state, self._state.authority
        assert isinstance(client, CaClient)
        if wants_renewal(state.trust.identity(), state.clock()) and state.monotonic() >= self._renew_at:
            self._renew_at = state.monotonic() + RENEW_RETRY_S
            renewed = await renew_own(client, state.trust.identity(), state.home / "identity", now=state.clock())
            state.audit.write(
                state.clock(), "renewed", {"serial_number": f"{renewed.serial_number:X}", "until": renewed.not_after.isoformat()}
            )
            if state.trust.reload():
                self._apply()
        return self._refresh_s
