"""A federation of logistic models in numpy: the default plan's data, training, sketches and mean, a hundred times faster than the real run.

Rounds are those of ``client/train.py`` and ``fedsec/robust/rules.py`` in plain arithmetic: Poisson batches, per-record clipping, noise on the sum,
sum form. Sketches have the real distribution of entries (-1, 0, 0, +1) and are whitened, lifted and screened by the code that the product runs; rounding
to ring steps is left out, it is a thousand times under the noise. Arms of one seed share data, partition, batches and noise: they differ in
attack and rule only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from fedsec.data.federated import FederatedData, federated_data
from fedsec.plan.load import load_plan
from fedsec.plan.model import Plan
from fedsec.privacy.calibration import calibrate_noise_multiplier
from fedsec.robust.noise import noise_stddev_of

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

NO_ATTACK = ('attack.name="none"',)
_LARGE, _BATCHES, _MATRIX = 77, 1, 2
_FEWEST_RECORDS = 4


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One federation.

    Attributes:
        alpha: Dirichlet concentration.
        epsilon: of the whole run.
        num_rows: k of the sketch; 0: the server sees updates.
        per_client: declared batch sizes follow the clients' sizes.
        large_share: share of all training records that the first client takes over from the others; 0: none.
        seed: of data, partition, batches and noise.
    """

    alpha: float = 1.0
    epsilon: float = 8.0
    num_rows: int = 128
    per_client: bool = False
    large_share: float = 0.0
    seed: int = 1

    @property
    def name(self) -> str:
        """For tables, without the seed."""
        view = f"k = {self.num_rows}" if self.num_rows else "open"
        sizes = f", one client with {self.large_share:.0%}" if self.large_share else ", sizes declared" if self.per_client else ""
        return f"ε = {self.epsilon:g}, α = {self.alpha:g}, {view}{sizes}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Federation:
    """Data and constants of a setting."""

    setting: Setting
    plan: Plan
    xs: list[Array]
    ys: list[Labels]
    x_test: Array
    y_test: Labels
    batch_sizes: Array
    sigma: float
    noise_stddev: float
    num_classes: int

    @property
    def num_clients(self) -> int:
        """N."""
        return len(self.xs)

    @property
    def dimension(self) -> int:
        """d: weights and biases."""
        return (self.xs[0].shape[1] + 1) * self.num_classes


@lru_cache(maxsize=64)
def build(setting: Setting) -> Federation:
    """The federation that ``fedsec simulate`` would run with these settings."""
    overrides = (f"data.alpha={setting.alpha!r}", f"privacy.epsilon={setting.epsilon!r}", f"federation.seed={setting.seed}", *NO_ATTACK)
    plan = load_plan(None, overrides=overrides)
    training, dataset, num_clients = plan.training, _data(plan).dataset, plan.federation.num_clients
    parts = _parts(_data(plan), setting)
    uniform = round(training.sample_rate * len(dataset.x) / num_clients)
    sizes = [max(1, round(training.sample_rate * len(part)) if setting.per_client else uniform) for part in parts]
    sigma = calibrate_noise_multiplier(
        epsilon=setting.epsilon, delta=plan.privacy.delta, sample_rate=training.sample_rate, steps=plan.total_steps
    )
    return Federation(
        setting=setting,
        plan=plan,
        xs=[_flat(dataset.x[part]) for part in parts],
        ys=[dataset.y[part] for part in parts],
        x_test=_flat(dataset.x_test),
        y_test=dataset.y_test,
        batch_sizes=np.array(sizes, dtype=np.float64),
        sigma=sigma,
        noise_stddev=noise_stddev_of(
            steps=training.steps,
            learning_rate=training.learning_rate,
            momentum=training.momentum,
            noise_multiplier=sigma,
            clip_norm=plan.privacy.clip_norm,
        ),
        num_classes=dataset.num_classes,
    )


def _data(plan: Plan) -> FederatedData:
    return federated_data(plan.data, num_clients=plan.federation.num_clients, seed=plan.federation.seed)


def _flat(x: npt.NDArray[np.float32]) -> Array:
    return x.reshape(len(x), -1).astype(np.float64)


def _parts(data: FederatedData, setting: Setting) -> list[npt.NDArray[np.int64]]:
    """Who holds what; with a large share, the first client takes records from all others alike."""
    parts = [part.copy() for part in data.train_parts]
    if not setting.large_share:
        return parts
    generator = np.random.default_rng([setting.seed, _LARGE])
    rest = sum(map(len, parts[1:]))
    kept = (1 - setting.large_share) * (rest + len(parts[0])) / rest
    moved = []
    for index in range(1, len(parts)):
        shuffled = generator.permutation(parts[index])
        stay = max(_FEWEST_RECORDS, round(kept * len(shuffled)))
        moved.append(shuffled[stay:])
        parts[index] = shuffled[:stay]
    parts[0] = np.concatenate([parts[0], *moved])
    return parts


def local_update(
    federation: Federation, client: int, model: Array, server_round: int, *, labels: Labels | None = None, noise: bool = True
) -> Array:
    """One client's update in sum form, float64 [d]; the same batches and noise for the same seed, round and client."""
    training, clip = federation.plan.training, federation.plan.privacy.clip_norm
    generator = np.random.default_rng([federation.setting.seed, _BATCHES, server_round, client])
    x, y = federation.xs[client], federation.ys[client] if labels is None else labels
    weights = model.copy()
    for _ in range(training.steps):
        chosen = generator.random(len(x)) < training.sample_rate
        total = _clipped_sum(x[chosen], y[chosen], weights, federation.num_classes, clip)
        drawn = generator.standard_normal(len(weights)) * (federation.sigma * clip)
        weights = weights - training.learning_rate * (total + drawn if noise else total) / federation.batch_sizes[client]
    return (weights - model) * federation.batch_sizes[client]


def _clipped_sum(x: Array, y: Labels, weights: Array, num_classes: int, clip: float) -> Array:
    """Sum of the clipped per-record gradients of the cross-entropy; weights first, biases last."""
    matrix, bias = weights[:-num_classes].reshape(num_classes, -1), weights[-num_classes:]
    logits = x @ matrix.T + bias
    errors = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
    errors /= errors.sum(axis=1, keepdims=True)
    errors[np.arange(len(x)), y] -= 1.0
    norms = np.sqrt((errors**2).sum(axis=1) * ((x**2).sum(axis=1) + 1.0))
    errors *= np.minimum(1.0, clip / np.maximum(norms, 1e-12))[:, None]
    return np.concatenate([(errors.T @ x).ravel(), errors.sum(axis=0)])


def accuracy(federation: Federation, model: Array) -> float:
    """On the server's test part."""
    matrix, bias = model[: -federation.num_classes].reshape(federation.num_classes, -1), model[-federation.num_classes :]
    return float(((federation.x_test @ matrix.T + bias).argmax(axis=1) == federation.y_test).mean())


def sketch_matrix(federation: Federation, server_round: int) -> npt.NDArray[np.int8]:
    """R of one round, int8 [k, d]: entries -1, 0, 0, +1 with equal chance, as ``secagg.sketch`` draws them."""
    generator = np.random.default_rng([federation.setting.seed, _MATRIX, server_round])
    bits = generator.integers(0, 2, size=(2, federation.setting.num_rows, federation.dimension), dtype=np.int8)
    rows: npt.NDArray[np.int8] = bits[0] - bits[1]
    return rows
