"""The records of each live client: its own part of digits, the same part as in the simulation of ``examples/live.toml``.

A client's settings name ``experiments.live_federation.data:client_0`` to ``client_5``. ``FEDSEC_LIVE_PARTS`` (in the client's own environment) is the number
of parts; 6 if it is not set.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

PLAN = Path(__file__).resolve().parents[2] / "examples" / "live.toml"


def part(number: int) -> Mapping[str, Any]:
    """The records of one client, from 0."""
    from fedsec.data.federated import federated_data
    from fedsec.plan.load import load_plan

    plan = load_plan(PLAN)
    count = int(os.environ.get("FEDSEC_LIVE_PARTS") or plan.federation.num_clients)
    data = federated_data(plan.data, num_clients=count, seed=plan.federation.seed)
    (x, y), (x_test, y_test) = data.client_arrays(number), data.client_test_arrays(number)
    return {"x": x, "y": y, "x_test": x_test, "y_test": y_test, "num_classes": data.dataset.num_classes}


def __getattr__(name: str) -> Callable[[], Mapping[str, Any]]:
    """``client_0``, ``client_1`` and so on."""
    kind, _, number = name.partition("_")
    if kind == "client" and number.isdigit():
        return partial(part, int(number))
    raise AttributeError(name)
