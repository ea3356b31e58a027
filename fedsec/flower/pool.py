"""A pool of workers, each with a queue of its own: what is sent to one slot is always answered by the same worker, in order.

1. Workers are forked processes, or threads of this process where forking is not possible or not wanted.
2. ``submit`` never waits; replies are handed over, from a thread of the pool, as they come.
3. A lost worker answers for every request of its slots, the one under way and all later ones, with :class:`Lost`.
4. After ``close`` no process is left, and nothing is handed over any more.
"""

from __future__ import annotations

import contextlib
import queue
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from fedsec.codec import digest
from fedsec.environment import environment
from fedsec.flower.process import CLOSE_GRACE_S, THREAD_VARIABLES, Handler, WorkerLostError, WorkerProcess, fork_worker, interrupts_held

Kind = Literal["fork", "thread"]


@dataclass(frozen=True, slots=True)
class Lost:
    """Instead of a reply: the worker is gone.

    Attributes:
        reason: how it ended.
        started: the request was with the worker when it went; False for later ones.
    """

    reason: str
    started: bool


Deliver = Callable[[str, list[bytes] | Lost], None]


class _Worker(Protocol):
    def call(self, frames: list[bytes]) -> list[bytes]: ...
    def hang_up(self) -> None: ...
    def close(self, deadline: float) -> None: ...


class _InThread:
    """The worker of a pool of threads: the pool's own thread does the work."""

    def __init__(self, handler: Handler) -> None:
        self.call = handler

    def hang_up(self) -> None:
        """A thread cannot be told to stop; it ends with the request it is at."""

    def close(self, deadline: float) -> None:
        """Nothing to release."""


def default_kind(workers: int) -> Kind:
    """``fork`` where more than one worker is wanted and a fork is sound: on Linux, before CUDA was used in this process."""
    torch = sys.modules.get("torch")
    cuda = torch is not None and torch.cuda.is_initialized()
    return "fork" if workers > 1 and sys.platform == "linux" and not cuda else "thread"


@contextlib.contextmanager
def one_thread_here() -> Iterator[None]:
    """Torch computes with one thread in this process for the duration of the block, be it loaded before or in it."""
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch is not None else 0
    if torch is not None:
        torch.set_num_threads(1)
    try:
        with environment(dict.fromkeys(THREAD_VARIABLES, "1")):
            yield
    finally:
        if torch is not None:
            torch.set_num_threads(threads)


class Pool:
    """Workers that answer requests with one handler.

    Args:
        handler: from request to reply; must not raise. With ``fork``, each process has its own copy.
        workers: how many.
        kind: processes or threads.
        deliver: told each reply, or loss, by ticket; called from threads of the pool.
        seed: makes the workers' global random generators repeatable; None: from the operating system.

    Raises:
        OSError: the system refuses a process.
    """

    def __init__(self, handler: Handler, *, workers: int, kind: Kind, deliver: Deliver, seed: int | None = None) -> None:
        self._deliver = deliver
        self._closing = False
        self._workers: list[_Worker] = []
        self._queues: list[queue.SimpleQueue[tuple[str, list[bytes]] | None]] = [queue.SimpleQueue() for _ in range(workers)]
        self._threads: list[threading.Thread] = []
        self._cleanup = contextlib.ExitStack()
        try:
            with interrupts_held():
                self._make_workers(handler, workers, kind, seed)
                for worker, requests in zip(self._workers, self._queues, strict=True):
                    self._threads.append(threading.Thread(target=self._drive, args=(worker, requests), name="fedsec-pool", daemon=True))
                    self._threads[-1].start()
        except BaseException:
            self.close()
            raise

    def _make_workers(self, handler: Handler, workers: int, kind: Kind, seed: int | None) -> None:
        if kind == "thread":
            self._cleanup.enter_context(one_thread_here())
            self._workers += [_InThread(handler) for _ in range(workers)]
            return
        processes: list[WorkerProcess] = []
        for index in range(workers):
            entropy = secrets.token_bytes(32) if seed is None else digest("fedsec/worker/v1", str(seed).encode(), str(index).encode())
            processes.append(fork_worker(handler, siblings=processes, entropy=entropy))
            self._workers.append(processes[-1])

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the workers; empty for threads."""
        return tuple(worker.pid for worker in self._workers if isinstance(worker, WorkerProcess))

    def submit(self, slot: int, ticket: str, frames: Sequence[bytes]) -> None:
        """Queue a request for the worker of ``slot``; returns at once."""
        self._queues[slot % len(self._queues)].put((ticket, list(frames)))

    def _drive(self, worker: _Worker, requests: queue.SimpleQueue[tuple[str, list[bytes]] | None]) -> None:
        lost: Lost | None = None
        while (item := requests.get()) is not None and not self._closing:
            ticket, frames = item
            outcome: list[bytes] | Lost
            if lost is not None:
                outcome = lost
            else:
                try:
                    outcome = worker.call(frames)
                except WorkerLostError as error:
                    outcome = Lost(str(error), started=True)
                    lost = Lost(str(error), started=False)
            if not self._closing:
                self._deliver(ticket, outcome)

    def close(self) -> None:
        """End all workers: idle ones at once, busy ones after a second at most; may be called again.

        A busy *thread* cannot be ended: it stays, without effect, until its request is done or the process exits.
        """
        self._closing = True
        deadline = time.monotonic() + CLOSE_GRACE_S
        for worker, requests in zip(self._workers, self._queues, strict=False):
            requests.put(None)
            worker.hang_up()
        for worker in self._workers:
            worker.close(deadline)
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._cleanup.close()
