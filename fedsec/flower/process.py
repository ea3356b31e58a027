"""One worker process: forked from this one, answers one request at a time over a socket, and never outlives its parent.

1. It is forked before the run starts, so what the parent has loaded is shared, and it keeps its nodes' state for the whole run.
2. It leaves stdout alone (its prints go to stderr), ignores Ctrl-C (the parent ends it), and computes with one thread.
3. It ends when its parent does: by end of file when idle, by ``PR_SET_PDEATHSIG`` when busy.
4. Its own death, however sudden, is a :class:`WorkerLostError` at the parent, never a wait without end.

Nothing here knows Flower: a request and a reply are lists of byte strings.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import random
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn

import numpy as np

from fedsec.flower.frames import receive_frames, send_frames

Handler = Callable[[list[bytes]], list[bytes]]

LIVENESS_S = 1.0
"""How often a waiting parent looks whether its worker is still there, should the socket be held open by someone else."""
CLOSE_GRACE_S = 1.0
"""How long a busy worker may finish what it does before it is killed; every store on disk survives a kill."""

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Read by the numeric libraries when they are loaded."""

KEPT_BYTES = 1 << 28
"""Freed memory that a worker keeps for its next message."""
OLD_MMAP_LIMIT_BYTES = 1 << 25
"""The most that glibc before 2.35 lets the heap serve."""

_PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


class WorkerLostError(Exception):
    """The worker process is gone; the message says how it ended."""


# --- The parent's side ----------------------------------------------------------------------------------------------------------


class WorkerProcess:
    """A forked worker as its parent sees it."""

    def __init__(self, pid: int, sock: socket.socket) -> None:
        self.pid = pid
        self._socket = sock
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):  # in the kernel: Python's own timeout would undo MSG_WAITALL
            sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", int(LIVENESS_S), 0))
        self._status: int | None = None
        self._lock = threading.Lock()

    def call(self, frames: list[bytes]) -> list[bytes]:
        """Have the worker answer ``frames``; blocks until it has.

        Raises:
            WorkerLostError: it is gone, or goes before it answers.
        """
        try:
            send_frames(self._socket, frames, self.is_alive)
            return receive_frames(self._socket, self.is_alive)
        except EOFError:
            raise WorkerLostError(self._how_it_ended()) from None

    def is_alive(self) -> bool:
        """Whether the process runs; reaps it once it does not."""
        with self._lock:
            if self._status is None:
                try:
                    pid, status = os.waitpid(self.pid, os.WNOHANG)
                except ChildProcessError:  # reaped elsewhere, as where SIGCHLD is ignored
                    self._status = 0
                else:
                    self._status = os.waitstatus_to_exitcode(status) if pid else None
            return self._status is None

    def _wait(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while alive := self.is_alive():
            if time.monotonic() >= deadline:
                break
            time.sleep(0.001)
        return not alive

    def _how_it_ended(self) -> str:
        if not self._wait(CLOSE_GRACE_S):
            return f"worker process {self.pid} closed its connection"
        status = self._status or 0
        how = f"was killed by signal {-status}" if status < 0 else f"exited with status {status}"
        return f"worker process {self.pid} {how}"

    def hang_up(self) -> None:
        """Tell the worker to end; also wakes whoever waits for its answer."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self, deadline: float) -> None:
        """Wait for the end until ``deadline`` (monotonic), then kill; the process is reaped in both cases."""
        self.hang_up()
        if not self._wait(deadline - time.monotonic()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self._wait(LIVENESS_S * 10)
        self._socket.close()


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold back Ctrl-C for the duration of the block; it arrives at its end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def fork_worker(handler: Handler, *, siblings: Iterable[WorkerProcess], entropy: bytes) -> WorkerProcess:
    """Fork a process that answers every request with ``handler``; call it with :func:`interrupts_held`.

    Args:
        handler: from request to reply; must not raise.
        siblings: workers made before, whose connections the new one must not hold open.
        entropy: seeds the global random generators of the worker, so that no two share a state.

    Raises:
        OSError: the system refuses another process.
    """
    ours, theirs = socket.socketpair()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    parent = os.getpid()
    try:
        pid = os.fork()
    except OSError:
        ours.close()
        theirs.close()
        raise
    if pid == 0:
        _live(handler, theirs, [ours, *(sibling._socket for sibling in siblings)], libc, parent, entropy)  # noqa: SLF001 - same module
    theirs.close()
    return WorkerProcess(pid, ours)


# --- The worker's side ----------------------------------------------------------------------------------------------------------


def _live(
    handler: Handler, sock: socket.socket, foreign: list[socket.socket], libc: ctypes.CDLL | None, parent: int, entropy: bytes
) -> NoReturn:
    """The whole life of a worker; ends with ``os._exit``, so nothing that the parent registered runs twice."""
    status = 1
    try:
        _detach(foreign, libc, parent)
        _keep_freed_memory(libc)
        _use_one_thread()
        _seed_generators(entropy)
        gc.freeze()  # what the parent made is not collected here, so its pages stay shared
        while True:
            send_frames(sock, handler(receive_frames(sock)))
    except EOFError:
        status = 0
    except BaseException:  # noqa: BLE001 - the last chance to say anything
        with contextlib.suppress(OSError, ValueError):
            traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stderr.flush()
        os._exit(status)


def _detach(foreign: list[socket.socket], libc: ctypes.CDLL | None, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if libc is not None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)
    for other in foreign:
        other.close()
    with contextlib.suppress(OSError):
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)
    sys.stdout = sys.stderr


def _keep_freed_memory(libc: ctypes.CDLL | None) -> None:
    """Have the allocator keep what is freed, up to a limit: each message frees as much as the next needs, and a page costs 3 us anew."""
    if libc is not None and hasattr(libc, "mallopt"):  # GNU; elsewhere the default stays
        _ = libc.mallopt(_M_MMAP_THRESHOLD, KEPT_BYTES) or libc.mallopt(_M_MMAP_THRESHOLD, OLD_MMAP_LIMIT_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)


def _use_one_thread() -> None:
    """Compute with one thread, as torch's own data loaders do; libraries that are not loaded are not loaded for it.

    With more than one, a second use of GNU OpenMP after a fork hangs.
    """
    for variable in THREAD_VARIABLES:
        os.environ[variable] = "1"
    if (pools := sys.modules.get("threadpoolctl")) is not None:
        pools.threadpool_limits(limits=1)
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)


def _seed_generators(entropy: bytes) -> None:
    random.seed(entropy)
    np.random.seed(np.frombuffer(entropy[:16], dtype=np.uint32))  # noqa: NPY002 - the global generator is what fork duplicates
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(int.from_bytes(entropy[:8], "little"))
