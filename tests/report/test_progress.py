"""Progress goes to stderr only, suits what stderr is, and never harms the run or the terminal."""

import errno
import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from fedsec.report.progress import RunProgress, is_live_terminal


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def follow(progress, rows, clock=None, *, seconds=2.0):
    for row in rows:
        progress.clients_answered(1, row.num_selected)
        if clock is not None:
            clock.now += seconds
        progress.on_round(row)


def test_stream_that_is_no_terminal_gets_one_line_for_each_round(make_row):
    stream, clock = io.StringIO(), Clock()
    with RunProgress(rounds=12, epsilon_target=8.0, title="digits", stream=stream, clock=clock) as progress:
        follow(progress, [make_row(number) for number in range(1, 13)], clock)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "digits: 12 rounds"
    assert len(lines) == 13
    assert lines[3] == "round  3/12  accuracy 57.1%  ε 1.20 of 8.00  18/20 clients  1 rejected  0.6 s  about 18.0 s left"
    assert "left" not in lines[-1]
    assert "\x1b" not in stream.getvalue()


def test_run_without_privacy_shows_no_budget(make_row):
    for target in (None, float("inf")):
        stream = io.StringIO()
        with RunProgress(rounds=2, epsilon_target=target, stream=stream) as progress:
            follow(progress, [make_row(1, epsilon_prv=None, epsilon_rdp=None)])
        assert "no privacy" in stream.getvalue()


def test_quiet_shows_nothing(make_row):
    stream = io.StringIO()
    with RunProgress(rounds=2, epsilon_target=8.0, title="digits", quiet=True, stream=stream) as progress:
        progress.on_start((make_row(1),))
        progress.note("anything")
        follow(progress, [make_row(2)])
    assert stream.getvalue() == ""


def test_resumed_run_counts_its_pace_from_its_own_rounds(make_row):
    stream, clock = io.StringIO(), Clock()
    with RunProgress(rounds=20, epsilon_target=8.0, stream=stream, clock=clock) as progress:
        clock.now = 100.0
        progress.on_start([make_row(number) for number in range(1, 11)])
        assert progress.time_left() is None
        follow(progress, [make_row(11)], clock, seconds=3.0)
        assert progress.time_left() == pytest.approx(27.0)
        clock.now += 2.0
        assert progress.time_left() == pytest.approx(25.0)
        clock.now += 1000.0
        assert progress.time_left() == 0.0
    assert "resumed after round 10 of 20" in stream.getvalue()


def test_names_from_clients_do_not_act(make_row):
    stream = io.StringIO()
    with RunProgress(rounds=2, epsilon_target=8.0, title="\x1b[2J[red]", stream=stream) as progress:
        progress.note("client \x1b]0;owned\x07 rejected")
        follow(progress, [make_row(1)])
    assert "\x1b" not in stream.getvalue()
    assert "[red]" in stream.getvalue()


def test_stream_without_greek_letters(make_row):
    raw = io.BytesIO()
    with RunProgress(rounds=2, epsilon_target=8.0, title="数字", stream=io.TextIOWrapper(raw, encoding="ascii")) as progress:
        follow(progress, [make_row(1)])
        assert b"epsilon 0.400 of 8.00" in raw.getvalue()


def test_run_of_no_rounds_is_refused():
    with pytest.raises(ValueError, match="at least one round"):
        RunProgress(rounds=0, epsilon_target=None)


@pytest.mark.parametrize(
    "fault", [BrokenPipeError(errno.EPIPE, "gone"), OSError(errno.EIO, "hung up"), ValueError("I/O operation on closed file")]
)
def test_lost_display_goes_silent_and_the_run_goes_on(make_row, fault):
    class Lost(io.StringIO):
        def write(self, text):
            if isinstance(fault, ValueError):
                self.close()
            raise fault

    before = sys.stderr
    with RunProgress(rounds=3, epsilon_target=8.0, title="digits", stream=Lost()) as progress:
        follow(progress, [make_row(1), make_row(2)])
    assert sys.stderr is before


def test_faults_of_our_own_are_not_taken_for_a_lost_display(make_row):
    class Odd(io.StringIO):
        def write(self, text):
            raise ValueError("ours")

    with pytest.raises(ValueError, match="ours"), RunProgress(rounds=3, epsilon_target=8.0, title="digits", stream=Odd()):
        pass


def test_terminals_are_told_apart(monkeypatch):
    primary, secondary = pty.openpty()
    with os.fdopen(primary, "rb"), os.fdopen(secondary, "w") as stream:
        monkeypatch.setenv("TERM", "xterm")
        assert is_live_terminal(stream)
        monkeypatch.setenv("TERM", "dumb")
        assert not is_live_terminal(stream)
        monkeypatch.delenv("TERM")
        assert not is_live_terminal(stream)
    assert not is_live_terminal(stream)  # closed
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert not is_live_terminal(io.StringIO())


SCRIPT = """
import json, os, sys, threading, time, warnings
from fedsec.report.progress import RunProgress
from fedsec.results import RoundRow

def row(number):
    return RoundRow(server_round=number, accuracy=0.5, loss=1.0, recall=(), epsilon_prv=0.1 * number, epsilon_rdp=0.2, num_selected=20,
                    num_valid=20, num_dropped=0, rejected=(), update_norm=1.0, seconds=0.1, bytes_up=1, bytes_down=1)

real, out = sys.stderr, sys.stdout
try:
    with RunProgress(rounds=4, epsilon_target=8.0, title="digits, 20 clients") as progress:
        assert threading.active_count() == 1
        assert sys.stdout is out
        for number in range(1, 5):
            progress.clients_answered(10, 20)
            BODY
            progress.on_round(row(number))
finally:
    assert sys.stderr is real
print(json.dumps({"accuracy": 0.5}))
"""


def run_on_terminal(body, *, interrupt_after=None):
    """Run the script with a pseudo terminal as stderr and a pipe as stdout: (exit status, stdout, what the terminal got)."""
    primary, secondary = pty.openpty()
    code = SCRIPT.replace("BODY", textwrap.indent(body, " " * 12).strip())
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "24", "PYTHONUTF8": "1"}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=secondary, env=environment)
    os.close(secondary)
    seen = bytearray()

    def drain():
        while select.select([primary], [], [], 60)[0]:
            try:
                seen.extend(os.read(primary, 4096) or b"")
            except OSError:  # the other end is closed
                return

    reader = threading.Thread(target=drain)
    reader.start()
    if interrupt_after is not None:
        deadline = time.monotonic() + 60
        while interrupt_after not in seen and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    reader.join(timeout=60)
    os.close(primary)
    return process.returncode, out.decode(), seen.decode()


def cursor_is_visible(seen):
    return seen.rfind("\x1b[?25h") > seen.rfind("\x1b[?25l")


def test_terminal_gets_a_live_picture_and_stdout_stays_clean():
    status, out, seen = run_on_terminal("if number == 2: warnings.warn('from a library'); progress.note('client-7 \\x1b[2J rejected')")
    assert (status, json.loads(out)) == (0, {"accuracy": 0.5})
    assert "digits, 20 clients" in seen
    assert "round 3/4" in seen
    assert "10/20 clients answered" in seen
    assert "0.400 of 8.00" in seen
    assert "from a library" in seen
    assert "client-7 \\x1b[2J rejected" in seen
    assert "\x1b[2J" not in seen
    assert cursor_is_visible(seen)


def test_error_in_the_run_passes_through_and_leaves_the_terminal_usable():
    status, out, seen = run_on_terminal("if number == 3: raise RuntimeError('boom')")
    assert (status, out) == (1, "")
    assert "RuntimeError: boom" in seen
    assert seen.rindex("Traceback") > seen.rindex("round 3/4")
    assert cursor_is_visible(seen)


def test_interrupt_leaves_the_terminal_usable():
    status, _, seen = run_on_terminal("if number == 2: progress.note('now'); time.sleep(60)", interrupt_after=b"now")
    assert status != 0
    assert "KeyboardInterrupt" in seen
    assert cursor_is_visible(seen)


def test_killed_run_leaves_the_cursor_visible():
    status, _, seen = run_on_terminal("if number == 2: os.kill(os.getpid(), 9)")
    assert status == -9
    assert cursor_is_visible(seen)


def test_forked_worker_writes_past_the_picture():
    body = "pid = os.fork()\nif pid == 0:\n    print('worker', type(sys.stderr).__name__, file=sys.stderr); progress.note('drawn by a child'); os._exit(0)\nos.waitpid(pid, 0)"
    status, out, seen = run_on_terminal(body)
    assert (status, json.loads(out)) == (0, {"accuracy": 0.5})
    assert "worker TextIOWrapper" in seen
    assert "drawn by a child" not in seen


def test_terminal_lost_in_the_middle_of_a_run():
    status, out, seen = run_on_terminal("if number == 2: os.close(2)")
    assert (status, json.loads(out)) == (0, {"accuracy": 0.5})  # and the script found its own stderr back in place
    assert "round 2/4" in seen
