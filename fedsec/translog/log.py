"""The log on the server's disk: entries are appended and proven, never changed or removed.

1. An entry is in the log once its row is committed. Then the size and root go to ``head.json``, atomically.
2. Opening recomputes every leaf hash and the root at the size of ``head.json``: a log that lost or changed an entry is refused, as is
   one without its ``head.json``. After a crash between the two writes the log is ahead of it, which is no fault.
3. One process writes: the lock is held while the log is open.
4. The time of a head is the caller's.

Whoever puts back an older copy of the whole folder is not caught here, but by every client that kept a later head.
"""

from __future__ import annotations

import contextlib
import hmac
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from fedsec.codec import canonical_json, decode_canonical_json
from fedsec.errors import DecodeError, StorageError
from fedsec.files import atomic_write_bytes, exclusive_lock
from fedsec.jsonfields import INTEGER, TEXT, read_object
from fedsec.merkle import consistency_proof, inclusion_proof, leaf_hash, merkle_root
from fedsec.signing import Signer
from fedsec.translog.entries import LogEntry
from fedsec.translog.head import SignedHead, log_id, sign_head
from fedsec.translog.proof import LogProof

DATABASE = "log.sqlite"
HEAD = "head.json"
LOCK = "log.lock"
LOCK_TIMEOUT_S = 10.0

_TABLE = "CREATE TABLE IF NOT EXISTS leaves (idx INTEGER PRIMARY KEY, entry BLOB NOT NULL, leaf_hash BLOB NOT NULL) STRICT"
_HEAD_KEYS = {"log_id": TEXT, "root": TEXT, "size": INTEGER}


class TransparencyLog:
    """A log, open and checked. Use as a context manager; see :meth:`open`."""

    def __init__(self, folder: Path, connection: sqlite3.Connection, signer: Signer, *, durable: bool) -> None:
        self._folder = folder
        self._connection = connection
        self._signer = signer
        self._durable = durable
        self._cleanup = contextlib.ExitStack()
        self._leaves: list[bytes] = []

    @classmethod
    def open(cls, folder: Path, signer: Signer, *, durable: bool) -> Self:
        """Open or create the log in ``folder``.

        Args:
            folder: made if absent, readable by its owner only.
            signer: the log's own key, which serves nothing else.
            durable: survive a power cut; off in simulations, where a killed process is all that can happen.

        Raises:
            StorageError: damaged, altered, rolled back, another key's, or open elsewhere.
        """
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot make {folder}: {error.strerror or error}") from error
        with contextlib.ExitStack() as stack:
            stack.enter_context(exclusive_lock(folder / LOCK, timeout_s=LOCK_TIMEOUT_S, what="transparency log"))
            with _database_errors(folder):
                connection = sqlite3.connect(folder / DATABASE, isolation_level=None, timeout=5.0)
                stack.callback(connection.close)
                connection.execute("PRAGMA journal_mode = DELETE" if durable else "PRAGMA journal_mode = TRUNCATE")
                connection.execute("PRAGMA synchronous = FULL" if durable else "PRAGMA synchronous = OFF")
                connection.execute("PRAGMA trusted_schema = OFF")
                connection.execute(_TABLE)
            log = cls(folder, connection, signer, durable=durable)
            log._load()
            log._cleanup = stack.pop_all()
        return log

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._cleanup.close()

    def __len__(self) -> int:
        return len(self._leaves)

    def append(self, entry: LogEntry) -> int:
        """Add one entry.

        Returns:
            Its index, from 0.

        Raises:
            StorageError: the file system refused. If it was ``head.json`` that could not be written, the entry is in the log.
        """
        data = entry.encode()
        leaf, index = leaf_hash(data), len(self._leaves)
        with _database_errors(self._folder):
            self._connection.execute("INSERT INTO leaves VALUES (?, ?, ?)", (index, data, leaf))
        self._leaves.append(leaf)
        self._write_head()
        return index

    def head(self, now_s: int) -> SignedHead:
        """Sign the log as it is at the time ``now_s``."""
        return sign_head(self._signer, size=len(self._leaves), root=merkle_root(self._leaves), now_s=now_s)

    def prove(self, index: int, since_size: int, now_s: int) -> LogProof:
        """Show one entry's place to a client that last saw ``since_size`` entries (0: none).

        Raises:
            ValueError: no such entry, or more entries than there are.
        """
        return LogProof(
            signed=self.head(now_s),
            old_size=since_size,
            index=index,
            consistency=consistency_proof(self._leaves, since_size),
            inclusion=inclusion_proof(self._leaves, index),
        )

    def entries(self) -> Iterator[LogEntry]:
        """All entries in order, read one at a time.

        Raises:
            StorageError: one is not what it was when the log was opened.
        """
        for index, leaf in enumerate(tuple(self._leaves)):
            with _database_errors(self._folder):
                row = self._connection.execute("SELECT entry FROM leaves WHERE idx = ?", (index,)).fetchone()
            if row is None or not hmac.compare_digest(leaf_hash(row[0]), leaf):
                raise StorageError(f"{self._folder / DATABASE}: entry {index} was changed under the open log")
            yield LogEntry.decode(row[0])

    def _load(self) -> None:
        with _database_errors(self._folder):
            for expected, (index, data, leaf) in enumerate(
                self._connection.execute("SELECT idx, entry, leaf_hash FROM leaves ORDER BY idx")
            ):
                if index != expected or not hmac.compare_digest(leaf_hash(data), leaf):
                    raise StorageError(f"{self._folder / DATABASE}: entry {expected} is missing or altered; restore it from a copy")
                LogEntry.decode(data)
                self._leaves.append(leaf)
        self._check_head()

    def _check_head(self) -> None:
        """Hold the log against its head file; a log that has none yet is founded, if it is empty."""
        path = self._folder / HEAD
        try:
            fields = read_object(_HEAD_KEYS, decode_canonical_json(path.read_bytes()), "head")
        except FileNotFoundError:
            if self._leaves:
                raise StorageError(f"{path} is gone: nothing shows that the log is whole; restore it from a copy") from None
            self._write_head()
            return
        except (OSError, DecodeError) as error:
            raise StorageError(f"{path} cannot be read: {error}") from error
        if fields["log_id"] != log_id(self._signer.public_key).hex():
            raise StorageError(f"{path} is of a log with another key")
        size = fields["size"]
        if not 0 <= size <= len(self._leaves):
            raise StorageError(f"the log in {self._folder} was rolled back: it has {len(self._leaves)} entries of {size}")
        if merkle_root(self._leaves[:size]).hex() != fields["root"]:
            raise StorageError(f"the log in {self._folder} was rewritten: its first {size} entries have another root")

    def _write_head(self) -> None:
        head = {
            "log_id": log_id(self._signer.public_key).hex(),
            "root": merkle_root(self._leaves).hex(),
            "size": len(self._leaves),
        }
        atomic_write_bytes(self._folder / HEAD, canonical_json(head), mode=0o600, durable=self._durable)


@contextlib.contextmanager
def _database_errors(folder: Path) -> Iterator[None]:
    """SQLite's errors, and rows that are no entries, as a StorageError."""
    try:
        yield
    except (sqlite3.Error, DecodeError) as error:
        raise StorageError(f"{folder / DATABASE} cannot be used: {error}") from error
