"""Counters of the gateway in Prometheus' text form, and a tiny HTTP server for them on loopback.

1. Names and labels are ours: no label holds anything that a peer chose freely.
2. The server answers ``GET /metrics`` and ``GET /healthz``, on 127.0.0.1 only, and closes the connection after each.

Source: Prometheus exposition format 0.0.4.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping

PREFIX = "fedsec_gateway_"
_REQUEST_LIMIT = 4096
_REQUEST_TIMEOUT_S = 5.0


class Metrics:
    """Counters and gauges."""

    def __init__(self) -> None:
        self._counters: Counter[tuple[str, str]] = Counter()
        self._gauges: dict[str, Callable[[], float]] = {}

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter.

        Args:
            name: without prefix, for example ``calls_total``.
            amount: how much.
            labels: words of ours.
        """
        text = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
        self._counters[name, f"{{{text}}}" if text else ""] += amount  # type: ignore[assignment]

    def gauge(self, name: str, read: Callable[[], float]) -> None:
        """Show a value that is read when asked for."""
        self._gauges[name] = read

    def text(self) -> str:
        """All of it, sorted.

        >>> metrics = Metrics()
        >>> metrics.count("calls_total", result="ok")
        >>> print(metrics.text().splitlines()[-1])
        fedsec_gateway_calls_total{result="ok"} 1
        """
        lines, before = [], ""
        for (name, labels), value in sorted(self._counters.items()):
            if name != before:
                lines.append(f"# TYPE {PREFIX}{name} counter")
                before = name
            lines.append(f"{PREFIX}{name}{labels} {value:.12g}")
        for name, read in sorted(self._gauges.items()):
            lines += [f"# TYPE {PREFIX}{name} gauge", f"{PREFIX}{name} {read():.12g}"]
        return "\n".join(lines) + "\n"


async def serve_metrics(metrics: Metrics, port: int, healthy: Callable[[], bool]) -> asyncio.Server:
    """Serve on 127.0.0.1.

    Args:
        metrics: what to show.
        port: 0 takes a free one.
        healthy: decides between 200 and 503 on ``/healthz``.

    Raises:
        OSError: the port is taken.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_REQUEST_TIMEOUT_S):
                line = await reader.readline()
            pages: Mapping[bytes, Callable[[], tuple[int, str]]] = {
                b"/metrics": lambda: (200, metrics.text()),
                b"/healthz": lambda: (200, "ok\n") if healthy() else (503, "not serving\n"),
            }
            method, _, rest = line.partition(b" ")
            page = pages.get(rest.split(b" ")[0]) if method == b"GET" else None
            status, text = page() if page else (404, "not here\n")
            head = f"HTTP/1.1 {status} -\r\ncontent-type: text/plain; version=0.0.4\r\ncontent-length: {len(text)}\r\nconnection: close\r\n\r\n"
            writer.write((head + text).encode("ascii"))
            await writer.drain()
        except (TimeoutError, ValueError, ConnectionError):
            pass
        finally:
            writer.close()

    return await asyncio.start_server(answer, "127.0.0.1", port, limit=_REQUEST_LIMIT)
