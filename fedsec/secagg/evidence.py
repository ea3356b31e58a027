"""Evidence: signed statements that contradict themselves, one another, or an opened secret, so that anybody can check who lied.

1. Only what the *accused* signed under a valid signature counts against it. A message that does not verify, a missing answer and a disputed box
   prove nothing: anybody can forge the first, and a server can cause the others (decision 0010, finding 9).
2. ``verify_evidence`` needs the cohort's list of identity keys and nothing else. It raises, or returns who is named and why.
3. An honest client is never named: it sends only shares whose hash it checked, and values that it computed from the seeds of its own tags.

Kinds:

* ``SHARE``: a share under the accused's signature is not the one whose hash the dealer signed.
* ``DEALING``: t shares match the accused's signed hashes and combine to another secret than it committed to.
* ``EDGE``: the accused's signed value for an edge is not R·PRG of the seed whose tag it signed.
* ``SKETCH``: the accused's signed sketch is not its signed upload less its own masks, sketched by R, with its own edge values.

Source: design note SECAGG, stage 8; decision 0010, findings 5, 9 and 12.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedsec.errors import DecodeError, VerificationError
from fedsec.merkle import leaf_hash, verify_inclusion
from fedsec.secagg.checks import S, read_statement
from fedsec.secagg.config import Member, check_members
from fedsec.secagg.evidence_record import Evidence, EvidenceKind, ViewOpening
from fedsec.secagg.fixedpoint import RingVector
from fedsec.secagg.keys import PrivateKey
from fedsec.secagg.labels import SECRET_BYTES
from fedsec.secagg.masking import PairEnd, apply_masks, edge_tag, mask_words, pair_mask_key, pair_seed, seed_commitment, self_mask_key
from fedsec.secagg.messages import (
    Advert,
    BlameValues,
    Dealing,
    DealtLeaf,
    Envelope,
    Input,
    Shares,
    SketchOpening,
    SketchStatement,
    check_increasing,
)
from fedsec.secagg.shamir import LagrangeBasis
from fedsec.secagg.sketch import SketchMatrix
from fedsec.secagg.views import agreement_digest_of, share_hash, sketch_commitment, vector_hash
from fedsec.signing import Verify, verify_signature


@dataclass(frozen=True, kw_only=True)
class Named:
    """A member that is proven to have lied; only :func:`verify_evidence` makes one.

    Attributes:
        client_id: its certificate's name.
        index: in the cohort.
        kind: of the lie.
        reason: one sentence.
        evidence: for whoever wants to check again.
    """

    client_id: str
    index: int
    kind: EvidenceKind
    reason: str
    evidence: Evidence


def verify_evidence(evidence: Evidence, members: Sequence[Member], *, verify: Verify = verify_signature) -> Named:
    """Check an accusation against the cohort's identity keys.

    Raises:
        VerificationError: it does not prove what it says (a bad signature is a ``SignatureError``).
        DecodeError: its parts are not what its kind asks for.
    """
    try:
        check_members(evidence.config, members)
        if evidence.accused >= len(members) or len(evidence.senders) != len(evidence.statements):
            raise DecodeError("an accused or a sender that is no member")
        _check_form(evidence)
        check = {
            EvidenceKind.SHARE: _check_share,
            EvidenceKind.DEALING: _check_dealing,
            EvidenceKind.EDGE: _check_edge,
            EvidenceKind.SKETCH: _check_sketch,
        }[EvidenceKind(evidence.kind)]
        reason = check(_Case(evidence, members, verify))
    except (ValueError, IndexError, KeyError) as error:
        raise DecodeError(f"not the parts of such evidence: {error}") from None
    return Named(
        client_id=members[evidence.accused].client_id,
        index=evidence.accused,
        kind=EvidenceKind(evidence.kind),
        reason=reason,
        evidence=evidence,
    )


_USED: dict[EvidenceKind, frozenset[str]] = {
    EvidenceKind.SHARE: frozenset({"leaves", "shares", "accepted", "view"}),
    EvidenceKind.DEALING: frozenset({"leaves", "shares"}),
    EvidenceKind.EDGE: frozenset({"leaves", "secret", "view"}),
    EvidenceKind.SKETCH: frozenset({"keys", "secret", "accepted", "view"}),
}
_STATEMENTS = {EvidenceKind.SHARE: 2, EvidenceKind.DEALING: 2, EvidenceKind.EDGE: 2, EvidenceKind.SKETCH: 4}
_ATTACHED = {EvidenceKind.SKETCH: {1, 2}}
"""Statements that come with their attachment: the vector, and the opening of the sketch."""


def _check_form(evidence: Evidence) -> None:
    """One lie has one record: what a kind does not use is empty."""
    kind = EvidenceKind(evidence.kind)
    parts = {
        "leaves": evidence.leaves,
        "shares": evidence.shares,
        "keys": evidence.keys,
        "accepted": evidence.accepted,
        "view": evidence.view,
    }
    if any(part for name, part in parts.items() if name not in _USED[kind]) or len(evidence.statements) != _STATEMENTS[kind]:
        raise DecodeError("parts that this kind of evidence does not use")
    if "secret" not in _USED[kind] and evidence.secret != bytes(SECRET_BYTES):
        raise DecodeError("a secret where none belongs")
    attached = {place for place, statement in enumerate(evidence.statements) if statement.attachment}
    if attached != _ATTACHED.get(kind, set()) or any(opened.advert.attachment for opened in evidence.keys):
        raise DecodeError("an attachment where none belongs, or none where one does")
    check_increasing(evidence.accepted, "accepted members")
    if len(evidence.leaves) != (evidence.config.threshold if kind is EvidenceKind.DEALING else kind is not EvidenceKind.SKETCH):
        raise DecodeError("another number of leaves")


class _Case:
    """One piece of evidence with its parts at hand."""

    def __init__(self, evidence: Evidence, members: Sequence[Member], verify: Verify) -> None:
        self.evidence, self.members, self.verify = evidence, members, verify
        self.config, self.accused = evidence.config, evidence.accused
        self.context = evidence.config.context()

    def read(self, place: int, kind: type[S], sender: int) -> S:
        """Statement ``place``, which ``sender`` must have signed."""
        if self.evidence.senders[place] != sender:
            raise DecodeError("a statement of somebody else")
        return self.read_envelope(self.evidence.statements[place], kind, sender)

    def read_envelope(self, envelope: Envelope, kind: type[S], sender: int) -> S:
        """A statement that ``sender`` must have signed."""
        member = self.members[sender]
        return read_statement(
            kind, envelope.content, envelope.signature, context=self.context, sender=sender, member=member, verify=self.verify
        )

    def leaf(self, place: int, dealing: Dealing) -> DealtLeaf:
        """Leaf ``place``, proven to stand under a dealing's root."""
        proven = self.evidence.leaves[place]
        verify_inclusion(leaf_hash(proven.leaf.encode()), proven.place, proven.size, proven.path, dealing.root)
        return proven.leaf

    def check_place(self, place: int, opening: ViewOpening) -> None:
        """Leaf ``place`` stands where its receiver looked for it: a dealer's tree may hold a second leaf for the same receiver elsewhere."""
        proven, order = self.evidence.leaves[place], opening.advertisers()
        if proven.size != len(order) or proven.leaf.receiver not in order or proven.place != order.index(proven.leaf.receiver):
            raise VerificationError("a leaf at another place than its receiver's")

    def opening(self, view: bytes) -> ViewOpening:
        """The opening of ``view``."""
        (opening,) = self.evidence.view
        if opening.view(self.context) != view:
            raise VerificationError("the opening is not that of the accused's view")
        return opening

    def check_sets(self, opening: ViewOpening, view: bytes, agreement: bytes) -> None:
        """The accepted set of the evidence, and the rest of U2, are those that the accused signed for."""
        members, accepted = set(opening.members()), set(self.evidence.accepted)
        rejected = sorted(members - accepted)
        if not accepted <= members or agreement_digest_of(self.context, view, sorted(accepted), rejected) != agreement:
            raise VerificationError("not the sets that were agreed on")

    def matrix(self, opening: ViewOpening) -> SketchMatrix:
        """R of an opened view."""
        return SketchMatrix(seed=opening.matrix_seed, num_rows=self.config.num_rows, dimension=self.config.dimension)


def _check_share(case: _Case) -> str:
    """Statements: the accused's shares; the dealer's dealing. Leaves: the dealer's for the accused. View and accepted: the accused's."""
    dealer = case.evidence.senders[1]
    shares = case.read(0, Shares, case.accused)
    dealing = case.read(1, Dealing, dealer)
    leaf = case.leaf(0, dealing)
    (shown,) = case.evidence.shares
    if leaf.receiver != case.accused or shown.holder != case.accused or shown.share not in shares.shares:
        raise VerificationError("not a share that the accused signed, or another's leaf")
    opening = case.opening(shares.view)
    case.check_place(0, opening)
    case.check_sets(opening, shares.view, shares.agreement)
    place, of_key = opening.members().index(dealer), dealer not in case.evidence.accepted
    if shares.shares[place] != shown.share or opening.dealings[place] != case.evidence.statements[1].content:
        raise VerificationError("the share stands at another member's place, or the dealing is not the one in the accused's view")
    due = leaf.key_share_hash if of_key else leaf.seed_share_hash
    if share_hash(case.context, dealer, case.accused, of_key=of_key, share=shown.share) == due:
        raise VerificationError("the share is the one that was due")
    return f"sent a share of {case.members[dealer].client_id} that is not the one it was dealt"


def _check_dealing(case: _Case) -> str:
    """Statements: the accused's advert and dealing. Leaves and shares: of t holders, of one kind."""
    advert = case.read(0, Advert, case.accused)
    dealing = case.read(1, Dealing, case.accused)
    shares, threshold = case.evidence.shares, case.config.threshold
    if len(shares) != threshold or len(case.evidence.leaves) != threshold or len({shown.holder for shown in shares}) != threshold:
        raise VerificationError("not t shares of distinct holders")
    kinds: list[set[bool]] = []
    for place, shown in enumerate(shares):
        leaf = case.leaf(place, dealing)
        hashes = {False: leaf.seed_share_hash, True: leaf.key_share_hash}
        fitting = {
            of_key
            for of_key, signed in hashes.items()
            if share_hash(case.context, case.accused, shown.holder, of_key=of_key, share=shown.share) == signed
        }
        if leaf.receiver != shown.holder or not fitting:
            raise VerificationError("a share that the accused did not deal")
        kinds.append(fitting)
    common = set.intersection(*kinds)
    if not common:
        raise VerificationError("shares of two secrets")
    try:
        basis = LagrangeBasis.at_zero([shown.holder + 1 for shown in shares], threshold=threshold)
        secret = basis.combine([shown.share for shown in shares])
    except DecodeError:
        return "dealt shares that are no field elements"
    # Shares of two independent secrets never coincide: where both kinds fit, the dealer made one serve for both, and one of them is false.
    sound = {True: PrivateKey(secret).public_key == advert.mask_key, False: seed_commitment(secret) == advert.seed_commitment}
    if all(sound[of_key] for of_key in common):
        raise VerificationError("the shares give the secret that was committed to")
    return "dealt shares that do not give the secret it committed to"


def _check_edge(case: _Case) -> str:
    """Statements: the accused's values and dealing. Leaves: its leaf for the peer. Secret: the seed of the edge."""
    values = case.read(0, BlameValues, case.accused)
    dealing = case.read(1, Dealing, case.accused)
    leaf, seed = case.leaf(0, dealing), case.evidence.secret
    peer = leaf.receiver
    if leaf.tag != edge_tag(seed, case.context, case.accused, peer):
        raise VerificationError("not the seed whose tag the accused signed")
    (signed,) = [edge.values for edge in values.edges if edge.peer == peer]
    words = mask_words(pair_mask_key(seed, case.context), case.config.dimension)
    opening = case.opening(values.view)
    if case.evidence.statements[1].content not in opening.dealings:
        raise VerificationError("not the dealing that the accused's view holds")
    case.check_place(0, opening)
    matrix = case.matrix(opening)
    if signed == matrix.ring_product(words).astype("<u4", copy=False).tobytes():
        raise VerificationError("the signed value is the right one")
    return f"signed a wrong value for its edge with {case.members[peer].client_id}"


def _check_sketch(case: _Case) -> str:
    """Statements: the accused's advert, input (with the vector), sketch (with its opening) and values. Keys: of the rejected members.

    Which members were accepted, and which edges the accused has at all, follows from its own signed view and agreement: a server that
    leaves out a mask would frame an honest client otherwise.
    """
    accused, context = case.accused, case.context
    advert = case.read(0, Advert, accused)
    upload = case.read(1, Input, accused)
    sketch = case.read(2, SketchStatement, accused)
    values = case.read(3, BlameValues, accused)
    opening = case.opening(sketch.view)
    if values.view != sketch.view or upload.base_view != opening.base(context):
        raise VerificationError("statements under different views")
    if case.evidence.statements[0].content not in opening.adverts:
        raise VerificationError("not the advert that the accused's view holds")
    _check_edges(case, opening, values)
    vector: RingVector = np.frombuffer(case.evidence.statements[1].attachment, dtype="<u4").astype(np.uint32)
    if len(vector) != case.config.dimension or vector_hash(context, accused, vector) != upload.vector_hash:
        raise VerificationError("not the vector that the accused signed")
    shown = SketchOpening.decode(case.evidence.statements[2].attachment)
    if sketch_commitment(context, accused, shown.salt, shown.sketch) != sketch.commitment:
        raise VerificationError("not the sketch that the accused committed to")
    if seed_commitment(case.evidence.secret) != advert.seed_commitment:
        raise VerificationError("not the self-mask seed that the accused committed to")
    _take_off(case, advert, vector)
    product = case.matrix(opening).ring_product(vector)
    claimed = sum_of_edges(accused, values, case.config.num_rows)
    if np.array_equal(product - claimed, np.frombuffer(shown.sketch, dtype="<i4").astype(np.uint32)):
        raise VerificationError("the sketch is that of the upload")
    return "sent a sketch that is not its upload's"


def _check_edges(case: _Case, opening: ViewOpening, values: BlameValues) -> None:
    """The accused's values and the shown keys are exactly those of the edges that it has."""
    case.check_sets(opening, values.view, values.agreement)
    members, accepted = set(opening.members()), set(case.evidence.accepted)
    if case.accused not in accepted:
        raise VerificationError("the accused was not accepted")
    edges = members - opening.without_edge(case.accused) - {case.accused}
    if {edge.peer for edge in values.edges} != edges & accepted:
        raise VerificationError("not a value for each edge")
    if sorted(Advert.decode(opened.advert.content).sender for opened in case.evidence.keys) != sorted(edges - accepted):
        raise VerificationError("not a key for each edge with a rejected member")
    if any(opened.advert.content not in opening.adverts for opened in case.evidence.keys):
        raise VerificationError("an advert that the accused's view does not hold")


def _take_off(case: _Case, advert: Advert, vector: RingVector) -> None:
    """Remove the accused's self-mask, and its masks with the rejected members whose keys are shown."""
    own = PairEnd(index=case.accused, public_key=advert.mask_key)
    added: list[bytes] = []
    subtracted = [self_mask_key(case.evidence.secret, case.context)]
    for opened in case.evidence.keys:
        sender = Advert.decode(opened.advert.content).sender
        peer = case.read_envelope(opened.advert, Advert, sender)
        private = PrivateKey(opened.key)
        if private.public_key != peer.mask_key:
            raise VerificationError("not the mask key that the member advertised")
        seed = pair_seed(private.exchange(own.public_key), case.context, own, PairEnd(index=sender, public_key=peer.mask_key))
        (subtracted if case.accused < sender else added).append(pair_mask_key(seed, case.context))
    apply_masks(vector, added=added, subtracted=subtracted)


def sum_of_edges(own: int, values: BlameValues, num_rows: int) -> RingVector:
    """``Σ ±R·PRG(seed)`` over a member's own values, modulo 2**32: uint32 [k]."""
    total = np.zeros(num_rows, dtype=np.uint32)
    for edge in values.edges:
        row = np.frombuffer(edge.values, dtype="<u4").astype(np.uint32)
        total = total + row if own < edge.peer else total - row
    return total
