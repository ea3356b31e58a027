"""Load what a client's first round needs before workers are forked, so that they share it and none loads it again."""

from __future__ import annotations


def preload() -> None:
    """Import training, and build one optimizer: torch imports part of itself (0.8 s) only when it first makes one."""
    import torch  # noqa: PLC0415

    import client.rounds  # noqa: F401, PLC0415

    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
