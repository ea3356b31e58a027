"""One federation from the first round to the last: attack, screening, reputation, mean; and what is counted of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from experiments.screening.arms import Arm, Scene
from experiments.screening.lab import Array, Federation, Setting, accuracy, build, local_update, sketch_matrix
from fedsec.robust.base import Mode, RoundView, Verdict
from fedsec.robust.reputation import Reputation
from fedsec.robust.reputation_records import ReputationSettings, RoundObservation
from fedsec.robust.rules import capped_weights
from fedsec.robust.screening import SUSPICION, ScreeningState, screen
from fedsec.robust.whitening import lift, whiten

Flags = npt.NDArray[np.bool_]

UNDEFENDED, DEFENDED, HONEST_ONLY = "undefended", "defended", "honest only"
PROMPT, AT_ONCE = "suspicion counts 3", "suspects out at once"
"""Nobody is rejected; screening and reputation as the product has them; the attackers are not there. And two ways to act on suspicions faster: as many points in
reputation as a rejection has; and whoever is suspect sits out the same round."""


@dataclass(kw_only=True)
class Outcome:
    """What came of one run. Counts are of client-rounds from round 2 on."""

    accuracy: float = 0.0
    caught: int = 0
    missed: int = 0
    honest_rejected: int = 0
    honest_kept: int = 0
    honest_by_rule: int = 0
    worst_honest: float = 0.0
    failed_rounds: int = 0
    first_suspected: float | None = None
    honest_suspects: int = 0
    facts: dict[str, float] = field(default_factory=dict)


@dataclass(kw_only=True, eq=False)
class _Run:
    federation: Federation
    arm: Arm
    defence: str
    most: int
    state: ScreeningState | None = None
    reputation: Reputation = field(init=False)
    suspected: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        settings = ReputationSettings(num_byzantine=self.most)
        if self.defence == PROMPT:
            settings = replace(settings, suspected_points=settings.rejected_points)
        self.reputation = Reputation.initial(settings)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"client-{place:04d}" for place in range(self.federation.num_clients))

    def judge(self, updates: Array, sizes: Array, server_round: int) -> tuple[Verdict, ScreeningState]:
        """Screen updates in sum form, as the server sees them."""
        federation = self.federation
        rows, lifted, mode = updates, None, Mode.OPEN
        if federation.setting.num_rows:
            matrix = sketch_matrix(federation, server_round)
            wide = matrix.astype(np.float64)
            products, sketches = wide @ wide.T, updates @ wide.T
            rows, lifted = whiten(sketches, dimension=federation.dimension, rrt=products), lift(sketches, matrix, rrt=products)
            mode = Mode.SKETCH
        view = RoundView(
            mode=mode,
            client_ids=self.names,
            vectors=rows,
            dimension=federation.dimension,
            batch_sizes=sizes,
            noise_stddev=federation.noise_stddev,
            num_byzantine=self.most,
            server_round=server_round,
        )
        return screen(view, state=self.state, lifted=lifted)

    def accepted(self, updates: Array, sizes: Array, server_round: int) -> tuple[Flags, Verdict]:
        """Who counts in this round, and the rule's own verdict."""
        verdict, self.state = self.judge(updates, sizes, server_round)
        suspicions = {name[len(SUSPICION) :]: value for name, value in verdict.facts.items() if name.startswith(SUSPICION)}
        for name in suspicions:
            self.suspected.setdefault(name, server_round)
        out = suspicions.keys() if self.defence == AT_ONCE else self.reputation.blocked()
        self.reputation, _ = self.reputation.observe(
            RoundObservation.from_verdict(server_round, self.names, verdict, suspicions=suspicions)
        )
        counted = verdict.accepted & ~np.isin(self.names, list(out))
        return (np.zeros_like(counted) if verdict.failed else counted), verdict


def run(setting: Setting, arm: Arm, defence: str, *, most: int | None = None) -> Outcome:
    """Run one federation.

    Args:
        setting: data, privacy, view.
        arm: attack.
        defence: one of the five above.
        most: f of the rule; default: a quarter of the clients, as in a plan.
    """
    federation = build(setting)
    count = federation.num_clients
    state = _Run(federation=federation, arm=arm, defence=defence, most=count // 4 if most is None else most)
    crew = arm.crew(federation)
    hostile = np.isin(np.arange(count), crew)
    model, tail, rejected = np.zeros(federation.dimension), [], np.zeros(count)
    outcome, rounds = Outcome(), federation.plan.federation.rounds
    for server_round in range(1, rounds + 1):
        updates, sizes = _updates(state, arm, crew, model, server_round)
        counted, verdict = ~hostile if defence == HONEST_ONLY else np.ones(count, dtype=np.bool_), None
        if defence in (DEFENDED, PROMPT, AT_ONCE):
            counted, verdict = state.accepted(updates, sizes, server_round)
            outcome.failed_rounds += bool(verdict.failed)
        if verdict is not None and server_round > 1:
            _count(outcome, hostile, counted, verdict)
            rejected += ~counted
        if counted.any():
            weights = capped_weights([int(size) for size in sizes[counted]], weight_cap=federation.plan.training.weight_cap)
            model = model + updates[counted].sum(axis=0) / sum(weights)
        if server_round > rounds - federation.plan.training.tail_average:
            tail.append(model)
        if verdict is not None:
            outcome.facts = {name: value for name, value in verdict.facts.items() if not name.startswith(SUSPICION)}
    outcome.accuracy = accuracy(federation, np.mean(tail, axis=0))
    outcome.worst_honest = float(rejected[~hostile].max() / max(1, rounds - 1))
    seen = [state.suspected.get(state.names[place], rounds + 1) for place in crew]
    outcome.first_suspected = float(np.mean(seen)) if seen else None
    outcome.honest_suspects = sum(not hostile[state.names.index(name)] for name in state.suspected)
    return outcome


def _updates(state: _Run, arm: Arm, crew: tuple[int, ...], model: Array, server_round: int) -> tuple[Array, Array]:
    """Everybody's updates and declared sizes."""
    federation = state.federation
    rows = []
    for client in range(federation.num_clients):
        flipped = federation.num_classes - 1 - federation.ys[client] if arm.flips_labels and client in crew else None
        rows.append(local_update(federation, client, model, server_round, labels=flipped))
    updates, sizes = np.stack(rows), federation.batch_sizes.copy()
    if arm.craft is not None:
        scene = Scene(
            federation=federation,
            crew=crew,
            updates=updates,
            model=model,
            server_round=server_round,
            screen=lambda candidates: state.judge(candidates, federation.batch_sizes, server_round)[0].accepted,
        )
        updates[list(crew)], sizes[list(crew)] = arm.craft(scene)
    return updates, sizes


def _count(outcome: Outcome, hostile: Flags, counted: Flags, verdict: Verdict) -> None:
    outcome.caught += int((hostile & ~counted).sum())
    outcome.missed += int((hostile & counted).sum())
    outcome.honest_rejected += int((~hostile & ~counted).sum())
    outcome.honest_kept += int((~hostile & counted).sum())
    outcome.honest_by_rule += int((~hostile & ~verdict.accepted).sum())
