"""A client's hostile update is refused, named, and never reaches the mean."""

import numpy as np
import pytest

from fedsec.errors import PeerError
from fedsec.robust.rules import capped_weights, mean_update
from fedsec.robust.validation import MAX_BATCH_SIZE, validate_update
from fedsec.vectors import Layout

LAYOUT = Layout((("b", (2,)), ("w", (2, 2))))
GOOD = {"b": np.ones(2, np.float32), "w": np.full((2, 2), 2, np.float32)}


def with_entry(value):
    arrays = {name: array.copy() for name, array in GOOD.items()}
    arrays["w"][1, 1] = value
    return arrays


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, -3e38, 1.1e7])
def test_an_entry_that_is_not_a_believable_number_is_refused(value):
    with pytest.raises(PeerError, match="mallory"):
        validate_update("mallory", with_entry(value), 10, layout=LAYOUT)


@pytest.mark.parametrize("value", [1e-45, -0.0, 9.9e6])
def test_denormals_zeros_and_large_but_believable_entries_pass(value):
    assert validate_update("c", with_entry(value), 10, layout=LAYOUT).vector[-1] == np.float32(value)


@pytest.mark.parametrize("batch_size", [0, -5, True, 1.5, "10", None, MAX_BATCH_SIZE + 1, 2**80])
def test_a_declared_batch_size_that_is_no_count_is_refused(batch_size):
    with pytest.raises(PeerError, match="batch size"):
        validate_update("c", GOOD, batch_size, layout=LAYOUT)


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"b": GOOD["b"]},
        {**GOOD, "extra": GOOD["b"]},
        {"b": GOOD["b"], "W": GOOD["w"]},
        {"b": GOOD["b"].astype(np.float16), "w": GOOD["w"]},
        {"b": GOOD["b"], "w": GOOD["w"].reshape(4)},
        {"b": np.array(["x", "y"]), "w": GOOD["w"]},
    ],
)
def test_wrong_names_shapes_and_types_are_refused(arrays):
    with pytest.raises(PeerError, match="wrong arrays"):
        validate_update("c", arrays, 10, layout=LAYOUT)


def test_the_input_is_not_changed():
    arrays = {name: array.copy() for name, array in GOOD.items()}
    validate_update("c", arrays, 10, layout=LAYOUT)
    assert all(np.array_equal(arrays[name], GOOD[name]) for name in GOOD)


def updates(*pairs):
    return [
        validate_update(f"c{i}", {"b": np.full(2, value, np.float32), "w": np.full((2, 2), value, np.float32)}, size, layout=LAYOUT)
        for i, (value, size) in enumerate(pairs)
    ]


def test_the_mean_divides_by_declared_sizes_and_not_by_heads():
    mean = mean_update(updates((10.0, 10), (60.0, 20)), weight_cap=3.0)
    assert np.allclose(mean, 70.0 / 30.0)


def test_the_mean_does_not_depend_on_the_order_of_arrival():
    rng = np.random.default_rng(1)
    some = updates(*[(float(v), 5) for v in rng.normal(size=9) * 1e3])
    assert np.array_equal(mean_update(some, weight_cap=3.0), mean_update(some[::-1], weight_cap=3.0))


def test_declaring_an_enormous_batch_cannot_dilute_the_others():
    assert capped_weights([10, 10, 10, 10**6], weight_cap=3.0) == (10, 10, 10, 30)
    honest = mean_update(updates((10.0, 10), (10.0, 10), (10.0, 10)), weight_cap=3.0)
    diluted = mean_update(updates((10.0, 10), (10.0, 10), (10.0, 10), (0.0, 10**6)), weight_cap=3.0)
    assert np.all(diluted >= honest / 2)


@pytest.mark.parametrize(("sizes", "cap"), [([], 3.0), ([1], 0.5)])
def test_misuse_of_the_weights_is_an_error(sizes, cap):
    with pytest.raises(ValueError):
        capped_weights(sizes, weight_cap=cap)
