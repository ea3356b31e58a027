"""What a piece of evidence holds: statements, and the openings that tie them to what the accused itself signed. ``evidence.py`` checks it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from fedsec.secagg.config import RoundConfig
from fedsec.secagg.labels import MAX_COHORT, MAX_REMOVED, SECRET_BYTES, SEED_BYTES
from fedsec.secagg.messages import DIGEST, INDEX, MEMBERS, Advert, Dealing, DealtLeaf, Envelope, RemovedEdge, check_increasing
from fedsec.secagg.views import base_view, sketch_view
from fedsec.secagg.wire import Blob, Fixed, ListOf, Part, Parted, Record, UInt


class EvidenceKind(IntEnum):
    """What was contradicted; see the module."""

    SHARE = 1
    DEALING = 2
    EDGE = 3
    SKETCH = 4


@dataclass(frozen=True, kw_only=True)
class ProvenLeaf(Parted):
    """A leaf of a dealing with its Merkle path."""

    FIELDS = (("place", INDEX), ("size", INDEX), ("leaf", Part(DealtLeaf)), ("path", ListOf(DIGEST, 16)))
    place: int
    size: int
    leaf: DealtLeaf
    path: tuple[bytes, ...]


@dataclass(frozen=True, kw_only=True)
class ShownShare(Parted):
    """A share that was released, and who held it."""

    FIELDS = (("holder", INDEX), ("share", Fixed(SECRET_BYTES)))
    holder: int
    share: bytes


@dataclass(frozen=True, kw_only=True)
class OpenedKey(Parted):
    """The advert of a rejected member and its opened mask key."""

    FIELDS = (("advert", Part(Envelope)), ("key", Fixed(SECRET_BYTES)))
    advert: Envelope
    key: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class ViewOpening(Parted):
    """What the accused's view is a hash of: ties U2, the removed edges and R to its statements, so that none of them can be made up.

    Attributes:
        adverts: contents, of U1 in order.
        dealings: contents, of U2 in order.
        removed: edges whose tags differed.
        group: root over all inputs.
        matrix_seed: of R.
    """

    FIELDS = (
        ("adverts", ListOf(Blob(512), MAX_COHORT)),
        ("dealings", ListOf(Blob(512), MAX_COHORT)),
        ("removed", ListOf(Part(RemovedEdge), MAX_REMOVED)),
        ("group", DIGEST),
        ("matrix_seed", Fixed(SEED_BYTES)),
    )
    adverts: tuple[bytes, ...]
    dealings: tuple[bytes, ...]
    removed: tuple[RemovedEdge, ...]
    group: bytes
    matrix_seed: bytes

    def __post_init__(self) -> None:
        # The view is a hash over sorted parts: without this, another order would give a share's place to another owner.
        check_increasing(self.advertisers(), "adverts")
        check_increasing(self.members(), "dealings")

    def advertisers(self) -> list[int]:
        """U1: the receivers of every dealing, in the order of its leaves."""
        return [Advert.decode(content).sender for content in self.adverts]

    def members(self) -> tuple[int, ...]:
        """U2."""
        return tuple(Dealing.decode(content).sender for content in self.dealings)

    def without_edge(self, member: int) -> set[int]:
        """The peers whose edge with a member was removed."""
        return {edge.high if edge.low == member else edge.low for edge in self.removed if member in (edge.low, edge.high)}

    def base(self, context: bytes) -> bytes:
        """The base view that this opens."""
        adverts = {Advert.decode(content).sender: content for content in self.adverts}
        return base_view(context, adverts, dict(zip(self.members(), self.dealings, strict=True)), self.removed)

    def view(self, context: bytes) -> bytes:
        """The view that this opens."""
        return sketch_view(self.base(context), self.group, self.matrix_seed)


@dataclass(frozen=True, kw_only=True)
class Evidence(Record):
    """One accusation with all that its check takes; unused parts are empty.

    Attributes:
        kind: see :class:`EvidenceKind`.
        accused: index in the cohort.
        config: of the round.
        statements: envelopes, in the order that the kind asks for; senders beside them.
        senders: index of each statement's sender.
        leaves: dealt leaves with their paths.
        shares: released shares.
        keys: opened mask keys of rejected members.
        secret: an opened self-mask seed or edge seed.
        accepted: the accepted set.
        view: opening of the view.
    """

    TYPE = 60
    FIELDS = (
        ("kind", UInt(1)),
        ("accused", INDEX),
        ("config", Part(RoundConfig)),
        ("statements", ListOf(Part(Envelope), 4)),
        ("senders", ListOf(INDEX, 4)),
        ("leaves", ListOf(Part(ProvenLeaf), MAX_COHORT)),
        ("shares", ListOf(Part(ShownShare), MAX_COHORT)),
        ("keys", ListOf(Part(OpenedKey), MAX_COHORT)),
        ("secret", Fixed(SECRET_BYTES)),
        ("accepted", MEMBERS),
        ("view", ListOf(Part(ViewOpening), 1)),
    )
    kind: int
    accused: int
    config: RoundConfig
    statements: tuple[Envelope, ...]
    senders: tuple[int, ...]
    leaves: tuple[ProvenLeaf, ...] = ()
    shares: tuple[ShownShare, ...] = ()
    keys: tuple[OpenedKey, ...] = ()
    secret: bytes = bytes(SECRET_BYTES)
    accepted: tuple[int, ...] = ()
    view: tuple[ViewOpening, ...] = ()
