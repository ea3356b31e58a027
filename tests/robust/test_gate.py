"""The two-sided gate on norms."""

import numpy as np
import pytest

from fedsec.robust.gate import gate_of

TAIL = 5e-4


def gate(squares, sizes=None, degrees=128):
    squares = np.asarray(squares, dtype=float)
    return gate_of(squares, degrees, np.ones(len(squares)) if sizes is None else sizes, tail=TAIL, allowance=6.0)


def squared_norms(generator, count, degrees=128, signal=0.0):
    rows = generator.standard_normal((count, degrees))
    rows[:, 0] += signal
    return (rows**2).sum(axis=1)


@pytest.mark.parametrize("degrees", [16, 128, 650])
@pytest.mark.parametrize("signal", [0.0, 4.0])
def test_honest_clients_fall_outside_about_as_often_as_the_tails_say(degrees, signal):
    generator = np.random.default_rng(degrees)
    outside = sum(int((gate(squared_norms(generator, 20, degrees, signal), degrees=degrees).scores >= 1).sum()) for _ in range(1500))
    assert outside / 30_000 <= 2 * TAIL + 5e-4


def test_too_little_noise_is_a_fault_and_is_said_in_words():
    squares = squared_norms(np.random.default_rng(1), 20)
    squares[3] = 60.0
    found = gate(squares)
    assert np.flatnonzero(found.scores >= 1).tolist() == [3]
    assert found.reason(3) == f"norm {60**0.5:.1f} is under the least {found.least:.1f} that honest noise allows"


def test_too_much_is_a_fault_too():
    squares = squared_norms(np.random.default_rng(1), 20)
    squares[7] = 400.0
    found = gate(squares)
    assert np.flatnonzero(found.scores >= 1).tolist() == [7]
    assert "20.0 is over the most" in found.reason(7)


def test_scores_are_one_exactly_at_the_limits():
    squares = squared_norms(np.random.default_rng(1), 21)
    squares[0] = gate(squares).least ** 2
    assert gate(squares).scores[0] == pytest.approx(1.0, abs=1e-6)


def test_a_minority_cannot_open_the_gate_beyond_what_honest_signals_do():
    honest = squared_norms(np.random.default_rng(2), 16)
    quiet, loud = gate(np.append(honest, [128.0] * 4)), gate(np.append(honest, [1e6] * 4))
    assert loud.most[0] < 1.1 * quiet.most[0]


def test_a_large_client_may_have_as_much_more_signal_as_it_is_larger():
    sizes = np.ones(20)
    sizes[0] = 23.0
    squares = squared_norms(np.random.default_rng(3), 20, signal=1.0)
    squares[0] = 128 + 23.0**2
    assert gate(squares, sizes).scores[0] < 1
    assert gate(squares).scores[0] >= 1
