"""Every attack of the plan is in the catalogue, sends sound updates from any sound knowledge, and does so again from the same seed."""

import inspect
import typing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.plan.sections import AttackName, AttackSection
from fedsec.sim.attacks.catalogue import CATALOGUE, Family, attackers, is_active
from fedsec.sim.attacks.knowledge import MAX_STRENGTH, Past

NAMES = sorted(CATALOGUE)


def fast_rule(gram):
    """A rule on the Gram matrix that stops trusting what is long: weights fall with the norm."""
    weights = 1.0 / (1e-9 + np.diag(gram))
    return weights / weights.sum()


def with_everything(make_round, name, **changes):
    d = changes.get("d", 30)
    n, f = changes.get("n", 12), changes.get("f", 3)
    past = Past(server_round=1, own=np.ones((f, d), np.float32), step=np.linspace(-1, 1, d))
    return make_round(
        name,
        server_round=3,
        history=(past,),
        aggregate=fast_rule,
        screen=lambda rows: np.linalg.norm(rows.astype(float), axis=1) < 200,
        **{"n": n, "f": f, "d": d, **changes},
    )


def test_every_attack_of_the_plan_is_here_and_no_other():
    assert set(CATALOGUE) == set(typing.get_args(AttackName)) - {"none"}
    for name, info in CATALOGUE.items():
        assert info.formula, name
        assert info.default is None or info.strength, name
    assert {info.family for info in CATALOGUE.values()} == set(Family)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("knowledge", ["omniscient", "partial"])
@pytest.mark.parametrize("own_noise", [False, True])
@pytest.mark.parametrize("noise", [0.0, 2.0])
def test_what_is_sent_is_sound_repeatable_and_changes_no_input(make_round, name, knowledge, own_noise, noise):
    made = [with_everything(make_round, name, knowledge=knowledge, own_noise=own_noise, noise=noise) for _ in range(2)]
    before = made[0].known.copy(), made[0].own.copy(), made[0].history[0].own.copy(), made[0].history[0].step.copy()
    one, other = (CATALOGUE[name].craft(round_) for round_ in made)
    assert one.updates.dtype == np.float32
    assert one.updates.shape == (3, 30)
    assert np.isfinite(one.updates).all()
    assert one.batch_sizes.dtype == np.int64
    assert (one.batch_sizes >= 1).all()
    assert np.array_equal(one.updates, other.updates)
    assert np.array_equal(one.batch_sizes, other.batch_sizes)
    assert name == "dilution" or np.array_equal(one.batch_sizes, made[0].own_batch_sizes)
    after = made[0].known, made[0].own, made[0].history[0].own, made[0].history[0].step
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert not np.shares_memory(one.updates, made[0].own)
    assert not np.shares_memory(one.updates, made[0].known)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "shape",
    [
        {"n": 2, "f": 1, "d": 1},
        {"n": 2, "f": 1, "knowledge": "partial"},
        {"n": 1, "f": 1, "knowledge": "partial"},
        {"n": 9, "f": 4, "d": 1, "noise": 1.0},
        {"n": 5, "f": 2, "spread": 0.0},
        {"n": 20, "f": 4, "knowledge": "partial", "noise": 0.5},
    ],
)
def test_degenerate_rounds_are_no_trouble(make_round, name, shape):
    for zero in (False, True):
        round_ = with_everything(make_round, name, **shape)
        if zero:
            round_.known[:] = 0
            round_.own[:] = 0
        sent = CATALOGUE[name].craft(round_)
        assert sent.updates.shape == round_.own.shape
        assert np.isfinite(sent.updates).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("strength", [-MAX_STRENGTH, -1.0, 0.0, 1e-12, MAX_STRENGTH])
def test_any_strength_gives_finite_numbers(make_round, name, strength):
    for scale in (1e-30, 1.0, 1e30):
        round_ = replace(with_everything(make_round, name, strength=strength, noise=1.0), noise_stddev=scale)
        round_.known[:] *= np.float32(scale)
        round_.own[:] *= np.float32(scale)
        with np.errstate(over="raise", invalid="raise"):
            assert np.isfinite(CATALOGUE[name].craft(round_).updates).all()


def test_a_strength_beyond_all_reason_is_refused(make_round):
    with pytest.raises(ValueError, match="strength"):
        make_round("sign-flip", strength=2e9)


@pytest.mark.parametrize("name", [name for name in NAMES if CATALOGUE[name].family is Family.MODEL])
def test_what_omniscient_attackers_see_matters_where_the_catalogue_says_so(make_round, name):
    """The catalogue's ``sees_others`` is what the code does: other honest updates, other attack."""
    plain = with_everything(make_round, name, noise=1.0)
    changed = with_everything(make_round, name, noise=1.0)
    changed.known[:] = changed.known[:, ::-1] * np.float32(3)
    assert np.array_equal(CATALOGUE[name].craft(plain).updates, CATALOGUE[name].craft(changed).updates) != CATALOGUE[name].sees_others


@given(num_clients=st.integers(1, 400), fraction=st.floats(0.01, 0.49), seed=st.integers(0, 2**63 - 1))
@settings(max_examples=60)
def test_the_crew_is_a_seeded_share_of_the_clients(num_clients, fraction, seed):
    crew = attackers(num_clients, fraction, seed)
    assert crew == attackers(num_clients, fraction, seed)
    assert list(crew) == sorted(set(crew))
    assert set(crew) <= set(range(num_clients))
    assert len(crew) == max(1, round(fraction * num_clients))


def test_another_seed_is_another_crew():
    assert len({attackers(100, 0.2, seed) for seed in range(20)}) == 20
    with pytest.raises(ValueError, match="crew"):
        attackers(0, 0.2, 1)


@given(first=st.integers(1, 20), on=st.integers(1, 5), off=st.integers(0, 5))
def test_on_off(first, on, off):
    section = AttackSection(name="alie", first_round=first, rounds_on=on, rounds_off=off)
    active = [is_active(section, server_round) for server_round in range(1, 60)]
    assert not any(active[: first - 1])
    expected = ([True] * on + [False] * off) * 60
    assert active[first - 1 :] == expected[: len(active) - first + 1]


def test_no_attack_is_never_active():
    assert not is_active(AttackSection(), 1)


def test_the_functions_are_pure_in_their_one_argument():
    for name, info in CATALOGUE.items():
        assert len(inspect.signature(info.craft).parameters) == 1, name


def test_the_page_explains_every_attack():
    page = (Path(__file__).parents[3] / "docs" / "attacks.md").read_text(encoding="utf-8")
    assert [name for name in NAMES if f"`{name}`" not in page] == []
