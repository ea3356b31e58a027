"""The room that the tests leave, against the tests themselves."""

import math

import numpy as np
import pytest

from fedsec.robust.base import Mode, RoundView
from fedsec.robust.hiding_room import hiding_room
from fedsec.robust.screening import SUSPICION, screen

NAMES = tuple(f"c{place:02d}" for place in range(20))


def room(**changes):
    numbers = {"num_clients": 20, "num_byzantine": 4, "num_columns": 128, "dimension": 128, "rounds": 20, "lifted": True}
    return hiding_room(**(numbers | changes))


def rows_of(generator, amplitude, members, columns=128):
    rows = generator.standard_normal((20, columns))
    rows[members, 0] += amplitude
    return rows


def view_of(rows, most=4):
    return RoundView(
        mode=Mode.OPEN,
        client_ids=NAMES,
        vectors=rows,
        dimension=rows.shape[1],
        batch_sizes=np.ones(20),
        noise_stddev=1.0,
        num_byzantine=most,
    )


@pytest.mark.parametrize(("factor", "low", "high"), [(0.6, 0.0, 0.2), (1.3, 0.9, 1.0)])
def test_a_shared_push_is_missed_well_under_the_room_and_seen_well_over_it(factor, low, high):
    generator, amplitude = np.random.default_rng(1), factor * room().with_noise / 4
    seen = np.mean([(~screen(view_of(rows_of(generator, amplitude, range(4))))[0].accepted[:4]).mean() for _ in range(60)])
    assert low <= seen <= high


@pytest.mark.parametrize("members", [1, 4])
@pytest.mark.parametrize(("factor", "low", "high"), [(0.6, 0.0, 0.2), (1.4, 0.85, 1.0)])
def test_so_is_one_that_is_kept_up(members, factor, low, high):
    limit = room(num_byzantine=max(members, 2))
    amplitude = factor * (limit.alone_over_rounds if members == 1 else limit.over_rounds / 4)
    found = []
    for seed in range(12):
        generator, state = np.random.default_rng(seed), None
        for _ in range(20):
            verdict, state = screen(view_of(rows_of(generator, amplitude, range(members))), state=state)
        found += [f"{SUSPICION}{name}" in verdict.facts for name in NAMES[:members]]
    assert low <= np.mean(found) <= high


def test_chosen_noise_fills_the_room_without_noise_and_no_round_sees_it():
    generator, limit = np.random.default_rng(2), room()
    length = 0.9 * math.sqrt(limit.without_noise**2 / 4 - 0)  # four orthogonal rows that add up to one direction
    longest = screen(view_of(generator.standard_normal((20, 128))))[0].facts["most"]
    length = min(length, 0.95 * longest)
    basis = np.linalg.qr(generator.standard_normal((127, 3)))[0].T
    corners = np.eye(4) - 0.25
    simplex = corners @ np.linalg.qr(corners[:, :3])[0]
    crew = length * np.hstack([np.full((4, 1), 0.5), simplex @ basis])
    np.testing.assert_allclose(crew @ crew.T, length**2 * np.eye(4), atol=1e-9)
    rows = generator.standard_normal((20, 128))
    rows[:4] = crew
    assert screen(view_of(rows))[0].accepted[:4].all()
    push = float(np.linalg.norm(crew.sum(axis=0)))
    assert push == pytest.approx(2 * length)
    assert 0.6 * limit.without_noise < push < limit.without_noise


def test_room_grows_with_the_model_and_shrinks_with_rows_and_rounds():
    assert room(dimension=4 * 128).with_noise == pytest.approx(2 * room().with_noise)
    assert room(num_columns=256, dimension=650).with_noise < room(num_columns=128, dimension=650).with_noise
    assert room(rounds=40).over_rounds < room(rounds=10).over_rounds < room(rounds=1).over_rounds
    assert room(num_byzantine=1).without_noise < room().without_noise
    assert room(lifted=False).over_rounds > room().over_rounds
    assert math.isinf(room(lifted=False).alone_over_rounds)


@pytest.mark.parametrize("changes", [{"num_clients": 5}, {"num_byzantine": 0}, {"num_byzantine": 10}, {"num_columns": 129}, {"rounds": 0}])
def test_numbers_out_of_range_are_refused(changes):
    with pytest.raises(ValueError, match="no room"):
        room(**changes)
