"""Keyed cryptographic streams: every sampling mask and every noise value comes from here.

1. A stream is AES-256 in counter mode under a 32-byte key: whoever lacks the key cannot tell it from coin flips, and whoever
   has it replays it byte for byte. No other generator (numpy's, torch's) ever touches a private value.
2. Keys come from one root by HKDF-SHA256 under domain labels; all labels of this package stand in :class:`Domain`. Masks
   and noise use different keys: the sampling masks are secret too, or the amplification by sampling is lost.
3. The root is 32 bytes of the operating system's entropy when deployed (:func:`fresh_root`). In simulation it follows from the
   plan's seed (:func:`simulation_root`), which anyone who has the plan can compute: reproducible, and private against nobody.
4. Gaussian noise is float64, and :meth:`KeyedStream.add_gaussian` releases a noisy value only on a public grid (below).

Floating-point attacks (Mironov 2012; Holohan and Braghin 2021, arXiv 2107.10138; Haney et al. 2022, arXiv 2207.13793) read
the value under the noise from its lowest bits: naive samplers reach only some floating-point numbers, and which ones depends
on the value. Three measures: the radius of Box-Muller is made from 128 random bits, so the tail has no holes and no cut before 13
standard deviations; value and noise are added in float64; the sum is rounded to a multiple of a power of two between
``stddev * 2**-21`` and ``stddev * 2**-20``. For values up to ``2**12 * stddev`` some 2**20 or more float64 values fall into one
cell of that grid, so every cell can be reached from every value, and an observer sees some 22 of the 96 random bits behind each
released value. This defends against the known attacks; it is not a proof that the sampler is an exact Gaussian.
"""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass
from enum import StrEnum
from typing import NoReturn, Self

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedsec.codec import digest

KEY_BYTES = 32
"""Length of roots and keys: AES-256."""

GRID_BITS = 20
"""Released values are multiples of the largest power of two that is at most ``stddev * 2**-GRID_BITS``."""

_KDF_SALT = b"fedsec/streams/v1"
_SIMULATION_LABEL = "fedsec/streams/simulation-root/v1"
_WORDS_PER_PAIR = 3
_PAIRS_PER_BLOCK = 1 << 14  # 384 kB of key stream at a time stays in the cache; results do not depend on it
_BYTES_PER_CALL = 1 << 24

Float64Array = npt.NDArray[np.float64]


class Domain(StrEnum):
    """What a stream is for; one label, one purpose, one key."""

    SAMPLING = "sampling"
    NOISE = "noise"
    ROUNDING = "rounding"


def fresh_root() -> bytes:
    """32 bytes from the operating system: the root of a deployed client."""
    return secrets.token_bytes(KEY_BYTES)


def simulation_root(seed: int) -> bytes:
    """The root of a simulation: a function of the plan's public seed, so it protects nothing.

    Args:
        seed: 0 to 2**64 - 1.
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed {seed} is not in 0..2**64-1")
    return digest(_SIMULATION_LABEL, seed.to_bytes(8, "big"))


def derive_key(root: bytes, *labels: str) -> bytes:
    """A 32-byte key for one purpose: HKDF-SHA256 (RFC 5869) of ``root`` under ``labels``.

    Guarantee: different label lists give independent keys; ``("a", "bc")`` differs from ``("ab", "c")``.

    Args:
        root: 32 uniform bytes, or a key derived from them.
        labels: one or more names, for example a client, a round, a :class:`Domain`.

    Raises:
        ValueError: the root has another length, or there is no label.

    >>> derive_key(bytes(32), "client-3", "round-7", Domain.NOISE).hex()[:16]
    'aac35c4d8831b610'
    """
    if len(root) != KEY_BYTES:
        raise ValueError(f"a root has {KEY_BYTES} bytes, not {len(root)}")
    if not labels:
        raise ValueError("a key needs a label")
    encoded = [label.encode("utf-8") for label in labels]
    info = b"".join(len(part).to_bytes(4, "big") + part for part in encoded)
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=_KDF_SALT, info=info).derive(root)


class KeyedStream:
    """An endless pseudorandom stream under a secret key; each call takes the next part of it.

    Guarantee: the same key and the same calls give the same values; the key is in no attribute, ``repr`` or pickle. Not safe to
    share between threads.

    Args:
        key: 32 bytes, used for this stream only; a key used twice repeats its noise, which then cancels out.

    Raises:
        ValueError: the key has another length.
    """

    __slots__ = ("_encryptor",)

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a stream's key has {KEY_BYTES} bytes, not {len(key)}")
        # A zero initial counter is sound because every key serves one stream only.
        self._encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def __repr__(self) -> str:
        return "KeyedStream(key=<secret>)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a KeyedStream cannot be pickled or copied: its copy would repeat its values")

    def random_bytes(self, n: int) -> bytes:
        """The next ``n`` bytes of the key stream."""
        if n < 0:
            raise ValueError(f"cannot take {n} bytes")
        if n <= _BYTES_PER_CALL:
            return self._encryptor.update(bytes(n))
        return b"".join(self._encryptor.update(bytes(min(_BYTES_PER_CALL, n - start))) for start in range(0, n, _BYTES_PER_CALL))

    def words(self, n: int) -> npt.NDArray[np.uint64]:
        """The next ``n`` uniform 64-bit words (little-endian in the stream on every machine)."""
        return np.frombuffer(self.random_bytes(8 * n), dtype="<u8").astype(np.uint64, copy=False)

    def bernoulli(self, n: int, rate: float) -> npt.NDArray[np.bool_]:
        """``n`` independent coins, each true with probability ``floor(rate * 2**64) / 2**64`` (all of them at rate 1).

        Guarantee: never more often than ``rate``; takes ``8 * n`` bytes at every rate.

        Raises:
            ValueError: the rate is not in [0, 1].
        """
        if not 0.0 <= rate <= 1.0:
            raise ValueError(f"rate {rate} is not in [0, 1]")
        words = self.words(n)
        threshold = math.floor(math.ldexp(rate, 64))
        if threshold >= 2**64:
            return np.ones(n, dtype=np.bool_)
        return words < np.uint64(threshold)

    def gaussian(self, n: int, stddev: float) -> Float64Array:
        """``n`` independent Gaussian values of mean 0, float64, at full precision.

        For masking a private value use :meth:`add_gaussian`: these values show their lowest bits.

        Args:
            n: how many; takes 24 bytes of the stream for each pair begun.
            stddev: standard deviation, finite and >= 0.

        Source: Box and Muller 1958, with a 128-bit uniform for the radius (see the module).
        """
        if not (math.isfinite(stddev) and stddev >= 0.0):
            raise ValueError(f"standard deviation {stddev} is not a finite number >= 0")
        if n < 0:
            raise ValueError(f"cannot take {n} values")
        pairs = (n + 1) // 2
        values = np.empty((pairs, 2), dtype=np.float64)
        for start in range(0, pairs, _PAIRS_PER_BLOCK):
            block = values[start : start + _PAIRS_PER_BLOCK]
            _box_muller(self.words(_WORDS_PER_PAIR * len(block)).reshape(-1, _WORDS_PER_PAIR), block)
        values *= stddev
        return values.reshape(-1)[:n]

    def add_gaussian(self, values: npt.NDArray[np.floating], stddev: float) -> Float64Array:
        """``values`` plus Gaussian noise, rounded to the public grid: the only form in which a private value leaves.

        Guarantee: each result is a multiple of :func:`release_grid`; the rounding is the same for every value, so it is
        post-processing of the noisy value and costs no privacy. Its error is under ``stddev * 2**-21``.

        Args:
            values: [d], finite; the rounding hides least where they are largest (see the module).
            stddev: standard deviation of the noise, finite and > 0.

        Returns:
            float64 [d].

        Raises:
            ValueError: not one-dimensional, a non-finite entry, or a standard deviation that is not positive.
        """
        if values.ndim != 1:
            raise ValueError(f"values of shape {values.shape}, expected one dimension")
        if not np.isfinite(values).all():
            raise ValueError("a value is not finite")
        grid = release_grid(stddev)
        noisy = self.gaussian(len(values), stddev)
        noisy += values
        noisy /= grid  # exact: the grid is a power of two
        np.rint(noisy, out=noisy)
        noisy *= grid
        return noisy


def release_grid(stddev: float) -> float:
    """The largest power of two that is at most ``stddev * 2**-20``: spacing of released values.

    >>> release_grid(1.0) == 2.0**-20 and release_grid(1.5) == 2.0**-20
    True
    """
    if not (math.isfinite(stddev) and 1e-200 <= stddev <= 1e200):
        raise ValueError(f"standard deviation {stddev} is not a number from 1e-200 to 1e200")
    return math.ldexp(1.0, math.frexp(stddev)[1] - 1 - GRID_BITS)


def _box_muller(words: npt.NDArray[np.uint64], out: Float64Array) -> None:
    """Write one pair of standard Gaussians for each row of [pairs, 3] words into ``out`` [pairs, 2]."""
    # (high + (low + 1/2) / 2**64) / 2**64 is uniform on (0, 1] with 53 significant bits however small it is: -log has no holes.
    uniform = words[:, 1].astype(np.float64)
    uniform += 0.5
    uniform *= 2.0**-64
    uniform += words[:, 0]
    uniform *= 2.0**-64
    radius = np.log(uniform, out=uniform)
    radius *= -2.0
    np.sqrt(radius, out=radius)
    angle = (words[:, 2] >> np.uint64(11)).astype(np.float64)
    angle *= 2.0 * math.pi * 2.0**-53
    np.multiply(radius, np.cos(angle), out=out[:, 0])
    np.multiply(radius, np.sin(angle, out=angle), out=out[:, 1])


@dataclass(frozen=True, kw_only=True)
class RoundStreams:
    """The two streams of one client's round.

    Attributes:
        sampling: which records are in which batch.
        noise: what is added to the clipped sums.
    """

    sampling: KeyedStream
    noise: KeyedStream

    @classmethod
    def derive(cls, root: bytes, *labels: str) -> Self:
        """The streams of the context that ``labels`` name, for example run, client and round.

        Guarantee: each call starts both streams from the beginning, so the same context gives the same round again.
        """
        return cls(
            sampling=KeyedStream(derive_key(root, *labels, Domain.SAMPLING)),
            noise=KeyedStream(derive_key(root, *labels, Domain.NOISE)),
        )
