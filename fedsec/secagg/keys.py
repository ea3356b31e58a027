"""X25519 keys of one round: made from random bytes, advertised, checked, and turned into the seeds of pairs.

1. A private key is a canonical field element (``shamir.field_secret``), so that it can be shared as it stands (decision 0010, finding 8).
2. A public key is refused unless it is the canonical encoding of a point that is not of small order. No key may stand twice in U1, neither
   as mask key nor as box key. This is hygiene: the defence against copied keys is that pair seeds bind both ends (``masking.py``).

Source: RFC 7748, sections 5 and 6; design note SECAGG, stage 1; decision 0010, finding 1.
"""

from __future__ import annotations

from collections.abc import Iterable

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from fedsec.secagg.labels import PUBLIC_KEY_BYTES
from fedsec.secagg.messages import Advert
from fedsec.secagg.shamir import PRIME

_SMALL_ORDER = frozenset(
    {
        0,
        1,
        PRIME - 1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
    }
)
"""The u-coordinates below p of points of order 1, 2, 4 and 8, on the curve and on its twist."""


class PrivateKey:
    """An X25519 private key that is used for many exchanges; its text says nothing."""

    def __init__(self, raw: bytes) -> None:
        self._key = X25519PrivateKey.from_private_bytes(raw)

    def __repr__(self) -> str:
        return "PrivateKey(hidden)"

    @property
    def public_key(self) -> bytes:
        """The 32 bytes to advertise."""
        return self._key.public_key().public_bytes_raw()

    def exchange(self, public_key: bytes) -> bytes:
        """The shared secret with a checked public key: 32 bytes."""
        return self._key.exchange(X25519PublicKey.from_public_bytes(public_key))


def check_public_key(key: bytes) -> None:
    """Refuse a key that no honest client makes.

    Raises:
        ValueError: not canonical, or of small order.
    """
    value = int.from_bytes(key, "little")
    if len(key) != PUBLIC_KEY_BYTES or value >= PRIME:
        raise ValueError("not the canonical encoding of a public key")
    if value in _SMALL_ORDER:
        raise ValueError("a public key of small order")


def repeated_keys(adverts: Iterable[Advert]) -> frozenset[int]:
    """The senders whose mask or box key stands somewhere else too, their own advert included."""
    owners: dict[bytes, list[int]] = {}
    for advert in adverts:
        owners.setdefault(advert.mask_key, []).append(advert.sender)
        owners.setdefault(advert.box_key, []).append(advert.sender)
    return frozenset(sender for senders in owners.values() if len(senders) > 1 for sender in senders)
