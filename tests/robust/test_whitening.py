"""Whitened and lifted sketches, on the real sketch matrix."""

import numpy as np
import pytest

from fedsec.robust.whitening import lift, needs_row_gram, whiten
from fedsec.secagg.sketch import SketchMatrix


def sketched(num_rows, dimension, count=5, seed=0):
    matrix = SketchMatrix(seed=bytes([seed]) * 32, num_rows=num_rows, dimension=dimension)
    updates = np.random.default_rng(seed).integers(-1000, 1000, size=(count, dimension))
    return updates, matrix.product_many(updates), matrix.entries(0, num_rows), matrix.row_products()


@pytest.mark.parametrize(("num_rows", "dimension"), [(8, 40), (64, 650), (128, 650)])
def test_whitened_sketches_are_an_orthonormal_projection(num_rows, dimension):
    updates, sketches, rows, products = sketched(num_rows, dimension)
    whitened = whiten(sketches, dimension=dimension, rrt=products)
    projection = rows.T.astype(float) @ np.linalg.solve(products.astype(float), rows.astype(float))
    assert whitened.shape == (5, num_rows)
    np.testing.assert_allclose(whitened @ whitened.T, updates @ projection @ updates.T, rtol=1e-9)


def test_noise_of_one_deviation_keeps_it_in_every_coordinate():
    _, _, rows, products = sketched(64, 200)
    basis = whiten(
        rows.T.astype(np.float64), dimension=200, rrt=products
    )  # of all unit vectors: the columns are what a coordinate is made of
    np.testing.assert_allclose(basis.T @ basis, np.eye(64), atol=1e-9)


def test_without_whitening_it_would_not():
    _, _, rows, _ = sketched(64, 200)
    covariance = rows.astype(float) @ rows.T.astype(float) * 2 / 200
    assert np.linalg.eigvalsh(covariance)[-1] > 1.5


@pytest.mark.parametrize("num_rows", [64, 128])
def test_more_rows_than_directions_give_as_many_columns_as_there_are_directions(num_rows):
    updates, sketches, _, products = sketched(num_rows, 40)
    whitened = whiten(sketches, dimension=40, rrt=products)
    assert whitened.shape == (5, 40)
    np.testing.assert_allclose(whitened @ whitened.T, updates @ updates.T, rtol=1e-6)


def test_a_short_sketch_of_a_long_update_needs_no_row_products():
    updates, sketches, _, products = sketched(8, 4000, count=3)
    assert not needs_row_gram(8, 4000)
    rough, exact = whiten(sketches, dimension=4000), whiten(sketches, dimension=4000, rrt=products)
    np.testing.assert_allclose(np.linalg.norm(rough, axis=1), np.linalg.norm(exact, axis=1), rtol=0.1)
    assert updates.shape == (3, 4000)


def test_lifted_sketches_are_the_projection_of_the_update():
    updates, sketches, rows, products = sketched(64, 300)
    lifted = lift(sketches, rows, rrt=products)
    np.testing.assert_allclose(lifted @ rows.T.astype(float), sketches, atol=1e-6)
    whitened = whiten(sketches, dimension=300, rrt=products)
    np.testing.assert_allclose(lifted @ lifted.T, whitened @ whitened.T, rtol=1e-9)
    assert (np.linalg.norm(lifted, axis=1) < np.linalg.norm(updates, axis=1)).all()


def test_lifting_all_directions_gives_the_update_back():
    updates, sketches, rows, products = sketched(128, 40)
    np.testing.assert_allclose(lift(sketches, rows, rrt=products), updates, atol=1e-5)


def test_integer_row_products_do_as_well_as_floats():
    _, sketches, _, products = sketched(8, 40)
    np.testing.assert_array_equal(whiten(sketches, dimension=40, rrt=products), whiten(sketches, dimension=40, rrt=products.astype(float)))


@pytest.mark.parametrize("broken", ["shape", "missing", "not finite", "skew"])
def test_refusals(broken):
    _, sketches, _, products = sketched(8, 40)
    arguments = {"sketches": sketches.astype(float), "dimension": 40, "rrt": products.astype(float)}
    if broken == "shape":
        arguments["rrt"] = products[:4]
    elif broken == "missing":
        arguments["rrt"] = None
    elif broken == "not finite":
        arguments["sketches"][0, 0] = np.nan
    else:
        arguments["rrt"][0, 1] += 1
    with pytest.raises(ValueError, match=r"R Rᵀ|finite"):
        whiten(arguments["sketches"], dimension=40, rrt=arguments["rrt"])
