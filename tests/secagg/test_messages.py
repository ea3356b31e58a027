"""Every message and every stored state of a client: strict bytes, and lists of members that name nobody twice."""

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsec.errors import DecodeError
from fedsec.secagg import client, client_blame, client_keys, dealing, messages, seat
from fedsec.secagg.config import Member, RoundConfig, nonce_commitment
from fedsec.secagg.labels import MAX_COHORT
from fedsec.secagg.wire import Blob, Codec, Fixed, Float, ListOf, Part, Parted, Record, Text, UInt

STATES = (
    client_keys.Advertised,
    client_keys.Dealt,
    client.Ready,
    client.Uploaded,
    client.Sketched,
    client.Consented,
    client_blame.Unmasked,
)
MESSAGES = tuple(
    kind for kind in vars(messages).values() if isinstance(kind, type) and issubclass(kind, Record) and kind.__module__ == messages.__name__
)
RECORDS = (*MESSAGES, *STATES, RoundConfig)
CONFIG = RoundConfig(
    federation="example.org", cohort=0, num_cohorts=1, run_id="run-1", server_round=1, attempt=1, model_hash=bytes(32), terms_hash=bytes(32),
    roster_hash=bytes(32), num_clients=5, num_corrupt=1, minimum_accepted=3, threshold=4, dimension=40, scale=1024.0, norm_bound=1 << 20,
    num_rows=16, norm_slack=3.5, weight_limit=100, rule="mean", nonce_commitment=nonce_commitment(bytes(32)), time_s=0,
)  # fmt: skip

every_record = pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
QUIET = settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])


# --- any value of any record, from its table of fields ---


def values_of(codec: Codec, size: int = 2) -> st.SearchStrategy[Any]:  # noqa: PLR0911 - one line a codec
    match codec:
        case UInt(width=width):
            return st.integers(0, (1 << 8 * width) - 1)
        case Float():
            return st.floats(-1e9, 1e9).filter(lambda x: x != 0)
        case Fixed(length=length):
            return st.binary(min_size=length, max_size=length)
        case Blob(limit=limit):
            return st.binary(max_size=min(limit, 40))
        case Text(limit=limit):
            return st.text("abcé-1", min_size=1, max_size=min(limit // 2, 6))
        case ListOf(item=item):
            return st.lists(values_of(item), max_size=size).map(tuple)
        case Part(kind=kind):
            return records_of(kind)
    raise AssertionError(codec)


def tidy(kind: type[Parted], values: dict[str, Any]) -> dict[str, Any]:
    """Put lists of members in the order that the record asks for."""
    increasing = {
        messages.Input: ("disputed",), messages.BlameValues: ("edges",), messages.SketchRequest: ("inputs",),
        messages.ConsistencyRequest: ("accepted", "rejected"), messages.UnmaskRequest: ("accepted", "rejected", "certificate"),
        messages.MaskedInputRequest: ("dealt",),
    }  # fmt: skip
    for name in increasing.get(kind, ()):
        by_key = {item if isinstance(item, int) else getattr(item, "sender", getattr(item, "peer", None)): item for item in values[name]}
        values[name] = tuple(by_key[key] for key in sorted(by_key))
    if kind is messages.MaskedInputRequest:
        pairs = sorted({(min(e.low, e.high), max(e.low, e.high)) for e in values["removed"] if e.low != e.high})
        values["removed"] = tuple(messages.RemovedEdge(low=low, high=high) for low, high in pairs)
    if kind is messages.Shares:
        values["shares"] = tuple(share.ljust(32, b"\0")[:32] if share else b"" for share in values["shares"])
    return values


def records_of(kind: type[Parted]) -> st.SearchStrategy[Any]:
    if kind is RoundConfig:
        return st.builds(
            lambda server_round, text, time_s: replace(CONFIG, server_round=server_round, run_id=text, time_s=time_s),
            st.integers(1, 9), values_of(Text(20)), st.integers(0, 2**40),
        )  # fmt: skip
    return st.fixed_dictionaries({name: values_of(codec) for name, codec in kind.FIELDS}).map(lambda values: kind(**tidy(kind, values)))


def example_of(codec: Codec, salt: int = 0) -> Any:  # noqa: PLR0911 - one line a codec
    """One fixed, full value: every list has two items."""
    match codec:
        case UInt(width=width):
            return 3 + salt if width > 1 else 1
        case Float():
            return 1.5
        case Fixed(length=length):
            return bytes((salt + i) % 256 for i in range(length))
        case Blob(limit=limit):
            return b"\x07" * min(limit, 32)
        case Text():
            return "ab"
        case ListOf(item=item):
            return (example_of(item, salt), example_of(item, salt + 1))
        case Part(kind=kind):
            return example(kind, salt)
    raise AssertionError(codec)


def example(kind: type[Parted], salt: int = 0) -> Any:
    if kind is RoundConfig:
        return CONFIG
    values = {name: example_of(codec, salt) for name, codec in kind.FIELDS}
    if kind is messages.RemovedEdge:
        values["high"] += 9
    return kind(**values)


def test_every_message_and_state_is_covered() -> None:
    assert len(MESSAGES) == 19
    types = [kind.TYPE for kind in RECORDS]
    assert len(set(types)) == len(types)


@pytest.mark.parametrize("kind", [*RECORDS, Member, dealing.HeldShares, seat.Seat, seat.KeptEdge, seat.Holdings, client_keys.OpenEdge])
def test_the_table_of_fields_is_the_dataclass(kind: Any) -> None:
    assert [name for name, _ in kind.FIELDS] == [field.name for field in fields(kind)]


# --- strict bytes ---


@every_record
@QUIET
@given(data=st.data())
def test_what_was_encoded_is_decoded(kind: Any, data: st.DataObject) -> None:
    record = data.draw(records_of(kind))
    assert kind.decode(record.encode()) == record


@every_record
@QUIET
@given(data=st.binary(max_size=200))
def test_random_bytes_after_the_head_are_refused_or_encoded_again_exactly(kind: Any, data: bytes) -> None:
    raw = example(kind).encode()[:5] + data
    try:
        record = kind.decode(raw)
    except DecodeError:
        return
    assert record.encode() == raw


@every_record
def test_every_flipped_byte_is_refused_or_another_value(kind: Any) -> None:
    record = example(kind)
    good = record.encode()
    for place in range(len(good)):
        for flip in (0xFF, 1 << place % 8):
            changed = good[:place] + bytes([good[place] ^ flip]) + good[place + 1 :]
            try:
                other = kind.decode(changed)
            except DecodeError:
                continue
            assert other != record, place
            assert other.encode() == changed, place


@every_record
def test_every_truncation_and_extension_is_refused(kind: Any) -> None:
    good = example(kind).encode()
    for length in range(len(good)):
        with pytest.raises(DecodeError):
            kind.decode(good[:length])
    for more in (b"\0", b"\xff", good):
        with pytest.raises(DecodeError):
            kind.decode(good + more)


@every_record
def test_no_record_is_read_as_another(kind: Any) -> None:
    raw = example(kind).encode()
    for other in RECORDS:
        if other is not kind:
            with pytest.raises(DecodeError, match="of type"):
                other.decode(raw)


@every_record
def test_records_are_frozen(kind: Any) -> None:
    record = example(kind)
    with pytest.raises(AttributeError):
        setattr(record, kind.FIELDS[0][0], getattr(record, kind.FIELDS[0][0]))


# --- lists of members ---


def with_list(record: Any, name: str, items: list[Any]) -> bytes:
    """The bytes of a record whose list was put in past its own check."""
    changed = replace(record)
    object.__setattr__(changed, name, tuple(items))
    return changed.encode()


MEMBER_LISTS = [
    (messages.Input, "disputed"), (messages.BlameValues, "edges"), (messages.MaskedInputRequest, "dealt"),
    (messages.MaskedInputRequest, "removed"), (messages.SketchRequest, "inputs"), (messages.ConsistencyRequest, "accepted"),
    (messages.ConsistencyRequest, "rejected"), (messages.UnmaskRequest, "accepted"), (messages.UnmaskRequest, "rejected"),
    (messages.UnmaskRequest, "certificate"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "name"), MEMBER_LISTS)
def test_a_list_out_of_order_or_with_a_member_twice_is_refused(kind: Any, name: str) -> None:
    record = example(kind)
    first, second = getattr(record, name)
    assert kind.decode(with_list(record, name, [first, second])) == record
    for items in ([second, first], [first, first], [first, second, second], [first, second, first]):
        with pytest.raises(DecodeError, match="increasing"):
            kind.decode(with_list(record, name, items))
        with pytest.raises(ValueError, match="increasing"):
            replace(record, **{name: tuple(items)})


@pytest.mark.parametrize(("low", "high"), [(3, 3), (4, 3), (65535, 0)])
def test_a_removed_edge_has_two_ends_in_order(low: int, high: int) -> None:
    record = example(messages.MaskedInputRequest)
    with pytest.raises(DecodeError, match="increasing pairs"):
        messages.MaskedInputRequest.decode(with_list(record, "removed", [messages.RemovedEdge(low=low, high=high)]))


@pytest.mark.parametrize("length", [1, 31])
def test_a_share_is_whole_or_absent(length: int) -> None:
    record = example(messages.Shares)
    assert messages.Shares.decode(with_list(record, "shares", [b"", bytes(32)])).shares == (b"", bytes(32))
    with pytest.raises(DecodeError):
        messages.Shares.decode(with_list(record, "shares", [bytes(length)]))


@pytest.mark.parametrize("kind", [messages.ConsistencyRequest, messages.Input])
def test_more_members_than_a_cohort_may_have_are_refused(kind: Any) -> None:
    name = "rejected" if kind is messages.ConsistencyRequest else "disputed"
    record = replace(example(kind), **{name: tuple(range(MAX_COHORT))})
    assert kind.decode(record.encode()) == record
    with pytest.raises(ValueError, match="limit"):
        replace(record, **{name: tuple(range(MAX_COHORT + 1))}).encode()


LIMITED = [(kind, name, codec) for kind in MESSAGES for name, codec in kind.FIELDS if isinstance(codec, ListOf | Blob)]


@pytest.mark.parametrize(("kind", "name", "codec"), LIMITED, ids=[f"{kind.__name__}.{name}" for kind, name, _ in LIMITED])
def test_a_claim_over_the_limit_of_a_field_is_refused_before_anything_is_read(kind: Any, name: str, codec: Any) -> None:
    if codec.limit == (1 << 16) - 1:
        return  # the count itself cannot say more
    names = [field for field, _ in kind.FIELDS]
    before = bytearray(example(kind).encode()[:5])
    for field, other in kind.FIELDS[: names.index(name)]:
        other.write(getattr(example(kind), field), before)
    width = 2 if isinstance(codec, ListOf) else 4
    with pytest.raises(DecodeError, match="over the limit"):
        kind.decode(bytes(before) + (codec.limit + 1).to_bytes(width, "big") + bytes(64))


def test_an_agreement_is_what_the_unmask_request_holds_without_its_certificate() -> None:
    request = example(messages.UnmaskRequest)
    agreed = request.agreement()
    assert (agreed.context, agreed.accepted, agreed.rejected) == (request.context, request.accepted, request.rejected)


def test_secret_fields_of_states_are_not_in_their_text() -> None:
    hidden = {"seed", "mask_key", "box_key", "open_key", "seed_share", "key_share"}
    for kind in (*STATES, dealing.HeldShares, seat.KeptEdge, client_keys.OpenEdge):
        shown = {field.name for field in fields(kind) if field.repr}
        assert not shown & hidden, kind
