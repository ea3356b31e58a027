"""Student's t: the quantiles of the tables, and no interval where there is nothing to base one on."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsec.report.intervals import central_probability, half_width, student_quantile


@pytest.mark.parametrize(
    ("degrees", "level", "quantile"),
    [
        (1, 0.95, 12.7062),
        (2, 0.95, 4.30265),
        (3, 0.95, 3.18245),
        (4, 0.95, 2.77645),
        (9, 0.95, 2.26216),
        (30, 0.95, 2.04227),
        (2, 0.99, 9.92484),
    ],
)
def test_quantiles_are_those_of_the_printed_tables(degrees, level, quantile):
    assert student_quantile(degrees, level=level) == pytest.approx(quantile, rel=2e-6)


@given(st.integers(1, 200), st.floats(0.01, 0.999))
def test_a_quantile_undoes_the_probability(degrees, level):
    assert central_probability(student_quantile(degrees, level=level), degrees) == pytest.approx(level, abs=1e-9)


def test_many_degrees_are_the_normal_distribution():
    assert student_quantile(100_001) == pytest.approx(statistics.NormalDist().inv_cdf(0.975), rel=1e-4)


@pytest.mark.parametrize("values", [[], [0.8], [0.8, 0.9], [0.8, 0.9, math.nan], [0.8, 0.9, math.inf]])
def test_no_interval_is_made_up(values):
    assert half_width(values) is None


def test_a_half_width_is_quantile_times_standard_error():
    values = [0.1, 0.4, 0.4, 0.7]
    assert half_width(values) == pytest.approx(3.18245 * statistics.stdev(values) / 2, rel=1e-5)


@pytest.mark.parametrize(("degrees", "level"), [(0, 0.95), (3, 0.0), (3, 1.0)])
def test_misuse_is_refused(degrees, level):
    with pytest.raises(ValueError, match="no quantile"):
        student_quantile(degrees, level=level)
