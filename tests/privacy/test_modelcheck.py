"""Models for which clipping would not bound what one record does are refused before any record is used, with the reason."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from fedsec.errors import ConfigError
from fedsec.privacy.bookkeeping import make_engine
from fedsec.privacy.dpsgd import OpacusEngine
from fedsec.privacy.modelcheck import check_attribution, probe, trainable_parameters

ENGINES = [OpacusEngine, make_engine]


class Wrapped(nn.Module):
    """A linear model [B, 6] to [B, 3] with a function before or after it."""

    def __init__(self, before=lambda x: x, after=lambda x: x):
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.before, self.after = before, after

    def forward(self, x):
        return self.after(self.linear(self.before(x)))


class Remembering(nn.Module):
    """Keeps a running mean of its inputs, which no layer type gives away."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.register_buffer("running", torch.zeros(6))

    def forward(self, x):
        self.running.mul_(0.9).add_(x.detach().mean(dim=0), alpha=0.1)
        return self.linear(x)


class Bypassing(nn.Module):
    """Uses a layer's weight without calling the layer."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.second(functional.linear(x, self.first.weight) + self.first(x))


class Sequence(nn.Module):
    """[B, 4, 6] to [B, 3]; ``arrange`` brings the records where its author wants them."""

    def __init__(self, arrange, restore):
        super().__init__()
        self.each, self.head = nn.Linear(6, 5), nn.Linear(5, 3)
        self.arrange, self.restore = arrange, restore

    def forward(self, x):
        return self.head(self.restore(torch.tanh(self.each(self.arrange(x))), len(x)).mean(dim=1))


def inspect(model, shape=(6,), engine=OpacusEngine):
    model.train()
    result = probe(model, shape, private=True)
    made = engine(model)
    try:
        check_attribution(made, result)
    finally:
        made.close()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (Wrapped(), (6,)),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(inplace=False), nn.Flatten(), nn.Linear(16, 3)), (1, 4, 4)),
        (nn.Sequential(nn.Embedding(5, 6), nn.Flatten(), nn.Linear(24, 3)), None),
        (Sequence(lambda x: x, lambda h, _: h), (4, 6)),
    ],
    ids=["linear", "cnn", "tokens", "sequence"],
)
def test_sound_models_pass(model, shape, engine):
    if shape is None:
        model = nn.Sequential(Cast(), *model)
        shape = (4,)
    inspect(model, shape, engine)


class Cast(nn.Module):
    """Token ids arrive as float32."""

    def forward(self, x):
        return x.long()


@pytest.mark.parametrize(
    "layer",
    [nn.BatchNorm1d(6), nn.BatchNorm1d(6, affine=False), nn.BatchNorm1d(6, track_running_stats=False), nn.SyncBatchNorm(6)],
    ids=["plain", "no parameters", "no running statistics", "synchronised"],
)
def test_batch_normalisation_is_refused_by_name_in_any_form(layer):
    with pytest.raises(ConfigError, match=r"1 \((SyncB|B)atchNorm.*GroupNorm"):
        inspect(nn.Sequential(nn.Linear(6, 6), layer, nn.Linear(6, 3)))


def test_frozen_batch_normalisation_is_refused_too():
    model = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3))
    model[0].requires_grad_(False)
    with pytest.raises(ConfigError, match="BatchNorm"):
        inspect(model)


@pytest.mark.parametrize(
    "mix",
    [lambda x: x - x.mean(dim=0), lambda x: x.softmax(dim=0), lambda x: x.flip(0), lambda x: x + x.roll(1, 0)],
    ids=["centred by the batch", "softmax over the batch", "reversed", "neighbour added"],
)
@pytest.mark.parametrize("place", ["before", "after"])
def test_a_custom_model_that_mixes_records_is_refused(mix, place):
    with pytest.raises(ConfigError, match="mixes the records"):
        inspect(Wrapped(**{place: mix}))


def test_a_model_that_remembers_batches_is_refused():
    with pytest.raises(ConfigError, match="keeps state"):
        inspect(Remembering())


@pytest.mark.parametrize("private", [True, False])
def test_a_model_that_draws_random_numbers_is_refused_and_the_generator_is_left_as_it_was(private):
    model = nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.5)).train()
    before = torch.get_rng_state()
    with pytest.raises(ConfigError, match="random numbers"):
        probe(model, (6,), private=private)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("engine", ENGINES)
def test_folding_records_into_positions_is_refused(engine):
    """Opacus would clip each of the four positions by itself: one record would count four times."""
    model = Sequence(lambda x: x.reshape(-1, 6), lambda h, records: h.reshape(records, -1, 5))
    with pytest.raises(ConfigError, match="another axis"):
        inspect(model, (4, 6), engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_records_on_the_second_axis_are_refused_even_when_the_sizes_agree(engine):
    model = Sequence(lambda x: x.transpose(0, 1), lambda h, _: h.transpose(0, 1))
    with pytest.raises(ConfigError, match="records change places"):
        inspect(model, (4, 6), engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_weight_used_outside_its_layer_is_refused(engine):
    with pytest.raises(ConfigError, match="outside its layer"):
        inspect(Bypassing(), (6,), engine)


def test_a_layer_for_which_opacus_has_a_wrong_rule_is_refused_and_book_keeping_takes_it():
    """Opacus 1.6 unfolds a mirrored convolution as if it were padded with zeros."""
    model = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1, padding_mode="reflect"), nn.Flatten(), nn.Linear(48, 3))
    with pytest.raises(ConfigError, match="bookkeeping"):
        inspect(model, (1, 4, 4), OpacusEngine)
    inspect(model, (1, 4, 4), make_engine)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(7, 3), "shapes cannot be multiplied"),
        (Wrapped(after=lambda x: x.mean(dim=1)), r"outputs of shape \(4,\)"),
        (Wrapped(after=lambda x: x[:1]), r"outputs of shape \(1, 3\)"),
        (Wrapped(after=lambda x: x.detach()), "does not require grad"),
        (Wrapped(after=lambda _: "text"), "ndim"),
    ],
    ids=["wrong width", "no logits", "one output for all", "no gradient", "no tensor"],
)
def test_a_model_of_the_wrong_form_is_refused_with_the_reason(model, message):
    with pytest.raises(ConfigError, match=message):
        inspect(model)


def test_models_without_trainable_float32_parameters_are_refused():
    with pytest.raises(ConfigError, match="no trainable parameter"):
        trainable_parameters(nn.Linear(6, 3).requires_grad_(False))
    with pytest.raises(ConfigError, match="float32"):
        trainable_parameters(nn.Linear(6, 3).double())


def test_what_opacus_itself_refuses_is_refused():
    with pytest.raises(ConfigError, match="Opacus refuses"):
        probe(
            nn.Sequential(nn.InstanceNorm2d(2, affine=True, track_running_stats=True), nn.Flatten(), nn.Linear(8, 3)),
            (2, 2, 2),
            private=True,
        )
