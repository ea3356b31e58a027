"""Every message of the protocol: one frozen dataclass each, with its table of fields.

1. What a client says is a *statement* (canonical content that it signs) in an :class:`Envelope`, beside an attachment that the content
   binds by hash. Roots and request hashes cover contents, never signatures: an ECDSA signature has many forms.
2. Every statement names the context and its sender; from MASKED_INPUT on also the sender's view of the round (``views.py``).
3. Lists of members are strictly increasing indices of the cohort's roster: a set has one encoding, and nobody stands in it twice.
4. What the server sends carries no signature but that of CONFIG: a client checks it against signed statements, or it enters the view.

docs/wire-format.md draws the bytes.

Source: design note SECAGG, stages 0 to 8; Bonawitz et al. 2017, figure 4.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from fedsec.secagg.labels import (
    BOX_BYTES,
    CONTEXT_BYTES,
    DIGEST_BYTES,
    MAX_COHORT,
    MAX_COHORTS,
    MAX_CONTENT_BYTES,
    MAX_DIMENSION,
    MAX_REMOVED,
    MAX_SKETCH_ROWS,
    PUBLIC_KEY_BYTES,
    SECRET_BYTES,
    SEED_BYTES,
    SIGNATURE_BYTES,
)
from fedsec.secagg.wire import MAGIC, Blob, Codec, Fixed, ListOf, Part, Parted, Record, SmallRecord, UInt

INDEX = UInt(2)
CONTEXT = Fixed(CONTEXT_BYTES)
DIGEST = Fixed(DIGEST_BYTES)
SIGNATURE = Fixed(SIGNATURE_BYTES)
MEMBERS = ListOf(INDEX, MAX_COHORT)

SIGNED_BY: tuple[tuple[str, Codec], ...] = (("context", CONTEXT), ("sender", INDEX))
"""First fields of every statement."""

MAX_ATTACHMENT_BYTES = max(4 * MAX_DIMENSION, MAX_COHORT * (BOX_BYTES + 3 * DIGEST_BYTES + 2))


def check_increasing(members: Sequence[int], what: str) -> None:
    """Refuse a list of members that is not strictly increasing.

    Raises:
        ValueError: it is not.
    """
    if any(one >= other for one, other in itertools.pairwise(members)):
        raise ValueError(f"{what} are not strictly increasing")


@dataclass(frozen=True, kw_only=True)
class Envelope(Record):
    """A signed content and what it binds by hash: what a client sends, and CONFIG."""

    TYPE = 1
    FIELDS = (("content", Blob(MAX_CONTENT_BYTES)), ("signature", SIGNATURE), ("attachment", Blob(MAX_ATTACHMENT_BYTES)))
    content: bytes = field(repr=False)
    signature: bytes
    attachment: bytes = field(default=b"", repr=False)


# --- Statements of clients ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Advert(SmallRecord):
    """Stage 1: fresh public keys, a commitment to the self-mask seed, and the declared weight."""

    TYPE = 10
    FIELDS = (
        *SIGNED_BY,
        ("mask_key", Fixed(PUBLIC_KEY_BYTES)),
        ("box_key", Fixed(PUBLIC_KEY_BYTES)),
        ("seed_commitment", DIGEST),
        ("weight", UInt(4)),
    )
    context: bytes
    sender: int
    mask_key: bytes
    box_key: bytes
    seed_commitment: bytes
    weight: int


@dataclass(frozen=True, kw_only=True)
class Dealing(SmallRecord):
    """Stage 2: the Merkle root over one :class:`DealtLeaf` for each member of U1."""

    TYPE = 11
    FIELDS = (*SIGNED_BY, ("root", DIGEST))
    context: bytes
    sender: int
    root: bytes


@dataclass(frozen=True, kw_only=True)
class DealtLeaf(SmallRecord):
    """What a dealer made for one receiver: the sealed shares, their hashes, and the tag of the edge between the two.

    The leaf for the dealer itself has an empty box and a zero tag: its own shares never leave before UNMASK.
    """

    TYPE = 12
    FIELDS = (("receiver", INDEX), ("box", Blob(BOX_BYTES)), ("seed_share_hash", DIGEST), ("key_share_hash", DIGEST), ("tag", DIGEST))
    receiver: int
    box: bytes
    seed_share_hash: bytes
    key_share_hash: bytes
    tag: bytes


@dataclass(frozen=True, kw_only=True)
class DealtLeaves(Record):
    """The attachment of a dealing: all its leaves, in the order of U1."""

    TYPE = 13
    FIELDS = (("leaves", ListOf(Part(DealtLeaf), MAX_COHORT)),)
    leaves: tuple[DealtLeaf, ...]

    def encode(self) -> bytes:
        """The same bytes as the table gives, from those that every leaf has for its Merkle hash."""
        if len(self.leaves) > MAX_COHORT:
            raise ValueError(f"{len(self.leaves)} leaves are over the limit of {MAX_COHORT}")
        header = len(MAGIC) + 1
        bodies = b"".join(leaf.encode()[header:] for leaf in self.leaves)
        return MAGIC + bytes([self.TYPE]) + len(self.leaves).to_bytes(2, "big") + bodies


@dataclass(frozen=True, kw_only=True)
class Input(Record):
    """Stage 3: the hash of the masked vector, and the dealers whose box did not hold what its hashes say."""

    TYPE = 14
    FIELDS = (*SIGNED_BY, ("base_view", DIGEST), ("vector_hash", DIGEST), ("disputed", MEMBERS))
    context: bytes
    sender: int
    base_view: bytes
    vector_hash: bytes
    disputed: tuple[int, ...]

    def __post_init__(self) -> None:
        check_increasing(self.disputed, "disputed dealers")


@dataclass(frozen=True, kw_only=True)
class SketchStatement(SmallRecord):
    """Stage 4: a hiding commitment to the sketch; the server gets the sketch itself, peers only this."""

    TYPE = 15
    FIELDS = (*SIGNED_BY, ("view", DIGEST), ("commitment", DIGEST))
    context: bytes
    sender: int
    view: bytes
    commitment: bytes


@dataclass(frozen=True, kw_only=True)
class SketchOpening(Record):
    """The attachment of a sketch statement: salt and little-endian int32 values."""

    TYPE = 16
    FIELDS = (("salt", Fixed(SEED_BYTES)), ("sketch", Blob(4 * MAX_SKETCH_ROWS)))
    salt: bytes
    sketch: bytes


@dataclass(frozen=True, kw_only=True)
class Consent(SmallRecord):
    """Stage 5: the sender holds the accepted and the rejected set, by digest, for sound."""

    TYPE = 17
    FIELDS = (*SIGNED_BY, ("view", DIGEST), ("agreement", DIGEST))
    context: bytes
    sender: int
    view: bytes
    agreement: bytes


@dataclass(frozen=True, kw_only=True)
class Shares(Record):
    """Stage 6: for each member of U2, in order, one share or none: of its self-mask seed if accepted, else of its mask key."""

    TYPE = 18
    FIELDS = (*SIGNED_BY, ("view", DIGEST), ("agreement", DIGEST), ("shares", ListOf(Blob(SECRET_BYTES), MAX_COHORT)))
    context: bytes
    sender: int
    view: bytes
    agreement: bytes
    shares: tuple[bytes, ...] = field(repr=False)

    def __post_init__(self) -> None:
        if any(len(share) not in (0, SECRET_BYTES) for share in self.shares):
            raise ValueError(f"a share has {SECRET_BYTES} bytes, or none")


@dataclass(frozen=True, kw_only=True)
class EdgeValue(Parted):
    """R·PRG(seed) of one edge, modulo 2**32: little-endian uint32 [k]."""

    FIELDS = (("peer", INDEX), ("values", Blob(4 * MAX_SKETCH_ROWS)))
    peer: int
    values: bytes


@dataclass(frozen=True, kw_only=True)
class BlameValues(Record):
    """Stage 8: the sketches of the sender's edge masks within the accepted set."""

    TYPE = 19
    FIELDS = (*SIGNED_BY, ("view", DIGEST), ("agreement", DIGEST), ("edges", ListOf(Part(EdgeValue), MAX_COHORT)))
    context: bytes
    sender: int
    view: bytes
    agreement: bytes
    edges: tuple[EdgeValue, ...]

    def __post_init__(self) -> None:
        check_increasing([edge.peer for edge in self.edges], "peers")


@dataclass(frozen=True, kw_only=True)
class EdgeSeed(Record):
    """Stage 8: the seed of one edge, opened because its other end signed another value for it."""

    TYPE = 20
    FIELDS = (*SIGNED_BY, ("view", DIGEST), ("peer", INDEX), ("seed", Fixed(SEED_BYTES)))
    context: bytes
    sender: int
    view: bytes
    peer: int
    seed: bytes = field(repr=False)


Statement = Advert | Dealing | Input | SketchStatement | Consent | Shares | BlameValues | EdgeSeed


# --- Requests of the server -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SignedPart(Parted):
    """Content and signature of a statement of another member, as it sent them."""

    FIELDS = (("content", Blob(MAX_CONTENT_BYTES)), ("signature", SIGNATURE))
    content: bytes
    signature: bytes


@dataclass(frozen=True, kw_only=True)
class ShareKeysRequest(Record):
    """Stage 2: the adverts of U1."""

    TYPE = 30
    FIELDS = (("context", CONTEXT), ("adverts", ListOf(Part(SignedPart), MAX_COHORT)))
    context: bytes
    adverts: tuple[SignedPart, ...]


@dataclass(frozen=True, kw_only=True)
class DealtPart(Parted):
    """One dealer's part for the receiver: its signed root, and the receiver's leaf with its Merkle path (none for the receiver's own)."""

    FIELDS = (
        ("sender", INDEX),
        ("root", DIGEST),
        ("signature", SIGNATURE),
        ("leaf", Blob(512)),
        ("path", ListOf(DIGEST, 16)),
    )
    sender: int
    root: bytes
    signature: bytes
    leaf: bytes
    path: tuple[bytes, ...]


@dataclass(frozen=True, kw_only=True)
class RemovedEdge(Parted):
    """An edge whose two signed tags differ."""

    FIELDS = (("low", INDEX), ("high", INDEX))
    low: int
    high: int


@dataclass(frozen=True, kw_only=True)
class MaskedInputRequest(Record):
    """Stage 3: what the members of U2 dealt to the receiver, and the removed edges."""

    TYPE = 31
    FIELDS = (
        ("context", CONTEXT),
        ("dealt", ListOf(Part(DealtPart), MAX_COHORT)),
        ("removed", ListOf(Part(RemovedEdge), MAX_REMOVED)),
    )
    context: bytes
    dealt: tuple[DealtPart, ...]
    removed: tuple[RemovedEdge, ...]

    def __post_init__(self) -> None:
        check_increasing([part.sender for part in self.dealt], "dealers")
        pairs = [(edge.low, edge.high) for edge in self.removed]
        if any(low >= high for low, high in pairs) or any(one >= other for one, other in itertools.pairwise(pairs)):
            raise ValueError("removed edges are not strictly increasing pairs")


@dataclass(frozen=True, kw_only=True)
class InputLeaf(Parted):
    """The digest of one member's signed input."""

    FIELDS = (("sender", INDEX), ("digest", DIGEST))
    sender: int
    digest: bytes


@dataclass(frozen=True, kw_only=True)
class SketchRequest(Record):
    """Stage 4: all inputs of the cohort, the roots of all cohorts, and the opened nonce: R follows from them."""

    TYPE = 32
    FIELDS = (
        ("context", CONTEXT),
        ("inputs", ListOf(Part(InputLeaf), MAX_COHORT)),
        ("cohort_roots", ListOf(DIGEST, MAX_COHORTS)),
        ("nonce", Fixed(SEED_BYTES)),
    )
    context: bytes
    inputs: tuple[InputLeaf, ...]
    cohort_roots: tuple[bytes, ...]
    nonce: bytes

    def __post_init__(self) -> None:
        check_increasing([leaf.sender for leaf in self.inputs], "inputs")


@dataclass(frozen=True, kw_only=True)
class CommittedSketch(Parted):
    """An accepted member's sketch statement without what the receiver fills in itself: context and view."""

    FIELDS = (("sender", INDEX), ("commitment", DIGEST), ("signature", SIGNATURE))
    sender: int
    commitment: bytes
    signature: bytes


@dataclass(frozen=True, kw_only=True)
class ConsistencyRequest(Record):
    """Stage 5: the accepted set A, each with its signed sketch statement, and the rejected or absent set D."""

    TYPE = 33
    FIELDS = (("context", CONTEXT), ("accepted", ListOf(Part(CommittedSketch), MAX_COHORT)), ("rejected", MEMBERS))
    context: bytes
    accepted: tuple[CommittedSketch, ...]
    rejected: tuple[int, ...]

    def __post_init__(self) -> None:
        check_increasing([part.sender for part in self.accepted], "accepted members")
        check_increasing(self.rejected, "rejected members")


@dataclass(frozen=True, kw_only=True)
class MemberSignature(Parted):
    """One member's signature under its consent."""

    FIELDS = (("sender", INDEX), ("signature", SIGNATURE))
    sender: int
    signature: bytes


@dataclass(frozen=True, kw_only=True)
class UnmaskRequest(Record):
    """Stage 6: what was agreed on, as in stage 5, and the signatures of at least t members under it."""

    TYPE = 34
    FIELDS = (
        ("context", CONTEXT),
        ("accepted", ListOf(Part(CommittedSketch), MAX_COHORT)),
        ("rejected", MEMBERS),
        ("certificate", ListOf(Part(MemberSignature), MAX_COHORT)),
    )
    context: bytes
    accepted: tuple[CommittedSketch, ...]
    rejected: tuple[int, ...]
    certificate: tuple[MemberSignature, ...]

    def __post_init__(self) -> None:
        check_increasing([part.sender for part in self.certificate], "signers")
        self.agreement()

    def agreement(self) -> ConsistencyRequest:
        """The part that was agreed on.

        Raises:
            ValueError: its lists are not increasing.
        """
        return ConsistencyRequest(context=self.context, accepted=self.accepted, rejected=self.rejected)


@dataclass(frozen=True, kw_only=True)
class BlameRequest(Record):
    """Stage 8: the opening failed; sign the values of your edges."""

    TYPE = 35
    FIELDS = (("context", CONTEXT),)
    context: bytes


@dataclass(frozen=True, kw_only=True)
class OpenEdgeRequest(Record):
    """Stage 8: a peer signed another value for the edge between you two; open its seed."""

    TYPE = 36
    FIELDS = (("context", CONTEXT), ("peer_values", Part(SignedPart)))
    context: bytes
    peer_values: SignedPart
