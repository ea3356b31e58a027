"""One client's store: charge before training, store before sending, the same answer to the same question.

1. ``begin_round`` commits, in one transaction, the ledger entry, the hash of the request and a secret round key; then the client
   trains. ``finish_round`` commits the update (and personal parameters trained with it) and erases the key; then the client sends.
2. Asked again for the same round with the same request: the stored answer, or, after a crash while training, the same round key. Either
   way there is one ledger entry and one release (docs/decisions/0003).
3. Asked for the same round with another request, or for one whose answer was dropped since: refused.
4. A run keeps the terms (plan, sigma) of its first round, and takes no more rounds once its personal parameters were fitted to the
   records: those are not noised, so they must never reach a gradient, and training reads only what training wrote.
5. A store is open in one process at a time; opening checks the whole chain and the anchor (``fedsec.clientstore.anchor``).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from fedsec.clientstore.anchor import Anchor, check_anchor, read_anchor, write_anchor
from fedsec.clientstore.protocol import ProtocolRecords, database_errors
from fedsec.clientstore.schema import SCHEMA_VERSION, connect
from fedsec.errors import DecodeError, LocalProtocolError, PeerError, StorageError
from fedsec.files import exclusive_lock
from fedsec.privacy.accounting import Segment
from fedsec.privacy.ledger import LedgerEntry, Spend, authorise, genesis_hash, next_entry, segments_of, verify_chain

DATABASE = "store.sqlite"
ANCHOR = "anchor.json"
LOCK = "store.lock"
LOCK_TIMEOUT_S = 10.0
KEPT_ANSWERS = 2
"""Answers kept per run: the last one may be asked for again, the one before it while a server resumes."""
ROUND_KEY_BYTES = 32
KEPT_RUNS = 4
"""Runs whose answers are kept, the newest ones: a server could fill the disk with run ids otherwise."""
TRAINED, FITTED = "trained", "fitted"
"""Personal parameters trained inside the noised gradient, and those fitted to the records after the last release."""


@dataclass(frozen=True, kw_only=True)
class RoundQuestion:
    """Which round is asked for, and by which request.

    Attributes:
        run_id: fedsec's id of the run.
        server_round: from 1.
        attempt: from 1.
        request_hash: hex digest of everything that shapes the answer.
        model_hash: hex digest of the model that came along.
        terms: hex digest of what must stay the same over a run: plan and sigma.
    """

    run_id: str
    server_round: int
    attempt: int
    request_hash: str
    model_hash: str
    terms: str


@dataclass(frozen=True, kw_only=True)
class Answered:
    """The round was answered before: send these bytes again."""

    answer: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Charged:
    """The round is paid for: train with this key, then finish the round."""

    round_key: bytes = field(repr=False)


class ClientStore:
    """A client's store, open and checked. Use as a context manager; see :meth:`open`."""

    def __init__(self, folder: Path, connection: sqlite3.Connection, cleanup: contextlib.ExitStack, *, durable: bool) -> None:
        self._folder = folder
        self._connection = connection
        self._cleanup = cleanup
        self._durable = durable
        self._entries: list[LedgerEntry] = []
        self._behind = False

    @classmethod
    def open(cls, folder: Path, *, client_id: str, durable: bool) -> Self:
        """Open or create the store in ``folder``.

        Args:
            folder: made if absent, readable by its owner only.
            client_id: whose store it is; another client's is refused.
            durable: survive a power cut, and refuse a copied database; off in simulations, where a killed process is all that can happen.

        Raises:
            StorageError: damaged, altered, rolled back, copied, another client's, or open elsewhere.
        """
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot make {folder}: {error.strerror or error}") from error
        with contextlib.ExitStack() as stack:
            stack.enter_context(exclusive_lock(folder / LOCK, timeout_s=LOCK_TIMEOUT_S, what="client store"))
            if (folder / ANCHOR).exists() and not (folder / DATABASE).exists():
                raise StorageError(f"{folder / DATABASE} is gone, but its anchor is here: spends would be forgotten; restore it")
            connection = connect(folder / DATABASE, durable=durable)
            stack.callback(connection.close)
            os.chmod(folder / DATABASE, 0o600)  # noqa: PTH101 - sqlite made the file
            store = cls(folder, connection, contextlib.ExitStack(), durable=durable)
            with database_errors(folder):
                store._check_or_found(client_id)
            store._cleanup = stack.pop_all()
        return store

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._cleanup.close()

    def begin_round(
        self,
        question: RoundQuestion,
        *,
        spend: Spend,
        round_key: bytes,
        epsilon_cap: float,
        delta: float,
        dataset_fingerprint: str,
        policy_digest: str,
        now: datetime,
    ) -> Answered | Charged:
        """Charge a round, or find that it was charged before.

        Raises:
            PrivacyBudgetExceeded: it would pass the cap; nothing was written.
            PeerError: the round was asked for before, by another request, or its answer is kept no longer.
            StorageError: the commit failed; nothing was charged, so nothing may be trained.
        """
        if len(round_key) != ROUND_KEY_BYTES:
            raise LocalProtocolError(f"a round key has {ROUND_KEY_BYTES} bytes")
        with database_errors(self._folder):
            known = self._connection.execute(
                "SELECT request_hash, round_key, answer FROM rounds WHERE run_id = ? AND server_round = ?",
                (question.run_id, question.server_round),
            ).fetchone()
            if known is not None:
                return _known_round(question, *known)
            self._check_run(question)
            authorise(self._entries, spend, epsilon_cap=epsilon_cap, delta=delta)
            entry = next_entry(
                self._entries,
                spend,
                store_id=self._meta("store_id"),
                run_id=question.run_id,
                server_round=question.server_round,
                attempt=question.attempt,
                dataset_fingerprint=dataset_fingerprint,
                policy_digest=policy_digest,
                model_hash=question.model_hash,
                now=now,
            )
            with self._commit(entry.entry_hash()) as connection:
                connection.execute("INSERT INTO ledger VALUES (?, ?)", (entry.index, entry.encode()))
                connection.execute("INSERT OR IGNORE INTO runs VALUES (?, ?, 0)", (question.run_id, question.terms))
                connection.execute(
                    "INSERT INTO rounds VALUES (?, ?, ?, ?, NULL)",
                    (question.run_id, question.server_round, question.request_hash, round_key),
                )
            self._entries.append(entry)
        return Charged(round_key=round_key)

    @property
    def protocol(self) -> ProtocolRecords:
        """What is kept of rounds of secure aggregation."""
        return ProtocolRecords(self._connection, lambda: self._commit(self._head()), self._folder)

    def finish_round(
        self,
        question: RoundQuestion,
        answer: bytes,
        *,
        personal: bytes | None = None,
        also: Callable[[sqlite3.Connection], None] | None = None,
    ) -> None:
        """Store the answer, and the personal parameters trained with it, and erase the round key; only then may it be sent.

        Args:
            question: of the round that was begun.
            answer: to send, now and when asked again.
            personal: parameters trained with it.
            also: what else belongs into the same commit.

        Raises:
            LocalProtocolError: the round was not begun, or is finished.
            StorageError: the commit failed; nothing may be sent.
        """
        with database_errors(self._folder), self._commit(self._head()) as connection:
            changed = connection.execute(
                "UPDATE rounds SET answer = ?, round_key = NULL WHERE run_id = ? AND server_round = ? AND request_hash = ? AND answer IS NULL"
                " AND round_key IS NOT NULL",
                (answer, question.run_id, question.server_round, question.request_hash),
            ).rowcount
            if changed != 1:
                raise LocalProtocolError(f"round {question.server_round} of run {question.run_id} is not under way")
            if also is not None:
                also(connection)
            if personal is not None:
                connection.execute("INSERT OR REPLACE INTO personal VALUES (?, ?, ?)", (question.run_id, TRAINED, personal))
            connection.execute(  # also the key of a round that was begun and given up: it will not be answered any more
                "UPDATE rounds SET answer = NULL, round_key = NULL WHERE run_id = ? AND server_round <= ?",
                (question.run_id, question.server_round - KEPT_ANSWERS),
            )
            recent = tuple(dict.fromkeys(entry.run_id for entry in reversed(self._entries)))[:KEPT_RUNS]
            marks = ", ".join("?" * len(recent))
            connection.execute(f"UPDATE rounds SET answer = NULL, round_key = NULL WHERE run_id NOT IN ({marks})", recent)  # noqa: S608 - marks only

    def answer(self, run_id: str, server_round: int) -> bytes | None:
        """The stored answer of a round, if it is kept."""
        with database_errors(self._folder):
            row = self._connection.execute(
                "SELECT answer FROM rounds WHERE run_id = ? AND server_round = ?", (run_id, server_round)
            ).fetchone()
        return bytes(row[0]) if row is not None and row[0] is not None else None

    def personal(self, run_id: str, kind: str) -> bytes | None:
        """The personal parameters of one kind kept for a run, if any."""
        with database_errors(self._folder):
            row = self._connection.execute("SELECT arrays FROM personal WHERE run_id = ? AND kind = ?", (run_id, kind)).fetchone()
        return bytes(row[0]) if row is not None else None

    def set_fitted(self, run_id: str, arrays: bytes) -> None:
        """Keep the personal parameters fitted after a run's last release; the run takes no more rounds.

        Raises:
            PeerError: this client took no part in such a run.
        """
        with database_errors(self._folder), self._commit(self._head()) as connection:
            if connection.execute("UPDATE runs SET finished = 1 WHERE run_id = ?", (run_id,)).rowcount != 1:
                raise PeerError("server", "personalise", "this client took no part in such a run")
            connection.execute("INSERT OR REPLACE INTO personal VALUES (?, ?, ?)", (run_id, FITTED, arrays))

    def _check_run(self, question: RoundQuestion) -> None:
        row = self._connection.execute("SELECT terms, finished FROM runs WHERE run_id = ?", (question.run_id,)).fetchone()
        if row is None:
            return
        if row[0] != question.terms:
            raise PeerError("server", "train", "the plan or its noise is not the one this run began with")
        if row[1]:
            raise PeerError("server", "train", "this run had its last release")

    def entries(self) -> tuple[LedgerEntry, ...]:
        """The ledger."""
        return tuple(self._entries)

    def segments(self) -> tuple[Segment, ...]:
        """All spends, merged."""
        return segments_of(self._entries)

    def _head(self) -> str:
        return self._entries[-1].entry_hash() if self._entries else genesis_hash(self._meta("store_id"))

    def _meta(self, key: str) -> str:
        row = self._connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        if row is None:
            raise StorageError(f"{self._folder / DATABASE} lacks its {key}; restore it from a copy with its anchor")
        return str(row[0])

    @contextlib.contextmanager
    def _commit(self, head_after: str) -> Iterator[sqlite3.Connection]:
        """One transaction, the commit counter with it; then the anchor.

        Without its anchor written the store takes no further commit: the next opening can mend an anchor that is one behind, not two.
        """
        if self._behind:
            raise StorageError(f"the anchor in {self._folder} could not be written; mend that (disk full?) and open the store again")
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("UPDATE meta SET value = CAST(CAST(value AS INTEGER) + 1 AS TEXT) WHERE key = 'counter'")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        self._behind = True
        write_anchor(self._folder / ANCHOR, self._state(head_after), durable=self._durable)
        self._behind = False

    def _state(self, head: str) -> Anchor:
        inode = (self._folder / DATABASE).stat().st_ino
        return Anchor(store_id=self._meta("store_id"), counter=int(self._meta("counter")), head=head, inode=inode)

    def _check_or_found(self, client_id: str) -> None:
        if self._connection.execute("SELECT count(*) FROM meta").fetchone()[0] == 0:
            self._found(client_id)
        if self._meta("schema") != SCHEMA_VERSION:
            raise StorageError(f"{self._folder} was written by another version of fedsec")
        if self._meta("client_id") != client_id:
            raise StorageError(f"{self._folder} is the store of another client ({self._meta('client_id')[:80]})")
        self._entries = read_entries(self._connection)
        heads = verify_chain(self._entries, store_id=self._meta("store_id"))
        anchor_path = self._folder / ANCHOR
        anchor, current = read_anchor(anchor_path), self._state(heads[-1])
        check_anchor(anchor, current, heads, path=anchor_path, check_inode=self._durable)
        if anchor != current:
            write_anchor(anchor_path, current, durable=self._durable)

    def _found(self, client_id: str) -> None:
        rows = [("schema", SCHEMA_VERSION), ("store_id", secrets.token_hex(16)), ("client_id", client_id), ("counter", "0")]
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany("INSERT INTO meta VALUES (?, ?)", rows)
        self._connection.execute("COMMIT")


def _known_round(question: RoundQuestion, request_hash: str, round_key: bytes | None, answer: bytes | None) -> Answered | Charged:
    if request_hash != question.request_hash:
        raise PeerError(
            "server", "train", f"round {question.server_round} was asked for before, by another request; one charge pays for one answer"
        )
    if answer is not None:
        return Answered(answer=bytes(answer))
    if round_key is not None:
        return Charged(round_key=bytes(round_key))
    raise PeerError("server", "train", f"round {question.server_round} was answered, and its answer is kept no longer")


def read_entries(connection: sqlite3.Connection) -> list[LedgerEntry]:
    """All ledger entries in order, decoded but not yet checked as a chain.

    Raises:
        StorageError: an entry cannot be decoded.
    """
    try:
        return [LedgerEntry.decode(bytes(row[0])) for row in connection.execute("SELECT entry FROM ledger ORDER BY idx")]
    except DecodeError as error:
        raise StorageError(f"the ledger is damaged: {error}") from None


def adopt_moved_store(folder: Path, *, client_id: str) -> None:
    """Accept a store that was moved to another disk on purpose; the old one must be gone.

    Everything but the file's identity is checked as always.

    Raises:
        StorageError: as :meth:`ClientStore.open`.
    """
    with ClientStore.open(folder, client_id=client_id, durable=False):
        pass  # opening without the identity check rewrites the anchor with the new identity
