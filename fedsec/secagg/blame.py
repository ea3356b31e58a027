"""BLAME: an opening failed; who lied? The server's machine, from the members' signed edge values to proven names.

1. Every member of A signs the sketch of each of its edge masks within A. With them the server checks each member's own equation
   ``s = R·w - Σ ±v``, w being its upload without the masks that are open. An equation that fails names its member.
2. Both ends of an edge must agree. Where both signed and differ, each is asked to open the seed; one honest opening fits both signed
   tags, and names the end whose value is wrong.
3. Silence proves nothing. An edge with one silent end is *unresolved*, and nobody is named (a liar may put its lie on the edge to a silent
   honest peer; decision 0010, finding 5). An edge whose ends signed different values and open nothing is unresolved, too.
4. If every member answers and nobody is named, the sum was off by a multiple of 2**32 that no equation sees; the outcome says so.

Named means proven: every name comes out of ``verify_evidence``. The failed sum stays unused in every case.

Source: design note SECAGG, stage 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fedsec.errors import DecodeError, LocalProtocolError, PeerError, VerificationError
from fedsec.merkle import inclusion_proof
from fedsec.secagg.checks import read_statement
from fedsec.secagg.client_blame import AT_A_TIME
from fedsec.secagg.dealing import leaf_hashes
from fedsec.secagg.evidence import Named, sum_of_edges, verify_evidence
from fedsec.secagg.evidence_record import Evidence, EvidenceKind, OpenedKey, ProvenLeaf, ShownShare, ViewOpening
from fedsec.secagg.fixedpoint import RingVector
from fedsec.secagg.labels import Phase
from fedsec.secagg.masking import edge_tag
from fedsec.secagg.messages import BlameRequest, BlameValues, EdgeSeed, Envelope, OpenEdgeRequest, SignedPart
from fedsec.secagg.opening import BadDealing, Secrets, opened_edges, remove_masks
from fedsec.secagg.seat import MakeMatrix, plain_matrix
from fedsec.secagg.server import CohortServer
from fedsec.secagg.views import group_root


def view_opening(server: CohortServer) -> ViewOpening:
    """What the certified view of a round is a hash of."""
    return ViewOpening(
        adverts=tuple(server.adverts[index][1].content for index in sorted(server.adverts)),
        dealings=tuple(server.dealings[index].envelope.content for index in sorted(server.dealings)),
        removed=server.removed,
        group=group_root(server.cohort_roots),
        matrix_seed=server.matrix_seed,
    )


def proven_leaf(server: CohortServer, dealer: int, receiver: int) -> ProvenLeaf:
    """A dealer's leaf for one receiver, with its path to the signed root."""
    order = sorted(server.adverts)
    leaves = [server.dealings[dealer].leaves[member] for member in order]
    place = order.index(receiver)
    path = inclusion_proof(leaf_hashes(leaves), place)
    return ProvenLeaf(place=place, size=len(order), leaf=leaves[place], path=tuple(path))


def bare(envelope: Envelope) -> Envelope:
    """An envelope without its attachment."""
    return Envelope(content=envelope.content, signature=envelope.signature)


def name_share_liars(server: CohortServer) -> tuple[Named, ...]:
    """Members that signed a share which was never dealt to them."""
    named = []
    for holder, released in sorted(server.released.items()):
        for owner in released.lies[:1]:  # one lie names its sender
            place = sorted(server.dealings).index(owner)
            evidence = Evidence(
                kind=int(EvidenceKind.SHARE),
                accused=holder,
                config=server.config,
                statements=(bare(released.envelope), bare(server.dealings[owner].envelope)),
                senders=(holder, owner),
                leaves=(proven_leaf(server, owner, holder),),
                shares=(ShownShare(holder=holder, share=released.statement.shares[place]),),
                accepted=server.accepted,
                view=(view_opening(server),),
            )
            named.append(verify_evidence(evidence, server.members, verify=server.verify))
    return tuple(named)


def name_bad_dealers(server: CohortServer, bad: Sequence[BadDealing]) -> tuple[Named, ...]:
    """Dealers whose shares match their hashes and not their commitments."""
    named = []
    for dealing in bad:
        holders = sorted(dealing.shares)
        evidence = Evidence(
            kind=int(EvidenceKind.DEALING),
            accused=dealing.dealer,
            config=server.config,
            statements=(bare(server.adverts[dealing.dealer][1]), bare(server.dealings[dealing.dealer].envelope)),
            senders=(dealing.dealer, dealing.dealer),
            leaves=tuple(proven_leaf(server, dealing.dealer, holder) for holder in holders),
            shares=tuple(ShownShare(holder=holder, share=dealing.shares[holder]) for holder in holders),
        )
        named.append(verify_evidence(evidence, server.members, verify=server.verify))
    return tuple(named)


@dataclass(frozen=True, kw_only=True)
class BlameOutcome:
    """What BLAME found.

    Attributes:
        named: proven liars.
        silent: accepted members that did not answer; excluded from the next round, without evidence.
        unresolved: edges that could not be settled, as (answered, silent), or as two ends that signed different values and opened nothing.
        wrapped: everybody answered and all equations hold: the sum was off by a multiple of 2**32.
    """

    named: tuple[Named, ...]
    silent: tuple[int, ...]
    unresolved: tuple[tuple[int, int], ...]
    wrapped: bool


@dataclass(kw_only=True, eq=False)
class BlameServer:
    """BLAME of one cohort.

    Attributes:
        server: the cohort's round, after UNMASK.
        secrets: as opened.
        phase: BLAME, BLAME_OPEN, then DONE.
        values: signed edge values by member.
        disputes: edges that both ends signed differently.
    """

    server: CohortServer
    secrets: Secrets
    matrix: MakeMatrix = plain_matrix
    phase: Phase = Phase.BLAME
    values: dict[int, tuple[BlameValues, Envelope]] = field(default_factory=dict)
    disputes: tuple[tuple[int, int], ...] = ()
    _named: dict[int, Named] = field(default_factory=dict)

    def requests(self) -> dict[int, tuple[bytes, ...]]:
        """This phase's requests, by member; an opening is asked edge by edge."""
        if self.phase is Phase.BLAME:
            request = BlameRequest(context=self.server.context).encode()
            return {member: (request,) for member in self.server.accepted if member not in self.values}
        asked: dict[int, list[bytes]] = {}
        for one, other in self.disputes:
            for member, peer in ((one, other), (other, one)):
                envelope = self.values[peer][1]
                part = SignedPart(content=envelope.content, signature=envelope.signature)
                asked.setdefault(member, []).append(OpenEdgeRequest(context=self.server.context, peer_values=part).encode())
        return {member: tuple(requests) for member, requests in asked.items()}

    def receive(self, sender: int, data: bytes) -> None:
        """Take one answer.

        Raises:
            PeerError: it is refused; nothing changed.
            LocalProtocolError: nothing is asked any more.
        """
        if self.phase not in (Phase.BLAME, Phase.BLAME_OPEN):
            raise LocalProtocolError(f"nothing is taken in phase {self.phase}")
        if sender not in self.server.accepted:
            raise PeerError(f"member {sender}", self.phase, "was not asked")
        name = self.server.members[sender].client_id
        try:
            envelope = Envelope.decode(data)
            if self.phase is Phase.BLAME:
                self._take_values(sender, envelope)
            else:
                self._take_seed(sender, envelope)
        except (DecodeError, VerificationError, ValueError) as error:
            raise PeerError(name, self.phase, str(error)) from None

    def _take_values(self, sender: int, envelope: Envelope) -> None:
        server = self.server
        values = read_statement(
            BlameValues, envelope.content, envelope.signature,
            context=server.context, sender=sender, member=server.members[sender], verify=server.verify,
        )  # fmt: skip
        expected = self._peers(sender)
        if values.view != server.view or values.agreement != server.agreement or sender in self.values:
            raise DecodeError("values for another view, or a second answer")
        if [edge.peer for edge in values.edges] != expected or any(len(edge.values) != 4 * server.config.num_rows for edge in values.edges):
            raise DecodeError("not one value for each edge within the accepted set")
        self.values[sender] = (values, envelope)

    def _peers(self, member: int) -> list[int]:
        removed = {pair for edge in self.server.removed for pair in ((edge.low, edge.high), (edge.high, edge.low))}
        return [peer for peer in self.server.accepted if peer != member and (member, peer) not in removed]

    def close_values(self) -> None:
        """Check every equation, and find the edges that both ends signed differently."""
        products = self._products(sorted(self.values))
        for member in sorted(self.values):
            if not self._equation_holds(member, products[member]):
                self._named[member] = verify_evidence(self._sketch_evidence(member), self.server.members, verify=self.server.verify)
        said = {(member, edge.peer): edge.values for member, (values, _) in self.values.items() for edge in values.edges}
        self.disputes = tuple(
            (one, other) for one, other in sorted(said) if one < other and (other, one) in said and said[one, other] != said[other, one]
        )
        self.phase = Phase.BLAME_OPEN

    def _products(self, members: Sequence[int]) -> dict[int, RingVector]:
        """R·w of each member, w its upload without the masks that are open; several share one expansion of R."""
        server, config = self.server, self.server.config
        made, opened = self.matrix(server.matrix_seed, config.num_rows, config.dimension), opened_edges(server, self.secrets)
        products: dict[int, RingVector] = {}
        for start in range(0, len(members), AT_A_TIME):
            batch = members[start : start + AT_A_TIME]
            vectors = [server.inputs[member].vector.copy() for member in batch]
            for member, vector in zip(batch, vectors, strict=True):
                remove_masks(vector, server, self.secrets, [member], opened)
            products |= dict(zip(batch, made.ring_product_many(vectors), strict=True))
        return products

    def _equation_holds(self, member: int, product: RingVector) -> bool:
        server, config = self.server, self.server.config
        claimed = sum_of_edges(member, self.values[member][0], config.num_rows)
        return np.array_equal(product - claimed, server.sketches[member].sketch.astype(np.uint32))

    def _sketch_evidence(self, member: int) -> Evidence:
        server = self.server
        without = view_opening(server).without_edge(member)
        return Evidence(
            kind=int(EvidenceKind.SKETCH),
            accused=member,
            config=server.config,
            statements=(
                bare(server.adverts[member][1]),
                server.inputs[member].envelope,
                server.sketches[member].envelope,
                bare(self.values[member][1]),
            ),
            senders=(member,) * 4,
            keys=tuple(
                OpenedKey(advert=bare(server.adverts[peer][1]), key=key)
                for peer, key in sorted(self.secrets.keys.items())
                if peer not in without
            ),
            secret=self.secrets.seeds[member],
            accepted=server.accepted,
            view=(view_opening(server),),
        )

    def _take_seed(self, sender: int, envelope: Envelope) -> None:
        server = self.server
        opened = read_statement(
            EdgeSeed, envelope.content, envelope.signature,
            context=server.context, sender=sender, member=server.members[sender], verify=server.verify,
        )  # fmt: skip
        pair = (min(sender, opened.peer), max(sender, opened.peer))
        if opened.view != server.view or pair not in self.disputes:
            raise DecodeError("a seed of an edge that is not in dispute")
        if edge_tag(opened.seed, server.context, *pair) != server.dealings[sender].leaves[opened.peer].tag:
            raise DecodeError("not the seed whose tag both ends signed")
        for accused, peer in (pair, pair[::-1]):
            self._try_edge(accused, peer, opened.seed)

    def _try_edge(self, accused: int, peer: int, seed: bytes) -> None:
        """Name an end whose value for the edge is wrong; of two ends at most one is right."""
        server = self.server
        if accused in self._named:
            return
        evidence = Evidence(
            kind=int(EvidenceKind.EDGE),
            accused=accused,
            config=server.config,
            statements=(bare(self.values[accused][1]), bare(server.dealings[accused].envelope)),
            senders=(accused, accused),
            leaves=(proven_leaf(server, accused, peer),),
            secret=seed,
            view=(view_opening(server),),
        )
        try:
            self._named[accused] = verify_evidence(evidence, server.members, verify=server.verify)
        except VerificationError:
            return  # this end's value is the right one

    def outcome(self) -> BlameOutcome:
        """What was found; call it when nothing more is awaited."""
        self.phase = Phase.DONE
        silent = tuple(member for member in self.server.accepted if member not in self.values)
        unresolved = tuple((member, peer) for member in sorted(self.values) for peer in self._peers(member) if peer in silent)
        named = self._named.keys()
        unsettled = tuple((one, other) for one, other in self.disputes if one not in named and other not in named)
        return BlameOutcome(
            named=tuple(self._named[member] for member in sorted(self._named)),
            silent=silent,
            unresolved=unresolved + unsettled,
            wrapped=not (named or silent or unsettled),
        )
