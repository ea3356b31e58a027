"""The group filter finds colluders by what their group does to the sum, however little they look alike, and leaves others alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.robust.sketch_filter import GROUP_EDGE, centred_products, edge_of, group_filter, longest_sums


def points(count, dimension, seed):
    return np.random.default_rng(seed).normal(size=(count, dimension))


def gram(x):
    return x @ x.T


def decide(x, f):
    return group_filter(gram(x), num_byzantine=f)


@pytest.mark.parametrize("count", [8, 17, 20, 60])
@pytest.mark.parametrize("length", [4.0, 30.0, 1e4])
def test_colluders_who_push_together_are_rejected_and_nobody_else(count, length):
    f = count // 4
    for seed in range(5):
        x = points(count, 400, seed)
        x[:f] += length * np.sqrt(400) * np.eye(400)[0]  # a common push, each with its own noise: no twins
        decision = decide(x, f)
        assert np.flatnonzero(~decision.accepted).tolist() == list(range(f))
        assert (decision.scores[:f] >= 1).all()
        assert (decision.scores[f:] < 1).all()


@pytest.mark.parametrize("count", [8, 17, 40])
def test_huge_noise_without_a_common_direction_is_rejected(count):
    f = count // 4
    x = points(count, 300, 1)
    x[:f] *= 1e3
    assert np.flatnonzero(~decide(x, f).accepted).tolist() == list(range(f))


@pytest.mark.parametrize(("count", "f"), [(8, 2), (17, 4), (20, 5), (60, 15)])
def test_honest_updates_of_one_kind_are_left_alone(count, f):
    rejected = [np.count_nonzero(~decide(points(count, 300, seed) + 0.3, f).accepted) for seed in range(40)]
    assert np.mean(rejected) / count <= 0.002


@pytest.mark.parametrize(("count", "f", "most"), [(17, 4, 1.1), (20, 5, 1.1), (40, 10, 1.7), (100, 20, 1.7)])
def test_what_passes_together_is_bounded(count, f, most):
    """In typical residuals: rule 5 of the module. All colluders at one place, or each with noise of its own."""
    for own_noise in (0.0, 0.7):
        for push in np.linspace(most, 8.0, 25):
            x = points(count, 400, 3)
            x[:f] *= own_noise
            x[:f, 0] += push * np.sqrt(400)
            assert not decide(x, f).accepted[:f].any(), (own_noise, push)


def test_a_lone_update_far_out_is_its_own_group():
    x = points(20, 300, 2)
    x[7] *= 8.0
    decision = decide(x, 5)
    assert np.flatnonzero(~decision.accepted).tolist() == [7]


def test_at_most_f_are_rejected_and_none_where_none_may_be():
    x = points(12, 100, 5)
    x[:5] += 50.0
    assert np.count_nonzero(~decide(x, 3).accepted) <= 3
    assert decide(x, 0).accepted.all()


def test_equal_updates_are_all_accepted():
    assert decide(np.ones((6, 4)), 2).accepted.all()
    assert decide(np.zeros((6, 4)), 2).accepted.all()
    assert group_filter(np.array([[3.0]]), num_byzantine=0).accepted.all()


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(3, 14), scale=st.floats(1e-6, 1e6))
def test_scale_rotation_and_order_change_nothing(seed, count, scale):
    generator = np.random.default_rng(seed)
    f = generator.integers(0, (count - 1) // 2 + 1)
    x = generator.normal(size=(count, 9)) + generator.normal(size=9)
    turned, _ = np.linalg.qr(generator.normal(size=(9, 9)))
    order = generator.permutation(count)
    decision, other = decide(x, f), decide(scale * (x @ turned)[order], f)
    assert np.array_equal(other.accepted, decision.accepted[order])
    assert np.allclose(other.scores, decision.scores[order], rtol=1e-6)
    assert np.isclose(decision.weights.sum(), 1.0)
    assert (decision.weights[~decision.accepted] == 0).all()


def test_longest_sums_are_those_of_the_vectors_and_greedy():
    x = points(9, 5, 4)
    lengths, members = longest_sums(gram(x), 3)
    assert members.sum(axis=1).tolist() == [3] * 9
    assert members.diagonal().all()
    assert np.allclose(lengths, [np.linalg.norm(x[group].sum(axis=0)) for group in members])
    for row in range(9):
        best = max(np.linalg.norm(x[row] + x[other]) for other in range(9) if other != row)
        assert np.isclose(longest_sums(gram(x), 2)[0][row], best)


def test_centred_products_are_those_of_centred_vectors():
    x, w = points(6, 4, 7), np.array([0.5, 0.2, 0.0, 0.1, 0.1, 0.3])
    y = x - w @ x
    assert np.allclose(centred_products(gram(x), w), y @ y.T)


def test_the_edge_falls_with_the_size_of_the_group():
    edges = [edge_of(size) for size in range(1, 30)]
    assert edges == sorted(edges, reverse=True)
    assert edges[0] > 2
    assert edges[-1] == GROUP_EDGE


def test_a_bad_matrix_is_refused():
    with pytest.raises(ValueError, match="square"):
        group_filter(np.zeros((2, 3)), num_byzantine=0)
    with pytest.raises(ValueError, match="told apart"):
        group_filter(np.eye(4), num_byzantine=2)
