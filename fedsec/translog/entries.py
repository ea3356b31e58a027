"""What a transparency log holds: entries of six kinds, each with exactly one encoding.

1. An entry is a kind and a body; the log never looks into the body, whose own module reads it strictly.
2. The encoding is ``FSLE``, version 1, one byte of kind, four bytes of length (big-endian), the body, and nothing after it.
3. A body has at most ``MAX_BODY_BYTES``; a longer one is neither written nor read.

The bytes of an entry are the leaf of the Merkle tree (``fedsec.merkle``).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Self

from fedsec.errors import DecodeError

MAX_BODY_BYTES = 8 * 1024 * 1024
"""Upper limit on one body; a larger record goes elsewhere, and its hash in here."""

_MAGIC = b"FSLE\x01"
_HEADER = struct.Struct(">5sBI")

MAX_ENTRY_BYTES = _HEADER.size + MAX_BODY_BYTES
"""Upper limit on an encoded entry."""


class EntryKind(IntEnum):
    """What a body is about; the number is part of the encoding and never changes."""

    ROSTER = 1
    """Who takes part, with which keys."""
    ROUND = 2
    """What one round asked for and released."""
    EVIDENCE = 3
    """Signed proof that a party broke a rule."""
    RELEASE = 4
    """Code or settings that are approved to run."""
    CERTIFICATE = 5
    """A certificate that the CA issued, in DER."""
    REVOCATION = 6
    """Which certificate the CA revoked, when and why."""


@dataclass(frozen=True, slots=True)
class LogEntry:
    r"""One entry of the log.

    Attributes:
        kind: what the body is about.
        body: at most ``MAX_BODY_BYTES``.

    Raises:
        ValueError: the body is too long.

    >>> LogEntry(EntryKind.ROUND, b"body").encode()
    b'FSLE\x01\x02\x00\x00\x00\x04body'
    """

    kind: EntryKind
    body: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.body) > MAX_BODY_BYTES:
            raise ValueError(f"a body of {len(self.body)} bytes is over the limit of {MAX_BODY_BYTES}")

    def encode(self) -> bytes:
        """The canonical bytes."""
        return _HEADER.pack(_MAGIC, self.kind, len(self.body)) + self.body

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read the canonical bytes.

        Raises:
            DecodeError: anything else.
        """
        if not _HEADER.size <= len(data) <= MAX_ENTRY_BYTES:
            raise DecodeError(f"no log entry has {len(data)} bytes")
        magic, number, length = _HEADER.unpack_from(data)
        if magic != _MAGIC:
            raise DecodeError("not a log entry of this version")
        if length != len(data) - _HEADER.size:
            raise DecodeError(f"a log entry says that its body has {length} bytes, not {len(data) - _HEADER.size}")
        try:
            kind = EntryKind(number)
        except ValueError:
            raise DecodeError(f"unknown kind of log entry: {number}") from None
        return cls(kind, bytes(data[_HEADER.size :]))
