"""Personal parameters, fitted at the client after the last release.

1. Nothing fitted here ever enters a gradient that leaves the client: until the last release personal parameters stand at their public
   constant (PRIVACY: one fitted earlier would act through every other gradient and void epsilon).
2. The fit is deterministic: all records in each step, no random numbers.
3. The result is finite whatever the records are: a pull to the public constant keeps a client with one class, or none, at a finite optimum,
   and a fit that fails falls back to the constant.

Minimised over the personal parameters θ, all others frozen, with θ0 the values they hold in the model::

    sum_i cross_entropy(model(x_i), y_i) + l2/2 · |θ - θ0|²

The sum, not the mean: the pull is a Gaussian prior of variance 1/l2 that counts like a few records, and fades as records come in.

Two classes have two logits and hence two intercepts, of which only the difference matters. Without the pull there would be a line of
optima; with it the one nearest to θ0 is the only one, and both intercepts move by equal and opposite amounts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from fedsec.models.device import resolve_device
from fedsec.models.parameters import get_arrays
from fedsec.vectors import FloatArray

DEFAULT_L2 = 0.1
"""A prior standard deviation of 3.2 for each fitted number: weak beside a dozen records, enough for a finite optimum."""

_BATCH = 2048


def fit_personal(
    model: nn.Module,
    names: Sequence[str],
    x: npt.NDArray[np.float32],
    y: npt.NDArray[np.int64],
    *,
    l2: float = DEFAULT_L2,
    max_iterations: int = 100,
    device: str = "cpu",
) -> dict[str, FloatArray]:
    """Fit the named parameters to a client's own records and return them; the model is left as it was.

    Args:
        model: the final shared model, its personal parameters at their public constant.
        names: full names of the personal parameters.
        x: float32 [n, ...].
        y: int64 [n], a class each; n = 0 gives the constants back.
        l2: strength of the pull, > 0.
        max_iterations: of L-BFGS, at least 1; one costs a few passes over the records.
        device: where to compute (cpu, cuda, cuda:N, auto).

    Returns:
        Finite float32 arrays, one a name. Their objective is never above that of the constants; where the model is so
        broken that there is none (logits not finite), they are the constants.

    Raises:
        ConfigError: no such device.
        ValueError: unknown or no names, lengths that differ, a label that is no class, l2 or max_iterations out of range.
    """
    if not (math.isfinite(l2) and l2 > 0.0) or max_iterations < 1:
        raise ValueError(f"l2 must be positive and max_iterations at least 1, not {l2} and {max_iterations}")
    if len(x) != len(y) or not names:
        raise ValueError(f"{len(x)} records, {len(y)} labels and {len(names)} names cannot be fitted")
    if len(y) and y.min() < 0:
        raise ValueError(f"label {y.min()} is no class")
    constants = get_arrays(model, names)
    if len(y) == 0:
        return constants
    target = resolve_device(device)
    home = next(model.parameters()).device
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.to(target).eval()
        fitted = _minimise(model, constants, torch.tensor(x), torch.tensor(y), l2=l2, max_iterations=max_iterations, device=target)
    finally:
        model.to(home)
        for module, training in modes:
            module.training = training
    return fitted if fitted is not None else constants


def _minimise(
    model: nn.Module,
    constants: dict[str, FloatArray],
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    l2: float,
    max_iterations: int,
    device: torch.device,
) -> dict[str, FloatArray] | None:
    """L-BFGS with strong Wolfe steps; the best point seen, or None if even the start has no finite objective.

    The unknowns are float64 and the model float32: sums and steps do not round, and the model that is fitted is the one that is used.
    """
    unknowns = [torch.tensor(array, dtype=torch.float64, device=device, requires_grad=True) for array in constants.values()]
    anchors = [unknown.detach().clone() for unknown in unknowns]
    optimiser = torch.optim.LBFGS(
        unknowns, max_iter=max_iterations, tolerance_grad=1e-7, tolerance_change=1e-10, line_search_fn="strong_wolfe"
    )
    best_value, best_point = math.inf, anchors

    def closure() -> float:
        nonlocal best_value, best_point
        value, gradients = _objective(model, dict(zip(constants, unknowns, strict=True)), anchors, x, y, l2=l2)
        for unknown, gradient in zip(unknowns, gradients, strict=True):
            unknown.grad = gradient
        if value < best_value:
            best_value, best_point = value, [unknown.detach().clone() for unknown in unknowns]
        return value

    if not math.isfinite(closure()):
        return None
    step: Callable[[Callable[[], float]], object] = optimiser.step
    step(closure)
    arrays = {name: point.float().cpu().numpy() for name, point in zip(constants, best_point, strict=True)}
    return arrays if all(np.isfinite(array).all() for array in arrays.values()) else None


def _objective(
    model: nn.Module, unknowns: dict[str, torch.Tensor], anchors: list[torch.Tensor], x: torch.Tensor, y: torch.Tensor, *, l2: float
) -> tuple[float, list[torch.Tensor]]:
    """Value and gradient of the objective over n. ``autograd.grad`` leaves the frozen parameters without gradients."""
    leaves = list(unknowns.values())
    device = leaves[0].device
    value, gradients = 0.0, [torch.zeros_like(leaf) for leaf in leaves]
    for start in range(0, len(y), _BATCH):
        logits = functional_call(model, {name: leaf.float() for name, leaf in unknowns.items()}, (x[start : start + _BATCH].to(device),))
        if int(y.max()) >= logits.shape[1]:
            raise ValueError(f"label {int(y.max())} is no class of {logits.shape[1]}")
        loss = functional.cross_entropy(logits.double(), y[start : start + _BATCH].to(device), reduction="sum") / len(y)
        for gradient, part in zip(gradients, torch.autograd.grad(loss, leaves, materialize_grads=True), strict=True):
            gradient.add_(part)
        value += loss.item()
    for leaf, anchor, gradient in zip(leaves, anchors, gradients, strict=True):
        pull = leaf.detach() - anchor
        value += 0.5 * l2 * float(pull.square().sum()) / len(y)
        gradient.add_(pull, alpha=l2 / len(y))
    return value, gradients
