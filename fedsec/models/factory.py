"""Models by name, with first weights that follow from the plan's seed alone.

1. Same section, shapes and seed: same bytes, on every platform and in every process. Weights are drawn from numpy's PCG64 bit
   stream (kept stable by NEP 19) with IEEE arithmetic only; torch's own generators round differently from CPU to CPU.
2. The global torch generator is neither read nor moved, so building a model never shifts another stream.
3. Everything is float32, and no layer of the families below mixes records: normalisation is by GroupNorm, never BatchNorm.

Families, each mapping [n, *input_shape] to logits [n, num_classes]:

========  =====================================================================================================
logistic  one ``nn.Linear`` on the flattened input; its parameters are called ``weight`` and ``bias``
mlp       ``hidden1`` … ``hiddenN`` with tanh between, then ``output``
cnn       1x28x28: 16 maps 8x8 / 32 maps 4x4, GroupNorm, tanh, max pooling, 32 units; 26,010 parameters at 10 classes
custom    ``module:function``, see ``fedsec.models.custom``
========  =====================================================================================================

**Tanh, not ReLU.** The clip norm cuts what is over it: unbounded activations make per-record gradients grow while training, so ever
more of the signal is cut while the noise stays. Tanh (the tempered sigmoid with scale 2, inverse temperature 2 and offset 1)
bounds the input of each layer. Source: Papernot et al. 2021, "Tempered sigmoid activations for deep learning with differential
privacy" (arXiv 2007.14191), also for the CNN; Tramèr & Boneh 2021 (arXiv 2011.11660) use the same one.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from torch import nn

from fedsec.codec import digest
from fedsec.errors import ConfigError
from fedsec.models.custom import build_custom
from fedsec.plan.sections import ModelSection
from fedsec.privacy.modelcheck import OUR_WORD

Model = nn.Module
"""What callers without torch of their own call a model."""

MAX_PARAMETERS = 200_000_000
"""Parameters of a built-in model: 0.8 GB. Counted before memory is taken, so that a slip in ``hidden`` is an error and not a crash."""

_IMAGE_SHAPES = ((28, 28), (784,), (1, 28, 28))


def build_model(section: ModelSection, *, input_shape: tuple[int, ...], num_classes: int, seed: int) -> nn.Module:
    """The model that a plan names, with its first weights.

    Args:
        section: ``[model]`` of the plan.
        input_shape: shape of one record.
        num_classes: columns of the logits, at least 2.
        seed: the federation's seed, 0 or more.

    Returns:
        A float32 model on the CPU, in training mode, all parameters trainable.

    Raises:
        ConfigError: the family cannot take this shape, the model is too large, or a custom factory fails.
        ValueError: an empty or non-positive shape, fewer than 2 classes, or a negative seed.
    """
    if not input_shape or any(size < 1 for size in input_shape):
        raise ValueError(f"input_shape must hold positive sizes, not {input_shape}")
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, not {num_classes}")
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, not {seed}")
    if section.name == "custom":
        return build_custom(section.factory or "", input_shape=input_shape, num_classes=num_classes, seed=seed)
    # Shapes only: nothing is allocated and no generator is used until the size is known to be sane.
    with torch.device("meta"):
        model = _skeleton(section, input_shape, num_classes)
    count = sum(parameter.numel() for parameter in model.parameters())
    if count > MAX_PARAMETERS:
        raise ConfigError(
            f"the model would have {count:,} parameters, over the limit of {MAX_PARAMETERS:,}",
            field="model.hidden" if section.name == "mlp" else "model.name",
            mend="use smaller layers",
        )
    model = model.to_empty(device="cpu")
    _initialise(model, seed=seed, zero=section.name == "logistic")
    return model


def _skeleton(section: ModelSection, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    features = math.prod(input_shape)
    match section.name:
        case "logistic":
            return _logistic(features, num_classes)
        case "mlp":
            return _mlp(features, section.hidden, num_classes)
        case "cnn":
            if input_shape not in _IMAGE_SHAPES:
                shape = "x".join(map(str, input_shape))
                raise ConfigError(f"the CNN takes 28x28 images, not {shape}", field="model.name", mend='use "logistic" or "mlp"')
            return _cnn(num_classes)
    raise ConfigError(f'no model is called "{section.name}"', field="model.name", mend='use "logistic", "mlp", "cnn" or "custom"')


def _flatten_input(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0].flatten(1),)


_flatten_input.keeps_records_apart = OUR_WORD  # type: ignore[attr-defined]


def _logistic(features: int, num_classes: int) -> nn.Module:
    """A plain ``nn.Linear`` with a hook that flattens.

    A subclass or an ``nn.Sequential`` would do the same, but engines for per-record gradients choose their fast rule by the exact
    type, and the parameters must be called ``weight`` and ``bias``.
    """
    model = nn.Linear(features, num_classes, dtype=torch.float32)
    model.register_forward_pre_hook(_flatten_input)
    return model


def _mlp(features: int, hidden: tuple[int, ...], num_classes: int) -> nn.Module:
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for index, (before, after) in enumerate(zip((features, *hidden), hidden, strict=False), start=1):
        layers[f"hidden{index}"] = nn.Linear(before, after, dtype=torch.float32)
        layers[f"tanh{index}"] = nn.Tanh()
    layers["output"] = nn.Linear((features, *hidden)[-1], num_classes, dtype=torch.float32)
    return nn.Sequential(layers)


class _AsImage(nn.Module):
    """[n, 28, 28], [n, 784] or [n, 1, 28, 28] to [n, 1, 28, 28]."""

    keeps_records_apart = OUR_WORD

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(x.shape[0], 1, 28, 28)


def _cnn(num_classes: int) -> nn.Module:
    """GroupNorm has no affine part: under DP each extra parameter is one more that receives noise, and tanh follows anyway."""
    return nn.Sequential(
        OrderedDict(
            image=_AsImage(),
            conv1=nn.Conv2d(1, 16, 8, stride=2, padding=3, dtype=torch.float32),
            norm1=nn.GroupNorm(4, 16, affine=False),
            tanh1=nn.Tanh(),
            pool1=nn.MaxPool2d(2, 1),
            conv2=nn.Conv2d(16, 32, 4, stride=2, dtype=torch.float32),
            norm2=nn.GroupNorm(4, 32, affine=False),
            tanh2=nn.Tanh(),
            pool2=nn.MaxPool2d(2, 1),
            flatten=nn.Flatten(),
            hidden=nn.Linear(32 * 4 * 4, 32, dtype=torch.float32),
            tanh3=nn.Tanh(),
            output=nn.Linear(32, num_classes, dtype=torch.float32),
        )
    )


def _initialise(model: nn.Module, *, seed: int, zero: bool) -> None:
    """Fill the parameters: biases 0; weights Glorot uniform, or 0 for logistic regression.

    Zero is a fine start there: the loss is convex, so every start leads to the same optimum; it predicts all classes alike, so
    no class is favoured and first gradients are of moderate norm; and it depends on no data, hence a public constant. (With a hidden layer zero would
    be a saddle point that training never leaves.) It is also the constant at which a personal ``bias`` stands until it is fitted.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if zero or parameter.dim() < 2:
                parameter.zero_()
            else:
                parameter.copy_(torch.from_numpy(_glorot(tuple(parameter.shape), seed=seed, name=name)))


def _glorot(shape: tuple[int, ...], *, seed: int, name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Uniform in ±sqrt(6 / (fan_in + fan_out)), float32, from a stream of its own for each seed and parameter name.

    Source: Glorot & Bengio 2010, eq. 16.
    """
    window = math.prod(shape[2:])
    bound = math.sqrt(6.0 / ((shape[0] + shape[1]) * window))
    state = int.from_bytes(digest("fedsec/init/v1", str(seed).encode(), name.encode()), "big")
    raw = np.random.PCG64(state).random_raw(math.prod(shape))
    # The top 53 bits are a float64 in [0, 1) without rounding; only then one multiplication, one subtraction and one cast round.
    uniform = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return ((uniform * 2.0 - 1.0) * bound).astype(np.float32).reshape(shape)
