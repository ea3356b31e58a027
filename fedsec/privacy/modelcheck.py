"""Refuse models for which clipping each record's gradient would not bound what a record does.

1. Refused: layers that mix the records of a batch (batch normalisation), that keep state from one batch to the next, or that draw
   from torch's global generators (dropout), which are neither secret nor replayable.
2. Known layers are refused by type; anything else is tried out on synthetic records: the output of one must not change
   with the others.
3. An engine must give the gradient of one record to that record. Opacus takes a layer's first axis for the records: a model
   that folds them into another axis would have each slice clipped by itself, and one record would count several times.
4. Only synthetic records are used, from a generator with a fixed seed, so no message here can hold anything private.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from opacus.validators import ModuleValidator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedsec.errors import ConfigError, FedsecError
from fedsec.privacy.clipping import Engine

_RECORDS = 4

OUR_WORD = object()
"""What ``keeps_records_apart`` holds on our own layers and hooks: nobody's code claims it by accident."""

SEPARATE_LAYERS: frozenset[type] = frozenset(
    {
        nn.Sequential, nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm, nn.Tanh, nn.ReLU, nn.Sigmoid, nn.GELU, nn.MaxPool2d, nn.AvgPool2d,
        nn.Flatten, nn.Identity,
    }
)  # fmt: skip
"""Layers that keep records apart whatever their weights; exactly these types, without hooks of others."""


def cannot_mix(model: nn.Module) -> bool:
    """Whether the model is made only of layers that keep records apart whatever the weights and the records are.

    The probe below tries a model with the weights at hand on synthetic records. Code that mixes records behind a gate passes it while the
    gate is shut, and a server chooses the weights; so anything but these layers is trained record by record.
    """
    return all(_keeps_apart(layer) for layer in model.modules())


def _keeps_apart(layer: nn.Module) -> bool:
    hooks = [*layer._forward_hooks.values(), *layer._forward_pre_hooks.values()]  # noqa: SLF001 - torch offers no other way to see them
    ours = getattr(type(layer), "keeps_records_apart", None) is OUR_WORD
    plain = "forward" not in vars(layer) and all(getattr(hook, "keeps_records_apart", None) is OUR_WORD for hook in hooks)
    return plain and (ours or type(layer) in SEPARATE_LAYERS)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What :func:`check_attribution` needs.

    Attributes:
        x: synthetic records, [4, *shape].
        targets: [4, K] weights of the outputs in the loss; all zero but the first record's.
        gradients: the gradient of that loss, one per trainable parameter.
    """

    x: Tensor
    targets: Tensor
    gradients: list[Tensor]


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that training changes, in the model's order.

    Raises:
        ConfigError: there is none, or one is not float32.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ConfigError("the model has no trainable parameter", field="model", mend="leave requires_grad on for what is to be trained")
    if any(parameter.dtype != torch.float32 for parameter in parameters):
        raise ConfigError("a trainable parameter is not float32", field="model", mend="convert the model with model.float()")
    return parameters


def probe(model: nn.Module, shape: Sequence[int], *, private: bool) -> Probe:
    """Run the model, in training mode, on synthetic records.

    Args:
        model: maps float32 [B, *shape] to logits [B, K].
        shape: of one record.
        private: whether to refuse what rules 1 and 2 refuse; random numbers are refused either way.

    Raises:
        ConfigError: names the layer or what went wrong, and the mend.
    """
    if private:
        _check_layers(model)
    parameters = trainable_parameters(model)
    device = parameters[0].device
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((2, _RECORDS, *shape), generator=generator).to(device)  # in [0, 1): as token ids all are 0, and valid
    x[1, 0] = x[0, 0]
    buffers = [buffer.clone() for buffer in model.buffers()]
    with model_errors(), _no_random_numbers(device):
        outputs, others = model(x[0]), model(x[1])
        if outputs.ndim != 2 or len(outputs) != _RECORDS:
            raise ValueError(f"{_RECORDS} records give outputs of shape {tuple(outputs.shape)}")
        targets = torch.zeros_like(outputs)
        targets[0] = torch.rand(outputs.shape[1], generator=generator).to(device)
        loss = weighted_outputs(outputs, targets).sum()
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    if private:
        if not all(torch.equal(before, after) for before, after in zip(buffers, model.buffers(), strict=True)):
            raise _mixes_records("a layer that keeps state")
        if not torch.allclose(outputs[0], others[0], rtol=1e-4, atol=1e-6, equal_nan=True):
            raise _mixes_records("a layer")
    return Probe(x=x[0], targets=targets.detach(), gradients=list(gradients))


def check_attribution(engine: Engine, result: Probe) -> None:
    """Only the first synthetic record has a loss, so the engine must give it the whole gradient and the others none.

    Raises:
        ConfigError: it does not, or cannot follow the model.
    """
    with model_errors():
        norms, sums = engine.clipped_sum(result.x, result.targets, weighted_outputs, math.inf)
    squares = [float(gradient.double().square().sum()) for gradient in result.gradients]
    scale = max(math.sqrt(sum(squares)), 1e-12)
    error = max(float((ours - right).abs().max()) for ours, right in zip(sums, result.gradients, strict=True) if ours.numel())
    if float(norms[1:].max()) > 1e-4 * scale or error > 1e-3 * scale:
        raise ConfigError(
            "the gradients of single records come out wrong: a parameter is used outside its layer, records change places, or a rule is wrong",
            field="model",
            mend='call layers instead of using their weights, keep records on the first axis, or try privacy.clipping = "bookkeeping"',
        )


def weighted_outputs(outputs: Tensor, targets: Tensor) -> Tensor:
    """The probe's loss for each record, [B]."""
    return (outputs * targets).sum(dim=1)


@contextmanager
def model_errors() -> Iterator[None]:
    """Turn errors of a foreign model into a ConfigError; for blocks that see synthetic records only (rule 4)."""
    try:
        yield
    except FedsecError:
        raise
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(
            f"the model cannot be trained record by record: {reason[0][:200]}",
            field="model",
            mend="it must map float32 [B, *shape] to logits [B, K], row by row",
        ) from error


def _check_layers(model: nn.Module) -> None:
    for name, layer in model.named_modules():
        if isinstance(layer, _BatchNorm):  # Opacus' validator lets one without trainable parameters pass
            raise _mixes_records(f"{name or 'the model'} ({type(layer).__name__})")
    if errors := ModuleValidator.validate(model, strict=False):
        reason = str(errors[0]).split(". ")[0]
        raise ConfigError(f"Opacus refuses the model: {reason}", field="model", mend="use layers that Opacus supports")


def _mixes_records(what: str) -> ConfigError:
    return ConfigError(
        f"{what} mixes the records of a batch or remembers earlier ones, so clipping cannot bound what one record does",
        field="model",
        mend="use GroupNorm or LayerNorm instead of batch normalisation",
    )


@contextmanager
def _no_random_numbers(device: torch.device) -> Iterator[None]:
    """Refuse a block that draws from torch's global generators; they are put back as they were."""
    before = torch.get_rng_state()
    before_cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    yield
    drew = not torch.equal(before, torch.get_rng_state())
    if drew:
        torch.set_rng_state(before)
    if before_cuda is not None and not torch.equal(before_cuda, torch.cuda.get_rng_state(device)):
        torch.cuda.set_rng_state(before_cuda, device)
        drew = True
    if drew:
        raise ConfigError(
            "the model draws random numbers while training (dropout?), from a generator that is neither secret nor replayable",
            field="model",
            mend="remove dropout and other random layers",
        )
