"""One point of a sweep, the real program: what it measures, that masks change nothing, and what the check says before anything runs."""

import argparse
import io
import json
import os
import sys

import numpy as np
import pytest
import torch

from client.ablation import noise_in
from fedsec.cli import sweep_point
from fedsec.errors import ConfigError, LocalProtocolError
from fedsec.models.factory import build_model
from fedsec.plan.load import load_plan, plan_to_toml
from fedsec.plan.sections import ModelSection
from fedsec.plan.sweep import PEACE
from fedsec.privacy.dpsgd import SgdSettings, train
from fedsec.privacy.streams import RoundStreams

TINY = ("federation.num_clients=8", "federation.rounds=2", "secagg.num_corrupt=1", "attack.name=none", "robust.rule=mean")


def arguments(plan, overrides=(), **more):
    return argparse.Namespace(**({"plan": plan, "overrides": list(overrides), "out": None, "fresh": False, "noise_only": ""} | more))


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    """The same point under masks and in clear."""
    folder = tmp_path_factory.mktemp("points")
    plan = folder / "plan.toml"
    plan.write_text(plan_to_toml(load_plan(overrides=TINY)))
    return {
        enabled: sweep_point.run_point(arguments(plan, [f"secagg.enabled={str(enabled).lower()}"], out=folder / str(enabled)))
        for enabled in (True, False)
    }


def test_a_sweep_in_clear_measures_what_masks_would_give(points):
    masked, clear = points[True]["result"], points[False]["result"]
    for key in ("accuracy", "recall", "epsilon", "majority_accuracy"):
        assert masked[key] == clear[key], key
    assert [row["epsilon_prv"] for row in masked["rows"]] == [row["epsilon_prv"] for row in clear["rows"]]
    assert [row["accuracy"] for row in masked["rows"]] == [row["accuracy"] for row in clear["rows"]]
    assert abs(masked["loss"] - clear["loss"]) < 1e-6  # the fixed point of the masks rounds
    assert masked["rows"][0]["secagg"] is not None
    assert clear["rows"][0]["secagg"] is None
    assert points[True]["measured"] == points[False]["measured"]


def test_a_point_run_in_this_process_does_not_leave_it_a_simulation(points):
    assert os.environ.get("FEDSEC_SIMULATION") is None  # in which a client's errors would travel to the server whole


def test_the_sites_of_a_point_make_up_its_test_records(points):
    result, measured = points[False]["result"], points[False]["measured"]
    sites = measured["sites"]
    assert [site["name"] for site in sites] == [f"client {number}" for number in range(1, 9)]
    assert sum(site["test"] for site in sites) == sum(measured["class_tests"]) == 359
    assert sum(site["train"] for site in sites) == 1438
    right = sum(site["test"] * site["accuracy"] for site in sites)
    assert right / 359 == pytest.approx(result["accuracy"])
    assert len(measured["data_fingerprint"]) == 64


# --- The check before anything runs ---------------------------------------------------------------------------------------------


def check(tmp_path, points, overrides=PEACE):
    path = tmp_path / "asked.json"
    path.write_text(json.dumps({"plan": plan_to_toml(load_plan(overrides=overrides)), "points": points}))
    return sweep_point.check_points(arguments(path))


def test_the_check_knows_the_records_and_warns_of_a_large_delta(tmp_path):
    told = check(tmp_path, [])
    assert told["warning"] == ""
    assert told["records"]["train"] == 1438
    largest = told["records"]["largest_client"]
    told = check(tmp_path, [], [*PEACE, "privacy.delta=0.05"])
    assert told["warning"].startswith(f"delta = 0.05 is not below 1/{largest}")
    assert "publishes each record whole" in told["warning"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["privacy.epsilon=0.0001"], "below what can be calibrated"),
        (["privacy.epsilon=500.0"], "no protection that could be calibrated"),
        (["privacy.epsilon=0.001", "federation.rounds=100000", "training.steps=100000", "training.sample_rate=1.0"], "ε = low"),
    ],
)
def test_an_epsilon_that_cannot_be_reached_is_named_with_its_point(tmp_path, overrides, words):
    with pytest.raises(ConfigError, match="ε = low") as refused:
        check(tmp_path, [["ε = low", overrides]])
    assert words in str(refused.value)


def test_what_a_point_cannot_do_is_one_line_on_stderr(tmp_path, capsys, monkeypatch):
    (tmp_path / "plan.toml").write_text("[federation]\nroundz = 1\n")
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    with pytest.raises(SystemExit) as ended:
        sweep_point.main(["run", str(tmp_path / "plan.toml"), "--out", str(tmp_path / "run")])
    assert ended.value.code == ConfigError.exit_code
    assert 'did you mean "rounds"' in capsys.readouterr().err


# --- Noise in one layer ---------------------------------------------------------------------------------------------------------


def trained(layers):
    """Parameters after one noisy step, with noise everywhere (None), in some layers, or nowhere (empty)."""
    model = build_model(ModelSection(name="mlp", hidden=(4,)), input_shape=(6,), num_classes=3, seed=1)
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(30, 6)).astype(np.float32), generator.integers(0, 3, size=30)
    settings = SgdSettings(
        steps=1, sample_rate=0.5, batch_size=15, learning_rate=1.0, clip_norm=1.0, noise_multiplier=2.0 if layers != () else 0.0
    )
    streams = RoundStreams.derive(bytes(range(32)))
    if layers:
        with noise_in(model, layers):
            train(model, x, y, settings, streams=streams)
    else:
        train(model, x, y, settings, streams=streams)
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_noise_in_one_layer_is_the_noise_of_the_whole_there_and_none_elsewhere(monkeypatch):
    monkeypatch.setenv("FEDSEC_SIMULATION", "1")
    everywhere, nowhere, output = trained(None), trained(()), trained(("output",))
    for name in everywhere:
        expected = everywhere if name.startswith("output") else nowhere
        assert torch.allclose(output[name], expected[name], atol=1e-6), name
        assert not torch.allclose(everywhere[name], nowhere[name])
    assert torch.equal(trained(None)["output.bias"], everywhere["output.bias"])  # and it is off again afterwards


def test_noise_in_one_layer_is_refused_outside_a_simulation_and_for_unknown_layers(monkeypatch):
    model = build_model(ModelSection(name="mlp", hidden=(4,)), input_shape=(6,), num_classes=3, seed=1)
    monkeypatch.delenv("FEDSEC_SIMULATION", raising=False)
    with pytest.raises(LocalProtocolError), noise_in(model, ["output"]):
        pass
    monkeypatch.setenv("FEDSEC_SIMULATION", "1")
    with pytest.raises(ValueError, match="no layer is called 'exit'"), noise_in(model, ["exit"]):
        pass
