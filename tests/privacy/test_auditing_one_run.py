"""The one-run bound: against brute force, against mechanisms whose epsilon is known, against a published implementation's numbers."""

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.privacy.auditing.gaussian import epsilon_of_gaussians, gaussian_estimate, separation_of
from fedsec.privacy.auditing.one_run import count_correct, epsilon_lower_bound, number_of_guesses, p_value, perfect_bound

JAX_PRIVACY_2_0_0 = [
    (1000, 1000, 700, 1e-5, 0.7317406384658977),
    (1000, 100, 80, 1e-5, 0.9553185001776855),
    (1000, 100, 100, 1e-3, 0.8090137853425662),
    (1000, 1000, 1000, 1e-5, 5.782283131572193),
    (1000, 1000, 1000, 1e-3, 3.488994797394951),
    (2000, 300, 200, 0.0, 0.4858788805839613),
    (1000, 200, 200, 1e-5, 4.166490177422454),
]
"""(m, r, v, delta, bound) by ``jax_privacy.auditing._epsilon_one_run`` of jax-privacy 2.0.0, at 95 %."""


def bound(m, r, v, delta, confidence=0.95):
    return epsilon_lower_bound(num_canaries=m, num_guesses=r, num_correct=v, delta=delta, confidence=confidence)


@pytest.mark.parametrize(("m", "r", "v", "delta", "expected"), JAX_PRIVACY_2_0_0)
def test_the_bound_is_that_of_jax_privacy(m, r, v, delta, expected):
    assert bound(m, r, v, delta) == pytest.approx(expected, abs=2e-6)


def test_p_values_are_those_of_jax_privacy_where_it_is_installed(monkeypatch):
    found = importlib.util.find_spec("jax_privacy")
    if found is None or not found.submodule_search_locations:
        pytest.skip("jax-privacy is not installed")
    # The file alone: the package's own import needs jax.
    spec = importlib.util.spec_from_file_location("jax_privacy_auditing", Path(found.submodule_search_locations[0]) / "auditing.py")
    theirs = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, theirs)
    spec.loader.exec_module(theirs)
    for m, r, v, delta, _ in JAX_PRIVACY_2_0_0:
        for epsilon in (0.0, 0.5, 3.0):
            ours = p_value(num_canaries=m, num_guesses=r, num_correct=v, epsilon=epsilon, delta=delta)
            assert ours == pytest.approx(theirs._one_run_p_value(m, r, v, epsilon, delta), rel=1e-6, abs=1e-12)


def brute_force_p(m, r, v, epsilon, delta):
    """The theorem written down literally, with exact binomial coefficients."""
    q = math.exp(epsilon) / (1 + math.exp(epsilon))
    mass = [math.comb(r, k) * q**k * (1 - q) ** (r - k) for k in range(r + 1)]
    beta = sum(mass[v:])
    alpha = max((sum(mass[v - i : v]) / i for i in range(1, v + 1)), default=0.0)
    return min(1.0, beta + 2 * m * delta * alpha)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_p_value_is_the_theorem(data):
    m = data.draw(st.integers(1, 40))
    r = data.draw(st.integers(0, m))
    v = data.draw(st.integers(0, r))
    epsilon, delta = data.draw(st.floats(0, 6)), data.draw(st.sampled_from([0.0, 1e-6, 1e-3, 0.1]))
    ours = p_value(num_canaries=m, num_guesses=r, num_correct=v, epsilon=epsilon, delta=delta)
    assert ours == pytest.approx(brute_force_p(m, r, v, epsilon, delta), rel=1e-9, abs=1e-12)


def test_randomised_response_is_bounded_tightly_and_rarely_wrongly():
    """Each canary's bit is kept with the probability that epsilon = 1 allows, exactly: the theorem is tight there, so 5 % may fail, not more."""
    epsilon, m, generator = 1.0, 2000, np.random.default_rng(5)
    q = math.exp(epsilon) / (1 + math.exp(epsilon))
    bounds = []
    for _ in range(200):
        members = generator.random(m) < 0.5
        answers = np.where(generator.random(m) < q, members, ~members)
        bounds.append(bound(m, m, int((answers == members).sum()), 0.0))
    wrong = np.mean(np.array(bounds) > epsilon)
    assert wrong <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200)
    assert np.mean(bounds) > 0.85 * epsilon


@pytest.mark.parametrize("epsilon", [1.0, 3.0])
def test_the_gaussian_mechanism_is_bounded_from_below_and_estimated_well(epsilon):
    """m Gaussian mechanisms side by side, each exactly (epsilon, 1e-5)-DP."""
    separation, m, generator = separation_of(epsilon, 1e-5), 4000, np.random.default_rng(11)
    r = number_of_guesses(num_canaries=m, separation=separation, delta=1e-5)
    bounds, estimates = [], []
    for _ in range(20):
        members = generator.random(m) < 0.5
        scores = generator.standard_normal(m) + separation * members
        bounds.append(bound(m, r, count_correct(scores, members, r), 1e-5))
        estimates.append(gaussian_estimate(scores, members, delta=1e-5))
    assert max(bounds) <= epsilon
    assert np.mean(bounds) >= 0.2 * epsilon
    assert np.mean(estimates) == pytest.approx(epsilon, rel=0.08)


def test_without_a_leak_nothing_is_shown():
    generator, m = np.random.default_rng(3), 1000
    shown = []
    for _ in range(100):
        members = generator.random(m) < 0.5
        shown.append(bound(m, 200, count_correct(generator.standard_normal(m), members, 200), 1e-5))
    assert np.mean(np.array(shown) > 0) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 100)


def test_a_large_delta_swallows_the_audit_and_a_small_one_does_not():
    """Design note: with m = 1000 a perfect guesser reaches 5.0 to 5.8 at 1e-5, and at 1e-3 much less with few guesses."""
    assert 5.0 < perfect_bound(num_canaries=1000, num_guesses=1000, delta=1e-5) < 5.81
    assert perfect_bound(num_canaries=1000, num_guesses=100, delta=1e-3) < 1.0
    assert perfect_bound(num_canaries=1000, num_guesses=100, delta=1e-5) > 3.0


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 300), st.data())
def test_bounds_grow_with_right_guesses_and_fall_with_delta(m, data):
    r = data.draw(st.integers(1, m))
    values = [bound(m, r, v, 1e-5) for v in range(0, r + 1, max(1, r // 7))]
    assert values == sorted(values)
    assert bound(m, r, r, 1e-3) <= bound(m, r, r, 1e-5) <= bound(m, r, r, 0.0)


def test_r_is_even_fixed_by_public_numbers_and_smaller_for_stronger_attacks():
    counts = [number_of_guesses(num_canaries=1000, separation=s, delta=1e-5) for s in (0.0, 0.3, 1.0, 4.0)]
    assert all(count % 2 == 0 and 2 <= count <= 1000 for count in counts)
    assert counts[1] > counts[2]
    assert number_of_guesses(num_canaries=2, separation=1.0, delta=0.0) == 2


def test_guesses_are_counted_at_both_ends_and_ties_know_nothing():
    scores = np.array([5.0, 4.0, 3.0, 2.0, 1.0, 0.0])
    members = np.array([True, False, True, True, True, False])
    assert count_correct(scores, members, 2) == 2
    assert count_correct(scores, members, 4) == 2
    assert count_correct(np.zeros(6), ~members, 6) + count_correct(np.zeros(6), members, 6) == 6


@pytest.mark.parametrize(
    "numbers",
    [
        {"num_canaries": 0, "num_guesses": 0, "num_correct": 0, "delta": 0.0},
        {"num_canaries": 5, "num_guesses": 6, "num_correct": 0, "delta": 0.0},
        {"num_canaries": 5, "num_guesses": 4, "num_correct": 5, "delta": 0.0},
        {"num_canaries": 5, "num_guesses": 4, "num_correct": -1, "delta": 0.0},
        {"num_canaries": 5, "num_guesses": 4, "num_correct": 2, "delta": 1.0},
        {"num_canaries": 5, "num_guesses": 4, "num_correct": 2, "delta": math.nan},
        {"num_canaries": 5, "num_guesses": 4, "num_correct": 2, "delta": 0.0, "confidence": 1.0},
    ],
)
def test_numbers_that_cannot_be_are_refused(numbers):
    with pytest.raises(ValueError):
        epsilon_lower_bound(**numbers)


def test_odd_guesses_nan_scores_and_infinite_epsilon_are_refused():
    with pytest.raises(ValueError):
        count_correct(np.zeros(4), np.ones(4, dtype=bool), 3)
    with pytest.raises(ValueError):
        count_correct(np.array([1.0, math.nan]), np.ones(2, dtype=bool), 2)
    with pytest.raises(ValueError):
        p_value(num_canaries=4, num_guesses=2, num_correct=1, epsilon=math.inf, delta=0.0)
    with pytest.raises(ValueError):
        number_of_guesses(num_canaries=1, separation=1.0, delta=0.0)


# ---- two Gaussians


@pytest.mark.parametrize("mu", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("delta", [1e-5, 1e-3])
def test_equal_deviations_give_the_gaussian_mechanism(mu, delta):
    """Balle and Wang 2018, theorem 8: delta = Phi(mu/2 - eps/mu) - e^eps Phi(-mu/2 - eps/mu)."""
    from statistics import NormalDist

    epsilon = epsilon_of_gaussians(mean=mu * 2.0, stddev=2.0, other_mean=0.0, other_stddev=2.0, delta=delta)
    phi = NormalDist().cdf
    assert phi(mu / 2 - epsilon / mu) - math.exp(epsilon) * phi(-mu / 2 - epsilon / mu) == pytest.approx(delta, rel=1e-4)
    assert separation_of(epsilon, delta) == pytest.approx(mu, rel=1e-6)


@pytest.mark.parametrize(("mean", "stddev"), [(0.0, 1.3), (0.5, 0.7), (2.0, 1.5), (-1.0, 0.9)])
def test_unequal_deviations_agree_with_sums_over_a_grid(mean, stddev):
    x = np.linspace(-30, 30, 600_001)
    p = np.exp(-0.5 * ((x - mean) / stddev) ** 2) / (stddev * math.sqrt(2 * math.pi))
    q = np.exp(-0.5 * x**2) / math.sqrt(2 * math.pi)
    epsilon = epsilon_of_gaussians(mean=mean, stddev=stddev, other_mean=0.0, other_stddev=1.0, delta=1e-3)
    step = x[1] - x[0]
    both = [np.maximum(p - math.exp(epsilon) * q, 0).sum() * step, np.maximum(q - math.exp(epsilon) * p, 0).sum() * step]
    assert max(both) == pytest.approx(1e-3, rel=1e-3)


def test_estimates_are_withheld_where_they_would_say_nothing():
    members = np.arange(40) % 2 == 0
    assert gaussian_estimate(np.where(members, 1.0, 0.0), members, delta=1e-5) is None
    assert gaussian_estimate(np.arange(12.0), np.arange(12) < 3, delta=1e-5) is None
    same = epsilon_of_gaussians(mean=1.0, stddev=1.0, other_mean=1.0, other_stddev=1.0, delta=1e-5)
    assert same == 0.0
    assert epsilon_of_gaussians(mean=1e3, stddev=1e-3, other_mean=0.0, other_stddev=1e-3, delta=1e-5) == math.inf
