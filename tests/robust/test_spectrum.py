"""Shared directions: what is above the edge, who is found along it, and in which order."""

import numpy as np

from fedsec.robust.levels import DEFAULT_SETTINGS
from fedsec.robust.spectrum import centred, outlying
from fedsec.robust.tails import spectral_edge

ONES = np.ones(20)
EDGE = spectral_edge(20, 128, DEFAULT_SETTINGS.edge_tail)


def look(rows, most=5, **kwargs):
    gram = rows @ rows.T
    np.fill_diagonal(gram, 0.0)
    return outlying(gram, ONES, unit=np.sqrt(rows.shape[1]), columns=rows.shape[1], most=most, settings=DEFAULT_SETTINGS, **kwargs)


def found(rows, most=5, **kwargs):
    return np.flatnonzero(look(rows, most, **kwargs).scores >= 1).tolist()


def along(direction, columns=128):
    return np.eye(1, columns, direction)


def noise(seed=0):
    return np.random.default_rng(seed).standard_normal((20, 128))


def test_noise_has_nothing_above_the_edge():
    spectrum = look(noise())
    assert spectrum.edge >= EDGE > spectrum.eigenvalues[0]
    assert not spectrum.scores.any()


def test_two_groups_of_honest_clients_do_not_hide_a_third():
    rows = noise(4)
    rows[:8] += 6 * along(0)
    rows[8:16] += 6 * along(1)
    rows[16:] += 12 * along(2)
    assert found(rows, most=4) == [16, 17, 18, 19]


def test_a_far_out_group_does_not_hide_a_lesser_one_on_the_other_side():
    rows = noise(5)
    rows[:2] += 40 * along(0)
    rows[2:5] -= 11 * along(0)
    assert found(rows) == [0, 1, 2, 3, 4]


def test_whose_noise_colluders_subtract_is_not_found_with_them():
    rows = noise(6)
    rows[:4] += -1.6 * rows[7]
    assert found(rows) == [0, 1, 2, 3]


def test_who_is_left_out_has_a_voice_in_the_first_pass():
    rows = noise(7)
    rows[:4] += 9 * along(0)
    left_out = np.arange(20) < 2
    assert {2, 3} <= set(found(rows, left_out=left_out))
    assert found(np.vstack([noise(8)[:2], rows[2:]])) == []  # two alone are under the edge


def test_honest_clients_that_differ_by_more_than_noise_raise_the_edge():
    generator = np.random.default_rng(6)
    rows = generator.standard_normal((20, 128)) + 5 * generator.standard_normal((20, 10)) @ np.eye(10, 128)
    assert look(rows).edge > 1.5 * EDGE


def test_centred_is_as_if_the_mean_row_had_been_taken_away():
    rows = np.random.default_rng(2).standard_normal((6, 4))
    apart = rows - rows.mean(axis=0)
    np.testing.assert_allclose(centred(rows @ rows.T), apart @ apart.T, atol=1e-12)
