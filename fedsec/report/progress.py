"""What a simulation shows while it runs, on stderr alone: a live bar on a terminal, a line for each round elsewhere, or nothing.

1. stdout is never touched, so it stays free for ``--json``.
2. No thread of its own: the picture changes when the run tells it something, so a run may fork at any moment. What is forked
   draws nothing.
3. The cursor is never hidden, so even a killed run leaves the terminal usable; on Ctrl-C and errors the last picture stays.
4. A display that breaks (closed pipe, lost terminal) goes silent; the run goes on.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.file_proxy import FileProxy
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedsec.report import text
from fedsec.results import RoundRow

MIN_REFRESH_S = 0.1
"""Shortest pause between two pictures of the same round; thousands of replies a second must not cost time."""


def _restore_stderr_in_child() -> None:
    """A forked worker writes to the real stderr: the picture, and the lock on it, are its parent's."""
    if isinstance(sys.stderr, FileProxy):
        sys.stderr = sys.stderr.rich_proxied_file


os.register_at_fork(after_in_child=_restore_stderr_in_child)


class _Console(Console):
    """rich's console, but a closed pipe stays an error: rich would point *stdout* to nowhere and exit."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class RunProgress:
    """Shows one run; a context manager.

    Give :meth:`on_start` the rows of a resumed run, :meth:`on_round` each finished round, and :meth:`clients_answered` the replies of
    the round that is under way, as often as you like.

    Args:
        rounds: rounds of the plan, at least 1.
        epsilon_target: what the run may spend; None or infinite without privacy.
        title: shown above the bar.
        quiet: show nothing at all.
        stream: where to write; stderr if not given.
        clock: seconds, for the time left.
    """

    def __init__(
        self,
        *,
        rounds: int,
        epsilon_target: float | None,
        title: str = "",
        quiet: bool = False,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if rounds < 1:
            raise ValueError("a run has at least one round")
        self._rounds = rounds
        self._target = None if epsilon_target is None or math.isinf(epsilon_target) else epsilon_target
        self._title = text.printable(title, 100)
        self._stream = stream if stream is not None else sys.stderr
        self._silent = quiet
        self._pid = os.getpid()
        self._clock = clock
        self._rows_before = 0
        self._row: RoundRow | None = None
        self._rejected = 0
        self._answered: tuple[int, int] | None = None
        self._started = clock()
        self._round_ended = self._started
        self._drawn = -math.inf
        self._live: Live | None = None

    def __enter__(self) -> Self:
        self._started = self._round_ended = self._clock()
        if self._silent:
            return self
        if is_live_terminal(self._stream):
            console = _Console(file=self._stream, force_terminal=True, highlight=False)
            # stderr is redirected so that warnings appear above the bar; stdout belongs to the program.
            self._live = Live(console=console, auto_refresh=False, redirect_stdout=False, get_renderable=self._picture)
            self._show(self._start_live)
        elif self._title:
            self._say(f"{self._title}: {text.counted(self._rounds, 'round')}")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        live, self._live = self._live, None
        if live is not None:
            self._show(live.stop)

    def on_start(self, rows: Sequence[RoundRow]) -> None:
        """Take over the rounds that a resumed run already has."""
        self._rows_before = len(rows)
        self._row = rows[-1] if rows else None
        self._rejected = sum(len(row.rejected) for row in rows)
        self._started = self._round_ended = self._clock()
        if rows and self._live is None:
            self._say(f"resumed after round {rows[-1].server_round} of {self._rounds}")
        self._refresh(force=True)

    def clients_answered(self, answered: int, asked: int) -> None:
        """So many of the clients asked in this round have answered."""
        self._answered = (answered, asked)
        self._refresh(force=False)

    def on_round(self, row: RoundRow) -> None:
        """A round ended."""
        self._row = row
        self._rejected += len(row.rejected)
        self._answered = None
        self._round_ended = self._clock()
        if self._live is None:
            self._say(self._line(row))
        self._refresh(force=True)

    def note(self, message: str) -> None:
        """A line that stays, above the bar."""
        shown = text.printable(message)
        if self._live is None:
            self._say(shown)
        else:
            console = self._live.console
            self._show(lambda: console.print(Text(text.encodable(shown, console.encoding))))

    def time_left(self) -> float | None:
        """Seconds until the last round ends, at the pace of this session's rounds; None before the first of them.

        It counts from the last finished round: time that the round under way has taken is not in it twice.
        """
        done = 0 if self._row is None else self._row.server_round
        if done <= self._rows_before:
            return None
        pace = (self._round_ended - self._started) / (done - self._rows_before)
        return max(0.0, pace * (self._rounds - done) - (self._clock() - self._round_ended))

    def _start_live(self) -> None:
        if self._live is not None:
            self._live.start(refresh=True)
            self._live.console.show_cursor(True)

    def _refresh(self, *, force: bool) -> None:
        now = self._clock()
        if self._live is not None and (force or now - self._drawn >= MIN_REFRESH_S):
            self._drawn = now
            self._show(self._live.refresh)

    def _say(self, line: str) -> None:
        def write() -> None:
            print(text.encodable(line, self._encoding()), file=self._stream, flush=True)

        self._show(write)

    def _show(self, draw: Callable[[], object]) -> None:
        """Draw, unless the display is off, broken or the parent's: what is lost then is the display, never the run."""
        if self._silent or os.getpid() != self._pid:
            return
        try:
            draw()
        except OSError:
            self._give_up()
        except ValueError:
            if not self._stream.closed:
                raise  # a fault of ours, not of the display
            self._give_up()

    def _give_up(self) -> None:
        """Go silent for good, and give sys.stderr back."""
        self._silent = True
        live, self._live = self._live, None
        if live is not None:
            with contextlib.suppress(OSError, ValueError):  # it fails to draw once more, and then undoes its redirection
                live.stop()

    def _encoding(self) -> str:
        return self._stream.encoding or "utf-8"

    def _epsilon(self, row: RoundRow | None) -> str:
        if self._target is None:
            return "no privacy"
        spent = 0.0 if row is None else row.epsilon_prv
        return f"ε {text.epsilon(spent)} of {text.epsilon(self._target)}"

    def _line(self, row: RoundRow) -> str:
        width = len(str(self._rounds))
        parts = [
            f"round {row.server_round:>{width}}/{self._rounds}",
            f"accuracy {text.percent(row.accuracy)}",
            self._epsilon(row),
            f"{row.num_valid}/{row.num_selected} clients",
        ]
        if row.secagg is not None:
            parts.append(
                "sum opened" if row.secagg.all_held else "sum NOT opened" if not row.secagg.num_accepted else "not all sums opened"
            )
        if row.rejected:
            parts.append(f"{len(row.rejected)} rejected")
        parts.append(text.duration(row.seconds))
        left = self.time_left()
        if left is not None and row.server_round < self._rounds:
            parts.append(f"about {text.duration(left)} left")
        return "  ".join(parts)

    def _picture(self) -> RenderableType:
        row = self._row
        done = 0 if row is None else row.server_round
        answered, asked = self._answered or (0, 0)
        share = done + (min(answered / asked, 1.0) if asked and done < self._rounds else 0.0)
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            Text(
                f"round {min(done + 1, self._rounds)}/{self._rounds}" if done < self._rounds else text.counted(done, "round"), style="bold"
            ),
            ProgressBar(total=self._rounds, completed=share, width=32, complete_style="cyan", finished_style="green"),
            Text(self._time_text(done), style="dim"),
        )
        facts = [f"accuracy {text.percent(row.accuracy if row else None)}", self._epsilon(row)]
        if self._answered is not None:
            facts.append(f"{answered}/{asked} clients answered")
        elif row is not None:
            facts.append(f"{row.num_valid}/{row.num_selected} clients")
        facts.append(f"{self._rejected} rejected")
        encoding = self._encoding()
        title = [Text(text.encodable(self._title, encoding), style="bold cyan", no_wrap=True, overflow="ellipsis")] if self._title else []
        return Group(*title, bar, Text(text.encodable("   ".join(facts), encoding)))

    def _time_text(self, done: int) -> str:
        if done >= self._rounds:
            return f"in {text.duration(self._round_ended - self._started)}"
        left = self.time_left()
        return "" if left is None else f"about {text.duration(left)} left"


def is_live_terminal(stream: TextIO) -> bool:
    """Whether a stream is a terminal on which a picture can be redrawn."""
    try:
        return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")
    except ValueError:  # closed
        return False
