"""Entries of the log: one encoding each, and no other bytes are read."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.errors import DecodeError
from fedsec.translog.entries import MAX_BODY_BYTES, MAX_ENTRY_BYTES, EntryKind, LogEntry

ENTRIES = st.builds(LogEntry, st.sampled_from(EntryKind), st.binary(max_size=200))


def test_the_encoding_is_this_one():
    known = {
        EntryKind.ROSTER: 1,
        EntryKind.ROUND: 2,
        EntryKind.EVIDENCE: 3,
        EntryKind.RELEASE: 4,
        EntryKind.CERTIFICATE: 5,
        EntryKind.REVOCATION: 6,
    }
    assert {kind: kind.value for kind in EntryKind} == known
    assert LogEntry(EntryKind.EVIDENCE, b"\x00\xff").encode() == bytes.fromhex("46534c45 01 03 00000002 00ff")


@settings(deadline=None)
@given(ENTRIES)
def test_an_entry_comes_back(entry):
    assert LogEntry.decode(entry.encode()) == entry


@settings(deadline=None)
@given(ENTRIES, ENTRIES)
def test_different_entries_have_different_bytes(entry, other):
    assert (entry == other) == (entry.encode() == other.encode())


@settings(deadline=None)
@given(ENTRIES, st.data())
def test_bytes_that_are_read_are_the_encoding_of_what_was_read(entry, data):
    changed = bytearray(entry.encode())
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        assert LogEntry.decode(bytes(changed)).encode() == changed
    except DecodeError:
        pass


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_noise_is_no_entry(data):
    with pytest.raises(DecodeError):
        LogEntry.decode(data)


@pytest.mark.parametrize(
    "data",
    ["", "46", "46534c450102000000", "46534c45010200000001", "46534c4501020000000000", "46534c450102ffffffff00", "46534c45010200000000000000",
     "46534c45020200000000", "66534c45010200000000", "46534c45010000000000", "46534c45010700000000", "46534c4501ff00000000"],
)  # fmt: skip
def test_hostile_lengths_versions_and_kinds_are_refused(data):
    with pytest.raises(DecodeError):
        LogEntry.decode(bytes.fromhex(data))


def test_the_largest_body_is_taken_and_one_byte_more_is_not():
    largest = LogEntry(EntryKind.RELEASE, bytes(MAX_BODY_BYTES)).encode()
    assert len(largest) == MAX_ENTRY_BYTES
    assert len(LogEntry.decode(largest).body) == MAX_BODY_BYTES
    with pytest.raises(ValueError):
        LogEntry(EntryKind.RELEASE, bytes(MAX_BODY_BYTES + 1))
    with pytest.raises(DecodeError):
        LogEntry.decode(largest[:6] + (MAX_BODY_BYTES + 1).to_bytes(4, "big") + largest[10:] + b"\0")
