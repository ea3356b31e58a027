"""What a grid shows while it runs, on stderr alone: a live table on a terminal, a line for each finished run elsewhere, or nothing.

1. stdout is never touched, so it stays free for ``--json``.
2. The time left counts what runs at the pace of this session's runs; before the first has ended there is none.
3. A display that breaks (closed pipe, lost terminal) goes silent; the grid goes on.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedsec.report import text
from fedsec.report.progress import is_live_terminal

_MOST_SHOWN = 8


class _Console(Console):
    """rich's console, but a closed pipe stays an error: rich would point *stdout* to nowhere and exit."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class GridProgress:
    """Shows one grid; a context manager.

    Args:
        total: runs of the grid.
        finished: of them, before this session.
        jobs: how many run at a time.
        title: shown above.
        quiet: show nothing at all.
        stream: where to write; stderr if not given.
        clock: seconds.
    """

    def __init__(
        self,
        *,
        total: int,
        finished: int,
        jobs: int,
        title: str = "",
        quiet: bool = False,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._finished, self._jobs = total, finished, jobs
        self._title = text.printable(title, 100)
        self._stream = stream if stream is not None else sys.stderr
        self._silent = quiet
        self._clock = clock
        self._started: dict[str, float] = {}
        self._seconds: list[float] = []
        self._failed = 0
        self._lately: list[str] = []
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._silent:
            return self
        if is_live_terminal(self._stream):
            console = _Console(file=self._stream, force_terminal=True, highlight=False)
            live = Live(console=console, auto_refresh=False, redirect_stdout=False, get_renderable=self._picture)
            self._live = live
            self._show(lambda: live.start(refresh=True))
        else:
            kept = f", {self._finished} of them done before" if self._finished else ""
            self._say(f"{self._title}: {text.counted(self._total, 'run')}{kept}, {self._jobs} at a time")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        live, self._live = self._live, None
        if live is not None:
            self._show(live.stop)

    def running(self, names: Sequence[str]) -> None:
        """These run now."""
        now = self._clock()
        self._started = {name: self._started.get(name, now) for name in names}
        if self._live is not None:
            self._show(self._live.refresh)

    def ended(self, name: str, line: str, *, seconds: float, failed: bool = False) -> None:
        """One ended for good.

        Args:
            name: which.
            line: what to say of it.
            seconds: it took.
            failed: it has no result.
        """
        self._started.pop(name, None)
        self._failed += failed
        self._finished += not failed
        self._seconds.append(seconds)
        self._lately = [*self._lately[1 - _MOST_SHOWN :], line]
        if self._live is None:
            left = self.time_left()
            rest = f", about {text.duration(left)} left" if left else ""
            self._say(f"[{self._finished + self._failed}/{self._total}] {line} in {text.duration(seconds)}{rest}")
        else:
            self._show(self._live.refresh)

    def time_left(self) -> float | None:
        """Seconds until all have ended, at the mean pace of this session; None before the first has."""
        left = self._total - self._finished - self._failed
        if not self._seconds:
            return None
        pace = sum(self._seconds) / len(self._seconds)
        spent = sum(min(self._clock() - start, pace) for start in self._started.values())
        return max(0.0, pace * left - spent) / min(self._jobs, max(left, 1))

    def _say(self, line: str) -> None:
        self._show(lambda: print(text.encodable(text.printable(line), self._stream.encoding or "utf-8"), file=self._stream, flush=True))

    def _show(self, draw: Callable[[], object]) -> None:
        """Draw, unless the display is off or broken: what is lost then is the display, never the grid."""
        if self._silent:
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
            with contextlib.suppress(OSError, ValueError):
                live.stop()

    def _picture(self) -> RenderableType:
        done = self._finished + self._failed
        left = self.time_left()
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            Text(f"run {done}/{self._total}", style="bold"),
            ProgressBar(total=max(self._total, 1), completed=done, width=32, complete_style="cyan", finished_style="green"),
            Text("" if left is None or done >= self._total else f"about {text.duration(left)} left", style="dim"),
        )
        now = self._clock()
        lines = Table.grid(padding=(0, 1))
        for line in self._lately:
            lines.add_row(Text("done", style="green"), self._text(line))
        for name, start in list(self._started.items())[:_MOST_SHOWN]:
            lines.add_row(Text("runs", style="cyan"), self._text(f"{name}, {text.duration(now - start)}"))
        return Group(Text(self._title, style="bold cyan", no_wrap=True, overflow="ellipsis"), bar, lines)

    def _text(self, line: str) -> Text:
        return Text(text.encodable(text.printable(line), self._stream.encoding or "utf-8"), no_wrap=True, overflow="ellipsis")
