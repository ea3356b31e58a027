"""Killed at any moment and resumed, a run ends with the same model and the same epsilon as one that was never interrupted."""

import json
import random
import signal
import time

import pytest

from fedsec.clientstore.inspect import read_ledger
from tests.e2e.warm import Command

PLAN = [
    "--set",
    "attack.name=none",
    "--set",
    "robust.rule=mean",
    "--set",
    "federation.num_clients=5",
    "--set",
    "federation.rounds=8",
    "--set",
    "secagg.num_corrupt=1",
    "--set",
    "training.tail_average=3",
    "--set",
    "training.server_momentum=0.5",
]


def start(out, *more):
    printed = out.parent / f"{out.name}-printed"
    printed.mkdir(exist_ok=True)
    return Command(["simulate", *PLAN, "--out", out, "--json", *more], printed)


def finish(out, *more):
    process = start(out, *more)
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    return json.loads(stdout)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, finish(out)


def wait_for(condition, process, *, timeout_s=120):
    deadline = time.monotonic() + timeout_s
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.003)


def test_sigkill_at_random_moments_then_resume_gives_the_same_model_and_charges_each_client_once_a_round(uninterrupted, tmp_path):
    whole, expected = uninterrupted
    moments = random.Random(20261123)
    out = tmp_path / "run"
    marks = [
        "run.json",
        "clients/client-0003",
        "checkpoints/round-000003.safetensors",
        "checkpoints/round-000008.safetensors",
    ]
    kills = 0
    for mark in marks:
        process = start(out, "--resume")
        wait_for((out / mark).exists, process)
        time.sleep(moments.uniform(0.0, 0.25))
        kills += process.poll() is None
        process.kill()
        process.wait()
    result = finish(out, "--resume")
    assert kills >= 3
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert result["epsilon"] == expected["epsilon"]
    assert [row["accuracy"] for row in result["rows"]] == [row["accuracy"] for row in expected["rows"]]
    for client in sorted((out / "clients").iterdir()):  # a round that a kill cut through is charged once, not again when it is done again
        assert [entry.server_round for entry in read_ledger(client)] == list(range(1, 9)), client


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_with_a_usable_result_that_can_be_resumed(uninterrupted, tmp_path, which):
    whole, _ = uninterrupted
    out = tmp_path / "run"
    process = start(out)
    wait_for((out / "checkpoints" / "latest.json").exists, process)
    process.send_signal(which)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    stopped = json.loads(stdout)
    assert stopped["stopped_early"]
    assert 1 <= stopped["rounds"] <= 8
    assert json.loads((out / "result.json").read_text())["rounds"] == stopped["rounds"]
    if which is signal.SIGTERM:
        return  # the same state as after Ctrl-C
    assert finish(out, "--resume")["rounds"] == 8
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_resuming_a_finished_run_changes_nothing(uninterrupted):
    out, expected = uninterrupted
    before = (out / "model.safetensors").read_bytes()
    assert finish(out, "--resume")["epsilon"] == expected["epsilon"]
    assert (out / "model.safetensors").read_bytes() == before


def test_a_run_is_not_resumed_under_another_plan(uninterrupted):
    out, _ = uninterrupted
    refused = start(out, "--resume", "--set", "privacy.epsilon=1")
    _, stderr = refused.communicate()
    assert refused.returncode == 2
    assert "another plan" in stderr
