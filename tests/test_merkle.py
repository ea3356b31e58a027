"""Merkle trees: the published vectors, every proof of every small tree, and nothing that was not proven."""

import random
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.errors import LogProofError
from fedsec.merkle import (
    EMPTY_ROOT,
    MAX_SIZE,
    consistency_proof,
    inclusion_proof,
    inclusion_proofs,
    leaf_hash,
    merkle_root,
    verify_consistency,
    verify_inclusion,
)

# The test tree of the Certificate Transparency reference code (github.com/google/certificate-transparency, merkletree tests).
LEAVES = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
INCLUSIONS = [  # leaf index, size, path
    (0, 1, []),
    (
        0,
        8,
        [
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ],
    ),
    (
        5,
        8,
        [
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ],
    ),
    (2, 3, ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"]),
    (
        1,
        5,
        [
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        ],
    ),
]
CONSISTENCIES = [  # old size, new size, proof
    (1, 1, []),
    (
        1,
        8,
        [
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ],
    ),
    (
        6,
        8,
        [
            "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ],
    ),
    (
        2,
        5,
        [
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        ],
    ),
]
REFERENCE = [leaf_hash(bytes.fromhex(leaf)) for leaf in LEAVES]

LIMIT = 40
ALL = [leaf_hash(b"leaf %d" % number) for number in range(LIMIT)]
HASHES = st.binary(min_size=32, max_size=32)


def textbook_root(leaves):
    """Straight from the RFC's definition, recursion and all."""
    if len(leaves) < 2:
        return leaves[0] if leaves else sha256(b"").digest()
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return sha256(b"\x01" + textbook_root(leaves[:split]) + textbook_root(leaves[split:])).digest()


def route(index, size):
    """The turns from the root to a leaf: what a proof of inclusion goes through."""
    if size == 1:
        return ""
    split = 1 << (size - 1).bit_length() - 1
    return "L" + route(index, split) if index < split else "R" + route(index - split, size - split)


def included(index, size):
    return ALL[index], index, size, inclusion_proof(ALL[:size], index), merkle_root(ALL[:size])


def extended(old, new):
    return old, merkle_root(ALL[:old]), new, merkle_root(ALL[:new]), consistency_proof(ALL[:new], old)


def refused(check, *arguments):
    with pytest.raises(LogProofError):
        check(*arguments)


@st.composite
def places(draw):
    size = draw(st.integers(1, LIMIT))
    return draw(st.integers(0, size - 1)), size


@st.composite
def growths(draw):
    new = draw(st.integers(2, LIMIT))
    return draw(st.integers(1, new - 1)), new


@st.composite
def edits(draw, hashes):
    """The same list with one hash changed, dropped, doubled or moved, or with one more."""
    where = draw(st.integers(0, len(hashes)))
    changed = list(hashes)
    what = draw(st.sampled_from(["flip", "drop", "double", "add", "turn"]))
    if what == "add" or where == len(hashes):
        changed.insert(where, draw(HASHES))
    elif what == "flip":
        bit = draw(st.integers(0, 255))
        changed[where] = (int.from_bytes(changed[where], "big") ^ 1 << bit).to_bytes(32, "big")
    elif what == "drop":
        del changed[where]
    elif what == "double":
        changed.insert(where, changed[where])
    else:
        changed = changed[where:] + changed[:where]
    return changed


def test_roots_are_the_published_ones():
    assert merkle_root([]) == EMPTY_ROOT
    assert EMPTY_ROOT.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert [merkle_root(REFERENCE[:size]).hex() for size in range(1, 9)] == ROOTS


@pytest.mark.parametrize(("index", "size", "path"), INCLUSIONS)
def test_inclusion_proofs_are_the_published_ones(index, size, path):
    assert [node.hex() for node in inclusion_proof(REFERENCE[:size], index)] == path
    verify_inclusion(REFERENCE[index], index, size, [bytes.fromhex(node) for node in path], bytes.fromhex(ROOTS[size - 1]))


@pytest.mark.parametrize(("old", "new", "path"), CONSISTENCIES)
def test_consistency_proofs_are_the_published_ones(old, new, path):
    assert [node.hex() for node in consistency_proof(REFERENCE[:new], old)] == path
    roots = [bytes.fromhex(ROOTS[size - 1]) for size in (old, new)]
    verify_consistency(old, roots[0], new, roots[1], [bytes.fromhex(node) for node in path])


def test_every_small_tree_is_the_textbooks():
    for size in range(LIMIT + 1):
        assert merkle_root(ALL[:size]) == textbook_root(ALL[:size])


def test_every_leaf_of_every_small_tree_is_proven():
    for size in range(LIMIT + 1):
        proofs, root = inclusion_proofs(ALL[:size]), merkle_root(ALL[:size])
        assert len(proofs) == size
        for index, proof in enumerate(proofs):
            assert proof == inclusion_proof(ALL[:size], index)
            assert len(proof) == len(route(index, size))
            verify_inclusion(ALL[index], index, size, proof, root)


def test_every_growth_of_every_small_tree_is_proven():
    for new in range(LIMIT + 1):
        for old in range(new + 1):
            verify_consistency(*extended(old, new))


@settings(deadline=None, max_examples=60)
@given(place=places(), data=st.data())
def test_an_edited_inclusion_proof_is_refused(place, data):
    leaf, index, size, proof, root = included(*place)
    changed = data.draw(edits(proof))
    if tuple(changed) != proof:
        refused(verify_inclusion, leaf, index, size, changed, root)


@settings(deadline=None, max_examples=60)
@given(place=places(), other=HASHES)
def test_another_leaf_or_root_is_refused(place, other):
    leaf, index, size, proof, root = included(*place)
    refused(verify_inclusion, other, index, size, proof, root)
    refused(verify_inclusion, leaf, index, size, proof, other)


def test_another_index_is_refused_and_another_size_where_it_leads_elsewhere():
    """A size is not bound by the root (rule 3): it is refused exactly if the leaf's way to the root is another in such a tree."""
    for size in range(1, LIMIT // 2):
        for index in range(size):
            leaf, _, _, proof, root = included(index, size)
            for other in {*range(-1, size + 2), MAX_SIZE} - {index}:
                refused(verify_inclusion, leaf, other, size, proof, root)
            for other in range(-1, LIMIT):
                if other > index and route(index, other) == route(index, size):
                    verify_inclusion(leaf, index, other, proof, root)
                else:
                    refused(verify_inclusion, leaf, index, other, proof, root)


@settings(deadline=None, max_examples=60)
@given(growth=growths(), data=st.data())
def test_an_edited_consistency_proof_is_refused(growth, data):
    old, old_root, new, new_root, proof = extended(*growth)
    changed = data.draw(edits(proof))
    if tuple(changed) != proof:
        refused(verify_consistency, old, old_root, new, new_root, changed)


def test_a_growth_between_other_roots_or_in_the_other_direction_is_refused():
    for new in range(1, LIMIT):
        for old in range(1, new + 1):
            _, old_root, _, new_root, proof = extended(old, new)
            refused(verify_consistency, old, leaf_hash(b"other"), new, new_root, proof)
            refused(verify_consistency, old, old_root, new, leaf_hash(b"other"), proof)
            refused(verify_consistency, new + 1, new_root, old, old_root, proof)
            if old < new:
                refused(verify_consistency, old, new_root, new, old_root, proof)
                refused(verify_consistency, old, old_root, old, new_root, proof)


@settings(deadline=None, max_examples=80)
@given(growth=growths(), data=st.data())
def test_a_rewritten_leaf_has_no_consistency_proof(growth, data):
    """The liar makes the best proof there is, from the rewritten log itself."""
    old, new = growth
    rewritten = list(ALL[:new])
    rewritten[data.draw(st.integers(0, old - 1))] = leaf_hash(b"rewritten")
    refused(verify_consistency, old, merkle_root(ALL[:old]), new, merkle_root(rewritten), consistency_proof(rewritten, old))


def test_the_empty_tree_and_equal_trees_need_no_proof_and_take_none():
    root = merkle_root(ALL)
    verify_consistency(0, EMPTY_ROOT, 0, EMPTY_ROOT, [])
    verify_consistency(0, EMPTY_ROOT, LIMIT, root, [])
    refused(verify_consistency, 0, EMPTY_ROOT, LIMIT, root, [root])
    refused(verify_consistency, LIMIT, root, LIMIT, root, [root])
    refused(verify_consistency, 0, root, LIMIT, root, [])
    refused(verify_consistency, 0, EMPTY_ROOT, 0, root, [])
    refused(verify_consistency, LIMIT, root, LIMIT, ALL[0], [])
    refused(verify_inclusion, ALL[0], 0, 0, [], EMPTY_ROOT)


def test_hostile_sizes_and_hashes_are_refused():
    leaf, index, size, proof, root = included(3, 11)
    for bad in (MAX_SIZE + 1, 2**64, 2**4096, -1):
        refused(verify_inclusion, leaf, index, bad, proof, root)
        refused(verify_inclusion, leaf, bad, MAX_SIZE, proof, root)
        refused(verify_consistency, index, root, bad, root, proof)
        refused(verify_consistency, bad, root, MAX_SIZE, root, proof)
    refused(verify_inclusion, leaf, index, MAX_SIZE, proof, root)
    refused(verify_inclusion, leaf, index, MAX_SIZE, [leaf] * 10_000, root)
    for length in (0, 31, 33, 64):
        short = bytes(length)
        refused(verify_inclusion, short, index, size, proof, root)
        refused(verify_inclusion, leaf, index, size, proof, short)
        refused(verify_inclusion, leaf, index, size, [*proof[:-1], short], root)
        refused(verify_consistency, 3, short, 11, root, consistency_proof(ALL[:11], 3))
        refused(verify_consistency, 3, root, 11, root, [short])


def test_a_node_is_no_leaf():
    """Without the two prefixes a tree of two leaves would be a tree of one leaf, their concatenation."""
    left, right = ALL[:2]
    assert leaf_hash(left + right) != merkle_root([left, right]) != sha256(left + right).digest()


def test_hashes_of_other_lengths_cannot_move_the_boundary_between_two_children():
    """Left and right are hashed without lengths: a byte could change sides."""
    left, right = ALL[:2]
    refused(verify_inclusion, left + right[:1], 0, 2, [right[1:]], merkle_root([left, right]))
    refused(verify_inclusion, left[:-1], 0, 2, [left[-1:] + right], merkle_root([left, right]))
    old_root, last = merkle_root(ALL[:2]), ALL[2]
    refused(verify_consistency, 2, old_root + last[:1], 3, merkle_root(ALL[:3]), [last[1:]])


def test_makers_refuse_what_is_no_tree():
    for bad in ([b""], [bytes(31)], [*ALL, bytes(33)]):
        for make in (merkle_root, inclusion_proofs, lambda leaves: inclusion_proof(leaves, 0), lambda leaves: consistency_proof(leaves, 1)):
            with pytest.raises(ValueError):
                make(bad)
    for index in (-1, LIMIT):
        with pytest.raises(ValueError):
            inclusion_proof(ALL, index)
    for old in (-1, LIMIT + 1):
        with pytest.raises(ValueError):
            consistency_proof(ALL, old)


def test_a_cohort_of_the_largest_size_is_proven():
    rng = random.Random(5)
    leaves = [rng.randbytes(32) for _ in range(1024)]
    root, proofs = merkle_root(leaves), inclusion_proofs(leaves)
    assert {len(proof) for proof in proofs} == {10}
    for index in rng.sample(range(1024), 50):
        verify_inclusion(leaves[index], index, 1024, proofs[index], root)
