"""The round on its Gram matrix, as the attackers picture it: searches cost nothing of the order of d.

1. All colluders send μ + γp for a push p. With the inner products of the known residuals ``r_i = Δ_i − μ``, of μ and of the pushes, every distance
   and every weighted sum of the round is a matter of small matrices.
2. Residuals are centred before they are multiplied: distances keep their digits however far from zero the updates lie.
3. Partial attackers know fewer honest updates than there are. They picture the missing ones as updates with mean μ whose residuals have the known
   ones' length and are orthogonal to everything: what independent updates in a high dimension nearly are.

Source: design note ROBUST, "optimised ALIE and IPM (... on the (h+2)² Gram matrix)".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fedsec.robust.base import Matrix, Vector
from fedsec.sim.attacks.knowledge import Knowledge

_CHUNK = 1 << 12  # coordinates at a time: a few dozen rows of them fit into the cache
_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


def inner_products(knowledge: Knowledge, pushes: Sequence[Vector]) -> Matrix:
    """Inner products of the m known residuals, μ, and the pushes, in this order: float64 [m + 1 + q, m + 1 + q].

    Products and sums are in float64, over a chunk of coordinates at a time.
    """
    size = len(knowledge.known) + 1 + len(pushes)
    gram = np.zeros((size, size))
    for start in range(0, knowledge.dimension, _CHUNK):
        part = slice(start, start + _CHUNK)
        mean = knowledge.mean[part]
        rows = np.vstack([knowledge.deltas[:, part].astype(np.float64) - mean, mean[None, :], *(push[None, part] for push in pushes)])
        gram += rows @ rows.T
    return gram


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """The round, if all colluders sent μ + γp.

    Attributes:
        knowledge: what it is made of.
        gram: of :func:`inner_products`.
    """

    knowledge: Knowledge
    gram: Matrix

    @classmethod
    def of(cls, knowledge: Knowledge, pushes: Sequence[Vector]) -> Picture:
        """The picture with these pushes, float64 [d] each."""
        return cls(knowledge=knowledge, gram=inner_products(knowledge, pushes))

    @property
    def num_known(self) -> int:
        """Known updates, m."""
        return len(self.knowledge.known)

    @property
    def num_missing(self) -> int:
        """Honest clients whose updates are not known."""
        return max(0, self.knowledge.num_clients - self.knowledge.num_byzantine - self.num_known)

    @property
    def residuals(self) -> Matrix:
        """Inner products of the known residuals, float64 [m, m]."""
        return self.gram[: self.num_known, : self.num_known]

    def squared_distances(self) -> Matrix:
        """Between the known updates, float64 [m, m]."""
        squares = np.diag(self.residuals)
        return np.maximum(squares[:, None] + squares[None, :] - 2 * self.residuals, 0.0)

    def push_square(self, push: int) -> float:
        """‖p‖²."""
        place = self.num_known + 1 + push
        return float(self.gram[place, place])

    def along_push(self, push: int) -> Vector:
        """⟨p, r_i⟩ for each known update, float64 [m]."""
        return self.gram[self.num_known + 1 + push, : self.num_known]

    def influence(self, push: int, size: float) -> float:
        """‖aggregate − honest mean‖, if all colluders sent μ + size·p and the server's rule is what they believe it to be."""
        known, missing, colluders = self.num_known, self.num_missing, self.knowledge.num_byzantine
        rows = np.zeros((known + missing + colluders, len(self.gram)))  # every client's update in the basis of the Gram matrix
        rows[:known, :known] = np.eye(known)
        rows[:, known] = 1.0
        rows[known + missing :, known + 1 + push] = size
        own = np.concatenate([np.zeros(known), np.full(missing, self._residual_square()), self._noise_squares()])  # orthogonal to all
        weights = self._weights(rows @ self.gram @ rows.T + np.diag(own))
        shifted = weights.copy()
        shifted[: known + missing] -= 1.0 / (known + missing)
        moved = rows.T @ shifted
        return math.sqrt(max(0.0, float(moved @ self.gram @ moved) + float(shifted**2 @ own)))

    def _residual_square(self) -> float:
        """Expected squared length of an honest residual; of a single known update only the noise is known."""
        if self.num_known > 1:
            return float(np.trace(self.residuals)) / (self.num_known - 1)
        return self.knowledge.dimension * (self.knowledge.noise_stddev / float(np.median(self.knowledge.batch_sizes))) ** 2

    def _noise_squares(self) -> Vector:
        stddev = self.knowledge.noise_stddev if self.knowledge.settings.own_noise else 0.0
        squares: Vector = self.knowledge.dimension * (stddev / self.knowledge.own_batch_sizes.astype(np.float64)) ** 2
        return squares

    def _weights(self, gram: Matrix) -> Vector:
        if self.knowledge.aggregate is not None:
            return np.asarray(self.knowledge.aggregate(gram), dtype=np.float64)
        sizes = self.knowledge.batch_sizes.astype(np.float64)
        missing = np.full(self.num_missing, np.median(sizes))
        every = np.concatenate([sizes, missing, self.knowledge.own_batch_sizes.astype(np.float64)])
        weights: Vector = every / every.sum()
        return weights


def maximise(value: Callable[[float], float], *, guess: float, largest: float, evaluations: int = 20) -> float:
    """The best argument in ``[0, largest]`` that a line search finds.

    A ladder of halvings from the largest down finds the right size; golden sections between its neighbours refine it. Never worse than ``guess``.
    The function may jump (a rule that stops accepting), so the best argument *seen* counts.

    Args:
        value: what to maximise; finite.
        guess: an argument to try first, at least 0.
        largest: over 0.
        evaluations: calls of ``value``, at least 4.

    >>> round(maximise(lambda x: x if x < 3 else -1.0, guess=0.1, largest=64.0))
    3
    """
    if not (largest > 0 and guess >= 0 and evaluations >= 4):
        raise ValueError("needs a range, a guess in it and some evaluations")
    rungs = (evaluations - 1) * 11 // 19
    ladder = sorted({0.0, guess, *(largest / 2**step for step in range(rungs - 1))})
    seen = {size: value(size) for size in ladder}
    place = ladder.index(_best(seen))
    low, high = ladder[max(0, place - 1)], ladder[min(len(ladder) - 1, place + 1)]
    while len(seen) < evaluations and high - low > 1e-9 * largest:
        inner = [high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)]
        for size in inner:
            if size not in seen and len(seen) < evaluations:
                seen[size] = value(size)
        if seen.get(inner[0], -math.inf) >= seen.get(inner[1], -math.inf):
            high = inner[1]
        else:
            low = inner[0]
    return _best(seen)


def _best(seen: dict[float, float]) -> float:
    """The argument of the largest value; of equals the smallest."""
    return min(seen, key=lambda size: (-seen[size], size))
