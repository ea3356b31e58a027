"""A large object of a reply, hashed and written while its pieces come: it is never in memory as a whole, and nothing of it is copied twice.

1. Only what costs nothing to be judged by its first and last bytes is taken so: an ``ArrayChunk`` that a reply of this node lacks, in a body
   of the one form that Flower writes. Everything else, and everything odd, takes the way through memory, and is refused there if need be.
2. While pieces come, nothing counts: the file has a name that nobody looks for. When the last one is there, the body's hash must be the
   proven one, the object's hash its id, and the fields around it are read as those of any other body.
3. A thread works on one piece while the next one is read, and no faster: a sender waits for the disk. A call that is cut leaves no file.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from fedsec.edge.fleet_calls import Node, ObjectPlace, PushedObject, pushed_without_content
from fedsec.edge.flower_objects import Head
from fedsec.edge.refusal import Reason, Refused
from fedsec.errors import StorageError

LEAST_BYTES = 1 << 20
"""Of a body that is taken so."""
MAX_TAIL_BYTES = 4096
"""Of the fields after the object: a session id."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """An object that is being taken.

    Attributes:
        node_id: whose.
        object_id: that it must have.
        head: of the object.
        size: bytes of the object, reserved for it.
        path: of its file, until it has another name.
    """

    node_id: int
    object_id: str
    head: Head
    size: int
    path: Path


class Whole:
    """A body that is taken into memory, which is taken once.

    Args:
        size: of it.
    """

    def __init__(self, size: int) -> None:
        self.body, self._at, self._hash = bytearray(size), 0, hashlib.sha256()

    async def take(self, piece: bytes | memoryview) -> None:
        """Take the next piece."""
        self.body[self._at : self._at + len(piece)] = piece
        self._at += len(piece)
        self._hash.update(piece)

    async def finish(self) -> bytes:
        """SHA-256 of the body."""
        return self._hash.digest()


async def collect(taker: Whole | Intake, first: bytes, announced: int, read: Callable[[], Awaitable[Any]], pause_s: float) -> None:
    """Take a body that comes in pieces.

    Args:
        taker: what takes them.
        first: the first piece.
        announced: bytes of all of them.
        read: gives the next message of the call.
        pause_s: how long it may take.

    Raises:
        Refused: the body is longer or shorter than announced.
        TimeoutError: a piece is late.
        StorageError: the file system refused.
    """
    size = 0
    piece: bytes | memoryview = first
    while True:
        size += len(piece)
        if size > announced:
            raise Refused(Reason.MALFORMED, "the body is longer than announced")
        await taker.take(piece)
        if size == announced:
            return
        async with asyncio.timeout(pause_s):
            message = await read()
        if message is not grpc.aio.EOF:
            piece = message if isinstance(message, memoryview) else message.chunk
        if message is grpc.aio.EOF or not piece:
            raise Refused(Reason.MALFORMED, "the body is shorter than announced")


class Intake:
    """One body. ``take`` its pieces, then ``finish``, then have it adopted or not; in any case ``close`` it.

    Args:
        part: of the collection; its file is made here.
        place: where in the body the object is.
        pool: where pieces are worked on.

    Raises:
        StorageError: the file system refused.
    """

    def __init__(self, part: Part, place: ObjectPlace, pool: Executor) -> None:
        self.part, self._place, self._pool = part, place, pool
        self._body, self._object = hashlib.sha256(), hashlib.sha256()
        self._rest, self._at = bytearray(), 0
        self._working: Future[None] | None = None
        try:
            self._file = os.open(part.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(f"cannot write an object of a reply: {error.strerror or error}") from error

    async def take(self, piece: bytes | memoryview) -> None:
        """Take the next piece; returns when the one before it is done with.

        Raises:
            StorageError: the file system refused.
        """
        await self._settle()
        self._working = self._pool.submit(self._work, memoryview(piece))

    async def finish(self) -> bytes:
        """All pieces are there: SHA-256 of the body; raises as :meth:`take`."""
        await self._settle()
        return self._body.digest()

    def pushed(self, node: Node) -> PushedObject:
        """The fields around the object; its content is in the file.

        Raises:
            Refused: they are not what Flower writes, or another node's.
        """
        return pushed_without_content(self._rest, self._place, node)

    @property
    def object_sha256(self) -> str:
        """Of what is in the file, in hex."""
        return self._object.hexdigest()

    def close(self) -> None:
        """Let go of the file, and remove it unless it has another name by now; does not block."""
        if self._working is None:
            self._remove()
        else:
            self._working.add_done_callback(lambda _: self._remove())

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._file)
        with contextlib.suppress(OSError):
            self.part.path.unlink(missing_ok=True)

    async def _settle(self) -> None:
        if self._working is not None:
            # Shielded: a call that is cut must not hide from close() that the thread is still at it.
            await asyncio.shield(asyncio.wrap_future(self._working))

    def _work(self, piece: memoryview) -> None:
        self._body.update(piece)
        begin = min(max(self._place.begin - self._at, 0), len(piece))
        end = min(max(self._place.end - self._at, 0), len(piece))
        self._rest += piece[:begin]
        self._rest += piece[end:]
        self._at += len(piece)
        content = piece[begin:end]
        self._object.update(content)
        try:
            while content:
                content = content[os.write(self._file, content) :]
        except OSError as error:
            raise StorageError(f"cannot write an object of a reply: {error.strerror or error}") from error
