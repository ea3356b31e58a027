"""That the benchmark of secure aggregation runs, checks its own sums, and says what it should; not what it measures."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.bench.secagg_costs import NAME, save_costs
from experiments.bench.secagg_simulation import Federation, make_identities, simulate
from fedsec.secagg.labels import Phase

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def rows():
    command = [sys.executable, "-W", "ignore", "-m", "experiments.bench.secagg", "--quick", "--json"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=120)
    (printed,) = json.loads(done.stdout).values()
    return printed


def test_every_row_compares_two_figures(rows):
    for row in rows:
        assert row["ours"] > 0
        assert row["peer"] > 0
        assert row["ratio"] == pytest.approx(row["peer"] / row["ours"])
        assert math.isfinite(row["ratio"])
    assert len({(row["what"], row["peer_name"]) for row in rows}) == len(rows)


@pytest.mark.parametrize(
    ("words", "limit", "unit"),
    [
        (("client", "without training"), 130.0, "ms CPU"),
        (("sketch", "kept"), 60.0, "ms CPU"),
        (("server", "R·X checked"), 1000.0, "ms CPU"),
        (("blame",), 5.0, "s CPU"),
        (("simulated", "all check all", "wall"), 90.0, "s"),
        (("simulated", "memoised", "wall"), 90.0, "s"),
        (("simulated", "all check all", "memory"), 4.0, "GB PSS"),
        (("upload", "all stages, beside"), 20_000, "bytes"),
    ],
)
def test_claims_stand_beside_their_limits(rows, words, limit, unit):
    (row,) = [row for row in rows if row["peer_name"] == "limit" and all(word in row["what"] for word in words)]
    assert (row["peer"], row["unit"]) == (limit, unit)


def test_bytes_are_counted_and_within_their_limit_at_any_size(rows):
    (row,) = [
        row for row in rows if row["what"].startswith("upload") and row["what"].endswith("all stages") and row["peer_name"] == "limit"
    ]
    assert 4 * 20_000 < row["ours"] < row["peer"]
    (per_parameter,) = [row for row in rows if row["unit"] == "bytes a parameter"]
    assert per_parameter["peer"] > 8


def test_flower_is_measured_in_the_same_run(rows):
    whats = [row["what"] for row in rows if row["peer_name"].startswith("Flower")]
    for words in ("all clients and server", "a client", "server", "share both secrets", "combine all", "one mask", "encode / quantise"):
        assert any(words in what for what in whats), words


def test_costs_are_written_and_say_who_dropped(tmp_path):
    federation = Federation(num_clients=20, dimension=500, cohort_size=10)
    make_identities(tmp_path / "identities", federation)
    costs = [simulate(tmp_path / "identities", federation, memoised=memoised) for memoised in (False, True)]
    plain, memoised = costs
    assert (plain.cohorts, sum(plain.drops.values()), plain.failed) == (2, 2, {})
    # Who has uploaded is in the sum, unless it was lost before it sketched.
    early = (Phase.ADVERTISE_KEYS, Phase.SHARE_KEYS, Phase.MASKED_INPUT, Phase.SKETCH)
    assert plain.accepted == memoised.accepted == 20 - sum(plain.drops[stage] for stage in early)
    assert plain.remembered == 0
    assert plain.verified == memoised.verified + memoised.remembered
    save_costs(costs, tmp_path)
    assert len((tmp_path / f"{NAME}.csv").read_text().splitlines()) == 3
    assert json.loads((tmp_path / f"{NAME}.json").read_text())["rounds"][1]["memoised"] is True
    assert (tmp_path / f"{NAME}.png").read_bytes().startswith(b"\x89PNG")
