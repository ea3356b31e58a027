"""Every attack by name: what it does, what its number means, what its attackers must know, and the function that does it.

1. ``CATALOGUE`` has one entry for each name of the plan's ``[attack]`` section but ``none``.
2. ``craft`` is what the colluders send as updates. Data attacks and backdoors also change records (``poison.py``), malformed ones the message
   (``malformed.py``), protocol ones the steps of secure aggregation (``protocol.py``).
3. Who attacks, and in which rounds, follows from the plan alone.

The pages for people are in docs/attacks.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

import numpy as np

from fedsec.plan.sections import AttackName, AttackSection
from fedsec.sim.attacks import adaptive, bounded, deviations, fang, mimic, relocated, scaling, simple
from fedsec.sim.attacks.knowledge import Attack, send_honestly

_ATTACKERS = 0xA77


class Family(StrEnum):
    """Where an attack takes hold."""

    MODEL = "model"
    """The update itself."""
    DATA = "data"
    """The attackers' records."""
    BACKDOOR = "backdoor"
    """The records, so that a trigger gives a class; and the update, so that it stays."""
    MALFORMED = "malformed"
    """The message in the open: a provable fault."""
    PROTOCOL = "protocol"
    """The steps of secure aggregation."""


@dataclass(frozen=True, kw_only=True)
class AttackInfo:
    """One attack.

    Attributes:
        family: where it takes hold.
        formula: what is sent, in one line; symbols as in docs/attacks.md.
        strength: what its number means; empty: it has none.
        default: that number where the plan gives none; None: it follows from the round, as ``strength`` says, or there is no number.
        paper: first author, year and number; empty: folklore.
        sees_others: omniscient attackers do other things than partial ones.
        craft: the updates that are sent.
    """

    family: Family
    formula: str
    strength: str = ""
    default: float | None = None
    paper: str = ""
    sees_others: bool = False
    craft: Attack = send_honestly

    @property
    def poisons_records(self) -> bool:
        """Whether the colluders train on changed records."""
        return self.family in (Family.DATA, Family.BACKDOOR)


def _model(craft: Attack, formula: str, strength: str, default: float | None, paper: str = "", *, sees_others: bool = True) -> AttackInfo:
    return AttackInfo(
        family=Family.MODEL, formula=formula, strength=strength, default=default, paper=paper, sees_others=sees_others, craft=craft
    )


_MODEL: dict[AttackName, AttackInfo] = {
    "sign-flip": _model(simple.sign_flip, "−c·μ", "c", simple.SIGN_FLIP_FACTOR),
    "fixed-direction": _model(
        simple.fixed_direction, "x = a·unit·u", "a in noise units; negative: alternates by round", simple.FIXED_AMPLITUDE, sees_others=False
    ),
    "gaussian": _model(simple.gaussian, "x ~ N(0, (c·unit)²)", "c", simple.GAUSSIAN_FACTOR, sees_others=False),
    "dilution": _model(
        simple.dilution, "declare c·B, send noise", "c, multiple of the true batch size", simple.DILUTION_FACTOR, sees_others=False
    ),
    "free-rider": _model(
        simple.free_rider, "c·(last step)", "c; 0 sends nothing", simple.FREE_RIDER_FACTOR, "Fraboni 2021, arXiv 2006.11901", sees_others=False
    ),
    "replay": _model(simple.replay, "own update of a rounds ago", "a, age in rounds", simple.REPLAY_AGE, sees_others=False),
    "alie": _model(deviations.alie, "μ + z·σ", "z; default Φ⁻¹((n−f−s)/(n−f)), s = ⌊n/2+1⌋−f", None, "Baruch 2019, arXiv 1902.06156"),
    "ipm": _model(deviations.ipm, "−ε·μ", "ε", deviations.IPM_FACTOR, "Xie 2020, arXiv 1903.03936"),
    "optimised-alie": _model(
        deviations.optimised_alie, "μ + z·σ, best z", "largest z tried", deviations.LARGEST_FACTOR, "Baruch 2019; line search"
    ),
    "optimised-ipm": _model(deviations.optimised_ipm, "−ε·μ, best ε", "largest ε tried", deviations.LARGEST_FACTOR, "Xie 2020; line search"),
    "min-max": _model(
        bounded.min_max,
        "μ + γ·p, max_i‖·−x_i‖ ≤ max_ij‖x_i−x_j‖",
        "1: p = −μ/‖μ‖, 2: −sign μ, 3: −σ; default: the worst",
        None,
        "Shejwalkar 2021, NDSS",
    ),
    "min-sum": _model(
        bounded.min_sum,
        "μ + γ·p, Σ_i‖·−x_i‖² ≤ max_i Σ_j‖x_i−x_j‖²",
        "as of min-max",
        None,
        "Shejwalkar 2021, NDSS",
    ),
    "fang": _model(fang.fang, "beyond min or max of x_i, against sign μ", "b, how far beyond", fang.STRETCH, "Fang 2020, arXiv 1911.11815"),
    "mimic": _model(mimic.mimic, "x_i of the extreme client i", "i, counted from 0; default: extreme", None, "Karimireddy 2022, arXiv 2006.09365"),
    "relocated": _model(
        relocated.relocated, "m + z·ρ·p, p ⟂ 0.9·m + 0.1·μ", "z in honest distances ρ", relocated.LENGTH, "Özfatura 2024, arXiv 2208.09894"
    ),
    "adaptive": _model(
        adaptive.adaptive, "own + c·p, largest accepted c", "share of that c", adaptive.SHARE_OF_LARGEST, "Tramèr 2020, arXiv 2002.08347"
    ),
}  # fmt: skip


def _poisoned(
    family: Family,
    formula: str,
    strength: str,
    default: float | None,
    paper: str = "",
    *,
    craft: Attack = send_honestly,
    sees: bool = False,
) -> AttackInfo:
    return AttackInfo(family=family, formula=formula, strength=strength, default=default, paper=paper, sees_others=sees, craft=craft)


_POISONED: dict[AttackName, AttackInfo] = {
    "label-flip": _poisoned(Family.DATA, "y → L−1−y, or s → t", "share of the records concerned", 1.0, "Tolpegin 2020, arXiv 2007.08432"),
    "backdoor": _poisoned(Family.BACKDOOR, "(x + trigger, t)", "share of the records with the trigger", 0.5, "Gu 2017, arXiv 1708.06733"),
    "model-replacement": _poisoned(
        Family.BACKDOOR, "γ·own, γ = n/(η·f)", "γ", None, "Bagdasaryan 2020, arXiv 1807.00459", craft=scaling.model_replacement
    ),
    "constrain-and-scale": _poisoned(
        Family.BACKDOOR,
        "own at norm c·median‖x_i‖",
        "c",
        scaling.SHARE_OF_NORM,
        "Bagdasaryan 2020, arXiv 1807.00459",
        craft=scaling.constrain_and_scale,
        sees=True,
    ),
    "dba": _poisoned(Family.BACKDOOR, "each colluder a part of the trigger", "share of the records with it", 0.5, "Xie 2020, ICLR"),
}

_MALFORMED: dict[AttackName, str] = {
    "nan-value": "one entry is not a number",
    "infinity": "one entry is infinite",
    "huge-value": "one entry is 3e38",
    "denormal": "all entries are 1e-45",
    "wrong-shape": "an array is flattened and one entry longer",
    "wrong-dtype": "arrays are float64",
    "wrong-names": "an array has another name",
    "duplicate-names": "an array comes twice, the second time times −5",
    "huge-array": "an array's header claims far more than its bytes hold",
    "negative-count": "declared batch size −B",
    "huge-count": "declared batch size 2⁶²",
}
_PROTOCOL: dict[AttackName, str] = {
    "sketch-lie": "uploads V, shows R·x of its honest x",
    "sketch-lie-mod": "uploads x with 2³¹ more in two entries, shows R·that modulo 2³²",
    "wrong-mask": "one of its masks is another",
    "cancelling-pair": "two colluders' lies add up to zero",
    "silence": "uploads V, shows R·x, and says no more",
}

CATALOGUE: Mapping[AttackName, AttackInfo] = MappingProxyType(
    _MODEL
    | _POISONED
    | {name: AttackInfo(family=Family.MALFORMED, formula=formula) for name, formula in _MALFORMED.items()}
    | {
        name: AttackInfo(
            family=Family.PROTOCOL,
            formula=formula,
            strength="c of V = −c·μ",
            default=simple.SIGN_FLIP_FACTOR,
            sees_others=True,
            craft=simple.sign_flip,
        )
        for name, formula in _PROTOCOL.items()
    }
)
"""All attacks by their name in the plan."""


def attackers(num_clients: int, fraction: float, seed: int) -> tuple[int, ...]:
    """Partitions of the colluders, sorted: ``round(fraction * num_clients)`` of them, at least one, drawn by the seed alone.

    Raises:
        ValueError: no clients, or a fraction outside (0, 1).

    >>> attackers(20, 0.2, seed=1) == attackers(20, 0.2, seed=1), len(attackers(20, 0.2, seed=1))
    (True, 4)
    """
    if num_clients < 1 or not 0 < fraction < 1:
        raise ValueError(f"{fraction} of {num_clients} clients is no crew of attackers")
    count = max(1, round(fraction * num_clients))
    drawn = np.random.default_rng([seed, _ATTACKERS]).choice(num_clients, size=count, replace=False)
    return tuple(sorted(int(partition) for partition in drawn))


def is_active(settings: AttackSection, server_round: int) -> bool:
    """Whether the colluders attack in this round: from ``first_round`` on, ``rounds_on`` rounds and then ``rounds_off`` honest ones, over and over.

    >>> [is_active(AttackSection(name="alie", first_round=2, rounds_on=1, rounds_off=2), r) for r in range(1, 6)]
    [False, True, False, False, True]
    """
    if settings.name == "none" or server_round < settings.first_round:
        return False
    return (server_round - settings.first_round) % (settings.rounds_on + settings.rounds_off) < settings.rounds_on
