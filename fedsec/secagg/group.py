"""The cohorts of one attempt at one round: they share the nonce, the root over all uploads, and therefore R.

1. One nonce a group, committed to in every CONFIG. It is opened when the uploads of all cohorts are fixed, and never serves again: a retry is
   a new group with a nonce of its own, whose sketches are never pooled with these (decision 0010, finding 3).
2. A cohort that fails drops out; the others go on. In the list of roots it stands as zeros if it failed before its uploads were fixed, and
   so does a cohort that is not in this attempt.
3. The rule sees the sketches of all cohorts at once; what it accepts is cut up by cohort again.

Source: design note SECAGG, "Cohorts and numbers" and stage 4.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from fedsec.errors import LocalProtocolError, RoundAborted
from fedsec.secagg.labels import DIGEST_BYTES, Phase
from fedsec.secagg.server import CohortServer
from fedsec.secagg.sketch import Sketch

Place = tuple[int, int]
"""Cohort and index of a member."""

Rule = Callable[[Mapping[Place, Sketch]], Collection[Place]]
"""From the sketches that passed the gate to the accepted members."""


def accept_all(sketches: Mapping[Place, Sketch]) -> Collection[Place]:
    """The rule ``mean``: whoever passed the norm gate is in the sum."""
    return sketches.keys()


@dataclass(kw_only=True, eq=False)
class GroupServer:
    """All cohorts of one attempt.

    Attributes:
        cohorts: by number; those of a retry are the ones that failed before.
        nonce: 32 secret bytes, until the uploads are fixed.
        failed: reason by cohort.
    """

    cohorts: Mapping[int, CohortServer]
    nonce: bytes = field(repr=False)
    failed: dict[int, str] = field(default_factory=dict)

    def running(self) -> dict[int, CohortServer]:
        """The cohorts that are still in the round."""
        return {number: cohort for number, cohort in self.cohorts.items() if number not in self.failed}

    def close_phase(self) -> None:
        """End the phase that the running cohorts are in; a cohort that cannot go on fails."""
        for number, cohort in self.running().items():
            self._attempt(number, cohort.close)

    def open_nonce(self) -> None:
        """After MASKED_INPUT: fix R for all."""
        running = self.running()
        if any(cohort.phase is not Phase.SKETCH for cohort in running.values()):
            raise LocalProtocolError("the nonce is opened when all uploads are fixed")
        count = max((cohort.config.num_cohorts for cohort in running.values()), default=0)
        roots = [running[number].input_root() if number in running else bytes(DIGEST_BYTES) for number in range(count)]
        for cohort in running.values():
            cohort.open_nonce(roots, self.nonce)

    def decide(self, rule: Rule = accept_all) -> None:
        """End SKETCH: run the rule over all sketches that passed the gate."""
        running = self.running()
        pooled = {(number, member): sketch for number, cohort in running.items() for member, sketch in cohort.screen().items()}
        accepted = set(rule(pooled)) if pooled else set()
        if not accepted <= pooled.keys():
            raise LocalProtocolError("the rule accepted a member whose sketch it did not see")
        for number, cohort in running.items():
            chosen = [member for place, member in accepted if place == number]
            self._attempt(number, lambda cohort=cohort, chosen=chosen: cohort.decide(chosen))  # type: ignore[misc]

    def fail(self, number: int, reason: str) -> None:
        """Take a cohort out of the round."""
        self.failed[number] = reason
        self.cohorts[number].abort()

    def _attempt(self, number: int, step: Callable[[], None]) -> None:
        try:
            step()
        except RoundAborted as error:
            self.fail(number, error.reason)
