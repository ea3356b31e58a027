"""The ledger's rules: a chain that shows every edit, and a spend over the cap refused with the numbers before any training."""

import dataclasses
import math
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsec.codec import canonical_json, decode_canonical_json
from fedsec.errors import DecodeError, PrivacyBudgetExceeded, StorageError
from fedsec.privacy import accounting, ledger
from fedsec.privacy.accounting import Segment, epsilon_filter, epsilon_prv
from fedsec.privacy.ledger import LedgerEntry, Spend, authorise, genesis_hash, next_entry, segments_of, verify_chain

SPEND = Spend(mechanism="dp-sgd", noise_multiplier=2.0, sample_rate=0.25, steps=3, clip_norm=1.0)
UNPROTECTED = Spend(mechanism="none", noise_multiplier=0.0, sample_rate=0.25, steps=3, clip_norm=0.0)
NOW = datetime(2026, 11, 23, tzinfo=UTC)


def append(entries, spend=SPEND, *, store_id="s", now=NOW):
    return next_entry(
        entries,
        spend,
        store_id=store_id,
        run_id="r",
        server_round=len(entries) + 1,
        attempt=1,
        dataset_fingerprint="f",
        policy_digest="p",
        model_hash="m",
        now=now,
    )


def chain(count, spend=SPEND, **kwargs):
    entries = []
    for _ in range(count):
        entries.append(append(entries, spend, **kwargs))
    return entries


def total(steps):
    return epsilon_prv([Segment(noise_multiplier=2.0, sample_rate=0.25, steps=steps)], 1e-3)


def test_entries_survive_their_encoding_and_the_chain_verifies():
    entries = [LedgerEntry.decode(entry.encode()) for entry in chain(4)]
    assert entries == chain(4)
    assert verify_chain(entries, store_id="s") == (genesis_hash("s"), *(entry.entry_hash() for entry in entries))
    assert segments_of(entries) == (Segment(noise_multiplier=2.0, sample_rate=0.25, steps=12),)


FIELDS = [field.name for field in dataclasses.fields(LedgerEntry)]


@pytest.mark.parametrize("name", FIELDS)
def test_an_edit_of_any_field_before_the_last_entry_breaks_the_chain(name):
    entries = chain(3)
    old = getattr(entries[1], name)
    new = "none" if name == "mechanism" else old + 1 if isinstance(old, int | float) else old[::-1] + "x"
    entries[1] = dataclasses.replace(entries[1], **{name: new})
    with pytest.raises(StorageError, match="altered at entry"):
        verify_chain(entries, store_id="s")


@given(st.permutations(range(4)), st.integers(0, 3))
def test_moved_removed_and_repeated_entries_break_the_chain(order, repeated):
    entries = chain(4)
    shuffled = [entries[position] for position in order]
    if shuffled != entries:
        with pytest.raises(StorageError):
            verify_chain(shuffled, store_id="s")
    with pytest.raises(StorageError):
        verify_chain([*entries, entries[repeated]], store_id="s")
    if repeated < 3:
        with pytest.raises(StorageError):
            verify_chain(entries[:repeated] + entries[repeated + 1 :], store_id="s")


def test_another_stores_entries_do_not_fit():
    with pytest.raises(StorageError):
        verify_chain(chain(1, store_id="other"), store_id="s")


def change(**changes):
    raw = decode_canonical_json(chain(1)[0].encode())
    return canonical_json({**raw, **changes})


def without(name):
    raw = decode_canonical_json(chain(1)[0].encode())
    del raw[name]
    return canonical_json(raw)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        chain(1)[0].encode() + b" ",
        chain(1)[0].encode()[:-1],
        change(extra=1),
        change(index=-1),
        change(index=True),
        change(index="0"),
        change(noise_multiplier=2),
        change(noise_multiplier=-2.0),
        change(noise_multiplier=0.0),
        change(sample_rate=0.0),
        change(sample_rate=2.0),
        change(steps=0),
        change(steps=-3),
        change(steps=1.5),
        change(clip_norm=0.0),
        change(mechanism="gdp"),
        change(mechanism="none"),
        change(neighboring_relation="replace-one"),
        *(without(name) for name in FIELDS),
    ],
)
def test_bytes_that_are_no_sound_entry_are_refused(data):
    with pytest.raises(DecodeError):
        LedgerEntry.decode(data)


def test_times_are_aware_and_stored_in_utc():
    with pytest.raises(ValueError, match="aware"):
        append([], now=NOW.replace(tzinfo=None))
    east = append([], now=datetime(2026, 11, 23, 2, tzinfo=timezone(timedelta(hours=2))))
    assert east == append([], now=NOW)


@pytest.mark.parametrize(
    "changes",
    [
        {"mechanism": "gdp"},
        {"noise_multiplier": 0.0},
        {"noise_multiplier": math.nan},
        {"noise_multiplier": math.inf},
        {"clip_norm": 0.0},
        {"clip_norm": math.inf},
        {"sample_rate": 0.0},
        {"steps": 0},
        {"mechanism": "none"},
    ],
)
def test_an_impossible_spend_is_refused(changes):
    with pytest.raises(ValueError):
        dataclasses.replace(SPEND, **changes)


def test_a_spend_within_the_cap_passes_and_the_next_is_refused_with_the_numbers():
    cap = total(9)
    authorise(chain(2), SPEND, epsilon_cap=cap, delta=1e-3)
    with pytest.raises(PrivacyBudgetExceeded) as caught:
        authorise(chain(3), SPEND, epsilon_cap=cap, delta=1e-3)
    assert (caught.value.spent, caught.value.limit) == (total(12), cap)
    assert (caught.value.before, caught.value.delta) == (cap, 1e-3)


def test_the_cap_itself_may_be_reached_but_not_passed_by_a_hair():
    authorise(chain(1), SPEND, epsilon_cap=total(6), delta=1e-3)
    with pytest.raises(PrivacyBudgetExceeded):
        authorise(chain(1), SPEND, epsilon_cap=math.nextafter(total(6), 0), delta=1e-3)


def test_spends_with_different_noise_add_up():
    louder = dataclasses.replace(SPEND, noise_multiplier=1.0)
    together = epsilon_filter([SPEND.segment(), louder.segment()], 1e-3)
    assert together >= epsilon_prv([SPEND.segment(), louder.segment()], 1e-3)
    alone = epsilon_prv([louder.segment()], 1e-3)
    assert alone < together
    with pytest.raises(PrivacyBudgetExceeded) as caught:
        authorise(chain(1), louder, epsilon_cap=(alone + together) / 2, delta=1e-3)
    assert caught.value.spent == together


@pytest.mark.parametrize(("spent", "planned"), [([], UNPROTECTED), (chain(1), UNPROTECTED), (chain(1, UNPROTECTED), SPEND)])
def test_an_unprotected_release_never_mixes_with_a_finite_cap(spent, planned):
    with pytest.raises(PrivacyBudgetExceeded) as caught:
        authorise(spent, planned, epsilon_cap=1e9, delta=1e-3)
    assert caught.value.spent == math.inf
    authorise(spent, planned, epsilon_cap=math.inf, delta=1e-3)


@pytest.mark.parametrize("cap", [math.nan, -1.0, 0.0, -math.inf])
def test_a_cap_that_is_no_number_over_zero_allows_nothing(cap):
    with pytest.raises(PrivacyBudgetExceeded):
        authorise([], SPEND, epsilon_cap=cap, delta=1e-3)


def test_prv_is_not_run_where_a_cheaper_bound_already_allows_the_spend(monkeypatch):
    def fail(*_arguments):
        raise AssertionError("the slow accountant ran")

    monkeypatch.setattr(ledger, "epsilon_prv", fail)
    monkeypatch.setattr(accounting, "_opacus_prv", fail)
    authorise(chain(2), dataclasses.replace(SPEND, noise_multiplier=7.125), epsilon_cap=50.0, delta=1e-3)
