"""Canonical bytes for settings and records, so that equal things have equal hashes.

1. One value has exactly one encoding: JSON with sorted keys, no white space, UTF-8, no NaN or infinity (infinities are the
   caller's to spell, for example as a string).
2. Decoding is strict: bytes that are not their own canonical encoding are refused.
3. Digests are SHA-256 under a domain label, so a digest of one kind never stands for another.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from typing import Any

from fedsec.errors import DecodeError

_JOINED_BYTES = 4096

MAX_JSON_BYTES = 16 * 1024 * 1024
"""Upper limit on one record; larger input is refused before it is parsed."""


def canonical_json(value: Any) -> bytes:
    """Encode ``value`` (str-keyed dicts, lists, str, int, finite float, bool, None) canonically.

    Raises:
        ValueError: a NaN or infinity, or a type that JSON does not have.

    >>> canonical_json({"b": 1, "a": [True, None]})
    b'{"a":[true,null],"b":1}'
    """
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except TypeError as error:
        raise ValueError(f"not canonical JSON: {error}") from None
    return text.encode("utf-8")


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise DecodeError("a key appears twice")
    return result


def _refuse_constant(text: str) -> Any:
    raise DecodeError(f"{text} is not allowed")


def decode_canonical_json(data: bytes) -> Any:
    """Decode bytes made by :func:`canonical_json`.

    Raises:
        DecodeError: too long, not JSON, duplicate keys, NaN, or any encoding but the canonical one.
    """
    if len(data) > MAX_JSON_BYTES:
        raise DecodeError(f"record of {len(data)} bytes is over the limit of {MAX_JSON_BYTES}")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_refuse_duplicates, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # Python's own words for an integer of over 4300 digits are a plain ValueError
        raise DecodeError(f"not JSON: {error}") from None
    try:
        canonical = canonical_json(value)
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"not canonical: {error}") from None
    if canonical != data:
        raise DecodeError("not the canonical encoding of its value")
    return value


def digest(label: str, *parts: bytes) -> bytes:
    """SHA-256 over a domain label and length-prefixed parts: 32 bytes.

    Length prefixes make the encoding injective: ``digest(l, b"ab", b"c")`` differs from ``digest(l, b"a", b"bc")``.
    """
    pieces, size = [_label_prefix(label)], 0
    for part in parts:
        length = len(part)
        size += length
        pieces += (length.to_bytes(8, "big"), part)
    if size <= _JOINED_BYTES:  # one call costs a third of one for each piece
        return hashlib.sha256(b"".join(pieces)).digest()
    state = hashlib.sha256()
    for piece in pieces:
        state.update(piece)
    return state.digest()


@lru_cache(maxsize=256)
def _label_prefix(label: str) -> bytes:
    encoded = label.encode("utf-8")
    return len(encoded).to_bytes(8, "big") + encoded


def digest_json(label: str, value: Any) -> str:
    """Hex digest of a JSON-able value under a domain label."""
    return digest(label, canonical_json(value)).hex()
