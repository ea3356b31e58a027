"""How a simulation spreads records over clients, and the test records with them.

1. Parts are disjoint, every record is used, each client holds at least ``min_size`` records; otherwise an error.
2. The same seed gives the same parts. Which number a class bears does not matter: relabelling changes nothing.
3. Every loop ends: a Dirichlet draw is repeated at most ten times, then records move from the largest clients.
4. Parts, sizes and label histograms are not private: they exist in simulation only.

Names follow flwr-datasets: ``dirichlet`` is its ``DirichletPartitioner`` with self-balancing off (proportions of each class
over the clients drawn from Dir(alpha), the whole draw repeated while a client is below the minimum), ``shards`` its
``PathologicalPartitioner`` (every client holds k classes), ``natural`` its ``NaturalIdPartitioner``. Differs: where ten
draws fail, flwr-datasets raises; here the smallest clients are topped up, and only what is impossible by count is refused.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedsec.data.base import Dataset, IntArray
from fedsec.data.splits import apportion, seeded_generator
from fedsec.errors import ConfigError, DataError
from fedsec.plan.sections import DataSection

DIRICHLET_ATTEMPTS = 10

Parts = tuple[IntArray, ...]


def partition(dataset: Dataset, section: DataSection, *, num_clients: int, seed: int) -> Parts:
    """Indices of each client's training records.

    Args:
        dataset: the records.
        section: ``partition``, ``alpha``, ``classes_per_client`` and ``min_size`` are read.
        num_clients: number of parts.
        seed: of the draw; the public seed of the plan.

    Returns:
        One sorted int64 array per client: disjoint, together every training record.

    Raises:
        ConfigError: the settings cannot be met by these records; says with which numbers they could.
    """
    _check_room(len(dataset.y), num_clients, section.min_size)
    generator = seeded_generator(f"partition/{section.partition}", seed)
    match section.partition:
        case "iid":
            parts = [np.asarray(part, dtype=np.int64) for part in np.array_split(generator.permutation(len(dataset.y)), num_clients)]
        case "dirichlet":
            parts = _dirichlet(dataset.y, num_clients, section, generator)
        case "shards":
            parts = _shards(dataset, num_clients, section, generator)
        case "natural":
            parts = _natural(dataset, num_clients, section)
    return tuple(_frozen(part) for part in parts)


def label_histogram(dataset: Dataset, parts: Sequence[IntArray]) -> IntArray:
    """Training records of each class at each client: int64 [clients, classes]. Simulation only: it is not private."""
    return np.stack([np.bincount(dataset.y[part], minlength=dataset.num_classes) for part in parts]).astype(np.int64)


def test_parts(dataset: Dataset, section: DataSection, *, num_clients: int, seed: int) -> Parts:
    """Indices of each client's test records, for the same arguments as :func:`partition`: disjoint, together all, none empty.

    With natural owners each client keeps the test records of its own group. Otherwise the test records of each class are dealt
    in proportion to the training records of that class, so a client is tested on the mix of classes that it trains on; a
    class that no client trains on is dealt evenly.

    Raises:
        ConfigError: as :func:`partition`.
        DataError: a client would be left without a test record.
    """
    parts = partition(dataset, section, num_clients=num_clients, seed=seed)
    if section.partition == "natural" and dataset.groups_test is not None:
        natural = [np.flatnonzero(dataset.groups_test == group).astype(np.int64) for group in range(num_clients)]
        if empty := [dataset.group_names[group] for group, part in enumerate(natural) if len(part) == 0]:
            raise DataError(f"data set {dataset.name!r}: client {empty[0]!r} has no test records")
        return tuple(_frozen(part) for part in natural)
    if len(dataset.y_test) < num_clients:
        raise DataError(f"data set {dataset.name!r}: {len(dataset.y_test)} test records cannot give each of {num_clients} clients one")
    generator = seeded_generator("test-parts", seed)
    histogram = label_histogram(dataset, parts)
    dealt: list[list[int]] = [[] for _ in parts]
    for label in _labels_by_appearance(dataset.y_test):
        members = generator.permutation(np.flatnonzero(dataset.y_test == label))
        weights = histogram[:, label] if histogram[:, label].any() else np.ones(num_clients)
        _deal(members, apportion(len(members), weights), dealt)
    _top_up(dealt, 1, generator)
    return tuple(_frozen(np.array(part, dtype=np.int64)) for part in dealt)


test_parts.__test__ = False  # type: ignore[attr-defined]  # the name reads like a test; pytest must not collect it


def _frozen(part: IntArray) -> IntArray:
    ordered = np.sort(part)
    ordered.setflags(write=False)
    return ordered


def _check_room(records: int, num_clients: int, min_size: int) -> None:
    if num_clients < 1:
        raise ConfigError(f"{num_clients} clients", field="federation.num_clients", mend="at least one is needed")
    if num_clients * min_size > records:
        raise ConfigError(
            f"{num_clients} clients with at least {min_size} records each need {num_clients * min_size}, there are {records}",
            field="data.min_size",
            mend=f"lower it to {records // num_clients} or less, or lower federation.num_clients"
            if records >= num_clients
            else f"lower federation.num_clients to {max(1, records // min_size)} or less",
        )


def _labels_by_appearance(y: IntArray) -> IntArray:
    """Labels present, in the order in which they first appear: an order that relabelling does not change."""
    labels, first = np.unique(y, return_index=True)
    return labels[np.argsort(first)]


def _deal(members: IntArray, counts: IntArray, dealt: list[list[int]]) -> None:
    for part, piece in zip(dealt, np.split(members, np.cumsum(counts)[:-1]), strict=True):
        part.extend(piece.tolist())


def _dirichlet(y: IntArray, num_clients: int, section: DataSection, generator: np.random.Generator) -> list[IntArray]:
    dealt: list[list[int]] = []
    for _ in range(DIRICHLET_ATTEMPTS):
        dealt = [[] for _ in range(num_clients)]
        for label in _labels_by_appearance(y):
            members = generator.permutation(np.flatnonzero(y == label))
            edges = (np.cumsum(_proportions(section.alpha, num_clients, generator)) * len(members)).astype(np.int64)
            edges[-1] = len(members)
            _deal(members, np.diff(edges, prepend=0), dealt)
        if min(map(len, dealt)) >= section.min_size:
            break
    _top_up(dealt, section.min_size, generator)
    return [np.array(part, dtype=np.int64) for part in dealt]


def _proportions(alpha: float, num_clients: int, generator: np.random.Generator) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """One draw from Dir(alpha, …, alpha); for an alpha too small for floats its limit, all to one client."""
    drawn = generator.dirichlet(np.full(num_clients, alpha))
    if np.isfinite(drawn).all() and abs(drawn.sum() - 1.0) < 1e-6:
        return drawn
    limit = np.zeros(num_clients)
    limit[generator.integers(num_clients)] = 1.0
    return limit


def _top_up(dealt: list[list[int]], min_size: int, generator: np.random.Generator) -> None:
    """Move records, one at a time and chosen at random, from the largest part to each part below ``min_size``.

    It ends: the caller has checked that the mean size is at least ``min_size``, so while one part is below it the largest
    is above it and never falls below by giving one record away.
    """
    sizes = np.array([len(part) for part in dealt])
    for small in np.flatnonzero(sizes < min_size):
        while sizes[small] < min_size:
            donor = int(sizes.argmax())
            dealt[small].append(dealt[donor].pop(int(generator.integers(sizes[donor]))))
            sizes[small] += 1
            sizes[donor] -= 1


def _shards(dataset: Dataset, num_clients: int, section: DataSection, generator: np.random.Generator) -> list[IntArray]:
    labels = _labels_by_appearance(dataset.y)
    per_client = section.classes_per_client
    if per_client > len(labels):
        raise ConfigError(
            f"{per_client} classes per client, but the records have {len(labels)}",
            field="data.classes_per_client",
            mend=f"lower it to {len(labels)} or less",
        )
    if num_clients * per_client < len(labels):
        raise ConfigError(
            f"{num_clients} clients with {per_client} classes each cannot hold all {len(labels)} classes",
            field="data.classes_per_client",
            mend=f"raise it to {-(-len(labels) // num_clients)} or more, or raise federation.num_clients",
        )
    holders: list[list[int]] = [[] for _ in labels]
    for client in range(num_clients):
        # The classes held by the fewest so far, ties at random: each class ends with the same number of holders, give or take one.
        order = np.lexsort((generator.random(len(labels)), np.array([len(held) for held in holders])))
        for index in order[:per_client]:
            holders[index].append(client)
    dealt: list[list[int]] = [[] for _ in range(num_clients)]
    for label, held in zip(labels, holders, strict=True):
        members = generator.permutation(np.flatnonzero(dataset.y == label))
        _deal(members, apportion(len(members), np.ones(len(held))), [dealt[client] for client in held])
    smallest = min(map(len, dealt))
    if smallest < section.min_size:
        raise ConfigError(
            f"with {per_client} classes per client the smallest client would hold {smallest} records, fewer than {section.min_size}",
            field="data.min_size",
            mend=f"lower it to {smallest}, or raise data.classes_per_client"
            if smallest
            else "raise data.classes_per_client, or lower federation.num_clients",
        )
    return [np.array(part, dtype=np.int64) for part in dealt]


def _natural(dataset: Dataset, num_clients: int, section: DataSection) -> list[IntArray]:
    if dataset.groups is None:
        raise ConfigError(
            f"the records of {dataset.name} have no natural owners",
            field="data.partition",
            mend='use "iid", "dirichlet" or "shards", or give groups with own data',
        )
    names = dataset.group_names
    if num_clients != len(names):
        raise ConfigError(
            f"{dataset.name} has {len(names)} natural owners, the plan {num_clients} clients",
            field="federation.num_clients",
            mend=f"set it to {len(names)}",
        )
    parts = [np.flatnonzero(dataset.groups == group).astype(np.int64) for group in range(num_clients)]
    smallest = min(range(num_clients), key=lambda group: len(parts[group]))
    if len(parts[smallest]) < section.min_size:
        raise ConfigError(
            f"client {names[smallest]!r} holds {len(parts[smallest])} training records, fewer than {section.min_size}",
            field="data.min_size",
            mend=f"lower it to {len(parts[smallest])}",
        )
    return parts
