"""Secure aggregation as a user runs it: the command in a process of its own, with masks and without, killed where shares are out, with drop-outs."""

import csv
import json
import time

import pytest
from typer.testing import CliRunner

from fedsec.cli.main import app
from fedsec.errors import ConfigError
from tests.e2e.warm import Command

RUNNER = CliRunner()
CLIENTS, ROUNDS, DIMENSION = 8, 4, 650
PLAN = [
    "robust.rule=mean", "attack.name=none",
    f"federation.num_clients={CLIENTS}", f"federation.rounds={ROUNDS}", "secagg.num_corrupt=1", "secagg.sketch_rows=64",
    "privacy.noise_multiplier=4.0", "privacy.epsilon=60", "training.tail_average=1",
]  # fmt: skip
STAGES = {"advertise_keys", "share_keys", "masked_input", "sketch", "consistency_check", "unmask", "opening"}


def sets_of(*overrides):
    return [part for override in (*PLAN, *overrides) for part in ("--set", override)]


def start(out, *more, overrides=()):
    printed = out.parent / f"{out.name}-printed"
    printed.mkdir(exist_ok=True)
    return Command(["simulate", "--out", out, *more, *sets_of(*overrides), "--json"], printed)


def simulate(out, *more, overrides=()):
    process = start(out, *more, overrides=overrides)
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    return json.loads(stdout)


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    out = tmp_path_factory.mktemp("masked") / "run"
    return out, simulate(out)


def test_every_round_opens_and_says_what_it_cost(masked):
    _, result = masked
    assert result["rounds"] == ROUNDS
    for row in result["rows"]:
        assert (row["num_valid"], row["num_dropped"], row["rejected"]) == (CLIENTS, 0, [])
        secagg = row["secagg"]
        assert (secagg["attempts"], secagg["named"], secagg["unresolved"]) == (1, [], [])
        assert set(secagg["stage_ms"]) == STAGES
        assert all(0 < ms < 60_000 for ms in secagg["stage_ms"].values())
        (cohort,) = secagg["cohorts"]
        assert (cohort["opening"], cohort["num_accepted"], cohort["reason"]) == ("held", CLIENTS, "")
        assert not any(cohort["dropouts"].values())
        assert 4 * DIMENSION < cohort["bytes_up"] <= 4.1 * DIMENSION + 20_000
        assert cohort["bytes_down"] >= 4 * DIMENSION
        assert row["bytes_up"] == CLIENTS * cohort["bytes_up"]


def test_masks_change_neither_accuracy_nor_epsilon(masked, tmp_path):
    out, result = masked
    clear = simulate(tmp_path / "clear", overrides=["secagg.enabled=false"])
    for row, bare in zip(result["rows"], clear["rows"], strict=True):
        assert abs(row["accuracy"] - bare["accuracy"]) <= 0.005
        assert row["epsilon_prv"] == pytest.approx(bare["epsilon_prv"], rel=1e-6)
        assert row["update_norm"] == pytest.approx(bare["update_norm"], rel=1e-4)
        assert bare["secagg"] is None
    assert result["epsilon"]["noise_multiplier"] == clear["epsilon"]["noise_multiplier"]
    from safetensors.numpy import load_file

    one, other = load_file(out / "model.safetensors"), load_file(tmp_path / "clear" / "model.safetensors")
    assert max(abs(one[name] - other[name]).max() for name in one) < 1e-4


def test_the_folder_holds_log_journal_and_no_evidence_of_anybody(masked):
    out, _ = masked
    assert json.loads((out / "rounds.json").read_text())["server_round"] == ROUNDS
    assert not (out / "evidence").exists()
    assert (out / "log").exists()
    assert len(list(csv.DictReader((out / "secagg.csv").open()))) == ROUNDS


def last_checkpoint(out):
    latest = out / "checkpoints" / "latest.json"
    rounds = [int(path.stem.split("-")[1]) for path in (out / "checkpoints").glob("round-*.safetensors")] if latest.exists() else []
    return max(rounds, default=0)


def kill_in_unmask(out, deadline_s=60):
    """Kill the server when it has begun to ask for shares and has not finished the round; True if that is where it died."""
    process = start(out, "--resume")
    journal, deadline = out / "rounds.json", time.monotonic() + deadline_s
    while process.poll() is None and time.monotonic() < deadline:
        try:
            now = json.loads(journal.read_text())
        except (FileNotFoundError, ValueError):
            now = {}
        if now.get("unmasking") and now["server_round"] > last_checkpoint(out):
            process.kill()
        else:
            time.sleep(0.0005)
    process.kill()
    process.wait()
    now = json.loads(journal.read_text())
    return now["unmasking"] and now["server_round"] > last_checkpoint(out)


def test_a_server_killed_where_shares_are_out_ends_with_the_same_model(masked, tmp_path):
    whole, expected = masked
    out = tmp_path / "run"
    assert any(kill_in_unmask(out) for _ in range(3))
    result = simulate(out, "--resume")
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert [row["accuracy"] for row in result["rows"]] == [row["accuracy"] for row in expected["rows"]]
    assert [cohort["opening"] for row in result["rows"] for cohort in row["secagg"]["cohorts"]] == ["held"] * ROUNDS
    assert result["epsilon"]["prv"] == expected["epsilon"]["prv"]
    from fedsec.clientstore.inspect import read_ledger

    for client in sorted((out / "clients").iterdir()):
        assert [entry.server_round for entry in read_ledger(client)] == list(range(1, ROUNDS + 1))


def test_clients_that_vanish_are_counted_and_the_rest_are_summed(tmp_path):
    few = ["federation.dropout=0.1", "secagg.stage_timeout_s=2.0", "federation.round_timeout_s=5.0"]
    result = simulate(tmp_path / "r", overrides=few)
    assert result["rounds"] == ROUNDS
    lost = 0
    for row in result["rows"]:
        assert row["num_valid"] + row["num_dropped"] + len(row["rejected"]) == CLIENTS
        (cohort,) = row["secagg"]["cohorts"]
        assert (cohort["opening"] == "held") == (cohort["num_accepted"] > 0) == (row["num_valid"] > 0)
        assert bool(cohort["reason"]) == (cohort["opening"] != "held")
        lost += sum(cohort["dropouts"].values())
    assert lost > 0
    assert any(row["secagg"]["cohorts"][0]["opening"] == "held" for row in result["rows"])


def test_the_plan_is_explained_and_a_cohort_of_three_refused():
    told = RUNNER.invoke(app, ["plan", "check", *sets_of(), "--json"])
    assert told.exit_code == 0
    text = " ".join(json.loads(told.output)["notes"])
    for part in ("the sum of the accepted updates", "64 numbers about each update", "1 cohort of 8", "1 corrupt member"):
        assert part in text
    assert "in clear" not in text
    refused = RUNNER.invoke(app, ["plan", "check", *sets_of("federation.num_clients=3"), "--json"])
    assert refused.exit_code != 0
    assert isinstance(refused.exception, ConfigError)
    assert "secagg" in str(refused.exception)
