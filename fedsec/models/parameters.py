"""Which parameters are shared, which stay at the client, and their values as arrays.

1. Only trainable parameters (``requires_grad``) count. What a factory froze is a public constant of the code: nobody sends it, and
   no update can change it. Buffers are never sent.
2. A personal name matches a whole parameter name or its last dotted part: ``bias`` takes ``bias``, ``hidden1.bias`` and ``output.bias``.
3. Arrays that go into a model fit exactly (name, shape, float32, finite) or nothing of them is used.

Split a model as it was built: a client that freezes its personal parameters to train does so after the split.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from fedsec.errors import ConfigError
from fedsec.vectors import FloatArray, Layout

_FIELD = "model.personal"


def split_names(model: nn.Module, personal: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the shared and of the personal parameters, each sorted as in :class:`fedsec.vectors.Layout`.

    Raises:
        ConfigError: a name matches no trainable parameter, or nothing would be left to share.

    >>> split_names(nn.Linear(3, 2), ["bias"])
    (('weight',), ('bias',))
    """
    names = sorted(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    chosen: set[str] = set()
    for wanted in personal:
        matches = {name for name in names if name == wanted or name.rpartition(".")[2] == wanted}
        if not matches:
            known = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
            raise ConfigError(f"no trainable parameter is called {wanted!r}", field=_FIELD, mend=f"the model has: {known}")
        chosen |= matches
    shared = tuple(name for name in names if name not in chosen)
    if not shared:
        raise ConfigError("every parameter would be personal, so there is nothing to train together", field=_FIELD, mend="name fewer")
    return shared, tuple(sorted(chosen))


def _parameters(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Parameter]:
    known = dict(model.named_parameters())
    wanted = list(names)
    if unknown := sorted(set(wanted) - set(known)):
        raise ValueError(f"the model has no parameter {unknown[0]!r:.80}")
    return {name: known[name] for name in wanted}


def get_arrays(model: nn.Module, names: Iterable[str]) -> dict[str, FloatArray]:
    """Copies of the named parameters as float32 arrays, in the order of ``names``.

    Raises:
        ValueError: no such parameter, or one that is not float32.
    """
    arrays: dict[str, FloatArray] = {}
    for name, parameter in _parameters(model, names).items():
        if parameter.dtype != torch.float32:
            raise ValueError(f"{name}: dtype {parameter.dtype}, expected torch.float32")
        arrays[name] = parameter.detach().cpu().numpy().copy()
    return arrays


def set_arrays(model: nn.Module, arrays: Mapping[str, FloatArray]) -> None:
    """Write arrays into the parameters of the same names, all of them or none; other parameters keep their values.

    Raises:
        ValueError: an unknown name, another shape or dtype, or an entry that is not finite; the model is unchanged.
    """
    parameters = _parameters(model, arrays)
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise ValueError(f"{name}: a {type(array).__name__}, expected an array")  # noqa: TRY004 - one error type for all misfits
    Layout(tuple(sorted((name, tuple(parameter.shape)) for name, parameter in parameters.items()))).check(arrays)
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name}: holds a number that is not finite")
    with torch.no_grad():
        for name, parameter in parameters.items():
            # torch.tensor copies, also from arrays that are read-only or not contiguous.
            parameter.copy_(torch.tensor(arrays[name]))


def count_parameters(model: nn.Module, names: Iterable[str]) -> int:
    """Numbers in the named parameters: the length of their flat vector."""
    return sum(parameter.numel() for parameter in _parameters(model, names).values())
