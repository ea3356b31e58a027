"""The server's requests, put together from what members said: no rule is decided here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from fedsec.codec import digest
from fedsec.merkle import inclusion_proofs
from fedsec.secagg.dealing import leaf_hashes
from fedsec.secagg.labels import Label
from fedsec.secagg.messages import (
    Advert,
    CommittedSketch,
    ConsistencyRequest,
    Dealing,
    DealtLeaf,
    DealtPart,
    Envelope,
    InputLeaf,
    MaskedInputRequest,
    MemberSignature,
    RemovedEdge,
    ShareKeysRequest,
    SignedPart,
    SketchRequest,
    SketchStatement,
    UnmaskRequest,
)


class _Dealt(Protocol):
    @property
    def envelope(self) -> Envelope: ...
    @property
    def statement(self) -> Dealing: ...
    @property
    def leaves(self) -> dict[int, DealtLeaf]: ...


class _Sketched(Protocol):
    @property
    def envelope(self) -> Envelope: ...
    @property
    def statement(self) -> SketchStatement: ...


def share_keys(context: bytes, adverts: Mapping[int, tuple[Advert, Envelope]]) -> bytes:
    """Stage 2: all adverts."""
    parts = tuple(SignedPart(content=adverts[i][1].content, signature=adverts[i][1].signature) for i in sorted(adverts))
    return ShareKeysRequest(context=context, adverts=parts).encode()


def masked_input(
    context: bytes, receivers: Sequence[int], dealings: Mapping[int, _Dealt], removed: Sequence[RemovedEdge]
) -> dict[int, bytes]:
    """Stage 3: to each member of U2 what the others dealt to it.

    Args:
        context: of the round.
        receivers: U1, in order: the leaves of every dealing.
        dealings: of U2.
        removed: edges whose tags differ.
    """
    parts: dict[int, list[DealtPart]] = {member: [] for member in sorted(dealings)}
    for dealer in sorted(dealings):
        dealt = dealings[dealer]
        paths = inclusion_proofs(leaf_hashes([dealt.leaves[receiver] for receiver in receivers]))
        for receiver, path in zip(receivers, paths, strict=True):
            if receiver in parts:
                leaf = dealt.leaves[receiver].encode() if receiver != dealer else b""
                part = DealtPart(
                    sender=dealer,
                    root=dealt.statement.root,
                    signature=dealt.envelope.signature,
                    leaf=leaf,
                    path=path if receiver != dealer else (),
                )
                parts[receiver].append(part)
    return {
        receiver: MaskedInputRequest(context=context, dealt=tuple(own), removed=tuple(removed)).encode() for receiver, own in parts.items()
    }


def sketch(context: bytes, leaves: Mapping[int, bytes], cohort_roots: Sequence[bytes], nonce: bytes) -> bytes:
    """Stage 4: what R follows from."""
    inputs = tuple(InputLeaf(sender=sender, digest=leaves[sender]) for sender in sorted(leaves))
    return SketchRequest(context=context, inputs=inputs, cohort_roots=tuple(cohort_roots), nonce=nonce).encode()


def agreement(context: bytes, accepted: Mapping[int, _Sketched], rejected: Sequence[int]) -> ConsistencyRequest:
    """Stage 5: the accepted and the rejected set."""
    parts = tuple(
        CommittedSketch(sender=member, commitment=accepted[member].statement.commitment, signature=accepted[member].envelope.signature)
        for member in sorted(accepted)
    )
    return ConsistencyRequest(context=context, accepted=parts, rejected=tuple(rejected))


def unmask(agreed: ConsistencyRequest, consents: Mapping[int, bytes], threshold: int) -> bytes:
    """Stage 6: the agreement and its certificate: t consents, since every member checks each."""
    certificate = tuple(MemberSignature(sender=member, signature=consents[member]) for member in sorted(consents)[:threshold])
    return UnmaskRequest(context=agreed.context, accepted=agreed.accepted, rejected=agreed.rejected, certificate=certificate).encode()


def matrix_seed(group: bytes, nonce: bytes) -> bytes:
    """The seed of R: drawn from the root over all uploads and the nonce that was committed to before."""
    return digest(Label.SKETCH_SEED, group, nonce)
