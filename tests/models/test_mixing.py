"""Layers through which one record could act on the gradients of others are refused, however they are hidden."""

import pytest
import torch
from torch import nn

from fedsec.errors import ConfigError
from fedsec.models.factory import build_model
from fedsec.models.mixing import refuse_mixing_layers
from fedsec.plan.sections import ModelSection


class OwnBatchNorm(nn.BatchNorm1d):
    """A subclass: Opacus looks validators up by exact type."""


class Centred(nn.Linear):
    def forward(self, x):
        return super().forward(x - x.mean(0))


class DetachedScale(nn.Linear):
    def forward(self, x):
        return super().forward(x / x.detach().abs().max())


class DividedByCount(nn.Linear):
    def forward(self, x):
        return super().forward(x) / len(x)


class MixesWhileTraining(nn.Linear):
    def forward(self, x):
        return super().forward(x + x.sum(0) if self.training else x)


class RunningMean(nn.Linear):
    def __init__(self):
        super().__init__(6, 2)
        self.register_buffer("seen", torch.zeros(6))

    def forward(self, x):
        self.seen = 0.9 * self.seen + 0.1 * x.detach().mean(0)
        return super().forward(x)


def behind(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 6), layer, nn.Linear(6, 2))


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(6),
        nn.BatchNorm1d(6, affine=False, track_running_stats=False),
        OwnBatchNorm(6),
        nn.SyncBatchNorm(6),
        nn.LazyBatchNorm1d(),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_batch_norm_of_any_kind_is_refused_by_name(layer):
    with pytest.raises(ConfigError, match=rf"layer 1 is a {type(layer).__name__}"):
        refuse_mixing_layers(behind(layer))


def test_frozen_batch_norm_in_evaluation_mode_is_refused():
    with pytest.raises(ConfigError, match="BatchNorm1d"):
        refuse_mixing_layers(behind(nn.BatchNorm1d(6).eval().requires_grad_(False)).eval())


@pytest.mark.parametrize(
    "layer", [nn.InstanceNorm1d(6, affine=True, track_running_stats=True), nn.LSTM(6, 6)], ids=["InstanceNorm", "LSTM"]
)
def test_what_opacus_refuses_is_refused(layer):
    with pytest.raises(ConfigError, match="Opacus cannot train"):
        refuse_mixing_layers(behind(layer))


@pytest.mark.parametrize(
    "model", [Centred(6, 2), DetachedScale(6, 2), DividedByCount(6, 2), MixesWhileTraining(6, 2)], ids=lambda m: type(m).__name__
)
def test_mixing_inside_a_forward_is_seen_when_the_model_is_tried(model):
    with pytest.raises(ConfigError, match="depends on the other records"):
        refuse_mixing_layers(model, input_shape=(6,))


def test_statistics_kept_from_step_to_step_are_refused_and_the_model_is_left_alone():
    model = RunningMean().eval()
    with pytest.raises(ConfigError, match="buffer seen"):
        refuse_mixing_layers(model, input_shape=(6,))
    assert not model.seen.any()
    assert not model.training


def test_a_model_that_cannot_take_the_records_is_refused():
    with pytest.raises(ConfigError, match=r"fails on records \[3, 7\]"):
        refuse_mixing_layers(nn.Linear(6, 2), input_shape=(7,))


@pytest.mark.parametrize(("name", "shape"), [("logistic", (8, 8)), ("mlp", (64,)), ("cnn", (28, 28))])
def test_built_in_models_are_accepted(name, shape):
    model = build_model(ModelSection(name=name), input_shape=shape, num_classes=10, seed=1)
    refuse_mixing_layers(model, input_shape=shape)


def test_group_norm_is_accepted():
    refuse_mixing_layers(behind(nn.GroupNorm(2, 6)), input_shape=(6,))


def test_dropout_is_refused_and_the_global_generator_stays():
    model = behind(nn.Dropout(0.5))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with pytest.raises(ConfigError, match="random numbers"):
        refuse_mixing_layers(model, input_shape=(6,))
    assert torch.equal(before, torch.get_rng_state())
