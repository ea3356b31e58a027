"""The one definition of clipping: its bound holds for any record, and what cannot be clipped counts as nothing."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.privacy.clipping import MAX_GRADIENT_NORM, Outer, PlainEngine, Rows, clip_and_sum

HOSTILE = st.one_of(
    st.sampled_from([0.0, math.nan, math.inf, -math.inf, 3.4e38, -1e30, 1e18, 1e-30, 1e-45]),
    st.floats(width=32, allow_nan=True, allow_infinity=True),
)


def parts_with(hostile: list[float], extra: int):
    """Three tame records, and ``extra`` copies of a hostile one, whose gradient is in rows [B, 4], an outer product 3x2 and its left side."""
    generator = torch.Generator().manual_seed(0)
    tame = torch.randn((3, 9), generator=generator)
    values = torch.cat([tame, torch.tensor([hostile] * extra, dtype=torch.float32).reshape(extra, 9)])
    left, right, rows = values[:, :3], values[:, 3:5], values[:, 5:]
    return [Outer(left, right), Rows(left, torch.Size([3])), Rows(rows, torch.Size([2, 2]))]


def flat(sums):
    return torch.cat([total.flatten().double() for total in sums])


@given(hostile=st.lists(HOSTILE, min_size=9, max_size=9), clip_norm=st.sampled_from([1e-3, 1.0, 50.0]))
@settings(max_examples=400, deadline=None)
def test_one_record_more_moves_the_sum_by_at_most_the_bound(hostile, clip_norm):
    _, without = clip_and_sum(parts_with(hostile, 0), clip_norm)
    _, with_it = clip_and_sum(parts_with(hostile, 1), clip_norm)
    assert torch.isfinite(flat(with_it)).all()
    assert float((flat(with_it) - flat(without)).norm()) <= clip_norm * (1 + 1e-5)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 2 * MAX_GRADIENT_NORM])
@pytest.mark.parametrize("position", range(9))
def test_a_gradient_that_is_not_finite_counts_as_zero(poison, position):
    hostile = [1.0] * 9
    hostile[position] = poison
    norms, alone = clip_and_sum([type(part)(*_only_last(part)) for part in parts_with(hostile, 1)], 1.0)
    assert not flat(alone).any()
    assert not float(norms[0]) < MAX_GRADIENT_NORM


def _only_last(part):
    if isinstance(part, Outer):
        return part.left[-1:], part.right[-1:]
    return part.rows[-1:], part.shape


def test_small_gradients_pass_unchanged_and_large_ones_are_scaled():
    rows = torch.tensor([[0.3, 0.4], [30.0, 40.0]])
    norms, (total,) = clip_and_sum([Rows(rows, torch.Size([2]))], 1.0)
    assert norms.tolist() == pytest.approx([0.5, 50.0])
    assert total.tolist() == pytest.approx([0.9, 1.2], rel=1e-6)


def test_the_norm_is_taken_over_all_parts_together():
    first, second = Rows(torch.tensor([[3.0]]), torch.Size([1])), Rows(torch.tensor([[4.0]]), torch.Size([1]))
    norms, sums = clip_and_sum([first, second], 1.0)
    assert float(norms[0]) == pytest.approx(5.0)
    assert [float(total) for total in sums] == pytest.approx([0.6, 0.8], rel=1e-6)


def test_a_tiny_input_with_a_huge_gradient_is_not_taken_for_nothing():
    """Squares of 1e-30 vanish in float32; the outer product is 1e-13 all the same, and its norm must not come out as 0."""
    left, right = torch.full((1, 4), 1e17), torch.full((1, 4), 1e-30)
    norms, (total,) = clip_and_sum([Outer(left, right)], 1e-14)
    assert float(norms[0]) >= 4e-13
    assert float(total.double().norm()) <= 1e-14 * (1 + 1e-5)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_rows_of_any_shape_are_weighted_and_dense_alike(shape):
    generator = torch.Generator().manual_seed(0)
    rows, factors = torch.randn((5, *shape), generator=generator), torch.rand(5, generator=generator)
    part = Rows(rows, torch.Size(shape))
    torch.testing.assert_close(part.weighted_sum(factors), (factors.reshape(-1, *[1] * len(shape)) * part.dense()).sum(dim=0))
    torch.testing.assert_close(part.norms(), rows.reshape(5, -1).norm(dim=1).double())


def test_swapped_rows_are_the_transposed_gradient():
    rows = torch.arange(24.0).reshape(2, 1, 3, 4)
    part = Rows(rows, torch.Size([4, 3]), swapped=True)
    torch.testing.assert_close(part.dense(), rows[:, 0].mT)
    torch.testing.assert_close(part.weighted_sum(torch.tensor([1.0, 0.5])), (rows[0, 0] + 0.5 * rows[1, 0]).T)


def test_an_outer_part_equals_its_dense_form():
    generator = torch.Generator().manual_seed(0)
    part = Outer(torch.randn((5, 3), generator=generator), torch.randn((5, 4), generator=generator))
    dense, factors = Rows(part.dense(), torch.Size([3, 4])), torch.rand(5, generator=generator)
    torch.testing.assert_close(part.norms(), dense.norms())
    torch.testing.assert_close(part.weighted_sum(factors), dense.weighted_sum(factors))


def test_the_plain_engine_refuses_to_pretend_that_it_clips():
    with pytest.raises(ValueError, match="does not clip"):
        PlainEngine(torch.nn.Linear(2, 2)).clipped_sum(torch.ones(1, 2), torch.zeros(1), lambda outputs, _: outputs.sum(dim=1), 1.0)
