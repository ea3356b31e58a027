"""Keys of a round: only canonical encodings of points whose order is large, and no key twice."""

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from fedsec.secagg.keys import PrivateKey, check_public_key, repeated_keys
from fedsec.secagg.messages import Advert
from fedsec.secagg.shamir import PRIME, field_secret

A = 486662


def little(value: int) -> bytes:
    return value.to_bytes(32, "little")


def doubled(u: int) -> int | None:
    """u of twice the point on the curve or its twist, whichever it lies on; None at infinity (RFC 7748's x-only formula)."""
    denominator = 4 * u * (u * u + A * u + 1) % PRIME
    return (u * u - 1) ** 2 * pow(denominator, -1, PRIME) % PRIME if denominator else None


def square_roots(a: int) -> list[int]:
    root = pow(a, (PRIME + 3) // 8, PRIME)
    for candidate in (root, root * pow(2, (PRIME - 1) // 4, PRIME) % PRIME):
        if candidate * candidate % PRIME == a % PRIME:
            return [candidate, PRIME - candidate]
    return []


def small_order_points() -> set[int]:
    """All u whose point, on the curve or the twist, is of order 1, 2, 4 or 8: found backwards from the point of order 2."""
    found, todo = {0}, [0]
    while todo:
        target = todo.pop()
        # u with double(u) = target: (u² - 1)² = 4·target·u·(u² + A·u + 1), divided by u² with w = u + 1/u: w² - 4 = 4·target·(w + A)
        for root in square_roots(4 * target * target + 4 * target * A + 4):
            w = (2 * target + root) % PRIME
            for half in square_roots(w * w - 4):
                u = (w + half) * pow(2, -1, PRIME) % PRIME
                if u not in found and doubled(u) == target:
                    found.add(u)
                    todo.append(u)
    return found


SMALL = sorted(small_order_points())
ORDER_8 = [u for u in SMALL if u not in (0, 1, PRIME - 1)]


def test_there_are_five_points_of_small_order_and_two_of_order_8() -> None:
    """The list of the module was found again, by halving points."""
    assert len(SMALL) == 5
    assert len(ORDER_8) == 2
    for u in ORDER_8:
        assert doubled(u) in (1, PRIME - 1)


@pytest.mark.parametrize("u", SMALL)
def test_a_point_of_small_order_is_refused_and_would_give_a_zero_secret(u: int) -> None:
    with pytest.raises(ValueError, match="small order"):
        check_public_key(little(u))
    with pytest.raises(ValueError):
        PrivateKey(bytes(range(32))).exchange(little(u))


@pytest.mark.parametrize("value", [u + PRIME for u in range(19)] + [2**255 - 1] + [u | 1 << 255 for u in (*SMALL, 9, 2**255 - 1)])
def test_an_encoding_that_is_not_canonical_is_refused(value: int) -> None:
    """p, p + 1 and the like stand for small-order points too, and the top bit is ignored by X25519."""
    with pytest.raises(ValueError, match="canonical"):
        check_public_key(little(value % 2**256))


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_key_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="canonical"):
        check_public_key(b"\x09" + bytes(size)[1:] if size else b"")


@given(st.binary(min_size=32, max_size=32))
def test_every_honest_key_is_accepted_and_both_ends_agree(raw: bytes) -> None:
    one, other = PrivateKey(field_secret(raw)), PrivateKey(bytes(range(32)))
    check_public_key(one.public_key)
    assert one.public_key == X25519PrivateKey.from_private_bytes(field_secret(raw)).public_key().public_bytes_raw()
    assert one.exchange(other.public_key) == other.exchange(one.public_key)


def test_a_private_key_and_its_clamped_form_are_one_key() -> None:
    """X25519 fixes five bits by itself; what is shared is the secret as it was drawn."""
    raw = field_secret(bytes(range(200, 232)))
    clamped = bytes([raw[0] & 248]) + raw[1:31] + bytes([raw[31] & 127 | 64])
    assert raw != clamped
    assert PrivateKey(raw).public_key == PrivateKey(clamped).public_key


def test_the_text_of_a_private_key_says_nothing() -> None:
    key = PrivateKey(b"\x42" * 32)
    assert repr(key) == str(key) == "PrivateKey(hidden)"


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_private_key_has_32_bytes(size: int) -> None:
    with pytest.raises(ValueError):
        PrivateKey(bytes(size))


def advert(sender: int, mask_key: int, box_key: int) -> Advert:
    return Advert(context=bytes(32), sender=sender, mask_key=little(mask_key), box_key=little(box_key), seed_commitment=bytes(32), weight=1)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ([], set()),
        ([(2, 3), (4, 5), (6, 7)], set()),
        ([(2, 3), (2, 5), (6, 7)], {0, 1}),
        ([(2, 3), (4, 3), (6, 7)], {0, 1}),
        ([(2, 3), (4, 5), (5, 7)], {1, 2}),
        ([(2, 2), (4, 5)], {0}),
        ([(2, 3), (3, 2), (2, 7), (8, 9)], {0, 1, 2}),
    ],
)
def test_all_owners_of_a_key_that_stands_twice_are_found(keys: Any, expected: set[int]) -> None:
    assert repeated_keys(advert(sender, *pair) for sender, pair in enumerate(keys)) == expected
