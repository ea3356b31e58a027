"""Inner products in chunks are those of float64, whatever the order, threads, hostile rows and offsets; nothing is stacked or changed."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.robust import gram as gram_module
from fedsec.robust.gram import combine, distances_to, gram_matrix, squared_distances

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 40), st.integers(0, 2**32 - 1))


def updates(count, dimension, seed=0):
    return np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)


def exact(x, center=0.0):
    return (x.astype(np.float64) - center) @ (x.astype(np.float64) - center).T


def exact_distances(x):
    return np.array([[np.sum((a - b) ** 2) for b in x.astype(np.float64)] for a in x.astype(np.float64)])


@pytest.fixture
def narrow(monkeypatch):
    """Chunks of 7 columns, so that small inputs take many, and a last one that is not full."""
    monkeypatch.setattr(gram_module, "FEWEST_COLUMNS", 7)
    monkeypatch.setattr(gram_module, "CHUNK_ENTRIES", 1)


@given(SHAPES, st.booleans())
@settings(max_examples=60, deadline=None)
def test_products_are_those_of_float64(shape, double):
    x = updates(*shape)
    x = x.astype(np.float64) if double else x
    assert np.allclose(gram_matrix(x), exact(x), rtol=0, atol=1e-5 * np.diagonal(exact(x)).max())


@pytest.mark.parametrize("threads", [1, 2, 3, None])
def test_neither_threads_nor_the_kind_of_sequence_change_a_bit(narrow, threads):
    x = updates(6, 100)
    assert np.array_equal(gram_matrix(x, threads=threads), gram_matrix(x, threads=1))
    assert np.array_equal(gram_matrix(list(x), threads=threads), gram_matrix(x, threads=1))
    weights = np.linspace(0, 1, 6)
    assert np.array_equal(combine(list(x), weights, threads=threads), combine(x, weights, threads=1))


def test_chunks_add_up(narrow):
    x = updates(5, 200, seed=3)
    assert np.allclose(gram_matrix(x), exact(x), rtol=0, atol=1e-4)
    assert np.allclose(combine(x, np.arange(5.0)), np.arange(5.0) @ x.astype(np.float64), atol=1e-5)
    assert np.allclose(distances_to(x, np.ones(200)), np.linalg.norm(x - 1.0, axis=1), atol=1e-5)


def test_a_center_is_the_origin_and_scales_are_factors_of_the_rows():
    x, center, scales = updates(4, 30), np.linspace(-1, 1, 30), np.array([1.0, 0.5, 2.0, 0.1])
    assert np.allclose(gram_matrix(x, center=center), exact(x, center), atol=1e-4)
    assert np.allclose(gram_matrix(x, scales=scales), exact(x) * np.outer(scales, scales), atol=1e-4)
    assert np.allclose(gram_matrix(list(x), center=center, scales=scales), exact(x * scales[:, None], center), atol=1e-4)
    assert np.allclose(distances_to(x, center, scales=scales), np.linalg.norm(x * scales[:, None] - center, axis=1), atol=1e-5)


@pytest.mark.parametrize("offset", [10.0, 1e3, 3e4])
def test_distances_survive_an_offset_that_float32_products_would_not(offset):
    x = (updates(12, 2000) + np.float32(offset)).astype(np.float32)
    true = exact_distances(x)
    assert np.allclose(squared_distances(gram_matrix(x)), true, rtol=1e-5)
    plain = squared_distances((x @ x.T).astype(np.float64))
    assert offset < 1e3 or not np.allclose(plain, true, rtol=1e-2)


@pytest.mark.parametrize("factor", [1e3, 1e6, 1e12, 1e18, 1e30])
@pytest.mark.parametrize("row", [0, 3])
def test_a_hostile_row_spoils_no_distance_between_others(factor, row):
    x = updates(8, 500)
    x[row] *= np.float32(factor)
    others = np.arange(8) != row
    gram = gram_matrix(x)
    assert np.isfinite(gram).all()
    assert np.allclose(squared_distances(gram)[np.ix_(others, others)], exact_distances(x[others]), rtol=1e-5)
    assert np.allclose(np.diagonal(gram), np.diagonal(exact(x)), rtol=1e-5)


def test_updates_too_small_for_squares_in_float32_keep_their_distances():
    x = updates(5, 50) * np.float32(1e-25)
    assert np.allclose(squared_distances(gram_matrix(x)), exact_distances(x), rtol=1e-5, atol=0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_an_error(value):
    x = updates(3, 5)
    x[1, 2] = value
    with pytest.raises(ValueError, match="validate"):
        gram_matrix(x)


def test_zeros_and_identical_updates():
    assert np.array_equal(gram_matrix(np.zeros((3, 4), np.float32)), np.zeros((3, 3)))
    same = np.repeat(updates(1, 50), 4, axis=0)
    gram = gram_matrix(same)
    assert np.array_equal(squared_distances(gram), np.zeros((4, 4)))
    assert np.allclose(gram, float(exact(same)[0, 0]), rtol=1e-6)


@pytest.mark.parametrize("empty", [np.zeros((0, 4), np.float32), []])
def test_no_updates_have_an_empty_matrix(empty):
    assert gram_matrix(empty).shape == (0, 0)


def test_updates_of_no_entries():
    assert np.array_equal(gram_matrix(np.zeros((3, 0), np.float32)), np.zeros((3, 3)))
    assert combine(np.zeros((3, 0), np.float32), np.ones(3)).shape == (0,)


def test_the_input_is_not_changed():
    x = updates(6, 3000)
    before = x.copy()
    gram_matrix(x, center=np.ones(3000), scales=np.full(6, 0.5))
    combine(x, np.full(6, 1 / 6))
    distances_to(x, np.ones(3000))
    assert np.array_equal(x, before)


def test_a_sequence_is_never_stacked():
    x = [row.copy() for row in updates(20, 200_000)]
    size = sum(row.nbytes for row in x)
    tracemalloc.start()
    try:
        gram_matrix(x, threads=2)
        combine(x, np.full(20, 0.05), threads=2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < size


@pytest.mark.parametrize(
    "call",
    [
        lambda: gram_matrix([np.zeros(3, np.float32), np.zeros(4, np.float32)]),
        lambda: gram_matrix([np.zeros((3, 1), np.float32)]),
        lambda: gram_matrix(np.zeros((2, 2, 2), np.float32)),
        lambda: gram_matrix(np.zeros((2, 3), np.float32), center=np.zeros(2)),
        lambda: gram_matrix(np.zeros((2, 3), np.float32), scales=np.zeros(3)),
        lambda: combine(np.zeros((2, 3)), np.zeros(3)),
    ],
)
def test_misuse_is_an_error(call):
    with pytest.raises(ValueError):
        call()
