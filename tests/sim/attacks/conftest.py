"""Rounds for the tests of attacks: honest updates around a mean, and what colluders know of them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedsec.plan.sections import AttackSection
from fedsec.sim.attacks.knowledge import Knowledge, Sent


def _round(name="alie", *, n=12, f=3, d=30, seed=0, spread=1.0, noise=0.0, knowledge="omniscient", server_round=1, sizes=None, **more):
    draw = np.random.default_rng(seed)
    sizes = np.full(n, 8) if sizes is None else np.asarray(sizes)
    deltas = draw.normal(size=d) + spread * draw.normal(size=(n, d))
    sums = (deltas * sizes[:, None] + noise * draw.normal(size=(n, d))).astype(np.float32)
    own, known = (sums[n - f :], sizes[n - f :]), (sums[: n - f], sizes[: n - f])
    section = {key: more.pop(key) for key in list(more) if key in AttackSection.model_fields}
    if knowledge == "partial":
        known = own
    return Knowledge(
        known=known[0].copy(),
        batch_sizes=known[1].copy(),
        own=own[0].copy(),
        own_batch_sizes=own[1].copy(),
        num_clients=n,
        server_round=server_round,
        noise_stddev=noise,
        settings=AttackSection(name=name, knowledge=knowledge, **section),
        generator=np.random.default_rng([seed, 99]),
        **more,
    )


@pytest.fixture(scope="session")
def make_round() -> Callable[..., Knowledge]:
    """What the colluders know of a round with n − f honest updates around one mean; other arguments go to the section or to ``Knowledge``."""
    return _round


@pytest.fixture(scope="session")
def deltas_of() -> Callable[[Sent], Any]:
    """What was sent, as float64 model differences."""
    return lambda sent: sent.updates.astype(np.float64) / sent.batch_sizes[:, None]
