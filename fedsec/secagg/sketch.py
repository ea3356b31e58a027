"""Linear sketches of updates: a public random matrix R drawn after all uploads are fixed, and exact checks against it.

1. R is k x d with entries -1, 0, 0, +1 (each of the four with probability 1/4), from AES-128-CTR under a hash of the root over all
   uploads and the server's committed nonce. Nobody knows it before the uploads are fixed.
2. **The zeros matter.** 2**31 and -2**31 are one residue modulo 2**32, so 2**31 put on two coordinates vanishes from every sketch
   of only ±1 entries, in whatever ring it is looked at. Here one of the two entries is 0 with probability 1/2.
3. **Sketches are integers**, never compared modulo 2**32: who claims R·V - 2**32·z for a poison V passes a check modulo 2**32.
4. The norm gate is an exact comparison of integers, and comes before any rule that looks at the sketches.

How R is read off the key stream: rows come in groups of eight, and group g has a stream of its own (counter block: g in the upper
64 bits). Its j-th 16-bit word, little-endian, belongs to coordinate j: entry 8g + i is bit 2i minus bit 2i + 1. So R for fewer rows or
coordinates is a corner of R for more. The stream is laid not over zeros but over bytes 0xAA, which flips every odd bit at no cost: the
number of ones in a pair of bits is then the entry plus 1, and three operations on 64 bits count it for 32 entries at once. What is
called a word below is eight such digits of two bits; 6561 of the 65536 values occur, which spares the caches.

How R·x is computed. For one vector without ever writing R down: the entries of x are added into buckets, by their words of one row
group; which bucket counts with which sign in which row does not depend on x ("mailman", Liberty and Zucker 2009). Eight rows cost one
pass over x. For several vectors at once R is written out, a few coordinates at a time, for a matrix product by BLAS; of many vectors
each costs about a third of one alone.

Exactness. |x_j| <= 2**32 is checked. Buckets and whatever is added up from them are int64; with d <= 2**26 entries no sum of any
part of them passes 2**58 < 2**63. The matrix product is in float64, over at most 2**13 coordinates, so that every partial sum, in any
order and fused or not, is an integer of magnitude at most 2**45 < 2**53 and therefore exact; its parts are added in int64. A sum X
of up to 2**10 encoded vectors has |X_j| < 2**31, and the right-hand side, a sum of up to 2**10 int32 sketches, stays under 2**41.

Source: design note SECAGG, stages 4 and 7; Achlioptas 2003 for this distribution (scaled); the norm: E‖R·x‖² = k/2 · ‖x‖².
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Self

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fedsec.codec import digest
from fedsec.errors import LocalProtocolError, VerificationError
from fedsec.secagg.labels import (
    MAX_COHORT,
    MAX_DIMENSION,
    MAX_NORM_SLACK,
    MAX_SKETCH_ROWS,
    ROWS_PER_WORD,
    SEED_BYTES,
    STREAM_KEY_BYTES,
    Label,
)

_WORD_BYTES = 2
_BUCKETS = 1 << (8 * _WORD_BYTES)
_MAX_ENTRY = 1 << 32
_BLOCK_BYTES = 16
_PIECE = 1 << 17  # words at a time for one vector
_WIDE_PIECE = 1 << 13  # of every row group at a time for several; the proof of exactness assumes no more
_BLOCK = 1 << 9  # coordinates of R written out at a time: with 256 rows 1 MiB
_FEW = 6  # vectors from which on writing R out pays
_MANY = 1 << 6  # vectors at a time
# OpenBLAS stays in the caller's thread up to 2**18 multiplications. Above it starts threads on every core, and where the cores are
# taken, these cost twenty times the work.
_TILE = 1 << 6
_TILE_AREA = 1 << 12
_ODD_BITS = memoryview(b"\xaa" * (_PIECE * _WORD_BYTES))
_EVEN_BITS = np.uint64(0x5555_5555_5555_5555)

Sketch = npt.NDArray[np.int32]
IntegerVector = npt.NDArray[np.int32] | npt.NDArray[np.uint32] | npt.NDArray[np.int64]


def _byte_entries() -> npt.NDArray[np.int64]:
    """[256, 4]: the four entries that each byte of a word stands for; bytes with a digit 3 do not occur."""
    digits = (np.arange(256)[:, None] >> np.arange(0, 8, 2)) & 3
    return digits.astype(np.int64) - 1


_BYTE_ENTRIES = _byte_entries()
_FLOAT_ENTRIES = _BYTE_ENTRIES.astype(np.float64)


@dataclass(frozen=True, kw_only=True)
class SketchMatrix:
    """R: public, known to everybody after the uploads are fixed.

    Attributes:
        seed: 32 bytes, see :meth:`derive`.
        num_rows: k, a multiple of 8.
        dimension: d.
        keep: keep the words of R in memory after their first use, two bits for each of the k·d entries. For a process that makes
            many sketches with one R; the results are the same.

    Raises:
        ValueError: a number out of range, or a seed of another length.
    """

    seed: bytes
    num_rows: int
    dimension: int
    keep: bool = False
    _kept: dict[int, npt.NDArray[np.uint16]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.seed) != SEED_BYTES:
            raise ValueError(f"a seed has {SEED_BYTES} bytes, not {len(self.seed)}")
        if not (ROWS_PER_WORD <= self.num_rows <= MAX_SKETCH_ROWS and self.num_rows % ROWS_PER_WORD == 0):
            raise ValueError(f"{self.num_rows} rows: expected a multiple of {ROWS_PER_WORD}, up to {MAX_SKETCH_ROWS}")
        if not 1 <= self.dimension <= MAX_DIMENSION:
            raise ValueError(f"dimension {self.dimension} is not in 1..{MAX_DIMENSION}")

    @classmethod
    def derive(cls, root: bytes, nonce: bytes, *, num_rows: int, dimension: int, keep: bool = False) -> Self:
        """R of a round: drawn from the root over all signed upload hashes and the nonce that the server had committed to."""
        return cls(seed=digest(Label.SKETCH_SEED, root, nonce), num_rows=num_rows, dimension=dimension, keep=keep)

    def product(self, x: IntegerVector) -> npt.NDArray[np.int64]:
        """R·x over the integers.

        Guarantee: exact for every input that is not refused (module docstring).

        Args:
            x: int32, uint32 or int64 [dimension], entries of magnitude at most 2**32.

        Returns:
            int64 [num_rows].

        Raises:
            ValueError: wrong dtype or shape, or an entry too large.
        """
        _check(x, self.dimension)
        values = x.astype(np.int64)
        indices = np.empty(min(self.dimension, _PIECE), dtype=np.intp)  # made once: add.at would convert into fresh memory each time
        buckets = np.empty(_BUCKETS, dtype=np.int64)
        rows = []
        for group in range(self.num_rows // ROWS_PER_WORD):
            buckets.fill(0)
            for start, words in self._pieces(group, _PIECE):
                places = indices[: len(words)]
                places[:] = words
                np.add.at(buckets, places, values[start : start + len(words)])
            rows.append(_row_sums(buckets))
        return np.concatenate(rows)

    def product_many(self, vectors: Sequence[IntegerVector]) -> npt.NDArray[np.int64]:
        """R·x over the integers for each of several vectors, much cheaper than one :meth:`product` after the other.

        Guarantee: bit for bit the products that :meth:`product` gives. Beside the vectors a few MiB of memory are used.

        Args:
            vectors: each as for :meth:`product`; an array [m, dimension] will do.

        Returns:
            int64 [m, num_rows].

        Raises:
            ValueError: as :meth:`product` for any of the vectors.
        """
        for x in vectors:
            _check(x, self.dimension)
        result = np.zeros((len(vectors), self.num_rows), dtype=np.int64)
        for first in range(0, len(vectors), _MANY):
            some = vectors[first : first + _MANY]
            into = result[first : first + _MANY]
            if len(some) < _FEW:
                into[:] = [self.product(x) for x in some]
            else:
                self._add_products(some, into)
        return result

    def _add_products(self, vectors: Sequence[IntegerVector], into: npt.NDArray[np.int64]) -> None:
        for start, words in self._wide_pieces():
            values = np.empty((len(vectors), len(words)))
            for row, x in zip(values, vectors, strict=True):
                row[:] = x[start : start + len(words)]
            into += _written_out(values, words).astype(np.int64)

    def ring_product(self, words: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
        """R·w modulo ``2**32``, uint32 [num_rows]: the only form in which a client may show the sketch of a mask (BLAME).

        Over the integers it would tell how often mask and update together passed ``2**32``, which the upload hides.

        Args:
            words: uint32 [dimension], a mask or a masked vector.

        Raises:
            ValueError: wrong dtype or shape.
        """
        product: npt.NDArray[np.uint32] = self.ring_product_many([words])[0]
        return product

    def ring_product_many(self, vectors: Sequence[npt.NDArray[np.uint32]]) -> npt.NDArray[np.uint32]:
        """:meth:`ring_product` for each of several vectors by way of :meth:`product_many`: uint32 [m, num_rows]; raises the same."""
        for words in vectors:
            if words.dtype != np.uint32:
                raise ValueError(f"words are {words.dtype}, expected uint32")
        residues: npt.NDArray[np.uint32] = self.product_many(vectors).astype(np.uint32)  # two's complement
        return residues

    def entries(self, first_row: int, last_row: int) -> npt.NDArray[np.int8]:
        """Rows ``first_row`` to ``last_row - 1`` of R written out: int8 [rows, dimension]; for small cases and checks.

        Raises:
            ValueError: not a range of rows of R.
        """
        if not 0 <= first_row <= last_row <= self.num_rows:
            raise ValueError(f"rows {first_row} to {last_row} of {self.num_rows}")
        written = np.empty((last_row - first_row, self.dimension), dtype=np.int8)
        for row in range(first_row, last_row):
            group, place = divmod(row, ROWS_PER_WORD)
            for start, words in self._pieces(group, _PIECE):
                written[row - first_row, start : start + len(words)] = ((words >> (2 * place)) & 3).astype(np.int8) - 1
        return written

    def row_products(self) -> npt.NDArray[np.int64]:
        """R·Rᵀ, exact: int64 [num_rows, num_rows]. Whoever whitens sketches needs it; it costs ``k²·d`` products.

        The entries are -1, 0 and 1, so a float32 sum over fewer than 2**24 of their products is exact.
        """
        total = np.zeros((self.num_rows, self.num_rows), dtype=np.int64)
        shifts = 2 * np.arange(ROWS_PER_WORD, dtype=np.uint16)
        for _, words in self._wide_pieces():
            fields = (words[:, :, None] >> shifts) & np.uint16(3)
            written = fields.reshape(len(words), -1).astype(np.float32) - np.float32(1)
            total += (written.T @ written).astype(np.int64)
        return total

    def _wide_pieces(self) -> Iterator[tuple[int, npt.NDArray[np.uint16]]]:
        """``(first coordinate, words)`` over all row groups side by side: little-endian [coordinates, groups]."""
        groups = [self._pieces(group, _WIDE_PIECE) for group in range(self.num_rows // ROWS_PER_WORD)]
        for pieces in zip(*groups, strict=True):
            yield pieces[0][0], np.stack([words for _, words in pieces], axis=1)

    def _pieces(self, group: int, size: int) -> Iterator[tuple[int, npt.NDArray[np.uint16]]]:
        """``(first coordinate, words)`` over the words of one row group; each array is valid until the next is asked for."""
        if not self.keep:
            yield from self._generate(group, size)
            return
        if group not in self._kept:
            self._kept[group] = np.concatenate([piece.copy() for _, piece in self._generate(group, _PIECE)])
        words = self._kept[group]
        for start in range(0, self.dimension, size):
            yield start, words[start : start + size]

    def _generate(self, group: int, size: int) -> Iterator[tuple[int, npt.NDArray[np.uint16]]]:
        key = digest(Label.SKETCH_KEY, self.seed)[:STREAM_KEY_BYTES]
        counter = group.to_bytes(8, "big") + bytes(8)
        stream = Cipher(algorithms.AES(key), modes.CTR(counter)).encryptor()
        # Older releases of cryptography ask for room for one block more than is written.
        streamed = np.empty(-(-min(self.dimension, size) // 4) + _BLOCK_BYTES // 8, dtype="<u8")
        odd = np.empty_like(streamed)
        raw, words = streamed.view(np.uint8).data, streamed.view("<u2")
        for start in range(0, self.dimension, size):
            count = min(size, self.dimension - start)
            stream.update_into(_ODD_BITS[: count * _WORD_BYTES], raw)
            # 2a + b - a = a + b for the two bits of every pair
            np.right_shift(streamed, 1, out=odd)
            np.bitwise_and(odd, _EVEN_BITS, out=odd)
            np.subtract(streamed, odd, out=streamed)
            yield start, words[:count]


def _check(x: IntegerVector, dimension: int) -> None:
    if x.dtype not in (np.int32, np.uint32, np.int64) or x.shape != (dimension,):
        raise ValueError(f"x is {x.dtype} {x.shape}, expected 32- or 64-bit integers ({dimension},)")
    if x.dtype == np.int64 and not (int(x.max()) <= _MAX_ENTRY and int(x.min()) >= -_MAX_ENTRY):
        raise ValueError("an entry of x is over 2**32")


def _row_sums(buckets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Eight rows of R·x from the bucket sums of their row group."""
    table = buckets.reshape(256, 256)  # [high byte, low byte]
    return np.concatenate([table.sum(axis=0) @ _BYTE_ENTRIES, table.sum(axis=1) @ _BYTE_ENTRIES])


def _written_out(values: npt.NDArray[np.float64], words: npt.NDArray[np.uint16]) -> npt.NDArray[np.float64]:
    """``values @ R`` for vectors [m, c] and the words [c, groups] of the same coordinates: [m, 8 * groups]; exact, see the module."""
    num_rows = ROWS_PER_WORD * words.shape[1]
    total = np.zeros((len(values), num_rows))
    entries = np.empty((min(len(words), _BLOCK), num_rows))
    for start in range(0, len(words), _BLOCK):
        block = words[start : start + _BLOCK]
        into = entries[: len(block)]
        # Four rows a byte, the low byte first. Nothing can be out of range; "clip" writes straight into the output.
        np.take(_FLOAT_ENTRIES, block.view(np.uint8).ravel().astype(np.intp), axis=0, out=into.reshape(-1, 4), mode="clip")
        _add_product(total, values[:, start : start + len(block)], into)
    return total


def _add_product(total: npt.NDArray[np.float64], left: npt.NDArray[np.float64], right: npt.NDArray[np.float64]) -> None:
    """``total += left @ right``, in tiles that BLAS does not spread over threads."""
    width = _TILE_AREA // len(left)
    for start in range(0, len(right), _TILE):
        inner = slice(start, start + _TILE)
        for column in range(0, right.shape[1], width):
            outer = slice(column, column + width)
            total[:, outer] += left[:, inner] @ right[inner, outer]


def make_sketch(matrix: SketchMatrix, encoded: npt.NDArray[np.int32]) -> Sketch:
    """A client's sketch ``s = R·encode(x)``.

    Args:
        matrix: R of the round.
        encoded: int32 [d], as masked and uploaded.

    Returns:
        int32 [k].

    Raises:
        LocalProtocolError: a row does not fit 32 bits; under the static checks of fixedpoint.py that happens to an encoded update
            with probability under k * 2**-57, so the vector was not encoded.
    """
    rows = matrix.product(encoded)
    limits = np.iinfo(np.int32)
    if int(rows.max()) > limits.max or int(rows.min()) < limits.min:
        raise LocalProtocolError("a sketch row passes 32 bits: the vector is not an encoded update")
    return rows.astype(np.int32)


def verify_norm(sketch: Sketch, *, norm_bound: int, slack: float) -> None:
    """The norm gate: ``‖s‖² <= u · k/2 · L²``, compared exactly.

    An update of norm L has ‖s‖² near k/2 · L²; u is how far past that its sketch may lie.

    Args:
        sketch: int32 [k].
        norm_bound: L, in ring steps.
        slack: u, over 1 and under 4.

    Raises:
        ValueError: a parameter out of range, another dtype or shape.
        VerificationError: the sketch is too long for any update within the bound.
    """
    if sketch.dtype != np.int32 or sketch.ndim != 1 or not len(sketch):
        raise ValueError(f"sketch is {sketch.dtype} {sketch.shape}, expected int32 [k]")
    if not (1 < slack < MAX_NORM_SLACK and norm_bound >= 1):
        raise ValueError(f"slack {slack} or norm bound {norm_bound} is out of range")
    squares = sum(value * value for value in sketch.tolist())
    if 2 * squares > Fraction(slack) * len(sketch) * norm_bound**2:
        raise VerificationError("the sketch is longer than the norm bound allows")


def verify_opening(matrix: SketchMatrix, total: npt.NDArray[np.int32], sketches: npt.NDArray[np.int32]) -> None:
    """The opening check: ``R·X = Σ s`` exactly, over the integers.

    Args:
        matrix: R of the round.
        total: X, int32 [d]: the opened sum over the accepted clients, lifted and within n·L (fixedpoint.py, ``lift``).
        sketches: int32 [a, k], one row for each accepted client.

    Raises:
        ValueError: other dtypes or shapes.
        VerificationError: the sums differ: X must not be used.
    """
    if total.dtype != np.int32:
        raise ValueError(f"total is {total.dtype}, expected int32")
    if sketches.dtype != np.int32 or sketches.ndim != 2 or sketches.shape[1] != matrix.num_rows or not 1 <= len(sketches) <= MAX_COHORT:
        raise ValueError(f"sketches are {sketches.dtype} {sketches.shape}, expected int32 [1 to {MAX_COHORT}, {matrix.num_rows}]")
    differing = int(np.count_nonzero(matrix.product(total) != sketches.sum(axis=0, dtype=np.int64)))
    if differing:
        raise VerificationError(f"the opened sum contradicts the sketches in {differing} of {matrix.num_rows} rows")
