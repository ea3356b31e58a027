"""One message that shows a client an entry's place in the log, and that the log only grew.

1. A :class:`LogProof` holds a signed head, the head's consistency with a smaller size, and one entry's inclusion, and nothing else.
2. Its encoding is exactly as long as its two counts say; the counts are limited before anything is cut out.
3. :func:`verify_log_proof` takes the old size from what the client kept, never from the message: a proof from another size is refused.

Source: RFC 9162, sections 2.1.3 and 2.1.4.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Self

from fedsec.errors import DecodeError, LogProofError
from fedsec.merkle import HASH_BYTES, MAX_SIZE, leaf_hash, verify_inclusion
from fedsec.signing import Verify, verify_signature
from fedsec.translog.head import NOTHING_KEPT, SIGNED_HEAD_BYTES, KeptHead, SignedHead, check_extension, verify_head

MAX_PROOF_HASHES = 64
"""Most hashes of one Merkle proof; the largest log needs no more."""

_MAGIC = b"FSLP\x01"
_HEADER = struct.Struct(">5sQQBB")
_FIXED_BYTES = _HEADER.size + SIGNED_HEAD_BYTES

MAX_LOG_PROOF_BYTES = _FIXED_BYTES + 2 * MAX_PROOF_HASHES * HASH_BYTES
"""Upper limit on an encoded proof."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogProof:
    """A claim that nobody has checked yet; see :func:`verify_log_proof`.

    Attributes:
        signed: the head under which the entry stands.
        old_size: the size that the consistency proof starts from; 0 for a client that kept nothing.
        index: the entry's, from 0.
        consistency: from ``fedsec.merkle.consistency_proof``.
        inclusion: from ``fedsec.merkle.inclusion_proof``.

    Raises:
        ValueError: a number out of range, too many hashes, or one that is not 32 bytes.
    """

    signed: SignedHead
    old_size: int
    index: int
    consistency: tuple[bytes, ...]
    inclusion: tuple[bytes, ...]

    def __post_init__(self) -> None:
        if not (0 <= self.old_size <= MAX_SIZE and 0 <= self.index <= MAX_SIZE):
            raise ValueError("a size or index is out of range")
        if max(len(self.consistency), len(self.inclusion)) > MAX_PROOF_HASHES:
            raise ValueError(f"a Merkle proof has at most {MAX_PROOF_HASHES} hashes")
        if any(len(node) != HASH_BYTES for node in self.consistency + self.inclusion):
            raise ValueError(f"a hash has {HASH_BYTES} bytes")

    def encode(self) -> bytes:
        """The canonical bytes."""
        header = _HEADER.pack(_MAGIC, self.old_size, self.index, len(self.consistency), len(self.inclusion))
        return b"".join((header, self.signed.encode(), *self.consistency, *self.inclusion))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read the canonical bytes.

        Raises:
            DecodeError: anything else.
        """
        if not _FIXED_BYTES <= len(data) <= MAX_LOG_PROOF_BYTES:
            raise DecodeError(f"no log proof has {len(data)} bytes")
        magic, old_size, index, old_count, count = _HEADER.unpack_from(data)
        if magic != _MAGIC:
            raise DecodeError("not a log proof of this version")
        if len(data) != _FIXED_BYTES + HASH_BYTES * (old_count + count):
            raise DecodeError(f"a log proof of {old_count} and {count} hashes does not have {len(data)} bytes")
        nodes = tuple(bytes(data[start : start + HASH_BYTES]) for start in range(_FIXED_BYTES, len(data), HASH_BYTES))
        signed = SignedHead.decode(data[_HEADER.size : _FIXED_BYTES])
        try:
            return cls(signed=signed, old_size=old_size, index=index, consistency=nodes[:old_count], inclusion=nodes[old_count:])
        except ValueError as error:
            raise DecodeError(f"log proof: {error}") from None


def verify_log_proof(
    bundle: bytes, *, log_public_key: bytes, kept: KeptHead | None, entry: bytes, verify: Verify = verify_signature
) -> KeptHead:
    """Check that an entry is in the log, and that the log extends the one that the client last believed.

    Args:
        bundle: an encoded :class:`LogProof`, from anyone.
        log_public_key: 33 bytes, from the client's own settings.
        kept: what the last call returned; None before the first.
        entry: the encoded entry that must be in the log. Its meaning is the caller's to check.
        verify: may remember successes, where many clients run in one process.

    Returns:
        What to keep from now on.

    Raises:
        DecodeError: not a log proof.
        SignatureError: the log did not sign the head.
        LogProofError: another log's head, a log that shrank or forked, or an entry that is not in it.
    """
    claimed = LogProof.decode(bundle)
    verified = verify_head(claimed.signed.encode(), log_public_key, verify=verify)
    if claimed.old_size != (kept or NOTHING_KEPT).size:
        raise LogProofError(f"a proof from size {claimed.old_size}, where size {(kept or NOTHING_KEPT).size} was kept")
    extended = check_extension(kept, verified, claimed.consistency)
    verify_inclusion(leaf_hash(entry), claimed.index, verified.head.size, claimed.inclusion, verified.head.root)
    return extended
