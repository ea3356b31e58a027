"""One value, one encoding; anything else is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsec.codec import canonical_json, decode_canonical_json, digest, digest_json
from fedsec.errors import DecodeError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_decode_inverts_encode(value):
    assert decode_canonical_json(canonical_json(value)) == value


@given(VALUES, st.data())
def test_every_flipped_byte_is_refused_or_means_something_else(value, data):
    encoded = bytearray(canonical_json(value))
    position = data.draw(st.integers(0, len(encoded) - 1))
    encoded[position] ^= data.draw(st.integers(1, 255))
    try:
        assert canonical_json(decode_canonical_json(bytes(encoded))) != canonical_json(value)
    except DecodeError:
        pass


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":1,"a":1}',
        b'{ "a":1}',
        b"NaN",
        b"Infinity",
        b"",
        b"\xff",
        b'{"b":1,"a":1}',
        b"1.0e0",
        b"[" * 100_000,
        b"9" * 5000,
        b'{"a":' + b"9" * 5000 + b"}",
    ],
)
def test_bytes_that_are_not_canonical_are_refused(text):
    with pytest.raises(DecodeError):
        decode_canonical_json(text)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b"bytes", object()])
def test_values_json_does_not_have_are_refused(value):
    with pytest.raises(ValueError):
        canonical_json(value)


def test_digests_bind_label_and_part_boundaries():
    assert digest("a", b"bc") != digest("a", b"b", b"c") != digest("ab", b"c")
    assert digest_json("x", {"a": 1}) != digest_json("y", {"a": 1})
    assert len(digest("a")) == 32


def test_canonical_json_is_json():
    assert json.loads(canonical_json({"é": [1.5, None]})) == {"é": [1.5, None]}
