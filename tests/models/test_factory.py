"""Models by name: shapes, names, sizes, and first weights that depend on the seed alone."""

import copy
import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedsec.errors import ConfigError
from fedsec.models.factory import MAX_PARAMETERS, build_model
from fedsec.models.parameters import count_parameters, get_arrays, split_names
from fedsec.plan.sections import ModelSection
from fedsec.vectors import arrays_digest

FAMILIES = {"logistic": (8, 8), "mlp": (64,), "cnn": (28, 28)}


def build(name: str, *, seed: int = 1, shape: tuple[int, ...] | None = None, num_classes: int = 10, **section) -> nn.Module:
    return build_model(ModelSection(name=name, **section), input_shape=shape or FAMILIES[name], num_classes=num_classes, seed=seed)


def arrays_of(model: nn.Module) -> dict[str, np.ndarray]:
    return get_arrays(model, split_names(model, [])[0])


@pytest.mark.parametrize("name", FAMILIES)
def test_model_maps_records_to_logits_in_float32(name):
    model = build(name)
    logits = model(torch.rand(3, *FAMILIES[name]))
    assert logits.shape == (3, 10)
    assert logits.dtype == torch.float32
    assert model.training
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mlp", "8af0a843bd3bbd24"),
        ("cnn", "667fa791df8d593b"),
    ],
)
def test_first_weights_of_seed_1_are_these_bytes_on_every_machine(name, expected):
    assert arrays_digest(arrays_of(build(name, seed=1))).startswith(expected)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_another_seed_gives_other_weights(name):
    assert arrays_digest(arrays_of(build(name, seed=1))) != arrays_digest(arrays_of(build(name, seed=2)))


@pytest.mark.parametrize("name", FAMILIES)
def test_global_generator_is_neither_read_nor_moved(name):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = arrays_digest(arrays_of(build(name)))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    assert arrays_digest(arrays_of(build(name))) == first


def test_default_dtype_of_the_process_does_not_matter():
    torch.set_default_dtype(torch.float64)
    try:
        model = build("cnn")
    finally:
        torch.set_default_dtype(torch.float32)
    assert arrays_digest(arrays_of(model)) == arrays_digest(arrays_of(build("cnn")))


def test_largest_seed_of_a_plan_is_taken():
    assert np.isfinite(arrays_of(build("mlp", seed=2**63 - 1))["output.weight"]).all()


def test_logistic_regression_is_a_plain_linear_layer_at_zero():
    model = build("logistic", num_classes=2)
    assert type(model) is nn.Linear  # per-record gradient engines choose by exact type
    assert [name for name, _ in model.named_parameters()] == ["weight", "bias"]
    assert not any(parameter.any() for parameter in model.parameters())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"])
def test_a_copied_logistic_regression_still_flattens(duplicate):
    records = torch.rand(3, 8, 8)
    model = build("logistic")
    with torch.no_grad():
        model.weight.normal_(generator=torch.Generator().manual_seed(0))
    assert torch.equal(duplicate(model)(records), model(records.flatten(1)))


def test_cnn_has_the_published_26010_parameters():
    model = build("cnn")
    assert count_parameters(model, arrays_of(model)) == 26_010


def test_cnn_reads_the_same_image_from_each_shape():
    model = build("cnn")
    images = torch.rand(2, 784)
    logits = [model(images.reshape(2, *shape)) for shape in ((28, 28), (784,), (1, 28, 28))]
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])


@pytest.mark.parametrize("shape", [(3969,), (27, 28), (3, 28, 28), (28, 28, 1), (1, 784)])
def test_cnn_refuses_what_is_no_28x28_image(shape):
    with pytest.raises(ConfigError, match=r"model\.name: the CNN takes 28x28 images"):
        build("cnn", shape=shape)


@settings(max_examples=25, deadline=None)
@given(
    hidden=st.lists(st.integers(1, 9), max_size=4),
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    num_classes=st.integers(2, 6),
    seed=st.integers(0, 2**63 - 1),
)
def test_mlp_of_any_widths_has_their_parameters_within_glorot_bounds(hidden, shape, num_classes, seed):
    model = build("mlp", shape=tuple(shape), num_classes=num_classes, seed=seed, hidden=tuple(hidden))
    assert model(torch.rand(2, *shape)).shape == (2, num_classes)
    widths = [math.prod(shape), *hidden, num_classes]
    arrays = arrays_of(model)
    assert sum(array.size for array in arrays.values()) == sum((a + 1) * b for a, b in itertools.pairwise(widths))
    for array in arrays.values():
        bound = math.sqrt(6 / sum(array.shape)) if array.ndim == 2 else 0.0
        assert np.abs(array).max() <= bound * (1 + 1e-6)


def test_weights_of_a_layer_are_spread_evenly_over_their_range():
    weight = arrays_of(build("mlp", shape=(784,), hidden=(128,)))["hidden1.weight"].ravel()
    bound = math.sqrt(6 / (784 + 128))
    counts, _ = np.histogram(weight, bins=10, range=(-bound, bound))
    # 100,352 draws: a bin holds 10,035 ± 95; six deviations, so this fails by chance once in 5e7.
    assert np.abs(counts - 10_035).max() < 570


def test_a_model_beyond_all_memory_is_refused_before_memory_is_taken():
    with pytest.raises(ConfigError, match=f"model.hidden: .* limit of {MAX_PARAMETERS:,}"):
        build("mlp", hidden=(1_000_000, 1_000_000))


@pytest.mark.parametrize(
    ("shape", "num_classes", "seed", "message"),
    [
        ((), 2, 0, "input_shape"),
        ((0,), 2, 0, "input_shape"),
        ((4, -1), 2, 0, "input_shape"),
        ((4,), 1, 0, "num_classes"),
        ((4,), 2, -1, "seed"),
    ],
)
def test_impossible_shapes_classes_and_seeds_are_refused(shape, num_classes, seed, message):
    with pytest.raises(ValueError, match=message):
        build_model(ModelSection(), input_shape=shape, num_classes=num_classes, seed=seed)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # Opacus' own; records need no gradient
@pytest.mark.parametrize("name", FAMILIES)
def test_opacus_gives_each_record_its_own_gradient(name):
    from opacus import GradSampleModule

    model = build(name, seed=3)
    records, labels = torch.rand(4, *FAMILIES[name], generator=torch.Generator().manual_seed(0)), torch.tensor([0, 3, 9, 3])
    single = []
    for index in range(4):
        loss = nn.functional.cross_entropy(model(records[index : index + 1]), labels[index : index + 1])
        single.append(torch.autograd.grad(loss, list(model.parameters())))
    wrapped = GradSampleModule(copy.deepcopy(model), loss_reduction="sum")
    nn.functional.cross_entropy(wrapped(records), labels, reduction="sum").backward()
    for position, parameter in enumerate(wrapped.parameters()):
        expected = torch.stack([gradients[position] for gradients in single])
        torch.testing.assert_close(parameter.grad_sample, expected, rtol=1e-4, atol=1e-6)
