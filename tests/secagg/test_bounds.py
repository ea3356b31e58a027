"""What sketch rows are worth, against exact tails."""

import math

import numpy as np
import pytest
from scipy import stats

from fedsec.secagg.bounds import hiding_factor, log2_hiding

PLACES = [(rows, factor) for rows in (8, 16, 64, 128, 256, 1024) for factor in (1.05, 1.25, 1.5, 2.0, 3.0, 8.0)]


@pytest.mark.parametrize(("rows", "factor"), PLACES)
def test_the_bound_is_no_smaller_than_the_exact_tails_and_close_to_the_larger_one(rows, factor):
    chi = stats.chi2.logcdf(rows / factor**2, rows) / math.log(2)
    binomial = stats.binom.logcdf(math.floor(rows / (2 * factor**2)), rows, 0.5) / math.log(2)
    bound = log2_hiding(rows, factor)
    assert bound >= max(chi, binomial) - 1e-6
    assert bound <= max(chi, binomial) + math.log2(rows) + 2
    assert bound <= 0


def test_the_figures_that_the_documents_print():
    assert [round(log2_hiding(*place)) for place in ((256, 2.0), (128, 2.0), (64, 3.0))] == [-118, -59, -49]
    assert log2_hiding(64, 2.0) < -29


def test_more_rows_and_a_larger_factor_hide_less_often():
    for factor in (1.5, 2.0, 4.0):
        values = [log2_hiding(rows, factor) for rows in range(64, 1024, 64)]
        assert values == sorted(values, reverse=True)
    for rows in (32, 128, 512):
        values = [log2_hiding(rows, factor) for factor in np.linspace(1.01, 20, 60)]
        assert values == sorted(values, reverse=True)


@pytest.mark.parametrize(("rows", "bits"), [(32, 1.0), (64, 3.0), (128, 8.0), (256, 20.0), (4096, 60.0)])
def test_the_factor_is_the_least_step_that_reaches_the_target(rows, bits):
    factor = hiding_factor(rows, subsets_bits=bits)
    if math.isinf(factor):
        assert bits + log2_hiding(rows, 64.0) > -40
        return
    assert (factor - 1.25) % 0.25 == 0
    assert bits + log2_hiding(rows, factor) <= -40
    if factor > 1.25:
        assert bits + log2_hiding(rows, factor - 0.25) > -40


def test_too_few_rows_for_so_many_subsets_show_nothing():
    assert math.isinf(hiding_factor(8, subsets_bits=1.0))
    assert math.isinf(hiding_factor(64, subsets_bits=100.0))
    assert hiding_factor(64, subsets_bits=1.0) >= hiding_factor(128, subsets_bits=1.0) >= hiding_factor(4096, subsets_bits=1.0) == 1.25


@pytest.mark.parametrize("place", [(0, 2.0), (-8, 2.0), (64, 1.0), (64, 0.5), (64, float("nan"))])
def test_numbers_out_of_range_are_refused(place):
    with pytest.raises(ValueError, match="expected"):
        log2_hiding(*place)


def test_sketches_of_one_entry_and_of_many_hide_no_more_often_than_the_bound_says():
    """Rows of the real shape (−1, 0, 0, +1), 8 of them and a factor of 1.5, where the chance can be measured."""
    rows, factor, rng = 8, 1.5, np.random.default_rng(1)
    allowed = 2 ** log2_hiding(rows, factor)
    for length in (1, 2, 50):
        draws = rng.choice(np.array([-1, 0, 0, 1]), size=(20_000, rows, length))
        norms = ((draws.sum(axis=2) / math.sqrt(length)) ** 2).sum(axis=1)
        assert (norms <= rows / 2 / factor**2).mean() <= allowed * 1.05
