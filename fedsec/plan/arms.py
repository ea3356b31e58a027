"""Arms of an ablation over layers: which part of the model trains, and which part gets the noise.

1. *only L* trains one layer; every other one stays at its public first weights. *frozen L* leaves one layer there and trains the rest; afterwards
   each client fits that layer for itself (``model.personal``).
2. Both are plans like any other: their epsilon holds.
3. *noise in L alone* clips as always and adds noise to one layer only. It protects nothing, exists in a sweep's own processes only, and its
   epsilon is infinite in every table: it shows which layer the noise hurts.
4. A model of one layer has nothing to compare.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass

from fedsec.errors import ConfigError
from fedsec.plan.model import Plan

KINDS = ("all", "only", "frozen", "noise")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One arm.

    Attributes:
        kind: "all", "only", "frozen" or "noise".
        layer: which; empty with "all".
        personal: names of the parameters that stay at the clients.
        noise_only: names of the layers that alone get noise; empty: all do.
    """

    kind: str = "all"
    layer: str = ""
    personal: tuple[str, ...] = ()
    noise_only: tuple[str, ...] = ()

    @property
    def code(self) -> str:
        """The arm as one word, for files."""
        return ":".join([self.kind, self.layer, *(self.personal or self.noise_only)]) if self.kind != "all" else "all"

    @classmethod
    def from_code(cls, code: str) -> Arm:
        """Inverse of :attr:`code`.

        Raises:
            ValueError: it is none.

        >>> Arm.from_code("noise:output:output") == Arm(kind="noise", layer="output", noise_only=("output",))
        True
        """
        kind, *parts = code.split(":")
        if kind not in KINDS or (kind == "all") == bool(parts) or len(parts) == 1:
            raise ValueError(f"{code[:80]!r} is no arm")
        if kind == "all":
            return ALL
        return cls(kind=kind, layer=parts[0], **{"noise_only" if kind == "noise" else "personal": tuple(parts[1:])})

    def overrides(self) -> tuple[str, ...]:
        """``section.key=value``: what makes this arm of a plan."""
        if not self.personal:
            return ()
        return (f"model.personal={json.dumps(list(self.personal))}", 'model.personal_fit="after-release"')

    def has_epsilon(self, epsilon: float) -> bool:
        """Whether the arm runs at this epsilon: noise in one layer alone needs noise."""
        return self.kind != "noise" or math.isfinite(epsilon)

    def __str__(self) -> str:
        return {
            "all": "all layers",
            "only": f"only {self.layer} trains",
            "frozen": f"{self.layer} frozen",
            "noise": f"noise in {self.layer} alone",
        }[self.kind]


ALL = Arm()


def layers_of(plan: Plan) -> tuple[str, ...]:
    """Names of the layers with parameters, first to last.

    Raises:
        ConfigError: the model has one layer, or its layers are not known from the plan.
    """
    match plan.model.name:
        case "mlp":
            return (*(f"hidden{index}" for index in range(1, len(plan.model.hidden) + 1)), "output")
        case "cnn":
            return ("conv1", "conv2", "hidden", "output")
        case "logistic":
            raise ConfigError(
                "logistic regression has one layer: there is nothing to compare",
                field="--ablate",
                mend="sweep a model with layers, for example --set model.name=mlp --set model.hidden=[32]",
            )
    raise ConfigError("the layers of your own model are not known to a plan", field="--ablate", mend='use model.name = "mlp" or "cnn"')


def layer_arms(plan: Plan) -> tuple[Arm, ...]:
    """The whole model; each layer alone, each frozen, and noise in each alone. With two layers the first two kinds are the same and stand once.

    Raises:
        ConfigError: the plan has personal parameters of its own, or one layer only.
    """
    layers = layers_of(plan)
    if len(layers) < 2:
        raise ConfigError("the model has one layer: there is nothing to compare", field="--ablate", mend="give it a hidden layer")
    if plan.model.personal:
        raise ConfigError("the plan has personal parameters of its own", field="--ablate", mend="set model.personal to []: the arms choose")
    arms = [ALL, *(Arm(kind="only", layer=layer, personal=_parameters([other for other in layers if other != layer])) for layer in layers)]
    if len(layers) > 2:
        arms += [Arm(kind="frozen", layer=layer, personal=_parameters([layer])) for layer in layers]
    arms += [Arm(kind="noise", layer=layer, noise_only=(layer,)) for layer in layers]
    return tuple(arms)


def _parameters(layers: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{layer}.{part}" for layer in layers for part in ("weight", "bias"))
