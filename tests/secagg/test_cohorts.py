"""Cohorts: nobody can draw them again, and their numbers hold against the corrupt and the lost."""

import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.errors import ConfigError
from fedsec.secagg.cohorts import CohortLimits, assign_cohorts, corrupt_bound, log2_tail, shamir_threshold

IDS = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=40, unique=True)


def test_assignments_are_the_vectors(vectors) -> None:
    for case in vectors("cohorts")["assignments"]:
        made = assign_cohorts(bytes.fromhex(case["seed"]), case["client_ids"], cohort_size=case["cohort_size"])
        assert [list(cohort) for cohort in made] == case["expected"], case["id"]


def test_limits_and_bounds_are_the_vectors(vectors) -> None:
    for case in vectors("cohorts")["limits"]:
        limits = CohortLimits.of(case["num_clients"], case["num_corrupt"])
        assert (limits.threshold, limits.tolerated_dropouts) == (case["threshold"], case["tolerated_dropouts"]), case
    for case in vectors("cohorts")["bounds"]:
        assert corrupt_bound(case["population"], case["corrupt"], case["cohort_size"], draws=case["draws"]) == case["expected"], case


def test_unsound_limits_are_refused(vectors) -> None:
    for case in vectors("bad_cohorts")["limits"]:
        with pytest.raises(ConfigError):
            CohortLimits(**{name: case[name] for name in ("num_clients", "num_corrupt", "minimum_accepted")})


# --- the worked examples of the design ---


@pytest.mark.parametrize(("clients", "corrupt", "drops"), [(10, 1, 3), (20, 2, 6), (64, 6, 22), (4, 1, 0), (5, 1, 0)])
def test_one_cohort_stands_as_many_drops_as_the_design_says(clients: int, corrupt: int, drops: int) -> None:
    assert CohortLimits.of(clients, corrupt).tolerated_dropouts == drops


def test_three_clients_are_refused_with_a_way_out() -> None:
    with pytest.raises(ConfigError, match="larger cohorts"):
        CohortLimits.of(3, 1)


def test_a_thousand_clients_with_fifty_corrupt_stand_three_drops_in_a_cohort_of_64() -> None:
    c = corrupt_bound(1000, 50, 64)
    assert (c, CohortLimits.of(64, c).tolerated_dropouts) == (19, 3)
    assert log2_tail(1000, 50, 64, 19) < -40 < log2_tail(1000, 50, 64, 18)


def test_a_thousand_clients_in_equal_cohorts_of_62_or_63_stand_two() -> None:
    """1000 clients make 16 cohorts, none of which has 64 members: the printed figure is the smallest cohort's."""
    sizes = {len(cohort) for cohort in assign_cohorts(bytes(32), [str(i) for i in range(1000)], cohort_size=64)}
    assert sizes == {62, 63}
    assert {size: CohortLimits.of(size, corrupt_bound(1000, 50, size)).tolerated_dropouts for size in sizes} == {62: 2, 63: 2}


def test_over_all_cohorts_of_a_list_the_bound_is_higher_and_the_drops_are_fewer() -> None:
    """Review 0010, finding 16: the server attacks the worst of 16 cohorts."""
    c = corrupt_bound(1000, 50, 64, draws=16)
    assert (c, CohortLimits.of(64, c).tolerated_dropouts) == (20, 1)


def test_a_thousand_clients_with_a_hundred_corrupt_are_refused() -> None:
    with pytest.raises(ConfigError):
        CohortLimits.of(64, corrupt_bound(1000, 100, 64))


# --- limits ---


def test_two_certificates_always_share_an_honest_member() -> None:
    for clients, corrupt in itertools.product(range(1, 130), range(1, 40)):
        threshold = shamir_threshold(clients, corrupt)
        assert 2 * threshold - clients > corrupt
        assert 2 * (threshold - 1) - clients <= corrupt  # and no lower threshold does it


def test_the_tolerated_drops_leave_enough_to_open_and_one_more_does_not() -> None:
    for clients, corrupt, honest in itertools.product(range(4, 70), range(1, 10), (2, 3, 10)):
        try:
            limits = CohortLimits.of(clients, corrupt, honest_minimum=honest)
        except ConfigError:
            continue
        answering = clients - corrupt - limits.tolerated_dropouts
        assert answering >= limits.threshold
        assert answering >= limits.minimum_accepted >= corrupt + honest
        assert answering - 1 < max(limits.threshold, limits.minimum_accepted)


def test_a_high_honest_minimum_costs_drops() -> None:
    assert CohortLimits.of(20, 2, honest_minimum=15).tolerated_dropouts == 1


@pytest.mark.parametrize("value", [math.nan, -1, 0])
def test_a_corrupt_count_that_means_nothing_is_refused(value: float) -> None:
    with pytest.raises(ConfigError):
        CohortLimits(num_clients=10, num_corrupt=value, minimum_accepted=5)


# --- assignment ---


@settings(deadline=None)
@given(ids=IDS, size=st.integers(1, 12), data=st.data())
def test_cohorts_depend_on_seed_and_set_alone(ids: list[str], size: int, data: st.DataObject) -> None:
    seed = data.draw(st.binary(min_size=32, max_size=32))
    made = assign_cohorts(seed, ids, cohort_size=size)
    assert assign_cohorts(seed, data.draw(st.permutations(ids)), cohort_size=size) == made
    assert sorted(member for cohort in made for member in cohort) == sorted(ids)
    sizes = [len(cohort) for cohort in made]
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1
    assert len(made) == math.ceil(len(ids) / size)


def test_another_seed_draws_other_cohorts() -> None:
    ids = [f"client-{i}" for i in range(60)]
    drawn = {assign_cohorts(bytes([i]) * 32, ids, cohort_size=20) for i in range(20)}
    assert len(drawn) == 20


def test_two_given_clients_meet_as_often_as_chance_says() -> None:
    """Uniform draws: 10 of 40 meet with probability 9/39. False alarm 1e-6 (five standard deviations); the seeds are fixed."""
    ids = [f"client-{i}" for i in range(40)]
    trials = 4000
    met = 0
    for trial in range(trials):
        cohorts = assign_cohorts(trial.to_bytes(32, "big"), ids, cohort_size=10)
        met += any("client-3" in cohort and "client-17" in cohort for cohort in cohorts)
    p = 9 / 39
    assert abs(met - trials * p) < 5 * math.sqrt(trials * p * (1 - p))


@pytest.mark.parametrize(
    ("seed", "ids", "size"),
    [(bytes(31), ["a"], 4), (bytes(32), [], 4), (bytes(32), ["a", "a"], 4), (bytes(32), ["a", ""], 4), (bytes(32), ["a"], 0), (bytes(32), ["a"], 1025)],
)  # fmt: skip
def test_bad_lists_and_sizes_are_refused(seed: bytes, ids: list[str], size: int) -> None:
    with pytest.raises(ValueError):
        assign_cohorts(seed, ids, cohort_size=size)


# --- the tail ---


@settings(deadline=None)
@given(population=st.integers(1, 9), data=st.data())
def test_the_tail_is_what_counting_all_cohorts_gives(population: int, data: st.DataObject) -> None:
    corrupt = data.draw(st.integers(0, population))
    size = data.draw(st.integers(1, population))
    bits, draws = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 5))
    counts = [sum(member < corrupt for member in cohort) for cohort in itertools.combinations(range(population), size)]

    def tail(c: int) -> Fraction:
        return Fraction(sum(count > c for count in counts), len(counts))

    bound = corrupt_bound(population, corrupt, size, tail_bits=bits, draws=draws)
    assert draws * tail(bound) <= Fraction(1, 2**bits)
    assert bound == 1 or draws * tail(bound - 1) > Fraction(1, 2**bits)
    for c in range(size + 1):
        expected = float(tail(c))
        assert log2_tail(population, corrupt, size, c) == pytest.approx(math.log2(expected) if expected else -math.inf)


def test_a_cohort_of_everybody_holds_all_the_corrupt() -> None:
    assert corrupt_bound(50, 7, 50) == 7


def test_nobody_corrupt_still_counts_one() -> None:
    assert corrupt_bound(1000, 0, 64) == 1


@pytest.mark.parametrize(
    ("population", "corrupt", "size", "bits"), [(10, 11, 5, 40), (10, -1, 5, 40), (10, 1, 0, 40), (10, 1, 11, 40), (10, 1, 5, 0)]
)
def test_impossible_populations_are_refused(population: int, corrupt: int, size: int, bits: int) -> None:
    with pytest.raises(ValueError):
        corrupt_bound(population, corrupt, size, tail_bits=bits)
    with pytest.raises(ValueError):
        corrupt_bound(10, 1, 5, draws=0)
