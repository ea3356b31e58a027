"""Pictures out of the updates of a plan: what a server makes of a client's first update, or of the sum of all, with and without the plan's noise.

1. Every client of the plan holds one picture and takes one step with it: the worst case of a small client. A real client's step holds a batch, of which
   the same division gives a blend. The updates come from the clients' own training code, with the plan's clip norm and the noise of the plan's epsilon.
2. The attacker knows the plan, the first model and public pictures of the same kind (the training part); the victims are of the test part.
3. Attacks: **division** of the weight's gradient by the bias's, exact for one record; at the first model of logistic regression also **class rows** of a
   sum, and the **likeliest picture** behind clipping and noise (:mod:`fedsec.privacy.auditing.first_model`). "Class known" is told the victim's class, and
   goes by public pictures of that class.
4. The blind guess is the mean public picture, for attacks that are told the class that of the class. An attack that does no better has shown nothing of
   the victim.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedsec.data.federated import federated_data
from fedsec.models.factory import Model, build_model
from fedsec.models.parameters import get_arrays
from fedsec.plan.model import Plan
from fedsec.privacy.auditing.first_model import class_rows, likeliest_record
from fedsec.privacy.auditing.inversion import PicturePrior, label_from_bias, record_from_linear
from fedsec.privacy.auditing.inversion_results import (
    CLASS_MEAN,
    CLASS_ROWS,
    LIKELIEST_OF_CLASS,
    MEAN,
    InversionLine,
    InversionReport,
    Sees,
    spell_picture,
)
from fedsec.privacy.auditing.pictures import psnr, ssim, ssim_window
from fedsec.privacy.dpsgd import SgdSettings, train
from fedsec.privacy.streams import RoundStreams, derive_key, simulation_root
from fedsec.sim.audit.noise import noise_multiplier_of
from fedsec.vectors import FloatArray

SHOWN = 10
"""Victims of a seed: the first clients."""
PUBLIC = 5000
_VICTIMS = 61

Floats = npt.NDArray[np.float64]
Arrays = dict[str, Floats]


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """Who holds which picture, and what everybody knows.

    Attributes:
        plan: with the seed; its epsilon plays no part.
        shape: height and width.
        x: float32 [clients, *record].
        labels: int64 [clients].
        prior: from public pictures.
        class_priors: for each class from its public pictures; where there are fewer than two, from all.
        mean_norm: root mean square of the norms of public pictures.
        classes: of the task.
    """

    plan: Plan
    shape: tuple[int, int]
    x: FloatArray
    labels: npt.NDArray[np.int64]
    prior: PicturePrior
    class_priors: tuple[PicturePrior, ...]
    mean_norm: float
    classes: int

    @classmethod
    def of(cls, plan: Plan, shape: tuple[int, int]) -> Scene:
        """One test picture for each client of the plan, drawn with its seed; another one for each, as far as there are so many."""
        clients, seed = plan.federation.num_clients, plan.federation.seed
        dataset = federated_data(plan.data, num_clients=clients, seed=seed).dataset
        generator = np.random.default_rng([seed, _VICTIMS])
        count = len(dataset.y_test)
        chosen = generator.choice(count, clients, replace=clients > count)
        public = generator.permutation(len(dataset.y))[:PUBLIC]
        known, of_class = dataset.x[public].reshape(-1, math.prod(shape)), dataset.y[public]
        prior = PicturePrior.of(known)
        return cls(
            plan=plan,
            shape=shape,
            x=dataset.x_test[chosen],
            labels=dataset.y_test[chosen],
            prior=prior,
            class_priors=tuple(
                PicturePrior.of(known[of_class == label]) if (of_class == label).sum() > 1 else prior
                for label in range(dataset.num_classes)
            ),
            mean_norm=float(np.sqrt((known.astype(np.float64) ** 2).sum(axis=1).mean())),
            classes=dataset.num_classes,
        )

    @property
    def victims(self) -> range:
        """Places of the clients that are shown."""
        return range(min(SHOWN, len(self.labels)))

    def picture(self, place: int) -> Floats:
        """What a client holds, [height, width]."""
        picture: Floats = self.x[place].reshape(self.shape).astype(np.float64)
        return picture

    def model(self) -> Model:
        """The first model of the run."""
        shape = tuple(int(size) for size in self.x.shape[1:])
        return build_model(self.plan.model, input_shape=shape, num_classes=self.classes, seed=self.plan.federation.seed)


@dataclass(frozen=True, kw_only=True, eq=False)
class Guess:
    """An attack's answer: the picture, flat, and its class; None: not guessed, or told."""

    picture: Floats
    label: int | None


def invert(plans: Sequence[Plan], *, shape: tuple[int, int]) -> InversionReport:
    """All attacks on these plans.

    The caller sets torch to one thread.

    Args:
        plans: one for each epsilon and seed; alike in all else that matters here.
        shape: height and width of a picture.

    Raises:
        DataError: no records.
        ConfigError: a model that cannot be built, or an epsilon that no noise reaches.
    """
    found: dict[tuple[Sees, float, str], list[tuple[Scene, int, Guess]]] = {}
    scenes: dict[int, Scene] = {}
    for plan in sorted(plans, key=lambda one: one.federation.seed):
        epsilon = plan.privacy.epsilon if plan.is_private else math.inf
        scene = scenes.setdefault(plan.federation.seed, Scene.of(plan, shape))
        for sees, attack, place, guess in _guesses(scene, plan, with_blind=epsilon == _first_epsilon(plans)):
            found.setdefault((sees, math.inf if sees == "nothing" else epsilon, attack), []).append((scene, place, guess))
    first = scenes[min(scenes)]
    order = sorted(found, key=lambda key: (("nothing", "update", "sum").index(key[0]), -key[1]))
    return InversionReport(
        height=shape[0],
        width=shape[1],
        clients=len(first.labels),
        classes=first.classes,
        seeds=tuple(sorted(scenes)),
        window=ssim_window(shape),
        originals=tuple(spell_picture(first.picture(place)) for place in first.victims),
        lines=tuple(_line(key, found[key], first) for key in order),
    )


def _first_epsilon(plans: Sequence[Plan]) -> float:
    return plans[0].privacy.epsilon if plans[0].is_private else math.inf


def _guesses(scene: Scene, plan: Plan, *, with_blind: bool) -> Iterator[tuple[Sees, str, int, Guess]]:
    """Every attack on every victim of one plan."""
    sigma = noise_multiplier_of(plan)
    updates = [first_update(scene, place, plan, sigma) for place in range(len(scene.labels))]
    summed = {name: np.sum([update[name] for update in updates], axis=0) for name in updates[0]}
    for place in scene.victims:
        if with_blind:
            yield "nothing", MEAN, place, Guess(picture=scene.prior.mean, label=None)
            yield "nothing", CLASS_MEAN, place, Guess(picture=scene.class_priors[scene.labels[place]].mean, label=None)
        for attack, guess in attacks_on(scene, plan, updates[place], place, sigma=sigma, total=1):
            yield "update", attack, place, guess
        for attack, guess in attacks_on(scene, plan, summed, place, sigma=sigma, total=len(updates)):
            yield "sum", attack, place, guess


def first_update(scene: Scene, place: int, plan: Plan, sigma: float) -> Arrays:
    """One client's gradient of one step at the first model, clipped and noised as the plan says: its update divided by the public learning rate."""
    model = scene.model()
    before = get_arrays(model, dict(model.named_parameters()))
    settings = SgdSettings(
        steps=1,
        sample_rate=1.0,
        batch_size=1,
        learning_rate=1.0,
        clip_norm=plan.privacy.clip_norm if plan.is_private else None,
        noise_multiplier=sigma,
        clipping=plan.privacy.clipping,
    )
    key = derive_key(simulation_root(plan.federation.seed), "inversion", str(place))
    train(model, scene.x[place : place + 1], scene.labels[place : place + 1], settings, streams=RoundStreams.derive(key))
    after = get_arrays(model, before)
    return {name: before[name].astype(np.float64) - after[name] for name in before}


def attacks_on(scene: Scene, plan: Plan, seen: Arrays, place: int, *, sigma: float, total: int) -> Iterator[tuple[str, Guess]]:
    """Every attack that makes sense on what is seen.

    Args:
        scene: what everybody knows.
        plan: the noise and the clip norm.
        seen: a gradient, or the sum of ``total``.
        place: of the victim.
        sigma: noise multiplier.
        total: gradients in it.
    """
    is_flat = plan.model.name == "logistic"
    layer, output = ("", "") if is_flat else ("hidden1.", "output.")
    weight, bias = seen[f"{layer}weight"], seen[f"{layer}bias"]
    yield "division", Guess(picture=record_from_linear(weight, bias), label=label_from_bias(seen[f"{output}bias"]))
    if not is_flat:
        return
    label = int(scene.labels[place])
    if total > 1:
        yield CLASS_ROWS, Guess(picture=class_rows(weight, bias, label, scene.prior.mean, total=total), label=None)
    if plan.is_private:
        noise = sigma * plan.privacy.clip_norm * math.sqrt(total)
        for name, told, prior in (("likeliest", None, scene.prior), (LIKELIEST_OF_CLASS, label, scene.class_priors[label])):
            picture, guessed = likeliest_record(
                weight, bias, prior, noise=noise, clip_norm=plan.privacy.clip_norm, mean_norm=scene.mean_norm, label=told
            )
            yield name, Guess(picture=picture, label=guessed if told is None else None)


def _line(key: tuple[Sees, float, str], answers: Sequence[tuple[Scene, int, Guess]], first: Scene) -> InversionLine:
    sees, epsilon, attack = key
    pairs = [(guess.picture.reshape(scene.shape), scene.picture(place)) for scene, place, guess in answers]
    labels = [guess.label == scene.labels[place] for scene, place, guess in answers if guess.label is not None]
    return InversionLine(
        sees=sees,
        epsilon=epsilon,
        attack=attack,
        psnr=tuple(round(psnr(found, original), 4) for found, original in pairs),
        ssim=tuple(round(ssim(found, original), 4) for found, original in pairs),
        label_right=tuple(map(bool, labels)) if len(labels) == len(answers) else None,
        pictures=tuple(spell_picture(guess.picture.reshape(scene.shape)) for scene, _, guess in answers if scene is first),
    )
