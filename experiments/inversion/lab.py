"""What the server sees of ten clients with one record each, under four ways to protect it, and what attacks make of it.

The updates come from the training code that clients run (``fedsec.privacy.dpsgd.train``): one step on the whole batch. Under DP-SGD the whole
epsilon is spent on that single release: the weakest noise that the claim allows, and far less than in a run of many rounds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedsec.data.base import Dataset
from fedsec.models.factory import Model, build_model
from fedsec.models.parameters import get_arrays
from fedsec.plan.sections import ModelSection
from fedsec.privacy.auditing.first_model import class_rows, likeliest_record
from fedsec.privacy.auditing.inversion import PicturePrior, label_from_bias, match_gradient, record_from_linear
from fedsec.privacy.dpsgd import SgdSettings, train
from fedsec.privacy.streams import RoundStreams, derive_key, simulation_root

ARMS = ("plain", "secure aggregation", "DP-SGD", "both")
CLASSES = 10
_RATE = 1.0

Floats = npt.NDArray[np.float64]
Arrays = dict[str, npt.NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """Victims and public knowledge.

    Attributes:
        pictures: float32 [10, 28, 28], one of each class, each held by a client of its own.
        labels: int64 [10].
        prior: from public pictures.
        class_priors: for each class from its public pictures.
        mean_norm: root mean square of the L2 norms of public pictures.
    """

    pictures: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    prior: PicturePrior
    class_priors: tuple[PicturePrior, ...]
    mean_norm: float

    @classmethod
    def of(cls, dataset: Dataset, seed: int, *, public: int = 5000) -> Scene:
        """Victims from the test part, drawn with the seed; public pictures from the training part."""
        generator = np.random.default_rng([seed, 61])
        chosen = [int(generator.choice(np.flatnonzero(dataset.y_test == label))) for label in range(CLASSES)]
        places = generator.permutation(len(dataset.y))[:public]
        known, of_class = dataset.x[places], dataset.y[places]
        return cls(
            pictures=dataset.x_test[chosen].reshape(CLASSES, 28, 28),
            labels=dataset.y_test[chosen],
            prior=PicturePrior.of(known),
            class_priors=tuple(PicturePrior.of(known[of_class == label]) for label in range(CLASSES)),
            mean_norm=float(np.sqrt((known.reshape(len(known), -1).astype(np.float64) ** 2).sum(axis=1).mean())),
        )


def model_of(name: str, seed: int) -> Model:
    """The first model of a run: logistic regression starts from zeros, the network from the seed."""
    section = ModelSection(name="cnn") if name == "cnn" else ModelSection(name="logistic")
    return build_model(section, input_shape=(784,), num_classes=CLASSES, seed=seed)


def seen_gradients(scene: Scene, name: str, seed: int, *, noise_multiplier: float) -> dict[str, list[Arrays]]:
    """For each arm what the server sees of each victim: its gradient, or the sum over all ten clients."""
    clear = [gradient_of(scene, name, place, seed, noise_multiplier=None) for place in range(CLASSES)]
    noised = [gradient_of(scene, name, place, seed, noise_multiplier=noise_multiplier) for place in range(CLASSES)]
    return {"plain": clear, "secure aggregation": [_sum(clear)] * CLASSES, "DP-SGD": noised, "both": [_sum(noised)] * CLASSES}


def gradient_of(scene: Scene, name: str, place: int, seed: int, *, noise_multiplier: float | None) -> Arrays:
    """One client's update of one step, divided by the learning rate: what anyone who sees the update knows."""
    model = model_of(name, seed)
    before = get_arrays(model, dict(model.named_parameters()))
    settings = SgdSettings(
        steps=1,
        sample_rate=1.0,
        batch_size=1,
        learning_rate=_RATE,
        clip_norm=None if noise_multiplier is None else 1.0,
        noise_multiplier=noise_multiplier or 0.0,
        clipping="bookkeeping",
    )
    key = derive_key(simulation_root(seed), "inversion", name, str(place))
    x, y = scene.pictures[place].reshape(1, 784), scene.labels[place : place + 1]
    train(model, x, y, settings, streams=RoundStreams.derive(key))
    after = get_arrays(model, before)
    return {key: (before[key].astype(np.float64) - after[key]) / _RATE for key in before}


def _sum(gradients: list[Arrays]) -> Arrays:
    return {name: np.sum([gradient[name] for gradient in gradients], axis=0) for name in gradients[0]}


@dataclass(frozen=True, kw_only=True, eq=False)
class Guess:
    """An attack's answer: a picture [28, 28] and a class."""

    picture: Floats
    label: int


def analytic(seen: Arrays) -> Guess:
    """Divide: exact for one record, and without any knowledge of pictures."""
    return Guess(picture=record_from_linear(seen["weight"], seen["bias"]).reshape(28, 28), label=label_from_bias(seen["bias"]))


def of_a_sum(scene: Scene, seen: Arrays, label: int) -> Guess:
    """Class rows of the sum, told that each class has one record in it."""
    picture = class_rows(seen["weight"], seen["bias"], label, scene.prior.mean, total=CLASSES, count=1)
    return Guess(picture=picture.reshape(28, 28), label=label)


def with_prior(scene: Scene, seen: Arrays, *, noise: float, label: int | None = None) -> Guess:
    """The likeliest picture behind a gradient that was clipped to norm 1 and noised; told the class, by what pictures of that class look like."""
    prior = scene.prior if label is None else scene.class_priors[label]
    picture, found = likeliest_record(
        seen["weight"], seen["bias"], prior, noise=noise, clip_norm=1.0, mean_norm=scene.mean_norm, label=label
    )
    return Guess(picture=picture.reshape(28, 28), label=found)


def matching(name: str, seed: int, seen: Arrays, *, steps: int) -> Guess:
    """Cosine matching against the network's gradient; the label from the last layer's bias."""
    model = model_of(name, seed)
    label = label_from_bias(seen["output.bias"])
    arrays = [seen[key] for key, _ in model.named_parameters()]
    return Guess(picture=match_gradient(model, arrays, label, (1, 28, 28), steps=steps, seed=seed)[0], label=label)


def attacks_on(scene: Scene, seen: Arrays, arm: str, place: int, *, noise_multiplier: float) -> Iterator[tuple[str, Guess]]:
    """Every attack on the linear model that makes sense for an arm."""
    yield "division", analytic(seen)
    if arm in ("secure aggregation", "both"):
        yield "class rows", of_a_sum(scene, seen, int(scene.labels[place]))
    if arm == "DP-SGD":
        yield "prior, class known", with_prior(scene, seen, noise=noise_multiplier, label=int(scene.labels[place]))
    if arm in ("DP-SGD", "both"):
        yield "prior", with_prior(scene, seen, noise=noise_multiplier * (np.sqrt(CLASSES) if arm == "both" else 1.0))
