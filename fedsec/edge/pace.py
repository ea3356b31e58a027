"""How fast a body has to come: not slower than a rate from its first seconds on, and faster than others while room is short.

1. After a grace, what has come so far must be at least what the least rate gives for the time so far. So a trickle is cut within the grace
   and a bit, and not at the end of the time that its announced size would have had.
2. While the bytes that may be held are used up, the slowest body beyond its grace is let go for the next one, if it comes slower than a
   decent line: who holds room that others want has to be worth it. Its sender comes back later.
3. Time is an argument of all that decides; :class:`PacedReader` alone waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc

from fedsec.edge.refusal import Reason, Refused
from fedsec.edge.service import GO_AHEAD

CONTENDED_BYTES_PER_S = 1024 * 1024
"""A body that comes at least so fast is never let go for another."""


@dataclass(kw_only=True, eq=False)
class Pace:
    """One body under way.

    Attributes:
        begun: seconds, when it was announced.
        grace_s: so long nothing is asked of it.
        least_per_s: bytes a second, from the end of the grace on.
        size: bytes announced.
        came: bytes so far.
    """

    begun: float
    grace_s: float
    least_per_s: float
    size: int
    came: int = 0

    def left_s(self, now: float) -> float:
        """Seconds until more must have come."""
        return self.begun + self.grace_s + self.came / self.least_per_s - now

    def rate(self, now: float) -> float:
        """Bytes a second so far; infinite within the grace: it cannot be judged yet."""
        passed = now - self.begun
        return self.came / passed if passed > self.grace_s else float("inf")


class PacedReader:
    """Reads the rest of a body's messages from a call, as gRPC's context does, and no slower than allowed.

    Args:
        context: of the call.
        pace: of its body; what came with the first message counts already.
        pause_s: longest pause between two messages.
        monotonic: gives seconds.
    """

    def __init__(self, context: Any, pace: Pace, pause_s: float, monotonic: Callable[[], float]) -> None:
        self._context, self.pace, self._pause_s, self._monotonic = context, pace, pause_s, monotonic
        self._waiting: asyncio.Timeout | None = None
        self._gone = False

    async def go_ahead(self) -> None:
        """Tell the caller that the rest of the body may come.

        Raises:
            Refused: it does not take that in time, was let go for another, or is gone.
        """
        try:
            await self._in_time(lambda: self._context.send_initial_metadata(((GO_AHEAD, "1"),)))
        except grpc.aio.BaseError:
            raise Refused(Reason.MALFORMED, "the caller went away before its body came") from None

    async def read(self) -> Any:
        """The next message.

        Raises:
            Refused: it comes too slowly, or was let go for another.
        """
        message = await self._in_time(self._context.read)
        self.pace.came += _size(message)
        return message

    async def _in_time(self, call: Callable[[], Awaitable[Any]]) -> Any:
        wait_s = min(self._pause_s, self.pace.left_s(self._monotonic()))
        if self._gone or wait_s <= 0:
            raise self._refused()
        try:
            async with asyncio.timeout(wait_s) as self._waiting:
                return await call()
        except TimeoutError:
            raise self._refused() from None
        finally:
            self._waiting = None

    def let_go(self) -> None:
        """End it, now."""
        self._gone = True
        if self._waiting is not None:
            self._waiting.reschedule(asyncio.get_running_loop().time())

    def _refused(self) -> Refused:
        if self._gone:
            return Refused(Reason.BUSY, "the gateway holds as many bytes as it may, and this body came the slowest; try again in a minute")
        return Refused(Reason.SLOW, f"of the body's {self.pace.size} bytes {self.pace.came} came in time; the rest comes too slowly")


class Coming:
    """The bodies under way, of all clients."""

    def __init__(self) -> None:
        self._readers: set[PacedReader] = set()
        self._leaving: set[PacedReader] = set()

    @property
    def leaving_bytes(self) -> int:
        """Of bodies that were let go, and whose calls have not ended yet."""
        return sum(reader.pace.size for reader in self._leaving)

    def add(self, reader: PacedReader) -> None:
        """A body begins; :meth:`remove` must follow."""
        self._readers.add(reader)

    def remove(self, reader: PacedReader) -> None:
        """It came, or it ended."""
        self._readers.discard(reader)
        self._leaving.discard(reader)

    def let_slowest_go(self, now: float) -> bool:
        """Make room; False: none is slow."""
        slowest = min(self._readers, key=lambda reader: reader.pace.rate(now), default=None)
        if slowest is None or slowest.pace.rate(now) >= CONTENDED_BYTES_PER_S:
            return False
        self._readers.discard(slowest)
        self._leaving.add(slowest)
        slowest.let_go()
        return True


def _size(message: Any) -> int:
    return len(message) if isinstance(message, memoryview) else len(getattr(message, "chunk", b""))
