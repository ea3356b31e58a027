"""Formulas of the attacks on updates, against plain ones written here."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.sim.attacks import bounded, deviations, geometry, simple
from fedsec.sim.attacks.adaptive import adaptive, stand_ins
from fedsec.sim.attacks.fang import fang
from fedsec.sim.attacks.knowledge import Past, unit_vector
from fedsec.sim.attacks.mimic import mimic
from fedsec.sim.attacks.relocated import relocated
from fedsec.sim.attacks.scaling import constrain_and_scale, model_replacement

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def known_deltas(round_):
    return round_.known.astype(np.float64) / round_.batch_sizes[:, None]


# --- plain ones -----------------------------------------------------------------------------------------------------------------


def test_sign_flip_and_ipm_go_backwards_by_their_factor(make_round, deltas_of):
    round_ = make_round("sign-flip")
    mean = known_deltas(round_).mean(axis=0)
    np.testing.assert_allclose(deltas_of(simple.sign_flip(round_)), np.tile(-5 * mean, (3, 1)), **CLOSE)
    np.testing.assert_allclose(deltas_of(deviations.ipm(make_round("ipm", strength=0.25)))[0], -0.25 * mean, **CLOSE)


def test_own_noise_is_that_of_an_honest_client_and_each_colluders_own(make_round):
    rounds = [make_round("sign-flip", d=4000, noise=3.0, own_noise=own_noise) for own_noise in (False, True)]
    difference = np.subtract(*(simple.sign_flip(round_).updates.astype(float) for round_ in rounds))
    assert np.allclose(difference.std(axis=1), 3.0, rtol=0.05)
    assert abs(np.corrcoef(difference)[0, 1]) < 0.06


def test_the_fixed_push_has_its_length_in_noise_units_and_its_direction_in_every_round(make_round):
    rounds = [make_round("fixed-direction", noise=0.5, seed=seed, server_round=seed, run_seed=7) for seed in (1, 2, 3)]
    sent = np.array([simple.fixed_direction(round_).updates for round_ in rounds], dtype=float)
    assert np.allclose(np.linalg.norm(sent, axis=2), 6 * 0.5, rtol=1e-5)
    assert np.allclose(sent, sent[0, 0], rtol=1e-5)
    other = simple.fixed_direction(make_round("fixed-direction", noise=0.5, run_seed=8)).updates
    assert not np.allclose(other, sent[0, 0])


def test_the_fixed_push_follows_the_given_direction_and_alternates_with_a_negative_number(make_round):
    towards = np.zeros(30)
    towards[4] = 123.0
    steps = [
        simple.fixed_direction(make_round("fixed-direction", strength=-9.0, noise=2.0, direction=towards, server_round=r)).updates[:, 4]
        for r in (1, 2, 3)
    ]
    np.testing.assert_allclose(np.array(steps), np.array([[18.0] * 3, [-18.0] * 3, [18.0] * 3]), rtol=1e-6)


def test_without_privacy_the_unit_is_the_honest_spread(make_round):
    round_ = make_round("gaussian", n=200, f=2, d=50, spread=0.7)
    assert round_.unit == pytest.approx(0.7 * 8, rel=0.05)
    sent = simple.gaussian(round_).updates
    assert sent.std() == pytest.approx(10 * round_.unit, rel=0.15)


def test_dilution_declares_a_multiple_and_sends_noise_alone(make_round):
    round_ = make_round("dilution", d=5000, noise=2.0, sizes=[8] * 9 + [8, 10, 12])
    sent = simple.dilution(round_)
    assert sent.batch_sizes.tolist() == [160, 200, 240]
    assert np.allclose(sent.updates.std(axis=1), 2.0, rtol=0.05)
    assert not simple.dilution(make_round("dilution")).updates.any()


def test_free_riders_send_nothing_or_the_last_step(make_round, deltas_of):
    past = (
        Past(server_round=1, own=np.zeros((3, 30), np.float32), step=np.arange(30.0)),
        Past(server_round=2, own=np.zeros((3, 30), np.float32)),
    )
    assert not simple.free_rider(make_round("free-rider", history=past)).updates.any()
    np.testing.assert_allclose(
        deltas_of(simple.free_rider(make_round("free-rider", history=past, strength=2.0)))[1], 2 * np.arange(30.0), **CLOSE
    )
    assert not simple.free_rider(make_round("free-rider", strength=2.0)).updates.any()


@pytest.mark.parametrize(("age", "expected"), [(1.0, 5), (2.0, 4), (3.0, 2), (5.0, 1), (50.0, 1)])
def test_replay_sends_the_own_update_of_so_many_rounds_ago(make_round, deltas_of, age, expected):
    past = tuple(Past(server_round=r, own=np.full((3, 30), r, np.float32)) for r in (1, 2, 4, 5))
    sent = simple.replay(make_round("replay", server_round=6, history=past, strength=age))
    assert np.allclose(deltas_of(sent), expected)


def test_replay_without_a_past_is_honest(make_round):
    round_ = make_round("replay")
    assert np.array_equal(simple.replay(round_).updates, round_.own)


# --- deviations -----------------------------------------------------------------------------------------------------------------


@given(n=st.integers(2, 200), data=st.data())
def test_alie_deviations_are_the_papers(n, data):
    f = data.draw(st.integers(1, max(1, (n - 1) // 2)))
    share = (n - f - (n // 2 + 1 - f)) / (n - f)
    z = deviations.alie_deviations(n, f)
    if 0.5 < share < 0.999:
        assert NormalDist().cdf(z) == pytest.approx(share)
        beyond = (1 - NormalDist().cdf(z)) * (n - f)
        assert beyond + f == pytest.approx(n // 2 + 1)  # with so many honest ones beyond, the colluders are a majority
    else:
        assert z >= 0


@pytest.mark.parametrize("knowledge", ["omniscient", "partial"])
def test_alie_lies_z_deviations_from_the_mean_in_every_coordinate(make_round, deltas_of, knowledge):
    round_ = make_round("alie", strength=1.5, knowledge=knowledge, sizes=[4, 8, 8, 16] * 3)
    deltas = known_deltas(round_)
    np.testing.assert_allclose((deltas_of(deviations.alie(round_))[0] - deltas.mean(axis=0)) / deltas.std(axis=0), 1.5, rtol=1e-4)


def trusting(gram):
    """A rule of the test: weight 0 for the three rows farthest from the middle of the others, by the Gram matrix alone."""
    squares = np.diag(gram)
    distances = squares[:, None] + squares[None, :] - 2 * gram
    scores = np.sort(distances, axis=1)[:, : len(gram) - 3].sum(axis=1)
    weights = np.zeros(len(gram))
    weights[np.argsort(scores, kind="stable")[:-3]] = 1.0
    return weights / weights.sum()


def aggregate_of(round_, sent_deltas, rule):
    every = np.vstack([known_deltas(round_), sent_deltas])
    weights = np.full(len(every), 1 / len(every)) if rule is None else rule(every @ every.T)
    return weights @ every


def influence_of(round_, sent_deltas, rule):
    return float(np.linalg.norm(aggregate_of(round_, sent_deltas, rule) - known_deltas(round_).mean(axis=0)))


@pytest.mark.parametrize("rule", [None, trusting])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("plain", "optimised"), [(deviations.alie, deviations.optimised_alie), (deviations.ipm, deviations.optimised_ipm)])
def test_optimised_attacks_move_the_aggregate_farther(make_round, deltas_of, rule, seed, plain, optimised):
    round_ = make_round("optimised-alie", seed=seed, spread=0.5, aggregate=rule)
    one, other = (influence_of(round_, deltas_of(attack(round_)), rule) for attack in (plain, optimised))
    assert other >= one * (1 - 1e-6)
    if rule is None:  # the mean has no limit: the search goes to its end
        assert other > 5 * one


@pytest.mark.parametrize("rule", [None, trusting])
@pytest.mark.parametrize("attack", [deviations.optimised_alie, deviations.optimised_ipm])
def test_the_search_is_as_good_as_trying_a_thousand_sizes(make_round, deltas_of, rule, attack):
    for seed in range(3):
        round_ = make_round("optimised-ipm", seed=seed, spread=0.5, aggregate=rule, strength=8.0)
        deltas = known_deltas(round_)
        mean, step = deltas.mean(axis=0), deltas.std(axis=0)
        sizes = np.linspace(0, 8, 1000)
        tried = [mean + size * step if attack is deviations.optimised_alie else -size * mean for size in sizes]
        best = max(influence_of(round_, np.tile(one, (3, 1)), rule) for one in tried)
        assert influence_of(round_, deltas_of(attack(round_)), rule) >= 0.9 * best


def test_optimised_ipm_goes_to_the_edge_of_a_norm_rule(make_round, deltas_of):
    def short(gram):
        weights = (np.diag(gram) <= 400.0).astype(float)
        return weights / weights.sum()

    round_ = make_round("optimised-ipm", spread=0.5, aggregate=short)
    assert (np.linalg.norm(known_deltas(round_), axis=1) < 20).all()
    assert 18 < np.linalg.norm(deltas_of(deviations.optimised_ipm(round_))[0]) <= 20


@pytest.mark.parametrize("rule", [None, trusting])
def test_the_picture_on_the_gram_matrix_is_the_round_itself(make_round, rule):
    round_ = make_round("alie", aggregate=rule, seed=5)
    push = np.random.default_rng(1).normal(size=30)
    picture = geometry.Picture.of(round_, [push])
    for size in (0.0, 0.3, 5.0):
        direct = influence_of(round_, np.tile(round_.mean + size * push, (3, 1)), rule)
        assert picture.influence(0, size) == pytest.approx(direct, rel=1e-5, abs=1e-7)


def test_the_picture_of_the_mean_counts_declared_sizes(make_round):
    round_ = make_round("alie", sizes=[8] * 9 + [80] * 3)
    push = np.ones(30)
    # the colluders hold 240 of 312 declared records: their push counts with that share
    shift = geometry.Picture.of(round_, [push]).influence(0, 2.0)
    assert shift == pytest.approx(240 / 312 * 2 * math.sqrt(30), rel=1e-6)


def test_missing_honest_updates_look_like_the_known_ones(make_round):
    seen = {}

    def spy(gram):
        seen["gram"] = gram
        return np.full(len(gram), 1 / len(gram))

    round_ = make_round("alie", n=20, f=4, d=400, knowledge="partial", aggregate=spy)
    geometry.Picture.of(round_, [np.zeros(400)]).influence(0, 0.0)
    gram = seen["gram"]
    assert gram.shape == (20, 20)
    squares = np.diag(gram)
    distances = squares[:, None] + squares[None, :] - 2 * gram
    known = distances[:4, :4][~np.eye(4, dtype=bool)].mean()
    missing = distances[4:16, 4:16][~np.eye(12, dtype=bool)].mean()
    assert missing == pytest.approx(known, rel=1e-6)
    assert np.linalg.eigvalsh(gram).min() > -1e-6 * squares.max()  # vectors with these inner products exist


@given(top=st.floats(0.01, 60), guess=st.floats(0, 64), evaluations=st.integers(4, 40))
@settings(max_examples=60)
def test_the_line_search_keeps_to_its_budget_and_never_loses_to_its_guess(top, guess, evaluations):
    calls = []

    def value(size):
        calls.append(size)
        return size if size <= top else -size

    best = geometry.maximise(value, guess=guess, largest=64.0, evaluations=evaluations)
    assert len(calls) == len(set(calls)) <= evaluations
    assert value(best) >= value(guess)
    assert 0 <= best <= 64


# --- within the honest distances ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("knowledge", ["omniscient", "partial"])
@pytest.mark.parametrize("push", [1.0, 2.0, 3.0, None])
@pytest.mark.parametrize("seed", range(3))
def test_min_max_reaches_its_limit_and_keeps_it(make_round, deltas_of, knowledge, push, seed):
    round_ = make_round("min-max", knowledge=knowledge, strength=push, seed=seed, f=4)
    deltas, sent = known_deltas(round_), deltas_of(bounded.min_max(round_))
    limit = max(np.linalg.norm(a - b) for a in deltas for b in deltas)
    assert max(np.linalg.norm(sent[0] - a) for a in deltas) == pytest.approx(limit, rel=1e-5)


@pytest.mark.parametrize("knowledge", ["omniscient", "partial"])
@pytest.mark.parametrize("push", [1.0, 2.0, 3.0, None])
@pytest.mark.parametrize("seed", range(3))
def test_min_sum_reaches_its_limit_and_keeps_it(make_round, deltas_of, knowledge, push, seed):
    round_ = make_round("min-sum", knowledge=knowledge, strength=push, seed=seed, f=4)
    deltas, sent = known_deltas(round_), deltas_of(bounded.min_sum(round_))
    limit = max(sum(np.sum((a - b) ** 2) for b in deltas) for a in deltas)
    assert sum(np.sum((sent[0] - a) ** 2) for a in deltas) == pytest.approx(limit, rel=1e-5)


def test_min_max_pushes_along_the_three_directions_of_the_paper_and_by_default_along_the_worst(make_round, deltas_of):
    rounds = [make_round("min-max", strength=strength) for strength in (1.0, 2.0, 3.0, None)]
    deltas = known_deltas(rounds[0])
    mean = deltas.mean(axis=0)
    sent = [deltas_of(bounded.min_max(round_))[0] for round_ in rounds]
    for one, push in zip(sent, (-mean, -np.sign(mean), -deltas.std(axis=0)), strict=False):
        np.testing.assert_allclose(unit_vector(one - mean), unit_vector(push), atol=1e-5)
    shifts = [np.linalg.norm(one - mean) for one in sent]
    assert shifts[3] == pytest.approx(max(shifts[:3]))


# --- others ---------------------------------------------------------------------------------------------------------------------


def test_fang_lies_just_beyond_all_honest_values_against_the_mean(make_round, deltas_of):
    round_ = make_round("fang", seed=3)
    deltas, sent = known_deltas(round_), deltas_of(fang(round_))
    mean, low, high = deltas.mean(axis=0), deltas.min(axis=0), deltas.max(axis=0)
    for j in range(30):
        ends = (
            (low[j], low[j] * 2 if low[j] < 0 else low[j] / 2) if mean[j] >= 0 else (high[j], high[j] * 2 if high[j] > 0 else high[j] / 2)
        )
        assert (sent[:, j] >= min(ends) - 1e-5).all()
        assert (sent[:, j] <= max(ends) + 1e-5).all()
    assert np.std(sent, axis=0).min() > 0  # drawn for each colluder


def test_fang_with_partial_knowledge_lies_three_to_four_deviations_out(make_round, deltas_of):
    round_ = make_round("fang", knowledge="partial", f=5)
    deltas = known_deltas(round_)
    out = (deltas_of(fang(round_)) - deltas.mean(axis=0)) / deltas.std(axis=0) * -np.sign(deltas.mean(axis=0))
    assert out.min() >= 3 - 1e-4
    assert out.max() <= 4 + 1e-4


def test_mimic_copies_the_client_farthest_out_on_the_main_direction(make_round, deltas_of):
    round_ = make_round("mimic", n=15, d=200, spread=0.05, sizes=[4] * 7 + [16] * 8)
    main = np.random.default_rng(1).normal(size=200)
    round_.known[:] += (np.linspace(-1, 1.5, len(round_.known))[:, None] * main * round_.batch_sizes[:, None]).astype(np.float32)
    deltas = known_deltas(round_)
    centred = deltas - deltas.mean(axis=0)
    top = np.linalg.svd(centred)[2][0]
    extreme = int(np.argmax(np.abs(centred @ top)))
    np.testing.assert_allclose(deltas_of(mimic(round_)), np.tile(deltas[extreme], (3, 1)), **CLOSE)
    named = make_round("mimic", strength=2.0)
    np.testing.assert_allclose(deltas_of(mimic(named))[0], known_deltas(named)[2], **CLOSE)


def test_the_relocated_push_starts_at_the_last_step_and_is_orthogonal_to_it(make_round, deltas_of):
    step = np.linspace(-1, 2, 30)
    round_ = make_round("relocated", history=(Past(server_round=1, own=np.zeros((3, 30), np.float32), step=step),), strength=0.7)
    deltas = known_deltas(round_)
    push = deltas_of(relocated(round_))[0] - step
    reference = 0.9 * step + 0.1 * deltas.mean(axis=0)
    assert abs(push @ reference) < 1e-5 * np.linalg.norm(push) * np.linalg.norm(reference)
    radius = math.sqrt(np.mean(np.sum((deltas - deltas.mean(axis=0)) ** 2, axis=1)))
    assert np.linalg.norm(push) == pytest.approx(0.7 * radius, rel=1e-4)
    assert push @ np.ones(30) > 0
    first = make_round("relocated")
    moved = deltas_of(relocated(first))[0] - first.mean
    assert abs(moved @ first.mean) < 1e-4 * np.linalg.norm(moved) * np.linalg.norm(first.mean)


def test_model_replacement_survives_the_mean(make_round):
    """Honest updates of zero: the server's model becomes the colluders' own, whatever their number and sizes."""
    for f, sizes in ((1, [8] * 12), (3, [8] * 12), (3, [4] * 9 + [16] * 3)):
        round_ = make_round("model-replacement", f=f, sizes=sizes, server_learning_rate=0.5)
        round_.known[:] = 0
        round_.own[:] = (np.arange(30) * np.asarray(round_.own_batch_sizes)[:, None]).astype(np.float32)
        total = model_replacement(round_).updates.sum(axis=0, dtype=float)
        np.testing.assert_allclose(0.5 * total / sum(sizes), np.arange(30), rtol=1e-5)


def test_constrain_and_scale_has_an_honest_norm_and_the_own_direction(make_round):
    round_ = make_round("constrain-and-scale")
    round_.own[0] *= np.float32(0.5)
    round_.own[1] *= np.float32(30.0)
    sent = constrain_and_scale(round_).updates.astype(float)
    limit = np.median(np.linalg.norm(round_.known.astype(float), axis=1))
    assert np.allclose(np.linalg.norm(sent, axis=1), limit, rtol=1e-5)
    for one, own in zip(sent, round_.own.astype(float), strict=True):
        np.testing.assert_allclose(unit_vector(one), unit_vector(own), atol=1e-6)
    round_.own[2] *= np.float32(1e-6)  # nothing was learnt: it is not blown up past replacement
    assert np.linalg.norm(constrain_and_scale(round_).updates[2]) == pytest.approx(4 * np.linalg.norm(round_.own[2]), rel=1e-4)


# --- adaptive -------------------------------------------------------------------------------------------------------------------


def gate(limit):
    return lambda rows: np.linalg.norm(rows.astype(float), axis=1) <= limit


@pytest.mark.parametrize("knowledge", ["omniscient", "partial"])
@pytest.mark.parametrize("limit", [70.0, 100.0, 1000.0])
def test_the_adaptive_push_ends_just_under_the_edge(make_round, knowledge, limit):
    round_ = make_round("adaptive", noise=1.0, knowledge=knowledge, screen=gate(limit))
    own = round_.own.astype(float)
    assert np.linalg.norm(own, axis=1).max() < limit
    sent = adaptive(round_).updates.astype(float)
    assert np.linalg.norm(sent, axis=1).max() <= limit
    against = -unit_vector(round_.mean)
    along = own @ against
    largest = np.min(-along + np.sqrt(along**2 + limit**2 - np.sum(own**2, axis=1)))  # all norms are at most the limit up to here
    lengths = (sent - own) @ against
    assert np.allclose(sent - own, lengths[:, None] * against, atol=1e-3)
    assert (lengths > 0.98 * largest).all()
    assert (lengths <= largest * (1 + 1e-6)).all()


def test_the_adaptive_push_goes_where_there_is_more_room(make_round):
    towards = np.zeros(30)
    towards[0] = 1.0
    # the defender looks at everything but the first coordinate
    round_ = make_round("adaptive", direction=towards, screen=lambda rows: np.linalg.norm(rows[:, 1:].astype(float), axis=1) < 100)
    push = adaptive(round_).updates.astype(float) - round_.own
    assert np.allclose(push[:, 1:], 0)
    assert (push[:, 0] > 100).all()


def test_the_adaptive_crew_stays_honest_where_nothing_passes_or_nothing_can_be_run(make_round):
    for screen in (None, lambda rows: np.zeros(len(rows), dtype=bool)):
        round_ = make_round("adaptive", screen=screen)
        assert np.array_equal(adaptive(round_).updates, round_.own)


def test_the_adaptive_attack_runs_the_pipeline_a_few_times_only_and_on_full_rounds(make_round):
    shapes = []

    def screen(rows):
        shapes.append(rows.shape)
        return np.linalg.norm(rows.astype(float), axis=1) < 120

    adaptive(make_round("adaptive", n=20, f=4, knowledge="partial", noise=1.0, screen=screen, direction=np.ones(30)))
    assert set(shapes) == {(20, 30)}
    assert len(shapes) <= 32


@pytest.mark.parametrize("noise", [0.0, 4.0])
def test_stand_ins_look_like_the_known_updates(make_round, noise):
    spread = 0.0 if noise else 1.0  # with privacy it is the noise that counts
    round_ = make_round("adaptive", n=60, f=10, d=300, knowledge="partial", noise=noise, spread=spread)
    rows = stand_ins(round_).astype(float)
    assert rows.shape == (50, 300)
    assert np.array_equal(rows[:10], round_.known)
    assert rows[10:].std(axis=0).mean() == pytest.approx(rows[:10].std(axis=0, ddof=1).mean(), rel=0.1)


# --- the noise unit -------------------------------------------------------------------------------------------------------------


def top_over_edge(make_round, amplitude, seed, *, n=20, f=4, d=650, k=256):
    """Largest eigenvalue of the centred Gram matrix without its diagonal, over 2·sqrt(nk), where nothing but noise and the push is in the updates.

    The push has a random direction, so the first k coordinates are as good as a random sketch of k numbers.
    """
    round_ = make_round("fixed-direction", n=n, f=f, d=d, noise=1.0, own_noise=True, strength=amplitude, seed=seed, run_seed=seed)
    honest = np.random.default_rng([seed, 5]).normal(size=(n - f, d))
    rows = np.vstack([honest, simple.fixed_direction(round_).updates])[:, :k]
    rows = rows - rows.mean(axis=0)
    gram = rows @ rows.T
    return np.linalg.eigvalsh(gram - np.diag(np.diag(gram)))[-1] / (2 * math.sqrt(n * k))


def test_the_default_push_hides_in_a_sketch_and_three_times_as_much_does_not(make_round):
    """The table in docs/attacks.md, with fewer seeds."""
    ratios = {amplitude: [top_over_edge(make_round, amplitude, seed) for seed in range(20)] for amplitude in (0.0, 6.0, 18.0)}
    assert abs(np.mean(ratios[6.0]) - np.mean(ratios[0.0])) < 0.1
    assert min(ratios[18.0]) > max(1.5, *ratios[6.0])
