"""The publicly known noise, against what the real trainer adds."""

import math

import numpy as np
import pytest

from client.train import local_update
from fedsec.errors import ConfigError
from fedsec.models.factory import build_model
from fedsec.plan.sections import ModelSection
from fedsec.privacy.dpsgd import SgdSettings
from fedsec.privacy.streams import KeyedStream, RoundStreams
from fedsec.robust.noise import noise_stddev_of


def training(steps, momentum):
    return {"steps": steps, "learning_rate": 1.5, "momentum": momentum, "noise_multiplier": 1.2, "clip_norm": 0.7}


def updates(steps, momentum, batch_size, count):
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=(40, 30)).astype(np.float32), generator.integers(0, 4, size=40)
    settings = SgdSettings(sample_rate=0.3, batch_size=batch_size, **training(steps, momentum))
    rows = []
    for number in range(count):
        model = build_model(ModelSection(name="logistic"), input_shape=(30,), num_classes=4, seed=1)
        streams = RoundStreams(sampling=KeyedStream(bytes(32)), noise=KeyedStream(bytes([number + 1]) * 32))
        update = local_update(model, x, y, settings, shared_names=["weight", "bias"], streams=streams)
        rows.append(np.concatenate([update["weight"].ravel(), update["bias"]]))
    return np.stack(rows).astype(np.float64)


@pytest.mark.parametrize(("steps", "momentum", "batch_size"), [(1, 0.0, 12), (4, 0.0, 12), (4, 0.8, 12), (4, 0.0, 90)])
def test_the_real_trainer_adds_the_known_noise_whatever_the_batch_size(steps, momentum, batch_size):
    count = 60
    rows = updates(steps, momentum, batch_size, count)
    known = noise_stddev_of(**training(steps, momentum))
    squares = ((rows - rows.mean(axis=0)) ** 2).sum() / (count - 1) / rows.shape[1]
    # 60 runs of 124 numbers tell a variance to about 1.7 %; what noise does to later gradients is well below that.
    assert math.sqrt(squares) == pytest.approx(known, rel=0.04)


def test_momentum_adds_up_by_hand():
    known = noise_stddev_of(steps=3, learning_rate=1.0, momentum=0.5, noise_multiplier=1.0, clip_norm=1.0)
    assert known == pytest.approx(math.sqrt(1.75**2 + 1.5**2 + 1.0))


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"momentum": 1.0},
        {"learning_rate": 0.0},
        {"noise_multiplier": 0.0},
        {"clip_norm": 0.0},
        {"noise_multiplier": math.inf},
    ],
)
def test_what_is_no_known_noise_is_refused(wrong):
    with pytest.raises(ConfigError):
        noise_stddev_of(**(training(3, 0.0) | wrong))
