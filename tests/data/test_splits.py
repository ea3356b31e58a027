"""Apportioning and holding out: exact sums, every stratum served, the same for the same seed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.data.splits import apportion, hold_out, seeded_generator
from fedsec.errors import DataError


@settings(deadline=None)
@given(
    total=st.integers(0, 100_000),
    weights=st.lists(st.floats(0.0, 1e6, allow_subnormal=False), min_size=1, max_size=30).filter(lambda weights: sum(weights) > 0),
)
def test_shares_sum_exactly_and_are_less_than_one_off(total: int, weights: list[float]) -> None:
    shares = apportion(total, weights)
    quota = total * np.array(weights) / sum(weights)
    assert shares.sum() == total
    assert (shares >= 0).all()
    assert (np.abs(shares - quota) < 1 + 1e-6).all()


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -1.0], [np.nan], [np.inf], [], [[1.0]]])
def test_weights_that_mean_nothing_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="apportion"):
        apportion(3, weights)


@settings(deadline=None)
@given(labels=st.lists(st.integers(0, 5), min_size=10, max_size=200), fraction=st.floats(0.05, 0.6), seed=st.integers(0, 2**63 - 1))
def test_holding_out_takes_the_same_share_of_every_class_and_leaves_one(labels: list[int], fraction: float, seed: int) -> None:
    y = np.array(labels)
    counts = np.bincount(y)
    train, test = hold_out(y, fraction, seed=seed, name="toy")
    assert sorted([*train, *test]) == list(range(len(y)))
    taken = np.bincount(y[test], minlength=len(counts))
    assert (np.abs(taken - fraction * counts) < 2).all()
    assert (np.bincount(y[train], minlength=len(counts))[counts > 0] >= 1).all()
    again = hold_out(y, fraction, seed=seed, name="toy")
    assert np.array_equal(again[0], train)
    assert np.array_equal(again[1], test)


def test_another_seed_holds_out_other_records() -> None:
    y = np.repeat(np.arange(4), 50)
    assert not np.array_equal(hold_out(y, 0.2, seed=1, name="toy")[1], hold_out(y, 0.2, seed=2, name="toy")[1])


@pytest.mark.parametrize("labels", [[], [0], [0, 1]])
def test_too_few_records_to_hold_out_are_refused(labels: list[int]) -> None:
    with pytest.raises(DataError, match=r"'toy'.*too few"):
        hold_out(np.array(labels, dtype=np.int64), 0.2, seed=1, name="toy")


def test_streams_of_two_purposes_differ_and_one_purpose_repeats() -> None:
    assert seeded_generator("a", 1).integers(2**60) == seeded_generator("a", 1).integers(2**60)
    assert seeded_generator("a", 1).integers(2**60) != seeded_generator("b", 1).integers(2**60)
    assert seeded_generator("a", 1).integers(2**60) != seeded_generator("a", 2).integers(2**60)
