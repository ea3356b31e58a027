"""FLTrust and FoolsGold are those of the papers, written out in d dimensions."""

import numpy as np
import pytest

from fedsec.robust.trust import fltrust, foolsgold


def points(count, dimension, seed):
    return np.random.default_rng(seed).normal(size=(count, dimension))


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def trusted(x, root):
    decision = fltrust(x @ x.T, root_products=x @ root, root_norm=float(np.linalg.norm(root)))
    return decision, decision.weights @ x


@pytest.mark.parametrize("seed", range(5))
def test_fltrust_is_that_of_the_paper(seed):
    x, root = points(12, 6, seed) + 0.4, points(1, 6, seed + 100)[0]
    trust = [max(0.0, cosine(row, root)) for row in x]
    expected = sum(t * row * np.linalg.norm(root) / np.linalg.norm(row) for t, row in zip(trust, x, strict=True)) / sum(trust)
    decision, result = trusted(x, root)
    assert np.allclose(result, expected)
    assert np.array_equal(decision.accepted, np.array(trust) > 0)
    assert np.array_equal(decision.scores >= 1, np.array(trust) == 0)


def test_fltrust_stands_a_majority():
    root = np.ones(8)
    x = np.vstack([np.ones((3, 8)) + 0.1 * points(3, 8, 0), -1e12 * np.ones((9, 8))])
    decision, result = trusted(x, root)
    assert decision.accepted.tolist() == [True] * 3 + [False] * 9
    assert cosine(result, root) > 0.9
    assert np.linalg.norm(result) <= np.linalg.norm(root) * (1 + 1e-12)


def test_fltrust_without_anyone_to_trust_moves_nothing():
    decision, result = trusted(-np.ones((4, 3)), np.ones(3))
    assert not decision.accepted.any()
    assert np.array_equal(result, np.zeros(3))


@pytest.mark.parametrize("root", [np.zeros(3), np.ones(3)])
def test_fltrust_with_zeros(root):
    decision, result = trusted(np.zeros((4, 3)), root)
    assert np.isfinite(decision.scores).all()
    assert np.array_equal(result, np.zeros(3))


def foolsgold_in_d_dimensions(x):
    n = len(x)
    cs = np.array([[cosine(a, b) if i != j else -1.0 for j, b in enumerate(x)] for i, a in enumerate(x)])
    v = [max(0.0, *(cs[i, j] for j in range(n) if j != i)) for i in range(n)]
    for i in range(n):
        for j in range(n):
            if i != j and v[i] < v[j]:
                cs[i, j] *= v[i] / v[j]
    weights = np.array([min(1.0, max(0.0, 1 - max(cs[i]))) for i in range(n)])
    weights = np.minimum(weights / weights.max(), 0.99)
    with np.errstate(divide="ignore"):
        return np.clip(np.log(weights / (1 - weights)) + 0.5, 0, 1)


@pytest.mark.parametrize("seed", range(8))
def test_foolsgold_is_that_of_the_paper(seed):
    x = points(9, 4, seed)
    x[1] = x[0] + 0.01 * points(1, 4, 50)[0]
    expected = foolsgold_in_d_dimensions(x)
    decision = foolsgold(x @ x.T)
    assert np.allclose(decision.weights, expected / expected.sum())
    assert np.allclose(decision.scores, 1 - expected)


def test_foolsgold_gives_sybils_nothing_however_many():
    x = np.vstack([np.eye(4), np.tile(np.array([-1.0, -1, 1, 1]), (7, 1))])
    decision = foolsgold(x @ x.T)
    assert decision.accepted.tolist() == [True] * 4 + [False] * 7


def test_foolsgold_with_nobody_who_stands_out_is_the_mean():
    assert np.allclose(foolsgold(np.ones((5, 5))).weights, 0.2)
    assert np.allclose(foolsgold(np.ones((1, 1))).weights, 1.0)
    assert np.isfinite(foolsgold(np.zeros((3, 3))).weights).all()
