"""Processes that someone else started below this one, and their end. Linux: read from ``/proc``; elsewhere nothing is found."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Collection
from pathlib import Path

GRACE_S = 3.0
"""How long processes may take to end by themselves before they are killed."""

Process = tuple[int, str]
"""Process id and start time: together they never name another process."""


def _parent_and_start(pid: int) -> tuple[int, str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] == "Z" else (int(fields[1]), fields[19])


def descendants(pid: int) -> frozenset[Process]:
    """All living processes below ``pid``."""
    children: dict[int, list[Process]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        if (found := _parent_and_start(int(entry.name))) is not None:
            children.setdefault(found[0], []).append((int(entry.name), found[1]))
    below: set[Process] = set()
    pending = [pid]
    while pending:
        for process in children.get(pending.pop(), ()):
            below.add(process)
            pending.append(process[0])
    return frozenset(below)


def _is_alive(process: Process) -> bool:
    found = _parent_and_start(process[0])
    return found is not None and found[1] == process[1]


def named(processes: Collection[Process], prefix: str) -> list[Process]:
    """Those whose command line starts with ``prefix``."""
    found = []
    for process in processes:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{process[0]}/cmdline").read_bytes().startswith(prefix.encode()) and _is_alive(process):
                found.append(process)
    return found


def kill_processes(processes: Collection[Process]) -> None:
    """Kill those of ``processes`` that are still there."""
    for process in processes:
        if _is_alive(process):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process[0], signal.SIGKILL)


def end_processes(processes: Collection[Process]) -> None:
    """Wait until ``processes`` are gone; kill those that are still there after a few seconds."""
    deadline = time.monotonic() + GRACE_S
    while any(map(_is_alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.02)
    kill_processes(processes)
