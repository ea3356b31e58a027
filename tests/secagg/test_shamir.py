"""Secret sharing: any threshold of shares opens, fewer say nothing, nothing malformed is touched."""

import random

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec import errors
from fedsec.secagg.shamir import MAX_POINT, PRIME, LagrangeBasis, check_share, combine, field_secret, randomness_bytes, split

SECRETS = st.integers(0, PRIME - 1).map(lambda value: value.to_bytes(32, "little"))


@st.composite
def dealings(draw: st.DrawFn) -> tuple[bytes, int, list[int], tuple[bytes, ...]]:
    points = draw(st.lists(st.integers(1, MAX_POINT), min_size=2, max_size=12, unique=True))
    threshold = draw(st.integers(2, len(points)))
    secret = draw(SECRETS)
    randomness = draw(st.binary(min_size=randomness_bytes(threshold), max_size=randomness_bytes(threshold)))
    return secret, threshold, points, split(secret, threshold=threshold, points=points, randomness=randomness)


def test_splits_are_the_vectors(vectors) -> None:
    for case in vectors("shamir")["splits"]:
        secret, points, threshold = bytes.fromhex(case["secret"]), case["points"], case["threshold"]
        shares = split(secret, threshold=threshold, points=points, randomness=bytes.fromhex(case["randomness"]))
        assert [share.hex() for share in shares] == case["expected"], case["id"]
        assert combine(points, shares, threshold=threshold) == secret


def test_bad_shares_and_points_are_refused(vectors) -> None:
    for case in vectors("bad_shamir")["combine"]:
        kind = {"ValueError": ValueError, "DecodeError": errors.DecodeError}[case["error"]]
        with pytest.raises(kind):
            combine(case["points"], [bytes.fromhex(share) for share in case["shares"]], threshold=case["threshold"])


@settings(deadline=None)
@given(dealing=dealings(), data=st.data())
def test_any_threshold_of_shares_opens_the_secret(dealing: tuple, data: st.DataObject) -> None:
    secret, threshold, points, shares = dealing
    chosen = data.draw(st.permutations(range(len(points))))[: data.draw(st.integers(threshold, len(points)))]
    assert combine([points[i] for i in chosen], [shares[i] for i in chosen], threshold=threshold) == secret


@settings(deadline=None)
@given(secret=SECRETS, other=SECRETS, point=st.integers(1, MAX_POINT), randomness=st.binary(min_size=32, max_size=32))
def test_fewer_shares_fit_every_secret(secret: bytes, other: bytes, point: int, randomness: bytes) -> None:
    """With a threshold of 2, one share of one secret is also a share of any other, under exactly one polynomial."""
    share, _ = split(secret, threshold=2, points=[point, point % MAX_POINT + 1], randomness=randomness)
    slope = (int.from_bytes(share, "little") - int.from_bytes(other, "little")) * pow(point, -1, PRIME) % PRIME
    same, _ = split(other, threshold=2, points=[point, point % MAX_POINT + 1], randomness=slope.to_bytes(32, "little"))
    assert same == share


@settings(deadline=None)
@given(dealing=dealings(), data=st.data())
def test_a_changed_share_is_refused_or_opens_something_else(dealing: tuple, data: st.DataObject) -> None:
    secret, threshold, points, shares = dealing
    victim = data.draw(st.integers(0, threshold - 1))
    bit = data.draw(st.integers(0, 255))
    changed = bytearray(shares[victim])
    changed[bit // 8] ^= 1 << bit % 8
    altered = [*shares[:victim], bytes(changed), *shares[victim + 1 :]]
    try:
        assert combine(points[:threshold], altered[:threshold], threshold=threshold) != secret
    except errors.DecodeError:
        assert int.from_bytes(changed, "little") >= PRIME


def test_one_basis_serves_all_secrets_of_one_point_set(expand) -> None:
    points = list(range(1, 31))
    basis = LagrangeBasis.at_zero(points[3:23], threshold=20)
    secrets = [field_secret(expand(f"secret {i}", 32)) for i in range(5)]
    dealt = [split(secret, threshold=20, points=points, randomness=expand(f"bits {i}", 32 * 19)) for i, secret in enumerate(secrets)]
    assert list(basis.combine_many(shares[3:23] for shares in dealt)) == secrets
    assert sum(basis.weights) % PRIME == 1  # the constant polynomial 1 has value 1 at 0


@pytest.mark.parametrize("points", [[1, 2], [1, 2, 3, 4], [1, 2, 2], [0, 1, 2], [1, 2, MAX_POINT + 1], [1, 2, 1 + PRIME], []])
def test_a_basis_needs_exactly_threshold_good_points(points: list[int]) -> None:
    with pytest.raises(ValueError):
        LagrangeBasis.at_zero(points, threshold=3)


def test_a_basis_wants_one_share_a_point() -> None:
    basis = LagrangeBasis.at_zero([1, 2], threshold=2)
    for count in (0, 1, 3):
        with pytest.raises(ValueError):
            basis.combine([bytes(32)] * count)


@pytest.mark.parametrize(
    ("threshold", "points", "size"),
    [(0, [1, 2], 0), (1, [1, 2], 0), (3, [1, 2], 64), (-1, [1, 2], 0), (2, [0, 1], 32), (2, [1, 1], 32), (2, [1, MAX_POINT + 1], 32), (2, [1, 2], 31), (2, [1, 2], 64), (1, [], 0)],
)  # fmt: skip
def test_splits_that_would_leak_or_not_open_are_refused(threshold: int, points: list[int], size: int) -> None:
    with pytest.raises(ValueError):
        split(bytes(32), threshold=threshold, points=points, randomness=bytes(size))


@pytest.mark.parametrize("secret", [bytes(31), bytes(33), b"", PRIME.to_bytes(32, "little"), b"\xff" * 32])
def test_a_secret_that_is_not_canonical_is_refused(secret: bytes) -> None:
    with pytest.raises(errors.DecodeError):
        split(secret, threshold=2, points=[1, 2], randomness=bytes(32))
    with pytest.raises(errors.DecodeError):
        check_share(secret)


@settings(deadline=None)
@given(st.binary(min_size=32, max_size=32))
def test_every_drawn_secret_is_canonical_and_keeps_254_bits(randomness: bytes) -> None:
    secret = field_secret(randomness)
    assert check_share(secret) == secret
    assert int.from_bytes(secret, "little") == int.from_bytes(randomness, "little") % 2**254


def test_an_x25519_key_survives_sharing(expand) -> None:
    """The server, who puts together a dropped client's key, must get the same public key as was advertised."""
    secret = field_secret(expand("ephemeral", 32))
    shares = split(secret, threshold=3, points=range(1, 6), randomness=expand("bits", 64))
    opened = combine([5, 1, 3], [shares[4], shares[0], shares[2]], threshold=3)
    public = [X25519PrivateKey.from_private_bytes(key).public_key().public_bytes_raw() for key in (secret, opened)]
    assert public[0] == public[1]


def test_draws_need_32_bytes() -> None:
    for size in (0, 31, 33):
        with pytest.raises(ValueError):
            field_secret(bytes(size))


def test_errors_hold_no_secret(expand) -> None:
    share = (PRIME + 3).to_bytes(32, "little")
    number = str(PRIME + 3)
    for bad in (share, expand("share", 31), expand("share", 40)):
        with pytest.raises(errors.DecodeError) as caught:
            combine([1, 2], [bad, bytes(32)], threshold=2)
        assert bad.hex() not in str(caught.value)
        assert repr(bad) not in str(caught.value)
        assert number not in str(caught.value)


def test_random_large_dealings_open() -> None:
    """Cohorts of the sizes that are run: 64 of them with thresholds from 33 to 64."""
    rng = random.Random(7)
    for threshold in (33, 36, 42, 64):
        secret = field_secret(rng.randbytes(32))
        shares = split(secret, threshold=threshold, points=range(1, 65), randomness=rng.randbytes(32 * (threshold - 1)))
        chosen = rng.sample(range(64), threshold)
        assert combine([i + 1 for i in chosen], [shares[i] for i in chosen], threshold=threshold) == secret
