"""How good a model is on labelled records: accuracy, loss, recall per class, confusion.

1. A diverged model is a result, not a crash: a record with a logit that is not finite counts as wrong, stands in no column of the
   confusion matrix, and makes the loss infinite.
2. Recall is ``None`` for a class without an example: 0 would be a claim.
3. The model is left as it was: weights, mode, device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from fedsec.models.device import resolve_device


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Result of :func:`evaluate`.

    Attributes:
        accuracy: share of records whose class has the largest logit, 0..1.
        loss: mean cross-entropy in nats; infinite where a logit was not finite.
        recall: for each class the share of its records that were found, or None where it has none.
        num_examples: records looked at.
        confusion: row = true class, column = predicted class, counts; rows fall short by the records without a prediction.
    """

    accuracy: float
    loss: float
    recall: tuple[float | None, ...]
    num_examples: int
    confusion: tuple[tuple[int, ...], ...] = ()


def evaluate(
    model: nn.Module,
    x: npt.NDArray[np.float32],
    y: npt.NDArray[np.int64],
    *,
    num_classes: int,
    device: str = "cpu",
    batch_size: int = 2048,
) -> Evaluation:
    """Run the model over all records, in evaluation mode and without gradients.

    Args:
        model: maps [n, ...] to logits [n, num_classes].
        x: float32 [n, ...], n at least 1.
        y: int64 [n], 0..num_classes-1.
        num_classes: number of classes.
        device: where to compute (cpu, cuda, cuda:N, auto); the model comes back to where it was.
        batch_size: records in one forward pass; memory only.

    Raises:
        ConfigError: no such device.
        ValueError: no record, lengths that differ, a label out of range, or logits of another shape.
    """
    if len(x) != len(y) or len(y) == 0:
        raise ValueError(f"evaluation needs as many records as labels and at least one, not {len(x)} and {len(y)}")
    if y.min() < 0 or y.max() >= num_classes:
        raise ValueError(f"labels must lie in 0..{num_classes - 1}, not {y.min()}..{y.max()}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    target = resolve_device(device)
    home = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    modes = [(module, module.training) for module in model.modules()]
    total, confusion = 0.0, np.zeros((num_classes, num_classes), dtype=np.int64)
    try:
        model.to(target).eval()
        with torch.no_grad():
            for start in range(0, len(y), batch_size):
                logits = model(torch.tensor(x[start : start + batch_size]).to(target))
                loss, counts = _batch(logits.double().cpu(), torch.tensor(y[start : start + batch_size]), num_classes)
                total += loss
                confusion += counts
    finally:
        model.to(home)
        for module, training in modes:
            module.training = training
    return _summary(total, confusion, np.bincount(y, minlength=num_classes))


def _batch(logits: torch.Tensor, labels: torch.Tensor, num_classes: int) -> tuple[float, npt.NDArray[np.int64]]:
    """Summed cross-entropy (infinite if a logit is not finite) and the confusion counts of one batch."""
    if logits.shape != (len(labels), num_classes):
        raise ValueError(f"logits of shape {list(logits.shape)}, expected [{len(labels)}, {num_classes}]")
    sound = torch.isfinite(logits).all(dim=1)
    loss = functional.cross_entropy(logits[sound], labels[sound], reduction="sum").item() if bool(sound.all()) else math.inf
    cells = (labels[sound] * num_classes + logits[sound].argmax(dim=1)).numpy()
    return loss, np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def _summary(total: float, confusion: npt.NDArray[np.int64], per_class: npt.NDArray[np.int64]) -> Evaluation:
    count = int(per_class.sum())
    hits = confusion.diagonal()
    return Evaluation(
        accuracy=float(hits.sum() / count),
        loss=total / count,
        recall=tuple(float(hit / size) if size else None for hit, size in zip(hits, per_class, strict=True)),
        num_examples=count,
        confusion=tuple(tuple(int(cell) for cell in row) for row in confusion),
    )
