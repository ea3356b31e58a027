"""Who stands out along one direction."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.robust.standing_out import standing_out, weighted_median

ONES = np.ones(20)


def stand(places, most=5, sizes=ONES):
    return standing_out(np.asarray(places, dtype=float), sizes, most=most, deviations=4.0)


def noise(seed=0):
    return np.random.default_rng(seed).standard_normal(20)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_a_group_of_up_to_f_stands_out(size):
    places = noise()
    places[:size] += 9.0
    scores, crowded = stand(places)
    assert (scores[:size] >= 1).all()
    assert (scores[size:] < 1).all()
    assert crowded == 0


def test_a_group_does_not_hide_behind_the_spread_that_it_makes():
    places = 3 * noise()  # the rest differ by more than noise
    places[:5] = 16.0
    assert (stand(places)[0][:5] >= 1).all()
    residuals = places - np.median(places)
    assert (residuals[:5] / (1.4826 * np.median(np.abs(residuals))) < 4).all()  # as a plain median deviation would have it


def test_a_side_with_more_than_f_on_it_is_no_collusion():
    places = noise()
    places[:7] += 9.0
    scores, crowded = stand(places)
    assert (scores < 1).all()
    assert crowded >= 6


def test_an_honest_straggler_does_not_save_a_group_far_out():
    places = noise()
    places[:5] += 40.0
    places[5] = 7.0
    scores, _ = stand(places)
    assert (scores[:5] >= 1).all()
    assert scores[5] < 1


def test_noise_units_are_the_least_spread():
    places = 0.1 * noise()
    places[0] = 3.5  # 35 of the others' deviations, but not four of noise
    assert (stand(places)[0] < 1).all()


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_a_client_of_another_size_may_stand_anywhere_up_to_its_size(power):
    sizes = np.linspace(0.5, 8.0, 20)
    sizes /= np.median(sizes)
    assert (stand(6.0 * sizes**power + noise(), sizes=sizes)[0] < 1).all()


def test_size_is_no_excuse_on_the_other_side():
    sizes = np.append(np.ones(19), 8.0)
    places = 3.0 + noise()
    places[19] = -30.0
    assert stand(-places, sizes=sizes)[0][19] >= 1


@given(st.lists(st.floats(-50, 50), min_size=6, max_size=20), st.integers(1, 3), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_never_more_than_f_and_blind_to_the_order(places, most, random):
    values = np.array(places)
    scores, _ = stand(values, most=most, sizes=np.ones(len(values)))
    assert np.count_nonzero(scores >= 1) <= most
    if len(set(places)) == len(places):
        order = list(range(len(places)))
        random.shuffle(order)
        np.testing.assert_allclose(stand(values[order], most=most, sizes=np.ones(len(values)))[0], scores[order])


def test_weighted_median_against_repeated_values():
    values, weights = np.array([5.0, 1.0, 3.0, 9.0]), np.array([2.0, 1.0, 3.0, 1.0])
    assert weighted_median(values, weights) == np.median(np.repeat(values, weights.astype(int)))
