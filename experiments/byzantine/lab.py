"""One run: clients train, attackers send, the server aggregates, for all rounds; and the row of figures that comes of it.

1. The attackers are drawn as ``fedsec.sim.attacks.catalogue.attackers`` draws them; their records are lost to the federation while they attack.
2. The accuracy is on the test set: the mean over the last ``tail`` rounds, for every rule and attack alike. A model that is no longer finite counts as 0.
3. Rejection counts from round 2 on, as ``fedsec.robust.quality`` does.
4. Equal settings give equal rows on one machine; matrix products may round differently on another.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from experiments.byzantine.clients import Clients
from experiments.byzantine.crew import Crew
from experiments.byzantine.server import Outcome, aggregate_round
from experiments.byzantine.settings import Settings
from fedsec.data.federated import FederatedData, federated_data
from fedsec.plan.sections import DataSection
from fedsec.robust.catalogue import RULES
from fedsec.robust.quality import JudgedRound, label_skew, rejection_quality
from fedsec.sim.attacks.catalogue import attackers

EVALUATE_EVERY = 10
_BATCHES, _CREW, _SERVER, _ROOT = range(4)

Vector = npt.NDArray[np.float64]


def load_data(settings: Settings) -> FederatedData:
    """The run's records and who holds them, by the project's own loader and partition."""
    section = DataSection(name=settings.data, partition="dirichlet", alpha=settings.alpha)
    return federated_data(section, num_clients=settings.num_clients, seed=settings.seed)


def run(settings: Settings, data: FederatedData | None = None) -> dict[str, Any]:
    """Run one setting.

    Args:
        settings: everything that it depends on.
        data: records and parts; by default what the settings name.

    Returns:
        Plain values: ``accuracy``, ``final``, ``best`` (over evaluated rounds from 3 on), ``curve``, ``recall``, ``honest_rate``,
        ``worst_honest_rate``, ``auc``, ``seconds``.
    """
    started = time.perf_counter()
    data = data if data is not None else load_data(settings)
    attack = np.isin(np.arange(settings.num_clients), attackers(settings.num_clients, _fraction(settings), settings.seed))
    if settings.attack == "none":
        attack[:] = False
    run_state = _Run(settings, data, attack)
    for server_round in range(1, settings.rounds + 1):
        run_state.round(server_round)
    return run_state.row() | {"seconds": round(time.perf_counter() - started, 1)}


def _fraction(settings: Settings) -> float:
    return settings.num_byzantine / settings.num_clients


class _Run:
    def __init__(self, settings: Settings, data: FederatedData, attacking: npt.NDArray[np.bool_]) -> None:
        self.settings, self.data, self.attacking = settings, data, attacking
        self.clients = Clients(data, hidden=settings.hidden, seed=settings.seed)
        self.weights: Vector = self.clients.first_weights.copy()
        self.momentum = np.zeros_like(self.weights)
        streams = [np.random.default_rng([settings.seed, 0xB2, stream]) for stream in range(4)]
        self.batches, self.server, self.root_batches = streams[_BATCHES], streams[_SERVER], streams[_ROOT]
        self.crew = Crew(settings=settings, attacking=attacking, layer_sizes=self.clients.layer_sizes, generator=streams[_CREW])
        self.root_records = self._draw_root()
        self.curve: list[tuple[int, float]] = []
        self.judged: list[JudgedRound] = []

    def round(self, server_round: int) -> None:
        settings = self.settings
        if not np.isfinite(self.weights).all():
            self._note(server_round, accuracy=0.0)
            return
        root = self._root_update()
        differences = self._train([*self.data.train_parts], self.batches, self.attacking if self.crew.poisons_labels else None)
        sent = self.crew.send(differences * np.float32(settings.batch_size), weights=self.weights, server_round=server_round, root=root)
        outcome = aggregate_round(settings, sent, root=root, generator=self.server)
        self.momentum = settings.server_momentum * self.momentum + outcome.step
        self.weights = self.weights + settings.server_learning_rate * self.momentum
        self._judge(server_round, outcome)
        self._note(server_round)

    def _train(
        self, records: list[npt.NDArray[np.int64]], generator: np.random.Generator, flipped: npt.NDArray[np.bool_] | None
    ) -> npt.NDArray[np.float32]:
        return self.clients.train(
            self.weights,
            records,
            steps=self.settings.steps,
            batch_size=self.settings.batch_size,
            learning_rate=self.settings.learning_rate,
            generator=generator,
            flipped=flipped,
        )

    def _draw_root(self) -> npt.NDArray[np.int64] | None:
        """The server's own records, drawn from the training records; clients keep theirs."""
        if self.settings.rule not in RULES or not RULES[self.settings.rule].needs_root:
            return None
        drawn: npt.NDArray[np.int64] = self.root_batches.choice(len(self.data.dataset.y), size=self.settings.root_examples, replace=False)
        return drawn

    def _root_update(self) -> Vector | None:
        if self.root_records is None:
            return None
        update: Vector = self._train([self.root_records], self.root_batches, None)[0].astype(np.float64)
        return update

    def _judge(self, server_round: int, outcome: Outcome) -> None:
        active = self.attacking & (server_round >= self.settings.first_round)
        names = [f"{place:04d}" for place in range(len(active))]
        self.judged.append(
            JudgedRound(
                server_round=server_round,
                scores={name: float(score) for name, score in zip(names, outcome.scores, strict=True)},
                kept_out=frozenset(name for name, flag in zip(names, outcome.flagged, strict=True) if flag),
                attacking=frozenset(name for name, flag in zip(names, active, strict=True) if flag),
            )
        )

    def _note(self, server_round: int, accuracy: float | None = None) -> None:
        if server_round % EVALUATE_EVERY == 0 or server_round > self.settings.rounds - self.settings.tail:
            finite = bool(np.isfinite(self.weights).all())
            self.curve.append((server_round, self.clients.accuracy(self.weights) if accuracy is None and finite else 0.0))

    def row(self) -> dict[str, Any]:
        settings = self.settings
        quality = rejection_quality(
            self.judged,
            attackers={f"{place:04d}" for place in np.flatnonzero(self.attacking)},
            skew={f"{place:04d}": float(value) for place, value in enumerate(label_skew(self.data.histogram()))},
        )
        last = [accuracy for server_round, accuracy in self.curve if server_round > settings.rounds - settings.tail]
        return {
            "accuracy": statistics.fmean(last),
            "final": self.curve[-1][1],
            "best": max(accuracy for server_round, accuracy in self.curve if server_round >= min(3, settings.rounds)),
            "curve": [[server_round, round(accuracy, 4)] for server_round, accuracy in self.curve],
            "recall": quality.recall,
            "honest_rate": quality.honest_rate,
            "worst_honest_rate": quality.worst_honest_rate,
            "auc": quality.auc,
        }
