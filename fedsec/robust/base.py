"""What a rule sees of one round, and what it says about it: the same records with updates in clear and with verified sketches.

1. A rule sees vectors, declared batch sizes and what is publicly known about the noise; never who is who beyond a client id.
2. Under secure aggregation the vectors are sketches, whitened: an orthonormal projection of the updates on a random subspace of k dimensions.
   Noise of one deviation per coordinate of the update then has the same deviation per coordinate of the vector, and independent coordinates.
3. A verdict is about clients. In the open the rule may also weight them; under masks the sum over the accepted is all there is.

Source: design note ROBUST, "Two ways to see updates".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


class Mode(StrEnum):
    """How the server sees updates."""

    OPEN = "open"
    """It holds them."""
    SKETCH = "sketch"
    """It holds k verified numbers of each."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RoundView:
    """One round as a rule sees it.

    Attributes:
        mode: how the server sees updates.
        client_ids: n of them, sorted, distinct.
        vectors: float32 or float64 [n, k], one row a client: its update in sum form (declared batch size times model difference), or the
            whitened sketch of it. Finite. Rules never change them.
        dimension: d, parameters of the model; equals k in the open.
        batch_sizes: float64 [n], declared, at least 1.
        noise_stddev: publicly known deviation of the noise in each coordinate of a row of ``vectors``; 0 without differential privacy.
        num_byzantine: f, the most clients that may be rejected as suspects; 0 to (n - 1) // 2.
        server_round: from 1.
        root: float64 [k], the server's own update (not in sum form: a model difference) on trusted records, for rules that need one.
    """

    mode: Mode
    client_ids: tuple[str, ...]
    vectors: npt.NDArray[np.floating]
    dimension: int
    batch_sizes: Vector
    noise_stddev: float
    num_byzantine: int
    server_round: int = 1
    root: Vector | None = None

    def __post_init__(self) -> None:
        count = len(self.client_ids)
        if self.vectors.ndim != 2 or len(self.vectors) != count or self.batch_sizes.shape != (count,):
            raise ValueError(f"{count} clients need as many rows and batch sizes, not {self.vectors.shape} and {self.batch_sizes.shape}")
        if list(self.client_ids) != sorted(set(self.client_ids)):
            raise ValueError("client ids are sorted and distinct")
        if count and not (self.batch_sizes >= 1).all():
            raise ValueError("declared batch sizes are at least 1")
        if not 0 <= self.num_byzantine <= max(0, (count - 1) // 2):
            raise ValueError(f"{self.num_byzantine} of {count} clients cannot be told apart from the honest: fewer than half can")

    @property
    def num_clients(self) -> int:
        """N."""
        return len(self.client_ids)


@dataclass(frozen=True, kw_only=True, eq=False)
class Verdict:
    """What a rule says about the clients of one round.

    Attributes:
        accepted: bool [n]; under secure aggregation the sum is over these.
        scores: float64 [n]; larger is more suspicious. Rules with a threshold scale it so that 1 is the edge of rejection. Always of the updates
            as sent, never of clipped ones.
        weights: float64 [n], in the open: the aggregate is ``sum_i weights[i] * vectors[i]``. None: the sum over the accepted by the sum of
            their capped batch sizes.
        reasons: client id → why it is not accepted; one for each client that is not.
        facts: what the rule measured, by name, for the report.
        failed: why the round must fail closed (more suspects than f, say); empty if it need not. Whoever runs the rule then uses nothing.
    """

    accepted: Flags
    scores: Vector
    weights: Vector | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, float] = field(default_factory=dict)
    failed: str = ""
