"""The wire format: one value, one encoding; whatever is read writes the same bytes again, and nothing else is read."""

import math
import struct
import tracemalloc
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsec.errors import DecodeError
from fedsec.secagg.wire import MAGIC, Blob, Codec, Fixed, Float, ListOf, Part, Parted, Reader, Record, Text, UInt


@dataclass(frozen=True, kw_only=True)
class Point(Parted):
    FIELDS = (("x", UInt(1)), ("name", Text(4)))
    x: int
    name: str

    def __post_init__(self) -> None:
        if self.x == 13:
            raise ValueError("thirteen")


@dataclass(frozen=True, kw_only=True)
class Path(Record):
    TYPE: ClassVar[int] = 200
    FIELDS = (("start", Part(Point)), ("rest", ListOf(Part(Point), 3)), ("length", Float()), ("key", Fixed(4)), ("note", Blob(5)))
    start: Point
    rest: tuple[Point, ...]
    length: float
    key: bytes
    note: bytes


def write(codec: Codec, value: Any) -> bytes:
    out = bytearray()
    codec.write(value, out)
    return bytes(out)


def read(codec: Codec, data: bytes) -> Any:
    reader = Reader(data)
    value = codec.read(reader)
    reader.finish()
    return value


def texts(limit: int) -> st.SearchStrategy[str]:
    return st.text(st.characters(codec="utf-8"), min_size=1, max_size=limit).filter(lambda s: s.isprintable() and len(s.encode()) <= limit)


POINTS = st.builds(Point, x=st.integers(0, 255).filter(lambda x: x != 13), name=texts(4))
FLOATS = st.floats(allow_nan=False, allow_infinity=False).filter(lambda x: x != 0 or math.copysign(1, x) > 0)
PATHS = st.builds(
    Path,
    start=POINTS,
    rest=st.lists(POINTS, max_size=3).map(tuple),
    length=FLOATS,
    key=st.binary(min_size=4, max_size=4),
    note=st.binary(max_size=5),
)
CODECS: dict[str, tuple[Codec, st.SearchStrategy[Any]]] = {
    "uint1": (UInt(1), st.integers(0, 255)),
    "uint2": (UInt(2), st.integers(0, 2**16 - 1)),
    "uint8": (UInt(8), st.integers(0, 2**64 - 1)),
    "float": (Float(), FLOATS),
    "fixed": (Fixed(3), st.binary(min_size=3, max_size=3)),
    "fixed0": (Fixed(0), st.just(b"")),
    "blob": (Blob(6), st.binary(max_size=6)),
    "text": (Text(7), texts(7)),
    "list": (ListOf(UInt(2), 4), st.lists(st.integers(0, 2**16 - 1), max_size=4).map(tuple)),
    "lists": (ListOf(ListOf(Blob(2), 2), 2), st.lists(st.lists(st.binary(max_size=2), max_size=2).map(tuple), max_size=2).map(tuple)),
    "part": (Part(Point), POINTS),
}
EXAMPLE = Path(start=Point(x=1, name="ä"), rest=(Point(x=2, name="b"),), length=0.5, key=b"abcd", note=b"xyz")

named_codecs = pytest.mark.parametrize("name", CODECS)


# --- one value, one encoding ---


def test_the_bytes_of_a_record_are_these() -> None:
    expected = MAGIC + b"\xc8" + b"\x01" + b"\0\0\0\x02\xc3\xa4" + b"\0\x01" + b"\x02" + b"\0\0\0\x01b"
    expected += bytes.fromhex("3fe0000000000000") + b"abcd" + b"\0\0\0\x03xyz"
    assert EXAMPLE.encode() == expected
    assert Path.decode(expected) == EXAMPLE


@pytest.mark.parametrize(
    ("codec", "value", "expected"),
    [
        (UInt(1), 0, "00"), (UInt(2), 258, "0102"), (UInt(4), 2**32 - 1, "ffffffff"), (UInt(8), 1, "0000000000000001"),
        (Float(), 0.0, "0000000000000000"), (Float(), -1.5, "bff8000000000000"), (Float(), 5e-324, "0000000000000001"),
        (Fixed(2), b"\0\xff", "00ff"), (Blob(9), b"", "00000000"), (Blob(9), b"\0", "0000000100"),
        (Text(9), "é", "00000002c3a9"), (ListOf(UInt(1), 9), (), "0000"), (ListOf(UInt(1), 9), (7, 0), "00020700"),
    ],
)  # fmt: skip
def test_the_bytes_of_a_field_are_these(codec: Codec, value: Any, expected: str) -> None:
    assert write(codec, value).hex() == expected
    assert read(codec, bytes.fromhex(expected)) == value


@named_codecs
@given(data=st.data())
def test_what_was_written_is_read(name: str, data: st.DataObject) -> None:
    codec, values = CODECS[name]
    value = data.draw(values)
    assert read(codec, write(codec, value)) == value


@named_codecs
@given(data=st.binary(max_size=24))
def test_random_bytes_are_refused_or_written_again_exactly(name: str, data: bytes) -> None:
    codec, _ = CODECS[name]
    try:
        value = read(codec, data)
    except DecodeError:
        return
    assert write(codec, value) == data


@given(PATHS)
def test_a_record_is_what_its_bytes_say(path: Path) -> None:
    assert Path.decode(path.encode()) == path


@given(PATHS, st.data())
def test_a_changed_record_is_refused_or_another_value(path: Path, data: st.DataObject) -> None:
    good = path.encode()
    place = data.draw(st.integers(0, len(good) - 1))
    changed = good[:place] + bytes([good[place] ^ data.draw(st.integers(1, 255))]) + good[place + 1 :]
    try:
        other = Path.decode(changed)
    except DecodeError:
        return
    assert other != path
    assert other.encode() == changed


@given(PATHS, st.data())
def test_cut_or_extended_records_are_refused(path: Path, data: st.DataObject) -> None:
    good = path.encode()
    with pytest.raises(DecodeError):
        Path.decode(good[: data.draw(st.integers(0, len(good) - 1))])
    with pytest.raises(DecodeError, match="after the end"):
        Path.decode(good + data.draw(st.binary(min_size=1, max_size=3)))


# --- what is not read ---


@pytest.mark.parametrize("place", range(4))
def test_another_magic_is_refused(place: int) -> None:
    good = bytearray(EXAMPLE.encode())
    good[place] ^= 1
    with pytest.raises(DecodeError, match="protocol version"):
        Path.decode(bytes(good))


@pytest.mark.parametrize("kind", [0, 199, 201, 255])
def test_another_type_is_refused(kind: int) -> None:
    good = EXAMPLE.encode()
    with pytest.raises(DecodeError, match=f"type {kind}"):
        Path.decode(MAGIC + bytes([kind]) + good[5:])


@pytest.mark.parametrize("data", [b"", MAGIC[:3], MAGIC])
def test_less_than_a_head_is_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        Path.decode(data)


@pytest.mark.parametrize("pattern", ["7ff0000000000000", "fff0000000000000", "7ff8000000000000", "7ff0000000000001", "ffffffffffffffff", "8000000000000000"])  # fmt: skip
def test_infinity_nan_and_minus_zero_are_not_read(pattern: str) -> None:
    with pytest.raises(DecodeError, match="finite"):
        read(Float(), bytes.fromhex(pattern))


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, -0.0, 1, "1", None, True])
def test_infinity_nan_minus_zero_and_what_is_no_float_are_not_written(value: Any) -> None:
    with pytest.raises(ValueError, match="finite"):
        write(Float(), value)


@pytest.mark.parametrize("value", [-1, 256, 1.0, True, "1", None])
def test_what_is_no_unsigned_integer_is_not_written(value: Any) -> None:
    with pytest.raises(ValueError, match="unsigned"):
        write(UInt(1), value)


@pytest.mark.parametrize("text", ["", "a\nb", "\0", "\x7f", "\u200b", "\u202e", "\ud800", "\u2028", "12345678"])
def test_empty_unprintable_and_long_text_is_not_written(text: str) -> None:
    with pytest.raises(ValueError):
        write(Text(7), text)


@pytest.mark.parametrize(
    "raw",
    [b"", b"a\nb", b"\0", b"\x7f", "\u200b".encode(), "\u202e".encode(), b"\xed\xa0\x80", b"\xc0\xaf", b"\xff", b"\xc3", b"\xf4\x90\x80\x80", b"12345678"],
    ids=["empty", "newline", "zero", "delete", "zero_width", "right_to_left", "surrogate", "overlong", "no_utf8", "cut", "past_unicode", "long"],
)  # fmt: skip
def test_text_that_is_empty_unprintable_long_or_not_utf8_is_not_read(raw: bytes) -> None:
    with pytest.raises(DecodeError):
        read(Text(7), len(raw).to_bytes(4, "big") + raw)


def test_a_text_limit_counts_bytes() -> None:
    assert read(Text(4), write(Text(4), "éé")) == "éé"
    with pytest.raises(ValueError):
        write(Text(3), "éé")


@pytest.mark.parametrize(("codec", "value"), [(Fixed(3), b"ab"), (Fixed(3), b"abcd"), (Blob(2), b"abc"), (ListOf(UInt(1), 2), (1, 2, 3))])
def test_what_is_over_its_limit_is_not_written(codec: Codec, value: Any) -> None:
    with pytest.raises(ValueError):
        write(codec, value)


@pytest.mark.parametrize(
    ("codec", "data"),
    [(Blob(2), b"\0\0\0\x03abc"), (Text(2), b"\0\0\0\x03abc"), (ListOf(UInt(1), 2), b"\0\x03\1\2\3"), (ListOf(Fixed(0), 2), b"\0\x03")],
)  # fmt: skip
def test_what_is_over_its_limit_is_not_read_though_its_bytes_are_there(codec: Codec, data: bytes) -> None:
    with pytest.raises(DecodeError, match="limit"):
        read(codec, data)


@pytest.mark.parametrize(
    "codec", [Blob((1 << 32) - 1), Text((1 << 32) - 1), ListOf(Fixed(1 << 20), (1 << 16) - 1), ListOf(ListOf(Blob(1 << 31), 60000), 60000)]
)  # fmt: skip
def test_a_huge_claim_costs_no_memory(codec: Codec) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError):
            read(codec, b"\xff" * 64)
        assert tracemalloc.get_traced_memory()[1] < 1 << 17
    finally:
        tracemalloc.stop()


def test_a_part_that_refuses_its_values_is_a_decode_error() -> None:
    with pytest.raises(DecodeError, match="thirteen"):
        read(Part(Point), b"\x0d\0\0\0\x01a")


def test_a_record_that_cannot_be_written_says_so() -> None:
    with pytest.raises(ValueError, match="expected 4"):
        Path(start=EXAMPLE.start, rest=(), length=0.5, key=b"abc", note=b"").encode()


def test_a_list_is_read_as_a_tuple_and_written_from_any_sequence() -> None:
    codec = ListOf(UInt(1), 3)
    assert write(codec, [1, 2]) == write(codec, (1, 2))
    assert read(codec, b"\0\x01\x05") == (5,)


def test_a_reader_gives_every_byte_once() -> None:
    reader = Reader(b"abc")
    assert (reader.take(1), reader.take(0), reader.take(2)) == (b"a", b"", b"bc")
    reader.finish()
    with pytest.raises(DecodeError, match="1 bytes expected, 0 are left"):
        reader.take(1)


def test_doubles_are_those_of_struct() -> None:
    for value in (1e308, -(2.0**-1074), 0.1, 123456789.0):
        assert write(Float(), value) == struct.pack(">d", value)
