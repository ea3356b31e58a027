"""The server's own update on a few trusted records: the yardstick of rules that trust one (FLTrust).

Plain gradient steps on all root records at once, as many and as long as a client's: no sampling, no noise, so it is the same on every engine. The
records are the server's own; what becomes of the model tells about them, and no epsilon covers them.

Source: Cao et al. 2021 (FLTrust), NDSS, section IV.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedsec.models.parameters import set_arrays
from fedsec.plan.sections import TrainingSection
from fedsec.vectors import FloatArray, Layout


def root_update(
    model: nn.Module,
    arrays: Mapping[str, FloatArray],
    x: npt.NDArray[np.float32],
    y: npt.NDArray[np.int64],
    training: TrainingSection,
    *,
    layout: Layout,
) -> npt.NDArray[np.float64]:
    """The model difference after ``training.steps`` full-batch steps.

    Args:
        model: gives the architecture; left as it was.
        arrays: shared parameters to start from.
        x: float32 [n, *shape], trusted records.
        y: int64 [n].
        training: steps, learning rate, momentum.
        layout: of the shared parameters.

    Returns:
        float64 [d].
    """
    trained = copy.deepcopy(model).train()
    set_arrays(trained, dict(arrays))
    parameters = [parameter for name, parameter in trained.named_parameters() if name in arrays and parameter.requires_grad]
    optimiser = torch.optim.SGD(parameters, lr=training.learning_rate, momentum=training.momentum)
    for _ in range(training.steps):
        optimiser.zero_grad()
        loss: torch.Tensor = nn.functional.cross_entropy(trained(torch.from_numpy(x)), torch.from_numpy(y))
        torch.autograd.backward(loss)
        optimiser.step()
    after = {name: parameter.detach().numpy() for name, parameter in trained.named_parameters() if name in arrays}
    difference: npt.NDArray[np.float64] = layout.flatten(after).astype(np.float64) - layout.flatten(dict(arrays)).astype(np.float64)
    return difference
