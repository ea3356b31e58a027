"""How the program that started a run in this process listens to it and stops it.

Flower calls the ServerApp with a grid and a context only, on some engines from a thread of its own; whoever started the run leaves
its listeners here first. A ServerApp in a process of its own finds none, and writes its result folder all the same.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from fedsec.results import RoundRow, RunResult


@dataclass(kw_only=True)
class Session:
    """Listeners of one run.

    Attributes:
        on_start: told the rows that a resumed run already has.
        on_round: told every round as it ends.
        on_answers: told (answers so far, clients asked) while a round waits.
        note: told, in a sentence, what an operator should know.
        stop: set it to end the run with a usable result.
        result: the run's result, once it has one.
    """

    on_start: Callable[[tuple[RoundRow, ...]], None] = lambda _rows: None
    on_round: Callable[[RoundRow], None] = lambda _row: None
    on_answers: Callable[[int, int], None] = lambda _answered, _asked: None
    note: Callable[[str], None] = lambda _text: None
    stop: threading.Event = field(default_factory=threading.Event)
    result: RunResult | None = None


_current: Session | None = None


@contextlib.contextmanager
def listening(session: Session) -> Iterator[Session]:
    """Make ``session`` the one that runs in this process report to, for the duration of the block."""
    global _current  # noqa: PLW0603 - Flower gives the ServerApp no other way to reach its starter
    previous, _current = _current, session
    try:
        yield session
    finally:
        _current = previous


def current_session() -> Session:
    """The session that this process's run reports to; a silent one where nobody listens."""
    return _current if _current is not None else Session()
