"""Shared directions, and who stands out along one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.robust.spectrum import SIZE_DIFFERENCE, centred, outlying, standing_out, weighted_median
from fedsec.robust.tails import spectral_edge

ONES = np.ones(20)


def stand(places, most=5, sizes=ONES):
    return standing_out(np.asarray(places, dtype=float), sizes, most=most, deviations=4.0, difference=SIZE_DIFFERENCE)


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


def test_signal_that_grows_with_the_declared_size_is_expected():
    sizes = np.linspace(0.5, 8.0, 20)
    assert (stand(3.0 * sizes + noise(), sizes=sizes)[0] < 1).all()


def test_two_groups_of_honest_clients_do_not_hide_a_third():
    generator = np.random.default_rng(4)
    directions = np.linalg.qr(generator.standard_normal((128, 3)))[0].T
    rows = generator.standard_normal((20, 128))
    rows[:8] += 6 * directions[0]
    rows[8:16] += 6 * directions[1]
    rows[16:] += 9 * directions[2]
    gram = rows @ rows.T
    np.fill_diagonal(gram, 0.0)
    spectrum = outlying(gram, ONES, edge=spectral_edge(20, 128, 0.01), unit=np.sqrt(128), columns=128, most=4, deviations=4.0)
    assert np.flatnonzero(spectrum.scores >= 1).tolist() == [16, 17, 18, 19]


def test_honest_clients_that_differ_by_more_than_noise_raise_the_edge():
    generator = np.random.default_rng(6)
    rows = (
        generator.standard_normal((20, 128))
        + 5 * generator.standard_normal((20, 10)) @ np.linalg.qr(generator.standard_normal((128, 10)))[0].T
    )
    gram = rows @ rows.T
    np.fill_diagonal(gram, 0.0)
    edge = spectral_edge(20, 128, 0.01)
    assert outlying(gram, ONES, edge=edge, unit=np.sqrt(128), columns=128, most=5, deviations=4.0).edge > 2 * edge


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


def test_centred_is_as_if_the_mean_row_had_been_taken_away():
    rows = np.random.default_rng(2).standard_normal((6, 4))
    apart = rows - rows.mean(axis=0)
    np.testing.assert_allclose(centred(rows @ rows.T), apart @ apart.T, atol=1e-12)


def test_weighted_median_against_repeated_values():
    values, weights = np.array([5.0, 1.0, 3.0, 9.0]), np.array([2.0, 1.0, 3.0, 1.0])
    assert weighted_median(values, weights) == np.median(np.repeat(values, weights.astype(int)))
