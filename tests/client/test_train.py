"""Local training: the update's form, what is reported, devices, and that the module knows nothing of security."""

import ast
import copy
import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import client.train
from client.train import local_update
from fedsec.errors import ConfigError
from fedsec.privacy.dpsgd import SgdSettings, train
from fedsec.privacy.modelcheck import OUR_WORD
from fedsec.privacy.streams import RoundStreams

CONFIG = SgdSettings(steps=3, sample_rate=0.5, batch_size=20, learning_rate=0.5, momentum=0.5, clip_norm=1.0, noise_multiplier=1.0)
NAMES = ("1.weight", "1.bias")


def streams():
    return RoundStreams.derive(bytes(32), "client-1", "round-1")


def logistic():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def records(n=72):
    rng = np.random.default_rng(1)
    return rng.random((n, 8, 8), dtype=np.float32), rng.integers(0, 10, n)


def update(model=None, config=CONFIG, names=NAMES, device="cpu"):
    return local_update(
        model if model is not None else logistic(), *records(), config, shared_names=names, streams=streams(), device=device
    )


def test_the_update_is_the_declared_batch_size_times_the_change():
    model, reference = logistic(), logistic()
    before = {name: p.detach().double().clone() for name, p in reference.named_parameters()}
    train(reference, *records(), CONFIG, streams=streams())
    result = update(model)
    assert set(result) == set(NAMES)
    for name, after in reference.named_parameters():
        assert result[name].dtype == np.float32
        np.testing.assert_array_equal(result[name], (20 * (after.detach().double() - before[name])).float().numpy())
        assert torch.equal(dict(model.named_parameters())[name], after)


def test_noise_of_an_update_without_records_does_not_depend_on_the_declared_batch_size():
    """So its standard deviation is public: sigma * C * lr * sqrt(steps)."""
    empty = np.zeros((0, 8, 8), dtype=np.float32), np.zeros(0, dtype=np.int64)
    config = replace(CONFIG, momentum=0.0)
    small, large = (
        local_update(logistic(), *empty, replace(config, batch_size=size), shared_names=NAMES, streams=streams()) for size in (1, 1000)
    )
    for name in NAMES:
        np.testing.assert_allclose(small[name], large[name], atol=1e-4)
    assert small["1.weight"].std() == pytest.approx(1.0 * 1.0 * 0.5 * np.sqrt(3), rel=4.9 / np.sqrt(2 * 640))


def test_only_shared_parameters_are_reported_and_personal_ones_stay_with_the_model():
    model = logistic()
    before = model[1].bias.detach().clone()
    assert set(update(model, names=["1.weight"])) == {"1.weight"}
    assert not torch.equal(model[1].bias, before)


def test_a_frozen_personal_parameter_does_not_move():
    model = logistic()
    model[1].bias.requires_grad_(False)
    before = model[1].bias.detach().clone()
    update(model, names=["1.weight"])
    assert torch.equal(model[1].bias, before)


def test_a_frozen_shared_parameter_reports_zeros():
    model = logistic()
    model[1].bias.requires_grad_(False)
    assert not update(model)["1.bias"].any()


def test_the_update_does_not_share_memory_with_the_model():
    model = logistic()
    result = update(model)
    kept = {name: array.copy() for name, array in result.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for name, array in result.items():
        np.testing.assert_array_equal(array, kept[name])


def test_the_same_streams_give_the_same_update_bit_for_bit():
    first, second = update(), update()
    assert all((first[name] == second[name]).all() for name in NAMES)


def test_an_unknown_name_is_refused():
    with pytest.raises(ConfigError, match=r"'2\.weight'"):
        update(names=["1.weight", "2.weight"])


def test_an_error_while_training_leaves_the_parameters_as_they_were():
    model = logistic()
    before = copy.deepcopy(model.state_dict())
    calls = []

    def fail_late(_module, _inputs, _output):
        calls.append(1)
        if len(calls) > 5:
            raise KeyboardInterrupt

    model.register_forward_hook(fail_late)
    with pytest.raises(KeyboardInterrupt):
        update(model, config=replace(CONFIG, steps=50))
    assert len(calls) == 6
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_too_little_memory_names_the_setting_to_lower():
    model = logistic()

    def exhaust(_module, _inputs, output):
        if len(output) > 10:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    exhaust.keeps_records_apart = OUR_WORD  # else the model would be trained record by record
    model.register_forward_hook(exhaust)
    with pytest.raises(ConfigError, match=r"training\.physical_batch_size"):
        update(model)


class TestDevice:
    @pytest.mark.parametrize("name", ["cuda", "cuda:0"])
    def test_a_missing_gpu_is_said_and_never_replaced_silently(self, monkeypatch, name):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(ConfigError, match=r"training\.device: .*finds 0 GPUs.*auto"):
            update(device=name)

    @pytest.mark.needs("cuda")
    @pytest.mark.parametrize("clipping", ["opacus", "bookkeeping"])
    def test_a_gpu_gives_the_update_of_the_cpu_up_to_rounding(self, clipping):
        config = replace(CONFIG, clipping=clipping)
        here, there = update(config=config), update(config=config, device="cuda")
        for name in NAMES:
            np.testing.assert_allclose(there[name], here[name], atol=1e-3)


def test_the_module_knows_nothing_of_security():
    imported = {node.module for node in ast.walk(ast.parse(inspect.getsource(client.train))) if isinstance(node, ast.ImportFrom)}
    assert {name for name in imported if name.startswith("fedsec")} == {
        "fedsec.errors",
        "fedsec.models.device",
        "fedsec.privacy.dpsgd",
        "fedsec.privacy.streams",
        "fedsec.vectors",
    }
