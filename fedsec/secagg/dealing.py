"""Dealing: shares of a client's two secrets, sealed for each peer, under one signed root; and their opening at the peer.

1. A box key serves one box: it follows from the X25519 secret of the box keys, the context, and both ends **in order**, so that the two
   directions of a pair have different keys (decision 0010, finding 7). The nonce is therefore a constant.
2. The dealer signs the root over all its leaves. A box garbled on the way is told from a bad one: it is not the signed leaf.
3. A box that is the signed one, but does not open or does not hold what its hashes say, is *disputed*: the holder signs that it has
   no share of this dealer, and sends none. Nobody is blamed for it.
4. A share's point is the roster index plus one. The dealer keeps its own share.

Source: design note SECAGG, stage 2; decision 0010, findings 6, 7, 9 and 13.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedsec.errors import DecodeError
from fedsec.merkle import leaf_hash
from fedsec.secagg import shamir
from fedsec.secagg.labels import DIGEST_BYTES, SECRET_BYTES, STREAM_KEY_BYTES, Label
from fedsec.secagg.messages import Advert, DealtLeaf
from fedsec.secagg.views import share_hash
from fedsec.secagg.wire import Fixed, Parted, UInt

_NONCE = bytes(12)


@dataclass(frozen=True, kw_only=True)
class HeldShares(Parted):
    """One dealer's two shares at one holder, checked against the dealer's signed hashes.

    Attributes:
        dealer: its index.
        seed_share: of the self-mask seed.
        key_share: of the mask key.
    """

    FIELDS = (("dealer", UInt(2)), ("seed_share", Fixed(SECRET_BYTES)), ("key_share", Fixed(SECRET_BYTES)))
    dealer: int
    seed_share: bytes = field(repr=False)
    key_share: bytes = field(repr=False)

    def match(self, leaf: DealtLeaf, context: bytes) -> bool:
        """Whether both are the shares whose hashes the dealer signed; a bad box is a dispute, not an error."""
        pairs = ((self.seed_share, False, leaf.seed_share_hash), (self.key_share, True, leaf.key_share_hash))
        return all(
            hmac.compare_digest(share_hash(context, self.dealer, leaf.receiver, of_key=of_key, share=share), signed)
            for share, of_key, signed in pairs
        )


@dataclass(frozen=True, kw_only=True)
class BoxKeys:
    """The two keys of a pair: each serves one box.

    Attributes:
        seal: for the box to the peer.
        open: for the box from the peer.
    """

    seal: bytes = field(repr=False)
    open: bytes = field(repr=False)


def box_keys(secret: bytes, own: Advert, peer: Advert) -> BoxKeys:
    """Derive the keys of both directions from the X25519 secret of the box keys."""
    return BoxKeys(seal=_directed_key(secret, own, peer), open=_directed_key(secret, peer, own))


def deal(
    own: Advert,
    members: Sequence[int],
    *,
    seed: bytes,
    mask_key: bytes,
    keys: Mapping[int, BoxKeys],
    tags: Mapping[int, bytes],
    threshold: int,
    randomness: bytes,
) -> tuple[tuple[DealtLeaf, ...], HeldShares]:
    """Share the two secrets among U1.

    Args:
        own: the dealer's advert.
        members: U1, in order, the dealer among them.
        seed: self-mask seed, canonical.
        mask_key: private mask key, canonical.
        keys: box keys by peer.
        tags: edge tags by peer.
        threshold: t.
        randomness: twice ``shamir.randomness_bytes(threshold)`` uniform secret bytes, used once.

    Returns:
        One leaf for each member of U1, in order, and the dealer's own shares.
    """
    points = [member + 1 for member in members]
    half = shamir.randomness_bytes(threshold)
    seed_shares = shamir.split(seed, threshold=threshold, points=points, randomness=randomness[:half])
    key_shares = shamir.split(mask_key, threshold=threshold, points=points, randomness=randomness[half:])
    leaves = []
    for member, seed_share, key_share in zip(members, seed_shares, key_shares, strict=True):
        box = b""
        if member != own.sender:
            box = AESGCM(keys[member].seal).encrypt(_NONCE, seed_share + key_share, _associated(own.context, own.sender, member))
        leaves.append(
            DealtLeaf(
                receiver=member,
                box=box,
                seed_share_hash=share_hash(own.context, own.sender, member, of_key=False, share=seed_share),
                key_share_hash=share_hash(own.context, own.sender, member, of_key=True, share=key_share),
                tag=tags.get(member, bytes(DIGEST_BYTES)),
            )
        )
    place = list(members).index(own.sender)
    return tuple(leaves), HeldShares(dealer=own.sender, seed_share=seed_shares[place], key_share=key_shares[place])


def leaf_hashes(leaves: Sequence[DealtLeaf]) -> list[bytes]:
    """The leaves of a dealing's Merkle tree."""
    return [leaf_hash(leaf.encode()) for leaf in leaves]


def open_leaf(leaf: DealtLeaf, *, context: bytes, dealer: int, open_key: bytes) -> HeldShares | None:
    """The shares in a box, or None where the box is bad: then the dealer is disputed.

    Args:
        leaf: the receiver's, already found under the dealer's signed root.
        context: of the round.
        dealer: its index.
        open_key: for the box from this dealer.
    """
    try:
        shares = AESGCM(open_key).decrypt(_NONCE, leaf.box, _associated(context, dealer, leaf.receiver))
        held = HeldShares(
            dealer=dealer, seed_share=shamir.check_share(shares[:SECRET_BYTES]), key_share=shamir.check_share(shares[SECRET_BYTES:])
        )
    except (InvalidTag, ValueError, DecodeError):
        return None
    return held if held.match(leaf, context) else None


def _directed_key(secret: bytes, dealer: Advert, holder: Advert) -> bytes:
    ends = dealer.sender.to_bytes(2, "big") + holder.sender.to_bytes(2, "big")
    info = Label.BOX_KEY.encode() + ends + dealer.box_key + holder.box_key
    return HKDF(algorithm=SHA256(), length=STREAM_KEY_BYTES, salt=dealer.context, info=info).derive(secret)


def _associated(context: bytes, dealer: int, holder: int) -> bytes:
    return Label.BOX_KEY.encode() + context + dealer.to_bytes(2, "big") + holder.to_bytes(2, "big")
