"""The server's side of one cohort's round: collects what its members say in each phase, and moves on when told that a phase is over.

======================  ===============================  ====================================================  ==========================
phase                   asks                             takes                                                 moves on when closed if
======================  ===============================  ====================================================  ==========================
ADVERTISE_KEYS          everybody                        adverts                                               enough advertised
SHARE_KEYS              U1                               dealings                                              enough dealt
MASKED_INPUT            U2                               inputs                                                enough uploaded, dealers sound
SKETCH                  U3                               sketches of the R that the whole group shares         :meth:`decide`
CONSISTENCY_CHECK       who sketched                     consents to A and D                                   t signed
UNMASK                  who sketched                     shares, checked against the dealers' signed hashes    ``opening.py``
======================  ===============================  ====================================================  ==========================

1. A drop-out is an input, not an error: who has not answered when a phase is closed is out of it. "Enough" is t, and a_min.
2. A message that is refused raises ``PeerError`` with its sender and changes nothing. That a message *came* from somebody proves nothing;
   what is provable is in ``evidence.py``.
3. Everything before UNMASK may be given up and tried again. So whatever can be known to fail is found before: a dealer that over c members
   dispute, a member whose secrets too few present members hold.
4. The machine has no clock, no network and no randomness: the caller keeps time, carries bytes, and owns the nonce.

Source: Bonawitz et al. 2017, figure 4; design note SECAGG, stages 0 to 6; decision 0010, findings 3, 6 and 13.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedsec.errors import DecodeError, LocalProtocolError, PeerError, RoundAborted, VerificationError
from fedsec.merkle import merkle_root
from fedsec.secagg import requests
from fedsec.secagg.checks import S, check_advert, read_statement
from fedsec.secagg.config import Member, RoundConfig, check_members, nonce_commitment
from fedsec.secagg.dealing import leaf_hashes
from fedsec.secagg.fixedpoint import RingVector
from fedsec.secagg.labels import BOX_BYTES, DIGEST_BYTES, MAX_REMOVED, SECRET_BYTES, Phase
from fedsec.secagg.messages import (
    Advert,
    Consent,
    ConsistencyRequest,
    Dealing,
    DealtLeaf,
    DealtLeaves,
    Envelope,
    Input,
    RemovedEdge,
    Shares,
    SketchOpening,
    SketchStatement,
)
from fedsec.secagg.sketch import Sketch, verify_norm
from fedsec.secagg.views import (
    agreement_digest,
    base_view,
    group_root,
    input_digest,
    input_root,
    share_hash,
    sketch_commitment,
    sketch_view,
    vector_hash,
)
from fedsec.signing import Verify

LEAF_BYTES = 2 + 4 + BOX_BYTES + 3 * DIGEST_BYTES
SHARE_BYTES = 4 + SECRET_BYTES
"""What one more member adds to a message: a dealt leaf, a share."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Dealt:
    """A member's dealing, with its leaves by receiver."""

    envelope: Envelope
    statement: Dealing
    leaves: dict[int, DealtLeaf]


@dataclass(frozen=True, kw_only=True, eq=False)
class Uploaded:
    """A member's masked vector."""

    envelope: Envelope
    statement: Input
    vector: RingVector


@dataclass(frozen=True, kw_only=True, eq=False)
class SketchMade:
    """A member's sketch, and the statement that commits to it."""

    envelope: Envelope
    statement: SketchStatement
    sketch: Sketch
    salt: bytes


@dataclass(frozen=True, kw_only=True)
class Released:
    """A member's shares, by the member of U2 that they belong to; a share that contradicts its dealer's hash is in ``lies``."""

    envelope: Envelope = field(repr=False)
    statement: Shares = field(repr=False)
    shares: dict[int, bytes] = field(repr=False)
    lies: tuple[int, ...]


@dataclass(kw_only=True, eq=False)
class CohortServer:
    """One cohort's round.

    Attributes:
        config: of this cohort.
        members: of the cohort, in order.
        verify: checks signatures.
        phase: where the round is.
        adverts: of U1, with their envelopes.
        dealings: of U2.
        inputs: of U3.
        sketches: of who sketched.
        gated: who failed the norm gate.
        accepted: A, after :meth:`decide`.
        consents: signatures under the agreement.
        released: shares by their sender.
        excluded: members that are not asked.
        suspects: dealers that over c members dispute: a reason to leave them out of the next attempt, no evidence.
    """

    config: RoundConfig
    members: Sequence[Member]
    verify: Verify
    phase: Phase = Phase.ADVERTISE_KEYS
    adverts: dict[int, tuple[Advert, Envelope]] = field(default_factory=dict)
    dealings: dict[int, Dealt] = field(default_factory=dict)
    removed: tuple[RemovedEdge, ...] = ()
    inputs: dict[int, Uploaded] = field(default_factory=dict)
    sketches: dict[int, SketchMade] = field(default_factory=dict)
    gated: tuple[int, ...] = ()
    accepted: tuple[int, ...] = ()
    consents: dict[int, bytes] = field(default_factory=dict)
    released: dict[int, Released] = field(default_factory=dict)
    suspects: tuple[int, ...] = ()
    excluded: frozenset[int] = frozenset()
    cohort_roots: tuple[bytes, ...] = ()
    nonce: bytes = field(default=b"", repr=False)
    matrix_seed: bytes = b""
    view: bytes = b""
    _base_view: bytes = b""

    def __post_init__(self) -> None:
        check_members(self.config, self.members)
        self.context = self.config.context()

    # --- What is asked, and of whom ---------------------------------------------------------------------------------------------

    def asked(self) -> tuple[int, ...]:
        """The members that this phase's request goes to."""
        everybody: Mapping[Phase, Collection[int]] = {
            Phase.ADVERTISE_KEYS: set(range(len(self.members))) - self.excluded,
            Phase.SHARE_KEYS: self.adverts,
            Phase.MASKED_INPUT: self.dealings,
            Phase.SKETCH: self.inputs,
            Phase.CONSISTENCY_CHECK: self.sketches,
            Phase.UNMASK: self.sketches,
        }
        return tuple(sorted(everybody.get(self.phase, ())))

    def requests(self, *, signed_config: bytes = b"") -> dict[int, bytes]:
        """This phase's request to each member that is asked.

        Args:
            signed_config: what ``checks.sign_config`` made; for ADVERTISE_KEYS.
        """
        match self.phase:
            case Phase.ADVERTISE_KEYS:
                return dict.fromkeys(self.asked(), signed_config)
            case Phase.SHARE_KEYS:
                return dict.fromkeys(self.asked(), requests.share_keys(self.context, self.adverts))
            case Phase.MASKED_INPUT:
                return requests.masked_input(self.context, sorted(self.adverts), self.dealings, self.removed)
            case Phase.SKETCH:
                if not self.view:
                    raise LocalProtocolError("R is not fixed yet")
                return dict.fromkeys(self.asked(), requests.sketch(self.context, self._leaves(), self.cohort_roots, self.nonce))
            case Phase.CONSISTENCY_CHECK:
                return dict.fromkeys(self.asked(), self._agreement().encode())
            case Phase.UNMASK:
                return dict.fromkeys(self.asked(), requests.unmask(self._agreement(), self.consents, self.config.threshold))
            case _:
                raise LocalProtocolError(f"nothing is asked in phase {self.phase}")

    # --- What is taken ----------------------------------------------------------------------------------------------------------

    def receive(self, sender: int, data: bytes) -> None:
        """Take one member's answer to this phase's request.

        Raises:
            PeerError: it is refused; nothing changed, and the member counts as absent.
            LocalProtocolError: nothing is asked in this phase.
        """
        takers: dict[Phase, Callable[[int, Envelope], None]] = {
            Phase.ADVERTISE_KEYS: self._take_advert,
            Phase.SHARE_KEYS: self._take_dealing,
            Phase.MASKED_INPUT: self._take_input,
            Phase.SKETCH: self._take_sketch,
            Phase.CONSISTENCY_CHECK: self._take_consent,
            Phase.UNMASK: self._take_shares,
        }
        if self.phase not in takers:
            raise LocalProtocolError(f"nothing is taken in phase {self.phase}")
        name = self.members[sender].client_id if 0 <= sender < len(self.members) else f"member {sender}"
        if sender not in self.asked():
            raise PeerError(name, self.phase, "was not asked")
        if len(data) > self._longest():
            raise PeerError(name, self.phase, f"a message of {len(data)} bytes")
        try:
            takers[self.phase](sender, Envelope.decode(data))
        except (DecodeError, VerificationError, ValueError) as error:
            raise PeerError(name, self.phase, str(error)) from None

    def _longest(self) -> int:
        """Most bytes that an honest member's message has in this phase; longer ones are not even parsed."""
        attached = {
            Phase.SHARE_KEYS: len(self.members) * LEAF_BYTES,
            Phase.MASKED_INPUT: 4 * self.config.dimension,
            Phase.SKETCH: 4 * self.config.num_rows,
        }
        return attached.get(self.phase, 0) + len(self.members) * SHARE_BYTES + 1024

    def _take_advert(self, sender: int, envelope: Envelope) -> None:
        advert = self._read(Advert, sender, envelope)
        check_advert(advert, self.config)
        _refuse_second(sender, self.adverts)
        taken = {key for other, _ in self.adverts.values() for key in (other.mask_key, other.box_key)}
        if advert.mask_key == advert.box_key or taken & {advert.mask_key, advert.box_key}:
            raise DecodeError("a key that was advertised before")
        _refuse_attachment(envelope)
        self.adverts[sender] = (advert, envelope)

    def _take_dealing(self, sender: int, envelope: Envelope) -> None:
        dealing = self._read(Dealing, sender, envelope)
        _refuse_second(sender, self.dealings)
        leaves = DealtLeaves.decode(envelope.attachment).leaves
        if [leaf.receiver for leaf in leaves] != sorted(self.adverts) or merkle_root(leaf_hashes(leaves)) != dealing.root:
            raise DecodeError("the leaves are not one for each member of U1 under the signed root")
        self.dealings[sender] = Dealt(envelope=envelope, statement=dealing, leaves={leaf.receiver: leaf for leaf in leaves})

    def _take_input(self, sender: int, envelope: Envelope) -> None:
        statement = self._read(Input, sender, envelope)
        _refuse_second(sender, self.inputs)
        if len(envelope.attachment) != 4 * self.config.dimension:
            raise DecodeError(f"{len(envelope.attachment)} bytes of vector, expected {4 * self.config.dimension}")
        vector = np.frombuffer(envelope.attachment, dtype="<u4").astype(np.uint32, copy=False)
        if vector_hash(self.context, sender, vector) != statement.vector_hash:
            raise DecodeError("the vector is not the one whose hash is signed")
        if statement.base_view != self._base_view:
            raise DecodeError("the member has another view of the round")
        if not set(statement.disputed) <= self.dealings.keys() - {sender}:
            raise DecodeError("a dispute with a member that did not deal")
        self.inputs[sender] = Uploaded(envelope=envelope, statement=statement, vector=vector)

    def _take_sketch(self, sender: int, envelope: Envelope) -> None:
        statement = self._read(SketchStatement, sender, envelope)
        _refuse_second(sender, self.sketches)
        opening = SketchOpening.decode(envelope.attachment)
        if len(opening.sketch) != 4 * self.config.num_rows or statement.view != self.view:
            raise DecodeError("a sketch of another length, or under another view")
        if sketch_commitment(self.context, sender, opening.salt, opening.sketch) != statement.commitment:
            raise DecodeError("the sketch is not the one committed to")
        sketch = np.frombuffer(opening.sketch, dtype="<i4").astype(np.int32)
        self.sketches[sender] = SketchMade(envelope=envelope, statement=statement, sketch=sketch, salt=opening.salt)

    def _take_consent(self, sender: int, envelope: Envelope) -> None:
        statement = self._read(Consent, sender, envelope)
        _refuse_second(sender, self.consents)
        _refuse_attachment(envelope)
        if statement.view != self.view or statement.agreement != self.agreement:
            raise DecodeError("consent to something else")
        self.consents[sender] = envelope.signature

    def _take_shares(self, sender: int, envelope: Envelope) -> None:
        statement = self._read(Shares, sender, envelope)
        _refuse_second(sender, self.released)
        _refuse_attachment(envelope)
        owners = sorted(self.dealings)
        if statement.view != self.view or statement.agreement != self.agreement or len(statement.shares) != len(owners):
            raise DecodeError("shares of another round, or not one place for each member of U2")
        given = {owner: share for owner, share in zip(owners, statement.shares, strict=True) if share}
        lies = tuple(owner for owner, share in given.items() if not self._is_dealt(sender, owner, share))
        shares = {owner: share for owner, share in given.items() if owner not in lies}
        self.released[sender] = Released(envelope=envelope, statement=statement, shares=shares, lies=lies)

    def _is_dealt(self, holder: int, owner: int, share: bytes) -> bool:
        leaf, of_key = self.dealings[owner].leaves[holder], owner not in self.accepted
        signed = leaf.key_share_hash if of_key else leaf.seed_share_hash
        return share_hash(self.context, owner, holder, of_key=of_key, share=share) == signed

    def _read(self, kind: type[S], sender: int, envelope: Envelope) -> S:
        return read_statement(
            kind, envelope.content, envelope.signature, context=self.context, sender=sender, member=self.members[sender], verify=self.verify
        )

    # --- When a phase is over ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End the phase with those who have answered.

        Raises:
            RoundAborted: too few; nothing of the round is released.
            LocalProtocolError: this phase ends otherwise.
        """
        match self.phase:
            case Phase.ADVERTISE_KEYS:
                self._need(len(self.adverts), "advertised keys")
                self.phase = Phase.SHARE_KEYS
            case Phase.SHARE_KEYS:
                self._need(len(self.dealings), "dealt shares")
                self._fix_dealings()
                self.phase = Phase.MASKED_INPUT
            case Phase.MASKED_INPUT:
                self._need(len(self.inputs), "uploaded")
                self._check_dealers()
                self._check_holders(self.inputs)
                self.phase = Phase.SKETCH
            case Phase.CONSISTENCY_CHECK:
                self._need(len(self.consents), "consented")
                self.phase = Phase.UNMASK
            case Phase.UNMASK:
                self.phase = Phase.DONE
            case _:
                raise LocalProtocolError(f"phase {self.phase} is not closed like this")

    def abort(self) -> None:
        """Give the round up; nothing of it is used."""
        self.phase = Phase.ABORTED

    def input_root(self) -> bytes:
        """One hash over this cohort's uploads, which are fixed from now on."""
        if self.phase is not Phase.SKETCH:
            raise LocalProtocolError("the uploads are not fixed yet")
        return input_root(self.context, self._leaves())

    def open_nonce(self, cohort_roots: Sequence[bytes], nonce: bytes) -> None:
        """Fix R: the uploads of all cohorts of the group are closed."""
        if self.phase is not Phase.SKETCH or self.view or cohort_roots[self.config.cohort] != self.input_root():
            raise LocalProtocolError("R is fixed once, after the uploads, from the roots of all cohorts")
        if nonce_commitment(nonce) != self.config.nonce_commitment:
            raise LocalProtocolError("not the nonce that CONFIG commits to")
        self.cohort_roots, self.nonce = tuple(cohort_roots), nonce
        group = group_root(self.cohort_roots)
        self.matrix_seed = requests.matrix_seed(group, nonce)
        self.view = sketch_view(self._base_view, group, self.matrix_seed)

    def screen(self) -> dict[int, Sketch]:
        """The sketches that pass the norm gate, by member: what a rule may look at."""
        config, passed = self.config, {}
        for sender, made in sorted(self.sketches.items()):
            try:
                verify_norm(made.sketch, norm_bound=config.norm_bound, slack=config.norm_slack)
            except VerificationError:
                continue
            passed[sender] = made.sketch
        self.gated = tuple(sender for sender in sorted(self.sketches) if sender not in passed)
        return passed

    def decide(self, accepted: Collection[int]) -> None:
        """End SKETCH: fix the accepted set A; everybody else of U2 is in D.

        Raises:
            RoundAborted: A is too small, or too few present members hold the shares of somebody.
            LocalProtocolError: A holds a member that did not pass the gate, or it is not the time.
        """
        if self.phase is not Phase.SKETCH or not self.view or not set(accepted) <= self.screen().keys():
            raise LocalProtocolError("only members whose sketches passed the gate can be accepted")
        if len(set(accepted)) < self.config.minimum_accepted:
            self.abort()
            raise RoundAborted(f"{len(set(accepted))} members are accepted, {self.config.minimum_accepted} are needed")
        self._check_holders(self.sketches)
        self.accepted = tuple(sorted(set(accepted)))
        self.agreement = agreement_digest(self.view, self._agreement())
        self.phase = Phase.CONSISTENCY_CHECK

    @property
    def rejected(self) -> tuple[int, ...]:
        """D: members of U2 that are not accepted."""
        return tuple(sorted(self.dealings.keys() - set(self.accepted)))

    def _need(self, count: int, what: str) -> None:
        needed = max(self.config.threshold, self.config.minimum_accepted)
        if count < needed:
            self.abort()
            raise RoundAborted(f"{count} of {len(self.members)} members {what}, {needed} are needed")

    def _fix_dealings(self) -> None:
        members = sorted(self.dealings)
        leaves = {member: self.dealings[member].leaves for member in members}
        self.removed = tuple(
            RemovedEdge(low=low, high=high)
            for place, low in enumerate(members)
            for high in members[place + 1 :]
            if leaves[low][high].tag != leaves[high][low].tag
        )
        if len(self.removed) > MAX_REMOVED:
            self.abort()
            raise RoundAborted(f"{len(self.removed)} edges have tags that differ: more than one round may lose")
        adverts = {index: envelope.content for index, (_, envelope) in self.adverts.items()}
        dealings = {index: dealt.envelope.content for index, dealt in self.dealings.items()}
        self._base_view = base_view(self.context, adverts, dealings, self.removed)

    def _check_dealers(self) -> None:
        disputes: dict[int, int] = {}
        for upload in self.inputs.values():
            for dealer in upload.statement.disputed:
                disputes[dealer] = disputes.get(dealer, 0) + 1
        self.suspects = tuple(sorted(dealer for dealer, count in disputes.items() if count > self.config.num_corrupt))
        if self.suspects:
            self.abort()
            names = ", ".join(self.members[dealer].client_id for dealer in self.suspects)
            raise RoundAborted(f"more than c members got no usable shares from {names}; left out, the round can be tried again")

    def _check_holders(self, present: Collection[int]) -> None:
        for dealer in self.dealings:
            holders = sum(dealer not in self.inputs[member].statement.disputed for member in present)
            if holders < self.config.threshold:
                self.abort()
                raise RoundAborted(f"{holders} present members hold shares of {self.members[dealer].client_id}, too few to open anything")

    def _leaves(self) -> dict[int, bytes]:
        return {sender: input_digest(upload.envelope.content) for sender, upload in self.inputs.items()}

    def _agreement(self) -> ConsistencyRequest:
        return requests.agreement(self.context, {member: self.sketches[member] for member in self.accepted}, self.rejected)


def _refuse_second(sender: int, known: Collection[int]) -> None:
    if sender in known:
        raise DecodeError("a second answer")


def _refuse_attachment(envelope: Envelope) -> None:
    if envelope.attachment:
        raise DecodeError("an attachment where none belongs")
