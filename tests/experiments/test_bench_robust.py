"""That the benchmark of robust aggregation runs beside Flower's rules and agrees with them; not how fast either is."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.bench.robust import ROUNDING, difference, updates_of
from experiments.bench.robust_rules import OURS, fewest_steps, largest_bulyan
from fedsec.robust.gram import gram_matrix

ROOT = Path(__file__).parents[2]
RULES = ["Bulyan", "Multi-Krum"]


@pytest.fixture(scope="module")
def rows():
    command = [sys.executable, "-W", "ignore", "-m", "experiments.bench.robust"]
    options = ["--json", "--without-byzfl", "--rounds", "1", "--sizes", "19x40000", "--only", *RULES]
    done = subprocess.run(command + options, cwd=ROOT, check=True, capture_output=True, text=True, timeout=300)
    (printed,) = json.loads(done.stdout).values()
    return printed


def test_every_rule_is_timed_beside_flower_and_agrees(rows):
    for rule in RULES:
        (timed,) = [row for row in rows if row["what"] == f"{rule}, n=19 d=40000"]
        assert timed["ours"] > 0
        assert timed["peer"] > 0
        (apart,) = [row for row in rows if row["what"].startswith(f"{rule}, n=19 d=40000: difference")]
        assert apart["ours"] <= apart["peer"]


def test_peak_memory_is_that_of_the_program_alone(rows):
    (memory,) = [row for row in rows if row["unit"] == "x input"]
    assert "worst of 4" in memory["what"]
    assert memory["ours"] > 0.9


def test_the_input_is_the_one_described():
    updates = updates_of(10, 20_000)
    cosines = gram_matrix(updates) / 40_000
    assert updates.dtype == np.float32
    assert np.allclose(cosines[0, 1:5], -1.5, atol=0.05)
    assert np.allclose(cosines[1, 2:5], 0.5, atol=0.05)


def test_differences_leave_out_ties_for_rules_that_have_them_only():
    ours = np.zeros(200_000)
    theirs = ours.copy()
    theirs[[5, 7]] = 0.3
    assert difference("Bulyan", ours, theirs) == ROUNDING
    assert difference("median", ours, theirs) == 0.3
    theirs[9] = 0.2
    assert difference("Bulyan", ours, theirs) == 0.2


def test_weiszfeld_comes_near_in_some_steps():
    gram = gram_matrix(updates_of(20, 500))
    assert 2 < fewest_steps(gram) < 100


@pytest.mark.parametrize(("count", "f"), [(100, 24), (50, 11), (7, 1)])
def test_bulyan_gets_the_f_that_it_stands(count, f):
    assert largest_bulyan(count) == f


@pytest.mark.parametrize("rule", sorted(OURS))
def test_every_rule_of_ours_runs(rule):
    result = OURS[rule](updates_of(23, 300), 4)
    assert result.shape == (300,)
    assert np.isfinite(result).all()
