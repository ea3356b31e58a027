"""The attacks of the experiment: those of ``fedsec.sim.attacks`` by name and number, and a few more that were made against this very rule.

Amplitudes are in noise units of the update. "Raise class 0" is the fixed direction that adds to the weights of class 0 what an average image shows,
and takes as much from the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from experiments.screening.lab import Array, Federation, local_update
from fedsec.plan.sections import AttackSection
from fedsec.sim.attacks.catalogue import CATALOGUE, attackers
from fedsec.sim.attacks.knowledge import Knowledge

_SHARE = 0.2
_CREW = 9


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """One round as the colluders see it.

    Attributes:
        federation: with all records.
        crew: places of the colluders.
        updates: float64 [n, d], everybody's honest update, sum form; of a colluder under a data attack: trained on poisoned records.
        model: the round starts from.
        server_round: from 1.
        screen: the server's pipeline, for attackers that run it: updates [n, d] → accepted [n].
    """

    federation: Federation
    crew: tuple[int, ...]
    updates: Array
    model: Array
    server_round: int
    screen: Callable[[Array], np.ndarray] | None = None

    @property
    def others(self) -> list[int]:
        """Places of the honest."""
        return [client for client in range(self.federation.num_clients) if client not in self.crew]

    @property
    def generator(self) -> np.random.Generator:
        """The colluders' randomness of this round."""
        return np.random.default_rng([self.federation.setting.seed, _CREW, self.server_round])


Craft = Callable[[Scene], tuple[Array, Array]]
"""Updates [f, d] in sum form and declared batch sizes [f] of the crew."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One attack.

    Attributes:
        name: in tables.
        craft: what the crew sends; None: nobody attacks.
        crew_size: colluders; None: a fifth of the clients.
        flips_labels: the crew trains on labels L - 1 - y.
        in_main_table: one of the design note's attacks.
    """

    name: str
    craft: Craft | None = None
    crew_size: int | None = None
    flips_labels: bool = False
    in_main_table: bool = field(default=True)

    def crew(self, federation: Federation) -> tuple[int, ...]:
        """Places of the colluders: those that a simulated run draws for this seed; never the client that holds most records."""
        if self.craft is None:
            return ()
        drawn = attackers(federation.num_clients, _SHARE, federation.setting.seed)
        if federation.setting.large_share:
            drawn = tuple(sorted({place or federation.num_clients - 1 for place in drawn}))
        return drawn if self.crew_size is None else drawn[: self.crew_size]


def raise_class_0(federation: Federation) -> Array:
    """Unit vector, float64 [d]."""
    image = np.concatenate(federation.xs).mean(axis=0)
    others = federation.num_classes - 1
    weights = np.outer(np.r_[1.0, np.full(others, -1.0 / others)], np.r_[image, 1.0])
    direction = np.concatenate([weights[:, :-1].ravel(), weights[:, -1]])
    unit: Array = direction / np.linalg.norm(direction)
    return unit


def known(name: str, *, strength: float | None = None, own_noise: bool = False) -> Craft:
    """An attack of the product, by omniscient colluders."""
    settings = AttackSection(name=name, fraction=_SHARE, strength=strength, own_noise=own_noise)  # type: ignore[arg-type]

    def craft(scene: Scene) -> tuple[Array, Array]:
        federation, crew = scene.federation, list(scene.crew)
        own, sizes = scene.updates[crew].astype(np.float32), federation.batch_sizes
        pipeline = scene.screen

        def screen(rows: np.ndarray) -> np.ndarray:
            assert pipeline is not None
            ordered = np.empty_like(rows)
            ordered[scene.others], ordered[crew] = rows[: len(scene.others)], rows[len(scene.others) :]
            accepted = pipeline(ordered.astype(np.float64))
            return np.concatenate([accepted[scene.others], accepted[crew]])

        knowledge = Knowledge(
            known=scene.updates[scene.others].astype(np.float32),
            batch_sizes=sizes[scene.others],
            own=own,
            own_batch_sizes=sizes[crew],
            num_clients=federation.num_clients,
            server_round=scene.server_round,
            noise_stddev=federation.noise_stddev,
            settings=settings,
            generator=scene.generator,
            run_seed=federation.setting.seed,
            direction=raise_class_0(federation),
            screen=screen if name == "adaptive" else None,
        )
        sent = CATALOGUE[settings.name].craft(knowledge)
        return sent.updates.astype(np.float64), sent.batch_sizes.astype(np.float64)

    return craft


def _noise(scene: Scene) -> Array:
    return scene.generator.standard_normal((len(scene.crew), scene.federation.dimension)) * scene.federation.noise_stddev


def _sizes(scene: Scene) -> Array:
    return scene.federation.batch_sizes[list(scene.crew)]


def orthogonal(scene: Scene) -> tuple[Array, Array]:
    """Rows as long as noise is, all orthogonal to each other, that add up to one direction: nothing in one round tells them from noise."""
    federation, count = scene.federation, len(scene.crew)
    push = raise_class_0(federation)
    drawn = scene.generator.standard_normal((count, federation.dimension))
    drawn -= np.outer(drawn @ push, push)
    basis = np.linalg.qr(drawn.T)[0].T
    corners = np.eye(count) - 1.0 / count  # of a simplex: they add up to zero, and their products make up for the shared push
    rows = push / np.sqrt(count) + corners @ basis
    length = np.sqrt(federation.dimension) * federation.noise_stddev
    return rows * length, _sizes(scene)


def alone(scene: Scene) -> tuple[Array, Array]:
    """One vector as long as noise is, along one direction, in every round."""
    federation = scene.federation
    length = np.sqrt(federation.dimension) * federation.noise_stddev
    return np.tile(length * raise_class_0(federation), (len(scene.crew), 1)), _sizes(scene)


def rotating(amplitude: float) -> Craft:
    """A shared push in own noise, in a new direction each round."""

    def craft(scene: Scene) -> tuple[Array, Array]:
        direction = np.random.default_rng([scene.server_round, _CREW]).standard_normal(scene.federation.dimension)
        push = amplitude * scene.federation.noise_stddev * direction / np.linalg.norm(direction)
        return push + _noise(scene), _sizes(scene)

    return craft


def frame(amplitude: float) -> Craft:
    """Push along what an honest victim's records say, so that the victim stands out with the crew; the crew knows its records, not its noise."""

    def craft(scene: Scene) -> tuple[Array, Array]:
        victim = scene.others[0]
        signal = local_update(scene.federation, victim, scene.model, scene.server_round, noise=False)
        push = amplitude * scene.federation.noise_stddev * signal / np.linalg.norm(signal)
        return push + _noise(scene), _sizes(scene)

    return craft


def declaring(factor: float, amplitude: float) -> Craft:
    """Declare a larger batch than one has, which widens what is allowed, and push in own noise."""

    def craft(scene: Scene) -> tuple[Array, Array]:
        push = amplitude * scene.federation.noise_stddev * raise_class_0(scene.federation)
        return push + _noise(scene), np.rint(factor * _sizes(scene))

    return craft


NOBODY = Arm(name="no attack")
LABEL_FLIP = Arm(name="label flip", craft=known("label-flip"), flips_labels=True)
FLIP_5_NOISE = Arm(name="flip x5 + noise", craft=known("sign-flip", strength=5.0, own_noise=True))
FLIP_2_NOISE = Arm(name="flip x2 + noise", craft=known("sign-flip", strength=2.0, own_noise=True))


def fixed(amplitude: float, *, own_noise: bool) -> Arm:
    """Push class 0 with this amplitude; negative: forwards and backwards in turn."""
    words = f"fixed {abs(amplitude):g}{' + noise' if own_noise else ''}{', alternating' if amplitude < 0 else ''}"
    return Arm(name=words, craft=known("fixed-direction", strength=amplitude, own_noise=own_noise))


MAIN = (
    NOBODY,
    Arm(name="flip x5", craft=known("sign-flip", strength=5.0)),
    FLIP_2_NOISE,
    FLIP_5_NOISE,
    Arm(name="ALIE 3", craft=known("alie", strength=3.0)),
    LABEL_FLIP,
    fixed(6.0, own_noise=False),
    fixed(9.0, own_noise=False),
    fixed(15.0, own_noise=False),
    fixed(6.0, own_noise=True),
    fixed(-15.0, own_noise=False),
    fixed(-6.0, own_noise=True),
    Arm(name="dilution x20", craft=known("dilution", strength=20.0)),
)
EXTRA = (
    fixed(10.0, own_noise=True),
    fixed(-10.0, own_noise=True),
    Arm(name="orthogonal noise", craft=orthogonal),
    Arm(name="alone, no noise", craft=alone, crew_size=1),
    Arm(name="rotating 10 + noise", craft=rotating(10.0)),
    Arm(name="declare x3, fixed 10 + noise", craft=declaring(3.0, 10.0)),
    Arm(name="frame 6 + noise", craft=frame(6.0)),
    Arm(name="frame 12 + noise", craft=frame(12.0)),
    Arm(name="mimic", craft=known("mimic")),
    Arm(name="adaptive", craft=known("adaptive")),
)
