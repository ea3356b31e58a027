"""Real updates as ring elements, and sums of them back: scaled, bounded in L2 norm, rounded without bias.

1. ``encode`` returns integers of L2 norm **at most** ``norm_bound`` (L), rounding included, whatever the update was: a larger
   update is shrunk, not refused and not clipped entry by entry. No later step has to trust a floating-point norm.
2. Rounding is stochastic: the expectation of each entry is its scaled value to within ``2**-33``. The random bits are an argument.
3. Nothing wraps. With n clients and ``2 * n * L < 2**31`` a sum lies within ``n * L < 2**30``, the middle half of the ring, so that
   the centred lift is the true sum, and a total outside ``n * L`` shows that somebody did not encode.
4. Sketch rows fit 32 bits: ``9 * L / sqrt(2) < 2**31``. A row is a sum of independent entries of sub-Gaussian variance
   ``‖x‖² / 2``, so it reaches ``9 * L / sqrt(2)`` with probability at most ``2 * exp(-81 / 2) < 2**-57``.

Bound of rule 1. Let T = (L - ⌈√d⌉)(1 - 2**-26). The norm of d float32 values, computed in float64, is off by a factor of at most
1 ± (d + 8) * 2**-54 (their squares are exact there, and the square root halves the error), under 1 ± 2**-27 for d <= 2**26; so
the scaled vector y, shrunk or not, has a norm of at most L - ⌈√d⌉. An entry moves by at most 2**-33 to the grid of rule 2 and by
at most 1 - 2**-32 to an integer, hence the vector by less than √d.

Source: design note SECAGG, stage 3 and the static checks; stochastic rounding as in Connolly, Higham and Mary 2021, section 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from fedsec.errors import ConfigError, VerificationError
from fedsec.secagg.labels import MAX_COHORT, MAX_DIMENSION, RING_BITS

_HALF_RING = 1 << (RING_BITS - 1)
_MARGIN = 1.0 - 2.0**-26
_FRACTION_BITS = 32
_CHUNK = 1 << 15  # entries at a time: all temporaries together stay in the cache

BYTES_PER_ENTRY = _FRACTION_BITS // 8
"""Random bytes that ``encode`` takes for each entry."""

RingVector = npt.NDArray[np.uint32]
IntVector = npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class FixedPoint:
    """The encoding that all clients of a cohort share.

    Attributes:
        scale: ring steps per unit of the update, finite and > 0; rounding adds at most ``1 / (4 * scale**2)`` of variance to an entry.
        norm_bound: L, the largest L2 norm of an encoded update, in ring steps.
        num_clients: n, the most vectors in a sum.
        dimension: d, entries of a vector.

    Raises:
        ConfigError: a value is out of range, or a static check fails (module docstring, rules 3 and 4).
    """

    scale: float
    norm_bound: int
    num_clients: int
    dimension: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ConfigError(f"scale {self.scale} is not a finite number > 0", field="secagg.scale")
        if not 1 <= self.num_clients <= MAX_COHORT:
            raise ConfigError(f"{self.num_clients} clients in a sum, expected 1 to {MAX_COHORT}", field="secagg.cohort_size")
        if not 1 <= self.dimension <= MAX_DIMENSION:
            raise ConfigError(f"a model of {self.dimension} parameters, expected 1 to {MAX_DIMENSION}")
        # All checks are in the positive form: a NaN passes none of them.
        if not 2 * self.num_clients * self.norm_bound < _HALF_RING:
            raise ConfigError(
                f"a sum of {self.num_clients} updates of norm {self.norm_bound} could wrap: 2·n·L must stay under 2^{RING_BITS - 1}",
                field="secagg.norm_bound",
                mend="lower the norm bound and the scale, or make cohorts smaller",
            )
        if not 81 * self.norm_bound**2 < 2 * _HALF_RING**2:
            raise ConfigError(
                f"sketches of updates of norm {self.norm_bound} could pass 32 bits: 9·L/√2 must stay under 2^{RING_BITS - 1}",
                field="secagg.norm_bound",
                mend="lower the norm bound and the scale",
            )
        if not self.norm_bound > _ceil_sqrt(self.dimension):
            raise ConfigError(
                f"norm bound {self.norm_bound} leaves no room beside the rounding of {self.dimension} entries",
                field="secagg.norm_bound",
                mend="raise the norm bound and the scale",
            )

    @classmethod
    def for_norm(cls, norm: float, *, num_clients: int, dimension: int) -> Self:
        """The finest encoding that never shrinks an update of L2 norm ``norm``: the largest sound L, a power of two as scale.

        Args:
            norm: signal and noise together, in units of the update, from 2**-200 to 2**200.
            num_clients: n.
            dimension: d.

        Raises:
            ConfigError: no sound encoding exists.
        """
        if not 2.0**-200 <= norm <= 2.0**200:
            raise ConfigError(f"norm {norm} is not a usable size of a float32 update")
        largest = min((_HALF_RING - 1) // (2 * max(num_clients, 1)), math.isqrt((2 * _HALF_RING**2 - 1) // 81))
        bound = _signal_bound(largest, max(dimension, 1))
        exponent = math.frexp(bound / norm)[1] - 1
        if math.ldexp(norm, exponent) > bound:  # the quotient was rounded up to a power of two
            exponent -= 1
        return cls(scale=math.ldexp(1.0, exponent), norm_bound=largest, num_clients=num_clients, dimension=dimension)

    @property
    def signal_bound(self) -> float:
        """T, the L2 norm in ring steps over which an update is shrunk before rounding (module docstring)."""
        return _signal_bound(self.norm_bound, self.dimension)

    def encode(self, update: npt.NDArray[np.float32], randomness: bytes) -> IntVector:
        """Shrink to the norm bound, scale, round stochastically.

        Guarantee: L2 norm of the result <= ``norm_bound``; expectation of each entry within ``2**-33`` of its scaled, shrunk value.

        Args:
            update: float32 [dimension], finite.
            randomness: ``4 * dimension`` uniform secret bytes, used for this update only.

        Returns:
            int32 [dimension].

        Raises:
            ValueError: wrong dtype, shape or number of random bytes, or an entry that is not finite.
        """
        if update.dtype != np.float32 or update.shape != (self.dimension,):
            raise ValueError(f"update is {update.dtype} {update.shape}, expected float32 ({self.dimension},)")
        if len(randomness) != BYTES_PER_ENTRY * self.dimension:
            raise ValueError(f"{len(randomness)} random bytes, expected {BYTES_PER_ENTRY * self.dimension}")
        factor = self._factor(_norm(update))
        thresholds = np.frombuffer(randomness, dtype="<u4")
        encoded = np.empty(self.dimension, dtype=np.int32)
        for start in range(0, self.dimension, _CHUNK):
            part = slice(start, start + _CHUNK)
            encoded[part] = _round(update[part], factor, thresholds[part])
        return encoded

    def _factor(self, norm: float) -> float:
        # A tiny norm times a huge scale may overflow to infinity; then the update is shrunk, which is right.
        return self.scale if norm == 0.0 or norm * self.scale <= self.signal_bound else self.signal_bound / norm

    def lift(self, total: RingVector) -> IntVector:
        """The true integers of a sum of at most ``num_clients`` encoded vectors: the centred representative.

        Guarantee: if every vector came from ``encode``, the result is their exact sum.

        Args:
            total: uint32 [dimension], the sum modulo ``2**32``.

        Returns:
            int32 [dimension], entries within ``num_clients * norm_bound``.

        Raises:
            ValueError: wrong dtype or shape.
            VerificationError: an entry is larger than any honest sum: this opening has failed, and nothing of it may be used.
        """
        if total.dtype != np.uint32 or total.shape != (self.dimension,):
            raise ValueError(f"sum is {total.dtype} {total.shape}, expected uint32 ({self.dimension},)")
        lifted = total.astype(np.int32)  # two's complement: residues from 2**31 on become negative
        largest = max(int(lifted.max()), -int(lifted.min()))
        if largest > self.num_clients * self.norm_bound:
            raise VerificationError(f"an entry of the sum is {largest}, over n·L = {self.num_clients * self.norm_bound}")
        return lifted

    def decode(self, lifted: IntVector) -> npt.NDArray[np.float64]:
        """A lifted sum in units of the update: float64 [dimension]."""
        return lifted / self.scale


def to_ring(encoded: IntVector) -> RingVector:
    """Signed integers as residues modulo ``2**32``: a copy that masks may be added to in place."""
    if encoded.dtype != np.int32:
        raise ValueError(f"encoded vector is {encoded.dtype}, expected int32")
    return encoded.astype(np.uint32)


def _ceil_sqrt(n: int) -> int:
    return math.isqrt(n - 1) + 1


def _signal_bound(norm_bound: int, dimension: int) -> float:
    return (norm_bound - _ceil_sqrt(dimension)) * _MARGIN


def _norm(update: npt.NDArray[np.float32]) -> float:
    """L2 norm in float64 (squares of float32 values cannot overflow there); refuses what is not finite."""
    squares = 0.0
    for start in range(0, len(update), _CHUNK):
        part = update[start : start + _CHUNK].astype(np.float64)
        squares += float(part @ part)
    if not math.isfinite(squares):
        raise ValueError("an entry of the update is not finite")
    return math.sqrt(squares)


def _round(part: npt.NDArray[np.float32], factor: float, thresholds: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
    """``floor(y + u)`` for y the scaled value on a grid of ``2**-32`` and u uniform on that grid in [0, 1)."""
    scaled = part.astype(np.float64)
    scaled *= factor
    # |y| <= L < 2**29, so the grid index stays under 2**61; multiplying by a power of two is exact, and rint moves by 1/2 at most.
    scaled *= 2.0**_FRACTION_BITS
    grid = np.rint(scaled, out=scaled).astype(np.int64)
    grid += thresholds
    grid >>= _FRACTION_BITS  # an arithmetic shift: the floor, for negative values too
    return grid
