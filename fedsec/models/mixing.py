"""Refusal of models in which one record's output depends on the other records of its batch.

DP-SGD bounds what one record can do by clipping that record's own gradient. Where a layer mixes records, a record also acts through the
gradients of all others, and the bound is void. So before private training:

1. No BatchNorm of any kind, frozen or without parameters included (Opacus looks only at layers that have trainable parameters).
2. Nothing that Opacus' ``ModuleValidator`` refuses.
3. Where the shape of a record is given, the model is tried: the output of a record must not move when the others change or go, and
   no buffer may change while training. That also finds a ``x - x.mean(0)`` in somebody's ``forward``.
4. No random layer (dropout): it draws from torch's global generators, which are neither secret nor replayable.

The training refuses such models again, at the client (``fedsec.privacy``); asked here, a plan fails before the first round.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedsec.errors import ConfigError

_TOLERANCE = 1e-4
"""Relative and absolute. Mixing by any known layer moves outputs by some percent; batched float32 kernels by about 1e-6."""


def refuse_mixing_layers(model: nn.Module, *, input_shape: tuple[int, ...] | None = None) -> None:
    """Refuse a model that cannot be trained with a bound on each record; the model itself is left as it was.

    Args:
        model: on any device.
        input_shape: shape of one record; with it the model is also tried, on its copy.

    Raises:
        ConfigError: names the layer, or says what was seen.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            raise ConfigError(
                f"layer {name or 'model'} is a {type(module).__name__}, which mixes the records of a batch",
                field="model",
                mend="use nn.GroupNorm or nn.LayerNorm",
            )
    probe = _copy(model).train()
    _ask_opacus(probe)
    if input_shape is not None:
        _try_mixing(probe, input_shape)


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise ConfigError(f"the model cannot be copied: {error}", field="model", mend="keep only parameters and buffers in it") from error


def _ask_opacus(probe: nn.Module) -> None:
    from opacus.validators import ModuleValidator  # noqa: PLC0415 - takes a second to import, and only private plans need it

    problems = ModuleValidator.validate(probe, strict=False)
    if problems:
        reason = " ".join(str(problems[0]).split())[:300]
        raise ConfigError(f"Opacus cannot train this model privately: {reason}", field="model", mend="replace that layer")


def _try_mixing(probe: nn.Module, input_shape: tuple[int, ...]) -> None:
    device = next((parameter.device for parameter in probe.parameters()), torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    records = torch.rand((3, *input_shape), generator=generator).to(device)
    others = torch.cat([records[:1], torch.rand((2, *input_shape), generator=generator).to(device)])
    before = {name: buffer.clone() for name, buffer in probe.named_buffers()}
    first = _first_row(probe, records)
    changed = [name for name, buffer in probe.named_buffers() if name not in before or not torch.equal(buffer, before[name])]
    if changed:
        problem = f"buffer {changed[0]} changes while training, so it carries records from one step into the next"
        raise ConfigError(problem, field="model", mend="keep no running statistics")
    for other in (_first_row(probe, others), _first_row(probe, records[:1])):
        if not torch.allclose(first, other, rtol=_TOLERANCE, atol=_TOLERANCE):
            raise ConfigError(
                "a record's output depends on the other records of its batch", field="model", mend="use no statistics over the batch"
            )


def _first_row(probe: nn.Module, records: torch.Tensor) -> torch.Tensor:
    """Output for the first record; the global generators are left as they were."""
    devices = [records.device] if records.is_cuda else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        before = _generator_state(records.device)
        try:
            output = probe(records)
        except Exception as error:
            problem = f"the model fails on records {list(records.shape)}: {str(error)[:300]}"
            raise ConfigError(problem, field="model", mend="its forward takes [n, *input_shape]") from error
        if not torch.equal(before, _generator_state(records.device)):
            raise ConfigError("the model draws random numbers while training", field="model", mend="remove dropout and other random layers")
    return output[0].float()  # type: ignore[no-any-return]  # a module's call is untyped


def _generator_state(device: torch.device) -> torch.Tensor:
    own = torch.get_rng_state()
    return torch.cat([own, torch.cuda.get_rng_state(device)]) if device.type == "cuda" else own
