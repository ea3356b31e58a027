"""A client's side of one round: what it sends in each stage, and when a share is released.

::

    join ─► Advertised ─► Dealt ─► Ready ─► Uploaded ─► Sketched ─► Consented ─► Unmasked
             keys          boxes    checked  masked      sketch      agreed       shares are out, once
             └─ client_keys.py ─┘   boxes    input          └───────────►         └─ client_blame.py

1. Every phase is a frozen value that holds only what is still needed, and can be stored. A step returns the next phase and the
   message; a request that is refused raises, and the phase is as it was.
2. **Per peer, one share leaves at most**: of its self-mask seed if it is accepted, of its mask key if it is not. ``Sketched._release`` is the
   only function that puts shares into a message, behind the checks of :meth:`Sketched.unmask`, and an ``Unmasked`` phase holds none.
3. It leaves only against a certificate: t distinct members of U2 signed the same accepted and rejected sets under *this client's own view*.
   Of two certificates for one context an honest member would have to sign both, and it signs once (``cohorts.py``).
4. Why that is safe: an accepted client's pair masks stay closed, since its mask key opens with t key shares, and fewer than t members can
   have sent one. A rejected client's self-mask stays closed for the same reason. Either way one mask covers its input.
5. Randomness, the signer and the trained update are arguments. The caller stores a reply *before* it sends it, and runs each stage once
   (``fedsec.clientstore``): seeds, keys and polynomials never serve twice.

Source: Bonawitz et al. 2017, figure 4, rounds 2 to 4; design note SECAGG, stages 3 to 6; decision 0010.
"""

from __future__ import annotations

import hashlib
import hmac
import zlib
from dataclasses import dataclass, field

import numpy as np

from fedsec.codec import digest
from fedsec.errors import DecodeError, LocalProtocolError
from fedsec.secagg.checks import sign_statement, verify_statement
from fedsec.secagg.client_blame import Unmasked
from fedsec.secagg.config import nonce_commitment
from fedsec.secagg.fixedpoint import IntVector, to_ring
from fedsec.secagg.labels import DIGEST_BYTES, SEED_BYTES, Label, Phase
from fedsec.secagg.masking import apply_masks, by_sign, pair_mask_key, self_mask_key
from fedsec.secagg.messages import (
    MEMBERS,
    Consent,
    ConsistencyRequest,
    Input,
    Shares,
    SketchOpening,
    SketchRequest,
    SketchStatement,
    UnmaskRequest,
)
from fedsec.secagg.seat import Holdings, MakeMatrix, Seat, plain_matrix, refusing
from fedsec.secagg.sketch import make_sketch
from fedsec.secagg.views import agreement_digest, group_root, input_digest, input_root, sketch_commitment, sketch_view, vector_hash
from fedsec.secagg.wire import Fixed, Part, Record, UInt
from fedsec.signing import Signer, Verify


@dataclass(frozen=True, kw_only=True)
class Ready(Record):
    """After the boxes were checked: the client may train, and upload."""

    TYPE = 52
    FIELDS = (
        ("seat", Part(Seat)),
        ("seed", Fixed(SEED_BYTES)),
        ("base_view", Fixed(DIGEST_BYTES)),
        ("holdings", Part(Holdings)),
        ("disputed", MEMBERS),
    )
    seat: Seat
    seed: bytes = field(repr=False)
    base_view: bytes
    holdings: Holdings
    disputed: tuple[int, ...]

    def upload(self, encoded: IntVector, *, signer: Signer) -> tuple[Uploaded, bytes]:
        """Stage 3: ``y = encode(x) + PRG(b) + Σ ±PRG(seed_ij)`` modulo 2**32, and a signature under its hash.

        Args:
            encoded: int32 [d], as ``fixedpoint.encode`` made it of the update that the ledger was charged for.
            signer: of the identity key.

        Raises:
            LocalProtocolError: another length, or longer than L.
        """
        seat = self.seat
        encoded = np.ascontiguousarray(encoded)
        if (
            encoded.dtype != np.int32
            or encoded.shape != (seat.config.dimension,)
            or float(np.linalg.norm(encoded.astype(np.float64))) > seat.config.norm_bound + 0.5
        ):
            raise LocalProtocolError("the vector is not an encoded update of this round")
        context, index = seat.context, seat.index
        keys = {edge.peer: pair_mask_key(edge.seed, context) for edge in self.holdings.edges}
        added, subtracted = by_sign(index, keys)
        vector = to_ring(encoded)
        apply_masks(vector, added=[self_mask_key(self.seed, context), *added], subtracted=subtracted)
        statement = Input(
            context=context,
            sender=index,
            base_view=self.base_view,
            vector_hash=vector_hash(context, index, vector),
            disputed=self.disputed,
        )
        uploaded = Uploaded(
            seat=seat,
            base_view=self.base_view,
            holdings=self.holdings,
            input_digest=input_digest(statement.encode()),
            checksum=zlib.crc32(encoded.data),
        )
        return uploaded, sign_statement(statement, signer, attachment=vector.astype("<u4", copy=False).tobytes())


@dataclass(frozen=True, kw_only=True)
class Uploaded(Record):
    """After stage 3: waiting until all uploads of the group are fixed and R is known."""

    TYPE = 53
    FIELDS = (
        ("seat", Part(Seat)),
        ("base_view", Fixed(DIGEST_BYTES)),
        ("holdings", Part(Holdings)),
        ("input_digest", Fixed(DIGEST_BYTES)),
        ("checksum", UInt(4)),
    )
    seat: Seat
    base_view: bytes
    holdings: Holdings
    input_digest: bytes
    checksum: int = field(repr=False)

    def sketch(
        self, data: bytes, encoded: IntVector, *, signer: Signer, salt: bytes, matrix: MakeMatrix = plain_matrix
    ) -> tuple[Sketched, bytes]:
        """Stage 4: derive R, which nobody knew when the uploads were fixed, and send ``s = R·encode(x)``.

        Args:
            data: a :class:`SketchRequest`.
            encoded: the vector that was uploaded.
            signer: of the identity key.
            salt: 32 fresh secret bytes.
            matrix: how to make R.

        Raises:
            PeerError: this client's input is missing or changed, or the nonce is not the one committed to.
            LocalProtocolError: not the vector that was uploaded: its sketch would be a lie, and provably this client's.
        """
        seat, config = self.seat, self.seat.config
        if encoded.dtype != np.int32 or zlib.crc32(np.ascontiguousarray(encoded).data) != self.checksum:
            raise LocalProtocolError("not the vector that was uploaded")
        with refusing(Phase.SKETCH):
            request = SketchRequest.decode(data)
            leaves = {leaf.sender: leaf.digest for leaf in request.inputs}
            if request.context != seat.context or leaves.get(seat.index) != self.input_digest:
                raise DecodeError("a request of another round, or this client's input is missing or changed")
            if not leaves.keys() <= set(self.holdings.members):
                raise DecodeError("an input of a member that did not deal")
            if len(request.cohort_roots) != config.num_cohorts or request.cohort_roots[config.cohort] != input_root(seat.context, leaves):
                raise DecodeError("the roots of the cohorts do not hold this cohort's inputs")
            if not hmac.compare_digest(nonce_commitment(request.nonce), config.nonce_commitment):
                raise DecodeError("the nonce is not the one that CONFIG commits to")
        group = group_root(request.cohort_roots)
        matrix_seed = digest(Label.SKETCH_SEED, group, request.nonce)
        values = make_sketch(matrix(matrix_seed, config.num_rows, config.dimension), encoded).astype("<i4", copy=False).tobytes()
        statement = SketchStatement(
            context=seat.context,
            sender=seat.index,
            view=sketch_view(self.base_view, group, matrix_seed),
            commitment=sketch_commitment(seat.context, seat.index, salt, values),
        )
        sketched = Sketched(
            seat=seat,
            view=statement.view,
            matrix_seed=matrix_seed,
            holdings=self.holdings,
            inputs=tuple(sorted(leaves)),
            commitment=statement.commitment,
        )
        return sketched, sign_statement(statement, signer, attachment=SketchOpening(salt=salt, sketch=values).encode())


@dataclass(frozen=True, kw_only=True)
class Sketched(Record):
    """After stage 4: the view is complete; waiting for the accepted and the rejected set."""

    TYPE = 54
    FIELDS = (
        ("seat", Part(Seat)),
        ("view", Fixed(DIGEST_BYTES)),
        ("matrix_seed", Fixed(SEED_BYTES)),
        ("holdings", Part(Holdings)),
        ("inputs", MEMBERS),
        ("commitment", Fixed(DIGEST_BYTES)),
    )
    seat: Seat
    view: bytes
    matrix_seed: bytes
    holdings: Holdings
    inputs: tuple[int, ...]
    commitment: bytes

    def consent(self, data: bytes, *, signer: Signer, verify: Verify) -> tuple[Consented, bytes]:
        """Stage 5: sign the accepted and the rejected set, if they are sound; once.

        Args:
            data: a :class:`ConsistencyRequest`.
            signer: of the identity key.
            verify: checks signatures.

        Raises:
            PeerError: the sets do not fit U2 and its inputs, are too small, or an accepted member does not share this client's view.
        """
        with refusing(Phase.CONSISTENCY_CHECK):
            agreed = self._check_agreement(ConsistencyRequest.decode(data), verify)
        statement = Consent(context=self.seat.context, sender=self.seat.index, view=self.view, agreement=agreed)
        return Consented(sketched=self, agreement=agreed, checked=hashlib.sha256(data).digest()), sign_statement(statement, signer)

    def unmask(self, data: bytes, *, signer: Signer, verify: Verify) -> tuple[Unmasked, bytes]:
        """Stage 6, also for a client that missed stage 5: release one share for each member of U2, against a certificate.

        Guarantee: for each member, a share of its self-mask seed if it is accepted, else of its mask key; never both, for nobody.

        Args:
            data: an :class:`UnmaskRequest`.
            signer: of the identity key.
            verify: checks signatures.

        Raises:
            PeerError: the sets are unsound, or fewer than t distinct members of U2 signed exactly them; nothing is released.

        Source: Bonawitz et al. 2017, figure 4, round 4; decision 0010, findings 9 and 13.
        """
        with refusing(Phase.UNMASK):
            request = UnmaskRequest.decode(data)
            agreed = self._check_agreement(request.agreement(), verify)
            self._check_certificate(request, agreed, verify)
        return self._release(request, agreed, signer)

    def _release(self, request: UnmaskRequest, agreed: bytes, signer: Signer) -> tuple[Unmasked, bytes]:
        """Put the shares into a message; called when the certificate has been checked, and by nobody else."""
        accepted = {part.sender for part in request.accepted}
        held = {shares.dealer: shares for shares in self.holdings.held}
        # A disputed dealer's shares are not here: the list has a gap then, and nobody can be framed with a share that does not match.
        released = tuple(
            b"" if member not in held else held[member].seed_share if member in accepted else held[member].key_share
            for member in self.holdings.members
        )
        seat = self.seat
        statement = Shares(context=seat.context, sender=seat.index, view=self.view, agreement=agreed, shares=released)
        edges = tuple(edge for edge in self.holdings.edges if edge.peer in accepted) if seat.index in accepted else ()
        unmasked = Unmasked(seat=seat, view=self.view, matrix_seed=self.matrix_seed, agreement=agreed, edges=edges, opened=())
        return unmasked, sign_statement(statement, signer)

    def _check_agreement(self, request: ConsistencyRequest, verify: Verify) -> bytes:
        """The digest of sets that are sound: ``A ∩ D = ∅``, ``A ∪ D = U2``, A within the inputs, ``|A| ≥ a_min``, one view in A."""
        seat = self.seat
        accepted, rejected = {part.sender for part in request.accepted}, set(request.rejected)
        if request.context != seat.context or accepted & rejected or accepted | rejected != set(self.holdings.members):
            raise DecodeError("the accepted and the rejected members are not U2, each once")
        if not accepted <= set(self.inputs) or len(accepted) < seat.config.minimum_accepted:
            raise DecodeError("an accepted member without an input, or too few accepted members")
        for part in request.accepted:
            if part.sender == seat.index and not hmac.compare_digest(part.commitment, self.commitment):
                raise DecodeError("this client's own sketch is changed")
            statement = SketchStatement(context=seat.context, sender=part.sender, view=self.view, commitment=part.commitment)
            verify_statement(statement, part.signature, member=seat.members[part.sender], verify=verify)
        return agreement_digest(self.view, request)

    def _check_certificate(self, request: UnmaskRequest, agreed: bytes, verify: Verify) -> None:
        seat, signers = self.seat, {part.sender for part in request.certificate}
        if not signers <= set(self.holdings.members) or len(signers) < seat.config.threshold:
            raise DecodeError(f"{len(signers)} signers, {seat.config.threshold} members of U2 are needed")
        for part in request.certificate:
            statement = Consent(context=seat.context, sender=part.sender, view=self.view, agreement=agreed)
            verify_statement(statement, part.signature, member=seat.members[part.sender], verify=verify)


@dataclass(frozen=True, kw_only=True)
class Consented(Record):
    """After stage 5: this client signed one agreement, and helps to no other.

    Attributes:
        sketched: the phase before.
        agreement: digest of the sets.
        checked: hash of the request whose every statement was checked; the same bytes need no second check.
    """

    TYPE = 55
    FIELDS = (("sketched", Part(Sketched)), ("agreement", Fixed(DIGEST_BYTES)), ("checked", Fixed(DIGEST_BYTES)))
    sketched: Sketched
    agreement: bytes
    checked: bytes

    def unmask(self, data: bytes, *, signer: Signer, verify: Verify) -> tuple[Unmasked, bytes]:
        """Stage 6; see :meth:`Sketched.unmask`. The certificate must be for what this client signed."""
        sketched = self.sketched
        with refusing(Phase.UNMASK):
            request = UnmaskRequest.decode(data)
            if not hmac.compare_digest(agreement_digest(sketched.view, request.agreement()), self.agreement):
                raise DecodeError("the certificate is for other sets than this client signed")
            if not hmac.compare_digest(hashlib.sha256(request.agreement().encode()).digest(), self.checked):
                sketched._check_agreement(request.agreement(), verify)  # noqa: SLF001 - other statements for the same sets: from the start
            sketched._check_certificate(request, self.agreement, verify)  # noqa: SLF001 - one machine in two phases
        return sketched._release(request, self.agreement, signer)  # noqa: SLF001
