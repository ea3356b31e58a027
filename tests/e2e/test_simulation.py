"""A whole federation on real data, as a user runs it: the command in a process of its own."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedsec.plan.load import load_plan
from tests.e2e.warm import Command

SMALL = [
    "--set",
    "attack.name=none",
    "--set",
    "secagg.num_corrupt=1",
    "--set",
    "federation.num_clients=6",
    "--set",
    "federation.rounds=4",
    "--set",
    "privacy.epsilon=20",
]


def fedsec(*arguments, check=True, **environment):
    process = subprocess.run(
        [sys.executable, "-m", "fedsec", *map(str, arguments)],
        check=False, capture_output=True, text=True, env={**os.environ, **environment}, timeout=280,
    )  # fmt: skip
    if check:
        assert process.returncode == 0, process.stderr
    return process


def simulate(out, *more):
    """The same command, without the five seconds of imports."""
    process = Command(["simulate", *SMALL, "--out", out, "--json", *more], out.parent)
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    return json.loads(stdout)


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "small"
    process = fedsec("simulate", *SMALL, "--out", out, "--json")
    return out, json.loads(process.stdout), process


def test_json_is_exactly_one_object_with_the_promised_fields(small_run):
    out, result, process = small_run
    assert process.stdout.count("\n") == 1
    assert {"accuracy", "recall", "epsilon", "rounds", "num_clients", "engine", "duration_s", "run_dir"} <= result.keys()
    assert {"prv", "rdp", "delta", "unit"} <= result["epsilon"].keys()
    assert (result["rounds"], result["num_clients"], result["engine"], result["epsilon"]["unit"]) == (4, 6, "local", "example")
    assert Path(result["run_dir"]) == out
    assert result["randomness"] == "simulation seed"


def test_the_model_learns_and_epsilon_is_just_under_its_target(small_run):
    _, result, _ = small_run
    assert result["accuracy"] > 0.6
    assert 20 * (1 - 1e-3) <= result["epsilon"]["prv"] <= 20
    assert result["epsilon"]["rdp"] > result["epsilon"]["prv"]


def test_epsilon_only_grows_over_the_rounds(small_run):
    _, result, _ = small_run
    spent = [row["epsilon_prv"] for row in result["rows"]]
    assert spent == sorted(spent)
    assert spent[0] > 0


def test_the_folder_holds_plan_table_model_and_pictures(small_run):
    out, result, _ = small_run
    assert load_plan(out / "plan.toml").digest() == result["plan_digest"]
    rows = list(csv.DictReader((out / "rounds.csv").open()))
    assert [int(row["server_round"]) for row in rows] == [1, 2, 3, 4]
    assert json.loads((out / "result.json").read_text())["accuracy"] == result["accuracy"]
    assert len(list(out.glob("*.png"))) >= 2
    from safetensors.numpy import load_file

    assert {name: array.shape for name, array in load_file(out / "model.safetensors").items()} == {"weight": (10, 64), "bias": (10,)}


def test_the_same_plan_gives_the_same_model_bytes_on_one_worker_as_on_two(small_run, tmp_path):
    out, result, _ = small_run
    again = simulate(tmp_path / "one", "--workers", 1)
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    assert again["rows"][-1]["loss"] == result["rows"][-1]["loss"]


@pytest.mark.needs("ray")
def test_ray_gives_the_same_model(small_run, tmp_path):
    out, _, _ = small_run
    assert simulate(tmp_path / "ray", "--engine", "ray")["engine"] == "ray"
    assert (tmp_path / "ray" / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_another_seed_gives_another_model(small_run, tmp_path):
    out, _, _ = small_run
    simulate(tmp_path / "other", "--set", "federation.seed=2")
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != (out / "model.safetensors").read_bytes()


def test_a_second_run_into_the_same_folder_is_refused_and_leaves_it(small_run):
    out, _, _ = small_run
    before = (out / "result.json").read_bytes()
    process = fedsec("simulate", *SMALL, "--out", out, check=False)
    assert process.returncode == 2
    assert "--resume" in process.stderr
    assert (out / "result.json").read_bytes() == before


def test_clients_that_vanish_at_random_are_counted_and_the_rest_go_on(tmp_path):
    sets = ["secagg.enabled=false", "federation.dropout=0.3", "federation.round_timeout_s=2.0"]
    result = simulate(tmp_path / "r", *[part for override in sets for part in ("--set", override)])
    assert sum(row["num_dropped"] for row in result["rows"]) > 0
    assert all(row["num_valid"] + row["num_dropped"] == 6 for row in result["rows"])
    assert result["accuracy"] > 0.3


def test_a_refused_plan_exits_with_two_and_says_where(tmp_path):
    process = fedsec("simulate", "--set", "privacy.epsilon=-1", "--out", tmp_path / "r", check=False)
    assert process.returncode == 2
    assert "privacy.epsilon" in process.stderr
    assert process.stdout == ""
    assert not (tmp_path / "r").exists()
