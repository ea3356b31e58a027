"""Shamir's secret sharing over the integers modulo p = 2**255 - 19.

1. ``split`` hides one field element in a polynomial of degree ``threshold - 1``; any ``threshold`` shares give it back, fewer say
   nothing about it. The random bytes are an argument; they make one polynomial and must never make a second.
2. A secret and a share are 32 bytes, little-endian, **canonical**: the one encoding of a number below p. Anything else is refused.
3. Points are public, distinct, and from 1 to 2**16 - 1. Point 0 would be the secret itself.
4. A threshold is at least 2: with 1 every share is the secret.
5. The Lagrange coefficients depend on the points alone: a :class:`LagrangeBasis` computes them once for all secrets that are
   shared among the same clients.

``combine`` cannot tell a wrong share from a right one: any ``threshold`` field elements lie on some polynomial. The caller
compares shares with the dealer's signed hashes before, and the secret with its commitment or public key after (server.py).

The field is that of Curve25519: :func:`field_secret` makes 32 bytes that serve as a seed and, unchanged, as an X25519 private key
(X25519 sets and clears the bits it fixes by itself). Python's integers are not constant-time; whoever can time a client's
arithmetic is not defended against.

Source: Shamir 1979; inversion of all denominators at once by Montgomery's trick.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from fedsec.errors import DecodeError
from fedsec.secagg.labels import SECRET_BYTES

PRIME = 2**255 - 19
"""Modulus of the field."""

MAX_POINT = 2**16 - 1
"""Largest point a share may have."""

_LOW_255_BITS = 2**255 - 1


def field_secret(randomness: bytes) -> bytes:
    """A uniform 254-bit secret from 32 uniform bytes: fit for sharing, as a seed and as an X25519 private key.

    The two top bits are cleared, so that every input gives a canonical element without a second draw.

    Raises:
        ValueError: not 32 bytes.
    """
    if len(randomness) != SECRET_BYTES:
        raise ValueError(f"{len(randomness)} random bytes, expected {SECRET_BYTES}")
    return randomness[:-1] + bytes([randomness[-1] & 0x3F])


def randomness_bytes(threshold: int) -> int:
    """Number of random bytes that ``split`` takes."""
    return SECRET_BYTES * (threshold - 1)


def split(secret: bytes, *, threshold: int, points: Sequence[int], randomness: bytes) -> tuple[bytes, ...]:
    """One share for each point.

    Guarantee: any ``threshold - 1`` shares are within a statistical distance of ``threshold * 2**-250`` of uniform and independent
    of the secret.

    Args:
        secret: 32 bytes, canonical.
        threshold: least number of shares that give the secret back, 2 to the number of points.
        points: distinct, each from 1 to ``MAX_POINT``.
        randomness: ``randomness_bytes(threshold)`` uniform secret bytes, used once.

    Returns:
        Canonical 32-byte shares in the order of ``points``.

    Raises:
        DecodeError: the secret is not canonical.
        ValueError: bad points, threshold or number of random bytes.
    """
    _check_points(points, threshold)
    if len(randomness) != randomness_bytes(threshold):
        raise ValueError(f"{len(randomness)} random bytes, expected {randomness_bytes(threshold)}")
    constant = _decode(secret)
    # 255 bits reduced modulo p: 19 of 2**255 values come twice, a bias of 2**-250 a coefficient.
    chunks = (randomness[start : start + SECRET_BYTES] for start in range(0, len(randomness), SECRET_BYTES))
    higher = [int.from_bytes(chunk, "little") & _LOW_255_BITS for chunk in chunks]
    return tuple(_encode(_evaluate(constant, higher, point)) for point in points)


@dataclass(frozen=True)
class LagrangeBasis:
    """The weights that turn the shares at ``points`` into the secret; public.

    Make it with :meth:`at_zero`.

    Attributes:
        points: exactly ``threshold`` of them.
        weights: one field element a point.
    """

    points: tuple[int, ...]
    weights: tuple[int, ...]

    @classmethod
    def at_zero(cls, points: Sequence[int], *, threshold: int) -> Self:
        """The basis for the value at 0 of a polynomial of degree ``threshold - 1``.

        Args:
            points: exactly ``threshold`` distinct ones; who has more shares chooses which to use.
            threshold: the one that the secrets were split with.

        Raises:
            ValueError: too few or too many points, a point twice, 0 or out of range.
        """
        _check_points(points, threshold)
        if len(points) != threshold:
            raise ValueError(f"{len(points)} points for a threshold of {threshold}; choose as many")
        product = math.prod(points)
        # weight_i = prod_{j != i} x_j / (x_j - x_i), here with the numerator prod x_j / x_i.
        denominators = [x * math.prod(other - x for other in points if other != x) % PRIME for x in points]
        return cls(tuple(points), tuple(product * inverse % PRIME for inverse in _inverses(denominators)))

    def combine(self, shares: Sequence[bytes]) -> bytes:
        """The secret of one set of shares.

        Args:
            shares: canonical, in the order of ``points``.

        Returns:
            32 bytes, canonical. Wrong shares give a wrong secret, not an error (module docstring).

        Raises:
            ValueError: another number of shares than points.
            DecodeError: a share is not canonical.
        """
        if len(shares) != len(self.points):
            raise ValueError(f"{len(shares)} shares for {len(self.points)} points")
        return _encode(sum(weight * _decode(share) for weight, share in zip(self.weights, shares, strict=True)))

    def combine_many(self, secrets: Iterable[Sequence[bytes]]) -> tuple[bytes, ...]:
        """:meth:`combine` for each secret shared among the same clients; raises the same."""
        return tuple(self.combine(shares) for shares in secrets)


def combine(points: Sequence[int], shares: Sequence[bytes], *, threshold: int) -> bytes:
    """The secret behind at least ``threshold`` shares; the first ``threshold`` are used.

    For several secrets among the same clients use :class:`LagrangeBasis`.

    Raises:
        ValueError: too few shares, lengths that differ, a point twice (also beyond the threshold), 0 or out of range.
        DecodeError: a share in use is not canonical.
    """
    _check_points(points, threshold)
    if len(shares) != len(points):
        raise ValueError(f"{len(shares)} shares for {len(points)} points")
    return LagrangeBasis.at_zero(points[:threshold], threshold=threshold).combine(shares[:threshold])


def check_share(share: bytes) -> bytes:
    """The share itself if it is canonical, for use where one arrives.

    Raises:
        DecodeError: not 32 bytes, or a number of p or more.
    """
    _decode(share)
    return share


def _check_points(points: Sequence[int], threshold: int) -> None:
    if not 2 <= threshold <= len(points):
        raise ValueError(f"threshold {threshold} with {len(points)} points")
    if any(not 1 <= point <= MAX_POINT for point in points):
        raise ValueError(f"a point is not in 1..{MAX_POINT}")
    if len(set(points)) != len(points):
        raise ValueError("a point appears twice")


def _evaluate(constant: int, higher: Sequence[int], x: int) -> int:
    """Value at ``x`` of the polynomial (Horner), not reduced: points are small, and one reduction in the end is cheaper."""
    value = 0
    for coefficient in reversed(higher):
        value = value * x + coefficient
    return value * x + constant


def _inverses(values: Sequence[int]) -> list[int]:
    """Inverses modulo p of nonzero values, with one exponentiation."""
    prefixes = [1]
    for value in values:
        prefixes.append(prefixes[-1] * value % PRIME)
    running = pow(prefixes[-1], -1, PRIME)
    inverses = []
    for value, prefix in zip(reversed(values), reversed(prefixes[:-1]), strict=True):
        inverses.append(running * prefix % PRIME)
        running = running * value % PRIME
    return inverses[::-1]


def _encode(value: int) -> bytes:
    return (value % PRIME).to_bytes(SECRET_BYTES, "little")


def _decode(data: bytes) -> int:
    if len(data) != SECRET_BYTES:
        raise DecodeError(f"a field element has {SECRET_BYTES} bytes, not {len(data)}")
    value = int.from_bytes(data, "little")
    if value >= PRIME:
        raise DecodeError("not the canonical encoding of a field element")
    return value
