"""The edge of rejection, who is past it, and residuals from weights alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsec.robust.decision import accept_all_but, check_gram, distances_from, residual_scores, scores_by_rank, smallest, uniform

NUMBERS = st.lists(st.integers(0, 10**9).map(lambda value: value / 1e3), min_size=1, max_size=30).map(np.array)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_residuals_are_distances_from_the_weighted_sum(count, dimension, seed):
    rng = np.random.default_rng(seed)
    x, weights = rng.normal(size=(count, dimension)), rng.uniform(size=count)
    expected = np.linalg.norm(x - weights @ x, axis=1)
    assert np.allclose(distances_from(x @ x.T, weights), expected, atol=1e-6)


@given(NUMBERS)
def test_fewer_than_half_are_past_the_edge_and_scale_plays_no_part(residuals):
    scores = residual_scores(residuals)
    assert np.isfinite(scores).all()
    assert np.count_nonzero(scores > 1) <= len(scores) / 2
    assert np.allclose(scores, residual_scores(residuals * 8.0))


def test_the_edge_is_median_and_five_robust_deviations_or_a_quarter():
    wide = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 20.0])
    assert residual_scores(wide)[-1] == pytest.approx(20 / (3.5 + 5 * 1.4826 * 1.5))
    narrow = np.array([10.0, 10.0, 10.0, 12.4, 12.6])
    assert residual_scores(narrow)[3] < 1 < residual_scores(narrow)[4]


def test_residuals_of_rounding_are_none():
    assert (residual_scores(np.array([0.0, 0.0, 0.0, 1e-9]), scale=1.0) < 1).all()
    assert residual_scores(np.array([0.0, 0.0, 0.0, 1e-3]), scale=1.0)[3] > 1
    assert residual_scores(np.zeros(3)).tolist() == [0, 0, 0]


@given(NUMBERS, st.integers(0, 12))
def test_at_most_f_are_rejected_the_largest_and_only_past_the_edge(scores, f):
    accepted = accept_all_but(scores, f)
    rejected = scores[~accepted]
    assert len(rejected) == min(f, np.count_nonzero(scores >= 1))
    if len(rejected):
        assert rejected.min() >= 1
        assert rejected.min() >= scores[accepted & (scores >= 1)].max(initial=0)


@given(NUMBERS, st.integers(1, 12))
def test_smallest_takes_the_first_of_equal_values(values, count):
    chosen = np.flatnonzero(smallest(values, count)).tolist()
    assert chosen == sorted(sorted(range(len(values)), key=lambda index: (values[index], index))[:count])


def test_ranks_have_their_edge_at_the_first_that_is_left_out():
    values = np.array([4.0, 1.0, 2.0, 8.0])
    assert scores_by_rank(values, smallest(values, 2)).tolist() == [1.0, 0.25, 0.5, 2.0]
    assert (scores_by_rank(values, np.ones(4, bool)) < 1).all()
    assert scores_by_rank(np.zeros(3), np.array([True, True, False])).tolist() == [0, 0, 1]


def test_weights_of_what_is_accepted():
    assert uniform(np.array([True, False, True, True])).tolist() == [1 / 3, 0, 1 / 3, 1 / 3]


@pytest.mark.parametrize(("gram", "f"), [(np.zeros((2, 3)), 0), (np.zeros((0, 0)), 0), (np.eye(2), 1), (np.array([[np.inf]]), 0)])
def test_what_is_no_gram_matrix_is_an_error(gram, f):
    with pytest.raises(ValueError):
        check_gram(gram, f)
