"""Gradient canaries: directions that an auditor plants among the gradients of a client's records, and looks for in what is released.

1. A canary is one more record as far as sampling, clipping, summing, noise and the accountant go: all of it is the code that trains
   (:func:`fedsec.privacy.dpsgd.train`). Only its gradient is given instead of computed. Its norm is ten clip norms, so that clipping has work to do.
2. The directions of one client are orthonormal, at most half as many as there are dimensions: canaries do not hide each other.
3. **Quiet directions** where the model's last layer is linear and the loss is cross-entropy: the gradients of a record for that layer add up to
   zero over the classes, so a direction that is the same for all classes is orthogonal to every record's gradient, and moves no prediction. The
   canaries then do not disturb the training, nor the records the audit. This is the strongest choice, and a fair one: epsilon holds against any.
4. Elsewhere directions are random in the whole space, and the records' gradients are noise to the auditor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from fedsec.privacy.clipping import Part, Rows
from fedsec.vectors import FloatArray, Layout

OVER_CLIP = 10.0
"""Norm of a canary in clip norms."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GradientCanaries:
    """The canaries of one client that are in the run; ``dpsgd.train`` takes them.

    Attributes:
        directions: float32 [n, d] in the order of ``layout``, unit rows.
        layout: of the shared parameters.
        names: of all trainable parameters, in the order of ``model.parameters()``; those that are not in ``layout`` get zeros.
        shapes: of all trainable parameters, by name.
        norm: of each canary's gradient before clipping.
    """

    directions: FloatArray
    layout: Layout
    names: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    norm: float

    def __len__(self) -> int:
        return len(self.directions)

    def parts(self, rows: npt.NDArray[np.int64]) -> list[Part]:
        """As :class:`fedsec.privacy.dpsgd.Canaries`."""
        chosen = torch.from_numpy(self.directions[rows] * np.float32(self.norm))
        found: dict[str, Part] = {}
        start = 0
        for name, shape in self.layout.entries:
            count = math.prod(shape)
            found[name] = Rows(chosen[:, start : start + count].reshape(len(rows), *shape), torch.Size(shape))
            start += count
        return [found.get(name) or self._zeros(name, len(rows)) for name in self.names]

    def _zeros(self, name: str, count: int) -> Part:
        return Rows(torch.zeros(count, *self.shapes[name]), torch.Size(self.shapes[name]))


def most_canaries(layout: Layout, quiet: tuple[str, str | None] | None) -> int:
    """Most canaries of one client: half the dimensions; of quiet ones as many as there are quiet dimensions."""
    if quiet is None:
        return layout.size // 2
    return min(layout.size // 2, _quiet_dimensions(layout, quiet))


def directions_of(layout: Layout, count: int, *, quiet: tuple[str, str | None] | None, generator: np.random.Generator) -> FloatArray:
    """Orthonormal directions, random in the whole space or in the quiet one.

    Args:
        layout: of the shared parameters.
        count: how many, at most :func:`most_canaries`.
        quiet: names of the last layer's weight [classes, width] and of its bias (None: it has none, or keeps it); None: the whole space.
        generator: draws them; they are public.

    Returns:
        float32 [count, d].
    """
    if count > most_canaries(layout, quiet):
        raise ValueError(f"{count} canaries in one client; at most {most_canaries(layout, quiet)} stay apart")
    if quiet is None:
        return _orthonormal(count, layout.size, generator)
    inner = _orthonormal(count, _quiet_dimensions(layout, quiet), generator)
    weight, bias = quiet
    shapes = dict(layout.entries)
    classes, width = shapes[weight]
    arrays = {name: np.zeros((count, math.prod(shape)), dtype=np.float32) for name, shape in layout.entries}
    arrays[weight] = np.tile(inner[:, :width], (1, classes)) / np.float32(math.sqrt(classes))
    if bias is not None:
        arrays[bias] = np.tile(inner[:, width:], (1, classes)) / np.float32(math.sqrt(classes))
    return np.concatenate([arrays[name] for name, _ in layout.entries], axis=1)


def quiet_layer(layout: Layout, num_classes: int, *, candidates: Sequence[str] = ("", "output.")) -> tuple[str, str | None] | None:
    """The last layer of a built-in model: names of its weight and bias; None if the layout has no such layer."""
    shapes = dict(layout.entries)
    for prefix in candidates:
        shape = shapes.get(f"{prefix}weight")
        if shape is not None and len(shape) == 2 and shape[0] == num_classes:
            bias = f"{prefix}bias"
            return f"{prefix}weight", bias if shapes.get(bias) == (num_classes,) else None
    return None


def _quiet_dimensions(layout: Layout, quiet: tuple[str, str | None]) -> int:
    weight, bias = quiet
    return dict(layout.entries)[weight][1] + (bias is not None)


def _orthonormal(count: int, dimension: int, generator: np.random.Generator) -> FloatArray:
    drawn = generator.standard_normal((dimension, count)).astype(np.float32)
    q, _ = np.linalg.qr(drawn)
    rows: FloatArray = np.ascontiguousarray(q.T, dtype=np.float32)
    return rows
