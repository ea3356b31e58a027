"""An instrument of sweeps: DP-SGD with its noise in some parameters alone, to see which layer the noise hurts.

1. It protects nothing. It works in a process of ``fedsec sweep`` only, and nothing but that process can switch it on: no plan, message or setting does.
2. Clipping, sampling and the noise of the chosen parameters are those of the same run with noise everywhere, bit for bit.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import nn

from fedsec.errors import LocalProtocolError
from fedsec.privacy import dpsgd


@contextmanager
def noise_in(model: nn.Module, layers: Collection[str]) -> Iterator[None]:
    """For the duration of the block, training in this process and those forked from it adds noise to these layers only.

    Args:
        model: of the federation, for the order of its parameters; all of them train.
        layers: names of layers that get noise.

    Raises:
        LocalProtocolError: the process is no simulation.
        ValueError: a layer has no parameter.
    """
    if os.environ.get("FEDSEC_SIMULATION") != "1":
        raise LocalProtocolError("noise in one layer alone protects nothing: it is for simulations")
    layer_of = [name.rpartition(".")[0] for name, _ in model.named_parameters()]
    if unknown := sorted(set(layers) - set(layer_of)):
        raise ValueError(f"no layer is called {unknown[0]!r}")
    noised = [layer in layers for layer in layer_of]

    class NoiseInSome(dpsgd.KeyedNoiseOptimizer):
        def add_noise(self) -> None:
            sums = [p.summed_grad if p.summed_grad is not None else torch.zeros_like(p) for p in self.params]
            super().add_noise()
            for parameter, clean, is_noised in zip(self.params, sums, noised, strict=True):
                if not is_noised:
                    parameter.grad = clean.view_as(parameter)

    with mock.patch.object(dpsgd, "KeyedNoiseOptimizer", NoiseInSome):
        yield
