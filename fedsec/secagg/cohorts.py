"""Cohorts: who aggregates with whom, and how many corrupt or lost members a cohort stands.

1. Within a cohort everybody shares a mask with everybody (a complete graph), so that no choice of accepted clients made later
   isolates one. Larger federations run several cohorts side by side.
2. ``assign_cohorts`` depends on the signed seed and the closed list of clients alone: not on their order, the run, the round or
   the attempt. Nobody can draw it again.
3. At most ``num_corrupt`` (c >= 1) members of a cohort work with the server. Of one cohort that is the federation's number; of
   many it is a hypergeometric tail (``corrupt_bound``) at probability ``2**-40`` over all ``draws``: a server attacks the worst cohort
   of all that are ever drawn. It holds for clients that are corrupt when the seed is drawn; against an adversary that chooses
   whom to corrupt afterwards c counts federation-wide in every cohort.
4. The threshold is ``⌊(N + c) / 2⌋ + 1``: two sets of that many members share more than c, hence an honest one, who signs once. So
   two consistency certificates for one context cannot exist, and no secret is opened under both.
5. An opened sum holds at least ``minimum_accepted >= c + 2`` clients: two honest ones or more.
6. Absent members are dropouts and silent corrupt ones: ``N - c - max(threshold, minimum_accepted)`` dropouts are survived whatever
   the corrupt do. Below zero the cohort is refused (N = 3 with c = 1, say).

Source: design note SECAGG, "Cohorts and numbers"; Bonawitz et al. 2017, section 6.2 for the malicious-server threshold.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from fedsec.codec import digest
from fedsec.errors import ConfigError
from fedsec.secagg.labels import HONEST_MINIMUM, MAX_COHORT, SEED_BYTES, TAIL_BITS, Label


def shamir_threshold(num_clients: int, num_corrupt: int) -> int:
    """Shares that open a secret, and signatures that make a consistency certificate: ``⌊(N + c) / 2⌋ + 1``."""
    return (num_clients + num_corrupt) // 2 + 1


@dataclass(frozen=True, kw_only=True)
class CohortLimits:
    """The numbers of one cohort, checked against one another.

    Attributes:
        num_clients: N.
        num_corrupt: c, members assumed to work with the server; at least 1.
        minimum_accepted: a_min, the least number of clients in an opened sum.

    Raises:
        ConfigError: the numbers do not give a sound cohort; says which and what to change.
    """

    num_clients: int
    num_corrupt: int
    minimum_accepted: int

    def __post_init__(self) -> None:
        if not 1 <= self.num_clients <= MAX_COHORT:
            raise ConfigError(f"a cohort of {self.num_clients} clients, expected 1 to {MAX_COHORT}", field="secagg.cohort_size")
        if not self.num_corrupt >= 1:
            raise ConfigError("at least one client must be assumed corrupt", field="secagg.num_corrupt", mend="set it to 1 or more")
        if not self.minimum_accepted >= self.num_corrupt + HONEST_MINIMUM:
            raise ConfigError(
                f"a sum over {self.minimum_accepted} clients, {self.num_corrupt} of them corrupt, could open one honest client's update",
                field="secagg.minimum_accepted",
                mend=f"set it to {self.num_corrupt + HONEST_MINIMUM} or more",
            )
        if self.tolerated_dropouts < 0:
            raise ConfigError(
                f"{self.num_clients} clients with {self.num_corrupt} corrupt cannot finish a round: it takes {self._needed} that answer, "
                f"and {self.num_corrupt} may be silent",
                field="secagg.num_corrupt",
                mend="use larger cohorts, or assume fewer corrupt clients",
            )

    @classmethod
    def of(cls, num_clients: int, num_corrupt: int, *, honest_minimum: int = HONEST_MINIMUM) -> Self:
        """The limits with ``minimum_accepted = num_corrupt + honest_minimum``; raises the same."""
        return cls(num_clients=num_clients, num_corrupt=num_corrupt, minimum_accepted=num_corrupt + honest_minimum)

    @property
    def threshold(self) -> int:
        """t, see :func:`shamir_threshold`."""
        return shamir_threshold(self.num_clients, self.num_corrupt)

    @property
    def tolerated_dropouts(self) -> int:
        """Dropouts that every round survives, whatever the corrupt members do."""
        return self.num_clients - self.num_corrupt - self._needed

    @property
    def _needed(self) -> int:
        return max(self.threshold, self.minimum_accepted)


def assign_cohorts(seed: bytes, client_ids: Sequence[str], *, cohort_size: int) -> tuple[tuple[str, ...], ...]:
    """Split the closed list of clients into cohorts of nearly equal size.

    Guarantee: a function of the seed and the *set* of ids; for a uniform seed every cohort is a uniform sample without replacement, up to
    the quality of SHA-256 as a pseudorandom function. Sizes differ by at most one and none is over ``cohort_size``.

    Args:
        seed: 32 bytes, drawn and signed by the CA *after* the list has closed; public.
        client_ids: distinct, not empty.
        cohort_size: largest size, 1 to ``MAX_COHORT``.

    Returns:
        The cohorts; members sorted by id.

    Raises:
        ValueError: a seed of another length, no clients, an id that is empty or twice there, or a size out of range.
    """
    if len(seed) != SEED_BYTES:
        raise ValueError(f"a seed has {SEED_BYTES} bytes, not {len(seed)}")
    if not 1 <= cohort_size <= MAX_COHORT:
        raise ValueError(f"cohort size {cohort_size} is not in 1..{MAX_COHORT}")
    if not client_ids or not all(client_ids):
        raise ValueError("no clients, or an empty id")
    if len(set(client_ids)) != len(client_ids):
        raise ValueError("a client is in the list twice")
    order = sorted(client_ids, key=lambda client_id: (digest(Label.COHORT, seed, client_id.encode("utf-8")), client_id))
    count = -(-len(order) // cohort_size)
    edges = [len(order) * index // count for index in range(count + 1)]
    return tuple(tuple(sorted(order[start:stop])) for start, stop in itertools.pairwise(edges))


def corrupt_bound(population: int, corrupt: int, cohort_size: int, *, draws: int = 1, tail_bits: int = TAIL_BITS) -> int:
    """The least c such that one of ``draws`` random cohorts holds more than c corrupt clients with probability at most ``2**-tail_bits``.

    Exact for one draw, a union bound for more; in integers. Never under 1.

    Args:
        population: clients of the federation.
        corrupt: how many of them are corrupt, 0 to ``population``.
        cohort_size: members, 1 to ``population``.
        draws: cohorts of a list times the lists that the plan provides for.
        tail_bits: see above.

    Raises:
        ValueError: numbers out of range.

    >>> corrupt_bound(1000, 50, 64)
    19
    >>> corrupt_bound(1000, 50, 64, draws=16)
    20
    """
    if tail_bits < 1 or draws < 1:
        raise ValueError(f"tail_bits {tail_bits} or draws {draws} is not 1 or more")
    allowed = math.comb(population, cohort_size)
    tail = 0  # cohorts with c or more corrupt members, for c downwards
    for c, ways in _ways(population, corrupt, cohort_size):
        tail += ways
        if tail * draws << tail_bits > allowed:
            return max(c, 1)
    raise AssertionError("all cohorts together are more than a 2**-tail_bits part of all cohorts")


def log2_tail(population: int, corrupt: int, cohort_size: int, num_corrupt: int) -> float:
    """log2 of the probability that a random cohort holds more than ``num_corrupt`` corrupt clients; ``-inf`` if it cannot."""
    tail = sum(ways for c, ways in _ways(population, corrupt, cohort_size) if c > num_corrupt)
    return math.log2(tail) - math.log2(math.comb(population, cohort_size)) if tail else -math.inf


def _ways(population: int, corrupt: int, cohort_size: int) -> list[tuple[int, int]]:
    """``(c, number of cohorts with exactly c corrupt members)``, largest c first."""
    if not (0 <= corrupt <= population and 1 <= cohort_size <= population):
        raise ValueError(f"{corrupt} corrupt of {population} clients, cohort of {cohort_size}: out of range")
    most = min(corrupt, cohort_size)
    return [(c, math.comb(corrupt, c) * math.comb(population - corrupt, cohort_size - c)) for c in range(most, -1, -1)]
