"""Canonical bytes of protocol messages and of a client's state: tables of fields, written and read strictly.

1. One value has exactly one encoding. Integers are big-endian and of fixed width, everything of variable length carries its length,
   lists carry their count, and a record is its magic, its type and its fields in the order of its table.
2. Reading is strict: a wrong magic or type, a length over the limit of its field, a byte too few or too many is a ``DecodeError``. What
   was read writes the same bytes again.
3. Limits stand with the fields: nothing is allocated for a length that a peer merely claims.

Records check the range of their own values in ``__post_init__``; a ``ValueError`` there is a ``DecodeError`` when it comes from bytes.

Source: the presentation language of RFC 8446, section 3, without its options.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol, Self

from fedsec.errors import DecodeError

MAGIC = b"fsa\x01"
"""First bytes of every record: protocol family and wire version."""


class Reader:
    """Bytes that are read once from front to back."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes.

        Raises:
            DecodeError: there are fewer.
        """
        end = self._at + count
        if end > len(self._data):
            raise DecodeError(f"{count} bytes expected, {len(self._data) - self._at} are left")
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def finish(self) -> None:
        """Refuse trailing bytes.

        Raises:
            DecodeError: there are some.
        """
        if self._at != len(self._data):
            raise DecodeError(f"{len(self._data) - self._at} bytes after the end of the record")


class Codec(Protocol):
    """How one field is written and read."""

    def write(self, value: Any, out: bytearray) -> None:
        """Append the encoding of ``value``; ``ValueError`` where it has none."""

    def read(self, reader: Reader) -> Any:
        """Take a value; ``DecodeError`` where the bytes are not one."""


@dataclass(frozen=True)
class UInt:
    """An unsigned integer of ``width`` bytes."""

    width: int

    def write(self, value: int, out: bytearray) -> None:
        """See :class:`Codec`."""
        if type(value) is not int or not 0 <= value < 1 << (8 * self.width):
            raise ValueError(f"not an unsigned integer of {self.width} bytes")
        out += value.to_bytes(self.width, "big")

    def read(self, reader: Reader) -> int:
        """See :class:`Codec`."""
        return int.from_bytes(reader.take(self.width), "big")


@dataclass(frozen=True)
class Float:
    """A finite IEEE 754 double; minus zero has no encoding."""

    def write(self, value: float, out: bytearray) -> None:
        """See :class:`Codec`."""
        if type(value) is not float or not math.isfinite(value) or (value == 0 and math.copysign(1, value) < 0):
            raise ValueError("not a finite number")
        out += struct.pack(">d", value)

    def read(self, reader: Reader) -> float:
        """See :class:`Codec`."""
        value = float(struct.unpack(">d", reader.take(8))[0])
        if not math.isfinite(value) or (value == 0 and math.copysign(1, value) < 0):
            raise DecodeError("not a finite number")
        return value


@dataclass(frozen=True)
class Fixed:
    """Exactly ``length`` bytes."""

    length: int

    def write(self, value: bytes, out: bytearray) -> None:
        """See :class:`Codec`."""
        if len(value) != self.length:
            raise ValueError(f"{len(value)} bytes, expected {self.length}")
        out += value

    def read(self, reader: Reader) -> bytes:
        """See :class:`Codec`."""
        return reader.take(self.length)


@dataclass(frozen=True)
class Blob:
    """Up to ``limit`` bytes, after a length of four bytes."""

    limit: int

    def write(self, value: bytes, out: bytearray) -> None:
        """See :class:`Codec`."""
        if len(value) > self.limit:
            raise ValueError(f"{len(value)} bytes are over the limit of {self.limit}")
        out += len(value).to_bytes(4, "big")
        out += value

    def read(self, reader: Reader) -> bytes:
        """See :class:`Codec`."""
        length = int.from_bytes(reader.take(4), "big")
        if length > self.limit:
            raise DecodeError(f"{length} bytes are over the limit of {self.limit}")
        return reader.take(length)


@dataclass(frozen=True)
class Text:
    """Printable UTF-8 of 1 to ``limit`` bytes."""

    limit: int

    def write(self, value: str, out: bytearray) -> None:
        """See :class:`Codec`."""
        if not value or not value.isprintable():
            raise ValueError("text is empty or not printable")
        Blob(self.limit).write(value.encode("utf-8"), out)

    def read(self, reader: Reader) -> str:
        """See :class:`Codec`."""
        try:
            text = Blob(self.limit).read(reader).decode("utf-8")
        except UnicodeDecodeError:
            raise DecodeError("text is not UTF-8") from None
        if not text or not text.isprintable():
            raise DecodeError("text is empty or not printable")
        return text


@dataclass(frozen=True)
class ListOf:
    """Up to ``limit`` items, after a count of two bytes; a tuple when read."""

    item: Codec
    limit: int

    def write(self, value: Sequence[Any], out: bytearray) -> None:
        """See :class:`Codec`."""
        if len(value) > self.limit:
            raise ValueError(f"{len(value)} items are over the limit of {self.limit}")
        out += len(value).to_bytes(2, "big")
        for item in value:
            self.item.write(item, out)

    def read(self, reader: Reader) -> tuple[Any, ...]:
        """See :class:`Codec`."""
        count = int.from_bytes(reader.take(2), "big")
        if count > self.limit:
            raise DecodeError(f"{count} items are over the limit of {self.limit}")
        read = self.item.read
        return tuple([read(reader) for _ in range(count)])


@dataclass(frozen=True)
class Part:
    """A part of a record with fields of its own: a frozen dataclass with a ``FIELDS`` table."""

    kind: type[Parted]

    def write(self, value: Parted, out: bytearray) -> None:
        """See :class:`Codec`."""
        for name, codec in self.kind.FIELDS:
            codec.write(getattr(value, name), out)

    def read(self, reader: Reader) -> Any:
        """See :class:`Codec`."""
        values = {name: codec.read(reader) for name, codec in self.kind.FIELDS}
        try:
            return self.kind(**values)
        except ValueError as error:
            raise DecodeError(str(error)) from None


class Parted:
    """Base of everything with a table of fields."""

    FIELDS: ClassVar[tuple[tuple[str, Codec], ...]]


class Record(Parted):
    """Base of messages and stored states: a frozen dataclass with a type and a table of fields."""

    TYPE: ClassVar[int]

    def encode(self) -> bytes:
        """Canonical bytes.

        Raises:
            ValueError: a field has no encoding.
        """
        out = bytearray(MAGIC)
        out.append(self.TYPE)
        Part(type(self)).write(self, out)
        return bytes(out)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Inverse of :meth:`encode`.

        Raises:
            DecodeError: not the canonical bytes of such a record.
        """
        reader = Reader(data)
        if reader.take(len(MAGIC)) != MAGIC:
            raise DecodeError("not a record of this protocol version")
        if (kind := reader.take(1)[0]) != cls.TYPE:
            raise DecodeError(f"a record of type {kind}, expected {cls.TYPE}")
        record: Self = Part(cls).read(reader)
        reader.finish()
        return record


class SmallRecord(Record):
    """A record that keeps its own bytes: for small ones that are encoded, hashed and signed several times."""

    @cached_property
    def _bytes(self) -> bytes:
        return super().encode()

    def encode(self) -> bytes:
        """See :class:`Record`."""
        return self._bytes

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """See :class:`Record`; what was read is what would be written (rule 2)."""
        record = super().decode(data)
        record.__dict__["_bytes"] = bytes(data)
        return record
