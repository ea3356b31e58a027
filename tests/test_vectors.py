"""Named arrays flatten and unflatten exactly, and anything that does not match the layout is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsec.vectors import Layout, arrays_digest

SHAPES = st.dictionaries(st.text("abc.", min_size=1, max_size=4), st.lists(st.integers(0, 4), max_size=3).map(tuple), max_size=5)


@given(SHAPES, st.integers(0, 2**32 - 1))
def test_unflatten_inverts_flatten(shapes, seed):
    rng = np.random.default_rng(seed)
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    layout = Layout.of(arrays)
    back = layout.unflatten(layout.flatten(arrays))
    assert back.keys() == arrays.keys()
    assert all(np.array_equal(back[name], arrays[name]) for name in arrays)
    assert layout.size == sum(array.size for array in arrays.values())


def test_order_of_the_mapping_does_not_matter():
    a, b = np.ones((2,), np.float32), np.zeros((3,), np.float32)
    assert np.array_equal(Layout.of({"x": a, "y": b}).flatten({"y": b, "x": a}), [1, 1, 0, 0, 0])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "missing"),
        ({"w": np.ones(2, np.float32), "v": np.ones(2, np.float32)}, "unknown"),
        ({"w": np.ones(3, np.float32)}, "shape"),
        ({"w": np.ones((2, 1), np.float32)}, "shape"),
        ({"w": np.ones(2, np.float64)}, "dtype"),
        ({"w": np.array(["a", "b"])}, "dtype"),
    ],
)
def test_arrays_of_another_layout_are_refused(arrays, message):
    layout = Layout.of({"w": np.ones(2, np.float32)})
    with pytest.raises(ValueError, match=message):
        layout.flatten(arrays)


def test_digest_covers_name_shape_dtype_and_bytes():
    base = {"w": np.ones((2, 3), np.float32)}
    others = [{"v": base["w"]}, {"w": base["w"].reshape(3, 2)}, {"w": base["w"].astype(np.float64)}, {"w": base["w"] * 2}, {}]
    assert len({arrays_digest(arrays) for arrays in [base, *others]}) == 6
    assert arrays_digest(base) == arrays_digest({"w": np.ones((2, 3), np.float32)})
