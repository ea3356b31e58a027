"""Coordinate-wise rules are those of the papers written out for each coordinate, over chunks, threads and hostile entries."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.robust import coordinatewise
from fedsec.robust.coordinatewise import bulyan, meamed, median, select_by_krum, trimmed_mean
from fedsec.robust.gram import gram_matrix

CASES = st.tuples(st.integers(1, 12), st.integers(1, 30), st.integers(0, 2**32 - 1))


def points(count, dimension, seed):
    return np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)


def around_median(column, kept):
    """Mean of the kept entries nearest to the median."""
    return np.mean(sorted(column, key=lambda value: abs(value - np.median(column)))[:kept])


def bulyan_in_d_dimensions(x, f):
    left, chosen = list(range(len(x))), []
    for _ in range(len(x) - 2 * f):
        near = max(1, len(left) - f - 2)
        scores = [sum(sorted(np.sum((x[i] - x[j]) ** 2) for j in left if j != i)[:near]) for i in left]
        chosen.append(left.pop(int(np.argmin(scores))))
    return np.array([around_median(column, len(chosen) - 2 * f) for column in x[chosen].T]), sorted(chosen)


@pytest.fixture
def narrow(monkeypatch):
    """Chunks of 7 columns, so that small inputs take many."""
    monkeypatch.setattr(coordinatewise, "WIDTH", 7)


@given(CASES, st.booleans())
@settings(max_examples=60, deadline=None)
def test_they_are_those_of_the_papers(case, double):
    x = points(*case)
    x = x.astype(np.float64) if double else x
    f = (len(x) - 1) // 3
    wide = x.astype(np.float64)
    assert np.allclose(median(x), np.median(wide, axis=0), atol=1e-6)
    trimmed = [np.mean(sorted(column)[f : len(x) - f]) for column in wide.T]
    assert np.allclose(trimmed_mean(x, num_byzantine=f), trimmed, atol=1e-6)
    assert np.allclose(meamed(x, num_byzantine=f), [around_median(column, len(x) - f) for column in wide.T], atol=1e-6)


@pytest.mark.parametrize(("count", "f"), [(7, 1), (11, 2), (19, 4), (20, 4), (30, 2), (5, 0)])
@pytest.mark.parametrize("seed", range(3))
def test_bulyan_is_that_of_the_paper(count, f, seed):
    x = points(count, 9, seed)
    x[:f] += 3
    result, selected = bulyan(x, gram_matrix(x), num_byzantine=f)
    expected, chosen = bulyan_in_d_dimensions(x.astype(np.float64), f)
    assert np.flatnonzero(selected).tolist() == chosen
    assert np.allclose(result, expected, atol=1e-6)


def test_krum_selection_of_identical_updates_goes_by_index():
    assert select_by_krum(np.zeros((7, 7)), num_byzantine=1).tolist() == [True] * 5 + [False] * 2


@pytest.mark.parametrize("threads", [1, 2, None])
def test_chunks_threads_and_sequences_change_nothing(narrow, threads):
    x, scales = points(9, 100, 0), np.linspace(0.5, 2, 9)
    scaled = (x * scales.astype(np.float32)[:, None]).astype(np.float32)
    assert np.array_equal(median(x, threads=threads), median(list(x), threads=1))
    assert np.allclose(median(x, threads=threads), np.median(x, axis=0))
    assert np.array_equal(trimmed_mean(x, num_byzantine=2, scales=scales, threads=threads), trimmed_mean(scaled, num_byzantine=2))
    assert np.array_equal(meamed(list(x), num_byzantine=2, scales=scales, threads=threads), meamed(scaled, num_byzantine=2))
    direct, _ = bulyan(x, gram_matrix(x, scales=scales), num_byzantine=1, scales=scales, threads=threads)
    assert np.array_equal(direct, bulyan(scaled, gram_matrix(scaled), num_byzantine=1)[0])


@pytest.mark.parametrize("value", [1e30, -1e30, 3e38])
def test_entries_at_the_end_of_the_range_leave_no_trace(value):
    x = points(15, 40, 2)
    x[:3] = np.float32(value)
    honest = x[3:]
    for result in (
        median(x),
        trimmed_mean(x, num_byzantine=3),
        meamed(x, num_byzantine=3),
        bulyan(x, gram_matrix(x), num_byzantine=3)[0],
    ):
        assert (honest.min(axis=0) <= result).all()
        assert (result <= honest.max(axis=0)).all()


def test_the_input_is_not_changed():
    x = points(9, 50, 0)
    before = x.copy()
    for rule in (trimmed_mean, meamed):
        rule(x, num_byzantine=2, scales=np.full(9, 0.5))
    median(x)
    bulyan(x, gram_matrix(x), num_byzantine=1)
    assert np.array_equal(x, before)


@pytest.mark.parametrize(
    "call",
    [
        lambda: trimmed_mean(points(4, 3, 0), num_byzantine=2),
        lambda: meamed(points(4, 3, 0), num_byzantine=-1),
        lambda: bulyan(points(6, 3, 0), np.eye(6), num_byzantine=1),
        lambda: median(np.zeros((0, 3), np.float32)),
    ],
)
def test_misuse_is_an_error(call):
    with pytest.raises(ValueError):
        call()
