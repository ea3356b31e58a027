import os
import subprocess
import sys
import time

from fedsec.flower import leftovers


def start(code: str) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


SLEEP = "print('ready', flush=True); import time; time.sleep(60)"
PARENT = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {SLEEP!r}]); p.wait()"


def test_all_processes_below_are_found_and_ended_however_stubborn() -> None:
    before = leftovers.descendants(os.getpid())
    process = start(PARENT)
    found = leftovers.descendants(os.getpid()) - before
    assert len(found) == 2
    assert process.pid in {pid for pid, _ in found}
    leftovers.kill_processes(found)
    process.wait(5)
    deadline = time.monotonic() + 5
    while leftovers.descendants(os.getpid()) - before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert leftovers.descendants(os.getpid()) <= before


def test_only_processes_of_that_name_and_that_start_time_are_meant() -> None:
    process = start(SLEEP)
    (found,) = (p for p in leftovers.descendants(os.getpid()) if p[0] == process.pid)
    assert leftovers.named([found], sys.executable) == [found]
    assert leftovers.named([found], "ray::") == []
    another = (process.pid, "1")
    leftovers.kill_processes([another])
    assert process.poll() is None
    leftovers.kill_processes([found])
    assert process.wait(5) == -9
    assert leftovers.named([found], "") == []


def test_ending_waits_for_those_that_end_by_themselves() -> None:
    process = start("print('ready', flush=True); import time; time.sleep(0.5)")
    (found,) = (p for p in leftovers.descendants(os.getpid()) if p[0] == process.pid)
    leftovers.end_processes([found])
    assert process.wait(5) == 0
