"""How much one client may ask for: calls and bytes a second, calls at a time, bytes held for it. Pure: time is an argument.

1. Every client has buckets of its own: a flood uses up the flooder's and nobody else's.
2. A body is paid for when it is announced, before a byte of it is taken; an answer when it is known, which may leave a debt that
   the next calls wait for.
3. Beside that, the bodies held in memory for all clients together are bounded, and one client has a quarter of that. Small bodies are
   always let in: nobody's announcements keep the others' heartbeats out. A body that comes slowly is let go for the next (``pace``).

Source: token bucket; ITU-T I.371.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fedsec.edge.pace import Coming
from fedsec.edge.refusal import Reason, Refused

HELLOS_PER_S = 1.0
HELLOS_BURST = 30
"""Hellos of one key, in the long run and at once."""


RENEWALS_PER_HOUR = 6
RENEWALS_BURST = 6
"""Renewals of one key: it needs one in days."""
SHARES = 4
"""Into so many parts the bytes that are held at a time are divided: one client has at most one."""
SMALL_BYTES = 64 * 1024
"""A body up to this size is let in whatever is held; calls at a time bound them."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits per client, but for the last; all are positive.

    Attributes:
        calls_per_s: calls a second in the long run.
        calls_burst: calls at once after silence.
        bytes_per_s: bytes a second, requests and answers together.
        bytes_burst: bytes at once after silence.
        concurrent_calls: calls at a time.
        object_bytes: most bytes of one object or answer.
        inflight_bytes: most bytes of bodies held at a time for all clients together.
    """

    calls_per_s: float = 100.0
    calls_burst: int = 400
    bytes_per_s: float = 128 * 1024 * 1024
    bytes_burst: int = 1024 * 1024 * 1024
    concurrent_calls: int = 16
    object_bytes: int = 256 * 1024 * 1024
    inflight_bytes: int = 1024 * 1024 * 1024


class TokenBucket:
    """Fills at a rate up to a burst; may be left in debt.

    Args:
        rate: tokens a second.
        burst: most tokens.
        now: seconds on any clock that does not go back.
    """

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate, self._burst = rate, burst
        self._tokens, self._then = float(burst), now

    def _fill(self, now: float) -> None:
        if now > self._then:  # a clock that goes back gives nothing
            self._tokens = min(self._burst, self._tokens + (now - self._then) * self._rate)
            self._then = now

    def take(self, amount: float, now: float) -> bool:
        """Take tokens if there are as many; a full bucket gives any amount, on credit, so that nothing is refused for ever."""
        self._fill(now)
        if amount > self._tokens and self._tokens < self._burst:
            return False
        self._tokens -= amount
        return True

    def charge(self, amount: float, now: float) -> None:
        """Take tokens, on credit if need be."""
        self._fill(now)
        self._tokens -= amount

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until :meth:`take` would give them."""
        self._fill(now)
        return max(0.0, (min(amount, self._burst) - self._tokens) / self._rate)


@dataclass(eq=False)
class _Account:
    calls: TokenBucket
    bytes: TokenBucket
    hellos: TokenBucket
    renewals: TokenBucket
    running: int = field(default=0)
    held: int = field(default=0)


class Limiter:
    """Keeps the accounts of all clients.

    Args:
        limits: the same for every client.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.held_bytes = 0
        self.coming = Coming()
        self._accounts: dict[bytes, _Account] = {}

    def enter(self, client: bytes, now: float) -> None:
        """A call begins; :meth:`leave` must follow if this returns.

        Args:
            client: its key.
            now: seconds.

        Raises:
            Refused: too many calls, a second or at a time.
        """
        account = self._account(client, now)
        if not account.calls.take(1, now):
            raise Refused(Reason.RATE, f"more than {self.limits.calls_per_s:g} calls a second; wait {account.calls.wait_s(1, now):.1f} s")
        if account.running >= self.limits.concurrent_calls:
            raise Refused(Reason.BUSY, f"{account.running} calls of this client are running; wait for one to end")
        account.running += 1

    def hello(self, client: bytes, now: float) -> None:
        """A session is about to be opened: a signature is checked and one is made for it.

        Raises:
            Refused: too many of them, which is what two agents with one key do to each other: the newest sessions count.
        """
        if not self._account(client, now).hellos.take(1, now):
            raise Refused(Reason.RATE, "too many Hellos of this key; do two agents use the same identity?")

    def renewal(self, client: bytes, now: float) -> None:
        """A sound request for renewal is about to go to the CA, which answers all nodes of this gateway from one account.

        Raises:
            Refused: too many of them.
        """
        account = self._account(client, now)
        if not account.renewals.take(1, now):
            wait_s = account.renewals.wait_s(1, now)
            raise Refused(Reason.RATE, f"more than {RENEWALS_PER_HOUR} renewals an hour; wait {wait_s:.0f} s")

    def leave(self, client: bytes) -> None:
        """A call that was let in ended."""
        self._accounts[client].running -= 1

    def hold(self, client: bytes, size: int, now: float) -> None:
        """A body of so many bytes is about to come; :meth:`release` must follow if this returns.

        Raises:
            Refused: too many bytes a second from this client, or too many in memory, its own or all together.
        """
        account = self._account(client, now)
        if size > SMALL_BYTES:  # small ones always find room: heartbeats go on whatever the others announce
            self._check_room(account, size, now)
        if not account.bytes.take(size, now):
            wait_s = account.bytes.wait_s(size, now)
            raise Refused(Reason.RATE, f"more than {self.limits.bytes_per_s:g} bytes a second; wait {wait_s:.1f} s")
        self.held_bytes += size
        account.held += size

    def _check_room(self, account: _Account, size: int, now: float) -> None:
        limits = self.limits
        if account.held > SMALL_BYTES and account.held + size > limits.inflight_bytes // SHARES:  # one large body may always come
            raise Refused(Reason.BUSY, f"this client's bodies hold {account.held} bytes; wait for one to end")
        if self.held_bytes + size > limits.inflight_bytes:
            # Its bytes are free in a moment, when this one comes back; a burst of announcements ends no more bodies than it has use for.
            if self.held_bytes - self.coming.leaving_bytes + size > limits.inflight_bytes:
                self.coming.let_slowest_go(now)
            raise Refused(Reason.BUSY, "the gateway holds as many bytes as it may; try again in a few seconds")

    def release(self, client: bytes, size: int) -> None:
        """A body that was held is gone."""
        self.held_bytes -= size
        self._accounts[client].held -= size

    def answer(self, client: bytes, size: int, now: float) -> None:
        """An answer of so many bytes goes to the client: it counts, on credit if need be."""
        self._account(client, now).bytes.charge(size, now)

    def forget_idle(self, known: set[bytes]) -> None:
        """Drop the accounts of clients that are not known any more and have no call running."""
        for client in [key for key, account in self._accounts.items() if key not in known and not account.running]:
            del self._accounts[client]

    def _account(self, client: bytes, now: float) -> _Account:
        account = self._accounts.get(client)
        if account is None:
            limits = self.limits
            calls, amount = (
                TokenBucket(limits.calls_per_s, limits.calls_burst, now),
                TokenBucket(limits.bytes_per_s, limits.bytes_burst, now),
            )
            hellos = TokenBucket(HELLOS_PER_S, HELLOS_BURST, now)
            renewals = TokenBucket(RENEWALS_PER_HOUR / 3600, RENEWALS_BURST, now)
            account = self._accounts[client] = _Account(calls, amount, hellos, renewals)
        return account
