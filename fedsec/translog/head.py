"""Signed heads of a transparency log, and what a client checks before it believes one.

1. A head states the log's size and root at a time; the log signs it under its own label. The log's id is SHA-256 of its key.
2. A client keeps the size and root of the last head it believed, and believes another only with a proof that it extends that one:
   a log that shrank, or shows two clients different entries at one place, is refused by whichever sees both heads.
3. Every encoding has one fixed length. What travels with a head as proof is in ``fedsec.translog.proof``.

A client that keeps nothing trusts the first head it sees, and two clients that never compare heads can be kept apart for good.
Heads are signed, so whoever holds both of a split view can prove it; a :class:`KeptHead` alone proves nothing to others.

Source: RFC 9162, sections 4.10 and 8.3.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from fedsec.errors import DecodeError, LogProofError
from fedsec.merkle import EMPTY_ROOT, HASH_BYTES, MAX_SIZE, verify_consistency
from fedsec.signing import SIGNATURE_BYTES, Signer, Verify, verify_signature

HEAD_LABEL = "fedsec/translog/v1/tree-head"
"""What a signature of a head is for."""

MAX_TIMESTAMP_S = 2**63 - 1

_HEAD = struct.Struct(">5s32sQ32sQ")
_HEAD_MAGIC = b"FSTH\x01"
_KEPT = struct.Struct(">5sQ32s")
_KEPT_MAGIC = b"FSKH\x01"


def log_id(log_public_key: bytes) -> bytes:
    """The name of the log that signs with this key: 32 bytes."""
    return hashlib.sha256(log_public_key).digest()


def _check_size_and_root(size: int, root: bytes) -> None:
    if not 0 <= size <= MAX_SIZE:
        raise ValueError("a log's size is out of range")
    if len(root) != HASH_BYTES:
        raise ValueError(f"a root has {HASH_BYTES} bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeHead:
    """What a log states about itself; not verified.

    Attributes:
        log_id: whose.
        size: number of entries.
        root: of the Merkle tree over them.
        timestamp_s: when, in whole seconds since 1970.

    Raises:
        ValueError: a length or number out of range.
    """

    log_id: bytes
    size: int
    root: bytes
    timestamp_s: int

    def __post_init__(self) -> None:
        _check_size_and_root(self.size, self.root)
        if len(self.log_id) != HASH_BYTES:
            raise ValueError(f"a log's id has {HASH_BYTES} bytes")
        if not 0 <= self.timestamp_s <= MAX_TIMESTAMP_S:
            raise ValueError("a head's time is out of range")

    def encode(self) -> bytes:
        """The canonical bytes, which are signed."""
        return _HEAD.pack(_HEAD_MAGIC, self.log_id, self.size, self.root, self.timestamp_s)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read the canonical bytes; anything else is a DecodeError."""
        if len(data) != _HEAD.size:
            raise DecodeError(f"no head of a log has {len(data)} bytes")
        magic, identity, size, root, timestamp_s = _HEAD.unpack(data)
        if magic != _HEAD_MAGIC:
            raise DecodeError("not a head of a log of this version")
        try:
            return cls(log_id=identity, size=size, root=root, timestamp_s=timestamp_s)
        except ValueError as error:
            raise DecodeError(f"head of a log: {error}") from None


@dataclass(frozen=True, slots=True)
class SignedHead:
    """A head and a signature that nobody has checked yet; see :func:`verify_head`."""

    head: TreeHead
    signature: bytes = field(repr=False)

    def encode(self) -> bytes:
        """The head's canonical bytes, then the signature."""
        return self.head.encode() + self.signature

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read what :meth:`encode` made; anything else is a DecodeError."""
        if len(data) != SIGNED_HEAD_BYTES:
            raise DecodeError(f"no signed head has {len(data)} bytes")
        return cls(TreeHead.decode(data[: _HEAD.size]), bytes(data[_HEAD.size :]))


SIGNED_HEAD_BYTES = _HEAD.size + SIGNATURE_BYTES
"""Length of an encoded :class:`SignedHead`."""


@dataclass(frozen=True, slots=True)
class VerifiedHead:
    """A head that the log has signed. Only :func:`verify_head` makes one."""

    head: TreeHead


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptHead:
    """What a client keeps of the last head it believed.

    Raises:
        ValueError: a length or number out of range.
    """

    size: int
    root: bytes

    def __post_init__(self) -> None:
        _check_size_and_root(self.size, self.root)

    def encode(self) -> bytes:
        """The canonical bytes, for the client's own disk."""
        return _KEPT.pack(_KEPT_MAGIC, self.size, self.root)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read what :meth:`encode` made; anything else is a DecodeError."""
        if len(data) != _KEPT.size:
            raise DecodeError(f"no kept head has {len(data)} bytes")
        magic, size, root = _KEPT.unpack(data)
        if magic != _KEPT_MAGIC:
            raise DecodeError("not a kept head of this version")
        try:
            return cls(size=size, root=root)
        except ValueError as error:
            raise DecodeError(f"kept head: {error}") from None


NOTHING_KEPT = KeptHead(size=0, root=EMPTY_ROOT)
"""What a client holds that has seen no head yet: every log extends it."""


def sign_head(signer: Signer, *, size: int, root: bytes, now_s: int) -> SignedHead:
    """State, as the log, its size and root at the time ``now_s``."""
    head = TreeHead(log_id=log_id(signer.public_key), size=size, root=root, timestamp_s=now_s)
    return SignedHead(head, signer.sign(HEAD_LABEL, head.encode()))


def verify_head(signed: bytes, log_public_key: bytes, *, verify: Verify = verify_signature) -> VerifiedHead:
    """Check that the log with this key signed this head.

    Args:
        signed: an encoded :class:`SignedHead`.
        log_public_key: 33 bytes, from the client's own settings.
        verify: may remember successes, where many clients run in one process.

    Raises:
        DecodeError: not a signed head.
        LogProofError: another log's head.
        SignatureError: the signature does not verify.
    """
    claimed = SignedHead.decode(signed)
    if not hmac.compare_digest(claimed.head.log_id, log_id(log_public_key)):
        raise LogProofError("the head is another log's")
    verify(log_public_key, HEAD_LABEL, claimed.head.encode(), claimed.signature)
    return VerifiedHead(claimed.head)


def check_extension(kept: KeptHead | None, verified: VerifiedHead, consistency: Sequence[bytes]) -> KeptHead:
    """Check that the log still holds everything that it held at the kept head, in the same places.

    Args:
        kept: what the last call returned; None before the first.
        verified: the new head, of the same log.
        consistency: from ``fedsec.merkle.consistency_proof`` for the kept size, 0 before the first.

    Returns:
        What to keep from now on.

    Raises:
        LogProofError: the log shrank, shows another history than before, or proves nothing.
    """
    before, head = kept or NOTHING_KEPT, verified.head
    if head.size < before.size:
        raise LogProofError(f"the log shrank from {before.size} entries to {head.size}: it was rolled back, or shows several histories")
    if head.size == before.size and not hmac.compare_digest(head.root, before.root):
        raise LogProofError(f"the log shows two histories of {head.size} entries")
    verify_consistency(before.size, before.root, head.size, head.root, consistency)
    return KeptHead(size=head.size, root=head.root)
