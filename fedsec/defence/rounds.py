"""The defence of one run: from what the server sees of a round to who counts, and what is remembered of it.

1. The rule judges everybody who is seen, quarantined clients included; whoever is quarantined or excluded does not count, whatever the rule says.
2. A round may be judged in parts (secure aggregation tries failed cohorts again, under another R). Nothing is remembered before the round is
   over: a crash in the middle of it, or another attempt, never counts a client twice.
3. More suspects than f, or fewer clients left than the plan needs: nobody counts, the model stays as it was, and the round says why.
4. What is remembered (reputation, what the screening accumulates) is JSON in the server's checkpoint.

Source: design note ROBUST, "Three kinds of fault".
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fedsec.defence.pending import Pending
from fedsec.errors import RoundAborted
from fedsec.plan.model import Plan
from fedsec.plan.robust import UNDEFENDED, max_suspects, rule_of
from fedsec.results import ScreeningRow
from fedsec.robust.accumulated import ScreeningState
from fedsec.robust.base import Matrix, Mode, RoundView, Verdict
from fedsec.robust.catalogue import RULES, Kind
from fedsec.robust.registry import aggregate, apply_rule
from fedsec.robust.reputation import Reputation
from fedsec.robust.reputation_records import EDGE, Event, Fault, ReputationSettings, RoundObservation
from fedsec.robust.rules import mean_update
from fedsec.robust.screening import SUSPICION, screen
from fedsec.robust.validation import ValidUpdate

BY_RANK = ("krum", "multi-krum", "bulyan")
"""Rules that leave out a fixed number in every round, whoever is there: being left out says nothing over rounds."""

BY_DIRECTION = ("fltrust", "foolsgold")
"""Rules that count on angles, whatever the number of hostile clients."""

Vector = npt.NDArray[np.float64]


@dataclass(kw_only=True, eq=False)
class Defence:
    """Who counts in each round of one run.

    Attributes:
        plan: what is run.
        noise_stddev: publicly known deviation of the noise in each coordinate of a sum-form update; 0 without differential privacy.
        attackers: client ids that a simulation made attackers: for the distance to the honest mean in the report. No rule sees them.
        reputation: what is remembered of each client.
        screening: what the screening accumulates over rounds.
    """

    plan: Plan
    noise_stddev: float
    attackers: frozenset[str] = frozenset()
    reputation: Reputation = field(init=False)
    screening: ScreeningState | None = None
    _pending: Pending | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.reputation = Reputation.initial(
            ReputationSettings(
                num_byzantine=max_suspects(self.plan, self.plan.federation.num_clients),
                quarantine_rounds=self.plan.robust.quarantine_rounds,
                over_rounds=self.plan.robust.reputation and self.rule not in (UNDEFENDED, *BY_RANK),
            )
        )

    @property
    def rule(self) -> str:
        """Name of the rule."""
        return rule_of(self.plan)

    @property
    def blocked(self) -> frozenset[str]:
        """Clients that do not count, whatever the rule says: excluded for a provable fault, or in quarantine."""
        return frozenset(self.reputation.blocked())

    @property
    def excluded(self) -> frozenset[str]:
        """Clients that are out of the run: a fault of theirs was proven."""
        return frozenset(self.reputation.excluded())

    def most_suspects(self, present: int) -> int:
        """F for a round with ``present`` clients: known hostile ones that are out already need no place, and no rule is asked for more than it stands."""
        most = max_suspects(self.plan, present, excluded=len(self.excluded))
        while most and self.rule in RULES and RULES[self.rule].fewest_clients(most) > present:
            most -= 1
        return most

    @property
    def num_accepted(self) -> int:
        """Clients that count in the round under way."""
        return len(self._pending.accepted) if self._pending is not None else 0

    @property
    def failed(self) -> str:
        """Why nothing of the round under way is used; empty if something is."""
        return self._pending.failed if self._pending is not None else ""

    # --- One round --------------------------------------------------------------------------------------------------------------

    def judge(self, view: RoundView, *, lifted: Matrix | None = None) -> frozenset[str]:
        """Who of a round, or of a part of it, counts.

        Args:
            view: what the server sees.
            lifted: of sketches, put back into the space of the updates; see :func:`fedsec.robust.screening.screen`.

        Raises:
            RoundAborted: more suspects than f; nobody counts.
        """
        pending = self._round(view.server_round)
        if self.rule == "screening":
            return self._note(view, self._screened(view, pending, lifted), pending)
        _, verdict = self._on_the_unblocked(view, lambda part: (None, apply_rule(self.rule, part)))
        return self._note(view, verdict, pending)

    def reject(self, server_round: int, out: Mapping[str, tuple[float, str]]) -> None:
        """Note clients that are out before any rule looks: client id → (score, at least 1; reason)."""
        pending = self._round(server_round)
        pending.scores |= {name: score for name, (score, _) in out.items()}
        pending.reasons |= {name: reason for name, (_, reason) in out.items()}

    def aggregate(self, updates: Sequence[ValidUpdate], *, server_round: int, dimension: int, root: Vector | None = None) -> Vector | None:
        """The aggregate of updates in clear, as a model difference: float64 [dimension]; None if nobody counts.

        Args:
            updates: valid, one a client, any order.
            server_round: from 1.
            dimension: d.
            root: the server's own model difference, for a rule that needs one.
        """
        ordered = sorted(updates, key=lambda update: update.client_id)
        total: Vector | None = None
        if self.rule == UNDEFENDED:
            counted = [update for update in ordered if update.client_id not in self.blocked]
            self._round(server_round).accepted = [update.client_id for update in counted]
            total = self._mean(counted)
        elif ordered:
            try:
                total = self._judged_aggregate(self._view(ordered, server_round, dimension, root), ordered)
            except RoundAborted as error:
                self.fail(server_round, error.reason)
        if total is not None and self.attackers:
            honest = [update for update in ordered if update.client_id not in self.attackers]
            self._round(server_round).aggregate_error = _distance_in_spreads(total, honest)
        return total

    def fail(self, server_round: int, reason: str) -> None:
        """Note that nothing of a round is used."""
        pending = self._round(server_round)
        pending.failed, pending.accepted = reason, []

    def _judged_aggregate(self, view: RoundView, ordered: Sequence[ValidUpdate]) -> Vector | None:
        if self.rule == "screening":
            accepted = self.judge(view)
            return self._mean([update for update in ordered if update.client_id in accepted])
        weight_cap = self.plan.training.weight_cap
        total, verdict = self._on_the_unblocked(view, lambda part: aggregate(self.rule, part, weight_cap=weight_cap))
        self._note(view, verdict, self._round(view.server_round))
        return total

    def _on_the_unblocked(
        self, view: RoundView, run: Callable[[RoundView], tuple[Vector | None, Verdict]]
    ) -> tuple[Vector | None, Verdict]:  # fmt: skip
        """Run a rule on those who may count. Who may not is scored among all, and plays no part in what becomes of the others."""
        free = np.array([name not in self.blocked for name in view.client_ids], dtype=np.bool_)
        if free.all():
            return run(view)
        _, whole = run(view)
        scores, accepted = whole.scores.copy(), np.zeros(view.num_clients, dtype=np.bool_)
        names = {name for name, is_free in zip(view.client_ids, free, strict=True) if is_free}
        reasons = {name: reason for name, reason in whole.reasons.items() if name not in names}
        if not free.any():
            return None, Verdict(accepted=accepted, scores=scores, reasons=reasons)
        part = replace(
            view,
            client_ids=tuple(sorted(names)),
            vectors=view.vectors[free],
            batch_sizes=view.batch_sizes[free],
            num_byzantine=self.most_suspects(len(names)),
        )
        total, verdict = run(part)
        scores[free], accepted[free] = verdict.scores, verdict.accepted
        return total, replace(verdict, accepted=accepted, scores=scores, weights=None, reasons={**reasons, **verdict.reasons})

    def _mean(self, updates: Sequence[ValidUpdate]) -> Vector | None:
        return mean_update(updates, weight_cap=self.plan.training.weight_cap) if updates else None

    def finish(self, server_round: int, *, named: Mapping[str, Fault]) -> ScreeningRow | None:
        """End a round: remember what was judged.

        Args:
            server_round: which.
            named: client id → its proven fault in this round.

        Returns:
            The round's row; None if there was no rule and nobody was named.
        """
        pending = (
            self._pending
            if self._pending is not None and self._pending.server_round == server_round
            else Pending(server_round=server_round)
        )
        self._pending = None
        if pending.screening is not None:
            self.screening = ScreeningState.from_json(pending.screening)
        quarantined = self.reputation.quarantined() & pending.scores.keys()
        observation = RoundObservation(server_round=server_round, scores=pending.scores, suspicions=pending.suspicions, faults=named)
        self.reputation, events = self.reputation.observe(observation)
        if self.rule == UNDEFENDED and not named and not events and not pending.reasons:
            return None
        return self._row(pending, quarantined, events)

    # --- What a crash must not lose ---------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """What is remembered between rounds."""
        screening = self.screening.to_json() if self.screening is not None else None
        return {"reputation": self.reputation.to_json(), "screening": screening}

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Inverse of :meth:`to_json`.

        Raises:
            DecodeError: it is damaged.
        """
        self.reputation = Reputation.from_json(kept["reputation"])
        self.screening = ScreeningState.from_json(kept["screening"]) if kept["screening"] is not None else None

    @property
    def pending(self) -> dict[str, Any] | None:
        """What was judged of the round under way, as JSON."""
        return self._pending.to_json() if self._pending is not None else None

    def restore_pending(self, kept: Any, *, server_round: int, client_ids: Collection[str]) -> None:
        """Go on with a round that was judged before a crash.

        Args:
            kept: as :attr:`pending` gave it.
            server_round: the round that goes on.
            client_ids: of the federation.

        Raises:
            DecodeError: it is something else; nothing was restored.
        """
        self._pending = Pending.from_json(kept, server_round=server_round, client_ids=client_ids)

    # --- Parts ------------------------------------------------------------------------------------------------------------------

    def _round(self, server_round: int) -> Pending:
        if self._pending is None or self._pending.server_round != server_round:
            self._pending = Pending(server_round=server_round)
        return self._pending

    def _view(self, updates: Sequence[ValidUpdate], server_round: int, dimension: int, root: Vector | None) -> RoundView:
        return RoundView(
            mode=Mode.OPEN,
            client_ids=tuple(update.client_id for update in updates),
            vectors=np.stack([update.vector for update in updates]),
            dimension=dimension,
            batch_sizes=np.array([update.batch_size for update in updates], dtype=np.float64),
            noise_stddev=self.noise_stddev,
            num_byzantine=self.most_suspects(len(updates)),
            server_round=server_round,
            root=root,
        )

    def _screened(self, view: RoundView, pending: Pending, lifted: Matrix | None) -> Verdict:
        """What one round shows is judged anew in each attempt; what adds up over rounds, an update adds once: its first sketch."""
        verdict, after = screen(view, state=self.screening, lifted=lifted)
        if pending.screening is None:
            pending.screening = after.to_json()
        pending.suspicions = {name: value for name, value in pending.suspicions.items() if name not in view.client_ids}
        pending.suspicions |= {name[len(SUSPICION) :]: value for name, value in verdict.facts.items() if name.startswith(SUSPICION)}
        return replace(verdict, facts={name: value for name, value in verdict.facts.items() if not name.startswith(SUSPICION)})

    def _note(self, view: RoundView, verdict: Verdict, pending: Pending) -> frozenset[str]:
        blocked = self.blocked
        pending.scores |= {name: float(score) for name, score in zip(view.client_ids, verdict.scores, strict=True)}
        pending.reasons = {name: reason for name, reason in pending.reasons.items() if name not in view.client_ids} | dict(verdict.reasons)
        pending.facts |= {name: float(value) for name, value in verdict.facts.items()}
        [name for name, kept in zip(view.client_ids, verdict.accepted, strict=True) if not kept]
        accepted = [name for name, kept in zip(view.client_ids, verdict.accepted, strict=True) if kept and name not in blocked]
        failed = verdict.failed
        if not failed and self._has_edge(view.mode):
            over = sum(score >= EDGE for name, score in pending.scores.items() if name in view.client_ids and name not in blocked)
            if over > self.most_suspects(sum(name not in blocked for name in view.client_ids)):
                failed = f"{over} suspects, and at most {view.num_byzantine} are provided for: nobody counts"
        pending.accepted = sorted(({*pending.accepted} - set(view.client_ids)) | (set() if failed else set(accepted)))
        if failed:
            pending.failed = failed
            raise RoundAborted(failed)
        return frozenset(accepted)

    def _has_edge(self, mode: Mode) -> bool:
        """Whether the rule leaves out who is over an edge: then more of them than f mean that it cannot tell.

        A rule that weights bounds what everybody can do and leaves out nobody; one by rank leaves out the same number each time; one by
        direction knows no f.
        """
        if self.rule in ("group-filter", "filter", "mad-filter", "spectral"):
            return True
        return mode is Mode.SKETCH and self.rule in RULES and RULES[self.rule].kind is Kind.WEIGHTS and self.rule not in BY_DIRECTION

    def _row(self, pending: Pending, quarantined: Collection[str], events: Sequence[Event]) -> ScreeningRow:
        return ScreeningRow(
            rule=self.rule,
            mode=Mode.SKETCH if self.plan.secagg.enabled else Mode.OPEN,
            scores=pending.scores,
            rejected=tuple(sorted(pending.reasons.items())),
            quarantined=tuple(sorted(quarantined)),
            events=tuple((event.client_id, event.what) for event in events),
            suspects=sum(score >= EDGE for score in pending.scores.values()),
            facts=pending.facts,
            failed="" if pending.accepted else pending.failed,
            honest=len(pending.scores.keys() - self.attackers) if self.attackers else None,
            aggregate_error=pending.aggregate_error,
        )


def _distance_in_spreads(total: Vector, honest: Sequence[ValidUpdate]) -> float | None:
    """How far the aggregate is from the mean of the honest model differences, over their root mean square distance from it."""
    if len(honest) < 2:
        return None
    rows = np.stack([update.vector / np.float32(update.batch_size) for update in honest])
    mean = rows.mean(axis=0, dtype=np.float64)
    spread = float(np.sqrt(np.mean(np.sum((rows - mean) ** 2, axis=1))))
    return float(np.linalg.norm(total - mean)) / spread if spread > 0 else None
