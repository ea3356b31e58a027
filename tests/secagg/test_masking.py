"""Masks: they cancel in the sum, hide everything before, and serve one context only."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.secagg.masking import (
    PairEnd,
    apply_masks,
    by_sign,
    edge_tag,
    mask_words,
    pair_mask_key,
    pair_seed,
    seed_commitment,
    self_mask_key,
)

CONTEXT = bytes(range(32))
SEEDS = st.binary(min_size=32, max_size=32)
FIELD_PRIME = 2**255 - 19


def end(index: int, key: bytes = b"k" * 32) -> PairEnd:
    return PairEnd(index=index, public_key=key)


def test_pairs_and_masked_vectors_are_the_vectors(vectors) -> None:
    file = vectors("masking")
    context = bytes.fromhex(file["context"])
    keys: dict[int, dict[int, bytes]] = {}
    for case in file["pairs"]:
        one, other = (end(index, bytes.fromhex(key)) for index, key in zip(case["pair"], case["public_keys"], strict=True))
        seed = pair_seed(bytes.fromhex(case["shared_secret"]), context, other, one)
        assert seed.hex() == case["seed"]
        assert edge_tag(seed, context, other.index, one.index).hex() == case["edge_tag"]
        keys.setdefault(one.index, {})[other.index] = pair_mask_key(seed, context)
        keys.setdefault(other.index, {})[one.index] = pair_mask_key(seed, context)
    for case in file["masked"]:
        vector = np.array(case["vector"], dtype=np.uint32)
        self_seed = bytes.fromhex(case["self_seed"])
        assert seed_commitment(self_seed).hex() == case["commitment"]
        added, subtracted = by_sign(case["index"], keys[case["index"]])
        apply_masks(vector, added=[self_mask_key(self_seed, context), *added], subtracted=subtracted)
        assert vector.tolist() == case["expected"]
    for case in file["streams"]:
        words = mask_words(self_mask_key(bytes.fromhex(case["seed"]), context), case["words"])
        assert hashlib.sha256(words.astype("<u4").tobytes()).hexdigest() == case["sha256"]


@settings(deadline=None)
@given(dimension=st.integers(0, 50), members=st.lists(st.integers(0, 1024), min_size=2, max_size=6, unique=True), data=st.data())
def test_pair_masks_cancel_and_self_masks_come_off(dimension: int, members: list[int], data: st.DataObject) -> None:
    """The sum over everybody minus the self-masks is the sum of the plain vectors, whatever the indices."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    pairs = {frozenset((i, j)): rng.bytes(16) for i in members for j in members if i < j}
    plain, total = np.zeros(dimension, np.uint32), np.zeros(dimension, np.uint32)
    self_keys = []
    for i in members:
        vector = rng.integers(0, 2**32, dimension, dtype=np.uint32)
        plain += vector
        self_keys.append(rng.bytes(16))
        added, subtracted = by_sign(i, {j: pairs[frozenset((i, j))] for j in members if j != i})
        apply_masks(vector, added=[*added, self_keys[-1]], subtracted=subtracted)
        total += vector
    apply_masks(total, subtracted=self_keys)
    assert total.tolist() == plain.tolist()


@pytest.mark.parametrize("dimension", [0, 1, 3, 4, 65_537, 131_071, 131_072, 131_073, 300_001])
def test_a_mask_does_not_depend_on_how_the_vector_is_cut(dimension: int) -> None:
    longest = mask_words(b"k" * 16, 300_001)
    assert np.array_equal(mask_words(b"k" * 16, dimension), longest[:dimension])


def test_adding_is_undone_by_subtracting_in_any_order(expand) -> None:
    keys = [expand(f"key {i}", 16) for i in range(5)]
    vector = np.frombuffer(expand("vector", 4 * 140_000), dtype=np.uint32).copy()
    before = vector.copy()
    apply_masks(vector, added=keys)
    assert not np.array_equal(vector, before)
    apply_masks(vector, subtracted=keys[::-1])
    assert np.array_equal(vector, before)


def test_a_mask_is_made_of_uniform_words(expand) -> None:
    """Flower's generator never draws the top ring value. Here each bit of 2**20 words is fair, and so is the top byte.

    False alarm: under 1e-6 (six standard deviations, 288 statistics).
    """
    words = mask_words(expand("uniform", 16), 1 << 20)
    ones = np.array([int(np.count_nonzero(words >> bit & 1)) for bit in range(32)])
    assert (np.abs(ones - 2**19) < 6 * 2**9).all()
    top = np.bincount(words >> 24, minlength=256)
    assert (np.abs(top - 2**12) < 6 * 2**6).all()


@settings(deadline=None)
@given(seed=SEEDS, bit=st.integers(0, 255))
def test_every_bit_of_seed_and_context_changes_the_mask_key(seed: bytes, bit: int) -> None:
    """The second: a self-mask that was opened in one attempt says nothing about the next, even if its seed were used again."""
    flip = (1 << bit).to_bytes(32, "big")
    for derive in (self_mask_key, pair_mask_key):
        key = derive(seed, CONTEXT)
        assert derive(bytes(a ^ b for a, b in zip(seed, flip, strict=True)), CONTEXT) != key
        assert derive(seed, bytes(a ^ b for a, b in zip(CONTEXT, flip, strict=True))) != key


def test_one_seed_gives_unrelated_keys_tags_and_commitments() -> None:
    """A corrupt client may choose its self-mask seed equal to a pair's seed: the masks differ, and H(b) is not the pair's tag."""
    seed = b"x" * 32
    shown = [seed_commitment(seed), edge_tag(seed, CONTEXT, 1, 2), edge_tag(seed, CONTEXT, 1, 3), edge_tag(seed, bytes(32), 1, 2)]
    derived = [self_mask_key(seed, CONTEXT), pair_mask_key(seed, CONTEXT), seed[:16], *(value[:16] for value in shown)]
    assert len(set(derived)) == len(derived)


# --- seeds of pairs ---


def test_both_ends_of_a_pair_derive_one_seed(expand) -> None:
    one, two = (X25519PrivateKey.from_private_bytes(expand(name, 32)) for name in ("one", "two"))
    left, right = (end(index, key.public_key().public_bytes_raw()) for index, key in ((4, one), (9, two)))
    shared = one.exchange(two.public_key())
    assert shared == two.exchange(one.public_key())
    seed = pair_seed(shared, CONTEXT, left, right)
    assert seed == pair_seed(shared, CONTEXT, right, left)
    others = {
        pair_seed(shared, bytes(32), left, right),
        pair_seed(shared, CONTEXT, left, end(8, right.public_key)),
        pair_seed(shared, CONTEXT, end(3, left.public_key), right),
        pair_seed(shared, CONTEXT, end(4, right.public_key), end(9, left.public_key)),
        pair_seed(shared, CONTEXT, left, end(9, bytes(32))),
    }
    assert len(others | {seed}) == 6


@pytest.mark.parametrize("how", ["copied", "inverted"])
def test_a_copied_key_shares_no_seed_with_its_owner(expand, how: str) -> None:
    """Corrupt j advertises the mask key of honest i, or its inverse modulo p, which has the same X25519 secret with everybody.

    With seeds from the secret and the context alone, h would hold one seed with both: with h between them the masks cancel in its
    upload, and the server reads it (decision 0010, finding 1). Here the seeds are independent.
    """
    honest_h, honest_i = (X25519PrivateKey.from_private_bytes(expand(name, 32)) for name in ("h", "i"))
    key_h, key_i = (key.public_key().public_bytes_raw() for key in (honest_h, honest_i))
    u = int.from_bytes(key_i, "little")
    key_j = key_i if how == "copied" else pow(u, -1, FIELD_PRIME).to_bytes(32, "little")
    with_i = honest_h.exchange(X25519PublicKey.from_public_bytes(key_i))
    with_j = honest_h.exchange(X25519PublicKey.from_public_bytes(key_j))
    assert with_i == with_j
    seeds = {peer: pair_seed(with_i, CONTEXT, end(2, key_h), end(peer, key)) for peer, key in ((1, key_i), (3, key_j))}
    assert seeds[1] != seeds[3]
    added, subtracted = by_sign(2, {peer: pair_mask_key(seed, CONTEXT) for peer, seed in seeds.items()})
    vector = np.zeros(8, dtype=np.uint32)
    apply_masks(vector, added=added, subtracted=subtracted)
    assert vector.any()


def test_a_small_order_key_gives_no_seed(expand) -> None:
    """cryptography refuses the exchange; should another library not, the zero secret is refused here."""
    with pytest.raises(ValueError):
        X25519PrivateKey.from_private_bytes(expand("one", 32)).exchange(X25519PublicKey.from_public_bytes(bytes(32)))
    with pytest.raises(ValueError, match="small order"):
        pair_seed(bytes(32), CONTEXT, end(1), end(2))


@pytest.mark.parametrize(
    ("secret", "context", "first", "second"),
    [(b"s" * 31, CONTEXT, 1, 2), (b"s" * 33, CONTEXT, 1, 2), (b"s" * 32, CONTEXT[:31], 1, 2), (b"s" * 32, CONTEXT, 1, 1)],
)
def test_bad_pairs_are_refused(secret: bytes, context: bytes, first: int, second: int) -> None:
    with pytest.raises(ValueError):
        pair_seed(secret, context, end(first), end(second))
    with pytest.raises(ValueError):
        edge_tag(secret, context, first, second)


@pytest.mark.parametrize(("index", "size"), [(-1, 32), (1025, 32), (1, 31), (1, 33), (1, 0)])
def test_bad_ends_are_refused(index: int, size: int) -> None:
    with pytest.raises(ValueError):
        end(index, bytes(size))
    if size == 32:
        with pytest.raises(ValueError):
            edge_tag(b"s" * 32, CONTEXT, index, 2)


def test_a_client_has_no_pair_with_itself() -> None:
    with pytest.raises(ValueError):
        by_sign(3, {1: bytes(16), 3: bytes(16)})


# --- refusals leave the vector as it was ---


@pytest.mark.parametrize("keys", [[b"a" * 16, b"short"], [b"a" * 16, b"a" * 32], [b"a" * 16, b""]])
def test_a_bad_key_is_refused_before_the_vector_is_touched(keys: list[bytes]) -> None:
    """32 bytes would make AES-256 without a word; a seed that is passed for a key must not."""
    vector = np.arange(10, dtype=np.uint32)
    for arguments in ({"added": keys}, {"subtracted": keys}):
        with pytest.raises(ValueError):
            apply_masks(vector, **arguments)
    assert vector.tolist() == list(range(10))


@pytest.mark.parametrize("derive", [self_mask_key, pair_mask_key])
def test_bad_seeds_and_contexts_give_no_key(derive) -> None:
    for seed, context in ((bytes(31), CONTEXT), (bytes(33), CONTEXT), (bytes(32), CONTEXT[:-1]), (bytes(32), b"")):
        with pytest.raises(ValueError):
            derive(seed, context)
    with pytest.raises(ValueError):
        seed_commitment(bytes(16))


def test_other_arrays_are_refused() -> None:
    read_only = np.zeros(4, dtype=np.uint32)
    read_only.flags.writeable = False
    for vector in (np.zeros(4, np.int32), np.zeros(4, np.uint64), np.zeros((2, 2), np.uint32), np.zeros(8, np.uint32)[::2], read_only):
        with pytest.raises(ValueError):
            apply_masks(vector, added=[bytes(16)])
    with pytest.raises(ValueError):
        mask_words(bytes(16), -1)


def test_errors_hold_no_seed() -> None:
    seed = b"\xabsecret seed of another length"
    for refused in (lambda: self_mask_key(seed, CONTEXT), lambda: mask_words(seed, 4), lambda: pair_seed(seed, CONTEXT, end(1), end(2))):
        with pytest.raises(ValueError) as caught:
            refused()
        assert "secret seed" not in str(caught.value)


def test_the_benchmark_runs_and_prints_one_object() -> None:
    command = [sys.executable, "-m", "experiments.bench.masking", "--json", "--rounds", "1", "--dimension", "3000"]
    root = Path(__file__).resolve().parents[2]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root, timeout=120).stdout
    rows = json.loads(printed)["rows"]
    assert rows
    assert all(set(row) == {"what", "ours", "peer", "peer_name", "unit", "ratio"} for row in rows)
    assert all(row["ours"] > 0 and row["ratio"] == pytest.approx(row["peer"] / row["ours"]) for row in rows)
