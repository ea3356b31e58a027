"""What the attackers of one round know, and what they send: the one contract of all attacks on updates.

1. All attackers of a simulation collude: they share what they know, and one generator. Equal knowledge and an equal generator give equal bytes.
2. Attacks work on model differences ``x / B`` inside. What is sent is in sum form, as an honest update is: declared batch size times model
   difference, float32, finite.
3. Omniscient attackers know all honest updates of the round; partial ones what they themselves would send if they were honest. An attack need
   not ask which: ``known`` holds the one or the other.
4. The *noise unit* is the deviation of the privacy noise in one coordinate of a sum-form update. A push of amplitude a has L2 norm a units over the
   whole vector, so a sketch of k of d numbers shows ``a·sqrt(k/d)`` of it. Without privacy the spread of the known updates takes its place.

Source: design note ROBUST, "Attacks the harness holds".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from fedsec.plan.sections import AttackSection
from fedsec.robust.base import Flags, Matrix, Vector
from fedsec.vectors import FloatArray

MAX_STRENGTH = 1e9
"""Largest magnitude of an attack's own number: beyond it nothing new happens, and float32 ends."""

LARGEST = float(np.finfo(np.float32).max)
_CHUNK = 1 << 16
_DIRECTION = 0xD1


@dataclass(frozen=True, kw_only=True, eq=False)
class Past:
    """What the attackers remember of an earlier round.

    Attributes:
        server_round: which.
        own: float32 [f, d], model differences that they would have sent if honest.
        step: float [d], model difference that the server made of the round; None if it made none.
    """

    server_round: int
    own: FloatArray
    step: npt.NDArray[np.floating] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Knowledge:
    """One round as the colluders see it.

    Attributes:
        known: float32 [m, d], finite: sum-form updates that they know, m at least 1. Omniscient: of all honest clients; partial: ``own``.
        batch_sizes: [m], declared, at least 1.
        own: float32 [f, d]: what each colluder would send if it were honest, with its own noise; of data attacks: trained on the poisoned
            records. Rows in the order of the colluders.
        own_batch_sizes: [f], declared.
        num_clients: n, all clients of the round, the colluders too.
        server_round: from 1.
        noise_stddev: deviation of the privacy noise in each coordinate of a sum-form update; 0 without privacy.
        settings: the plan's attack section.
        generator: randomness of this round, shared by the colluders.
        run_seed: of what stays the same over the rounds of a run.
        direction: float [d], where a fixed push goes, of any length over 0; None: drawn once from ``run_seed``.
        server_learning_rate: factor that the server applies to the mean update.
        aggregate: the server's rule as the colluders believe it to be: Gram matrix of model differences → weights, the aggregate being the
            weighted sum. Rows: honest first, the f colluders last. None: the mean by declared batch size.
        screen: the defender's pipeline on candidate updates: float32 [rows, d] in sum form, honest first, the f colluders last → bool [rows],
            accepted. None: the colluders cannot run it.
        history: earlier rounds, oldest first.
    """

    known: FloatArray
    batch_sizes: npt.NDArray[np.number]
    own: FloatArray
    own_batch_sizes: npt.NDArray[np.number]
    num_clients: int
    server_round: int
    noise_stddev: float
    settings: AttackSection
    generator: np.random.Generator
    run_seed: int = 0
    direction: npt.NDArray[np.floating] | None = None
    server_learning_rate: float = 1.0
    aggregate: Callable[[Matrix], Vector] | None = None
    screen: Callable[[FloatArray], Flags] | None = None
    history: tuple[Past, ...] = ()

    def __post_init__(self) -> None:
        for name, rows, sizes in (("known", self.known, self.batch_sizes), ("own", self.own, self.own_batch_sizes)):
            if rows.ndim != 2 or not len(rows) or sizes.shape != (len(rows),) or not (sizes >= 1).all():
                raise ValueError(f"{name}: at least one row is needed, and for each a declared batch size of at least 1")
        if self.known.shape[1] != self.own.shape[1] or not self.known.shape[1]:
            raise ValueError(f"updates of {self.known.shape[1]} and {self.own.shape[1]} parameters")
        if not (0 <= self.noise_stddev < np.inf and self.server_learning_rate > 0 and self.num_clients >= self.num_byzantine):
            raise ValueError("noise_stddev, server_learning_rate or num_clients is out of range")
        if abs(self.strength(0.0)) > MAX_STRENGTH:
            raise ValueError(f"an attack's strength is at most {MAX_STRENGTH:g} in magnitude")

    def strength(self, default: float) -> float:
        """The attack's own number: the plan's, or its default."""
        return default if self.settings.strength is None else float(self.settings.strength)

    @property
    def num_byzantine(self) -> int:
        """The colluders, f."""
        return len(self.own)

    @property
    def dimension(self) -> int:
        """Parameters, d."""
        return int(self.known.shape[1])

    @cached_property
    def deltas(self) -> FloatArray:
        """float32 [m, d]: the known updates as model differences."""
        return _divided(self.known, self.batch_sizes)

    @cached_property
    def own_deltas(self) -> FloatArray:
        """float32 [f, d]: the colluders' honest updates as model differences."""
        return _divided(self.own, self.own_batch_sizes)

    @cached_property
    def mean(self) -> Vector:
        """μ, float64 [d]: mean of the known model differences, each counting once."""
        mean: Vector = self.deltas.mean(axis=0, dtype=np.float64)
        return mean

    @cached_property
    def deviation(self) -> Vector:
        """σ, float64 [d]: standard deviation of the known model differences, coordinate by coordinate; zeros of a single one."""
        parts = [self.deltas[:, start : start + _CHUNK].std(axis=0, dtype=np.float64) for start in range(0, self.dimension, _CHUNK)]
        return np.concatenate(parts)

    @property
    def unit(self) -> float:
        """The noise unit (rule 4 above); without privacy the root mean square of σ in sum form, and of a single update that of its entries."""
        if self.noise_stddev > 0:
            return self.noise_stddev
        typical = self.deviation if len(self.known) > 1 else self.mean
        return float(np.sqrt(np.mean(typical**2)) * np.median(self.batch_sizes))

    @cached_property
    def push_direction(self) -> Vector:
        """Unit vector, float64 [d], the same in every round of a run."""
        given = self.direction
        if given is None:
            given = np.random.default_rng([self.run_seed, _DIRECTION]).standard_normal(self.dimension)
        return unit_vector(np.asarray(given, dtype=np.float64))

    def draw_noise(self, stddev: float) -> npt.NDArray[np.float64]:
        """Gaussian noise, float64 [f, d], independent for each colluder."""
        return self.generator.normal(0.0, stddev, size=self.own.shape)


@dataclass(frozen=True, kw_only=True, eq=False)
class Sent:
    """What the colluders send.

    Attributes:
        updates: float32 [f, d], sum form, finite; rows in the order of the colluders.
        batch_sizes: int64 [f], declared.
    """

    updates: FloatArray
    batch_sizes: npt.NDArray[np.int64]


Attack = Callable[[Knowledge], Sent]


def _divided(sums: FloatArray, sizes: npt.NDArray[np.number]) -> FloatArray:
    deltas: FloatArray = sums / sizes.astype(np.float32)[:, None]
    return deltas


def unit_vector(vector: Vector) -> Vector:
    """The vector at length 1; zeros stay zeros."""
    largest = float(np.max(np.abs(vector), initial=0.0))
    if largest == 0.0:
        return np.zeros_like(vector)
    scaled = vector / largest  # the squares of very small or large numbers would leave float64
    return scaled / float(np.linalg.norm(scaled))


def send_sums(knowledge: Knowledge, sums: npt.NDArray[np.floating]) -> Sent:
    """Send sum-form vectors, [f, d] or one [d] for all, as they are; entries beyond float32 are cut to its largest number."""
    rows = np.broadcast_to(sums, knowledge.own.shape)
    updates = np.clip(rows, -LARGEST, LARGEST).astype(np.float32)
    return Sent(updates=updates, batch_sizes=knowledge.own_batch_sizes.astype(np.int64))


def send(knowledge: Knowledge, deltas: npt.NDArray[np.floating]) -> Sent:
    """Send model differences, [f, d] or one [d] for all, in sum form; with ``own_noise`` each with the noise that an honest client adds."""
    sums = np.broadcast_to(deltas, knowledge.own.shape) * knowledge.own_batch_sizes[:, None].astype(np.float64)
    if knowledge.settings.own_noise:
        sums = sums + knowledge.draw_noise(knowledge.noise_stddev)
    return send_sums(knowledge, sums)


def send_honestly(knowledge: Knowledge) -> Sent:
    """What the colluders would send anyway; of data attacks that is what the poisoned records make of it."""
    return send_sums(knowledge, knowledge.own)
