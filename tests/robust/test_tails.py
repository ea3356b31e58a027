"""Closed-form quantiles against exact ones and against simulated noise."""

import math

import numpy as np
import pytest
from scipy.stats import chi2, ncx2, norm

from fedsec.robust.tails import chi_squared_place, chi_squared_quantile, normal_quantile, semicircle_quantile, spectral_edge


@pytest.mark.parametrize("degrees", [32, 64, 128, 650, 100_000])
@pytest.mark.parametrize("z", [-3.3, -1.0, 0.0, 1.0, 3.3])
def test_chi_squared_quantiles_are_within_a_percent_and_a_half(degrees, z):
    assert chi_squared_quantile(degrees, z) == pytest.approx(chi2.ppf(norm.cdf(z), degrees), rel=0.015)


@pytest.mark.parametrize("signal", [1.0, 40.0, 600.0])
@pytest.mark.parametrize("degrees", [28, 128, 650])
def test_upper_quantile_with_signal_is_within_two_percent(degrees, signal):
    exact = ncx2.ppf(1 - 5e-4, degrees, signal)
    assert chi_squared_quantile(degrees, normal_quantile(5e-4), signal) == pytest.approx(exact, rel=0.02)


def test_the_lower_limit_of_a_tiny_sketch_is_on_the_safe_side():
    assert chi_squared_quantile(8, -normal_quantile(5e-4)) < chi2.ppf(5e-4, 8)


@pytest.mark.parametrize("z", [-2.5, 0.0, 4.0])
def test_place_is_the_inverse_of_quantile(z):
    assert chi_squared_place(chi_squared_quantile(128, z, 25.0), 128, 25.0) == pytest.approx(z, abs=1e-9)


@pytest.mark.parametrize(("clients", "columns"), [(8, 128), (20, 32), (20, 128), (50, 128)])
@pytest.mark.parametrize(("tail", "allowed"), [(0.05, 0.05), (0.01, 0.01)])
def test_noise_passes_the_spectral_edge_no_more_often_than_it_says(clients, columns, tail, allowed):
    generator = np.random.default_rng(clients)
    over, rounds = 0, 600
    for _ in range(rounds):
        rows = generator.standard_normal((clients, columns))
        gram = rows @ rows.T
        np.fill_diagonal(gram, 0.0)
        over += np.linalg.eigvalsh(gram)[-1] > spectral_edge(clients, columns, tail)
    assert over / rounds <= allowed + 2 * math.sqrt(allowed / rounds)


def test_the_edge_is_not_far_above_noise():
    generator = np.random.default_rng(5)
    tops = []
    for _ in range(200):
        rows = generator.standard_normal((20, 128))
        gram = rows @ rows.T
        np.fill_diagonal(gram, 0.0)
        tops.append(np.linalg.eigvalsh(gram)[-1])
    assert spectral_edge(20, 128, 0.01) < 1.2 * float(np.quantile(tops, 0.95))


@pytest.mark.parametrize("share", [0.05, 0.125, 0.3])
def test_semicircle_quantile_against_eigenvalues(share):
    generator = np.random.default_rng(3)
    matrix = generator.standard_normal((600, 600))
    eigenvalues = np.linalg.eigvalsh((matrix + matrix.T) / math.sqrt(2)) / (2 * math.sqrt(600))
    assert semicircle_quantile(share) == pytest.approx(float(np.quantile(eigenvalues, 1 - share)), abs=0.02)
