"""What a grid shows while it runs: lines on a file, a table on a terminal, nothing when quiet, and never a reason to end."""

import io
import sys

import pytest

from fedsec.report.grid_progress import GridProgress


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


class Broken(Terminal):
    """A terminal that goes away after so many writes."""

    left = 0

    def write(self, text):
        self.left -= 1
        if self.left < 0:
            raise BrokenPipeError
        return super().write(text)


@pytest.fixture(autouse=True)
def _a_terminal_that_can_be_redrawn(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")


def test_a_file_gets_a_line_for_each_end_with_the_time_left():
    stream, clock = io.StringIO(), Clock()
    with GridProgress(total=5, finished=1, jobs=2, title="a plan", stream=stream, clock=clock) as progress:
        progress.running(["x", "y"])
        clock.now = 10.0
        progress.ended("x", "x: accuracy 80.0%", seconds=10.0)
        clock.now = 12.0
        progress.running(["y", "z"])
        progress.ended("y", "y: failed", seconds=12.0, failed=True)
    # after x: 3 left at 10 s each, y has had its 10 s, two at a time; after y: 2 left at 11 s, z has just started
    assert stream.getvalue().splitlines() == [
        "a plan: 5 runs, 1 of them done before, 2 at a time",
        "[2/5] x: accuracy 80.0% in 10.0 s, about 10.0 s left",
        "[3/5] y: failed in 12.0 s, about 11.0 s left",
    ]


def test_there_is_no_time_left_before_the_first_end_and_none_after_the_last():
    progress = GridProgress(total=1, finished=0, jobs=2, quiet=True)
    with progress:
        assert progress.time_left() is None
        progress.ended("x", "x", seconds=3.0)
        assert progress.time_left() == 0.0


def test_a_terminal_shows_what_runs_what_ended_and_how_far_it_is():
    stream, clock = Terminal(), Clock()
    with GridProgress(total=3, finished=0, jobs=2, title="a plan", stream=stream, clock=clock) as progress:
        progress.running(["one", "two"])
        clock.now = 65.0
        progress.running(["one", "two"])
        progress.ended("one", "one: accuracy 75.0%", seconds=65.0)
    shown = stream.getvalue()
    assert "1 min 05 s" in shown
    assert "one: accuracy 75.0%" in shown
    assert "run 1/3" in shown
    assert "a plan" in shown


def test_quiet_shows_nothing():
    stream = Terminal()
    with GridProgress(total=3, finished=0, jobs=2, title="a plan", quiet=True, stream=stream) as progress:
        progress.running(["one"])
        progress.ended("one", "one", seconds=1.0)
    assert stream.getvalue() == ""


@pytest.mark.parametrize("writes", [0, 1, 3, 6])
def test_a_display_that_breaks_goes_silent_and_gives_stderr_back(writes):
    before = sys.stderr
    stream = Broken()
    stream.left = writes
    with GridProgress(total=9, finished=0, jobs=2, title="a plan", stream=stream) as progress:
        for name in "abcdef":
            progress.running([name])
            progress.ended(name, name, seconds=1.0)
    assert sys.stderr is before


def test_a_closed_stream_goes_silent():
    stream = io.StringIO()
    with GridProgress(total=2, finished=0, jobs=1, title="a plan", stream=stream) as progress:
        stream.close()
        progress.ended("a", "a", seconds=1.0)


@pytest.mark.parametrize("stream_class", [io.StringIO, Terminal])
def test_hostile_names_do_not_act(stream_class):
    stream = stream_class()
    with GridProgress(total=2, finished=0, jobs=1, title="\x1b[2Jt\u202e", stream=stream) as progress:
        progress.running(["\x1b[2Jr"])
        progress.ended("\x1b[2Jr", "\x1b[2Jd", seconds=1.0)
    assert "\x1b[2J" not in stream.getvalue()
    assert "\u202e" not in stream.getvalue()
