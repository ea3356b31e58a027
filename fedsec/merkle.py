"""Merkle trees over SHA-256: one root that binds an ordered list, and short proofs of membership and of growth.

1. A leaf is hashed as SHA-256(0x00 || data), a node as SHA-256(0x01 || left || right): a node never stands for a leaf.
2. A tree of n leaves splits at the largest power of two below n; the root of no leaves is SHA-256 of nothing.
3. A verifier takes a proof of exactly the length that the sizes ask for. **A root does not bind the number of leaves**: some
   proofs hold for several sizes. Take size and root from one verified source (a signed head, one hash over both).
4. Verifiers return nothing and raise LogProofError on any fault, input of the wrong form included.

All functions but :func:`leaf_hash` work on leaf hashes, 32 bytes each. Source: RFC 9162, sections 2.1.1 to 2.1.4 (the trees of
RFC 6962).
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator, Sequence
from hashlib import sha256

from fedsec.errors import LogProofError

HASH_BYTES = 32
"""Length of a leaf hash, a node and a root."""

MAX_SIZE = 2**63 - 1
"""Largest number of leaves a proof may speak of."""

EMPTY_ROOT = sha256(b"").digest()
"""Root of the tree without leaves."""


def leaf_hash(data: bytes) -> bytes:
    """Hash of one leaf.

    >>> leaf_hash(b"").hex()[:16]
    '6e340b9cffb37a98'
    """
    return sha256(b"\x00" + data).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()


def _levels(leaf_hashes: Sequence[bytes]) -> list[list[bytes]]:
    """All nodes, leaves first; the odd one at the end of a level moves up unchanged.

    Pairing neighbours level by level gives the same tree as splitting at powers of two from the top.
    """
    if any(len(leaf) != HASH_BYTES for leaf in leaf_hashes):
        raise ValueError(f"a leaf hash has {HASH_BYTES} bytes")
    level = list(leaf_hashes)
    levels = [level]
    while len(level) > 1:
        # Inlined: this line is most of the time of a tree.
        above = [sha256(b"\x01" + left + right).digest() for left, right in zip(level[::2], level[1::2], strict=False)]
        if len(level) % 2:
            above.append(level[-1])
        level = above
        levels.append(level)
    return levels


def merkle_root(leaf_hashes: Sequence[bytes]) -> bytes:
    """Root of the tree over ``leaf_hashes``.

    Raises:
        ValueError: a leaf hash is not 32 bytes.

    >>> merkle_root([]) == EMPTY_ROOT, merkle_root([leaf_hash(b"a")]) == leaf_hash(b"a")
    (True, True)
    """
    return _levels(leaf_hashes)[-1][0] if leaf_hashes else EMPTY_ROOT


def _path(levels: Sequence[Sequence[bytes]], index: int) -> tuple[bytes, ...]:
    path = []
    for level in levels[:-1]:
        sibling = index ^ 1
        if sibling < len(level):
            path.append(level[sibling])
        index >>= 1
    return tuple(path)


def inclusion_proof(leaf_hashes: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """Siblings on the way from leaf ``index`` to the root, lowest first.

    Raises:
        ValueError: no such leaf, or a leaf hash that is not 32 bytes.
    """
    if not 0 <= index < len(leaf_hashes):
        raise ValueError(f"no leaf {index} in a tree of {len(leaf_hashes)}")
    return _path(_levels(leaf_hashes), index)


def inclusion_proofs(leaf_hashes: Sequence[bytes]) -> list[tuple[bytes, ...]]:
    """The inclusion proofs of all leaves in order, for one hashing of the tree."""
    levels = _levels(leaf_hashes)
    return [_path(levels, index) for index in range(len(leaf_hashes))]


def consistency_proof(leaf_hashes: Sequence[bytes], old_size: int) -> tuple[bytes, ...]:
    """Nodes that show that the first ``old_size`` leaves are the start of the tree.

    Empty if there is nothing to show: an old size of 0 or of the whole tree.

    Raises:
        ValueError: an old size over the tree's, or a leaf hash that is not 32 bytes.
    """
    if not 0 <= old_size <= len(leaf_hashes):
        raise ValueError(f"no tree of {old_size} in one of {len(leaf_hashes)}")
    levels = _levels(leaf_hashes)
    if old_size in {0, len(leaf_hashes)}:
        return ()
    # Both walks start at the last full subtree of the old tree. If that is the whole old tree, the verifier has it: the old root.
    index, height = old_size - 1, 0
    while index % 2:
        index, height = index >> 1, height + 1
    start = () if index == 0 else (levels[height][index],)
    return start + _path(levels[height:], index)


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Check that ``leaf`` is leaf number ``index`` of the tree of ``size`` leaves with this root.

    Args:
        leaf: the leaf's hash.
        index: from 0.
        size: number of leaves under ``root``.
        proof: from :func:`inclusion_proof`.
        root: a root that the caller has verified.

    Raises:
        LogProofError: it is not shown.
    """
    _check_hashes(root)
    if not hmac.compare_digest(root_above(leaf, index, size, proof), root):
        raise LogProofError("a leaf is not in the tree where it is said to be")


def root_above(leaf: bytes, index: int, size: int, proof: Sequence[bytes]) -> bytes:
    """The root of a tree of ``size`` leaves in which ``leaf`` is number ``index`` by this proof: for a root that is verified otherwise.

    Raises:
        LogProofError: it is no proof for such a tree.
    """
    _check_hashes(leaf, *proof)
    if not 0 <= index < size <= MAX_SIZE:
        raise LogProofError("an inclusion proof for a leaf that the tree does not have")
    node, last, steps = leaf, size - 1, iter(proof)
    while last:
        # Without a sibling (the odd one at the end of its level) the node moves up unchanged.
        if index % 2 or index < last:
            sibling = _next(steps)
            node = _node(sibling, node) if index % 2 else _node(node, sibling)
        index, last = index >> 1, last >> 1
    if next(steps, None) is not None:
        raise LogProofError("an inclusion proof is too long")
    return node


def verify_consistency(old_size: int, old_root: bytes, new_size: int, new_root: bytes, proof: Sequence[bytes]) -> None:
    """Check that the tree of ``new_size`` leaves starts with all the leaves of the tree of ``old_size``.

    Raises:
        LogProofError: it is not shown; the tree shrank, or leaves were changed.
    """
    _check_hashes(old_root, new_root, *proof)
    if not 0 <= old_size <= new_size <= MAX_SIZE:
        raise LogProofError("a tree is smaller than the one it is said to extend")
    if old_size in {0, new_size}:
        _check_trivial(old_size, old_root, new_size, new_root, proof)
        return
    index, last = old_size - 1, new_size - 1
    while index % 2:
        index, last = index >> 1, last >> 1
    steps = iter(proof if index else (old_root, *proof))
    old = new = _next(steps)
    while last:
        if index % 2:
            sibling = _next(steps)
            old, new = _node(sibling, old), _node(sibling, new)
        elif index < last:
            new = _node(new, _next(steps))
        index, last = index >> 1, last >> 1
    if next(steps, None) is not None:
        raise LogProofError("a consistency proof is too long")
    if not hmac.compare_digest(old + new, old_root + new_root):
        raise LogProofError("a tree does not extend the one it is said to extend")


def _check_trivial(old_size: int, old_root: bytes, new_size: int, new_root: bytes, proof: Sequence[bytes]) -> None:
    if proof:
        raise LogProofError("a consistency proof is too long")
    if old_size == 0 and not hmac.compare_digest(old_root, EMPTY_ROOT):
        raise LogProofError("the tree without leaves has another root")
    if old_size == new_size and not hmac.compare_digest(old_root, new_root):
        raise LogProofError("two trees of one size have different roots")


def _next(steps: Iterator[bytes]) -> bytes:
    node = next(steps, None)
    if node is None:
        raise LogProofError("a proof is too short")
    return node


def _check_hashes(*hashes: bytes) -> None:
    if any(len(node) != HASH_BYTES for node in hashes):
        raise LogProofError(f"a hash of a proof does not have {HASH_BYTES} bytes")
