"""Many runs as child processes, some at a time: started, waited for, tried twice, stopped.

1. A child is a process group of its own: Ctrl-C on the terminal reaches this process only, which then asks each child to end (SIGINT).
2. What a child leaves behind when it ends (workers) is killed with its group; nothing a child started can hold this process up.
3. When this process dies, however suddenly, its children are killed (``launch.py``): none goes on unseen and holds its run folder.
4. A child that fails is tried once more after the others. A failure is an outcome like any other: the rest goes on.

Nothing here knows what a child computes; ``read`` makes a value of what it printed.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Generic, TypeVar

from fedsec.errors import FedsecError

T = TypeVar("T")

TICK_S = 0.5
"""How often the caller is told that time passes."""
GRACE_S = 30.0
"""How long a child that was asked to end may take before it is killed; run folders survive a kill."""
TRIES = 2
STDERR_KEPT_BYTES = 4000

_LAUNCHER = Path(__file__).with_name("launch.py")


@dataclass(frozen=True, kw_only=True)
class Child:
    """What to run.

    Attributes:
        name: distinct.
        command: program and arguments of the first try.
        again: of the second try.
    """

    name: str
    command: tuple[str, ...]
    again: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Outcome(Generic[T]):
    """How a child ended after its last try.

    Attributes:
        child: which.
        value: what ``read`` made of its output; None if it failed.
        fault: why it failed; empty if it did not.
        seconds: wall time of the last try.
        tries: 1 or 2.
    """

    child: Child
    value: T | None
    fault: str
    seconds: float
    tries: int


class Stop:
    """How far the user wants to stop: not, at the end of what is sensible, or at once."""

    def __init__(self) -> None:
        self.level = 0

    @property
    def asked(self) -> bool:
        """Whether to end."""
        return self.level > 0

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """Count Ctrl-C and SIGTERM for the duration of the block; main thread only."""

        def count(_number: int, _frame: object) -> None:
            self.level += 1

        previous = {number: signal.signal(number, count) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


@dataclass(kw_only=True, eq=False)
class _Running:
    child: Child
    tries: int
    process: subprocess.Popen[bytes]
    stdout: IO[bytes]
    stderr: IO[bytes]
    started: float
    seconds: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)
    reaped: bool = False

    def send(self, number: signal.Signals, *, group: bool = False) -> None:
        """Send a signal to the child, or to it and all that it started; never to a process that has its number after it."""
        with self.lock, contextlib.suppress(ProcessLookupError, PermissionError):
            if not self.reaped:
                (os.killpg if group else os.kill)(self.process.pid, number)

    def await_end(self, ended: queue.SimpleQueue[_Running]) -> None:
        """Wait for the child, kill what it left behind, reap it."""
        os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        self.seconds = time.monotonic() - self.started
        self.send(signal.SIGKILL, group=True)
        with self.lock:
            self.process.wait()
            self.reaped = True
        ended.put(self)

    def close(self) -> None:
        """Forget what it printed."""
        self.stdout.close()
        self.stderr.close()


class _Ending:
    """The end of what runs: asked once, killed when its time is up or the user asks again."""

    def __init__(self, running: Mapping[str, _Running], stop: Stop, grace_s: float) -> None:
        self._running, self._stop, self._grace_s = running, stop, grace_s
        self._deadline: float | None = None

    def go_on(self) -> None:
        """Send whichever signal is due."""
        if self._deadline is None:
            self._deadline = time.monotonic() + self._grace_s
            for run in self._running.values():
                run.send(signal.SIGINT)
        if self._stop.level > 1 or time.monotonic() >= self._deadline:
            for run in self._running.values():
                run.send(signal.SIGKILL, group=True)


def run_children(
    children: Sequence[Child],
    *,
    jobs: int,
    read: Callable[[Child, str], T],
    stop: Stop,
    environment: Mapping[str, str] | None = None,
    on_tick: Callable[[Sequence[Child]], None] = lambda _running: None,
    grace_s: float = GRACE_S,
) -> Generator[Outcome[T], None, None]:
    """Run all children, at most ``jobs`` at a time, and yield each one's outcome as it ends.

    Call it from a thread that outlives it: on Linux a child is killed when the thread that started it ends. Those that were stopped are not
    yielded. Closing the iterator stops whatever runs.

    Args:
        children: what to run, in this order.
        jobs: how many at a time, at least 1.
        read: child and what it printed → value; raises FedsecError or ValueError where it is no result.
        stop: set it to end: no child is started any more, those that run are asked to end, and killed after ``grace_s`` or on level 2.
        environment: of the children; default: this process's.
        on_tick: told about twice a second which children run.
        grace_s: seconds.

    Raises:
        FedsecError: the system refuses another process.
    """
    if jobs < 1 or len({child.name for child in children}) != len(children):
        raise ValueError("one job at least, and no name twice")
    waiting = deque((child, 1) for child in children)
    running: dict[str, _Running] = {}
    ended: queue.SimpleQueue[_Running] = queue.SimpleQueue()
    ending = _Ending(running, stop, grace_s)
    try:
        while running or (waiting and not stop.asked):
            while waiting and len(running) < jobs and not stop.asked:
                child, tries = waiting.popleft()
                running[child.name] = _start(child, tries, environment, ended)
            if stop.asked:
                ending.go_on()
            on_tick([run.child for run in running.values()])
            run = _next(ended)
            if run is None:
                continue
            del running[run.child.name]
            outcome = _outcome(run, read)
            if not outcome.fault or (run.tries == TRIES and not stop.asked):
                yield outcome
            elif not stop.asked:
                waiting.append((run.child, run.tries + 1))
    finally:  # something is left only if the caller gave up
        while running:
            ending.go_on()
            if (run := _next(ended)) is not None:
                del running[run.child.name]
                run.close()


def _next(ended: queue.SimpleQueue[_Running]) -> _Running | None:
    with contextlib.suppress(queue.Empty):
        return ended.get(timeout=TICK_S)
    return None


def _start(child: Child, tries: int, environment: Mapping[str, str] | None, ended: queue.SimpleQueue[_Running]) -> _Running:
    command = child.command if tries == 1 else child.again
    stdout, stderr = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 - closed when read
    try:
        process = subprocess.Popen(  # noqa: S603 - the caller's own command
            [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=environment,
            process_group=0,
        )
    except OSError as error:
        raise FedsecError(f"cannot start another process: {error.strerror or error}") from error
    run = _Running(child=child, tries=tries, process=process, stdout=stdout, stderr=stderr, started=time.monotonic())
    threading.Thread(target=run.await_end, args=(ended,), daemon=True).start()
    return run


def _outcome(run: _Running, read: Callable[[Child, str], T]) -> Outcome[T]:
    value, fault = None, ""
    with run.stdout, run.stderr:
        if run.process.returncode == 0:
            run.stdout.seek(0)
            try:
                value = read(run.child, run.stdout.read().decode("utf-8", "backslashreplace"))
            except (FedsecError, ValueError) as error:
                fault = f"its output is no result: {error}"
        else:
            fault = _how_it_failed(run)
    return Outcome(child=run.child, value=value, fault=fault, seconds=run.seconds, tries=run.tries)


def _how_it_failed(run: _Running) -> str:
    run.stderr.seek(max(0, run.stderr.seek(0, os.SEEK_END) - STDERR_KEPT_BYTES))
    said = run.stderr.read().decode("utf-8", "backslashreplace").strip()
    code = run.process.returncode
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return f"{how}: {said}" if said else how
