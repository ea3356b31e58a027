"""The exact rates of quarantine: at their limits, against each other, and the table that the documentation gives."""

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.robust.false_alarms import mean_rounds_to_quarantine, quarantine_probability
from fedsec.robust.reputation_records import ReputationSettings

SETTINGS = ReputationSettings(num_byzantine=5)
PAGE = Path(__file__).parents[2] / "docs" / "reputation.md"


def test_limits():
    assert quarantine_probability(0.0, 10_000, SETTINGS) == 0.0
    assert quarantine_probability(1.0, 4, SETTINGS) == 0.0
    assert quarantine_probability(1.0, 5, SETTINGS) == 1.0
    assert quarantine_probability(1.0, 2, SETTINGS, on_probation=True) == 0.0
    assert quarantine_probability(1.0, 3, SETTINGS, on_probation=True) == 1.0
    assert mean_rounds_to_quarantine(1.0, SETTINGS) == pytest.approx(5.0)
    assert mean_rounds_to_quarantine(0.0, SETTINGS) == math.inf


def test_five_in_a_row_is_the_only_way_in_five_rounds():
    assert quarantine_probability(0.3, 5, SETTINGS) == pytest.approx(0.3**5, rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(rate=st.floats(0, 1), rounds=st.integers(0, 200), other=st.floats(0, 1))
def test_more_rejections_more_rounds_and_a_past_never_help(rate, rounds, other):
    chance = quarantine_probability(rate, rounds, SETTINGS)
    assert -1e-12 <= chance <= 1 + 1e-9
    assert quarantine_probability(rate, rounds + 1, SETTINGS) >= chance - 1e-12
    assert quarantine_probability(max(rate, other), rounds, SETTINGS) >= chance - 1e-9
    assert quarantine_probability(rate, rounds, SETTINGS, on_probation=True) >= chance - 1e-12


@pytest.mark.parametrize("rate", [0.3, 0.65])
def test_the_mean_is_that_of_the_distribution(rate):
    survival = sum(1 - quarantine_probability(rate, rounds, SETTINGS) for rounds in range(1500))
    assert mean_rounds_to_quarantine(rate, SETTINGS) == pytest.approx(survival, rel=1e-6)


@pytest.mark.parametrize("rate", [-0.1, 1.1, math.nan])
def test_what_is_no_rate_is_refused(rate):
    with pytest.raises(ValueError, match="rate"):
        quarantine_probability(rate, 5, SETTINGS)
    with pytest.raises(ValueError, match="rate"):
        mean_rounds_to_quarantine(rate, SETTINGS)
    with pytest.raises(ValueError, match="rounds"):
        quarantine_probability(0.5, -1, SETTINGS)


def shown(chance):
    return f"{100 * chance:.2g} %" if chance < 0.99 else "> 99 %"


def test_the_table_in_the_documentation_is_computed():
    rows = [
        [cell.strip() for cell in line.strip("| \n").split("|")]
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith("| ")
    ]
    table = [cells for cells in rows if cells[0].endswith(" %")]
    assert len(table) >= 8
    for cells in table:
        rate = float(cells[0].removesuffix(" %")) / 100
        expected = [
            *(shown(quarantine_probability(rate, rounds, SETTINGS)) for rounds in (20, 50, 200)),
            shown(quarantine_probability(rate, 50, SETTINGS, on_probation=True)),
            f"{mean_rounds_to_quarantine(rate, SETTINGS):.3g}",
        ]
        assert cells[1:] == expected, cells[0]
