"""The local fit of personal parameters: the right optimum, always finite, always the same, and nothing else moves."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedsec.models.evaluation import evaluate
from fedsec.models.factory import build_model
from fedsec.models.parameters import get_arrays, set_arrays
from fedsec.models.personal import DEFAULT_L2, fit_personal
from fedsec.plan.sections import ModelSection


def logistic(num_classes: int = 2, features: int = 3) -> nn.Module:
    return build_model(ModelSection(), input_shape=(features,), num_classes=num_classes, seed=1)


def labels(ones: int, count: int) -> np.ndarray:
    return (np.arange(count) < ones).astype(np.int64)


def best_difference(ones: int, count: int, l2: float) -> float:
    """Root of ones - count * sigmoid(d) = l2 * d / 2, by bisection: the optimum for records without features."""
    low, high = -100.0, 100.0
    for _ in range(200):
        middle = (low + high) / 2
        slope = ones - count / (1 + math.exp(-middle)) - l2 * middle / 2
        low, high = (middle, high) if slope > 0 else (low, middle)
    return low


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 60), share=st.floats(0, 1), l2=st.sampled_from([1e-3, DEFAULT_L2, 1.0, 10.0]))
def test_two_intercepts_reach_the_one_optimum_by_equal_and_opposite_steps(count, share, l2):
    ones = round(share * count)
    bias = fit_personal(logistic(), ["bias"], np.zeros((count, 3), np.float32), labels(ones, count), l2=l2)["bias"]
    assert bias[0] == pytest.approx(-bias[1], abs=1e-5)
    assert bias[1] - bias[0] == pytest.approx(best_difference(ones, count, l2), abs=1e-3)


@pytest.mark.parametrize("ones", [0, 30])
def test_a_client_with_one_class_stays_finite_and_small(ones):
    bias = fit_personal(logistic(), ["bias"], np.zeros((30, 3), np.float32), labels(ones, 30))["bias"]
    assert np.abs(bias).max() < 5
    assert np.argmax(bias) == (1 if ones else 0)


def skewed_site(seed: int = 0) -> tuple[nn.Module, np.ndarray, np.ndarray]:
    """A site where class 1 is far commoner than the shared weights expect."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(200, 3)).astype(np.float32)
    y = (x[:, 0] + 1.5 + generator.normal(size=200) > 0).astype(np.int64)
    model = logistic()
    set_arrays(model, {"weight": np.array([[-1, 0, 0], [1, 0, 0]], np.float32)})
    return model, x, y


def test_fitted_intercept_raises_accuracy_at_a_site_with_another_base_rate():
    model, x, y = skewed_site()
    before = evaluate(model, x, y, num_classes=2)
    set_arrays(model, fit_personal(model, ["bias"], x, y))
    after = evaluate(model, x, y, num_classes=2)
    assert after.accuracy > before.accuracy + 0.05
    assert after.loss < before.loss


def test_fit_repeats_bit_for_bit_and_leaves_model_and_generator_alone():
    model, x, y = skewed_site()
    model.train()
    torch.manual_seed(5)
    generator, arrays = torch.get_rng_state(), get_arrays(model, ["weight", "bias"])
    first, second = (fit_personal(model, ["bias"], x, y)["bias"].tobytes() for _ in range(2))
    assert first == second
    assert torch.equal(generator, torch.get_rng_state())
    for name, array in get_arrays(model, ["weight", "bias"]).items():
        np.testing.assert_array_equal(array, arrays[name])
    assert model.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_more_records_than_one_batch_give_the_same_fit(monkeypatch):
    model, x, y = skewed_site()
    whole = fit_personal(model, ["bias"], x, y)["bias"]
    monkeypatch.setattr("fedsec.models.personal._BATCH", 17)
    np.testing.assert_allclose(fit_personal(model, ["bias"], x, y)["bias"], whole, atol=1e-4)


def test_personal_parameters_that_training_froze_are_fitted_all_the_same():
    model, x, y = skewed_site()
    expected = fit_personal(model, ["bias"], x, y)["bias"]
    model.bias.requires_grad_(False)
    np.testing.assert_array_equal(fit_personal(model, ["bias"], x, y)["bias"], expected)


def test_a_stronger_pull_stays_nearer_to_the_public_constant():
    model, x, y = skewed_site()
    constant = np.array([0.3, -0.2], np.float32)
    set_arrays(model, {"bias": constant})
    distances = [np.abs(fit_personal(model, ["bias"], x, y, l2=l2)["bias"] - constant).max() for l2 in (0.1, 10.0, 1e3, 1e9)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-5


def test_head_of_a_network_with_dropout_is_fitted_without_chance():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 2))
    _, x, y = skewed_site()
    names = ["3.weight", "3.bias"]
    first = fit_personal(model, names, x, y)
    assert list(first) == names
    assert all(np.array_equal(first[name], again) for name, again in fit_personal(model, names, x, y).items())
    before = evaluate(model, x, y, num_classes=2).loss
    set_arrays(model, first)
    assert evaluate(model, x, y, num_classes=2).loss < before


def test_a_client_without_records_keeps_the_constants():
    model = logistic()
    constants = fit_personal(model, ["bias"], np.zeros((0, 3), np.float32), np.zeros(0, np.int64))
    np.testing.assert_array_equal(constants["bias"], [0, 0])


@pytest.mark.parametrize("poison", [np.nan, np.inf, 3e38])
def test_a_broken_model_or_record_leaves_the_constants(poison):
    model, x, y = skewed_site()
    x[7] = poison
    set_arrays(model, {"bias": np.array([0.5, 0.25], np.float32), "weight": np.full((2, 3), 3e38, np.float32)})
    np.testing.assert_array_equal(fit_personal(model, ["bias"], x, y)["bias"], [0.5, 0.25])


def test_a_fit_cut_short_is_never_worse_than_the_constants():
    model, x, y = skewed_site()
    before = evaluate(model, x, y, num_classes=2).loss
    set_arrays(model, fit_personal(model, ["bias"], x, y, max_iterations=1))
    assert evaluate(model, x, y, num_classes=2).loss <= before


@pytest.mark.parametrize(
    ("names", "y", "settings", "message"),
    [
        (["nope"], labels(1, 4), {}, "no parameter"),
        ([], labels(1, 4), {}, "0 names"),
        (["bias"], labels(1, 5), {}, "4 records, 5 labels"),
        (["bias"], np.array([0, 1, 2, 0]), {}, "label 2 is no class of 2"),
        (["bias"], np.array([0, 1, -100, 0]), {}, "label -100 is no class"),
        (["bias"], labels(1, 4), {"l2": 0.0}, "l2"),
        (["bias"], labels(1, 4), {"l2": math.nan}, "l2"),
        (["bias"], labels(1, 4), {"max_iterations": 0}, "max_iterations"),
    ],
)
def test_misuse_is_refused(names, y, settings, message):
    with pytest.raises(ValueError, match=message):
        fit_personal(logistic(), names, np.zeros((4, 3), np.float32), y, **settings)
