"""Own models: ``[model] factory = "module:function"``, called as ``function(input_shape, num_classes)``.

1. Whatever goes wrong in code that is not ours becomes a ``ConfigError`` that names the entry point and says what to mend.
2. The model is tried once on two records: what the training and the server rely on is known before the first round.
3. The factory runs with torch's CPU generator seeded from the plan; the state it finds there is put back afterwards. Draws from
   other generators are the factory's own business. Only the server's first weights count: clients receive them.
"""

from __future__ import annotations

import math
import threading

import torch
from torch import nn

from fedsec.codec import digest
from fedsec.data.entrypoint import current_folder_importable, load_entry_point
from fedsec.errors import ConfigError

_GENERATOR_LOCK = threading.RLock()
"""Torch's CPU generator is one for all threads: two factories at once would draw from each other's seed."""

_FIELD = "model.factory"


def build_custom(entry_point: str, *, input_shape: tuple[int, ...], num_classes: int, seed: int) -> nn.Module:
    """Call the factory and check what it returns.

    Returns:
        A float32 model on the CPU in training mode that maps [n, *input_shape] to finite logits [n, num_classes].

    Raises:
        ConfigError: see the rules of this module; names the entry point.
    """
    torch_seed = int.from_bytes(digest("fedsec/init-custom/v1", str(seed).encode())[:8], "big") >> 1
    with _GENERATOR_LOCK, torch.random.fork_rng(devices=[]), current_folder_importable():
        torch.default_generator.manual_seed(torch_seed)
        factory = load_entry_point(entry_point, field=_FIELD)
        try:
            model = factory(input_shape, num_classes)
        except (Exception, SystemExit) as error:
            mend = "it is called as function(input_shape, num_classes)"
            raise ConfigError(f"{entry_point} failed: {_brief(error)}", field=_FIELD, mend=mend) from error
        if not isinstance(model, nn.Module):
            problem = f"{entry_point} returned a {type(model).__name__}"
            raise ConfigError(problem, field=_FIELD, mend="return a torch.nn.Module")
        # Tried before its parameters are looked at, since lazy layers have none until then.
        _try_out(model, entry_point, input_shape, num_classes)
    _check_parameters(model, entry_point)
    return model.train()


def _try_out(model: nn.Module, entry_point: str, input_shape: tuple[int, ...], num_classes: int) -> None:
    records = torch.linspace(0.0, 1.0, 2 * math.prod(input_shape), dtype=torch.float32).reshape(2, *input_shape)
    try:
        with torch.no_grad():
            logits = model.eval()(records)
    except Exception as error:
        problem = f"{entry_point}: the model fails on float32 records {list(records.shape)}: {_brief(error)}"
        raise ConfigError(problem, field=_FIELD, mend="its forward takes [n, *input_shape]") from error
    if not isinstance(logits, torch.Tensor) or logits.shape != (2, num_classes) or logits.dtype != torch.float32:
        found = f"{logits.dtype} {list(logits.shape)}" if isinstance(logits, torch.Tensor) else f"a {type(logits).__name__}"
        problem = f"{entry_point}: the model maps 2 records to {found}"
        raise ConfigError(problem, field=_FIELD, mend=f"it must return float32 logits [n, {num_classes}]")
    if not torch.isfinite(logits).all():
        raise ConfigError(f"{entry_point}: the new model's logits are not finite", field=_FIELD, mend="check its first weights")


def _check_parameters(model: nn.Module, entry_point: str) -> None:
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
            problem = f"{entry_point}: parameter {name} is {parameter.dtype} on {parameter.device}"
            raise ConfigError(problem, field=_FIELD, mend="build a float32 model on the CPU; the plan's training.device moves it")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(f"{entry_point}: the model has no trainable parameter", field=_FIELD, mend="leave some with requires_grad")


def _brief(error: BaseException) -> str:
    """One line that says what went wrong; the whole story is the error's ``__cause__``."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
