"""What a client carries from phase to phase: its place in the round, the seeds of its edges, the shares that it holds."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

from fedsec.errors import ConfigError, DecodeError, PeerError, VerificationError
from fedsec.secagg.config import Member, RoundConfig
from fedsec.secagg.dealing import HeldShares
from fedsec.secagg.labels import MAX_COHORT, SEED_BYTES, Phase
from fedsec.secagg.messages import INDEX, MEMBERS
from fedsec.secagg.sketch import SketchMatrix
from fedsec.secagg.wire import Fixed, ListOf, Part, Parted

MakeMatrix = Callable[[bytes, int, int], SketchMatrix]
"""From (seed, rows, dimension) to R; a simulator shares one among its clients."""


def plain_matrix(seed: bytes, num_rows: int, dimension: int) -> SketchMatrix:
    """R, expanded anew for each use."""
    return SketchMatrix(seed=seed, num_rows=num_rows, dimension=dimension)


@contextlib.contextmanager
def refusing(phase: Phase) -> Iterator[None]:
    """Turn whatever is wrong with a request into one error that names the server and the phase."""
    try:
        yield
    except (DecodeError, VerificationError, ConfigError, ValueError) as error:
        raise PeerError("server", phase, str(error)) from None


@dataclass(frozen=True, kw_only=True)
class Seat(Parted):
    """A client's place in one round.

    Attributes:
        config: the round's CONFIG.
        members: the cohort, in order.
        index: this client's place in it.
    """

    FIELDS = (("config", Part(RoundConfig)), ("members", ListOf(Part(Member), MAX_COHORT)), ("index", INDEX))
    config: RoundConfig
    members: tuple[Member, ...]
    index: int

    @cached_property
    def context(self) -> bytes:
        """The round's 32-byte binding."""
        return self.config.context()


@dataclass(frozen=True, kw_only=True)
class KeptEdge(Parted):
    """The seed that this client shares with one peer."""

    FIELDS = (("peer", INDEX), ("seed", Fixed(SEED_BYTES)))
    peer: int
    seed: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Holdings(Parted):
    """What a client holds between its upload and UNMASK.

    Attributes:
        members: U2.
        edges: to the members of U2, without the removed ones.
        held: the shares of each member of U2 that dealt soundly, this client's own among them.
    """

    FIELDS = (("members", MEMBERS), ("edges", ListOf(Part(KeptEdge), MAX_COHORT)), ("held", ListOf(Part(HeldShares), MAX_COHORT)))
    members: tuple[int, ...]
    edges: tuple[KeptEdge, ...]
    held: tuple[HeldShares, ...]
