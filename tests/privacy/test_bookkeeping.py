"""Book-keeping against stock Opacus, layer by layer, and against records made to fool it."""

import copy
import itertools
import warnings

import pytest
import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import nn
from torch.nn import functional

from fedsec.errors import ConfigError
from fedsec.privacy.bookkeeping import BookKeepingEngine, is_supported, make_engine, trainable_layers
from fedsec.privacy.clipping import FunctionalEngine

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")


def cross_entropy(outputs, targets):
    return functional.cross_entropy(outputs, targets, reduction="none")


def seeded(build, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


class Mean(nn.Module):
    """Mean over the positions of a sequence, [B, T, d] to [B, d]."""

    def forward(self, x):
        return x.mean(dim=1)


class UsedTwice(nn.Module):
    """One layer applied twice in a row."""

    def __init__(self):
        super().__init__()
        self.square, self.head = nn.Linear(12, 12), nn.Linear(12, 5)

    def forward(self, x):
        return self.head(torch.tanh(self.square(torch.tanh(self.square(x)))))


class Tied(nn.Module):
    """Two layers that share one weight and have a bias each."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 5)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


class Scale(nn.Module):
    """A layer that no table knows: one scalar and one vector of its own."""

    def __init__(self):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.tensor(1.5)), nn.Parameter(torch.zeros(12))

    def forward(self, x):
        return x * self.scale + self.shift


def logistic():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 5))


def mlp():
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 8, bias=False), nn.ReLU(), nn.Linear(8, 5))


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2, padding=2), nn.GroupNorm(4, 8), nn.ReLU(), nn.Conv2d(8, 6, 3, bias=False), nn.GroupNorm(2, 6, affine=False),
        nn.ReLU(), nn.MaxPool2d(2, 1), nn.Flatten(), nn.Linear(6 * 4 * 4, 5),
    )  # fmt: skip


def odd_convolutions():
    return nn.Sequential(
        nn.Conv2d(2, 4, (3, 2), groups=2, dilation=(2, 1), padding=(1, 2)),
        nn.Tanh(),
        nn.Conv2d(4, 8, 1, groups=4),
        nn.Flatten(),
        nn.LazyLinear(5),
    )


def sequence():
    return nn.Sequential(
        nn.Linear(7, 9), nn.LayerNorm(9), nn.Tanh(), nn.Linear(9, 6), nn.LayerNorm((4, 6)), Mean(), nn.LayerNorm(6), nn.Linear(6, 5)
    )


def partly_frozen():
    model = mlp()
    model[0].weight.requires_grad_(False)
    model[4].bias.requires_grad_(False)
    return model


KNOWN = {
    "logistic": (logistic, (12,)), "mlp": (mlp, (12,)), "cnn": (cnn, (1, 14, 14)), "odd convolutions": (odd_convolutions, (2, 7, 6)),
    "sequence": (sequence, (4, 7)), "a layer used twice": (UsedTwice, (12,)), "partly frozen": (partly_frozen, (12,)),
}  # fmt: skip
UNKNOWN = {
    "own layer": (lambda: nn.Sequential(nn.Linear(12, 12), Scale(), nn.Linear(12, 5)), (12,)),
    "convolution of sequences": (lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.Flatten(), nn.Linear(20, 5)), (3, 7)),
    "mirrored padding": (
        lambda: nn.Sequential(nn.Conv2d(1, 3, 3, padding=1, padding_mode="reflect"), nn.Flatten(), nn.Linear(48, 5)),
        (1, 4, 4),
    ),
}


def build(table, name, records=17, scale=1.0):
    make, shape = table[name]
    model = seeded(lambda: make())
    generator = torch.Generator().manual_seed(1)
    x = scale * torch.randn((records, *shape), generator=generator)
    model(x)  # lazy layers take their size
    return model, x, torch.randint(0, 5, (records,), generator=generator)


def stock_opacus(model, x, y, clip_norm):
    """Clipped sums of a stock GradSampleModule and DPOptimizer without noise."""
    wrapped = GradSampleModule(copy.deepcopy(model), loss_reduction="sum")
    optimizer = DPOptimizer(
        torch.optim.SGD(wrapped.parameters(), lr=1.0),
        noise_multiplier=0.0,
        max_grad_norm=clip_norm,
        expected_batch_size=None,
        loss_reduction="sum",
    )
    functional.cross_entropy(wrapped(x), y, reduction="sum").backward()
    optimizer.pre_step()
    return [parameter.grad for parameter in wrapped.parameters() if parameter.requires_grad]


def gradients_of_one(model, x, y, i):
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.autograd.grad(cross_entropy(model(x[i : i + 1]), y[i : i + 1]).sum(), parameters)


def one_by_one(model, x, y, clip_norm):
    """Clipped sums by definition: one backward pass for each record."""
    total = None
    for i in range(len(x)):
        gradients = gradients_of_one(model, x, y, i)
        norm = float(torch.cat([g.flatten() for g in gradients]).double().norm())
        clipped = [g.double() * min(1.0, clip_norm / (norm + 1e-6)) for g in gradients]
        total = clipped if total is None else [a + b for a, b in zip(total, clipped, strict=True)]
    return total


def ours(model, x, y, clip_norm):
    engine = make_engine(model)
    try:
        return engine.clipped_sum(x, y, cross_entropy, clip_norm)
    finally:
        engine.close()


def relative_difference(sums, reference):
    a, b = (torch.cat([part.flatten().double() for part in parts]) for parts in (sums, reference))
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(("name", "clip_norm"), list(itertools.product(KNOWN, [0.1, 1.0, 1e6])))
def test_clipped_sum_agrees_with_stock_opacus(name, clip_norm):
    model, x, y = build(KNOWN, name)
    _, sums = ours(model, x, y, clip_norm)
    assert isinstance(make_engine(model), BookKeepingEngine)
    assert relative_difference(sums, stock_opacus(model, x, y, clip_norm)) < 2e-6


@pytest.mark.parametrize(("name", "clip_norm"), list(itertools.product(UNKNOWN, [0.1, 1e6])))
def test_a_layer_outside_the_table_is_differentiated_by_torch_func(name, clip_norm):
    model, x, y = build(UNKNOWN, name)
    assert isinstance(make_engine(model), FunctionalEngine)
    _, sums = ours(model, x, y, clip_norm)
    assert relative_difference(sums, one_by_one(model, x, y, clip_norm)) < 2e-6


@pytest.mark.parametrize("name", KNOWN)
def test_norms_agree_with_gradients_of_single_records(name):
    model, x, y = build(KNOWN, name, records=5)
    norms, _ = ours(model, x, y, 1.0)
    for i in range(5):
        alone = gradients_of_one(model, x, y, i)
        assert float(norms[i]) == pytest.approx(float(torch.cat([g.flatten() for g in alone]).double().norm()), rel=2e-6)


def test_tied_weights_add_up_before_the_norm_is_taken():
    model = seeded(Tied)
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn((9, 12), generator=generator), torch.randint(0, 5, (9,), generator=generator)
    norms, sums = ours(model, x, y, 0.2)
    expected_norms, expected = FunctionalEngine(model).clipped_sum(x, y, cross_entropy, 0.2)
    torch.testing.assert_close(norms, expected_norms, rtol=2e-6, atol=0)
    assert relative_difference(sums, expected) < 2e-6


def test_an_activation_that_works_in_place_changes_nothing():
    model, x, y = build(KNOWN, "cnn")
    writing = copy.deepcopy(model)
    for layer in writing.modules():
        if isinstance(layer, nn.ReLU):
            layer.inplace = True
    for a, b in zip(ours(model, x, y, 0.3)[1], ours(writing, x, y, 0.3)[1], strict=True):
        assert torch.equal(a, b)


def test_writing_over_a_layers_input_is_refused():
    class Overwriting(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 5)

        def forward(self, x):
            hidden = self.first(x)
            x.mul_(2.0)
            return self.second(hidden)

    model = seeded(Overwriting)
    with pytest.raises(ConfigError, match="in place"):
        ours(model, torch.ones(3, 12), torch.zeros(3, dtype=torch.int64), 1.0)


def test_folding_the_records_into_another_axis_is_refused():
    class Folding(nn.Module):
        def __init__(self):
            super().__init__()
            self.each, self.head = nn.Linear(7, 5), nn.Linear(5, 5)

        def forward(self, x):
            return self.head(self.each(x.reshape(-1, 7)).reshape(len(x), -1, 5).mean(dim=1))

    with pytest.raises(ConfigError, match="another axis"):
        ours(seeded(Folding), torch.ones(3, 4, 7), torch.zeros(3, dtype=torch.int64), 1.0)


def test_a_record_whose_positions_cancel_is_clipped_all_the_same():
    """The norm from the Gram matrices, as ghost clipping takes it for sequences, is 0 here in float32: the record would pass unclipped."""
    layer = nn.Linear(16, 4, bias=False)
    generator = torch.Generator().manual_seed(3)
    base, step = 1e6 * torch.randn(16, generator=generator), 30 * torch.randn(16, generator=generator)
    x = torch.stack([base, base + step])[None]
    sign = torch.tensor([1.0, -1.0])[None, :, None]

    def criterion(outputs, _):
        return (outputs * sign).sum(dim=(1, 2))

    true_norm = float(2 * (x[0, 1] - x[0, 0]).double().norm())
    backprops = sign.expand(1, 2, 4)
    gram = float(((x @ x.mT) * (backprops @ backprops.mT)).sum().clamp(min=0).sqrt())
    assert abs(gram - true_norm) > 0.5 * true_norm
    assert true_norm > 100

    engine = BookKeepingEngine(layer)
    norms, (total,) = engine.clipped_sum(x, torch.zeros(1), criterion, 1.0)
    engine.close()
    assert float(norms[0]) == pytest.approx(true_norm, rel=1e-2)
    assert float(total.norm()) == pytest.approx(1.0, rel=1e-5)


def test_a_part_of_the_model_that_the_loss_does_not_use_gets_zeros():
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare, self.unused = nn.Linear(12, 5), nn.Linear(12, 5), nn.Linear(12, 5)

        def forward(self, x):
            self.spare(x)
            return self.used(x)

    _, sums = ours(seeded(Spare), torch.ones(3, 12), torch.zeros(3, dtype=torch.int64), 1.0)
    assert [bool(total.any()) for total in sums] == [True, True, False, False, False, False]


def test_a_subclass_of_a_known_layer_is_not_taken_for_it():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    assert is_supported(nn.Linear(2, 2))
    assert not is_supported(Doubled(2, 2))
    assert not is_supported(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    assert not is_supported(nn.Conv2d(1, 1, 3, padding="same"))


def test_close_leaves_no_hooks():
    model = seeded(cnn)
    make_engine(model).close()
    assert not any(layer._forward_hooks for layer in model.modules())
    assert trainable_layers(model) == [model[0], model[1], model[3], model[8]]


def test_engine_emits_no_warnings():
    model, x, y = build(KNOWN, "cnn")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours(model, x, y, 1.0)
