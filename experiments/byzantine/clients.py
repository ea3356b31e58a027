"""All clients' local training at once: one stack of multilayer perceptrons, one batched matrix product a layer.

1. The model is the project's own ``mlp`` (tanh between layers) with its own first weights. Gradients are those of the mean cross-entropy of a batch.
2. A batch is drawn with replacement from the client's own records; batches are equally large for all, so all clients count equally.
3. Plain SGD, float32. What a client sends is ``batch_size * (its model - the global one)``: sum form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from fedsec.data.federated import FederatedData
from fedsec.models.factory import build_model
from fedsec.plan.sections import ModelSection

Floats = npt.NDArray[np.float32]
Vector = npt.NDArray[np.float64]


class Clients:
    """Training records of all clients and the shape of their model.

    Args:
        data: who holds what.
        hidden: widths of the hidden layers.
        seed: of the first weights.
    """

    def __init__(self, data: FederatedData, *, hidden: tuple[int, ...], seed: int) -> None:
        dataset = data.dataset
        self.num_classes = dataset.num_classes
        self._x = torch.from_numpy(dataset.x.reshape(len(dataset.x), -1).copy())
        self._y = torch.from_numpy(dataset.y.copy())
        self._x_test = torch.from_numpy(dataset.x_test.reshape(len(dataset.x_test), -1).copy())
        self._y_test = torch.from_numpy(dataset.y_test.copy())
        model = build_model(
            ModelSection(name="mlp", hidden=hidden), input_shape=dataset.input_shape, num_classes=dataset.num_classes, seed=seed
        )
        self._shapes = [tuple(parameter.shape) for parameter in model.parameters()]
        self.first_weights: Vector = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()]).double().numpy()

    @property
    def dimension(self) -> int:
        """Parameters of the model."""
        return len(self.first_weights)

    @property
    def layer_sizes(self) -> list[int]:
        """Entries of each array of the model, in the order in which a vector holds them."""
        return [math.prod(shape) for shape in self._shapes]

    @torch.no_grad()
    def train(
        self,
        weights: Vector,
        records: Sequence[npt.NDArray[np.int64]],
        *,
        steps: int,
        batch_size: int,
        learning_rate: float,
        generator: np.random.Generator,
        flipped: npt.NDArray[np.bool_] | None = None,
    ) -> Floats:
        """Model differences after ``steps`` local steps.

        Args:
            weights: global model, float64 [d].
            records: of each client, indices of its training records.
            steps: local steps.
            batch_size: records a step.
            learning_rate: step size.
            generator: of the batches.
            flipped: bool [clients]: who trains on mirrored labels (y → L-1-y).

        Returns:
            float32 [clients, d].
        """
        count = len(records)
        arrays = self._stacked(weights, count)
        first = [array[:1].clone() for array in arrays]
        drawn = np.stack([generator.choice(own, size=(steps, batch_size)) for own in records], axis=1)
        for step in range(steps):
            rows = torch.from_numpy(drawn[step])
            labels = self._y[rows]
            if flipped is not None and flipped.any():
                who = torch.from_numpy(flipped)
                labels[who] = self.num_classes - 1 - labels[who]
            _sgd_step(arrays, self._x[rows], labels, learning_rate)
        return self._flat([array - start for array, start in zip(arrays, first, strict=True)])

    @torch.no_grad()
    def accuracy(self, weights: Vector) -> float:
        """Share of the test records that a model gets right."""
        arrays = [array[0] for array in self._stacked(weights, 1)]
        layer = self._x_test
        for kernel, bias in zip(arrays[0:-2:2], arrays[1:-2:2], strict=True):
            layer = torch.addmm(bias, layer, kernel).tanh_()
        logits = torch.addmm(arrays[-1], layer, arrays[-2])
        return float((logits.argmax(dim=1) == self._y_test).double().mean())

    def _stacked(self, weights: Vector, count: int) -> list[torch.Tensor]:
        """Kernels [count, in, out] and biases [count, 1, out], in turn."""
        parts = np.split(weights.astype(np.float32), np.cumsum(self.layer_sizes)[:-1])
        arrays = []
        for part, shape in zip(parts, self._shapes, strict=True):
            array = torch.from_numpy(part.copy()).reshape(shape)
            array = array.t().contiguous() if len(shape) == 2 else array.reshape(1, -1)
            arrays.append(array.unsqueeze(0).repeat(count, 1, 1))
        return arrays

    def _flat(self, arrays: Sequence[torch.Tensor]) -> Floats:
        rows = [
            (array.transpose(1, 2) if len(shape) == 2 else array).reshape(len(array), -1)
            for array, shape in zip(arrays, self._shapes, strict=True)
        ]
        flat: Floats = torch.cat(rows, dim=1).numpy()
        return flat


def _sgd_step(arrays: list[torch.Tensor], x: torch.Tensor, labels: torch.Tensor, learning_rate: float) -> None:
    """One step of every client in place; x [clients, batch, in], labels [clients, batch]."""
    kernels, biases = arrays[0::2], arrays[1::2]
    inputs = [x]
    for kernel, bias in zip(kernels[:-1], biases[:-1], strict=True):
        inputs.append(torch.baddbmm(bias, inputs[-1], kernel).tanh_())
    gradient = torch.softmax(torch.baddbmm(biases[-1], inputs[-1], kernels[-1]), dim=2)
    gradient.scatter_add_(2, labels.unsqueeze(2), gradient.new_full((*labels.shape, 1), -1.0))
    gradient /= labels.shape[1]
    for layer in reversed(range(len(kernels))):
        below = torch.bmm(gradient, kernels[layer].transpose(1, 2)) * (1.0 - inputs[layer] ** 2) if layer else gradient
        kernels[layer].baddbmm_(inputs[layer].transpose(1, 2), gradient, alpha=-learning_rate)
        biases[layer].sub_(gradient.sum(dim=1, keepdim=True), alpha=learning_rate)
        gradient = below
