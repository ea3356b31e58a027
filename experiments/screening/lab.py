"""A federation of logistic models in numpy: the default plan's training, sketches and mean, hundreds of times faster than the real run.

Rounds are those of ``client/train.py`` and ``fedsec/robust/rules.py`` in plain arithmetic: Poisson batches, per-record clipping, noise on the sum,
sum form. Sketches have the real distribution of entries (-1, 0, 0, +1) and are whitened and screened by the code that the product runs. Arms of
one seed share data, partition, batches and noise, so that they differ in the attack and the rule only.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from fedsec.data.federated import FederatedData, federated_data
from fedsec.plan.load import load_plan
from fedsec.plan.model import Plan
from fedsec.privacy.calibration import calibrate_noise_multiplier
from fedsec.robust.noise import noise_stddev_of

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One federation.

    Attributes:
        alpha: Dirichlet concentration.
        epsilon: of the whole run.
        num_rows: k of the sketch; 0: the server sees updates.
        per_client: declared batch sizes follow the clients' sizes.
        large_share: share of all training records that the first client takes over from the others; 0: none.
        seed: of data, partition, batches, noise.
    """

    alpha: float = 1.0
    epsilon: float = 8.0
    num_rows: int = 128
    per_client: bool = False
    large_share: float = 0.0
    seed: int = 1
    num_clients: int = 20


@dataclass(kw_only=True)
class Federation:
    """Data and constants of a setting."""

    setting: Setting
    plan: Plan
    xs: list[Array]
    ys: list[npt.NDArray[np.int64]]
    x_test: Array
    y_test: npt.NDArray[np.int64]
    batch_sizes: Array
    sigma: float
    noise_stddev: float
    num_classes: int = 10

    @property
    def dimension(self) -> int:
        return (self.xs[0].shape[1] + 1) * self.num_classes


def build(setting: Setting) -> Federation:
    """The federation that ``fedsec simulate`` would run with these settings."""
    plan = load_plan(None, overrides=(f"data.alpha={setting.alpha}", f"privacy.epsilon={setting.epsilon}", f"federation.num_clients={setting.num_clients}", f"federation.seed={setting.seed}"))
    data = federated_data(plan.data, num_clients=setting.num_clients, seed=setting.seed)
    parts = _parts(data, setting)
    training = plan.training
    if setting.per_client:
        sizes = [max(1, round(training.sample_rate * len(part))) for part in parts]
    else:
        sizes = [max(1, round(training.sample_rate * len(data.dataset.x) / setting.num_clients))] * setting.num_clients
    sigma = calibrate_noise_multiplier(epsilon=setting.epsilon, delta=plan.privacy.delta, sample_rate=training.sample_rate, steps=plan.total_steps)
    flat = data.dataset.x.reshape(len(data.dataset.x), -1).astype(np.float64)
    return Federation(
        setting=setting, plan=plan,
        xs=[flat[part] for part in parts], ys=[data.dataset.y[part] for part in parts],
        x_test=data.dataset.x_test.reshape(len(data.dataset.x_test), -1).astype(np.float64), y_test=data.dataset.y_test,
        batch_sizes=np.array(sizes, dtype=np.float64), sigma=sigma,
        noise_stddev=noise_stddev_of(steps=training.steps, learning_rate=training.learning_rate, momentum=training.momentum, noise_multiplier=sigma, clip_norm=plan.privacy.clip_norm),
    )


def _parts(data: FederatedData, setting: Setting) -> list[npt.NDArray[np.int64]]:
    parts = [part.copy() for part in data.train_parts]
    if setting.large_share > 0:
        rng = np.random.default_rng([setting.seed, 77])
        total = sum(map(len, parts))
        rest = total - len(parts[0])
        keep = (1 - setting.large_share) * total / rest
        moved = []
        for index in range(1, len(parts)):
            shuffled = rng.permutation(parts[index])
            stay = max(4, round(keep * len(shuffled)))
            moved.append(shuffled[stay:])
            parts[index] = shuffled[:stay]
        parts[0] = np.concatenate([parts[0], *moved])
    return parts


def local_update(federation: Federation, client: int, model: Array, rng: np.random.Generator, *, labels: npt.NDArray[np.int64] | None = None, noise: bool = True, noise_only: bool = False) -> Array:
    """One client's update in sum form, float64 [d]."""
    training, clip = federation.plan.training, federation.plan.privacy.clip_norm
    x, y = federation.xs[client], federation.ys[client] if labels is None else labels
    batch_size = federation.batch_sizes[client]
    classes, features = federation.num_classes, x.shape[1]
    weight, bias = model[: classes * features].reshape(classes, features).copy(), model[classes * features :].copy()
    start = model
    squares = (x * x).sum(1) + 1.0
    for _ in range(training.steps):
        chosen = rng.random(len(x)) < training.sample_rate
        gw, gb = np.zeros_like(weight), np.zeros_like(bias)
        if chosen.any() and not noise_only:
            xb = x[chosen]
            logits = xb @ weight.T + bias
            logits -= logits.max(1, keepdims=True)
            p = np.exp(logits)
            p /= p.sum(1, keepdims=True)
            p[np.arange(len(xb)), y[chosen]] -= 1.0
            norms = np.sqrt((p * p).sum(1) * squares[chosen])
            p *= np.minimum(1.0, clip / np.maximum(norms, 1e-12))[:, None]
            gw, gb = p.T @ xb, p.sum(0)
        z = rng.standard_normal(classes * features + classes) * (federation.sigma * clip)
        if noise or noise_only:
            gw = gw + z[: classes * features].reshape(weight.shape)
            gb = gb + z[classes * features :]
        weight -= training.learning_rate * gw / batch_size
        bias -= training.learning_rate * gb / batch_size
    return (np.concatenate([weight.ravel(), bias]) - start) * batch_size


def accuracy(federation: Federation, model: Array) -> float:
    """On the test part."""
    classes = federation.num_classes
    weight, bias = model[: -classes].reshape(classes, -1), model[-classes:]
    return float(((federation.x_test @ weight.T + bias).argmax(1) == federation.y_test).mean())


def sketch_rows(num_rows: int, dimension: int, rng: np.random.Generator) -> npt.NDArray[np.int8]:
    """R of one round: entries -1, 0, 0, +1 with equal chance, as ``secagg.sketch`` draws them."""
    return (rng.integers(0, 2, size=(num_rows, dimension), dtype=np.int8) + rng.integers(0, 2, size=(num_rows, dimension), dtype=np.int8) - 1).astype(np.int8)
