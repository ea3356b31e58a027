"""What the server must remember of a round under way, so that a restart never continues an attempt, nor opens a nonce twice.

1. Written before the step that it speaks of: an attempt before its CONFIG leaves, "unmasking" before the first UNMASK request.
2. After a restart an attempt that was begun is over. The round is tried again as the next attempt, unless UNMASK had been asked for: then what
   was saved before is opened (``saved.py``). Where that is missing, or the attempts are used up, the round is lost, and the next one follows.
3. Members that were named stay out of the run; those of an unresolved edge sit out for a while.

Source: design note SECAGG, "Attempts"; decision 0010, findings 3 and 5.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fedsec.errors import StorageError
from fedsec.files import atomic_write_json

SITS_OUT_ROUNDS = 2
"""How many rounds a member sits out that left a failed opening unresolved; twice as many each further time."""

MOST_DOUBLINGS = 6
"""A member sits out for at most ``2 * 2**6`` rounds. Without doubling three liars who took turns cost every round (decision 0014)."""


@dataclass(kw_only=True)
class Journal:
    """The file of one run; every change is written at once.

    Attributes:
        path: the file.
        server_round: the round begun last; 0 before the first.
        attempt: its attempt begun last.
        time_s: when its first attempt began: CONFIG of every attempt says so.
        unmasking: whether UNMASK was asked for in this attempt.
        excluded: client id → why it is out of the run.
        sits_out_until: client id → last round that it sits out.
        times_out: client id → how often it had to sit out.
    """

    path: Path
    server_round: int = 0
    attempt: int = 0
    time_s: int = 0
    unmasking: bool = False
    excluded: dict[str, str] = field(default_factory=dict)
    sits_out_until: dict[str, int] = field(default_factory=dict)
    times_out: dict[str, int] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Journal:
        """The run's journal, or a new one.

        Raises:
            StorageError: damaged.
        """
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            journal = cls(path=path, **raw)
            journal._check()
            return journal
        except FileNotFoundError:
            return cls(path=path)
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise StorageError(f"{path} is damaged ({error}); start a new run") from None

    def _check(self) -> None:
        numbers = (self.server_round, self.attempt, self.time_s)
        if any(type(number) is not int or number < 0 for number in numbers) or type(self.unmasking) is not bool:
            raise TypeError("a number or a flag is not one")
        for names, kind in ((self.excluded, str), (self.sits_out_until, int), (self.times_out, int)):
            if not isinstance(names, dict) or any(type(value) is not kind for value in names.values()):
                raise TypeError("a table of clients is not one")

    def next_attempt(self, server_round: int, attempts: int, *, saved: bool = False) -> int | None:
        """The attempt to begin a round with; None if there is no further one.

        Args:
            server_round: the round.
            attempts: most that the plan allows.
            saved: what was about to be unmasked is known from a file; else any cohort may have been, and none is tried again.
        """
        if self.server_round != server_round:
            return 1
        return None if (self.unmasking and not saved) or self.attempt >= attempts else self.attempt + 1

    def begin(self, server_round: int, attempt: int, now_s: int) -> None:
        """Before CONFIG leaves."""
        if self.server_round != server_round:
            self.time_s = now_s
        self.server_round, self.attempt, self.unmasking = server_round, attempt, False
        self._write()

    def begin_unmasking(self) -> None:
        """Before the first UNMASK request leaves."""
        self.unmasking = True
        self._write()

    def exclude(self, client_id: str, reason: str) -> None:
        """Leave a client out for the rest of the run."""
        self.excluded[client_id] = reason
        self._write()

    def sit_out(self, client_id: str) -> None:
        """Leave a client out for the next rounds."""
        if self.sits_out_until.get(client_id, 0) > self.server_round:
            return  # it sits out already: the same round, asked again
        times = self.times_out.get(client_id, 0)
        self.times_out[client_id] = times + 1
        self.sits_out_until[client_id] = self.server_round + SITS_OUT_ROUNDS * 2 ** min(times, MOST_DOUBLINGS)
        self._write()

    def left_out(self, server_round: int) -> set[str]:
        """Who is not asked in a round."""
        return {*self.excluded, *(client_id for client_id, last in self.sits_out_until.items() if server_round <= last)}

    def _write(self) -> None:
        values = asdict(self)
        del values["path"]
        atomic_write_json(self.path, values)
