"""Clipping of per-record gradients: one definition for every engine.

1. A record's gradient over *all* trainable parameters is scaled to L2 norm at most ``clip_norm``; one whose norm is not a number
   below ``MAX_GRADIENT_NORM`` counts as 0.
2. An :class:`Engine` turns a chunk of records into the sum of their clipped gradients. It returns the norms too, so that a
   caller can check on synthetic records that gradients go to the right record; norms of real records never leave.

Source: Abadi et al. 2016, Algorithm 1 (arXiv 1607.00133), with Opacus' clip factor ``min(1, C / (norm + 1e-6))``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

Criterion = Callable[[Tensor, Tensor], Tensor]
"""Maps outputs [B, K] and targets [B, ...] to one loss per record, [B]; record i's depends on row i only."""

MAX_GRADIENT_NORM = 1e18
"""A gradient norm from here on (or NaN) counts as not a number: float32 squares overflow soon after."""

_CLIP_EPSILON = 1e-6  # as Opacus: keeps the division finite, errs towards smaller gradients
_VANISHING = 1e-19  # a float32 below this has a square of 0, so a norm may be short by this much per root of an entry


class Part(Protocol):
    """The gradients of one parameter for each of B records, in whatever form is cheapest."""

    def norms(self) -> Tensor:
        """float64 [B]: L2 norm of each record's gradient."""

    def without(self, bad: Tensor) -> Part:
        """The same with the records of ``bad`` (bool [B]) at 0."""

    def weighted_sum(self, factors: Tensor) -> Tensor:
        """The sum of ``factors[i]`` times record i's gradient, in the shape of the parameter."""

    def dense(self) -> Tensor:
        """[B, *parameter shape]."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Per-record gradients that exist as such.

    Attributes:
        rows: [B, *shape], or with the last two axes of the shape exchanged if ``swapped``.
        shape: shape of the parameter.
        swapped: whether they are.
    """

    rows: Tensor
    shape: torch.Size
    swapped: bool = False

    def norms(self) -> Tensor:
        """As :meth:`Part.norms`."""
        norms: Tensor = torch.linalg.vector_norm(self.rows.reshape(len(self.rows), -1), dim=1)
        return norms.double()

    def without(self, bad: Tensor) -> Rows:
        """As :meth:`Part.without`."""
        return Rows(_blank(self.rows, bad), self.shape, self.swapped)

    def weighted_sum(self, factors: Tensor) -> Tensor:
        """As :meth:`Part.weighted_sum`."""
        total = (factors @ self.rows.reshape(len(self.rows), -1)).view(self.rows.shape[1:])
        return (total.mT if self.swapped else total).reshape(self.shape)

    def dense(self) -> Tensor:
        """As :meth:`Part.dense`."""
        return (self.rows.mT if self.swapped else self.rows).reshape(len(self.rows), *self.shape)


@dataclass(frozen=True, slots=True)
class Outer:
    """Gradients of a linear layer's weight with one vector per record: ``left[i] right[i]ᵀ``, never multiplied out.

    Attributes:
        left: [B, out], gradient of the output.
        right: [B, in], the input.
    """

    left: Tensor
    right: Tensor

    def norms(self) -> Tensor:
        """As :meth:`Part.norms`."""
        return _safe_norms(self.left) * _safe_norms(self.right)

    def without(self, bad: Tensor) -> Outer:
        """As :meth:`Part.without`."""
        return Outer(_blank(self.left, bad), _blank(self.right, bad))

    def weighted_sum(self, factors: Tensor) -> Tensor:
        """As :meth:`Part.weighted_sum`."""
        return (self.left * factors[:, None]).T @ self.right

    def dense(self) -> Tensor:
        """As :meth:`Part.dense`."""
        return self.left[:, :, None] * self.right[:, None, :]


def _blank(values: Tensor, bad: Tensor) -> Tensor:
    return values.masked_fill(bad.reshape(-1, *([1] * (values.ndim - 1))), 0.0)


def _safe_norms(vectors: Tensor) -> Tensor:
    """Norms of the rows, float64 [B], never too small through underflow; infinite from ``MAX_GRADIENT_NORM`` on."""
    plain: Tensor = torch.linalg.vector_norm(vectors, dim=1)
    norms = plain.double() + _VANISHING * math.sqrt(vectors.shape[1])
    return norms.masked_fill(~(norms < MAX_GRADIENT_NORM), math.inf)


def clip_and_sum(parts: Sequence[Part], clip_norm: float) -> tuple[Tensor, list[Tensor]]:
    """Clip each record's gradient, taken over all ``parts`` together, and sum.

    Guarantee: adding or removing one record moves the sums, taken together, by at most ``clip_norm`` (L2) up to float32
    rounding, whatever the record: a norm that is NaN, infinite or above ``MAX_GRADIENT_NORM`` makes its contribution exactly 0.

    Args:
        parts: one per trainable parameter, all with the same B >= 1 records.
        clip_norm: bound C > 0; infinity only sums.

    Returns:
        float64 [B] norms before clipping (not private: for checks only), and one float32 sum per part.
    """
    norms = torch.stack([part.norms() for part in parts]).square().sum(dim=0).sqrt()
    bad = ~(norms < MAX_GRADIENT_NORM)
    factors = (clip_norm / (norms + _CLIP_EPSILON)).clamp(max=1.0).masked_fill(bad, 0.0).to(torch.float32)
    if bool(bad.any()):  # 0 * inf is NaN: such gradients must be gone before the sum, not only weighted by 0
        parts = [part.without(bad) for part in parts]
    return norms, [part.weighted_sum(factors) for part in parts]


class Engine(Protocol):
    """Turns chunks of records into sums of their clipped gradients."""

    def clipped_sum(self, x: Tensor, targets: Tensor, criterion: Criterion, clip_norm: float) -> tuple[Tensor, list[Tensor]]:
        """Clip the gradients of one chunk of records and sum; guarantee as :func:`clip_and_sum`.

        Args:
            x: [B, *shape], B >= 1.
            targets: [B, ...], handed to ``criterion``.
            criterion: loss of each record.
            clip_norm: bound C > 0.

        Returns:
            float64 [B] norms before clipping, and one sum per trainable parameter in the order of ``model.parameters()``.

        Raises:
            ConfigError: the model does something that this engine cannot follow.
        """

    def close(self) -> None:
        """Leave the model as it was."""


class PlainEngine:
    """Plain sums of gradients, without clipping: no privacy, and no norms."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def close(self) -> None:
        """Nothing to undo."""

    def clipped_sum(self, x: Tensor, targets: Tensor, criterion: Criterion, clip_norm: float) -> tuple[Tensor, list[Tensor]]:
        """The sums as they are; ``clip_norm`` must be infinite."""
        if clip_norm != math.inf:
            raise ValueError("this engine does not clip")
        loss = criterion(self._model(x), targets).sum()
        return torch.zeros(0), list(torch.autograd.grad(loss, self._parameters, allow_unused=True, materialize_grads=True))


class FunctionalEngine:
    """Per-record gradients of any model by ``torch.func``: each record alone in its batch, vectorised.

    Slower and larger than book-keeping (B gradients of the whole model are held), but knows no layers.

    Args:
        model: any model that ``torch.func.vmap`` can transform.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def close(self) -> None:
        """Nothing to undo."""

    def clipped_sum(self, x: Tensor, targets: Tensor, criterion: Criterion, clip_norm: float) -> tuple[Tensor, list[Tensor]]:
        """As :meth:`Engine.clipped_sum`."""
        parameters = {name: value for name, value in self._model.named_parameters() if value.requires_grad}
        detached = {name: value.detach() for name, value in parameters.items()}

        def loss(values: dict[str, Tensor], record: Tensor, target: Tensor) -> Tensor:
            output = torch.func.functional_call(self._model, values, (record[None],))
            return criterion(output, target[None]).sum()

        gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(detached, x, targets)
        return clip_and_sum([Rows(gradients[name], value.shape) for name, value in parameters.items()], clip_norm)
