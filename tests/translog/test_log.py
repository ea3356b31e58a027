"""The log on disk under crashes, roll-backs and edits, and a server that shows two clients two histories."""

import json
import shutil
import sqlite3

import pytest

from fedsec.errors import LogProofError, StorageError
from fedsec.files import exclusive_lock
from fedsec.merkle import EMPTY_ROOT, leaf_hash, merkle_root
from fedsec.signing import Signer
from fedsec.translog import log as module
from fedsec.translog.entries import EntryKind, LogEntry
from fedsec.translog.head import KeptHead, verify_head
from fedsec.translog.log import DATABASE, HEAD, LOCK, TransparencyLog
from fedsec.translog.proof import verify_log_proof

SIGNER = Signer.generate()
NOW = 1_790_000_000


def opened(folder, *, signer=SIGNER, durable=False):
    return TransparencyLog.open(folder, signer, durable=durable)


def entry(number, text="round"):
    return LogEntry(EntryKind.ROUND, f"{text} {number}".encode())


def fill(folder, count, *, text="round"):
    with opened(folder) as log:
        for number in range(len(log), len(log) + count):
            assert log.append(entry(number, text)) == number


def believe(log, index, kept):
    """What a client does with a proof of the entry at ``index``."""
    data = log.prove(index, kept.size if kept else 0, NOW).encode()
    claimed = list(log.entries())[index]
    return verify_log_proof(data, log_public_key=SIGNER.public_key, kept=kept, entry=claimed.encode())


def edit(folder, statement, *arguments):
    connection = sqlite3.connect(folder / DATABASE)
    with connection:
        connection.execute(statement, arguments)
    connection.close()


def refused(folder, match, **kwargs):
    with pytest.raises(StorageError, match=match):
        opened(folder, **kwargs)


@pytest.fixture
def folder(tmp_path):
    """A log of six entries."""
    fill(tmp_path / "log", 6)
    return tmp_path / "log"


@pytest.mark.parametrize("durable", [True, False])
def test_entries_stay_in_order_over_openings(tmp_path, durable):
    for start in (0, 2, 4):
        with opened(tmp_path / "log", durable=durable) as log:
            assert list(log.entries()) == [entry(number) for number in range(start)]
            assert [log.append(entry(number)) for number in (start, start + 1)] == [start, start + 1]
            assert len(log) == start + 2


def test_a_head_is_signed_for_the_callers_time(folder):
    with opened(folder) as log:
        head = verify_head(log.head(NOW).encode(), SIGNER.public_key).head
    assert (head.size, head.timestamp_s) == (6, NOW)
    assert head.root == merkle_root([leaf_hash(entry(number).encode()) for number in range(6)])


def test_an_empty_log_has_a_head_too(tmp_path):
    for _ in range(2):
        with opened(tmp_path / "log") as log:
            assert verify_head(log.head(NOW).encode(), SIGNER.public_key).head.root == EMPTY_ROOT


def test_a_client_follows_a_growing_log(tmp_path):
    kept = None
    with opened(tmp_path / "log") as log:
        for number in range(9):
            log.append(entry(number))
            kept = believe(log, number, kept)
            assert kept.size == number + 1
        assert believe(log, 3, kept) == kept


def test_there_is_no_proof_of_what_is_not_there(folder):
    with opened(folder) as log:
        for index, since in ((6, 0), (-1, 0), (0, 7), (0, -1)):
            with pytest.raises(ValueError):
                log.prove(index, since, NOW)


def test_one_process_writes(folder, monkeypatch):
    monkeypatch.setattr(module, "LOCK_TIMEOUT_S", 0.0)
    with opened(folder):
        refused(folder, "another process")
    with exclusive_lock(folder / LOCK):
        refused(folder, "another process")
    with opened(folder):
        pass


def test_a_refused_log_is_not_left_locked(folder):
    refused(folder, "another key", signer=Signer.generate())
    with opened(folder) as log:
        assert len(log) == 6


def test_a_rolled_back_database_is_refused(tmp_path, folder):
    shutil.copy(folder / DATABASE, tmp_path / "old")
    fill(folder, 1)
    shutil.copy(tmp_path / "old", folder / DATABASE)
    refused(folder, "rolled back")


@pytest.mark.parametrize("gone", ["delete", "empty"])
def test_a_lost_database_is_refused(folder, gone):
    (folder / DATABASE).unlink()
    if gone == "empty":
        (folder / DATABASE).touch()
    refused(folder, "rolled back")


@pytest.mark.parametrize("index", [0, 3, 5])
def test_a_removed_entry_is_refused(folder, index):
    edit(folder, "DELETE FROM leaves WHERE idx = ?", index)
    refused(folder, "missing or altered" if index < 5 else "rolled back")


@pytest.mark.parametrize("index", [0, 3, 5])
def test_an_edited_entry_is_refused(folder, index):
    other = entry(index, "edited").encode()
    edit(folder, "UPDATE leaves SET entry = ? WHERE idx = ?", other, index)
    refused(folder, "altered")
    edit(folder, "UPDATE leaves SET leaf_hash = ? WHERE idx = ?", leaf_hash(other), index)
    refused(folder, "rewritten")


def test_swapped_and_strange_rows_are_refused(folder):
    edit(folder, "UPDATE leaves SET idx = 1 - idx - 10 WHERE idx < 2")
    edit(folder, "UPDATE leaves SET idx = idx + 10 WHERE idx < 0")
    refused(folder, "rewritten")


def test_a_row_that_is_no_entry_is_refused(folder):
    edit(folder, "INSERT INTO leaves VALUES (6, ?, ?)", b"noise", leaf_hash(b"noise"))
    refused(folder, "cannot be used")


def test_a_damaged_database_is_refused(folder):
    (folder / DATABASE).write_bytes(b"not a database" * 500)
    refused(folder, "cannot be used")


def test_a_truncated_database_is_refused(tmp_path):
    with opened(tmp_path / "log") as log:
        for _ in range(4):
            log.append(LogEntry(EntryKind.EVIDENCE, bytes(20_000)))
    path = tmp_path / "log" / DATABASE
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(StorageError):
        opened(tmp_path / "log")


def test_a_log_ahead_of_its_head_file_opens(tmp_path, folder):
    """A crash after the commit and before the head file."""
    shutil.copy(folder / HEAD, tmp_path / "old")
    fill(folder, 1)
    shutil.copy(tmp_path / "old", folder / HEAD)
    fill(folder, 1)
    assert json.loads((folder / HEAD).read_text())["size"] == 8


def test_a_log_without_its_head_file_is_refused(folder):
    (folder / HEAD).unlink()
    refused(folder, "is gone")


@pytest.mark.parametrize(
    "change",
    [{"size": -1}, {"size": 7}, {"size": 5}, {"size": "6"}, {"root": "00" * 32}, {"root": ""}, {"log_id": "00" * 32}, {"more": 1}],
)
def test_an_edited_head_file_is_refused(folder, change):
    head = json.loads((folder / HEAD).read_text()) | change
    (folder / HEAD).write_text(json.dumps(head, sort_keys=True, separators=(",", ":")))
    with pytest.raises(StorageError):
        opened(folder)


@pytest.mark.parametrize("content", [b"", b"{}", b"null", b"\xff", b"[" * 100_000])
def test_a_damaged_head_file_is_refused(folder, content):
    (folder / HEAD).write_bytes(content)
    refused(folder, "cannot be read")


def test_a_failed_append_adds_nothing_and_a_failed_head_file_is_told(folder, monkeypatch):
    with opened(folder) as log:
        log._connection.execute("PRAGMA query_only = ON")
        with pytest.raises(StorageError):
            log.append(entry(6))
        assert len(log) == 6
        log._connection.execute("PRAGMA query_only = OFF")

        def full(*arguments, **kwargs):
            raise StorageError("disk full")

        with monkeypatch.context() as patch:
            patch.setattr(module, "atomic_write_bytes", full)
            with pytest.raises(StorageError):
                log.append(entry(6))
        assert len(log) == 7
    with opened(folder) as log:
        assert list(log.entries())[6] == entry(6)


def test_an_entry_changed_under_the_open_log_is_not_shown(folder):
    with opened(folder) as log:
        edit(folder, "UPDATE leaves SET entry = ? WHERE idx = 2", entry(2, "edited").encode())
        with pytest.raises(StorageError, match="entry 2 was changed"):
            list(log.entries())


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    refused(tmp_path / "file" / "log", "cannot make")


def test_a_split_view_is_refused_by_whoever_saw_the_other_side(tmp_path):
    """Two logs under one key share four entries; then each tells its own story."""
    fill(tmp_path / "a", 4)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    fill(tmp_path / "a", 2, text="story a")
    fill(tmp_path / "b", 5, text="story b")
    with opened(tmp_path / "a") as ours, opened(tmp_path / "b") as theirs:
        early = KeptHead(size=4, root=merkle_root([leaf_hash(entry(number).encode()) for number in range(4)]))
        saw_a, saw_b = believe(ours, 5, early), believe(theirs, 8, early)
        with pytest.raises(LogProofError):
            believe(theirs, 2, saw_a)
        rolled_back = ours.prove(2, 0, NOW)
        with pytest.raises(LogProofError):
            verify_log_proof(rolled_back.encode(), log_public_key=SIGNER.public_key, kept=saw_b, entry=entry(2).encode())
        for number in range(6, 9):
            ours.append(entry(number, "story a"))
        assert len(ours) == len(theirs) == 9
        with pytest.raises(LogProofError, match="two histories"):
            believe(ours, 2, saw_b)
        ours.append(entry(9, "story b"))
        with pytest.raises(LogProofError):
            believe(ours, 2, saw_b)


def test_a_log_rolled_back_whole_is_refused_by_its_clients(tmp_path, folder):
    """Nothing on the server's own disk shows it (the module says so); what the clients kept does."""
    shutil.copytree(folder, tmp_path / "copy")
    fill(folder, 3)
    with opened(folder) as log:
        kept = believe(log, 8, None)
    with opened(tmp_path / "copy") as log:
        with pytest.raises(ValueError):
            log.prove(0, kept.size, NOW)
        with pytest.raises(LogProofError):
            verify_log_proof(log.prove(0, 0, NOW).encode(), log_public_key=SIGNER.public_key, kept=kept, entry=entry(0).encode())
