"""The quick estimate agrees with Google's PLD accountant, which shares no code with it, or says that it has no answer."""

import random

import pytest
from dp_accounting.pld import privacy_loss_distribution as pld

from fedsec.privacy.crosscheck import quick_epsilon


def google(parts, delta, interval):
    whole = None
    for sigma, rate, steps in parts:
        one = pld.from_gaussian_mechanism(sigma, sampling_prob=rate, value_discretization_interval=interval).self_compose(steps)
        whole = one if whole is None else whole.compose(one)
    return whole.get_epsilon_for_delta(delta)


def random_points(count):
    generator = random.Random(5)
    while count:
        rate = generator.choice([1.0, 10 ** generator.uniform(-3, 0)])
        sigma, steps, delta = 10 ** generator.uniform(-0.3, 1.3), int(10 ** generator.uniform(0, 3)), 10 ** generator.uniform(-8, -2)
        if (quick := quick_epsilon([(sigma, rate, steps)], delta)) is not None and 0.02 < quick < 30:
            count -= 1
            yield sigma, rate, steps, delta


@pytest.mark.parametrize(("sigma", "rate", "steps", "delta"), list(random_points(7)))
def test_the_estimate_agrees_with_plds_at_random_points(sigma, rate, steps, delta):
    quick = quick_epsilon([(sigma, rate, steps)], delta)
    interval = max(1e-5, min(1e-3, quick * 2e-3 / steps**0.5))
    assert quick == pytest.approx(google([(sigma, rate, steps)], delta, interval), rel=1e-3)


def test_little_noise_and_rare_sampling_do_not_wrap_around():
    # A range one cell too short made this 49.4: the lowest losses came in again at the top.
    assert quick_epsilon([(0.3, 0.01, 10)], 1e-5) == pytest.approx(google([(0.3, 0.01, 10)], 1e-5, 1e-3), rel=1e-3)


def test_mixed_segments_are_composed():
    parts = [(1.2, 0.1, 40), (3.0, 0.5, 7), (10.0, 1.0, 3)]
    assert quick_epsilon(parts, 1e-4) == pytest.approx(google(parts, 1e-4, 2e-4), rel=1e-3)


def test_almost_no_loss_under_a_large_delta_is_zero():
    assert quick_epsilon([(28.0, 0.0075, 33)], 0.0058) == 0.0


@pytest.mark.parametrize(
    ("parts", "delta"), [([], 1e-5), ([(1.0, 0.1, 10)], 1e-11), ([(0.05, 1.0, 60)], 1e-5), ([(5.0, 0.5, 10**9)], 1e-5)]
)
def test_what_cannot_be_done_quickly_has_no_answer(parts, delta):
    assert quick_epsilon(parts, delta) is None
