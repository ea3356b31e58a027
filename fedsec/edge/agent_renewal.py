"""Keeping a node's certificate fresh: when to ask, and what is accepted.

1. At two thirds of its life, plus a twelfth at random so that a federation's nodes do not ask together; over the live connection, for the
   same key and name.
2. The new certificate is verified and on disk before it is used; the connection changes over without dropping a call.
3. A failure is tried again, more often as the end comes near; the old certificate serves until then.
4. A certificate that somebody else put into the folder (the command line, or a new enrolment with the same key) is taken up too.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

from fedsec.edge.agent_link import Link
from fedsec.edge.agent_status import Status
from fedsec.errors import FedsecError
from fedsec.identity.folder import Identity, load_identity, replace_certificate
from fedsec.identity.verify import BACKDATE, verify_peer

_logger = logging.getLogger(__name__)

LOOK_EVERY_S = 5.0
SHORTEST_RETRY = timedelta(seconds=20)


def renewal_time(identity: Identity, jitter: float) -> datetime:
    """When to renew.

    Args:
        identity: with the certificate.
        jitter: from 0 to 1.
    """
    begins = identity.not_before + BACKDATE
    life = identity.not_after - begins
    return begins + life * (2 / 3) + life / 12 * jitter


class Renewal:
    """Renews one identity.

    Args:
        link: the connection.
        folder: of the identity.
        status: told what happens.
        clock: this machine's, aware.
        jitter: draws from 0 to 1.
    """

    def __init__(
        self, link: Link, folder: Path, status: Status, *, clock: Callable[[], datetime], jitter: Callable[[], float] = random.random
    ) -> None:
        self._link, self._folder, self._status, self._clock, self._jitter = link, folder, status, clock, jitter
        self._asked = asyncio.Event()
        self._next = renewal_time(link.identity, jitter())
        self._say()

    def ask(self) -> None:
        """Renew now."""
        self._asked.set()

    async def run(self) -> None:
        """Renew when it is time until cancelled."""
        while True:
            try:
                async with asyncio.timeout(LOOK_EVERY_S):  # not wait_for: in Python 3.11 it can swallow a cancellation
                    await self._asked.wait()
            except TimeoutError:
                await self._take_up_changes()
                if self._clock() < self._next:
                    continue
            self._asked.clear()
            await self._renew()

    async def _renew(self) -> None:
        try:
            certificate, intermediate = await self._link.renew()
            self._check(certificate, intermediate)
            await self._use(await asyncio.to_thread(replace_certificate, self._folder, certificate, intermediate))
        except FedsecError as error:
            left = self._link.identity.not_after - self._clock()
            self._next = self._clock() + max(SHORTEST_RETRY, left / 12 * (0.5 + self._jitter()))
            _logger.warning("the certificate was not renewed: %s", error)
            self._status.event("renewal-failed", reason=str(error))
            self._say(renewal_error=str(error))

    def _check(self, certificate: bytes, intermediate: bytes) -> None:
        """Refuse what would not do as a node's certificate now."""
        identity = self._link.identity
        name = identity.name
        verify_peer(
            certificate,
            intermediate_der=intermediate,
            root_der=identity.root_der,
            federation=name.federation,
            role=name.role,
            now=max(self._clock(), identity.not_before),
            accepted=identity.accepted,
        )

    async def _use(self, identity: Identity) -> None:
        self._next = renewal_time(identity, self._jitter())
        await self._link.adopt(identity)
        _logger.info("the certificate is valid until %s", identity.not_after)
        self._status.event("certificate", serial_number=f"{identity.serial_number:X}", not_after=identity.not_after.isoformat())
        self._say(renewed_at=self._clock().isoformat(timespec="seconds"), renewal_error=None)

    async def _take_up_changes(self) -> None:
        try:
            found = await asyncio.to_thread(load_identity, self._folder)
            known = self._link.identity
            if found.certificate_der == known.certificate_der:
                return
            if found.name != known.name or found.signer.public_key != known.signer.public_key:
                _logger.warning("the identity in %s is another one now; start the agent again", self._folder)
                return
            await self._use(found)
        except FedsecError as error:
            _logger.warning("the identity in %s cannot be used: %s", self._folder, error)

    def _say(self, **more: str | None) -> None:
        identity = self._link.identity
        facts = {
            **(self._status.get("certificate") or {}),
            "serial_number": f"{identity.serial_number:X}",
            "not_before": identity.not_before.isoformat(),
            "not_after": identity.not_after.isoformat(),
            "renewal_at": self._next.isoformat(timespec="seconds"),
            **more,
        }
        self._status.set(certificate=facts)
