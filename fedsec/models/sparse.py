"""Refusal of models whose updates are sparse, where sketches of updates are released.

A sketch is a few public linear combinations of an update's entries. Of an update with few entries that are not zero, such as the embedding rows of
the words that a client used, far fewer numbers than parameters tell which entries these are (compressed sensing). So under secure aggregation:

1. No ``nn.Embedding`` or ``nn.EmbeddingBag``, frozen ones excepted: those send zeros whatever the records are.
2. No parameter that torch marks for sparse gradients, which is the same layer by another name.

Noise on every entry hides which are zero, but the rule holds with it as well: what the noise covers is the privacy accounting's business, and
a sparse update's signal stands out of it most.

Source: design note SECAGG, "What the sketch leaks".
"""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from fedsec.errors import ConfigError


def refuse_sparse_layers(model: nn.Module, shared: Collection[str]) -> None:
    """Refuse a model with a trainable embedding among its shared parameters.

    Args:
        model: as it will be trained.
        shared: names of the parameters whose update is sent.

    Raises:
        ConfigError: names the layer.
    """
    for name, module in model.named_modules():
        sparse = isinstance(module, nn.Embedding | nn.EmbeddingBag) or bool(getattr(module, "sparse", False))
        names = {f"{name}.{own}".lstrip("."): parameter for own, parameter in module.named_parameters(recurse=False)}
        if sparse and any(parameter.requires_grad and full in shared for full, parameter in names.items()):
            raise ConfigError(
                f"layer {name or 'model'} is a {type(module).__name__}: its update is zero but for the rows that a client's records use, "
                "and a sketch would show which",
                field="secagg.enabled",
                mend="freeze the layer, make it personal, replace it, or run without secure aggregation",
            )
