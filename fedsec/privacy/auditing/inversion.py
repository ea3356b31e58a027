"""Records from gradients: what a server learns from an update that it sees, if nothing hides it.

1. **Analytic.** Behind a linear first layer with a bias, every row of the weight's gradient is the record times that row of the bias's gradient: one
   division gives the record back. It needs one record per step, or a neuron that one record alone moves.
2. **Matching.** For other models: the picture whose gradient points where the seen one does, found by gradient descent, with a smoothness prior.
3. **Prior.** What public pictures of the same kind look like (mean and principal components) turns even a noisy gradient into the likeliest picture.
   Against noise this is the attack to fear: the first two only amplify it.
4. **Sketches.** k numbers ``R·u`` with R known are k equations for u. A server that may ask for the same u again, with another R, has enough of them
   after d/k rounds. Each round of DP-SGD has noise of its own, so there is no same u.

Sources: analytic, Phong et al. 2017; labels from the last layer's gradient, Zhao et al. 2020 (arXiv 2001.02610); matching with cosine
distance and total variation, Geiping et al. 2020 (arXiv 2003.14053).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

Floats = npt.NDArray[np.float64]


def record_from_linear(weight: npt.NDArray[np.floating], bias: npt.NDArray[np.floating]) -> Floats:
    """The record behind the gradient of a linear layer: rows divided by the bias's entries, in the least-squares sense over all rows.

    Args:
        weight: gradient of the weight, [out, in]; any common factor cancels.
        bias: gradient of the bias, [out].

    Returns:
        float64 [in]; exact if one record made the gradient, zeros if the bias has none.
    """
    strength = float(bias @ bias)
    if strength == 0.0:
        return np.zeros(weight.shape[1])
    record: Floats = (bias @ weight).astype(np.float64) / strength
    return record


def label_from_bias(bias: npt.NDArray[np.floating]) -> int:
    """The class of the record: the only one whose score its gradient pulls up."""
    return int(np.argmin(bias))


@dataclass(frozen=True, kw_only=True, eq=False)
class PicturePrior:
    """What pictures of a kind look like: a Gaussian over their principal components.

    Attributes:
        mean: [n].
        components: [c, n], orthonormal rows.
        variances: [c], of the pictures along the components.
    """

    mean: Floats
    components: Floats
    variances: Floats

    @classmethod
    def of(cls, pictures: npt.NDArray[np.floating], *, components: int = 200) -> Self:
        """From public pictures [m, n]."""
        flat = pictures.reshape(len(pictures), -1).astype(np.float64)
        mean = flat.mean(axis=0)
        _, sizes, rows = np.linalg.svd(flat - mean, full_matrices=False)
        return cls(mean=mean, components=rows[:components], variances=sizes[:components] ** 2 / max(1, len(flat) - 1))

    def likeliest(self, noisy: npt.NDArray[np.floating], *, noise_variance: float) -> Floats:
        """The likeliest picture, given it plus Gaussian noise of this variance per pixel (Wiener filter)."""
        coordinates = self.components @ (noisy.reshape(-1).astype(np.float64) - self.mean)
        shrunk = coordinates * self.variances / (self.variances + noise_variance)
        picture: Floats = self.mean + shrunk @ self.components
        return picture


def match_gradient(
    model: nn.Module,
    seen: Sequence[npt.NDArray[np.floating]],
    label: int,
    shape: tuple[int, ...],
    *,
    steps: int = 400,
    rate: float = 0.1,
    smoothness: float = 0.1,
    seed: int = 0,
) -> Floats:
    """The picture whose gradient points where ``seen`` does.

    Args:
        model: as it was when the gradient was taken; on the CPU. Left as it was.
        seen: one array per trainable parameter, in the order of ``model.parameters()``.
        label: of the record, guessed beforehand.
        shape: of a record, [..., height, width].
        steps: of Adam on the signs of the gradient, its rate lowered three times.
        rate: of the first steps, in pixel values.
        smoothness: weight of the mean absolute difference of neighbouring pixels.
        seed: of the first guess.

    Returns:
        float64 of ``shape``, in 0..1.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    targets = [torch.from_numpy(np.asarray(array, dtype=np.float32)) for array in seen]
    length = torch.stack([target.square().sum() for target in targets]).sum().sqrt().clamp_min(1e-12)
    start = np.random.default_rng(seed).uniform(0.3, 0.7, shape).astype(np.float32)
    guess = torch.from_numpy(start).requires_grad_()
    optimizer = torch.optim.Adam([guess], lr=rate)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [steps * part // 8 for part in (3, 5, 7)], gamma=0.3)
    for _ in range(steps):
        loss = _distance(model, parameters, guess, label, targets, length) + smoothness * _variation(guess)
        (gradient,) = torch.autograd.grad(loss, [guess])
        guess.grad = gradient.sign()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            guess.clamp_(0.0, 1.0)
    found: Floats = guess.detach().numpy().astype(np.float64)
    return found


def _distance(
    model: nn.Module, parameters: list[nn.Parameter], guess: Tensor, label: int, targets: list[Tensor], length: Tensor
) -> Tensor:  # fmt: skip
    """1 minus the cosine between the guess's gradient and the one that was seen."""
    loss = functional.cross_entropy(model(guess[None]), torch.tensor([label]))
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    product = torch.stack([(ours * target).sum() for ours, target in zip(gradients, targets, strict=True)]).sum()
    own = torch.stack([ours.square().sum() for ours in gradients]).sum().sqrt().clamp_min(1e-12)
    return 1.0 - product / (own * length)


def _variation(picture: Tensor) -> Tensor:
    return (picture[..., 1:, :] - picture[..., :-1, :]).abs().mean() + (picture[..., 1:] - picture[..., :-1]).abs().mean()


def update_from_sketches(
    sketches: Sequence[npt.NDArray[np.floating]], matrices: Sequence[npt.NDArray[np.integer]]
) -> Floats:  # fmt: skip
    """The shortest u that fits every ``R·u``: u itself once there are as many equations as numbers in it.

    Args:
        sketches: of each round, [k].
        matrices: R of each round, [k, d].
    """
    rows = np.concatenate([matrix.astype(np.float64) for matrix in matrices])
    values = np.concatenate([np.asarray(sketch, dtype=np.float64) for sketch in sketches])
    solution: Floats = np.linalg.lstsq(rows, values, rcond=None)[0]
    return solution
