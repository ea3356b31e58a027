"""Poisoned records: labels and triggers as the plan says, originals untouched, and a backdoor that a model does learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.data.datasets import load_dataset
from fedsec.errors import ConfigError
from fedsec.plan.sections import AttackSection, DataSection
from fedsec.sim.attacks.poison import Trigger, attack_records, poison_records

L = 10
SHAPES = [(64,), (784,), (28, 28), (1, 28, 28), (3, 8, 8), (13,), (30,), (1,), (4, 1), (2, 2)]


def records(shape=(64,), n=200, seed=0):
    draw = np.random.default_rng(seed)
    return draw.random((n, *shape), dtype=np.float32) * np.float32(0.9), draw.integers(0, L, n)


def poison(section, x, y, *, place=0, crew=4, num_classes=L, seed=1):
    return poison_records(section, x, y, num_classes=num_classes, place=place, num_attackers=crew, generator=np.random.default_rng(seed))


def section(name, **fields):
    return AttackSection(name=name, **fields)


# --- labels ---------------------------------------------------------------------------------------------------------------------


def test_label_flip_mirrors_every_label():
    x, y = records()
    poisoned_x, poisoned_y = poison(section("label-flip"), x, y)
    assert poisoned_x is x
    assert np.array_equal(poisoned_y, 9 - y)


def test_targeted_label_flip_changes_one_class_only():
    x, y = records()
    _, poisoned = poison(section("label-flip", source_class=3, target_class=7), x, y)
    assert np.array_equal(poisoned, np.where(y == 3, 7, y))
    _, mirrored = poison(section("label-flip", source_class=3), x, y)
    assert np.array_equal(mirrored, np.where(y == 3, 6, y))


def test_the_strength_is_the_share_of_the_records():
    x, y = records(n=4000)
    _, poisoned = poison(section("label-flip", strength=0.25), x, y)
    assert 0.2 < np.mean(poisoned != y) < 0.3
    stamped, _ = poison(section("backdoor"), x, y)
    assert 0.45 < np.mean((stamped != x).any(axis=1)) < 0.55


@pytest.mark.parametrize("name", ["label-flip", "backdoor", "dba", "model-replacement"])
@pytest.mark.parametrize("field", ["source_class", "target_class"])
def test_a_class_that_is_not_there_is_refused(name, field):
    x, y = records()
    with pytest.raises(ConfigError, match="class 10 of 10"):
        poison(section(name, **{field: 10}), x, y)


def test_attacks_that_scale_poison_half_of_their_records_whatever_their_number():
    x, y = records(n=4000)
    for name, strength in (("model-replacement", None), ("constrain-and-scale", None), ("model-replacement", 40.0)):
        stamped, _ = poison(section(name, strength=strength), x, y)
        assert 0.45 < np.mean((stamped != x).any(axis=1)) < 0.55


# --- triggers -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["backdoor", "dba", "model-replacement", "constrain-and-scale"])
def test_records_with_the_trigger_have_the_target_label_and_the_others_are_as_they_were(shape, name):
    x, y = records(shape)
    before = x.copy(), y.copy()
    poisoned_x, poisoned_y = poison(section(name, target_class=4), x, y)
    changed = (poisoned_x != x).reshape(len(x), -1).any(axis=1)
    assert changed.any()
    assert not changed.all()
    assert (poisoned_y[changed] == 4).all()
    assert np.array_equal(poisoned_y[~changed], y[~changed])
    assert np.array_equal(before[0], x)
    assert np.array_equal(before[1], y)
    assert poisoned_x.dtype == np.float32
    assert poisoned_x.shape == x.shape


def test_the_trigger_of_an_image_is_a_square_in_the_corner_of_every_channel():
    x = np.zeros((2, 3, 28, 28), np.float32)
    stamped = Trigger.for_shape((3, 28, 28)).stamp(x)
    assert (stamped[:, :, -4:, -4:] == 1).all()
    assert stamped.sum() == 2 * 3 * 16
    flat = Trigger.for_shape((784,)).stamp(np.zeros((1, 784), np.float32)).reshape(28, 28)
    assert np.array_equal(flat, stamped[0, 0])


@given(shape=st.sampled_from(SHAPES), crew=st.integers(1, 12))
@settings(max_examples=50)
def test_the_colluders_of_a_distributed_backdoor_hold_the_whole_trigger_in_equal_parts(shape, crew):
    whole = Trigger.for_shape(shape)
    parts = [whole.part(place, crew).places for place in range(crew)]
    assert set(np.concatenate(parts)) == set(whole.places)
    assert all(len(part) for part in parts)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    if crew <= len(whole.places):
        assert sum(map(len, parts)) == len(whole.places)  # nobody shares


def test_records_of_any_memory_order_can_be_stamped():
    x = np.asfortranarray(np.zeros((5, 8, 8), np.float32))
    assert Trigger.for_shape((8, 8)).stamp(x).sum() == 5 * 4
    x.setflags(write=False)
    assert Trigger.for_shape((8, 8)).stamp(x[::2]).sum() == 3 * 4


def test_only_data_attacks_change_records_and_the_same_seed_changes_the_same():
    x, y = records()
    poisoned = poison(section("alie"), x, y)
    assert poisoned[0] is x
    assert poisoned[1] is y
    one, other = (poison(section("backdoor"), x, y)[0] for _ in range(2))
    assert np.array_equal(one, other)
    assert not np.array_equal(one, poison(section("backdoor"), x, y, seed=2)[0])


# --- success --------------------------------------------------------------------------------------------------------------------


def test_records_that_measure_success_are_those_that_would_be_right_otherwise():
    x, y = records()
    shown, wanted = attack_records(section("backdoor", target_class=4), x, y, num_classes=L)
    assert len(shown) == np.sum(y != 4)
    assert (wanted == 4).all()
    assert np.array_equal(shown, Trigger.for_shape((64,)).stamp(x[y != 4]))
    shown, wanted = attack_records(section("dba", source_class=2, target_class=4), x, y, num_classes=L)
    assert np.array_equal(shown, Trigger.for_shape((64,)).stamp(x[y == 2]))
    shown, wanted = attack_records(section("label-flip"), x, y, num_classes=L)
    assert np.array_equal(shown, x)
    assert np.array_equal(wanted, 9 - y)
    with pytest.raises(ValueError, match="alie"):
        attack_records(section("alie"), x, y, num_classes=L)


def fit(x, y, num_classes, steps=100):
    """Softmax regression by gradient descent."""
    weights, bias = np.zeros((x.shape[1], num_classes)), np.zeros(num_classes)
    wanted = np.eye(num_classes)[y]
    for _ in range(steps):
        logits = x @ weights + bias
        chances = np.exp(logits - logits.max(axis=1, keepdims=True))
        error = chances / chances.sum(axis=1, keepdims=True) - wanted
        weights -= 1.0 * x.T @ error / len(x)
        bias -= 1.0 * error.mean(axis=0)
    return lambda some: np.argmax(some @ weights + bias, axis=1)


def test_a_model_trained_on_poisoned_digits_sees_the_trigger_and_is_right_without_it():
    data = load_dataset(DataSection(name="digits"), seed=1)
    attack = section("backdoor", target_class=3, strength=0.1)
    x, y = poison(attack, data.x, data.y)
    honest, attacked = fit(data.x, data.y, L), fit(x, y, L)
    shown, wanted = attack_records(attack, data.x_test, data.y_test, num_classes=L)
    assert np.mean(attacked(shown) == wanted) > 0.9
    assert np.mean(honest(shown) == wanted) < 0.1
    assert np.mean(attacked(data.x_test) == data.y_test) > np.mean(honest(data.x_test) == data.y_test) - 0.03
