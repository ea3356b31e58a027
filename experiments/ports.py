"""Ports of 127.0.0.1 for servers that benches and tests are about to start."""

import itertools
import os
import random
import socket
from collections.abc import Iterator

_RANGE = range(20000, 32000)
"""Below the range from which Linux gives outgoing connections their ports: nobody is handed one of ours between the look and the use."""
_BLOCKS = 8


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, each handed out once by this process.

    The port is free when it is looked at, and its server starts later. So that no other call takes it in between, a process walks through its
    range and comes back to a port only when it has been through all; the workers of one test run walk through ranges of their own.
    """
    return list(itertools.islice(_free, count))


def free_port() -> int:
    """One of them."""
    return free_ports(1)[0]


def _ports() -> Iterator[int]:
    """Endless: the ports of this process's range, from a random start, that can be bound at that moment."""
    ports = _own_range(os.environ.get("PYTEST_XDIST_WORKER", ""))
    start = random.SystemRandom().randrange(len(ports))  # hypothesis seeds the module's own generator
    for port in itertools.cycle([*ports[start:], *ports[:start]]):
        if _is_free(port):
            yield port


def _is_free(port: int) -> bool:
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True


def _own_range(worker: str) -> range:
    """The whole range, or the block of the xdist worker ``gwN``, counted from 0."""
    if not worker.startswith("gw"):
        return _RANGE
    size = len(_RANGE) // _BLOCKS
    first = _RANGE.start + int(worker[2:]) % _BLOCKS * size
    return range(first, first + size)


_free = _ports()
