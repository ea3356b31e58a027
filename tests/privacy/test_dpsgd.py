"""DP-SGD: the bound, the noise, the batches, and that nothing else draws random numbers. Keys are fixed; statistical tests state their false-alarm rate."""

import copy
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from fedsec.errors import ConfigError
from fedsec.privacy.dpsgd import SgdSettings, train
from fedsec.privacy.modelcheck import OUR_WORD
from fedsec.privacy.streams import RoundStreams

ENGINES = ["opacus", "bookkeeping"]
PLAIN = SgdSettings(steps=1, sample_rate=1.0, batch_size=10, learning_rate=0.5)
PRIVATE = SgdSettings(steps=3, sample_rate=0.5, batch_size=10, learning_rate=0.5, clip_norm=0.7, noise_multiplier=1.3)
SUM_OF_CLIPPED = replace(PRIVATE, steps=1, sample_rate=1.0, batch_size=1, learning_rate=1.0, noise_multiplier=0.0)
"""With these settings a run subtracts exactly the sum of the clipped gradients of all records from the parameters."""


def streams(label="a", noise=None):
    return RoundStreams(
        sampling=RoundStreams.derive(bytes(32), label).sampling,
        noise=RoundStreams.derive(bytes(32), label if noise is None else noise).noise,
    )


def seeded(build):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def logistic(features=12, classes=5):
    return seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(features, classes)))


def mlp():
    return seeded(lambda: nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 5)))


def cnn():
    return seeded(lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 5)))


def records(n=40, shape=(12,), classes=5):
    rng = np.random.default_rng(1)
    return rng.standard_normal((n, *shape), dtype=np.float32), rng.integers(0, classes, n)


def change(model, x, y, config, pair=None):
    """Parameters before minus after, float64 [d]; the model itself stays as it is."""
    trained = copy.deepcopy(model)
    train(trained, x, y, config, streams=pair or streams())
    before, after = (torch.cat([p.detach().flatten().double() for p in m.parameters()]) for m in (model, trained))
    return (before - after).numpy()


MODELS = {"logistic": (logistic, (12,)), "mlp": (mlp, (12,)), "cnn": (cnn, (1, 3, 3))}


class TestBound:
    """The sensitivity, on which every epsilon rests."""

    @pytest.mark.parametrize("engine", ENGINES)
    @pytest.mark.parametrize("name", MODELS)
    @given(
        hostile=st.lists(
            st.one_of(st.sampled_from([math.nan, math.inf, 3e38, 1e20, -1e10, 1e5, 0.0]), st.floats(-1e6, 1e6, width=32)),
            min_size=12,
            max_size=12,
        ),
        label=st.integers(0, 4),
    )
    @settings(max_examples=25, deadline=None)
    def test_one_hostile_record_moves_the_sum_by_at_most_the_clip_norm(self, engine, name, hostile, label):
        build, shape = MODELS[name]
        model, (x, y) = build(), records(8, shape)
        record = np.resize(np.array(hostile, dtype=np.float32), (1, *shape))
        config = replace(SUM_OF_CLIPPED, clipping=engine)
        without = change(model, x, y, config)
        with_it = change(model, np.concatenate([x, record]), np.append(y, label), config)
        assert np.isfinite(with_it).all()
        assert np.linalg.norm(with_it - without) <= 0.7 * (1 + 1e-5)

    @pytest.mark.parametrize("engine", ENGINES)
    @pytest.mark.parametrize("name", MODELS)
    @pytest.mark.parametrize("poison", [math.nan, math.inf])
    def test_a_record_without_a_finite_gradient_adds_exactly_nothing(self, engine, name, poison):
        build, shape = MODELS[name]
        config = replace(SUM_OF_CLIPPED, clipping=engine)
        assert not change(build(), np.full((1, *shape), poison, dtype=np.float32), np.zeros(1, dtype=np.int64), config).any()

    @pytest.mark.parametrize("engine", ENGINES)
    def test_a_large_gradient_is_clipped_to_the_bound_and_not_below(self, engine):
        x, y = records(1)
        moved = change(logistic(), 1e3 * x, y, replace(SUM_OF_CLIPPED, clipping=engine))
        assert np.linalg.norm(moved) == pytest.approx(0.7, rel=1e-5)


class TestNoise:
    @pytest.mark.parametrize(
        ("steps", "momentum", "engine"), [(1, 0.0, "opacus"), (9, 0.0, "opacus"), (9, 0.0, "bookkeeping"), (5, 0.9, "opacus")]
    )
    def test_stddev_of_an_update_without_records_is_as_published(self, steps, momentum, engine):
        """Sum form: sigma * C * lr * sqrt(steps) without momentum. 20,100 values, so 4.9 standard errors are 2.4 %: one false alarm in a million."""
        config = replace(PRIVATE, steps=steps, momentum=momentum, learning_rate=0.2, batch_size=37, clipping=engine)
        empty = np.zeros((0, 200), dtype=np.float32), np.zeros(0, dtype=np.int64)
        update = 37 * change(logistic(200, 100), *empty, config)
        weights = [(1 - momentum**k) / (1 - momentum) for k in range(1, steps + 1)]
        expected = 1.3 * 0.7 * 0.2 * math.sqrt(sum(w * w for w in weights))
        assert update.std() == pytest.approx(expected, rel=4.9 / math.sqrt(2 * len(update)))
        assert abs(update.mean()) < 4.9 * expected / math.sqrt(len(update))

    def test_noise_is_added_once_however_many_chunks_a_batch_has(self):
        x, y = records(40)
        whole = change(logistic(), x, y, replace(PRIVATE, sample_rate=1.0))
        chunks = change(logistic(), x, y, replace(PRIVATE, sample_rate=1.0, physical_batch_size=7))
        np.testing.assert_allclose(chunks, whole, atol=1e-6)

    def test_an_empty_batch_takes_its_step_and_its_noise(self):
        x, y = records(40)
        rare = replace(PRIVATE, sample_rate=1e-12)
        empty = change(logistic(), x[:0], y[:0], rare)
        np.testing.assert_array_equal(change(logistic(), x, y, rare), empty)
        assert empty.all()

    def test_every_trainable_parameter_gets_noise_even_one_that_the_loss_does_not_use(self):
        class Spare(nn.Module):
            def __init__(self):
                super().__init__()
                self.used, self.spare = nn.Linear(12, 5), nn.Linear(12, 5)

            def forward(self, x):
                return self.used(x)

        for engine in ENGINES:
            assert change(seeded(Spare), *records(), replace(PRIVATE, clipping=engine)).all()

    def test_the_difference_of_two_runs_is_their_noise_and_nothing_of_the_generators_of_torch_and_numpy(self):
        x, y = records()
        torch.manual_seed(5)
        np.random.seed(5)  # noqa: NPY002 - the global generator is what must not be used
        state, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        first = change(cnn(), x.reshape(-1, 12)[:, :9].reshape(-1, 1, 3, 3), y, PRIVATE)
        assert torch.equal(state, torch.get_rng_state())
        assert (legacy == np.random.get_state()[1]).all()  # noqa: NPY002
        torch.manual_seed(6)
        np.testing.assert_array_equal(first, change(cnn(), x.reshape(-1, 12)[:, :9].reshape(-1, 1, 3, 3), y, PRIVATE))


class TestBatches:
    """One-hot records: record i moves column i of the weight and no other, so a run shows who was in the batch."""

    X, Y = np.eye(400, dtype=np.float32), np.zeros(400, dtype=np.int64)
    CONFIG = replace(SUM_OF_CLIPPED, sample_rate=0.25)

    def members(self, config, label="a"):
        model = seeded(lambda: nn.Linear(400, 2, bias=False))
        return change(model, self.X, self.Y, config, streams(label)).reshape(2, 400).any(axis=0)

    def test_each_record_joins_with_the_sample_rate(self):
        """50 runs of 400 records: z within 4.9, one false alarm in a million; and no record is left out or always in (p < 1e-3)."""
        hits = np.stack([self.members(self.CONFIG, str(run)) for run in range(50)])
        assert abs(hits.sum() - 5000) < 4.9 * math.sqrt(20_000 * 0.25 * 0.75)
        assert hits.sum(axis=0).min() > 0
        assert hits.sum(axis=0).max() < 35

    def test_batch_sizes_vary_as_poisson_sampling_does(self):
        """Variance of 50 sizes within a factor of 2 of n q (1 - q): one false alarm in 10,000."""
        sizes = np.array([self.members(self.CONFIG, str(run)).sum() for run in range(50)])
        assert 0.5 < sizes.var() / (400 * 0.25 * 0.75) < 2.0

    @pytest.mark.parametrize("engine", [*ENGINES, "none"])
    def test_the_mask_comes_from_the_sampling_stream_alone(self, engine):
        expected = streams().sampling.bernoulli(400, 0.25)
        for physical in (1000, 9):
            config = replace(self.CONFIG, physical_batch_size=physical)
            config = replace(config, clip_norm=None) if engine == "none" else replace(config, clipping=engine)
            np.testing.assert_array_equal(self.members(config), expected)

    @pytest.mark.parametrize("engine", ENGINES)
    def test_each_step_draws_a_new_batch(self, engine):
        config = replace(self.CONFIG, steps=2, clipping=engine)
        masks = streams().sampling.bernoulli(800, 0.25).reshape(2, 400)
        np.testing.assert_array_equal(self.members(config), masks.any(axis=0))
        assert (masks[0] != masks[1]).any()


class TestReproducibility:
    @pytest.mark.parametrize("engine", ENGINES)
    def test_equal_streams_give_equal_bits_and_other_streams_do_not(self, engine):
        config = replace(PRIVATE, clipping=engine)
        x, y = records()
        first = change(mlp(), x, y, config)
        np.testing.assert_array_equal(first, change(mlp(), x, y, config))
        assert (first != change(mlp(), x, y, config, streams("a", noise="b"))).all()
        assert (first != change(mlp(), x, y, config, streams("b", noise="a"))).any()

    @pytest.mark.parametrize("name", MODELS)
    def test_both_engines_give_the_same_model(self, name):
        """Up to rounding, which the release grid may turn into one cell, a millionth of the noise, in each step."""
        build, shape = MODELS[name]
        x, y = records(40, shape)
        config = replace(PRIVATE, steps=5, momentum=0.5)
        first, second = (change(build(), x, y, replace(config, clipping=engine)) for engine in ENGINES)
        assert np.linalg.norm(first - second) < 1e-5 * np.linalg.norm(first)

    @pytest.mark.parametrize("engine", ENGINES)
    def test_physical_batches_change_nothing_but_rounding(self, engine):
        x, y = records()
        config = replace(PRIVATE, clipping=engine)
        whole = change(mlp(), x, y, config)
        for physical in (1, 3, 20, 1000):
            np.testing.assert_allclose(change(mlp(), x, y, replace(config, physical_batch_size=physical)), whole, atol=2e-6)


class TestPlainTraining:
    def test_without_privacy_it_is_sgd_with_momentum_on_the_sum_over_the_declared_batch_size(self):
        x, y = records()
        config = replace(PLAIN, steps=4, sample_rate=0.5, momentum=0.9, batch_size=17)
        model = logistic()
        weight, bias = (p.detach().double().clone() for p in model.parameters())
        velocity, sampling = [torch.zeros_like(weight), torch.zeros_like(bias)], streams().sampling
        for _ in range(4):
            mask = sampling.bernoulli(len(x), 0.5)
            chosen, labels = torch.from_numpy(x[mask]).double(), torch.from_numpy(y[mask])
            residual = torch.softmax(chosen @ weight.T + bias, dim=1) - functional.one_hot(labels, 5)
            gradients = [residual.T @ chosen / 17, residual.sum(dim=0) / 17]
            velocity = [0.9 * v + g for v, g in zip(velocity, gradients, strict=True)]
            weight, bias = weight - 0.5 * velocity[0], bias - 0.5 * velocity[1]
        train(model, x, y, config, streams=streams())
        torch.testing.assert_close(model[1].weight.double(), weight, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(model[1].bias.double(), bias, rtol=1e-5, atol=1e-6)

    def test_a_bound_that_nothing_reaches_gives_the_same_as_no_bound(self):
        x, y = records()
        plain = change(mlp(), x, y, replace(PLAIN, steps=3, sample_rate=0.5))
        bounded = change(mlp(), x, y, replace(PLAIN, steps=3, sample_rate=0.5, clip_norm=1e6))
        np.testing.assert_allclose(bounded, plain, atol=1e-6)

    def test_two_parameters_whose_gradients_are_one_tensor_do_not_get_mixed_up(self):
        class Shift(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.second = nn.Parameter(torch.zeros(12)), nn.Parameter(torch.zeros(12))

            def forward(self, x):
                return x + (self.first + self.second)

        x, y = records(classes=12)
        model = Shift()
        train(model, x, y, replace(PLAIN, physical_batch_size=7), streams=streams())
        expected = (torch.softmax(torch.from_numpy(x), dim=1) - functional.one_hot(torch.from_numpy(y), 12)).sum(dim=0) * -0.5 / 10
        torch.testing.assert_close(model.first.detach(), expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(model.first, model.second)


class TestModel:
    @pytest.mark.parametrize("engine", ENGINES)
    @pytest.mark.parametrize("frozen", ["weight", "bias"])
    def test_frozen_parameters_do_not_change_and_do_not_count_in_the_norm(self, engine, frozen):
        model = logistic()
        getattr(model[1], frozen).requires_grad_(False)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        x, y = records(1)
        train(model, 1e3 * x, y, replace(SUM_OF_CLIPPED, clipping=engine), streams=streams())
        moved = {name: float((p.detach() - before[name]).norm()) for name, p in model.named_parameters()}
        assert moved.pop(f"1.{frozen}") == 0.0
        assert list(moved.values()) == [pytest.approx(0.7, rel=1e-5)]

    @pytest.mark.parametrize("config", [PLAIN, PRIVATE, replace(PRIVATE, clipping="bookkeeping")])
    @pytest.mark.parametrize("fails", [False, True])
    def test_nothing_stays_behind_on_the_model(self, config, fails):
        model = nn.Sequential(cnn(), nn.Identity()).train()
        model[0].eval()
        for layer in model[0]:
            layer.eval()
        x, y = records(40, (1, 3, 3))
        if fails:

            def fail(_module, _inputs, output):
                return 1 / 0 if len(output) > 10 else None

            fail.keeps_records_apart = OUR_WORD  # else the model would be trained record by record
            model[1].register_forward_hook(fail)
            with pytest.raises(ZeroDivisionError):
                train(model, x, y, config, streams=streams())
        else:
            train(model, x, y, config, streams=streams())
        clean = cnn()
        assert [layer.training for layer in model[0].modules()] == [False] * len(list(model[0].modules()))
        assert model.training
        for layer, fresh in zip(model[0].modules(), clean.modules(), strict=True):
            assert set(vars(layer)) == set(vars(fresh))
            assert not layer._forward_hooks
            assert not layer._backward_hooks
        for parameter in model.parameters():
            assert parameter.grad is None
            assert not {"grad_sample", "summed_grad", "_forward_counter", "_current_grad_sample"} & set(vars(parameter))

    @pytest.mark.parametrize("engine", ENGINES)
    def test_training_warns_of_nothing(self, engine):
        with warnings.catch_warnings():
            warnings.resetwarnings()
            warnings.simplefilter("error")
            train(cnn(), *records(40, (1, 3, 3)), replace(PRIVATE, clipping=engine), streams=streams())

    @pytest.mark.parametrize("engine", ENGINES)
    def test_it_works_where_the_caller_has_turned_gradients_off(self, engine):
        with torch.no_grad():
            assert change(mlp(), *records(), replace(PRIVATE, clipping=engine)).all()

    @pytest.mark.parametrize("engine", ENGINES)
    def test_batch_normalisation_is_refused_and_the_model_left_alone(self, engine):
        model = seeded(lambda: nn.Sequential(nn.Linear(12, 6), nn.BatchNorm1d(6), nn.Linear(6, 5)))
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(ConfigError, match="GroupNorm"):
            train(model, *records(), replace(PRIVATE, clipping=engine), streams=streams())
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())

    def test_learning_happens(self):
        """Digits in miniature: five Gaussian clouds, 400 records, noise as at epsilon around 8; a guess is right in a fifth of the cases."""
        rng = np.random.default_rng(0)
        y = rng.integers(0, 5, 400)
        x = (np.eye(5, 12)[y] * 3 + rng.standard_normal((400, 12))).astype(np.float32)
        model = logistic()
        train(
            model,
            x,
            y,
            replace(PRIVATE, steps=30, sample_rate=0.25, batch_size=100, clip_norm=1.0, noise_multiplier=1.0),
            streams=streams(),
        )
        assert (model(torch.from_numpy(x)).argmax(dim=1).numpy() == y).mean() > 0.85


class TestRefusals:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("steps", 0), ("batch_size", 0), ("physical_batch_size", 0), ("sample_rate", 0.0), ("sample_rate", 1.1), ("sample_rate", math.nan),
            ("learning_rate", 0.0), ("learning_rate", math.inf), ("learning_rate", math.nan), ("momentum", 1.0), ("momentum", -0.1), ("clip_norm", 0.0),
            ("clip_norm", -1.0), ("clip_norm", math.inf), ("clip_norm", math.nan), ("clip_norm", None), ("noise_multiplier", -1.0),
            ("noise_multiplier", math.nan), ("noise_multiplier", math.inf), ("clipping", "ghost"),
        ],
    )  # fmt: skip
    def test_an_impossible_setting_is_refused_by_name(self, field, value):
        with pytest.raises(ConfigError, match=field):
            replace(PRIVATE, **{field: value})

    @pytest.mark.parametrize("config", [PLAIN, PRIVATE])
    @pytest.mark.parametrize("label", [-1, -100, 5, 2**40])
    def test_a_label_without_an_output_is_refused_and_not_named(self, config, label):
        x, y = records()
        y[7] = label
        with pytest.raises(ConfigError, match=r"a label is not in 0\.\.4") as caught:
            train(logistic(), x, y, config, streams=streams())
        assert str(label) not in str(caught.value).replace("0..4", "")

    @pytest.mark.parametrize(
        ("x", "y"),
        [
            (np.zeros(4, dtype=np.float32), np.zeros(4, dtype=np.int64)),
            (np.zeros((4, 12), dtype=np.float32), np.zeros(3, dtype=np.int64)),
            (np.zeros((4, 12), dtype=np.float32), np.zeros((4, 1), dtype=np.int64)),
            (np.zeros((4, 12), dtype=np.float64), np.zeros(4, dtype=np.int64)),
            (np.zeros((4, 12), dtype=np.float32), np.zeros(4, dtype=np.int32)),
        ],
    )
    def test_arrays_of_the_wrong_form_are_refused(self, x, y):
        with pytest.raises(ValueError, match=r"expected|are not"):
            train(logistic(), x, y, PLAIN, streams=streams())
