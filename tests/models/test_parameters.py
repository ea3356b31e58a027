"""Shared and personal parameters by name, and arrays that go in whole or not at all."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedsec.errors import ConfigError
from fedsec.models.factory import build_model
from fedsec.models.parameters import count_parameters, get_arrays, set_arrays, split_names
from fedsec.plan.sections import ModelSection
from fedsec.vectors import Layout


def mlp() -> nn.Module:
    return build_model(ModelSection(name="mlp", hidden=(5,)), input_shape=(4,), num_classes=3, seed=1)


ALL = ("hidden1.bias", "hidden1.weight", "output.bias", "output.weight")


@pytest.mark.parametrize(
    ("personal", "expected"),
    [
        ([], ()),
        (["bias"], ("hidden1.bias", "output.bias")),
        (["output.bias"], ("output.bias",)),
        (["output.bias", "bias"], ("hidden1.bias", "output.bias")),
        (["output.weight", "output.bias"], ("output.bias", "output.weight")),
    ],
)
def test_personal_names_match_whole_names_or_last_parts(personal, expected):
    shared, own = split_names(mlp(), personal)
    assert own == expected
    assert sorted(shared + own) == list(ALL)


def test_logistic_regression_splits_into_weight_and_bias():
    model = build_model(ModelSection(), input_shape=(4,), num_classes=2, seed=1)
    assert split_names(model, ["bias"]) == (("weight",), ("bias",))


@pytest.mark.parametrize("name", ["biass", "output", "hidden1", "", "bias.output", ".bias", "ias"])
def test_a_name_that_matches_nothing_is_refused_with_the_known_names(name):
    with pytest.raises(ConfigError, match=r"model\.personal: no trainable parameter .*the model has: hidden1\.bias"):
        split_names(mlp(), [name])


def test_a_split_that_leaves_nothing_to_share_is_refused():
    with pytest.raises(ConfigError, match="nothing to train together"):
        split_names(mlp(), ["bias", "weight"])


def test_parameters_that_the_factory_froze_are_neither_shared_nor_personal():
    model = mlp()
    model.hidden1.requires_grad_(False)
    assert split_names(model, []) == (("output.bias", "output.weight"), ())
    with pytest.raises(ConfigError, match=r"hidden1\.bias"):
        split_names(model, ["hidden1.bias"])


def test_arrays_come_out_as_copies_in_layout_order():
    model = mlp()
    arrays = get_arrays(model, ALL)
    assert tuple(name for name, _ in Layout.of(arrays).entries) == ALL
    arrays["output.bias"][:] = 9
    assert not model.output.bias.any()
    assert count_parameters(model, ALL) == Layout.of(arrays).size == 4 * 5 + 5 + 5 * 3 + 3


@given(seed=st.integers(0, 2**32 - 1))
def test_what_is_set_is_what_is_got(seed):
    model, generator = mlp(), np.random.default_rng(seed)
    arrays = {name: generator.normal(size=array.shape).astype(np.float32) for name, array in get_arrays(model, ALL).items()}
    set_arrays(model, arrays)
    for name, array in get_arrays(model, ALL).items():
        np.testing.assert_array_equal(array, arrays[name])


def test_setting_some_parameters_leaves_the_others():
    model = mlp()
    before = get_arrays(model, ALL)
    value = np.ones(3, dtype=np.float32)
    value.setflags(write=False)
    set_arrays(model, {"output.bias": value})
    after = get_arrays(model, ALL)
    assert after["output.bias"].tolist() == [1, 1, 1]
    for name in set(ALL) - {"output.bias"}:
        np.testing.assert_array_equal(after[name], before[name])
    assert model.output.bias.requires_grad


def with_entry(value: float) -> np.ndarray:
    array = np.zeros((3, 5), dtype=np.float32)
    array[2, 4] = value
    return array


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("output.weight", with_entry(np.nan), "not finite"),
        ("output.weight", with_entry(np.inf), "not finite"),
        ("output.weight", np.zeros((5, 3), np.float32), "shape"),
        ("output.weight", np.zeros(15, np.float32), "shape"),
        ("output.weight", np.zeros((3, 5)), "dtype"),
        ("output.weight", np.zeros((3, 5), np.int64), "dtype"),
        ("output.weight", np.zeros((3, 5), ">f4"), "dtype"),
        ("output.weight", np.zeros((3, 5), object), "dtype"),
        ("output.weight", [[0.0] * 5] * 3, "expected an array"),
        ("weight", np.zeros((3, 5), np.float32), "no parameter"),
        ("output.weight\n" * 1000, np.zeros((3, 5), np.float32), "no parameter"),
    ],
)
def test_an_array_that_does_not_fit_is_refused_and_nothing_is_set(name, array, message):
    model = mlp()
    before = get_arrays(model, ALL)
    with pytest.raises(ValueError, match=message) as caught:
        set_arrays(model, {"hidden1.bias": np.ones(5, np.float32), name: array})
    assert len(str(caught.value)) < 300
    for key, value in get_arrays(model, ALL).items():
        np.testing.assert_array_equal(value, before[key])


def test_unknown_names_and_other_dtypes_are_not_read():
    with pytest.raises(ValueError, match="no parameter 'nope'"):
        get_arrays(mlp(), ["nope"])
    with pytest.raises(ValueError, match=r"weight: dtype torch\.float64"):
        get_arrays(nn.Linear(2, 2, dtype=torch.float64), ["weight"])
