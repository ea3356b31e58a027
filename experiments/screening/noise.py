"""What screening does to pure noise: how often honest clients without any signal are outside a test."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedsec.robust.base import Mode, RoundView
from fedsec.robust.levels import DEFAULT_SETTINGS
from fedsec.robust.screening import SUSPICION, ScreeningState, screen
from fedsec.robust.tails import spectral_edge

ROUNDS, RUN = 2000, 20
_SEED = 31


def false_alarms(num_clients: int, num_columns: int) -> dict[str, Any]:
    """Shares over many rounds of pure noise, in runs of 20 rounds: clients outside the gate, rejected, ever suspect; rounds over the edge."""
    generator = np.random.default_rng([_SEED, num_clients, num_columns])
    names = tuple(f"{place:04d}" for place in range(num_clients))
    gate = rejected = suspected = over = 0
    tops = []
    state, suspects = ScreeningState.empty(), set[str]()
    for server_round in range(1, ROUNDS + 1):
        view = RoundView(
            mode=Mode.OPEN,
            client_ids=names,
            vectors=generator.standard_normal((num_clients, num_columns)),
            dimension=num_columns,
            batch_sizes=np.ones(num_clients),
            noise_stddev=1.0,
            num_byzantine=num_clients // 4,
            server_round=server_round,
        )
        verdict, state = screen(view, state=state)
        norms = np.linalg.norm(view.vectors, axis=1)
        gate += int(((norms <= verdict.facts["least"]) | (norms >= verdict.facts["most"])).sum())
        rejected += int((~verdict.accepted).sum())
        suspects |= {name for name in verdict.facts if name.startswith(SUSPICION)}
        tops.append(verdict.facts["eigenvalue_1"])
        over += verdict.facts["eigenvalue_1"] > spectral_edge(num_clients, num_columns, DEFAULT_SETTINGS.edge_tail)
        if server_round % RUN == 0:
            suspected += len(suspects)
            state, suspects = ScreeningState.empty(), set()
    return {
        "clients": num_clients,
        "columns": num_columns,
        "rounds": ROUNDS,
        "edge": spectral_edge(num_clients, num_columns, DEFAULT_SETTINGS.edge_tail),
        "top_99": float(np.quantile(tops, 0.99)),
        "over_edge": over / ROUNDS,
        "gate": gate / (ROUNDS * num_clients),
        "rejected": rejected / (ROUNDS * num_clients),
        "suspected": suspected / (ROUNDS / RUN * num_clients),
    }
