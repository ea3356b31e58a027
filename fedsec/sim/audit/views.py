"""What three attackers see of every round, and what each of them computes about the canaries.

=========  ==============================================================================================================
updates    every client's update in clear: what local DP-SGD must withstand
sum        the sum over all clients, as under secure aggregation; canaries of all clients are looked for in it
sketches   k numbers of every client's update, with R known, as the server has them under secure aggregation
=========  ==============================================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from fedsec.codec import digest
from fedsec.privacy.auditing.results import Adversary
from fedsec.privacy.auditing.scores import CanaryScores, step_weights
from fedsec.robust.whitening import needs_row_gram, whiten
from fedsec.secagg.sketch import SketchMatrix
from fedsec.sim.audit.federation import Federation, Floats

_SKETCH_LABEL = "fedsec/audit-sketch/v1"


@dataclass(kw_only=True, eq=False)
class View:
    """One attacker; call it with each round's updates.

    Args:
        federation: whose canaries are looked for.
        adversary: which attacker; not "model".
        noise_multiplier: that the clients really use.
    """

    federation: Federation
    adversary: Adversary
    noise_multiplier: float
    _scores: CanaryScores = field(init=False)
    _round: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        training = self.federation.plan.training
        shares = math.sqrt(len(self.federation.sites)) if self.adversary == "sum" else 1.0
        self._scores = CanaryScores(
            count=self.federation.num_canaries,
            weights=step_weights(training.steps, training.momentum),
            sample_rate=training.sample_rate,
            noise_multiplier=self.noise_multiplier * shares,
        )

    @property
    def scores(self) -> Floats:
        """[m], canaries client by client: log-likelihood ratios."""
        return self._scores.scores

    @property
    def sums(self) -> Floats:
        """[m]: plain sums of inner products, for the Gaussian estimate."""
        return self._scores.sums

    def __call__(self, updates: Floats) -> None:
        """See one round: float64 [clients, d] in clip norms."""
        self._round += 1
        seen = np.broadcast_to(updates.sum(axis=0), updates.shape) if self.adversary == "sum" else updates
        if self.adversary == "sketches":
            self._see_sketches(seen)
            return
        folded = self.federation.sites[0].directions.fold(seen)
        for place, (start, end) in enumerate(self._places()):
            self._scores.see(folded[place], self.federation.sites[place].directions.inner, slice(start, end))

    def _see_sketches(self, updates: Floats) -> None:
        """Updates and directions under this round's R, as an orthonormal projection: noise that was equal in all coordinates is so again."""
        plan, dimension, sites = self.federation.plan, self.federation.layout.size, self.federation.sites
        seed = digest(_SKETCH_LABEL, str(plan.federation.seed).encode(), str(self._round).encode())
        matrix = SketchMatrix(seed=seed, num_rows=plan.secagg.sketch_rows, dimension=dimension)
        rows = matrix.entries(0, matrix.num_rows).T.astype(np.float32)
        products = matrix.row_products() if needs_row_gram(matrix.num_rows, dimension) else None
        # Written out, directions take m * d numbers: client by client, and only their sketches are kept.
        sketches = [updates.astype(np.float32) @ rows, *(site.directions.expand() @ rows for site in sites)]
        whitened = whiten(np.concatenate(sketches), dimension=dimension, rrt=products)
        seen, signatures = whitened[: len(updates)], whitened[len(updates) :].astype(np.float32)
        for place, (start, end) in enumerate(self._places()):
            self._scores.see(seen[place], signatures[start:end], slice(start, end))

    def _places(self) -> Iterator[tuple[int, int]]:
        start = 0
        for site in self.federation.sites:
            yield start, start + len(site.directions)
            start += len(site.directions)
