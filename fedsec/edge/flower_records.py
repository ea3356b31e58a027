r"""The bodies of Flower's records as the gateway checks them, so that one client's garbled reply stops no ServerApp. Pure.

flwr 1.41 inflates a reply inside ``grid.pull_messages``: a body that it cannot read raises there, for all nodes' replies of that call.

1. ``RecordDict`` and ``ArrayRecord``: JSON, name → object id; the ids are exactly the children. At most ``MAX_JSON_BYTES``.
2. ``Array``: JSON; the chunks named by their places among the children, each at least once; repetitions are bounded, for a chunk that is
   repeated costs its sender nothing. What all of a reply unpacks to is bounded by ``flower_objects.check_unpacked``, for which :func:`uses`
   says how often each child is used.
3. ``ConfigRecord`` and ``MetricRecord``: protobuf of two levels, read here by hand, without a copy and without an object for each item:
   the known fields only, a key once, a value that is there, numbers of items bounded.

Source: flwr 1.41, ``app/message``, ``proto/recorddict.proto``, ``common/serde_utils.record_value_dict_from_proto``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fedsec.edge.refusal import Reason, Refused

MAX_JSON_BYTES = 1 << 20
MAX_ITEMS = 4096
MAX_LIST = 1 << 20
"""Numbers in one list."""
MAX_TEXTS = 1 << 16
"""Texts, or pieces of bytes, in all lists of a record."""
MAX_REPEATED = 16
"""Times that chunks of an array may be repeated, in all."""
MAX_DIMENSIONS = 64

_Value = memoryview | int
_VARINT, _FIXED64, _BYTES = 0, 1, 2
_KEY, _VALUE, _ITEM = 1, 2, 1
_DOUBLES, _SINTS, _UINTS, _BOOLS, _STRINGS, _BLOBS = range(21, 27)
_WIRE: Mapping[int, int] = {1: _FIXED64, 2: _VARINT, 3: _VARINT, 4: _VARINT, 5: _BYTES, 6: _BYTES} | dict.fromkeys(range(21, 27), _BYTES)
"""Fields of a value, and how each is written."""
_METRIC = frozenset({1, 2, 3, _DOUBLES, _SINTS, _UINTS})
_BOOL, _STRING = 4, 5
_LONG = re.compile(rb"[\x80-\xff]{10}")
_MAX_VARINT_BYTES = 10


def check_record(kind: str, body: memoryview, children: tuple[str, ...]) -> None:
    """Refuse a body that Flower could not read, or only at a great cost.

    Args:
        kind: of the object; of a ``Message`` or ``ArrayChunk`` nothing is looked at.
        body: without the head.
        children: ids, in the order of the head.

    Raises:
        Refused: says of what kind it is.
    """
    check = _CHECKS.get(kind)
    if check is None:
        return
    try:
        check(body, children)
    except (ValueError, TypeError, RecursionError) as error:
        raise Refused(Reason.MESSAGE, f"the body of a {kind} cannot be read: {_said(error)}") from None


def uses(kind: str, body: memoryview, children: tuple[str, ...]) -> list[str]:
    """The children that an object is put together of, each as often as it is used.

    Args:
        kind: of the object.
        body: that passed :func:`check_record`.
        children: ids, in the order of the head.
    """
    if kind == "Array":
        return [children[place] for place in _object(body)["arraychunk_ids"]]
    return list(_object(body).values()) if kind in {"RecordDict", "ArrayRecord"} else list(children)


def _said(error: Exception) -> str:
    """Our own words; the decoders' may repeat what the client wrote."""
    return str(error) if type(error) in {ValueError, TypeError} else type(error).__name__


def _object(body: memoryview) -> dict[str, Any]:
    if len(body) > MAX_JSON_BYTES:
        raise ValueError("too long")
    text = str(body, "utf-8")
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        raise ValueError("not JSON") from None
    if not isinstance(found, dict):
        raise TypeError("not a JSON object")
    for name in found:
        name.encode("utf-8")  # half a surrogate pair is a text that nobody can print
    return found


def _check_names(body: memoryview, children: tuple[str, ...]) -> None:
    found = _object(body)
    if len(found) > MAX_ITEMS or not all(isinstance(name, str) for name in found.values()) or set(found.values()) != set(children):
        raise ValueError("its names are not of exactly the declared children")


def _check_array(body: memoryview, children: tuple[str, ...]) -> None:
    found = _object(body)
    if found.keys() != {"dtype", "shape", "stype", "arraychunk_ids"}:
        raise ValueError("other fields than Flower's")
    shape, places = found["shape"], found["arraychunk_ids"]
    if not all(isinstance(found[name], str) and found[name].isprintable() and len(found[name]) <= 100 for name in ("dtype", "stype")):
        raise ValueError("a type that is no text")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(type(size) is int and 0 <= size < 1 << 63 for size in shape):
        raise ValueError("a shape that is none")
    if not isinstance(places, list) or not all(type(place) is int for place in places) or set(places) != set(range(len(children))):
        raise ValueError("its chunks are not exactly the declared children")
    if len(places) > len(children) + MAX_REPEATED:
        raise ValueError(f"its chunks are repeated over {MAX_REPEATED} times")


def _check_config(body: memoryview, children: tuple[str, ...]) -> None:
    _check_items(body, children, frozenset(_WIRE))


def _check_metrics(body: memoryview, children: tuple[str, ...]) -> None:
    _check_items(body, children, _METRIC)


def _check_items(body: memoryview, children: tuple[str, ...], kinds: frozenset[int]) -> None:
    if children:
        raise ValueError("it has children")
    keys: set[bytes] = set()
    texts = 0
    for _, item in _fields(body, {_ITEM: _BYTES}, MAX_ITEMS):
        assert isinstance(item, memoryview)
        parts = list(_fields(item, {_KEY: _BYTES, _VALUE: _BYTES}, 2))
        found: dict[int, Any] = dict(parts)
        key, value = found.get(_KEY, memoryview(b"")), found.get(_VALUE)
        if len(found) != len(parts) or value is None or bytes(key) in keys:
            raise ValueError("a key stands in it twice, or has no value")
        str(key, "utf-8")
        keys.add(bytes(key))
        texts += _check_value(value, kinds)
        if texts > MAX_TEXTS:
            raise ValueError("too many texts")


def _check_value(value: memoryview, kinds: frozenset[int]) -> int:
    """How many texts it lists."""
    fields = list(_fields(value, _WIRE, 1))
    if not fields or fields[0][0] not in kinds:
        raise ValueError("a value of no known kind")
    ((kind, content),) = fields
    if kind == _BOOL and content not in (0, 1):
        raise ValueError("a truth that is none")
    if kind == _STRING:
        assert isinstance(content, memoryview)
        str(content, "utf-8")
    return _check_list(kind, content) if kind >= _DOUBLES else 0


def _check_list(kind: int, content: _Value) -> int:
    assert isinstance(content, memoryview)
    if kind in {_STRINGS, _BLOBS}:
        count = 0
        for _, text in _fields(content, {1: _BYTES}, MAX_TEXTS):
            count += 1
            if kind == _STRINGS:
                str(text, "utf-8")  # type: ignore[arg-type]
        return count
    parts = list(_fields(content, {1: _BYTES}, 1))
    if parts:
        packed = parts[0][1]
        assert isinstance(packed, memoryview)
        _check_packed(kind, packed)
    return 0


def _check_packed(kind: int, packed: memoryview) -> None:
    if len(packed) > MAX_LIST * 8:
        raise ValueError("a list that is too long")
    if kind == _DOUBLES:
        whole = len(packed) % 8 == 0
    elif kind == _BOOLS:
        whole = len(packed) <= MAX_LIST and max(packed, default=0) <= 1
    else:
        data = bytes(packed)
        whole = not data or (data[-1] < 0x80 and _LONG.search(data) is None)
    if not whole:
        raise ValueError("a list of numbers that is none")


def _fields(data: memoryview, known: Mapping[int, int], most: int) -> Iterator[tuple[int, _Value]]:
    """The fields of a protobuf message, by number; bytes and doubles as a view, other numbers as int.

    Raises:
        ValueError: torn, not known, of another type, or more than ``most`` of them.
    """
    at, count = 0, 0
    while at < len(data):
        count += 1
        tag, at = _varint(data, at)
        if count > most or known.get(tag >> 3) != tag & 7:
            raise ValueError("a field that Flower does not put there, or too many")
        if tag & 7 == _VARINT:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        size, at = (8, at) if tag & 7 == _FIXED64 else _varint(data, at)
        if size > len(data) - at:
            raise ValueError("torn")
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for place, byte in enumerate(data[at : at + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80 and value < 1 << 64:
            return value, at + place + 1
        if byte < 0x80:
            break
    raise ValueError("a number that is none")


_CHECKS: Mapping[str, Callable[[memoryview, tuple[str, ...]], None]] = {
    "RecordDict": _check_names,
    "ArrayRecord": _check_names,
    "Array": _check_array,
    "ConfigRecord": _check_config,
    "MetricRecord": _check_metrics,
}
