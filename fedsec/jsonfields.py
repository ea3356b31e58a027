"""Records as strict JSON: one table says for every key how it is written and how it is read back.

1. Exactly the keys of the table: a missing one, an unknown one or another type is refused, naming the place.
2. NaN and infinities are the strings ``"nan"``, ``"inf"`` and ``"-inf"``: the text is JSON for every reader, and ``float(value)`` reads
   both spellings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from fedsec.errors import DecodeError

R = TypeVar("R")


class Codec(NamedTuple):
    """How one kind of value is written to JSON and read back; ``read(value, what)`` raises DecodeError."""

    write: Callable[[Any], Any]
    read: Callable[[Any, str], Any]


Table = Mapping[str, Codec]


def _spell(value: float) -> float | str:
    number = float(value)
    return number if math.isfinite(number) else str(number)


def _read_number(value: Any, what: str) -> float:
    if isinstance(value, str) and value in ("nan", "inf", "-inf"):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DecodeError(f"{what} is not a number")
    try:
        number = float(value)
    except OverflowError:
        raise DecodeError(f"{what} is too large") from None
    if not math.isfinite(number):
        raise DecodeError(f'{what} must be spelled as a string, for example "inf"')
    return number


def _read_integer(value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise DecodeError(f"{what} is not a whole number")
    return value


def _read_flag(value: Any, what: str) -> bool:
    if not isinstance(value, bool):
        raise DecodeError(f"{what} is not true or false")
    return value


def clean(text: str) -> str:
    """Text that UTF-8 can hold: a path may carry bytes that are no text, and must not stop a result from being written."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _read_text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise DecodeError(f"{what} is not text")
    return value


def optional(codec: Codec) -> Codec:
    """A value that may be absent: null."""

    def write(value: Any) -> Any:
        return None if value is None else codec.write(value)

    def read(value: Any, what: str) -> Any:
        return None if value is None else codec.read(value, what)

    return Codec(write, read)


def list_of(codec: Codec) -> Codec:
    """A list of values of one kind; read as a tuple."""

    def read(value: Any, what: str) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise DecodeError(f"{what} is not a list")
        return tuple(codec.read(item, f"{what}[{index}]") for index, item in enumerate(value))

    return Codec(lambda values: [codec.write(value) for value in values], read)


def map_of(codec: Codec) -> Codec:
    """An object of free keys with values of one kind."""

    def read(value: Any, what: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise DecodeError(f"{what} is not an object")
        return {name: codec.read(item, f"{what}.{name}") for name, item in value.items()}

    return Codec(lambda values: {clean(name): codec.write(value) for name, value in values.items()}, read)


def read_object(table: Table, value: Any, what: str) -> dict[str, Any]:
    """Read exactly the keys of the table, each by its codec."""
    if not isinstance(value, dict):
        raise DecodeError(f"{what} is not an object")
    if missing := table.keys() - value.keys():
        raise DecodeError(f"{what} has no {min(missing)}")
    if unknown := value.keys() - table.keys():
        raise DecodeError(f"{what} has an unknown key: {min(unknown)[:80]}")
    return {key: codec.read(value[key], f"{what}.{key}") for key, codec in table.items()}


def build(cls: type[R], table: Table, value: Any, what: str) -> R:
    """Make a record from read values; what its own checks refuse is a fault of the input here."""
    values = read_object(table, value, what)
    try:
        return cls(**values)
    except ValueError as error:
        raise DecodeError(f"{what}: {error}") from None


def dump(table: Table, record: object) -> dict[str, Any]:
    """The attributes of the table's keys, as plain values."""
    return {key: codec.write(getattr(record, key)) for key, codec in table.items()}


NUMBER = Codec(_spell, _read_number)
INTEGER = Codec(int, _read_integer)
FLAG = Codec(bool, _read_flag)
TEXT = Codec(clean, _read_text)
NUMBER_OR_NONE = optional(NUMBER)
