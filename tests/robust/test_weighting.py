"""Weights from the Gram matrix are those of the papers' formulas written out in d dimensions."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.robust.weighting import (
    adaptive_clipping,
    arc_nnm_geometric_median,
    centred_clipping,
    clipped_count,
    geometric_median,
    mean,
    nearest_neighbour_mixing,
    nnm_geometric_median,
)

CASES = st.tuples(st.integers(3, 14), st.integers(2, 12), st.integers(0, 2**32 - 1))


def points(count, dimension, seed):
    return np.random.default_rng(seed).normal(size=(count, dimension))


def gram(x):
    return x @ x.T


def median_in_d_dimensions(x, steps=3000):
    z = x.mean(axis=0)
    for _ in range(steps):
        weights = 1 / np.maximum(np.linalg.norm(x - z, axis=1), 1e-12)
        z = weights @ x / weights.sum()
    return z


def mixed_in_d_dimensions(x, f):
    """Each point replaced by the mean of its n - f nearest, itself among them."""
    return np.array(
        [
            np.mean([x[j] for j in sorted(range(len(x)), key=lambda j: (np.linalg.norm(x[i] - x[j]), j))[: len(x) - f]], 0)
            for i in range(len(x))
        ]
    )


def clipped_in_d_dimensions(x, f):
    """The k largest norms brought down to the next smaller one."""
    norms = [np.linalg.norm(row) for row in x]
    k = int(2 * f * (len(x) - f) / len(x))
    limit = sorted(norms, reverse=True)[k]
    return np.array([row * min(1.0, limit / norm) for row, norm in zip(x, norms, strict=True)])


def clipping_in_d_dimensions(x, f, v, steps):
    for _ in range(steps):
        tau = sorted(np.linalg.norm(x - v, axis=1))[len(x) - f - 1]
        v = v + np.mean([(row - v) * min(1.0, tau / np.linalg.norm(row - v)) for row in x], axis=0)
    return v


@given(CASES)
@settings(max_examples=40, deadline=None)
def test_geometric_median_is_the_minimum(case):
    x = points(*case)
    z = geometric_median(gram(x)).weights @ x
    cost = np.linalg.norm(x - z, axis=1).sum()
    rng = np.random.default_rng(0)
    for size, _ in itertools.product((1e-1, 1e-2, 1e-3), range(10)):
        assert cost <= np.linalg.norm(x - z - size * rng.normal(size=len(z)), axis=1).sum() * (1 + 1e-6)
    assert all(cost <= np.linalg.norm(x - row, axis=1).sum() * (1 + 1e-6) for row in x)


def test_geometric_median_agrees_with_weiszfeld_in_d_dimensions():
    for seed in range(3):
        x = points(11, 6, seed)
        assert np.allclose(geometric_median(gram(x)).weights @ x, median_in_d_dimensions(x), atol=1e-6)


def test_geometric_median_of_four_corners_is_where_the_diagonals_meet():
    x = np.array([[0.0, 0.0], [4.0, 1.0], [5.0, 5.0], [1.0, 3.0]])  # diagonals y = x and x + y·… meet
    a, b, c, d = x
    t = np.linalg.solve(np.array([c - a, b - d]).T, b - a)
    assert np.allclose(geometric_median(gram(x)).weights @ x, a + t[0] * (c - a), atol=1e-6)


def test_geometric_median_is_a_corner_with_an_angle_over_120_degrees():
    x = np.array([[0.0, 0.0], [1.0, 0.1], [-1.0, 0.1]])
    assert np.allclose(geometric_median(gram(x)).weights @ x, x[0], atol=1e-4)


def test_geometric_median_is_where_more_than_half_are():
    x = np.vstack([np.tile([3.0, 4.0], (5, 1)), points(4, 2, 0) * 1e6])
    decision = geometric_median(gram(x))
    assert np.allclose(decision.weights @ x, [3.0, 4.0])
    assert decision.facts["steps"] == 0


@given(CASES)
@settings(max_examples=40, deadline=None)
def test_mixing_is_the_mean_of_the_nearest(case):
    x = points(*case)
    f = (len(x) - 1) // 3
    assert np.allclose(nearest_neighbour_mixing(gram(x), num_byzantine=f) @ x, mixed_in_d_dimensions(x, f))


@given(CASES)
@settings(max_examples=40, deadline=None)
def test_adaptive_clipping_is_that_of_the_paper(case):
    x = points(*case)
    f = (len(x) - 1) // 3
    assert np.allclose(adaptive_clipping(gram(x), num_byzantine=f)[:, None] * x, clipped_in_d_dimensions(x, f))


@pytest.mark.parametrize(("count", "f", "clipped"), [(17, 4, 6), (20, 5, 7), (10, 0, 0), (100, 20, 32), (3, 1, 1), (9, 4, 4)])
def test_how_many_are_clipped(count, f, clipped):
    assert clipped_count(count, f) == clipped < count


@pytest.mark.parametrize("seed", range(5))
def test_compositions_are_those_written_out(seed):
    x, f = points(13, 8, seed), 3
    x[:f] *= 20
    for rule, prepared in (
        (nnm_geometric_median, mixed_in_d_dimensions(x, f)),
        (arc_nnm_geometric_median, mixed_in_d_dimensions(clipped_in_d_dimensions(x, f), f)),
    ):
        assert np.allclose(rule(gram(x), num_byzantine=f).weights @ x, median_in_d_dimensions(prepared), atol=1e-5)


@pytest.mark.parametrize("f", [0, 1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_centred_clipping_is_that_of_the_paper_with_a_learnt_radius(f, seed):
    x = points(9, 5, seed)
    x[:f] += 50
    start = np.full(9, 1 / 9)
    expected = clipping_in_d_dimensions(x, f, x.mean(axis=0), 10)
    assert np.allclose(centred_clipping(gram(x), num_byzantine=f, start=start).weights @ x, expected)


def test_centred_clipping_with_a_given_radius_from_the_origin():
    x = points(7, 4, 1) * 3
    v = np.zeros(4)
    for _ in range(2):
        v = v + np.mean([(row - v) * min(1.0, 1.5 / np.linalg.norm(row - v)) for row in x], axis=0)
    assert np.allclose(centred_clipping(gram(x), radius=1.5, start=np.zeros(7), steps=2).weights @ x, v)


@pytest.mark.parametrize("rule", [mean, geometric_median, centred_clipping, nnm_geometric_median, arc_nnm_geometric_median])
def test_scores_are_of_the_updates_as_sent(rule):
    """The outlier's score grows with it without end, though its pull on the aggregate does not."""
    x = points(15, 6, 0)
    scores = []
    for factor in (1e2, 1e4, 1e6):
        x[0] = factor
        scores.append(rule(gram(x), num_byzantine=4).scores[0])
    assert rule is mean or scores[1] / scores[0] == pytest.approx(100, rel=0.1)
    assert rule is mean or scores[2] / scores[1] == pytest.approx(100, rel=0.1)


@pytest.mark.parametrize(
    ("matrix", "f"), [(np.zeros((0, 0)), 0), (np.zeros((2, 3)), 0), (np.eye(4), 2), (np.eye(3), -1), (np.diag([np.nan, 1.0, 1.0]), 1)]
)
def test_misuse_is_an_error(matrix, f):
    with pytest.raises(ValueError):
        nnm_geometric_median(matrix, num_byzantine=f)
