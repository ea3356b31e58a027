"""Gradient canaries: directions that an auditor plants among the gradients of a client's records, and looks for in what is released.

1. A canary is one more record as far as sampling, clipping, summing, noise and the accountant go: all of it is the code that trains
   (:func:`fedsec.privacy.dpsgd.train`). Only its gradient is given instead of computed. Its norm is ten clip norms, so that clipping has work to do.
2. The directions of one client are orthonormal, at most half as many as there are dimensions: canaries do not hide each other.
3. **Quiet directions** where the model's last layer is linear and the loss is cross-entropy: the gradients of a record for that layer add up to
   zero over the classes, so a direction that is the same for all classes is orthogonal to every record's gradient, and moves no prediction. The
   canaries then do not disturb the training, nor the records the audit. A fair choice: epsilon holds against any record.
4. Where more are wanted than there are quiet dimensions, or the last layer is not known, directions are random in the whole space, and the records' gradients are noise, as far as the auditor cannot foretell them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from fedsec.privacy.clipping import Outer, Part, Rows
from fedsec.vectors import FloatArray, Layout

OVER_CLIP = 10.0
"""Norm of a canary in clip norms."""


Quiet = tuple[str, str | None]
"""Names of the last layer's weight [classes, width] and of its bias; None: it has none, or keeps it to itself."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Directions:
    """Orthonormal directions, in a space in which they are written down and looked for.

    Attributes:
        inner: float32 [m, n], orthonormal rows; n is d, or the number of quiet dimensions.
        layout: of the shared parameters, d in all.
        quiet: the layer whose quiet space it is; None: the whole space.
    """

    inner: FloatArray
    layout: Layout
    quiet: Quiet | None

    def __len__(self) -> int:
        return len(self.inner)

    def fold(self, vectors: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        """Coordinates in the inner space: [k, d] to [k, n]. An orthonormal projection: noise that is equal in all coordinates stays so."""
        if self.quiet is None:
            return vectors
        pieces, start = {}, 0
        for name, shape in self.layout.entries:
            pieces[name] = vectors[:, start : start + math.prod(shape)].reshape(len(vectors), *shape)
            start += math.prod(shape)
        weight, bias = self.quiet
        folded = [pieces[weight].sum(axis=1)]
        if bias is not None:
            folded.append(pieces[bias].sum(axis=1, keepdims=True))
        return np.concatenate(folded, axis=1) / math.sqrt(self._classes)

    def expand(self) -> FloatArray:
        """The directions written out: float32 [m, d]."""
        if self.quiet is None:
            return self.inner
        weight, bias = self.quiet
        width, root = dict(self.layout.entries)[weight][1], np.float32(math.sqrt(self._classes))
        arrays = {name: np.zeros((len(self), math.prod(shape)), dtype=np.float32) for name, shape in self.layout.entries}
        arrays[weight] = np.tile(self.inner[:, :width], (1, self._classes)) / root
        if bias is not None:
            arrays[bias] = np.tile(self.inner[:, width:], (1, self._classes)) / root
        return np.concatenate([arrays[name] for name, _ in self.layout.entries], axis=1)

    @property
    def _classes(self) -> int:
        assert self.quiet is not None
        return dict(self.layout.entries)[self.quiet[0]][0]


@dataclass(frozen=True, kw_only=True, eq=False)
class GradientCanaries:
    """The canaries of one client that are in the run; ``dpsgd.train`` takes them.

    Attributes:
        directions: all directions of the client.
        places: int64, of those that are in.
        names: of all trainable parameters, in the order of ``model.parameters()``; all of them are in the directions' layout.
        norm: of each canary's gradient before clipping.
    """

    directions: Directions
    places: npt.NDArray[np.int64]
    names: tuple[str, ...]
    norm: float

    def __len__(self) -> int:
        return len(self.places)

    def parts(self, rows: npt.NDArray[np.int64]) -> list[Part]:
        """As :class:`fedsec.privacy.dpsgd.Canaries`."""
        chosen = torch.from_numpy(self.directions.inner[self.places[rows]] * np.float32(self.norm))
        quiet, shapes = self.directions.quiet, dict(self.directions.layout.entries)
        if quiet is not None:
            return [_quiet_part(name, shapes[name], chosen, quiet) for name in self.names]
        found: dict[str, Part] = {}
        start = 0
        for name, shape in self.directions.layout.entries:
            count = math.prod(shape)
            found[name] = Rows(chosen[:, start : start + count].reshape(len(rows), *shape), torch.Size(shape))
            start += count
        return [found[name] for name in self.names]


def _quiet_part(name: str, shape: tuple[int, ...], chosen: torch.Tensor, quiet: Quiet) -> Part:
    count, (weight, bias) = len(chosen), quiet
    if name == weight:
        return Outer(chosen.new_full((count, shape[0]), shape[0] ** -0.5), chosen[:, : shape[1]])
    if name == bias:
        return Rows(chosen[:, -1:].expand(count, shape[0]) * shape[0] ** -0.5, torch.Size(shape))
    return Rows(chosen.new_zeros(count, *shape), torch.Size(shape))


def quiet_layer(layout: Layout, num_classes: int) -> Quiet | None:
    """The last layer of a built-in model: names of its weight and bias; None if the layout has no such layer."""
    shapes = dict(layout.entries)
    for prefix in ("", "output."):
        shape = shapes.get(f"{prefix}weight")
        if shape is not None and len(shape) == 2 and shape[0] == num_classes:
            bias = f"{prefix}bias"
            return f"{prefix}weight", bias if shapes.get(bias) == (num_classes,) else None
    return None


def lay_out(layout: Layout, *, clients: int, wanted: int, quiet: Quiet | None, generator: np.random.Generator) -> list[Directions]:
    """Directions for every client, equally many: quiet ones if there is room for as many as are wanted, else in the whole space.

    Where the space has room for all clients' together they are orthonormal over all clients; else in each client by itself.

    Args:
        layout: of the shared parameters.
        clients: how many clients.
        wanted: canaries over all clients together; rounded up to equal shares, and cut at half the dimensions a client.
        quiet: the last layer, if it is known to be one.
        generator: draws them; they are public.
    """
    each = max(1, min(-(-wanted // clients), layout.size // 2))
    dimension = layout.size
    if quiet is not None:
        dimension = dict(layout.entries)[quiet[0]][1] + (quiet[1] is not None)
        if each > dimension:
            quiet, dimension = None, layout.size
    if each * clients <= dimension // 2:
        inner = np.split(_orthonormal(each * clients, dimension, generator), clients)
    else:
        inner = [_orthonormal(each, dimension, generator) for _ in range(clients)]
    return [Directions(inner=rows, layout=layout, quiet=quiet) for rows in inner]


def _orthonormal(count: int, dimension: int, generator: np.random.Generator) -> FloatArray:
    drawn = generator.standard_normal((dimension, count)).astype(np.float32)
    q, _ = np.linalg.qr(drawn)
    rows: FloatArray = np.ascontiguousarray(q.T, dtype=np.float32)
    return rows
