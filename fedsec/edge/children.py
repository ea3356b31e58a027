"""Child processes of an agent: started in a way that they cannot outlive it, watched, started again, ended in order.

1. A child is bound to this process (``launch.py``) and is a process group of its own: Ctrl-C on a terminal reaches the agent only.
2. A child that ends unasked is started again after a wait that doubles up to a minute; one that ran for a minute starts from the beginning.
3. Ending asks first (SIGINT, which Flower's commands treat as a graceful end) and kills the whole group after a grace.

Flower's commands are not imported; they are started by name.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from fedsec.errors import FedsecError

_logger = logging.getLogger(__name__)

LAUNCHER = Path(__file__).with_name("launch.py")
GRACE_S = 4.0
KILLED_S = 10.0
"""A process that was killed is gone by then, or hangs in the kernel."""
POLL_S = 0.02
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 60.0
STEADY_S = 60.0
"""A child that ran for so long is not in a loop of failures."""
MAX_LOG_BYTES = 16 * 1024 * 1024


def bound_command(command: Sequence[str], *, parent: int | None = None) -> list[str]:
    """The command, to be started so that it ends with process ``parent`` (default: this one), which must start it."""
    return [sys.executable, "-I", "-S", str(LAUNCHER), str(parent or os.getpid()), *command]


class Child:
    """One child that is kept running.

    Args:
        name: for logs and the status.
        command: gives program and arguments of each start; called anew each time.
        environment: all of it.
        log: file that its output is appended to.
        cwd: its working folder.
        on_end: told its name and exit status when it ended unasked; must not block.
    """

    def __init__(
        self,
        name: str,
        command: Callable[[], Sequence[str]],
        *,
        environment: Mapping[str, str],
        log: Path,
        cwd: Path,
        on_end: Callable[[str, int], None] = lambda _name, _status: None,
    ) -> None:
        self.name = name
        self._on_end = on_end
        self.restarts = 0
        self._command, self._environment, self._log, self._cwd = command, dict(environment), log, cwd
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._wanted = False

    @property
    def pid(self) -> int | None:
        """Of the running process."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    def start(self) -> None:
        """Keep it running from now on; does nothing if that is so already."""
        if not self._wanted:
            self._wanted = True
            self._task = asyncio.create_task(self._keep(), name=f"keep {self.name}")

    async def stop(self, *, grace_s: float = GRACE_S) -> None:
        """End it and keep it so."""
        self._wanted = False
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        if self._process is not None:
            await end_group(self._process, signal.SIGINT, grace_s)
            self._process = None

    async def restart(self) -> None:
        """End the running process; it is started again at once."""
        if self._process is not None:
            await end_group(self._process, signal.SIGINT, GRACE_S)

    async def _keep(self) -> None:
        wait_s = FIRST_WAIT_S
        while True:
            began = time.monotonic()
            try:
                with _open_log(self._log) as output:
                    self._process = await asyncio.create_subprocess_exec(
                        *bound_command(self._command()),
                        stdin=asyncio.subprocess.DEVNULL,
                        stdout=output,
                        stderr=output,
                        env=self._environment,
                        cwd=self._cwd,
                        process_group=0,
                    )
                code = await self._process.wait()
                kill_group(self._process.pid)  # what it left behind
                self._on_end(self.name, code)
                _logger.warning("%s ended with status %s; see %s", self.name, code, self._log)
            except (OSError, FedsecError) as error:
                _logger.warning("%s cannot be started: %s", self.name, error)
            wait_s = FIRST_WAIT_S if time.monotonic() - began > STEADY_S else min(2 * wait_s, LONGEST_WAIT_S)
            self.restarts += 1
            await asyncio.sleep(wait_s)


async def end_group(process: asyncio.subprocess.Process, ask: signal.Signals, grace_s: float) -> None:
    """Ask, wait, kill; the group goes in any case.

    The exit status is looked at again and again. ``process.wait()`` returns when the pipes are closed too, which a full one that nobody reads, or
    a grandchild in a session of its own, puts off for ever. And this runs in tasks that are being cancelled, where ``asyncio.timeout`` raises
    ``CancelledError`` instead of ``TimeoutError`` in Python 3.11.2, which is Debian 12's, and ``wait_for`` can swallow a cancellation in all of 3.11.

    Args:
        process: leads a group of its own.
        ask: the signal that asks it to end.
        grace_s: how long it may take.
    """
    try:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(ask)
            await _ended(process, grace_s)
    finally:
        kill_group(process.pid)
    await _ended(process, KILLED_S)


async def _ended(process: asyncio.subprocess.Process, within_s: float) -> None:
    until = time.monotonic() + within_s
    while process.returncode is None and time.monotonic() < until:  # noqa: ASYNC110 - there is no event for it
        await asyncio.sleep(POLL_S)


def kill_group(pid: int) -> None:
    """Kill a process and all that it started, as far as they are there."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _open_log(path: Path) -> IO[bytes]:
    if path.exists() and path.stat().st_size > MAX_LOG_BYTES:
        path.replace(path.with_suffix(".old.log"))
    handle = path.open("ab")
    os.fchmod(handle.fileno(), 0o600)
    return handle
