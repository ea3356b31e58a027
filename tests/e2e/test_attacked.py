"""Attacked federations as a user runs them: real processes, real masks, certified attackers."""

import csv
import json
import signal
import time

import pytest

from tests.e2e.warm import Command

ROUNDS = 3
SMALL = [
    "federation.num_clients=10",
    f"federation.rounds={ROUNDS}",
    "secagg.num_corrupt=2",
    "privacy.epsilon=20",
    "training.tail_average=1",
]
PUBLIC = ["secagg.enabled=false", "privacy.unit=none", "privacy.epsilon=inf"]
ALONE = "attack.compare=false"


def start(out, *overrides, more=()):
    sets = [part for override in (*SMALL, *overrides) for part in ("--set", override)]
    printed = out.parent / f"{out.name}-printed"
    printed.mkdir(exist_ok=True)
    return Command(["simulate", "--out", out, *sets, "--json", *more], printed)


def simulate(out, *overrides, more=()):
    process = start(out, *overrides, more=more)
    stdout, stderr = process.communicate(timeout=280)
    assert process.returncode == 0, stderr[-3000:]
    return json.loads(stdout)


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    """The default plan, smaller: two of ten collude under secure aggregation and DP-SGD; with the runs beside it."""
    out = tmp_path_factory.mktemp("attacked") / "run"
    return out, simulate(out, "attack.strength=10")


def test_the_attackers_are_rejected_by_their_sketches_and_nobody_else(attacked):
    _, result = attacked
    rejection = result["rejection"]
    assert len(rejection["attackers"]) == 2
    assert [item["client_id"] for item in rejection["rejected"] if item["attacker"]] == rejection["attackers"]
    assert rejection["recall"] == 1.0
    assert rejection["honest_rate"] <= 0.1
    assert rejection["named"] == []
    for item in rejection["rejected"]:
        assert all(item["reasons"])


def test_sums_were_opened_over_the_accepted_alone(attacked):
    _, result = attacked
    for row in result["rows"]:
        (cohort,) = row["secagg"]["cohorts"]
        assert cohort["opening"] == "held"
        assert cohort["num_accepted"] == 10 - len(row["screening"]["rejected"])
        assert row["num_valid"] == cohort["num_accepted"]
        assert row["num_dropped"] == 0
        assert set(row["screening"]["scores"]) == {f"client-{place:04d}" for place in range(10)}


def test_the_runs_beside_it_lie_in_the_folder_and_their_figures_in_the_result(attacked):
    out, result = attacked
    for name, key in (("undefended", "accuracy_undefended"), ("no-attack", "accuracy_no_attack")):
        beside = json.loads((out / name / "result.json").read_text())
        assert beside["accuracy"] == result["rejection"][key]
    assert json.loads((out / "result.json").read_text()) == result
    assert json.loads((out / "no-attack" / "result.json").read_text())["rejection"]["attackers"] == []
    assert (out / "defence.png").stat().st_size > 10_000
    assert (out / "screening.png").stat().st_size > 10_000
    lines = list(csv.DictReader((out / "screening.csv").open()))
    assert len(lines) == 10 * ROUNDS


def test_epsilon_does_not_depend_on_who_attacks_or_who_is_rejected(attacked):
    out, result = attacked
    assert json.loads((out / "no-attack" / "result.json").read_text())["epsilon"]["prv"] == result["epsilon"]["prv"]


def test_a_run_with_attackers_that_was_killed_goes_on_with_its_memory(tmp_path):
    out, overrides = tmp_path / "run", (*PUBLIC, ALONE, "attack.name=sign-flip", "federation.rounds=8")
    whole = simulate(tmp_path / "whole", *overrides)
    process = start(out, *overrides)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline and not (out / "checkpoints" / "latest.json").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    resumed = simulate(out, *overrides, more=("--resume",))
    for one, other in zip(whole["rows"], resumed["rows"], strict=True):
        assert (one["accuracy"], one["screening"]) == (other["accuracy"], other["screening"])
    assert resumed["rejection"] == whole["rejection"]


@pytest.mark.parametrize("attack", ["nan-value", "huge-count"])
def test_malformed_updates_in_clear_are_named_and_the_rest_train_on(tmp_path, attack):
    result = simulate(tmp_path / "run", *PUBLIC, ALONE, f"attack.name={attack}", "robust.rule=mean")
    rejection = result["rejection"]
    assert [item["client_id"] for item in rejection["named"]] == rejection["attackers"]
    assert (rejection["provable_named_share"], rejection["false_named"]) == (1.0, 0)
    for item in rejection["named"]:
        evidence = json.loads((tmp_path / "run" / item["evidence"]).read_text())
        assert (evidence["client_id"], evidence["reason"]) == (item["client_id"], item["reason"])
    assert [row["num_valid"] for row in result["rows"]] == [8] * ROUNDS
    assert result["rows"][0]["num_selected"] == 10
    assert result["rows"][1]["num_selected"] == 8  # who was named is not asked again
    assert result["accuracy"] > 0.5


def test_a_lying_sketch_is_caught_by_the_opening_and_its_sender_named_with_evidence(tmp_path):
    overrides = ("attack.name=sketch-lie", "attack.fraction=0.1", ALONE, "attack.first_round=2", "robust.rule=mean")
    result = simulate(tmp_path / "run", *overrides)
    rejection = result["rejection"]
    assert [item["client_id"] for item in rejection["named"]] == rejection["attackers"]
    assert rejection["false_named"] == 0
    (cohort,) = result["rows"][1]["secagg"]["cohorts"]
    assert cohort["opening"] == "failed"
    assert (tmp_path / "run" / rejection["named"][0]["evidence"]).stat().st_size > 100
    assert result["rows"][2]["secagg"]["cohorts"][0]["opening"] == "held"
    assert result["rows"][2]["num_valid"] == 9
