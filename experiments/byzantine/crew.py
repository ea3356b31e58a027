"""The attackers of the lab: the project's own catalogue with all that omniscient attackers may know, the server's rule among it.

1. Searches run against the very rule that the server runs. On sketches they run against sketches of the attackers' own: R is drawn after the uploads
   are fixed, so nobody can know it; a Gaussian projection to as many numbers stands for it, or the mean over several.
2. Against FLTrust they know the server's root update too. Against rules on coordinates they search as if the rule were the mean.
3. Disguised colluders add noise, each its own, as long as the median honest residual: they send the same no longer, and push as hard. Their searches
   count that noise in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from experiments.byzantine import flanders
from experiments.byzantine.server import believed_rule, view_of
from experiments.byzantine.settings import Settings
from fedsec.plan.sections import AttackSection
from fedsec.robust.base import Matrix, Vector
from fedsec.robust.catalogue import RULES, Kind
from fedsec.robust.trust import fltrust
from fedsec.sim.attacks.catalogue import CATALOGUE
from fedsec.sim.attacks.knowledge import Knowledge

Floats = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]

_KNOWN_PUSH = ("optimised-alie", "optimised-ipm")


@dataclass(kw_only=True, eq=False)
class Crew:
    """The colluders of one run.

    Attributes:
        settings: of the run.
        attacking: bool [n].
        layer_sizes: entries of each array of the model.
        generator: their randomness.
        start: what ``flanders-opt`` remembers of round 1.
    """

    settings: Settings
    attacking: Flags
    layer_sizes: list[int]
    generator: np.random.Generator
    start: Vector = field(default_factory=lambda: np.zeros(0))

    @property
    def poisons_labels(self) -> bool:
        """Whether they train on mirrored labels."""
        return self.settings.attack == "label-flip"

    def send(self, updates: Floats, *, weights: Vector, server_round: int, root: Vector | None) -> Floats:
        """Everybody's updates of a round, the colluders' replaced by what they send.

        Args:
            updates: float32 [n, d], sum form, of everybody's honest training (of label flippers: on mirrored labels).
            weights: global model, float64 [d].
            server_round: from 1.
            root: the server's own model difference, where there is one.
        """
        size = np.float32(self.settings.batch_size)
        if server_round == 1:
            self.start = weights + (updates[~self.attacking][0] / size).astype(np.float64)
        if self.settings.attack in ("none", "label-flip") or server_round < self.settings.first_round:
            return updates
        sent = updates.copy()
        if self.settings.attack in flanders.NAMES:
            scene = flanders.Scene(
                weights=weights,
                differences=updates / size,
                attacking=self.attacking,
                start=self.start,
                layer_sizes=self.layer_sizes,
                generator=self.generator,
            )
            sent[self.attacking] = (flanders.craft(self.settings.attack, scene) * size).astype(np.float32)
        else:
            knowledge = self._knowledge(updates, server_round, root)
            sent[self.attacking] = CATALOGUE[self.settings.attack].craft(knowledge).updates  # type: ignore[index]
        if self.settings.disguised:
            sent[self.attacking] += self._disguise(updates[~self.attacking])
        return sent

    def _disguise(self, honest: Floats) -> Floats:
        noise = self.generator.standard_normal((int(np.count_nonzero(self.attacking)), honest.shape[1]), dtype=np.float32)
        return noise * np.float32(_typical_residual(honest) / np.sqrt(honest.shape[1]))

    def _knowledge(self, updates: Floats, server_round: int, root: Vector | None) -> Knowledge:
        size = self.settings.batch_size
        honest, own = updates[~self.attacking], updates[self.attacking]
        return Knowledge(
            known=honest,
            batch_sizes=np.full(len(honest), size),
            own=own,
            own_batch_sizes=np.full(len(own), size),
            num_clients=len(updates),
            server_round=server_round,
            noise_stddev=0.0,
            settings=AttackSection(name=self.settings.attack, strength=self.settings.strength),  # type: ignore[arg-type]
            generator=self.generator,
            run_seed=self.settings.seed,
            aggregate=self._believed(honest / np.float32(size), root),
        )

    def _believed(self, honest: Floats, root: Vector | None) -> Callable[[Matrix], Vector] | None:
        rule = self.settings.rule
        if rule == "mean" or (rule in RULES and RULES[rule].kind is Kind.COORDINATES):
            return None
        if rule == "fltrust":
            return self._believed_fltrust(honest, root) if root is not None and self.settings.attack in _KNOWN_PUSH else None
        rows, draws = self.settings.sketch_rows, self.settings.draws if self.settings.mode == "sketch" else 0
        projections = [self.generator.standard_normal((self.settings.num_clients, rows)) / np.sqrt(rows) for _ in range(draws)]
        noise = np.zeros(self.settings.num_clients)
        if self.settings.disguised:
            noise[len(honest) :] = _typical_residual(honest) ** 2

        def weights(gram: Matrix) -> Vector:
            values, vectors = np.linalg.eigh(gram + np.diag(noise))
            points = vectors * np.sqrt(np.maximum(values, 0.0))
            seen = [points @ projection for projection in projections] or [points]
            tried = [believed_rule(self.settings, view_of(self.settings, one, dimension=one.shape[1])) for one in seen]
            mean: Vector = np.mean(tried, axis=0)
            return mean

        return weights

    def _believed_fltrust(self, honest: Floats, root: Vector) -> Callable[[Matrix], Vector]:
        """FLTrust's weights; the colluders' vector is ``μ + size p``, and its length from μ tells the size."""
        mean = honest.mean(axis=0, dtype=np.float64)
        push = honest.std(axis=0, dtype=np.float64) if self.settings.attack == "optimised-alie" else -mean
        along, of_mean, of_push, length = honest @ root, float(mean @ root), float(push @ root), float(np.linalg.norm(push))
        count = len(honest)

        def weights(gram: Matrix) -> Vector:
            square = gram[-1, -1] - 2.0 * gram[-1, :count].mean() + gram[:count, :count].mean()
            products = np.full(len(gram), of_mean + np.sqrt(max(0.0, square)) / max(length, 1e-30) * of_push)
            products[:count] = along
            return fltrust(gram, root_products=products, root_norm=float(np.linalg.norm(root))).weights

        return weights


def _typical_residual(honest: Floats) -> float:
    """Median distance of the honest updates from their mean."""
    return float(np.median(np.linalg.norm(honest - honest.mean(axis=0), axis=1)))
