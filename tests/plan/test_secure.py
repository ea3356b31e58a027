"""The numbers of secure aggregation that follow from a plan, and the words for them."""

import math

import pytest

from fedsec.errors import ConfigError
from fedsec.plan.guarantees import guarantee_sentence, notes, secagg_notes
from fedsec.plan.load import load_plan
from fedsec.plan.secure import DEFAULT_UPDATE_NORM, cohort_limits, cohort_numbers, hiding_statement, update_bound
from fedsec.secagg.bounds import log2_hiding
from fedsec.secagg.cohorts import assign_cohorts, corrupt_bound, log2_tail

OPEN = ["privacy.unit=none", "privacy.epsilon=inf", "secagg.sketch_without_dp=true"]


def numbers(num_clients, *more):
    plan = load_plan(overrides=[f"federation.num_clients={num_clients}", *more])
    return cohort_numbers(plan.secagg, num_clients)


@pytest.mark.parametrize(
    ("num_clients", "corrupt", "threshold", "drops"), [(4, 1, 3, 0), (5, 1, 4, 0), (10, 1, 6, 3), (20, 2, 12, 6), (64, 6, 36, 22)]
)
def test_one_cohort_has_the_plans_c_and_the_drop_outs_of_the_design(num_clients, corrupt, threshold, drops):
    (only,) = numbers(num_clients, f"secagg.num_corrupt={corrupt}")
    assert (only.count, only.limits.num_clients, only.limits.num_corrupt) == (1, num_clients, corrupt)
    assert (only.limits.threshold, only.limits.tolerated_dropouts) == (threshold, drops)
    assert only.limits.minimum_accepted == max(corrupt + 2, math.ceil(num_clients / 2))
    assert only.drops_with_bad_dealers == drops - corrupt


@pytest.mark.parametrize(("num_clients", "cohort_size"), [(8, 4), (9, 4), (65, 64), (1000, 64), (129, 64), (200, 30)])
def test_cohorts_are_cut_evenly_as_the_protocol_cuts_them(num_clients, cohort_size):
    made = numbers(num_clients, f"secagg.cohort_size={cohort_size}", "secagg.num_corrupt=1") if num_clients != 9 else None
    if made is None:
        with pytest.raises(ConfigError):  # 9 clients in cohorts of 4 at most make cohorts of 3
            numbers(num_clients, f"secagg.cohort_size={cohort_size}")
        return
    sizes = sorted((item.limits.num_clients for item in made for _ in range(item.count)), reverse=True)
    assert sum(sizes) == num_clients
    assert max(sizes) <= cohort_size
    assert max(sizes) - min(sizes) <= 1
    cut = assign_cohorts(bytes(32), [f"c{i}" for i in range(num_clients)], cohort_size=cohort_size)
    assert sizes == sorted(map(len, cut), reverse=True)
    assert [item.limits.num_clients for item in made] == sorted({*sizes}, reverse=True)


def test_c_of_a_cohort_is_the_hypergeometric_bound_over_all_cohorts_and_lists():
    made = numbers(1000, "secagg.num_corrupt=50", "secagg.rosters=1")
    assert [(item.limits.num_clients, item.count) for item in made] == [(63, 8), (62, 8)]
    for item in made:
        size, c = item.limits.num_clients, item.limits.num_corrupt
        assert log2_tail(1000, 50, size, c) + math.log2(16) <= -40 < log2_tail(1000, 50, size, c - 1) + math.log2(16)
    made, more = (numbers(1000, "secagg.num_corrupt=30", f"secagg.rosters={lists}") for lists in (1, 100))
    assert all(one.limits.num_corrupt >= other.limits.num_corrupt for one, other in zip(more, made, strict=True))
    assert more[0].limits.num_corrupt == corrupt_bound(1000, 30, 63, draws=1600)


def test_the_bound_never_passes_the_plans_own_number_and_is_at_least_one():
    made = numbers(128, "secagg.num_corrupt=1")
    assert {item.limits.num_corrupt for item in made} == {1}
    assert {item.limits.num_corrupt for item in numbers(128, "secagg.num_corrupt=3")} == {3}


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        (["federation.num_clients=3"], "secagg"),
        (["federation.num_clients=1000", "secagg.num_corrupt=100"], "secagg.num_corrupt"),
        (["federation.num_clients=4", "secagg.num_corrupt=2"], "secagg"),
        (["federation.num_clients=20", "secagg.num_corrupt=20"], "secagg.num_corrupt"),
        (["federation.num_clients=20", "secagg.minimum_accepted=2"], "secagg.minimum_accepted"),
        (["federation.num_clients=20", "secagg.minimum_accepted=20"], "secagg"),
        (["federation.num_clients=100000", "secagg.cohort_size=4"], "secagg.cohort_size"),
    ],
)
def test_numbers_that_protect_nobody_or_never_finish_are_refused(overrides, field):
    with pytest.raises(ConfigError, match=field):
        load_plan(overrides=["federation.min_clients=2", "secagg.num_corrupt=1", *overrides])


def test_a_client_computes_the_limits_that_the_server_uses():
    plan = load_plan(overrides=["federation.num_clients=130", "secagg.num_corrupt=5"])
    for item in cohort_numbers(plan.secagg, 130):
        assert cohort_limits(plan.secagg, num_clients=130, size=item.limits.num_clients, cohorts=3) == item.limits


@pytest.mark.parametrize(
    "overrides", [["federation.num_clients=20"], ["federation.num_clients=1000", "secagg.num_corrupt=40", "secagg.sketch_rows=256"]]
)
def test_the_hiding_statement_counts_colluders_cohorts_and_attempts(overrides):
    plan = load_plan(overrides=overrides)
    factor, bits = hiding_statement(plan)
    cohorts = sum(item.count for item in cohort_numbers(plan.secagg, plan.federation.num_clients))
    subsets = plan.secagg.num_corrupt + math.log2(cohorts) + math.log2(plan.secagg.attempts)
    assert bits == pytest.approx(subsets + log2_hiding(plan.secagg.sketch_rows, factor))
    assert bits <= -40
    assert factor == 1.25 or subsets + log2_hiding(plan.secagg.sketch_rows, factor - 0.25) > -40


def bound(*overrides, dimension=650, noise_multiplier=2.0, weight_limit=20):
    plan = load_plan(overrides=[*overrides])
    return update_bound(plan, dimension=dimension, noise_multiplier=noise_multiplier, weight_limit=weight_limit)


def test_the_update_bound_is_what_clip_noise_and_learning_rate_allow():
    base = ["training.steps=3", "training.learning_rate=0.5", "privacy.clip_norm=1.5", "training.momentum=0.0"]
    expected = 0.5 * (3 * 1.5 * (8 * 20 + 50) + math.sqrt(3) * 2.0 * 1.5 * (math.sqrt(650) + 10))
    assert bound(*base) == pytest.approx(expected)
    assert bound(*base, "training.momentum=0.9") == pytest.approx(10 * expected)
    assert bound(*base, "training.learning_rate=1.0") == pytest.approx(2 * expected)
    assert bound(*base, "privacy.clip_norm=3.0") == pytest.approx(2 * expected)
    assert bound(*base, noise_multiplier=4.0) > expected
    assert bound(*base, dimension=10_000) > expected


def test_an_honest_update_stays_under_the_bound(monkeypatch):
    """The same steps by hand, with every gradient as long as the clip and in one direction, and the noise that the plan adds."""
    import numpy as np

    rng = np.random.default_rng(0)
    for momentum in (0.0, 0.5, 0.9):
        limit = bound("training.steps=5", "training.learning_rate=0.5", f"training.momentum={momentum}", "privacy.clip_norm=1.0")
        direction = rng.normal(size=650)
        direction /= np.linalg.norm(direction)
        velocity, moved = np.zeros(650), np.zeros(650)
        for _ in range(5):
            gradient = 30 * direction + 2.0 * rng.normal(size=650)  # half as many records again as the declared 20
            velocity = momentum * velocity + gradient
            moved += 0.5 * velocity
        assert np.linalg.norm(moved) < limit


def test_without_noise_the_bound_is_a_number_of_the_plan_times_the_weight():
    assert bound(*OPEN) == 20 * DEFAULT_UPDATE_NORM
    assert bound(*OPEN, "secagg.update_norm=3.5") == 70.0
    assert bound("secagg.update_norm=3.5") == 70.0


# --- Words --------------------------------------------------------------------------------------------------------------------------


def words(*overrides):
    return " ".join(notes(load_plan(overrides=[*overrides])))


def test_the_notes_say_what_the_server_learns_and_what_is_survived():
    text = words("federation.num_clients=10", "secagg.num_corrupt=1", "secagg.sketch_rows=64")
    for part in ("the sum of the accepted updates", "64 numbers about each update", "declared batch size", "not one client's update",
                 "1 cohort of 10", "1 corrupt member ", "t = 6", "at least 4 honest", "3 drop-outs are survived", "2 if the corrupt ones"):  # fmt: skip
        assert part in text
    assert "sees each client's update in clear" not in text


def test_the_notes_of_several_cohorts_name_each_size_and_the_assumption_of_the_draw():
    text = words("federation.num_clients=1000", "secagg.num_corrupt=50", "secagg.rosters=1", "secagg.sketch_rows=256")
    for part in (
        "each of 16 cohorts",
        "8 cohorts of 63",
        "8 cohorts of 62",
        "20 corrupt members",
        "50 of 1000 clients",
        "2^-40",
        "federation-wide only",
    ):
        assert part in text


def test_the_notes_say_what_a_sketch_is_worth_with_and_without_privacy():
    assert "the epsilon above covers it" in words()
    without = words(*OPEN)
    assert "do not hide an update from a server that chooses the model" in without
    assert "epsilon above covers" not in without
    factor, bits = hiding_statement(load_plan())
    assert f"{factor:g} times the norm" in words()
    assert f"2^{bits:.0f} a round" in words()


def test_without_secure_aggregation_nothing_of_it_is_claimed():
    plan = load_plan(overrides=["secagg.enabled=false"])
    text = " ".join(notes(plan))
    for part in ("cohort", "sketch", "Secure aggregation:", "mask"):
        assert part not in text
    assert "sees each client's update in clear" in text


def test_the_sentence_of_a_plan_without_privacy_says_what_the_server_sees_either_way():
    assert "sums over cohorts, and a sketch of each update" in guarantee_sentence(load_plan(overrides=OPEN))
    assert "every update in clear" in guarantee_sentence(load_plan(overrides=[*OPEN[:2], "secagg.enabled=false"]))


def test_survived_drop_outs_are_never_printed_below_zero():
    text = " ".join(secagg_notes(load_plan(overrides=["federation.num_clients=4", "secagg.num_corrupt=1"])))
    assert "0 drop-outs are survived, 0 if" in text
