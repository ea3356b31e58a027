"""How often one address may ask the enrolment service; pure, the time is an argument.

1. Each address has a bucket of calls and a smaller one of refusals: guessing is slow long before calling is.
2. An IPv6 address counts as its /64, which one holder has whole.
3. A bounded number of addresses is remembered, those that asked last.
"""

from __future__ import annotations

import ipaddress
import threading
from collections import OrderedDict
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
