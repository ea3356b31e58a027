"""Dealing: every holder gets its own two shares and nobody else's, and a box tells a bad dealer from a bad messenger."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.secagg import shamir
from fedsec.secagg.client_keys import deal_bytes
from fedsec.secagg.dealing import BoxKeys, HeldShares, _associated, box_keys, deal, leaf_hashes, open_leaf
from fedsec.secagg.keys import PrivateKey
from fedsec.secagg.messages import Advert, DealtLeaf
from fedsec.secagg.views import share_hash

MEMBERS = (0, 2, 3, 7)
T = 3
CONTEXT = bytes(range(32))
Expand = Callable[[str, int], bytes]


class Table:
    """Four members with box keys, and what member 2 dealt."""

    def __init__(self, expand: Expand, context: bytes = CONTEXT) -> None:
        self.private = {index: PrivateKey(shamir.field_secret(expand(f"box/{index}", 32))) for index in MEMBERS}
        self.adverts = {
            index: Advert(
                context=context, sender=index, mask_key=PrivateKey(expand(f"mask/{index}", 32)).public_key, box_key=key.public_key,
                seed_commitment=bytes(32), weight=1,
            )
            for index, key in self.private.items()
        }  # fmt: skip
        self.seed, self.mask_key = (shamir.field_secret(expand(name, 32)) for name in ("seed", "mask key"))
        self.tags = {index: expand(f"tag/{index}", 32) for index in MEMBERS if index != 2}
        self.leaves, self.own = deal(
            self.adverts[2], MEMBERS, seed=self.seed, mask_key=self.mask_key, keys={i: self.keys(2, i) for i in self.tags}, tags=self.tags,
            threshold=T, randomness=expand("polynomials", deal_bytes(T)),
        )  # fmt: skip

    def keys(self, own: int, peer: int) -> BoxKeys:
        return box_keys(self.private[own].exchange(self.adverts[peer].box_key), self.adverts[own], self.adverts[peer])

    def open(self, index: int, leaf: DealtLeaf | None = None, **changes: Any) -> HeldShares | None:
        leaf = leaf or self.leaves[MEMBERS.index(index)]
        return open_leaf(leaf, **{"context": CONTEXT, "dealer": 2, "open_key": self.keys(index, 2).open, **changes})


@pytest.fixture(scope="module")
def table(expand: Expand) -> Table:
    return Table(expand)


# --- honest ---


def test_t_holders_give_both_secrets_the_dealer_among_them_or_not(table: Table) -> None:
    held = {2: table.own} | {index: table.open(index) for index in table.tags}
    for holders in itertools.combinations(MEMBERS, T):
        points = [index + 1 for index in holders]
        for field, secret in (("seed_share", table.seed), ("key_share", table.mask_key)):
            assert shamir.combine(points, [getattr(held[index], field) for index in holders], threshold=T) == secret
    assert len({shares.seed_share for shares in held.values()} | {shares.key_share for shares in held.values()}) == 8


def test_a_leaf_binds_its_receiver_and_carries_the_tag_of_its_edge(table: Table) -> None:
    assert [leaf.receiver for leaf in table.leaves] == list(MEMBERS)
    assert [leaf.tag for leaf in table.leaves] == [table.tags[0], bytes(32), table.tags[3], table.tags[7]]
    assert [len(leaf.box) for leaf in table.leaves] == [80, 0, 80, 80]
    assert len(set(leaf_hashes(table.leaves))) == 4


def test_the_dealers_own_shares_are_in_no_box_and_match_its_own_leaf(table: Table) -> None:
    own = table.leaves[1]
    assert table.own.match(own, CONTEXT)
    assert (own.seed_share_hash, own.key_share_hash) == tuple(
        share_hash(CONTEXT, 2, 2, of_key=of_key, share=share)
        for of_key, share in ((False, table.own.seed_share), (True, table.own.key_share))
    )


def test_no_share_and_no_secret_stands_in_a_leaf(table: Table) -> None:
    public = b"".join(leaf.encode() for leaf in table.leaves)
    held = [table.own, *(table.open(index) for index in table.tags)]
    for secret in (table.seed, table.mask_key, *(h.seed_share for h in held), *(h.key_share for h in held)):
        assert secret not in public


def test_two_ends_have_two_keys_crosswise_and_no_other_pair_has_either(table: Table) -> None:
    """Decision 0010, finding 7: with one key for both directions two boxes would XOR to the XOR of their shares."""
    seen = set()
    for one, other in itertools.combinations(MEMBERS, 2):
        here, there = table.keys(one, other), table.keys(other, one)
        assert (here.seal, here.open) == (there.open, there.seal)
        seen |= {here.seal, here.open}
    assert len(seen) == 12


def test_box_keys_change_with_context_index_and_either_key(table: Table, expand: Expand) -> None:
    secret, own, peer = expand("secret", 32), table.adverts[0], table.adverts[2]
    made = {
        box_keys(secret, own, peer).seal, box_keys(bytes(32), own, peer).seal, box_keys(secret, replace(own, context=bytes(32)), peer).seal,
        box_keys(secret, replace(own, sender=1), peer).seal, box_keys(secret, own, replace(peer, sender=1)).seal,
        box_keys(secret, replace(own, box_key=bytes(32)), peer).seal, box_keys(secret, own, replace(peer, box_key=bytes(32))).seal,
        box_keys(secret, peer, own).seal,
    }  # fmt: skip
    assert len(made) == 8
    assert all(len(key) == 16 for key in made)


def test_the_text_of_shares_and_keys_says_nothing(table: Table) -> None:
    keys = table.keys(0, 2)
    text = repr(table.own) + repr(keys)
    for secret in (table.own.seed_share, table.own.key_share, keys.seal, keys.open):
        assert repr(secret)[2:-1] not in text
        assert secret.hex() not in text


# --- boxes ---


def test_every_flipped_byte_of_a_box_is_a_dispute(table: Table) -> None:
    leaf = table.leaves[0]
    for place in range(80):
        box = leaf.box[:place] + bytes([leaf.box[place] ^ (1 << place % 8)]) + leaf.box[place + 1 :]
        assert table.open(0, replace(leaf, box=box)) is None


@pytest.mark.parametrize("size", [0, 1, 15, 16, 48, 79])
def test_a_shorter_box_is_a_dispute(table: Table, size: int) -> None:
    assert table.open(0, replace(table.leaves[0], box=table.leaves[0].box[:size])) is None


@pytest.mark.parametrize("field", ["seed_share_hash", "key_share_hash"])
def test_every_flipped_byte_of_a_hash_is_a_dispute(table: Table, field: str) -> None:
    leaf = table.leaves[0]
    for place in range(32):
        raw = bytearray(getattr(leaf, field))
        raw[place] ^= 1
        assert table.open(0, replace(leaf, **{field: bytes(raw)})) is None


def test_a_box_opens_only_for_its_dealer_holder_and_round(table: Table, expand: Expand) -> None:
    leaf = table.leaves[0]
    assert table.open(0) is not None
    assert table.open(0, dealer=3) is None
    assert table.open(0, context=bytes(32)) is None
    assert table.open(0, replace(leaf, receiver=3)) is None
    assert table.open(3, leaf) is None
    assert table.open(0, open_key=table.keys(0, 2).seal) is None
    assert table.open(0, replace(leaf, box=table.leaves[2].box)) is None


@pytest.mark.parametrize(
    ("plain", "why"),
    [
        (b"\xff" * 32 + bytes(32), "a seed share over p"), (bytes(32) + b"\xff" * 32, "a key share over p"),
        (shamir.PRIME.to_bytes(32, "little") + bytes(32), "p itself"), (bytes(31), "too short"), (bytes(63), "a byte short"), (b"", "empty"),
    ],
)  # fmt: skip
def test_a_sealed_share_that_cannot_be_combined_is_a_dispute_though_its_hash_fits(table: Table, plain: bytes, why: str) -> None:
    box = AESGCM(table.keys(2, 0).seal).encrypt(bytes(12), plain, _associated(CONTEXT, 2, 0))
    hashes = [share_hash(CONTEXT, 2, 0, of_key=of_key, share=share) for of_key, share in ((False, plain[:32]), (True, plain[32:]))]
    leaf = replace(table.leaves[0], box=box, seed_share_hash=hashes[0], key_share_hash=hashes[1])
    assert table.open(0, leaf) is None, why


def test_the_two_shares_of_a_box_cannot_change_places(table: Table) -> None:
    held = table.open(0)
    assert held is not None
    swapped = replace(held, seed_share=held.key_share, key_share=held.seed_share)
    leaf = table.leaves[0]
    assert not swapped.match(leaf, CONTEXT)
    assert not swapped.match(replace(leaf, seed_share_hash=leaf.key_share_hash, key_share_hash=leaf.seed_share_hash), CONTEXT)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_members_and_threshold_deal_and_open(expand: Expand, data: st.DataObject) -> None:
    members = sorted(data.draw(st.sets(st.integers(0, 1023), min_size=2, max_size=7)))
    threshold = data.draw(st.integers(2, len(members)))
    dealer = data.draw(st.sampled_from(members))
    seed, key = (shamir.field_secret(data.draw(st.binary(min_size=32, max_size=32))) for _ in range(2))
    own = Advert(context=CONTEXT, sender=dealer, mask_key=bytes(32), box_key=bytes(32), seed_commitment=bytes(32), weight=1)
    keys = {index: BoxKeys(seal=expand(f"{index}", 16), open=bytes(16)) for index in members if index != dealer}
    randomness = expand("any", deal_bytes(threshold))
    leaves, held = deal(own, members, seed=seed, mask_key=key, keys=keys, tags={}, threshold=threshold, randomness=randomness)
    opened = [
        held if leaf.receiver == dealer else open_leaf(leaf, context=CONTEXT, dealer=dealer, open_key=keys[leaf.receiver].seal)
        for leaf in leaves
    ]
    chosen = data.draw(st.permutations(range(len(members))))[:threshold]
    points = [members[place] + 1 for place in chosen]
    assert shamir.combine(points, [opened[place].seed_share for place in chosen], threshold=threshold) == seed
    assert shamir.combine(points, [opened[place].key_share for place in chosen], threshold=threshold) == key


@pytest.mark.parametrize("size", [0, deal_bytes(T) - 1, deal_bytes(T) + 1, deal_bytes(T) // 2])
def test_a_wrong_number_of_random_bytes_deals_nothing(table: Table, size: int) -> None:
    with pytest.raises(ValueError):
        deal(
            table.adverts[2], MEMBERS, seed=table.seed, mask_key=table.mask_key, keys={i: table.keys(2, i) for i in table.tags},
            tags=table.tags, threshold=T, randomness=bytes(size),
        )  # fmt: skip
