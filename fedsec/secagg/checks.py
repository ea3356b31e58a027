"""Reading signed statements: bytes in, a statement of the right member in the right round out, or the reason why not.

1. Every statement is read here, at the server and at the client alike: signature, type, context and sender, in one place.
2. A statement that does not verify proves nothing: anybody can send it in anybody's name. It is dropped (decision 0010, finding 9).

``Verify`` is an argument: ``fedsec.signing.verify_signature``, or its memoising form where many clients live in one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from fedsec.errors import DecodeError
from fedsec.secagg.config import Member, RoundConfig
from fedsec.secagg.keys import check_public_key
from fedsec.secagg.labels import SignLabel
from fedsec.secagg.messages import (
    Advert,
    BlameValues,
    Consent,
    Dealing,
    EdgeSeed,
    Envelope,
    Input,
    Shares,
    SketchStatement,
    Statement,
)
from fedsec.signing import Signer, Verify

S = TypeVar("S", Advert, Dealing, Input, SketchStatement, Consent, Shares, BlameValues, EdgeSeed)

_LABELS: dict[type[Statement], SignLabel] = {
    Advert: SignLabel.ADVERT,
    Dealing: SignLabel.DEALING,
    Input: SignLabel.INPUT,
    SketchStatement: SignLabel.SKETCH,
    Consent: SignLabel.CONSENT,
    Shares: SignLabel.SHARES,
    BlameValues: SignLabel.BLAME,
    EdgeSeed: SignLabel.EDGE,
}


def sign_statement(statement: Statement, signer: Signer, *, attachment: bytes = b"") -> bytes:
    """A client's message: the statement under its signature, and what goes with it."""
    content = statement.encode()
    return Envelope(content=content, signature=signer.sign(_LABELS[type(statement)], content), attachment=attachment).encode()


def read_statement(
    kind: type[S], content: bytes, signature: bytes, *, context: bytes, sender: int, member: Member, verify: Verify
) -> S:  # fmt: skip
    """A statement that this member signed in this round.

    Raises:
        SignatureError: the signature is not the member's under these bytes.
        DecodeError: signed bytes that are not such a statement, or of another round or sender.
    """
    verify(member.public_key, _LABELS[kind], content, signature)
    statement = kind.decode(content)
    if statement.context != context or statement.sender != sender:
        raise DecodeError("a statement of another round, or of another member")
    return statement


def read_members_statement(
    kind: type[S], content: bytes, signature: bytes, *, context: bytes, members: Sequence[Member], verify: Verify
) -> S:  # fmt: skip
    """A statement of whichever member it names as its sender.

    Raises:
        SignatureError: that member did not sign it.
        DecodeError: not such a statement, of another round, or of nobody in the cohort.
    """
    statement = kind.decode(content)
    if statement.context != context or statement.sender >= len(members):
        raise DecodeError("a statement of another round, or of an unknown member")
    verify(members[statement.sender].public_key, _LABELS[kind], content, signature)
    return statement


def verify_statement(statement: Statement, signature: bytes, *, member: Member, verify: Verify) -> None:
    """Check a signature under a statement that the verifier has put together itself.

    Raises:
        SignatureError: the member did not sign exactly this.
    """
    verify(member.public_key, _LABELS[type(statement)], statement.encode(), signature)


def check_advert(advert: Advert, config: RoundConfig) -> None:
    """Refuse keys and weights that no honest client declares.

    Raises:
        DecodeError: says what.
    """
    if not 1 <= advert.weight <= config.weight_limit:
        raise DecodeError(f"declared weight {advert.weight} is not in 1..{config.weight_limit}")
    try:
        check_public_key(advert.mask_key)
        check_public_key(advert.box_key)
    except ValueError as error:
        raise DecodeError(str(error)) from None


def read_config(data: bytes, *, server_key: bytes, verify: Verify) -> RoundConfig:
    """The CONFIG that the federation's server signed.

    Raises:
        DecodeError: not an envelope, or not a sound CONFIG.
        SignatureError: another signer.
    """
    envelope = Envelope.decode(data)
    if envelope.attachment:
        raise DecodeError("CONFIG has no attachment")
    verify(server_key, SignLabel.CONFIG, envelope.content, envelope.signature)
    return RoundConfig.decode(envelope.content)


def sign_config(config: RoundConfig, signer: Signer) -> bytes:
    """What the server sends first."""
    content = config.encode()
    return Envelope(content=content, signature=signer.sign(SignLabel.CONFIG, content)).encode()
