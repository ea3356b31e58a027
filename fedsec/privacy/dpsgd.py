"""DP-SGD for one client's round: Poisson batches, per-record clipping through Opacus, noise from a keyed stream.

1. Every step draws its batch anew: each record with probability q, independently, from the secret sampling stream. An empty
   batch takes its step and its noise like any other: skipping it would show that it was empty.
2. A step releases the sum of the clipped gradients plus noise of standard deviation ``noise_multiplier * clip_norm``, once,
   however many chunks the batch was worked through in. The divisor is the *declared* batch size, a public constant, never
   the number of records.
3. Without privacy (``clip_norm=None``) the same code runs without clip and noise, with the same divisor: a record
   weighs the same at every client, and a result without privacy differs from a private one in clipping and noise only.
4. A model that mixes records (batch normalisation), draws random numbers (dropout) or keeps state between batches is refused; so is one
   whose gradients the engine does not attribute to the right record, which is tried out on synthetic records first.
5. torch's global generators are neither used nor changed. Two runs with equal streams are equal bit for bit on one machine.

Source: Abadi et al. 2016, Algorithm 1 (arXiv 1607.00133). Differs: the divisor is declared, not the lot size that was drawn; noise from AES-256.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.nn import functional

from fedsec.errors import ConfigError
from fedsec.privacy.bookkeeping import make_engine
from fedsec.privacy.clipping import Criterion, Engine, FunctionalEngine, Part, PlainEngine, Rows, clip_and_sum
from fedsec.privacy.modelcheck import Probe, cannot_mix, check_attribution, model_errors, probe, trainable_parameters
from fedsec.privacy.streams import KeyedStream, RoundStreams

_OPACUS_HOOK_WARNING = "Full backward hook is firing when gradients are computed with respect to module outputs"


@dataclass(frozen=True, kw_only=True)
class SgdSettings:
    """One round of local training.

    Attributes:
        steps: number of SGD steps, >= 1.
        sample_rate: probability q in (0, 1] of each record to be in a step's batch.
        batch_size: declared, public expected batch size; divides every sum of gradients.
        learning_rate: step size.
        momentum: in [0, 1); starts from zero in every round.
        clip_norm: L2 bound C on one record's gradient; None: no privacy.
        noise_multiplier: standard deviation of the noise on the sum, in units of C.
        physical_batch_size: most records in one forward pass; memory only, no effect on privacy.
        clipping: engine for per-record gradients; the results agree up to float32 rounding.
    """

    steps: int
    sample_rate: float
    batch_size: int
    learning_rate: float
    momentum: float = 0.0
    clip_norm: float | None = None
    noise_multiplier: float = 0.0
    physical_batch_size: int = 512
    clipping: Literal["opacus", "bookkeeping"] = "opacus"

    def __post_init__(self) -> None:
        for field in ("steps", "batch_size", "physical_batch_size"):
            if getattr(self, field) < 1:
                raise ConfigError(f"{getattr(self, field)} is under 1", field=f"training.{field}", mend="give a positive integer")
        _require(0.0 < self.sample_rate <= 1.0, "training.sample_rate", self.sample_rate, "give a number over 0 and at most 1")
        _require(0.0 < self.learning_rate < math.inf, "training.learning_rate", self.learning_rate, "give a positive number")
        _require(0.0 <= self.momentum < 1.0, "training.momentum", self.momentum, "give a number from 0 to just under 1")
        _require(0.0 <= self.noise_multiplier <= 1e9, "privacy.noise_multiplier", self.noise_multiplier, "give a number from 0 to 1e9")
        _require(self.clipping in ("opacus", "bookkeeping"), "privacy.clipping", self.clipping, 'use "opacus" or "bookkeeping"')
        if self.clip_norm is not None:
            _require(1e-9 <= self.clip_norm <= 1e9, "privacy.clip_norm", self.clip_norm, "give a number from 1e-9 to 1e9")
        elif self.noise_multiplier > 0:
            raise ConfigError("noise without a bound on gradients protects nothing", field="privacy.clip_norm", mend="set a clip norm")


def _require(holds: bool, field: str, value: object, mend: str) -> None:
    if not holds:
        raise ConfigError(f"{value!r} is out of range", field=field, mend=mend)


class Canaries(Protocol):
    """Gradients that an audit plants among those of the records: sampled, clipped, summed and noised by the very same code."""

    def __len__(self) -> int:
        """How many there are."""

    def parts(self, rows: npt.NDArray[np.int64]) -> list[Part]:
        """The gradients of some of them: one part per trainable parameter, in the order of ``model.parameters()``."""


class OpacusEngine:
    """Per-record gradients by Opacus' hooks (``torch.func`` layer by layer where Opacus has no rule of its own)."""

    def __init__(self, model: nn.Module) -> None:
        _silence_hook_warning()
        self._parameters: list[Any] = trainable_parameters(model)  # Any: Opacus hangs attributes of its own on parameters
        self._wrapped = GradSampleModule(model, loss_reduction="sum", strict=True)

    def close(self) -> None:
        """Remove Opacus' hooks and everything it keeps on modules and parameters."""
        model = self._wrapped.to_standard_module()
        for layer in model.modules():
            for name in ("activations", "max_batch_len"):
                layer.__dict__.pop(name, None)

    def clipped_sum(self, x: Tensor, targets: Tensor, criterion: Criterion, clip_norm: float) -> tuple[Tensor, list[Tensor]]:
        """As :meth:`fedsec.privacy.clipping.Engine.clipped_sum`."""
        torch.autograd.backward(criterion(self._wrapped(x), targets).sum())
        parts = []
        for parameter in self._parameters:
            rows = parameter.grad_sample
            if rows is None:
                rows = parameter.new_zeros(len(x), *parameter.shape)
            if isinstance(rows, list) or len(rows) != len(x):
                raise ConfigError(
                    "the model folds the records of a batch into another axis, so gradients cannot be told apart record by record",
                    field="model",
                    mend="keep records on the first axis of every layer",
                )
            parts.append(Rows(rows, parameter.shape))
            parameter.grad_sample = parameter.grad = None
        return clip_and_sum(parts, clip_norm)


def _silence_hook_warning() -> None:
    """Silence one warning of torch, once: it says that no input needs a gradient, and records never do."""
    if not any(entry[1] is not None and entry[1].pattern == _OPACUS_HOOK_WARNING for entry in warnings.filters):
        warnings.filterwarnings("ignore", message=_OPACUS_HOOK_WARNING, category=UserWarning)


class KeyedNoiseOptimizer(DPOptimizer):  # type: ignore[misc]  # Opacus is untyped
    """Opacus' optimizer with the noise of a keyed stream and a declared divisor.

    One logical step is any number of :meth:`accumulate` calls, none included, then ``step()`` and ``zero_grad()``: ``step``
    adds noise exactly once. Opacus would need torchcsprng for noise that is cryptographically sound; its ``secure_mode``
    cannot be used, since that package no longer exists.
    """

    def __init__(self, parameters: list[nn.Parameter], settings: SgdSettings, noise: KeyedStream) -> None:
        super().__init__(
            torch.optim.SGD(parameters, lr=settings.learning_rate, momentum=settings.momentum),
            noise_multiplier=settings.noise_multiplier,
            max_grad_norm=settings.clip_norm if settings.clip_norm is not None else math.inf,
            expected_batch_size=settings.batch_size,
        )
        self._noise = noise

    def accumulate(self, sums: list[Tensor]) -> None:
        """Add the clipped sums of one chunk of the batch."""
        for parameter, total in zip(self.params, sums, strict=True):
            # Never in place, here and below: without clipping, autograd may hand out one tensor for two parameters.
            parameter.summed_grad = total if parameter.summed_grad is None else parameter.summed_grad + total

    def pre_step(self, closure: Callable[[], float] | None = None) -> bool:
        """Noise and divide; clipping was the engine's business, and every step is taken."""
        if closure is not None:
            raise TypeError("a private step takes no closure: it would see gradients before the noise")
        self.add_noise()
        self.scale_grad()
        return True

    def add_noise(self) -> None:
        """Set every gradient to its clipped sum (zero for an empty batch) plus noise, on the release grid of the stream."""
        parameters = self.params
        sums = [p.summed_grad if p.summed_grad is not None else torch.zeros_like(p) for p in parameters]
        if self.noise_multiplier > 0:
            flat = torch.cat([total.flatten() for total in sums])
            noisy = self._noise.add_gaussian(flat.cpu().numpy(), self.noise_multiplier * self.max_grad_norm)
            released = torch.from_numpy(noisy.astype(np.float32)).to(flat.device)
            sums = list(torch.split(released, [total.numel() for total in sums]))
        for parameter, total in zip(parameters, sums, strict=True):
            parameter.grad = total.view_as(parameter)
            parameter.summed_grad = None

    def scale_grad(self) -> None:
        """Divide by the declared batch size."""
        for parameter in self.params:
            parameter.grad = parameter.grad / self.expected_batch_size

    def close(self) -> None:
        """Remove from the parameters what Opacus and this class keep there."""
        for parameter in self.params:
            parameter.grad = None
            for name in ("summed_grad", "grad_sample"):
                if hasattr(parameter, name):
                    delattr(parameter, name)


def train(
    model: nn.Module,
    x: npt.NDArray[np.float32],
    y: npt.NDArray[np.int64],
    settings: SgdSettings,
    *,
    streams: RoundStreams,
    device: str | torch.device = "cpu",
    canaries: Canaries | None = None,
) -> None:
    """Train the model's trainable parameters in place with (DP-)SGD on cross-entropy.

    Guarantee (``clip_norm`` and ``noise_multiplier`` set): the parameters after the call are post-processing of ``steps``
    adaptive releases, each the Gaussian mechanism with L2 sensitivity ``clip_norm`` (adding or removing one record) and
    standard deviation ``noise_multiplier * clip_norm`` on a Poisson sample of rate ``sample_rate``: account for it as
    (sample_rate, noise_multiplier, steps) under add/remove. It holds for arbitrary records: one whose gradient is not finite (NaN
    or infinite features, overflow) adds exactly nothing. Sensitivity is exact up to float32 rounding of the sum.
    It holds while the streams' keys are secret and never used for another call; running time and memory are not hidden.

    Args:
        model: maps float32 [B, *shape] to logits [B, K]; parameters float32. Parameters with ``requires_grad=False`` get no gradient
            and do not change. It is moved to ``device`` for the call and back.
        x: float32 [n, *shape]; n may be 0.
        y: int64 [n], classes 0..K-1.
        settings: steps, rates, clipping and noise.
        streams: batches and noise; both are used up by this call.
        device: where to compute; sampling and noise are made on the CPU.
        canaries: of an audit, on the CPU: each counts as one more record, after those of ``x``.

    Raises:
        ConfigError: the model cannot be trained record by record, or its logits do not fit the labels.
        ValueError: x and y are not of the form above.
    """
    _check_data(x, y)
    parameters = trainable_parameters(model)
    origin, modes = parameters[0].device, [(layer, layer.training) for layer in model.modules()]
    try:
        model.to(device)
        model.train()
        with torch.enable_grad():
            synthetic = probe(model, x.shape[1:], private=settings.clip_norm is not None)
            _check_labels(y, num_classes=synthetic.targets.shape[1])
            with _engine(model, settings, synthetic) as engine:
                optimizer = KeyedNoiseOptimizer(parameters, settings, streams.noise)
                _run(engine, optimizer, x, y, settings, streams.sampling, canaries)
    finally:
        for layer, mode in modes:
            layer.training = mode
        model.to(origin)


def _private_engine(model: nn.Module, settings: SgdSettings) -> Engine:
    if not cannot_mix(model):  # code may mix records where the probe does not look; with each record alone in its batch it cannot
        return FunctionalEngine(model)
    return OpacusEngine(model) if settings.clipping == "opacus" else make_engine(model)


@contextmanager
def _engine(model: nn.Module, settings: SgdSettings, synthetic: Probe) -> Iterator[Engine]:
    """The engine that the settings ask for, seen to give each record its gradient; closed at the end."""
    with model_errors():
        if settings.clip_norm is None:
            engine: Engine = PlainEngine(model)
        else:
            engine = _private_engine(model, settings)
    try:
        if settings.clip_norm is not None:
            check_attribution(engine, synthetic)
        yield engine
    finally:
        engine.close()


def _run(
    engine: Engine,
    optimizer: KeyedNoiseOptimizer,
    x: npt.NDArray[np.float32],
    y: npt.NDArray[np.int64],
    settings: SgdSettings,
    sampling: KeyedStream,
    canaries: Canaries | None,
) -> None:
    """The steps themselves."""
    planted = len(canaries) if canaries is not None else 0
    device = optimizer.params[0].device
    clip_norm = settings.clip_norm if settings.clip_norm is not None else math.inf
    try:
        for _ in range(settings.steps):
            drawn = np.flatnonzero(sampling.bernoulli(len(x) + planted, settings.sample_rate))
            batch = drawn[drawn < len(x)]
            if canaries is not None and len(drawn) > len(batch):
                gradients = canaries.parts(drawn[len(batch) :] - len(x))
                optimizer.accumulate(clip_and_sum(gradients, clip_norm)[1])
            for start in range(0, len(batch), settings.physical_batch_size):
                rows = batch[start : start + settings.physical_batch_size]
                records, targets = torch.from_numpy(x[rows]).to(device), torch.from_numpy(y[rows]).to(device)
                optimizer.accumulate(engine.clipped_sum(records, targets, _cross_entropy, clip_norm)[1])
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    finally:
        optimizer.close()


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets, reduction="none")


def _check_data(x: npt.NDArray[np.float32], y: npt.NDArray[np.int64]) -> None:
    if x.ndim < 2 or y.ndim != 1 or len(x) != len(y):
        raise ValueError(f"x of shape {x.shape} and y of shape {y.shape} are not [n, *shape] and [n]")
    if x.dtype != np.float32 or y.dtype != np.int64:
        raise ValueError(f"x is {x.dtype} and y is {y.dtype}, expected float32 and int64")


def _check_labels(labels: npt.NDArray[np.int64], *, num_classes: int) -> None:
    if len(labels) and not (labels.min() >= 0 and labels.max() < num_classes):
        # Neither the label nor how many are wrong is said: errors may travel to the server.
        raise ConfigError(f"a label is not in 0..{num_classes - 1}", field="model", mend="give the model one output for each class")
