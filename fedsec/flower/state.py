"""What the server keeps between rounds, and how one mean update changes it.

1. The model moves by ``server_learning_rate`` times the mean update, through server momentum if the plan has it.
2. The released model is the last one, or the mean of the last few (``training.tail_average``): post-processing, free of epsilon.
3. Everything here goes into the checkpoint, so a resumed run goes on bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fedsec.checkpoint import Checkpoint
from fedsec.errors import StorageError
from fedsec.plan.sections import TrainingSection
from fedsec.results import RoundRow
from fedsec.vectors import FloatArray, Layout


@dataclass(kw_only=True, eq=False)
class ServerState:
    """The server's state after ``server_round`` rounds.

    Attributes:
        server_round: last finished round; 0 before the first.
        vector: float32 [d], the global model's shared parameters.
        velocity: float64 [d], server momentum; zeros without it.
        tail_sum: float64 [d], sum of the last ``tail_count`` models under tail averaging.
        tail_count: models in ``tail_sum``.
        asked: client id → rounds of this run in which it was asked to train: an upper bound of what it was charged.
        reported: client id → spends it last reported, this run and earlier ones.
        reported_at: client id → rounds in which it had been asked when it reported.
        rows: one per finished round.
        elapsed_s: seconds of training so far, over all sessions.
        defence: what the defence remembers, as JSON; None before the first round.
    """

    server_round: int
    vector: FloatArray
    velocity: npt.NDArray[np.float64]
    tail_sum: npt.NDArray[np.float64]
    tail_count: int = 0
    asked: dict[str, int] = field(default_factory=dict)
    reported: dict[str, tuple[tuple[float, float, int], ...]] = field(default_factory=dict)
    reported_at: dict[str, int] = field(default_factory=dict)
    rows: list[RoundRow] = field(default_factory=list)
    elapsed_s: float = 0.0
    defence: dict[str, Any] | None = None

    @classmethod
    def initial(cls, vector: FloatArray) -> ServerState:
        """The state before the first round."""
        zeros = np.zeros(vector.shape, dtype=np.float64)
        return cls(server_round=0, vector=vector, velocity=zeros, tail_sum=zeros.copy())

    def released(self) -> FloatArray:
        """The model to evaluate and to release: the tail mean where there is one, else the last."""
        if self.tail_count > 1:
            return (self.tail_sum / self.tail_count).astype(np.float32)
        return self.vector

    def apply(self, mean: npt.NDArray[np.float64], training: TrainingSection) -> bool:
        """Move the model by a mean update; False, and nothing changed, if the result would not be finite."""
        with np.errstate(over="ignore", invalid="ignore"):
            velocity = training.server_momentum * self.velocity + mean
            vector = (self.vector.astype(np.float64) + training.server_learning_rate * velocity).astype(np.float32)
        if not (np.isfinite(vector).all() and np.isfinite(velocity).all()):
            return False
        self.velocity, self.vector = velocity, vector
        return True

    def remember_tail(self, training: TrainingSection, rounds: int) -> None:
        """Count the current model into the tail mean, if this round is one of the last few."""
        if training.tail_average > 1 and self.server_round > rounds - training.tail_average:
            self.tail_sum = self.tail_sum + self.vector
            self.tail_count += 1

    def to_checkpoint(self) -> tuple[dict[str, npt.NDArray[np.generic]], dict[str, Any]]:
        """Arrays and JSON-able rest."""
        arrays: dict[str, npt.NDArray[np.generic]] = {"vector": self.vector, "velocity": self.velocity, "tail_sum": self.tail_sum}
        rest = {
            "tail_count": self.tail_count,
            "asked": self.asked,
            "reported": {name: [list(segment) for segment in segments] for name, segments in self.reported.items()},
            "reported_at": self.reported_at,
            "rows": [row.to_json() for row in self.rows],
            "elapsed_s": self.elapsed_s,
            "defence": self.defence,
        }
        return arrays, rest

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, layout: Layout) -> ServerState:
        """Inverse of :meth:`to_checkpoint`.

        Raises:
            StorageError: the arrays are not those of this model.
        """
        arrays = checkpoint.arrays
        if any(arrays.get(name) is None or arrays[name].shape != (layout.size,) for name in ("vector", "velocity", "tail_sum")):
            raise StorageError("the checkpoint holds another model; choose another folder")
        rest: Mapping[str, Any] = checkpoint.state
        if missing := {"tail_count", "asked", "reported", "reported_at", "rows", "elapsed_s", "defence"} - rest.keys():
            raise StorageError(f"the checkpoint lacks {min(missing)}: it was made by another version; start a new run")
        reported = {
            name: tuple((float(sigma), float(rate), int(steps)) for sigma, rate, steps in segments)
            for name, segments in rest["reported"].items()
        }
        return cls(
            server_round=checkpoint.server_round,
            vector=arrays["vector"].astype(np.float32),
            velocity=arrays["velocity"].astype(np.float64),
            tail_sum=arrays["tail_sum"].astype(np.float64),
            tail_count=rest["tail_count"],
            asked=dict(rest["asked"]),
            reported=reported,
            reported_at=dict(rest["reported_at"]),
            rows=[RoundRow.from_json(row) for row in rest["rows"]],
            elapsed_s=rest["elapsed_s"],
            defence=rest["defence"],
        )
