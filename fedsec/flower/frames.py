"""Lists of byte strings over a local socket, sent from where they lie and received in one piece each."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Sequence

MAX_BUFFERS = 512
"""Buffers in one ``sendmsg``; the system's own limit is 1024."""
MAX_CHUNK = 1 << 30
"""Bytes in one ``recv``, which then waits for all of them: one allocation and one copy for an array."""


def send_frames(sock: socket.socket, frames: Sequence[bytes], alive: Callable[[], bool] = lambda: True) -> None:
    """Send ``frames`` straight from where they lie: a count, their lengths, then the bytes.

    Raises:
        EOFError: the other side is gone.
    """
    header = struct.pack(f"<I{len(frames)}Q", len(frames), *(len(frame) for frame in frames))
    pending = [memoryview(part) for part in (header, *frames) if part]
    first = 0
    while first < len(pending):
        try:
            sent = sock.sendmsg(pending[first : first + MAX_BUFFERS])
        except (BlockingIOError, TimeoutError):
            if alive():
                continue
            raise EOFError from None
        except OSError:
            raise EOFError from None
        while first < len(pending) and sent >= len(pending[first]):
            sent -= len(pending[first])
            first += 1
        if sent:
            pending[first] = pending[first][sent:]


def receive_frames(sock: socket.socket, alive: Callable[[], bool] = lambda: True) -> list[bytes]:
    """Receive what :func:`send_frames` sent.

    Raises:
        EOFError: the other side is gone.
    """
    (count,) = struct.unpack("<I", _receive(sock, 4, alive))
    lengths = struct.unpack(f"<{count}Q", _receive(sock, 8 * count, alive))
    return [_receive(sock, length, alive) for length in lengths]


def _receive(sock: socket.socket, length: int, alive: Callable[[], bool]) -> bytes:
    chunks: list[bytes] = []
    while length:
        try:
            chunk = sock.recv(min(length, MAX_CHUNK), socket.MSG_WAITALL)
        except (BlockingIOError, TimeoutError):
            if alive():
                continue
            raise EOFError from None
        except OSError:
            raise EOFError from None
        if not chunk:
            raise EOFError
        chunks.append(chunk)
        length -= len(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
