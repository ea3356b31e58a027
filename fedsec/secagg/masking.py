"""Masks: what makes an upload look random until the masks of a cohort cancel.

1. A mask is the AES-128-CTR key stream of one key, read as little-endian 32-bit words. Each key makes one mask, so a zero counter
   is sound. It follows from a seed *and* the context: a seed that served in one context makes another mask in the next.
2. The seed of a pair follows by HKDF-SHA256 from the X25519 secret, the context, and **both indices and both public keys**, the
   smaller index first: equal at both ends, independent for any two pairs. Without them, who copies a client's key (or its
   inverse modulo p, another string with the same secret) shares that client's seeds without knowing them, and a server cancels the
   masks between honest clients (decision 0010, findings 1 and 2).
3. Of a pair the client with the smaller index adds the mask and the other subtracts it. Self-masks are added.
4. Hashes of a seed that are shown to others (edge tag, commitment) stand under labels of their own and tell nothing of its mask.

Speed: several masks are applied to one piece of the vector while it lies in the cache, with ``update_into`` a buffer that is
made once a call. The piece is large because every step of Python costs more than the second-level cache saves. ``experiments/bench/masking.py`` compares it with the bare key stream.

Source: design note SECAGG, stages 1 to 3; Bonawitz et al. 2017, section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedsec.codec import digest
from fedsec.secagg.labels import CONTEXT_BYTES, MAX_COHORT, MAX_DIMENSION, PUBLIC_KEY_BYTES, SEED_BYTES, STREAM_KEY_BYTES, Label

_INDEX_BYTES = 4
_WORD_BYTES = 4
_BLOCK_BYTES = 16
_CHUNK_WORDS = 1 << 17  # 512 KiB
_ZEROS = memoryview(bytes(_CHUNK_WORDS * _WORD_BYTES))

RingVector = npt.NDArray[np.uint32]


@dataclass(frozen=True, kw_only=True)
class PairEnd:
    """One end of a pair, as its signed advert says.

    Attributes:
        index: place in the cohort's roster, 0 to ``MAX_COHORT``.
        public_key: the 32 bytes of its X25519 mask key as advertised.

    Raises:
        ValueError: an index out of range, or a key of another length.
    """

    index: int
    public_key: bytes

    def __post_init__(self) -> None:
        if not 0 <= self.index <= MAX_COHORT:
            raise ValueError(f"index {self.index} is not in 0..{MAX_COHORT}")
        if len(self.public_key) != PUBLIC_KEY_BYTES:
            raise ValueError(f"a public key has {PUBLIC_KEY_BYTES} bytes, not {len(self.public_key)}")


def pair_seed(shared_secret: bytes, context: bytes, one: PairEnd, other: PairEnd) -> bytes:
    """The seed of one pair's mask: HKDF-SHA256 (RFC 5869) with the context as salt; 32 bytes, secret.

    Guarantee: equal at both ends, whichever is named first; for different ends, keys or contexts independent, even where the X25519
    secret is the same.

    Args:
        shared_secret: the 32 bytes of the X25519 exchange.
        context: the round's 32-byte binding.
        one: an end.
        other: the other end.

    Raises:
        ValueError: wrong lengths, equal indices, or an all-zero secret (a peer's key of small order).
    """
    if len(shared_secret) != SEED_BYTES:
        raise ValueError(f"a shared secret has {SEED_BYTES} bytes, not {len(shared_secret)}")
    if shared_secret == bytes(SEED_BYTES):
        raise ValueError("the shared secret is zero: a key of small order")
    low, high = sorted((one, other), key=lambda end: end.index)
    # Every part after the label has a fixed length, so that no two inputs give one string.
    info = Label.PAIR_SEED.encode() + _pair(low.index, high.index) + low.public_key + high.public_key
    return HKDF(algorithm=SHA256(), length=SEED_BYTES, salt=_check_context(context), info=info).derive(shared_secret)


def edge_tag(seed: bytes, context: bytes, first: int, second: int) -> bytes:
    """What both ends of a pair sign to show that they hold one seed: 32 bytes, public.

    Raises:
        ValueError: wrong lengths, or indices that are equal or out of range.
    """
    return digest(Label.EDGE_TAG, _check_seed(seed), _check_context(context), _pair(first, second))


def seed_commitment(seed: bytes) -> bytes:
    """The hash that a client advertises of its self-mask seed: 32 bytes, public; hiding because the seed is 254 uniform bits."""
    return digest(Label.SEED_COMMITMENT, _check_seed(seed))


def pair_mask_key(seed: bytes, context: bytes) -> bytes:
    """The key of a pair's mask: 16 bytes, secret. Raises ``ValueError`` for other lengths."""
    return digest(Label.PAIR_MASK_KEY, _check_seed(seed), _check_context(context))[:STREAM_KEY_BYTES]


def self_mask_key(seed: bytes, context: bytes) -> bytes:
    """The key of a client's self-mask: 16 bytes, secret. Raises ``ValueError`` for other lengths."""
    return digest(Label.SELF_MASK_KEY, _check_seed(seed), _check_context(context))[:STREAM_KEY_BYTES]


def by_sign(own: int, keys: Mapping[int, bytes]) -> tuple[list[bytes], list[bytes]]:
    """Split the mask keys of client ``own``'s pairs, by peer index, into those whose masks it adds and those it subtracts.

    Raises:
        ValueError: ``own`` is among the peers.
    """
    if own in keys:
        raise ValueError("a client has no pair with itself")
    added = [key for peer, key in sorted(keys.items()) if own < peer]
    subtracted = [key for peer, key in sorted(keys.items()) if own > peer]
    return added, subtracted


def apply_masks(vector: RingVector, *, added: Sequence[bytes] = (), subtracted: Sequence[bytes] = ()) -> None:
    """Add and subtract the masks of the given keys modulo ``2**32``, in place.

    Guarantee: the result does not depend on the order of keys, and ``added`` and ``subtracted`` undo each other.

    Args:
        vector: uint32 [d], contiguous and writable.
        added: 16-byte mask keys.
        subtracted: 16-byte mask keys.

    Raises:
        ValueError: wrong dtype, shape or layout, or a key of another length; the vector is unchanged then.
    """
    if vector.dtype != np.uint32 or vector.ndim != 1 or len(vector) > MAX_DIMENSION:
        raise ValueError(f"vector is {vector.dtype} {vector.shape}, expected uint32 [d] of at most {MAX_DIMENSION}")
    if not (vector.flags.c_contiguous and vector.flags.writeable):
        raise ValueError("the vector must be contiguous and writable")
    additions = [_key_stream(key) for key in added]
    subtractions = [_key_stream(key) for key in subtracted]
    # Older releases of cryptography ask for room for one block more than is written.
    words = np.empty(min(len(vector), _CHUNK_WORDS) + _BLOCK_BYTES // _WORD_BYTES, dtype="<u4")
    raw = words.view(np.uint8).data
    for start in range(0, len(vector), _CHUNK_WORDS):
        piece = vector[start : start + _CHUNK_WORDS]
        zeros, mask = _ZEROS[: _WORD_BYTES * len(piece)], words[: len(piece)]
        for fill in additions:
            fill(zeros, raw)
            np.add(piece, mask, piece)
        for fill in subtractions:
            fill(zeros, raw)
            np.subtract(piece, mask, piece)


def mask_words(key: bytes, dimension: int) -> RingVector:
    """The mask of one key by itself, uint32 [dimension]; for the sketches of masks in BLAME."""
    if not 0 <= dimension <= MAX_DIMENSION:
        raise ValueError(f"dimension {dimension} is not in 0..{MAX_DIMENSION}")
    words = np.zeros(dimension, dtype=np.uint32)
    apply_masks(words, added=[key])
    return words


def _key_stream(key: bytes) -> Callable[[memoryview, memoryview], int]:
    """A function that writes the next bytes of a key's stream, each time from a fresh cipher: no two masks share one."""
    if len(key) != STREAM_KEY_BYTES:
        raise ValueError(f"a mask key has {STREAM_KEY_BYTES} bytes, not {len(key)}")
    return Cipher(algorithms.AES(key), modes.CTR(bytes(_BLOCK_BYTES))).encryptor().update_into


def _pair(first: int, second: int) -> bytes:
    low, high = min(first, second), max(first, second)
    if not 0 <= low < high <= MAX_COHORT:
        raise ValueError(f"indices {first} and {second} are not two different ones of 0..{MAX_COHORT}")
    return low.to_bytes(_INDEX_BYTES, "big") + high.to_bytes(_INDEX_BYTES, "big")


def _check_context(context: bytes) -> bytes:
    if len(context) != CONTEXT_BYTES:
        raise ValueError(f"a context has {CONTEXT_BYTES} bytes, not {len(context)}")
    return context


def _check_seed(seed: bytes) -> bytes:
    if len(seed) != SEED_BYTES:
        raise ValueError(f"a seed has {SEED_BYTES} bytes, not {len(seed)}")
    return seed
