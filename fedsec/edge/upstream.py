"""HTTPS to the SuperLink on loopback: a small pool of connections, used from threads, each call bounded in time and size.

1. Only the pinned loopback root is trusted, only the one address is called, no proxy, no redirect, no cookie.
2. A connection that lay idle longer than the SuperLink keeps one is not used; one that turns out to be closed is replaced once, if
   nothing of an answer had come.
3. An outage is :class:`UpstreamError`; an answer of whatever status is an answer.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import ssl
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from fedsec.errors import FedsecError, StorageError

PROTOBUF = "application/protobuf"
MAX_IDLE_S = 3.0
"""Uvicorn, which serves the SuperLink, closes a connection that was idle for five seconds."""

MAX_CONTENT_TYPE = 200
_THREADS = 64
"""More than one client may use at a time, so that one cannot keep the others waiting."""


FILE_PIECE = 1 << 20
Signature: TypeAlias = tuple[int, int, int, int, int]


def signature_of(found: os.stat_result) -> Signature:
    """What changes when anybody writes to a file, or puts another in its place."""
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@dataclass(frozen=True)
class FileBody:
    """A part of a body that is in a file; read anew each time it is sent, in pieces.

    Attributes:
        path: of the file.
        signature: that it must still have.
    """

    path: Path
    signature: Signature

    def __len__(self) -> int:
        return self.signature[2]

    def __iter__(self) -> Iterator[memoryview]:
        """Its pieces, each good until the next one; raises OSError if it cannot be read, or was touched."""
        buffer = memoryview(bytearray(min(FILE_PIECE, len(self))))
        with self.path.open("rb", buffering=0) as handle:
            if signature_of(os.fstat(handle.fileno())) != self.signature:
                raise OSError("a file changed since it was written")
            left = len(self)
            while left:
                size = handle.readinto(buffer[: min(left, FILE_PIECE)])
                if not size:
                    raise OSError("a file is shorter than it was")
                left -= size
                yield buffer[:size]


UpstreamBody: TypeAlias = bytes | bytearray | tuple[bytes | bytearray | memoryview | FileBody, ...]


class UpstreamError(FedsecError):
    """The SuperLink did not answer, or not in a way that can be used."""

    code = "superlink"


@dataclass(frozen=True)
class Response:
    """An answer.

    Attributes:
        status: HTTP status.
        content_type: of the body, at most 200 characters.
        body: the whole.
    """

    status: int
    content_type: str
    body: bytes


class Upstream:
    """Calls one SuperLink.

    Args:
        host: address, on loopback.
        port: its port.
        ca_file: PEM of the loopback root.
        timeout_s: for connecting, and for each silence within a call.
        max_answer_bytes: longest answer.
        threads: calls at a time; more wait.

    Raises:
        StorageError: the root cannot be read.
    """

    def __init__(
        self, host: str, port: int, ca_file: Path, *, timeout_s: float = 30.0, max_answer_bytes: int = 1 << 28, threads: int = _THREADS
    ) -> None:
        self._host, self._port, self._timeout_s, self._max_bytes = host, port, timeout_s, max_answer_bytes
        try:
            self._tls = ssl.create_default_context(cafile=str(ca_file))
        except (OSError, ssl.SSLError) as error:
            raise StorageError(f"cannot read the SuperLink's root {ca_file}: {error}; fedsec server up makes it") from error
        self._tls.minimum_version = ssl.TLSVersion.TLSv1_3
        self._idle: list[tuple[http.client.HTTPSConnection, float]] = []
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="superlink")

    async def post(self, path: str, body: UpstreamBody, headers: Mapping[str, str]) -> Response:
        """:meth:`post_now` without blocking the event loop. Cancelling does not stop a call that has begun."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self.post_now, path, body, headers)

    def post_now(self, path: str, body: UpstreamBody, headers: Mapping[str, str]) -> Response:
        """One POST.

        Args:
            path: HTTP path.
            body: protobuf; pieces are sent one after the other, without joining them.
            headers: beside content type and length.

        Raises:
            UpstreamError: no connection, no answer in time, or a malformed or over-long one.
        """
        connection = self._idle_connection()
        reused = connection is not None
        try:
            return self._exchange(connection or self._connect(), path, body, headers)
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError, ssl.SSLEOFError) as error:
            if not reused:
                raise UpstreamError(f"the SuperLink closed the connection: {type(error).__name__}") from error
        except (OSError, http.client.HTTPException) as error:
            raise UpstreamError(f"the SuperLink does not answer: {error or type(error).__name__}") from error
        try:
            return self._exchange(self._connect(), path, body, headers)
        except (OSError, http.client.HTTPException) as error:
            raise UpstreamError(f"the SuperLink does not answer: {error or type(error).__name__}") from error

    def _exchange(self, connection: http.client.HTTPSConnection, path: str, body: UpstreamBody, headers: Mapping[str, str]) -> Response:
        try:
            size = sum(map(len, body)) if isinstance(body, tuple) else len(body)
            ours = {"content-type": PROTOBUF, "accept": PROTOBUF, "content-length": str(size)}
            connection.request("POST", path, body=_pieces(body), headers={**ours, **headers})
            with connection.getresponse() as answer:
                content = answer.read(self._max_bytes + 1)
                if len(content) > self._max_bytes:
                    raise UpstreamError(f"the SuperLink's answer is over the limit of {self._max_bytes} bytes")
                kind = (answer.getheader("content-type") or "")[:MAX_CONTENT_TYPE]
                keep = answer.isclosed() and not answer.will_close
                status = answer.status
        except BaseException:
            connection.close()
            raise
        self._give_back(connection, keep=keep)
        return Response(status, kind if kind.isascii() and kind.isprintable() else "", content)

    def _connect(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout_s, context=self._tls)

    def _idle_connection(self) -> http.client.HTTPSConnection | None:
        oldest = time.monotonic() - MAX_IDLE_S
        with self._lock:
            stale = [connection for connection, since in self._idle if since < oldest]
            self._idle = [(connection, since) for connection, since in self._idle if since >= oldest]
            found = self._idle.pop()[0] if self._idle else None
        for connection in stale:
            connection.close()
        return found

    def _give_back(self, connection: http.client.HTTPSConnection, *, keep: bool) -> None:
        if not keep:
            connection.close()
            return
        with self._lock:
            self._idle.append((connection, time.monotonic()))

    def close(self) -> None:
        """Wait for calls that run, close all connections."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            idle, self._idle = self._idle, []
        for connection, _ in idle:
            connection.close()


def _pieces(body: UpstreamBody) -> bytes | bytearray | Iterable[bytes | bytearray | memoryview]:
    if not isinstance(body, tuple):
        return body
    return (piece for part in body for piece in (part if isinstance(part, FileBody) else (part,)))
