"""Who gets which record: disjoint, covering, large enough, the same for the same seed, blind to the numbering of classes."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.data.base import Dataset
from fedsec.data.partition import label_histogram, partition, test_parts
from fedsec.errors import ConfigError, DataError
from fedsec.plan.sections import DataSection


def toy(
    y: np.ndarray, y_test: np.ndarray | None = None, groups: np.ndarray | None = None, groups_test: np.ndarray | None = None
) -> Dataset:
    y_test = np.arange(40) % 4 if y_test is None else y_test
    classes = int(max(y.max(), y_test.max(), 1)) + 1
    return Dataset(
        name="toy",
        x=np.arange(len(y), dtype=np.float32)[:, None],
        y=y.astype(np.int64),
        x_test=np.arange(len(y_test), dtype=np.float32)[:, None],
        y_test=y_test.astype(np.int64),
        num_classes=classes,
        class_names=tuple(map(str, range(classes))),
        groups=groups,
        groups_test=groups_test,
        group_names=() if groups is None else tuple(f"site {index}" for index in range(int(groups.max()) + 1)),
    )


def section(how: str, **settings_: object) -> DataSection:
    return DataSection(name="custom", source="a:b", partition=how, **settings_)  # type: ignore[arg-type]


def balanced(per_class: int = 60, classes: int = 10) -> Dataset:
    return toy(np.repeat(np.arange(classes), per_class), y_test=np.repeat(np.arange(classes), 12))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Dataset, DataSection, int, int]:
    """Records, settings and clients for which a partition exists."""
    classes = draw(st.integers(2, 6))
    y = np.array(draw(st.lists(st.integers(0, classes - 1), min_size=40, max_size=160)))
    clients = draw(st.integers(1, 8))
    min_size = draw(st.integers(1, len(y) // clients))
    how = draw(st.sampled_from(["iid", "dirichlet"]))
    alpha = draw(st.one_of(st.floats(1e-3, 1e3), st.sampled_from([1e-300, 1e-9, 1e9])))
    return toy(y), section(how, alpha=alpha, min_size=min_size), clients, draw(st.integers(0, 2**63 - 1))


@settings(max_examples=150, deadline=None)
@given(case=cases())
def test_parts_are_disjoint_cover_all_records_and_are_large_enough(case: tuple[Dataset, DataSection, int, int]) -> None:
    dataset, how, clients, seed = case
    parts = partition(dataset, how, num_clients=clients, seed=seed)
    assert len(parts) == clients
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(dataset.y)))
    assert min(map(len, parts)) >= how.min_size
    for part in parts:
        assert part.dtype == np.int64
        assert not part.flags.writeable
        assert (np.diff(part) > 0).all()


@settings(max_examples=50, deadline=None)
@given(case=cases(), shift=st.integers(1, 5))
def test_the_same_seed_gives_the_same_parts_however_the_classes_are_numbered(
    case: tuple[Dataset, DataSection, int, int], shift: int
) -> None:
    dataset, how, clients, seed = case
    classes = dataset.num_classes
    renumbered = toy((dataset.y + shift) % classes, y_test=(dataset.y_test + shift) % classes)
    parts = partition(dataset, how, num_clients=clients, seed=seed)
    for other in (dataset, renumbered):
        assert all(map(np.array_equal, parts, partition(other, how, num_clients=clients, seed=seed)))


@settings(max_examples=60, deadline=None)
@given(
    classes=st.integers(2, 8), clients=st.integers(1, 12), per_client=st.integers(1, 8), seed=st.integers(0, 1000), shift=st.integers(0, 7)
)
def test_shards_give_each_client_exactly_so_many_classes_and_use_every_record(
    classes: int, clients: int, per_client: int, seed: int, shift: int
) -> None:
    dataset = toy(np.tile(np.arange(classes), 24), y_test=np.arange(classes))
    how = section("shards", classes_per_client=per_client, min_size=1)
    if per_client > classes or clients * per_client < classes:
        with pytest.raises(ConfigError, match=r"data\.classes_per_client"):
            partition(dataset, how, num_clients=clients, seed=seed)
        return
    parts = partition(dataset, how, num_clients=clients, seed=seed)
    histogram = label_histogram(dataset, parts)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(dataset.y)))
    assert ((histogram > 0).sum(axis=1) == per_client).all()
    holders = (histogram > 0).sum(axis=0)
    assert holders.max() - holders.min() <= 1
    renumbered = toy((dataset.y + shift) % classes, y_test=np.arange(classes))
    assert all(map(np.array_equal, parts, partition(renumbered, how, num_clients=clients, seed=seed)))


def test_shards_skip_a_class_that_has_no_training_record() -> None:
    dataset = toy(np.repeat([0, 2], 50), y_test=np.array([0, 1, 2]))
    histogram = label_histogram(dataset, partition(dataset, section("shards", classes_per_client=1), num_clients=4, seed=3))
    assert ((histogram > 0).sum(axis=1) == 1).all()


def test_another_seed_gives_another_partition() -> None:
    for how in ("iid", "dirichlet", "shards"):
        one, two = (partition(balanced(), section(how), num_clients=5, seed=seed) for seed in (1, 2))
        assert not all(map(np.array_equal, one, two))


def test_a_small_alpha_skews_labels_and_a_large_one_does_not() -> None:
    dataset = balanced()

    def largest_share(alpha: float) -> float:
        histogram = label_histogram(dataset, partition(dataset, section("dirichlet", alpha=alpha, min_size=1), num_clients=5, seed=1))
        return float((histogram.max(axis=1) / histogram.sum(axis=1)).mean())

    assert largest_share(0.05) > 0.4
    assert largest_share(1e6) < 0.15


def test_the_proportions_of_a_class_over_clients_are_dirichlet() -> None:
    """Mean 1/k and variance (1/k)(1-1/k)/(k alpha + 1) of a client's share of a class; fixed seeds, so no false alarms."""
    clients, alpha = 4, 0.7
    dataset = toy(np.repeat(np.arange(2), 500), y_test=np.arange(2))
    how = section("dirichlet", alpha=alpha, min_size=1)
    shares = np.concatenate(
        [label_histogram(dataset, partition(dataset, how, num_clients=clients, seed=seed)).ravel() / 500 for seed in range(400)]
    )
    assert shares.mean() == pytest.approx(0.25, abs=1e-9)
    assert shares.var() == pytest.approx(0.25 * 0.75 / (clients * alpha + 1), rel=0.08)


def test_where_no_draw_fits_the_smallest_clients_are_topped_up() -> None:
    dataset = toy(np.repeat(np.arange(3), 100), y_test=np.arange(30) % 3)
    parts = partition(dataset, section("dirichlet", alpha=1e-6, min_size=10), num_clients=30, seed=7)
    assert [len(part) for part in parts] == [10] * 30


def test_more_clients_than_the_minimum_size_allows_are_refused_with_the_numbers_that_fit() -> None:
    with pytest.raises(
        ConfigError, match=re.escape("data.min_size: 7 clients with at least 100 records each need 700, there are 600 (lower it to 85")
    ):
        partition(balanced(), section("dirichlet", min_size=100), num_clients=7, seed=1)
    with pytest.raises(ConfigError, match=r"lower federation.num_clients to 600 or less"):
        partition(balanced(), section("iid", min_size=1), num_clients=601, seed=1)
    with pytest.raises(ConfigError, match="at least one"):
        partition(balanced(), section("iid"), num_clients=0, seed=1)


def test_shards_that_leave_a_client_below_the_minimum_are_refused() -> None:
    y = np.concatenate([np.zeros(200, dtype=np.int64), np.ones(3, dtype=np.int64)])
    with pytest.raises(ConfigError, match=r"data\.min_size: with 1 classes per client the smallest client would hold 1 records"):
        partition(toy(y, y_test=np.array([0, 1])), section("shards", classes_per_client=1, min_size=10), num_clients=4, seed=1)
    with pytest.raises(ConfigError, match=r"would hold 0 records.*raise data\.classes_per_client"):
        partition(toy(y, y_test=np.array([0, 1])), section("shards", classes_per_client=1, min_size=1), num_clients=20, seed=1)


GROUPS = np.repeat(np.arange(3), [30, 12, 18])
OWNED = toy(np.arange(60) % 4, groups=GROUPS, groups_test=np.repeat(np.arange(3), [20, 5, 15]))


def test_natural_owners_keep_exactly_their_own_records_in_both_parts() -> None:
    parts = partition(OWNED, section("natural"), num_clients=3, seed=1)
    tests = test_parts(OWNED, section("natural"), num_clients=3, seed=1)
    for owner in range(3):
        assert set(GROUPS[parts[owner]]) == {owner}
        assert OWNED.groups_test is not None
        assert set(OWNED.groups_test[tests[owner]]) == {owner}
    assert [len(part) for part in parts] == [30, 12, 18]
    assert [len(part) for part in tests] == [20, 5, 15]


def test_natural_owners_are_refused_where_they_do_not_fit_the_plan() -> None:
    with pytest.raises(ConfigError, match=r"data\.partition: the records of toy have no natural owners"):
        partition(balanced(), section("natural"), num_clients=3, seed=1)
    with pytest.raises(ConfigError, match=r"federation\.num_clients: toy has 3 natural owners, the plan 4 clients \(set it to 3\)"):
        partition(OWNED, section("natural"), num_clients=4, seed=1)
    with pytest.raises(ConfigError, match=r"client 'site 1' holds 12 training records, fewer than 15 \(lower it to 12\)"):
        partition(OWNED, section("natural", min_size=15), num_clients=3, seed=1)


def test_an_owner_without_test_records_is_refused_by_name() -> None:
    dataset = toy(np.arange(60) % 4, groups=GROUPS, groups_test=np.repeat(np.arange(2), 20))
    with pytest.raises(DataError, match="client 'site 2' has no test records"):
        test_parts(dataset, section("natural"), num_clients=3, seed=1)


@settings(max_examples=60, deadline=None)
@given(how=st.sampled_from(["iid", "dirichlet", "shards"]), clients=st.integers(5, 20), seed=st.integers(0, 10_000))
def test_test_parts_are_disjoint_cover_all_and_mirror_the_training_mix(how: str, clients: int, seed: int) -> None:
    dataset = balanced()
    settings_ = section(how, min_size=5)
    tests = test_parts(dataset, settings_, num_clients=clients, seed=seed)
    assert np.array_equal(np.sort(np.concatenate(tests)), np.arange(len(dataset.y_test)))
    assert min(map(len, tests)) >= 1
    train = label_histogram(dataset, partition(dataset, settings_, num_clients=clients, seed=seed))
    held = np.stack([np.bincount(dataset.y_test[part], minlength=10) for part in tests])
    assert np.abs(held - train * 12 / 60).max() <= 2  # one by rounding, one by topping up
    assert all(map(np.array_equal, tests, test_parts(dataset, settings_, num_clients=clients, seed=seed)))


def test_a_test_class_that_nobody_trains_on_is_dealt_evenly() -> None:
    dataset = toy(np.zeros(40, dtype=np.int64), y_test=np.concatenate([np.zeros(8, dtype=np.int64), np.ones(8, dtype=np.int64)]))
    tests = test_parts(dataset, section("iid"), num_clients=4, seed=1)
    assert [int((dataset.y_test[part] == 1).sum()) for part in tests] == [2, 2, 2, 2]


def test_a_client_whose_share_of_the_test_rounds_to_nothing_still_gets_one_record() -> None:
    dataset = toy(np.repeat(np.arange(2), 300), y_test=np.arange(12) % 2)
    how = section("dirichlet", alpha=0.05, min_size=1)
    shares = label_histogram(dataset, partition(dataset, how, num_clients=10, seed=3)).sum(axis=1) * 12 / 600
    assert shares.min() < 0.1
    assert min(map(len, test_parts(dataset, how, num_clients=10, seed=3))) == 1


def test_fewer_test_records_than_clients_are_refused() -> None:
    with pytest.raises(DataError, match="3 test records cannot give each of 4 clients one"):
        test_parts(toy(np.arange(60) % 3, y_test=np.arange(3)), section("iid"), num_clients=4, seed=1)


def test_the_histogram_counts_every_training_record_once() -> None:
    dataset = balanced()
    histogram = label_histogram(dataset, partition(dataset, section("dirichlet"), num_clients=6, seed=1))
    assert histogram.shape == (6, 10)
    assert np.array_equal(histogram.sum(axis=0), np.full(10, 60))
