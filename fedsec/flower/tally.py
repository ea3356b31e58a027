"""What is counted while a round of secure aggregation runs: answers, bytes, milliseconds, reasons."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

Place = tuple[int, int]


@dataclass(kw_only=True)
class Tally:
    """Counts of one round, over all its attempts.

    Attributes:
        attempts: tries so far.
        refused: (client id, reason) of answers that were refused.
        named: (client id, reason) of proven liars.
        unresolved: clients that sit out.
        reasons: cohort → why it has no sum.
        openings: cohort → "failed", where a sum contradicted the sketches.
        seconds: stage → wall time.
        evidence: named client → path of its evidence.
        failed_closed: why the rule let nobody count; empty if it did.
    """

    attempts: int = 0
    refused: list[tuple[str, str]] = field(default_factory=list)
    named: list[tuple[str, str]] = field(default_factory=list)
    unresolved: list[str] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)
    openings: dict[int, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    failed_closed: str = ""
    evidence: dict[str, str] = field(default_factory=dict)
    _asked: dict[tuple[int, str], int] = field(default_factory=lambda: defaultdict(int))
    _answered: dict[tuple[int, str], int] = field(default_factory=lambda: defaultdict(int))
    _refusals: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _up: dict[Place, int] = field(default_factory=lambda: defaultdict(int))
    _down: dict[Place, int] = field(default_factory=lambda: defaultdict(int))

    def add_named(self, client_id: str, reason: str, evidence: str) -> None:
        """A proven liar, once."""
        if client_id not in self.evidence:
            self.named.append((client_id, reason))
        self.evidence[client_id] = evidence

    def add_time(self, stage: str, seconds: float) -> None:
        """Wall time of one stage."""
        self.seconds[str(stage)] = self.seconds.get(str(stage), 0.0) + seconds

    def add_asked(self, cohort: int, stage: str, count: int) -> None:
        """Members that a stage's request went to."""
        self._asked[cohort, str(stage)] += count

    def add_answer(self, cohort: int, stage: str) -> None:
        """A usable answer."""
        self._answered[cohort, str(stage)] += 1

    def add_refusal(self, stage: str) -> None:
        """An answer that was an error, or refused."""
        self._refusals[str(stage)] += 1

    def joining(self) -> tuple[int, int]:
        """Members that were asked to join, and those of them that said no."""
        stage = "advertise_keys"
        return sum(count for (_, asked), count in self._asked.items() if asked == stage), self._refusals[stage]

    def add_up(self, cohort: int, index: int, count: int) -> None:
        """Bytes from a member."""
        self._up[cohort, index] += count

    def add_down(self, cohort: int, index: int, count: int) -> None:
        """Bytes to a member."""
        self._down[cohort, index] += count

    def dropouts(self, cohort: int) -> dict[str, int]:
        """Stage → members that were asked and gave no usable answer."""
        return {stage: asked - self._answered[number, stage] for (number, stage), asked in self._asked.items() if number == cohort}

    def mean_up(self, cohort: int) -> int:
        """Mean bytes from a member that sent any."""
        return _mean([count for (number, _), count in self._up.items() if number == cohort])

    def mean_down(self, cohort: int) -> int:
        """Mean bytes to a member that was asked."""
        return _mean([count for (number, _), count in self._down.items() if number == cohort])


def _mean(counts: list[int]) -> int:
    return round(sum(counts) / len(counts)) if counts else 0
