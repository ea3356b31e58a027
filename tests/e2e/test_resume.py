"""Killed at any moment and resumed, a run ends with the same model and the same epsilon as one that was never interrupted."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

PLAN = [
    "--set",
    "federation.num_clients=5",
    "--set",
    "federation.rounds=8",
    "--set",
    "training.tail_average=3",
    "--set",
    "training.server_momentum=0.5",
]


def command(out, *more):
    return [sys.executable, "-m", "fedsec", "simulate", *PLAN, "--out", str(out), "--json", *more]


def finish(out, *more):
    done = subprocess.run(command(out, *more), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    started = time.monotonic()
    result = finish(out)
    return out, result, time.monotonic() - started


def test_sigkill_at_random_moments_then_resume_gives_the_same_model_and_epsilon(uninterrupted, tmp_path):
    whole, expected, duration_s = uninterrupted
    moments = random.Random(20261123)
    out = tmp_path / "run"
    kills = 0
    for _ in range(6):
        process = subprocess.Popen(command(out, "--resume"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=moments.uniform(0.3, 1.1) * duration_s)
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    result = finish(out, "--resume")
    assert kills >= 1
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert result["epsilon"]["prv"] == expected["epsilon"]["prv"]
    assert [row["accuracy"] for row in result["rows"]] == [row["accuracy"] for row in expected["rows"]]


def test_a_kill_in_the_middle_of_a_round_charges_each_client_once(uninterrupted, tmp_path):
    out = tmp_path / "run"
    process = subprocess.Popen(command(out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(out.glob("clients/client-*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait()
    finish(out, "--resume")
    from fedsec.clientstore.inspect import read_ledger

    for client in sorted((out / "clients").iterdir()):
        rounds = [entry.server_round for entry in read_ledger(client)]
        assert rounds == list(range(1, 9)), client


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_with_a_usable_result_that_can_be_resumed(uninterrupted, tmp_path, which):
    whole, _, _ = uninterrupted
    out = tmp_path / "run"
    process = subprocess.Popen(command(out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (out / "checkpoints" / "latest.json").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(which)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    stopped = json.loads(stdout)
    assert stopped["stopped_early"]
    assert 1 <= stopped["rounds"] <= 8
    assert json.loads((out / "result.json").read_text())["rounds"] == stopped["rounds"]
    assert finish(out, "--resume")["rounds"] == 8
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_resuming_a_finished_run_changes_nothing(uninterrupted):
    out, expected, _ = uninterrupted
    before = (out / "model.safetensors").read_bytes()
    assert finish(out, "--resume")["epsilon"] == expected["epsilon"]
    assert (out / "model.safetensors").read_bytes() == before


def test_a_run_is_not_resumed_under_another_plan(uninterrupted):
    out, _, _ = uninterrupted
    done = subprocess.run([*command(out, "--resume"), "--set", "privacy.epsilon=1"], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 2
    assert "another plan" in done.stderr
