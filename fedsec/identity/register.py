"""The CA's register: what was issued, which tokens were used, what was revoked; one SQLite file.

1. Every change is one transaction, on disk before the caller goes on: a certificate leaves the CA after its row is written, so that a
   crash can lose an answer, never a record. Several processes may work at once; each waits for the other's transaction.
2. A token is used by the transaction that issues for it: once, for good.
3. A name belongs to the first key that it was issued for, and a key to one name, until the name is revoked. A key that was revoked
   never comes back.
4. The journal holds what goes to the transparency log, in the log's order, written by the same transactions: the log is a copy of it.
   A register with fewer entries than the log was put back from an old copy, and is refused by whoever holds both.
5. A certificate has one successor: a second request for its renewal is answered with the same one.
6. A token that was used and is shown again with another key is an alarm: one of the two who had it was not meant to.
7. What is read is checked again: a row that no code of ours wrote is a StorageError.

Times are whole seconds since 1970, UTC.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fedsec.codec import canonical_json
from fedsec.errors import CertificateError, StorageError
from fedsec.identity.names import Role
from fedsec.identity.register_rows import Alarm, Binding, Document, JournalKind, Record, read_alarm, read_record
from fedsec.identity.revocation import Reason, Revocation
from fedsec.identity.tokens import Token

SCHEMA_VERSION = 2
APPLICATION_ID = 0x46534341  # "FSCA"
WAIT_S = 20.0
"""How long one process waits for the other's transaction."""

MAX_BODY_BYTES = 8 * 1024 * 1024
"""Longest entry of the journal: that of ``translog.entries``."""

_TABLES = """
CREATE TABLE certificates (
    serial_number TEXT PRIMARY KEY, role TEXT NOT NULL, site TEXT, name TEXT NOT NULL, public_key BLOB NOT NULL, not_before INTEGER NOT NULL,
    not_after INTEGER NOT NULL, certificate BLOB NOT NULL, issued_at INTEGER NOT NULL, origin TEXT NOT NULL, revoked_at INTEGER, reason TEXT
) STRICT;
CREATE INDEX certificates_by_name ON certificates (role, name, issued_at);
CREATE INDEX certificates_by_key ON certificates (public_key);
CREATE TABLE names (
    role TEXT NOT NULL, name TEXT NOT NULL, site TEXT, public_key BLOB NOT NULL UNIQUE, PRIMARY KEY (role, name)
) STRICT;
CREATE TABLE tokens (
    jti BLOB PRIMARY KEY, role TEXT NOT NULL, site TEXT, name TEXT NOT NULL, not_after INTEGER NOT NULL, made_at INTEGER NOT NULL,
    serial_number TEXT
) STRICT;
CREATE TABLE journal (idx INTEGER PRIMARY KEY, kind INTEGER NOT NULL, body BLOB NOT NULL) STRICT;
CREATE TABLE renewals (predecessor TEXT PRIMARY KEY, successor TEXT NOT NULL) STRICT;
CREATE TABLE alarms (
    jti BLOB PRIMARY KEY, role TEXT NOT NULL, site TEXT, name TEXT NOT NULL, serial_number TEXT NOT NULL, first_at INTEGER NOT NULL,
    last_at INTEGER NOT NULL, times INTEGER NOT NULL
) STRICT;
CREATE TABLE documents (kind TEXT PRIMARY KEY, number INTEGER NOT NULL, body BLOB NOT NULL, signature BLOB NOT NULL) STRICT;
"""

_COLUMNS = "serial_number, role, site, name, public_key, not_before, not_after, certificate, issued_at, origin, revoked_at, reason"


class Register:
    """The register, open. Use as a context manager; see :meth:`open`. One thread each."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path = path
        self._connection = connection

    @classmethod
    def open(cls, path: Path, *, create: bool = False, thorough: bool = False) -> Self:
        """Open the register.

        Args:
            path: its file.
            create: make it; it must not be there yet.
            thorough: check the whole file's structure.

        Raises:
            StorageError: missing, damaged, of another kind or version, or (``create``) there already.
        """
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT | os.O_EXCL if create else 0), 0o600))
        except OSError as error:
            raise StorageError(f"cannot open the register {path}: {error.strerror or error}") from error
        with contextlib.ExitStack() as stack, _errors(path):
            connection = sqlite3.connect(path, isolation_level=None, timeout=WAIT_S)
            stack.callback(connection.close)
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA cell_size_check = ON")
            connection.execute("PRAGMA synchronous = FULL")
            if create:
                connection.executescript(
                    f"BEGIN; {_TABLES} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
                )
            register = cls(path, connection)
            register._check(thorough=thorough)
            stack.pop_all()
            return register

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._connection.close()

    def _check(self, *, thorough: bool) -> None:
        found = [self._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
        if found != [APPLICATION_ID, SCHEMA_VERSION]:
            raise StorageError(f"{self._path} is not a register of version {SCHEMA_VERSION}; restore it from a copy")
        if thorough and self._connection.execute("PRAGMA integrity_check(1)").fetchone()[0] != "ok":
            raise StorageError(f"{self._path} is damaged; restore it from a copy")

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything in the block, or nothing of it; no other process writes meanwhile.

        Raises:
            StorageError: the file system refused, the file is damaged, or another process held it for too long.
        """
        with _errors(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            with _errors(self._path):
                self._connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            raise

    def add_token(self, token: Token, *, now: datetime) -> None:
        """Remember a token that is about to be handed out."""
        row = (token.jti, token.role.value, token.site, token.name, int(token.not_after.timestamp()), _seconds(now), None)
        self._execute("INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def token_use(self, token: Token) -> tuple[bool, int | None]:
        """Whether the CA handed this token out, and the serial number that was issued for it, if any."""
        row = self._one("SELECT role, site, name, not_after, serial_number FROM tokens WHERE jti = ?", (token.jti,))
        if row is None or tuple(row[:4]) != (token.role.value, token.site, token.name, int(token.not_after.timestamp())):
            return False, None
        with _errors(self._path):
            return True, None if row[4] is None else int(row[4], 16)

    def use_token(self, token: Token, serial_number: int) -> None:
        """Mark it used for good; within the transaction that issues.

        Raises:
            CertificateError: it was used before.
        """
        changed = self._execute(
            "UPDATE tokens SET serial_number = ? WHERE jti = ? AND serial_number IS NULL", (f"{serial_number:X}", token.jti)
        )
        if changed != 1:
            raise CertificateError("the token was used before; ask for a new one")

    def void_tokens(self, role: Role, name: str) -> None:
        """Forget the tokens of a name that were not used yet: none of them counts any more. Within a transaction."""
        self._execute("DELETE FROM tokens WHERE role = ? AND name = ? AND serial_number IS NULL", (role.value, name))

    def add_alarm(self, token: Token, serial_number: int, *, now: datetime) -> None:
        """Remember that a used token was shown with another key; counted, one row a token. Within a transaction."""
        row = (token.jti, token.role.value, token.site, token.name, f"{serial_number:X}", _seconds(now), _seconds(now))
        self._execute(
            "INSERT INTO alarms VALUES (?, ?, ?, ?, ?, ?, ?, 1) ON CONFLICT (jti) DO UPDATE SET last_at = excluded.last_at, times = times + 1",
            row,
        )

    def alarms(self) -> list[Alarm]:
        """All alarms, oldest first."""
        with _errors(self._path):
            rows = self._connection.execute(
                "SELECT role, site, name, serial_number, first_at, last_at, times FROM alarms ORDER BY first_at, rowid"
            ).fetchall()
            return [read_alarm(row) for row in rows]

    def successor(self, serial_number: int) -> Record | None:
        """The certificate that a renewal brought for this one."""
        row = self._one("SELECT successor FROM renewals WHERE predecessor = ?", (f"{serial_number:X}",))
        if row is None:
            return None
        with _errors(self._path):
            return self.certificate(int(row[0], 16))

    def add_successor(self, serial_number: int, successor: int) -> None:
        """Write down what a renewal brought; within its transaction."""
        self._execute("INSERT OR REPLACE INTO renewals VALUES (?, ?)", (f"{serial_number:X}", f"{successor:X}"))

    def add(self, record: Record) -> None:
        """Write a certificate down, bind its name and key if they are free, and put it into the journal; within a transaction."""
        self._execute("INSERT OR IGNORE INTO names VALUES (?, ?, ?, ?)", (record.role.value, record.name, record.site, record.public_key))
        if self.binding(record.role, record.name) != Binding(record.role, record.site, record.name, record.public_key):
            raise CertificateError(f"{record.name} is another key's name")
        row = (f"{record.serial_number:X}", record.role.value, record.site, record.name, record.public_key, _seconds(record.not_before),
               _seconds(record.not_after), record.certificate_der, _seconds(record.issued_at), record.origin, None, None)  # fmt: skip
        self._execute("INSERT INTO certificates VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        self.add_to_journal(JournalKind.CERTIFICATE, record.certificate_der)

    def certificate(self, serial_number: int) -> Record | None:
        """The certificate with this number."""
        return next(self._records("WHERE serial_number = ?", (f"{serial_number:X}",)), None)

    def certificates(self) -> Iterator[Record]:
        """All that were issued, oldest first."""
        return self._records("ORDER BY issued_at, rowid", ())

    def certificates_of(self, role: Role, name: str) -> list[Record]:
        """All of one name, newest first."""
        return list(self._records("WHERE role = ? AND name = ? ORDER BY issued_at DESC, rowid DESC", (role.value, name)))

    def count_since(self, role: Role, name: str, since: datetime) -> int:
        """How many certificates a name was issued since then."""
        row = self._one(
            "SELECT COUNT(*) FROM certificates WHERE role = ? AND name = ? AND issued_at >= ?", (role.value, name, _seconds(since))
        )
        return int(row[0]) if row is not None else 0

    def current(self, role: Role, *, now: datetime) -> list[Record]:
        """The newest certificate of each name of this role that is bound, valid now and not revoked, sorted by name."""
        moment = _seconds(now)
        records = self._records(
            "WHERE role = ? AND revoked_at IS NULL AND not_before <= ? AND not_after >= ? ORDER BY name, issued_at, rowid",
            (role.value, moment, moment),
        )
        newest = {record.name: record for record in records}
        return [record for record in newest.values() if self._holds(record)]

    def _holds(self, record: Record) -> bool:
        found = self.binding(record.role, record.name)
        return found is not None and found.public_key == record.public_key

    def binding(self, role: Role, name: str) -> Binding | None:
        """Whose a name is; None: free."""
        row = self._one("SELECT role, site, name, public_key FROM names WHERE role = ? AND name = ?", (role.value, name))
        return None if row is None else self._binding(row)

    def binding_of_key(self, public_key: bytes) -> Binding | None:
        """Which name a key has."""
        row = self._one("SELECT role, site, name, public_key FROM names WHERE public_key = ?", (public_key,))
        return None if row is None else self._binding(row)

    def was_revoked(self, public_key: bytes) -> bool:
        """Whether a certificate of this key was ever revoked."""
        row = self._one("SELECT 1 FROM certificates WHERE public_key = ? AND revoked_at IS NOT NULL LIMIT 1", (public_key,))
        return row is not None

    def revoke(self, serial_number: int, reason: Reason, *, now: datetime) -> None:
        """Mark a certificate revoked, and put that into the journal; a second time changes nothing. Within a transaction."""
        moment, serial = _seconds(now), f"{serial_number:X}"
        changed = self._execute(
            "UPDATE certificates SET revoked_at = ?, reason = ? WHERE serial_number = ? AND revoked_at IS NULL",
            (moment, reason.value, serial),
        )
        if changed == 1:
            entry = {"reason": reason.value, "revoked_at": moment, "serial_number": serial}
            self.add_to_journal(JournalKind.REVOCATION, canonical_json(entry))

    def unbind(self, role: Role, name: str) -> None:
        """Free a name."""
        self._execute("DELETE FROM names WHERE role = ? AND name = ?", (role.value, name))

    def unbind_all(self) -> None:
        """Free all names: after a change of the intermediate's key every peer enrols anew, and may keep its key. Within a transaction."""
        self._execute("DELETE FROM names", ())

    def revocations(self) -> list[Revocation]:
        """All revoked certificates."""
        records = list(self._records("WHERE revoked_at IS NOT NULL ORDER BY revoked_at, rowid", ()))
        return [Revocation(item.serial_number, item.revoked_at, item.reason) for item in records if item.revoked_at and item.reason]

    def document(self, kind: str) -> Document | None:
        """The newest list of a kind: ``crl`` or ``roster``."""
        row = self._one("SELECT number, body, signature FROM documents WHERE kind = ?", (kind,))
        return None if row is None else Document(*row)

    def put_document(self, kind: str, document: Document) -> None:
        """Replace the newest list of a kind by one with a higher number.

        Raises:
            StorageError: its number is not higher.
        """
        changed = self._execute(
            "INSERT INTO documents VALUES (?, ?, ?, ?) ON CONFLICT (kind) DO UPDATE SET number = excluded.number, body = excluded.body, "
            "signature = excluded.signature WHERE excluded.number > documents.number",
            (kind, document.number, document.body, document.signature),
        )
        if changed != 1:
            raise StorageError(f"{self._path}: the number of a {kind} went back")

    def add_to_journal(self, kind: JournalKind, body: bytes) -> None:
        """Put an entry at the journal's end; within a transaction.

        Raises:
            StorageError: it is longer than an entry of the log may be.
        """
        if len(body) > MAX_BODY_BYTES:
            raise StorageError(f"a list of {len(body)} bytes is over the log's limit of {MAX_BODY_BYTES}")
        self._execute("INSERT INTO journal SELECT COALESCE(MAX(idx) + 1, 0), ?, ? FROM journal", (int(kind), body))

    def journal(self, start: int) -> list[tuple[int, int, bytes]]:
        """Index, kind and body of the entries from ``start`` on."""
        with _errors(self._path):
            return self._connection.execute("SELECT idx, kind, body FROM journal WHERE idx >= ? ORDER BY idx", (start,)).fetchall()

    def journal_size(self) -> int:
        """Number of entries."""
        row = self._one("SELECT COUNT(*) FROM journal", ())
        return int(row[0]) if row is not None else 0

    def _execute(self, statement: str, values: tuple[Any, ...]) -> int:
        with _errors(self._path):
            return self._connection.execute(statement, values).rowcount

    def _one(self, statement: str, values: tuple[Any, ...]) -> Any:
        with _errors(self._path):
            return self._connection.execute(statement, values).fetchone()

    def _records(self, rest: str, values: tuple[Any, ...]) -> Iterator[Record]:
        with _errors(self._path):
            for row in self._connection.execute(f"SELECT {_COLUMNS} FROM certificates {rest}", values).fetchall():  # noqa: S608 - our own text
                yield read_record(row)

    def _binding(self, row: tuple[Any, ...]) -> Binding:
        with _errors(self._path):
            return Binding(Role(row[0]), row[1], row[2], row[3])


def _seconds(time: datetime) -> int:
    if time.tzinfo is None:
        raise ValueError("a time must be aware of its zone")
    return int(time.timestamp())


@contextlib.contextmanager
def _errors(path: Path) -> Iterator[None]:
    """SQLite's errors, and rows that no code of ours wrote, as a StorageError."""
    try:
        yield
    except sqlite3.Error as error:
        raise StorageError(f"the register {path} cannot be used: {error}") from error
    except (CertificateError, ValueError, TypeError, OverflowError, OSError) as error:
        raise StorageError(f"the register {path} is damaged: {error}; restore it from a copy") from error
