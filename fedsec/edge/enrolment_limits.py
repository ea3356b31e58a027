"""How often one address may ask the enrolment service; pure, the time is an argument.

1. Each address has a bucket of calls and a smaller one of refusals: guessing is slow long before calling is.
2. An IPv6 address counts as its /64, which one holder has whole.
3. A bounded number of addresses is remembered, those that asked last.
4. Who keeps others waiting is let go first: of the calls whose request has not come, the oldest of the address that has most of them
   (:class:`WaitingRoom`). Whoever sends his request at once is hardly ever among them, whatever the number of addresses that do not.
"""

from __future__ import annotations

import ipaddress
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

MAX_ADDRESSES = 4096


@dataclass
class _Bucket:
    level: float
    at_s: float


class RateLimit:
    """A token bucket for each key.

    Args:
        burst: calls at once.
        per_s: calls a second on average.
    """

    def __init__(self, *, burst: float, per_s: float) -> None:
        self._burst = burst
        self._per_s = per_s
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()
        self._lock = threading.Lock()

    def allows(self, key: str, now_s: float, *, cost: float = 1.0) -> bool:
        """Take ``cost`` out of the key's bucket, if so much is there.

        Args:
            key: whose.
            now_s: seconds of a clock that never goes back.
            cost: 0 asks only whether anything is there.
        """
        with self._lock:
            bucket = self._buckets.pop(key, None) or _Bucket(self._burst, now_s)
            level = min(self._burst, bucket.level + max(0.0, now_s - bucket.at_s) * self._per_s)
            allowed = level >= max(cost, 1.0)
            self._buckets[key] = _Bucket(level - cost if allowed else level, now_s)
            while len(self._buckets) > MAX_ADDRESSES:
                self._buckets.popitem(last=False)
            return allowed


class WaitingRoom:
    """Calls that hold a worker and have not brought their request yet; of several threads.

    Args:
        places: how many there may be; one more lets another go.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self._calls: OrderedDict[int, tuple[str, Callable[[], object]]] = OrderedDict()
        self._counts: Counter[str] = Counter()
        self._next = 0
        self._lock = threading.Lock()

    def enter(self, address: str, let_go: Callable[[], object]) -> int:
        """Take a place, if need be from somebody else.

        Args:
            address: the caller's.
            let_go: ends the call, should its place be taken; must not wait.

        Returns:
            The place, for :meth:`leave`.
        """
        with self._lock:
            ousted = self._oust() if len(self._calls) >= self._places else None
            self._next += 1
            place = self._next
            self._calls[place] = address, let_go
            self._counts[address] += 1
        if ousted is not None:
            ousted()
        return place

    def leave(self, place: int) -> None:
        """The request came, or the call ended."""
        with self._lock:
            self._take(place)

    def _oust(self) -> Callable[[], object]:
        most = max(self._counts.values())
        place = next(place for place, (address, _) in self._calls.items() if self._counts[address] == most)
        let_go = self._calls[place][1]
        self._take(place)
        return let_go

    def _take(self, place: int) -> None:
        found = self._calls.pop(place, None)
        if found is not None:
            self._counts[found[0]] -= 1
            if not self._counts[found[0]]:
                del self._counts[found[0]]


def address_of(peer: str) -> str:
    """The address in gRPC's name of a caller, for example ``ipv4:127.0.0.1:5000``; without the port, and as a /64 for IPv6.

    >>> address_of("ipv4:192.0.2.7:5000")
    '192.0.2.7'
    >>> address_of("ipv6:%5B2001:db8::7%5D:5000")
    '2001:db8::/64'
    """
    kind, _, rest = peer.partition(":")
    host = rest.rpartition(":")[0].replace("%5B", "").replace("%5D", "").strip("[]")
    if kind != "ipv6":
        return host or kind
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        return "ipv6"
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))
