"""Selections from the Gram matrix are those of the papers written out in d dimensions; filters reject what is separable and little else."""

import numpy as np
import pytest

from fedsec.robust.selecting import find_twins, krum, mad_filter, multi_krum, norm_and_distance_filter, spectral_filter

FILTERS = [mad_filter, norm_and_distance_filter, spectral_filter]


def points(count, dimension, seed):
    return np.random.default_rng(seed).normal(size=(count, dimension))


def gram(x):
    return x @ x.T


def krum_scores_in_d_dimensions(x, neighbours):
    return [sum(sorted(np.sum((row - other) ** 2) for j, other in enumerate(x) if j != i)[:neighbours]) for i, row in enumerate(x)]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("f", [0, 1, 3])
def test_krum_and_multi_krum_are_those_of_the_paper(seed, f):
    x = points(10, 4, seed)
    scores = krum_scores_in_d_dimensions(x, 10 - f - 2)
    order = np.argsort(scores)
    assert np.flatnonzero(krum(gram(x), num_byzantine=f).accepted).tolist() == [order[0]]
    assert sorted(np.flatnonzero(multi_krum(gram(x), num_byzantine=f).accepted)) == sorted(order[: 10 - f])
    assert sorted(np.flatnonzero(multi_krum(gram(x), num_byzantine=f, kept=2).accepted)) == sorted(order[:2])
    wider = krum_scores_in_d_dimensions(x, 10 - f - 1)
    assert np.flatnonzero(krum(gram(x), num_byzantine=f, neighbours=10 - f - 1).accepted).tolist() == [np.argmin(wider)]


def test_equal_scores_go_by_index():
    assert krum(np.zeros((5, 5)), num_byzantine=1).accepted.tolist() == [True, False, False, False, False]
    assert multi_krum(np.zeros((5, 5)), num_byzantine=2).accepted.tolist() == [True, True, True, False, False]


@pytest.mark.parametrize("rule", FILTERS)
@pytest.mark.parametrize("dimension", [5, 30, 1000])
def test_a_filter_leaves_honest_updates_of_one_kind_alone(rule, dimension):
    rejected = [np.count_nonzero(~rule(gram(points(20, dimension, seed) + 0.3), num_byzantine=5).accepted) for seed in range(40)]
    assert np.mean(rejected) / 20 <= 0.02


@pytest.mark.parametrize("rule", FILTERS)
@pytest.mark.parametrize("count", [8, 20, 60])
def test_a_filter_rejects_colluders_who_are_far_out_together(rule, count):
    f = count // 4
    for seed in range(10):
        x = points(count, 50, seed)
        x[:f] += 4.0
        decision = rule(gram(x), num_byzantine=f)
        assert np.flatnonzero(~decision.accepted).tolist() == list(range(f))
        assert (decision.scores[f:] < 1).all()


@pytest.mark.parametrize("rule", FILTERS)
def test_a_filter_rejects_at_most_f_the_worst_first(rule):
    x = points(20, 10, 1)
    x[:6] += np.array([50.0, 60, 70, 80, 90, 100])[:, None]
    accepted = rule(gram(x), num_byzantine=3).accepted
    assert np.count_nonzero(~accepted) <= 3
    assert accepted[6:].all()


def test_the_spectral_filter_finds_colluders_behind_two_honest_groups():
    """The first direction parts two honest groups; colluders of both show in the second, and are no farther out than others."""
    colluders = [0, 1, 15, 16]
    x = points(30, 100, 3) * 0.3
    x[:15, 0] += 10
    x[15:, 0] -= 10
    x[colluders, 1] += 6
    decision = spectral_filter(gram(x), num_byzantine=5)
    assert np.flatnonzero(~decision.accepted).tolist() == colluders
    assert mad_filter(gram(x), num_byzantine=5).accepted.all()
    assert spectral_filter(gram(x), num_byzantine=5, directions=1).accepted.all()


def test_the_norm_gate_rejects_what_the_distance_alone_lets_pass():
    """In two heaps far apart the median distance is large; a long update still shows by its norm."""
    x = np.vstack([points(10, 20, 0) * 0.1 + 1.0, points(6, 20, 1) * 0.1 - 1.0])
    x[0] = 12.0 * np.sign(x[0])
    assert not norm_and_distance_filter(gram(x), num_byzantine=3).accepted[0]


@pytest.mark.parametrize("seed", range(5))
def test_colluders_who_send_one_vector_count_once_wherever_it_lies(seed):
    """A point near the centre, where no distance gives them away, and which a geometric median is drawn to."""
    x = points(17, 60, seed)
    x[5:9] = -0.2 * x[9:].mean(axis=0)
    decision = norm_and_distance_filter(gram(x), num_byzantine=4)
    assert decision.accepted[5]
    assert not decision.accepted[6:9].any()
    assert (decision.scores[6:9] >= 1).all()
    assert decision.facts["twins"] == 3
    assert mad_filter(gram(x), num_byzantine=4).accepted[5:9].all()


def test_twins_are_those_near_one_that_stays_and_at_most_f():
    x = points(12, 40, 0)
    x[3], x[7], x[9] = x[0] + 1e-3, x[0] - 1e-3, x[8]
    assert np.flatnonzero(find_twins(gram(x), num_byzantine=5)).tolist() == [3, 7, 9]
    assert np.flatnonzero(find_twins(gram(x), num_byzantine=2)).tolist() == [3, 7]
    assert not find_twins(gram(x), num_byzantine=0).any()
    assert not find_twins(np.ones((6, 6)), num_byzantine=2).any()
