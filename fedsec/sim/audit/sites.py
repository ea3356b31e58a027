"""Who takes part in an audited run: clients with their records and canaries, and the coins that say who is in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fedsec.data.federated import FederatedData
from fedsec.data.sizes import simulated_batch_size
from fedsec.plan.model import Plan
from fedsec.privacy.auditing.canaries import Directions

Flags = npt.NDArray[np.bool_]

_COINS, _CANDIDATES, _RECORD_COINS = 41, 43, 44


@dataclass(frozen=True, kw_only=True, eq=False)
class Site:
    """One client: its records, which of them are in question, and its canaries.

    Attributes:
        x: float32 [n, *shape].
        y: int64 [n].
        batch_size: declared.
        candidates: indices of the records in question.
        directions: of all its canaries, in or out.
    """

    x: npt.NDArray[np.float32]
    y: npt.NDArray[np.int64]
    batch_size: int
    candidates: npt.NDArray[np.int64]
    directions: Directions


@dataclass(frozen=True, kw_only=True, eq=False)
class Coins:
    """Who is in: bool [m] per client, for its canaries and for its candidate records."""

    canaries: tuple[Flags, ...]
    records: tuple[Flags, ...]

    def without_canaries(self) -> Coins:
        """The same records, and no canary."""
        return replace(self, canaries=tuple(np.zeros_like(flags) for flags in self.canaries))

    @classmethod
    def toss(cls, sites: Sequence[Site], seed: int, *labels: int) -> Coins:
        """Fair and independent coins."""
        canaries = np.random.default_rng([seed, _COINS, *labels])
        records = np.random.default_rng([seed, _RECORD_COINS, *labels])
        return cls(
            canaries=tuple(canaries.random(len(site.directions)) < 0.5 for site in sites),
            records=tuple(records.random(len(site.candidates)) < 0.5 for site in sites),
        )


def lay_out_site(plan: Plan, data: FederatedData, place: int, directions: Directions, *, candidates: int, most: int | None) -> Site:
    """One client of a plan: its records, some of them in question.

    Args:
        plan: with the audit's seed.
        data: all records.
        place: of the client.
        directions: its canaries.
        candidates: records in question; at most half of its own.
        most: records that are used; None: all. The declared batch size shrinks with them.
    """
    x, y = data.client_arrays(place)
    generator = np.random.default_rng([plan.federation.seed, _CANDIDATES, place])
    batch_size = simulated_batch_size(plan, data, place)
    if most is not None and len(y) > most:
        chosen = np.sort(generator.permutation(len(y))[:most])
        batch_size = max(1, round(batch_size * most / len(y)))
        x, y = x[chosen], y[chosen]
    asked = np.sort(generator.permutation(len(y))[: min(candidates, len(y) // 2)]).astype(np.int64)
    return Site(x=x, y=y, batch_size=batch_size, candidates=asked, directions=directions)
