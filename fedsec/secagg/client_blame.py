"""A client after UNMASK: it holds no share any more, and answers BLAME, where an opening failed.

1. What is signed here are sketches of *pair masks between accepted members*, modulo 2**32. With the sketch and the opened self-mask they
   say nothing new: ``s = R·y - R·PRG(b) - Σ ±R·PRG(seed)``, and s is out (over the integers they would leak; decision 0010, finding 12).
2. A seed is opened only to a peer that *signed another value* for the common edge, under the view and the agreement of this client. Of two honest
   ends that never happens. Silence opens nothing: a server can claim it for everybody. Over c such peers, and the client refuses.
3. A mask key is never opened: b is open by then.

Source: design note SECAGG, stage 8; decision 0010, findings 2, 5, 12.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedsec.errors import DecodeError
from fedsec.secagg.checks import read_statement, sign_statement
from fedsec.secagg.labels import DIGEST_BYTES, MAX_COHORT, SEED_BYTES, Phase
from fedsec.secagg.masking import mask_words, pair_mask_key
from fedsec.secagg.messages import MEMBERS, BlameRequest, BlameValues, EdgeSeed, EdgeValue, OpenEdgeRequest
from fedsec.secagg.seat import KeptEdge, MakeMatrix, Seat, plain_matrix, refusing
from fedsec.secagg.sketch import SketchMatrix
from fedsec.secagg.wire import Fixed, ListOf, Part, Record
from fedsec.signing import Signer, Verify

AT_A_TIME = 16
"""Masks that are sketched together: one expansion of R serves them all; 64 MB at a million parameters."""


@dataclass(frozen=True, kw_only=True)
class Unmasked(Record):
    """After stage 6: shares are out, once and for all attempts of the round.

    Attributes:
        seat: place in the round.
        view: this client's.
        matrix_seed: of R.
        agreement: digest of the sets that were certified.
        edges: to accepted members, if this client is accepted itself; else none.
        opened: peers that an edge was opened to.
    """

    TYPE = 56
    FIELDS = (
        ("seat", Part(Seat)),
        ("view", Fixed(DIGEST_BYTES)),
        ("matrix_seed", Fixed(SEED_BYTES)),
        ("agreement", Fixed(DIGEST_BYTES)),
        ("edges", ListOf(Part(KeptEdge), MAX_COHORT)),
        ("opened", MEMBERS),
    )
    seat: Seat
    view: bytes
    matrix_seed: bytes
    agreement: bytes
    edges: tuple[KeptEdge, ...]
    opened: tuple[int, ...]

    def blame_values(self, data: bytes, *, signer: Signer, matrix: MakeMatrix = plain_matrix) -> bytes:
        """Sign R·PRG(seed) of every edge within the accepted set.

        Args:
            data: a :class:`BlameRequest`.
            signer: of the identity key.
            matrix: how to make R.

        Raises:
            PeerError: another round, or this client was not accepted.
        """
        with refusing(Phase.BLAME):
            self._check(BlameRequest.decode(data).context)
        values = self._values(self.edges, self._matrix(matrix))
        edges = tuple(EdgeValue(peer=edge.peer, values=value) for edge, value in zip(self.edges, values, strict=True))
        statement = BlameValues(context=self.seat.context, sender=self.seat.index, view=self.view, agreement=self.agreement, edges=edges)
        return sign_statement(statement, signer)

    def open_edge(self, data: bytes, *, signer: Signer, verify: Verify, matrix: MakeMatrix = plain_matrix) -> tuple[Unmasked, bytes]:
        """Open the seed of one edge to a peer that signed another value for it.

        Args:
            data: an :class:`OpenEdgeRequest`.
            signer: of the identity key.
            verify: checks signatures.
            matrix: how to make R.

        Raises:
            PeerError: the peer signed no differing value under this view, or c other edges were opened before.
        """
        with refusing(Phase.BLAME_OPEN):
            request = OpenEdgeRequest.decode(data)
            self._check(request.context)
            edge = self._check_dispute(request, verify, self._matrix(matrix))
            opened = {*self.opened, edge.peer}
            if len(opened) > self.seat.config.num_corrupt:
                raise DecodeError(f"edges to c = {self.seat.config.num_corrupt} peers were opened before")
        statement = EdgeSeed(context=self.seat.context, sender=self.seat.index, view=self.view, peer=edge.peer, seed=edge.seed)
        return replace(self, opened=tuple(sorted(opened))), sign_statement(statement, signer)

    def _check(self, context: bytes) -> None:
        if context != self.seat.context:
            raise DecodeError("a request of another round")
        if not self.edges:
            raise DecodeError("this client is not among the accepted")

    def _check_dispute(self, request: OpenEdgeRequest, verify: Verify, matrix: SketchMatrix) -> KeptEdge:
        """The edge in dispute, if its other end signed a value that differs from this client's."""
        seat = self.seat
        content, signature = request.peer_values.content, request.peer_values.signature
        peer = BlameValues.decode(content).sender
        edge = next((edge for edge in self.edges if edge.peer == peer), None)
        if edge is None:
            raise DecodeError("no edge to this peer within the accepted set")
        values = read_statement(
            BlameValues, content, signature, context=seat.context, sender=peer, member=seat.members[peer], verify=verify
        )
        if values.view != self.view or values.agreement != self.agreement:
            raise DecodeError("the peer's values are for another view or agreement")
        theirs = next((value.values for value in values.edges if value.peer == seat.index), None)
        if theirs is None or hmac.compare_digest(theirs, self._values([edge], matrix)[0]):
            raise DecodeError("the peer signed no differing value for this edge")
        return edge

    def _matrix(self, matrix: MakeMatrix) -> SketchMatrix:
        config = self.seat.config
        return matrix(self.matrix_seed, config.num_rows, config.dimension)

    def _values(self, edges: Sequence[KeptEdge], matrix: SketchMatrix) -> list[bytes]:
        dimension, values = self.seat.config.dimension, []
        for start in range(0, len(edges), AT_A_TIME):
            batch = edges[start : start + AT_A_TIME]
            words = [mask_words(pair_mask_key(edge.seed, self.seat.context), dimension) for edge in batch]
            values += [row.astype("<u4", copy=False).tobytes() for row in matrix.ring_product_many(words)]
        return values
