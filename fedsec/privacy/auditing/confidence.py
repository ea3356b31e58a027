"""How sure a model is of each record's true class: what attacks on a released model look at."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn


def true_class_log_probabilities(
    model: nn.Module, x: npt.NDArray[np.float32], y: npt.NDArray[np.int64], *, batch_size: int = 2048
) -> npt.NDArray[np.float64]:
    """Log-probability of each record's own class: minus its loss.

    Args:
        model: maps float32 [B, *shape] to logits [B, K]; on the CPU.
        x: float32 [n, *shape].
        y: int64 [n].
        batch_size: records in one forward pass; memory only.

    Returns:
        float64 [n], at most 0.
    """
    found = np.empty(len(x), dtype=np.float64)
    with torch.no_grad():
        for start in range(0, len(x), batch_size):
            part = slice(start, start + batch_size)
            logits = model(torch.from_numpy(np.ascontiguousarray(x[part]))).double()
            rows = torch.log_softmax(logits, dim=1)
            found[part] = rows.gather(1, torch.from_numpy(np.ascontiguousarray(y[part]))[:, None])[:, 0].numpy()
    return found
