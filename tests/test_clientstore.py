"""A client's store under crashes, roll-backs, copies and edits: a spend is never forgotten, and never made twice for one release."""

import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fedsec.clientstore import store as module
from fedsec.clientstore.inspect import read_ledger
from fedsec.clientstore.store import FITTED, TRAINED, Answered, Charged, ClientStore, RoundQuestion, adopt_moved_store
from fedsec.errors import LocalProtocolError, PeerError, PrivacyBudgetExceeded, StorageError
from fedsec.privacy.ledger import Spend

SPEND = Spend(mechanism="dp-sgd", noise_multiplier=2.0, sample_rate=0.25, steps=3, clip_norm=1.0)
NOW = datetime(2026, 11, 23, tzinfo=UTC)
KEY = bytes(range(32))


def question(server_round, run_id="r", request="q", terms="t"):
    return RoundQuestion(run_id=run_id, server_round=server_round, attempt=1, request_hash=request, model_hash="m", terms=terms)


def opened(folder, *, durable=True, client_id="alice"):
    return ClientStore.open(folder, client_id=client_id, durable=durable)


def begin(store, server_round, *, cap=100.0, spend=SPEND, **kwargs):
    return store.begin_round(
        question(server_round, **kwargs),
        spend=spend,
        round_key=KEY,
        epsilon_cap=cap,
        delta=1e-3,
        dataset_fingerprint="f",
        policy_digest="p",
        now=NOW,
    )


def run_rounds(folder, count, **kwargs):
    with opened(folder, **kwargs) as store:
        for server_round in range(len(store.entries()) + 1, len(store.entries()) + count + 1):
            begin(store, server_round)
            store.finish_round(question(server_round), b"answer %d" % server_round)


def test_a_round_is_charged_once_answered_once_and_repeated_for_nothing(tmp_path):
    with opened(tmp_path / "s") as store:
        assert begin(store, 1) == Charged(round_key=KEY)
        store.finish_round(question(1), b"update")
    with opened(tmp_path / "s") as store:
        assert begin(store, 1) == Answered(answer=b"update")
        assert len(store.entries()) == 1


def test_a_crash_between_charge_and_answer_gives_the_same_key_again(tmp_path):
    with opened(tmp_path / "s") as store:
        begin(store, 1)
    with opened(tmp_path / "s") as store:
        again = store.begin_round(
            question(1),
            spend=SPEND,
            round_key=bytes(32),
            epsilon_cap=100.0,
            delta=1e-3,
            dataset_fingerprint="f",
            policy_digest="p",
            now=NOW,
        )
        assert again == Charged(round_key=KEY)
        assert len(store.entries()) == 1


def test_another_request_for_a_charged_round_is_refused(tmp_path):
    with opened(tmp_path / "s") as store:
        begin(store, 1)
        with pytest.raises(PeerError, match="another request"):
            begin(store, 1, request="other")


def test_answers_are_kept_for_two_rounds_and_then_refused_rather_than_made_anew(tmp_path):
    run_rounds(tmp_path / "s", 3)
    with opened(tmp_path / "s") as store:
        assert isinstance(begin(store, 3), Answered)
        assert isinstance(begin(store, 2), Answered)
        with pytest.raises(PeerError, match="no longer"):
            begin(store, 1)


def test_a_spend_over_the_cap_is_refused_and_leaves_no_trace(tmp_path):
    with opened(tmp_path / "s") as store:
        with pytest.raises(PrivacyBudgetExceeded):
            begin(store, 1, cap=0.01)
        assert store.entries() == ()
    assert read_ledger(tmp_path / "s") == ()


def test_finishing_what_was_not_begun_or_is_finished_is_our_bug_and_says_so(tmp_path):
    with opened(tmp_path / "s") as store:
        with pytest.raises(LocalProtocolError):
            store.finish_round(question(1), b"x")
        begin(store, 1)
        store.finish_round(question(1), b"x")
        with pytest.raises(LocalProtocolError):
            store.finish_round(question(1), b"y")
        assert begin(store, 1) == Answered(answer=b"x")


def test_personal_parameters_are_kept_with_the_answer_or_not_at_all(tmp_path):
    with opened(tmp_path / "s") as store:
        begin(store, 1)
        store.finish_round(question(1), b"x", personal=b"p1")
        begin(store, 2)
        with pytest.raises(LocalProtocolError):
            store.finish_round(question(2, request="other"), b"x", personal=b"p2")
        assert store.personal("r", TRAINED) == b"p1"
        store.set_fitted("r", b"p3")
        assert store.personal("r", FITTED) == b"p3"
        assert store.personal("r", TRAINED) == b"p1"
        assert store.personal("other", FITTED) is None


def test_a_run_keeps_its_terms_and_takes_no_rounds_after_its_parameters_were_fitted(tmp_path):
    with opened(tmp_path / "s") as store:
        with pytest.raises(PeerError, match="no part"):
            store.set_fitted("r", b"p")
        begin(store, 1)
        store.finish_round(question(1), b"x")
        with pytest.raises(PeerError, match="not the one this run began with"):
            begin(store, 2, terms="others")
        store.set_fitted("r", b"p")
        with pytest.raises(PeerError, match="last release"):
            begin(store, 2)
        assert begin(store, 1) == Answered(answer=b"x")
        assert len(store.entries()) == 1


def test_answers_of_old_runs_are_dropped_so_that_run_ids_cannot_fill_the_disk(tmp_path):
    with opened(tmp_path / "s") as store:
        for number in range(6):
            begin(store, 1, run_id=f"run-{number}")
            store.finish_round(question(1, run_id=f"run-{number}"), b"x")
        with pytest.raises(PeerError, match="no longer"):
            begin(store, 1, run_id="run-0")
        assert begin(store, 1, run_id="run-5") == Answered(answer=b"x")


def test_a_store_is_open_in_one_process_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOCK_TIMEOUT_S", 0.0)
    with opened(tmp_path / "s"), pytest.raises(StorageError, match="another process"):
        opened(tmp_path / "s")


def test_another_clients_store_is_refused(tmp_path):
    run_rounds(tmp_path / "s", 1)
    with pytest.raises(StorageError, match="another client"):
        opened(tmp_path / "s", client_id="bob")


def test_a_store_restored_from_an_older_copy_is_refused(tmp_path):
    run_rounds(tmp_path / "s", 2)
    old = (tmp_path / "s" / "store.sqlite").read_bytes()
    run_rounds(tmp_path / "s", 1)
    (tmp_path / "s" / "store.sqlite").write_bytes(old)
    with pytest.raises(StorageError, match="rolled back"):
        opened(tmp_path / "s")


def test_a_copied_store_is_refused_where_it_could_spend_twice_and_adopted_on_purpose(tmp_path):
    run_rounds(tmp_path / "s", 2)
    shutil.copytree(tmp_path / "s", tmp_path / "copy")
    with pytest.raises(StorageError, match="copy"):
        opened(tmp_path / "copy")
    adopt_moved_store(tmp_path / "copy", client_id="alice")
    with opened(tmp_path / "copy") as store:
        assert len(store.entries()) == 2


def test_a_renamed_folder_is_still_the_same_store(tmp_path):
    run_rounds(tmp_path / "s", 1)
    (tmp_path / "s").rename(tmp_path / "t")
    with opened(tmp_path / "t") as store:
        assert len(store.entries()) == 1


def edit(folder, sql, *values):
    with sqlite3.connect(folder / "store.sqlite") as connection:
        connection.execute(sql, values)


def weaken(folder):
    with sqlite3.connect(folder / "store.sqlite") as connection:
        (entry,) = connection.execute("SELECT entry FROM ledger WHERE idx = 0").fetchone()
        connection.execute(
            "UPDATE ledger SET entry = ? WHERE idx = 0", (bytes(entry).replace(b'"noise_multiplier":2.0', b'"noise_multiplier":9.0'),)
        )


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (weaken, "altered"),
        (lambda f: edit(f, "DELETE FROM ledger WHERE idx = 0"), "altered"),
        (lambda f: edit(f, "DELETE FROM ledger WHERE idx = 1"), "altered"),
        (lambda f: edit(f, "DELETE FROM ledger WHERE idx = 2"), "does not fit"),
        (lambda f: edit(f, "DELETE FROM ledger"), "does not fit"),
        (lambda f: edit(f, "UPDATE ledger SET entry = ? WHERE idx = 1", b"{}"), "damaged"),
        (lambda f: edit(f, "UPDATE meta SET value = '0' WHERE key = 'counter'"), "rolled back"),
        (lambda f: edit(f, "UPDATE meta SET value = 'x' WHERE key = 'store_id'"), "altered"),
        (lambda f: edit(f, "DELETE FROM meta WHERE key = 'client_id'"), "lacks"),
        (lambda f: (f / "anchor.json").unlink(), "missing"),
        (lambda f: (f / "anchor.json").write_text("{}"), "damaged"),
        (lambda f: (f / "anchor.json").write_text((f / "anchor.json").read_text().replace('"counter": 6', '"counter": 3')), "does not fit"),
        (lambda f: (f / "store.sqlite").unlink(), "forgotten"),
        (lambda f: (f / "store.sqlite").write_bytes(b"not a database at all" * 100), "cannot be used"),
        (
            lambda f: (f / "store.sqlite").write_bytes((f / "store.sqlite").read_bytes()[:5000]),
            "cannot be used|failed|damaged|lacks|does not fit",
        ),
    ],
)
def test_a_store_that_was_touched_is_refused(tmp_path, tamper, message):
    folder = tmp_path / "s"
    run_rounds(folder, 3)
    tamper(folder)
    with pytest.raises(StorageError, match=message):
        opened(folder, durable=False)


def test_a_crash_between_commit_and_anchor_is_mended(tmp_path, monkeypatch):
    run_rounds(tmp_path / "s", 1)

    def crash(*_args, **_kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, opened(tmp_path / "s") as store:
        patch.setattr(module, "write_anchor", crash)
        with pytest.raises(KeyboardInterrupt):
            begin(store, 2)
    with opened(tmp_path / "s") as store:
        assert len(store.entries()) == 2
        assert isinstance(begin(store, 2), Charged)


def test_after_an_anchor_that_could_not_be_written_nothing_more_is_committed_until_the_store_is_opened_again(tmp_path, monkeypatch):
    run_rounds(tmp_path / "s", 1)

    def full(*_args, **_kwargs):
        raise StorageError("no space left")

    with opened(tmp_path / "s") as store:
        with monkeypatch.context() as patch:
            patch.setattr(module, "write_anchor", full)
            with pytest.raises(StorageError, match="no space left"):
                begin(store, 2)
        with pytest.raises(StorageError, match="could not be written"):
            begin(store, 3)
    with opened(tmp_path / "s") as store:
        assert begin(store, 2) == Charged(round_key=KEY)
        store.finish_round(question(2), b"x")


def test_the_key_of_a_round_that_was_given_up_is_erased_and_the_round_is_not_answered_later(tmp_path):
    with opened(tmp_path / "s") as store:
        begin(store, 1)
        for server_round in (2, 3):
            begin(store, server_round)
            store.finish_round(question(server_round), b"x")
        with pytest.raises(PeerError, match="no longer"):
            begin(store, 1)


def test_a_failing_disk_charges_nothing_and_says_so(tmp_path):
    with opened(tmp_path / "s") as store:
        store._connection.execute("PRAGMA query_only = ON")
        with pytest.raises(StorageError, match="nothing was sent"):
            begin(store, 1)
        assert store.entries() == ()


def test_round_keys_of_the_wrong_length_are_our_bug(tmp_path):
    with opened(tmp_path / "s") as store, pytest.raises(LocalProtocolError):
        store.begin_round(
            question(1), spend=SPEND, round_key=b"short", epsilon_cap=1, delta=1e-3, dataset_fingerprint="f", policy_digest="p", now=NOW
        )


def test_secrets_stay_out_of_repr():
    assert repr(Charged(round_key=KEY)) == "Charged()"
    assert repr(Answered(answer=b"update")) == "Answered()"


WORKER = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import test_clientstore as t
folder = Path({folder!r})
with t.opened(folder, durable=False) as store:
    start = len(store.entries())
for server_round in range(max(1, start), 10_000):
    with t.opened(folder, durable=False) as store:
        ticket = t.begin(store, server_round, cap=float("inf"))
        if isinstance(ticket, t.Charged):
            store.finish_round(t.question(server_round), b"answer %d" % server_round)
"""


def test_sigkill_at_random_moments_never_forgets_a_charge_nor_makes_one_twice(tmp_path):
    folder = tmp_path / "s"
    moments = random.Random(7)
    code = WORKER.format(tests=str(Path(__file__).parent), folder=str(folder))
    for _ in range(8):
        process = subprocess.Popen([sys.executable, "-c", code])
        before = time.monotonic()
        while not (folder / "anchor.json").exists() and time.monotonic() - before < 20:
            time.sleep(0.01)
        time.sleep(0.6 + moments.random())
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.returncode == -signal.SIGKILL
        with opened(folder, durable=False) as store:
            rounds = [entry.server_round for entry in store.entries()]
            assert rounds == list(range(1, len(rounds) + 1))
    assert len(rounds) > 50
