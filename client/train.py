"""Local training of one round: a model, records and settings in, an update in sum form out. Knows nothing of security.

1. The update is ``batch_size * (after - before)`` with the declared, public batch size. The server divides the sum of the
   updates by the sum of the declared sizes; so a client weighs as its declared size says, and the noise in its update
   has a standard deviation that everybody knows.
2. What leaves is the shared parameters only. Whether they are private is :func:`fedsec.privacy.dpsgd.train`'s business, and
   whether they may be sent the caller's (the ledger comes first).
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedsec.errors import ConfigError
from fedsec.models.device import resolve_device
from fedsec.privacy.dpsgd import SgdSettings, train
from fedsec.privacy.streams import RoundStreams
from fedsec.vectors import FloatArray


def local_update(
    model: nn.Module,
    x: npt.NDArray[np.float32],
    y: npt.NDArray[np.int64],
    settings: SgdSettings,
    *,
    shared_names: Collection[str],
    streams: RoundStreams,
    device: str = "cpu",
) -> dict[str, FloatArray]:
    """Train on the client's records and return the update of the shared parameters.

    The model is left as training left it: shared parameters moved, and personal ones too if they were trainable, so that the
    caller can keep those. After an error every parameter is as it was before.

    Args:
        model: holds the parameters that the round starts from.
        x: float32 [n, *shape].
        y: int64 [n].
        settings: as :func:`fedsec.privacy.dpsgd.train` takes them.
        shared_names: parameters to report; frozen ones report zeros.
        streams: of this client and round, used up by the call.
        device: cpu, cuda, cuda:N or auto.

    Returns:
        float32 arrays ``batch_size * (after - before)`` by name.

    Raises:
        ConfigError: unknown name or device, a model that cannot be trained record by record, or too little memory.
        ValueError: x and y have the wrong form.
    """
    parameters = dict(model.named_parameters())
    if unknown := sorted(set(shared_names) - set(parameters)):
        raise ConfigError(f"the model has no parameter {unknown[0][:80]!r}", field="model", mend="name parameters as the model does")
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    try:
        train(model, x, y, settings, streams=streams, device=resolve_device(device))
    except BaseException as error:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(before[name])
        if isinstance(error, torch.cuda.OutOfMemoryError):
            raise ConfigError(
                f"a chunk of {settings.physical_batch_size} records does not fit into the memory of {device}",
                field="training.physical_batch_size",
                mend="lower it; the result does not depend on it",
            ) from None
        raise
    return {name: _sum_form(before[name], parameters[name], settings.batch_size) for name in shared_names}


def _sum_form(before: torch.Tensor, after: torch.Tensor, batch_size: int) -> FloatArray:
    """``batch_size * (after - before)`` in float64, rounded once to float32."""
    difference = (after.detach().double() - before.double()) * batch_size
    update: FloatArray = difference.float().cpu().numpy()
    return update
