"""The tables of a client's store, and how its database is opened.

One database file per client. ``secure_delete`` overwrites erased round keys; a rollback journal (never WAL, whose file would
keep them) makes each transaction whole even if the process is killed in the middle. The journal of the erasing transaction itself holds
the page as it was until its blocks are used again: whoever images the disk may find a key there, beside the records themselves. With ``durable`` it survives a power cut too.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from fedsec.errors import StorageError

SCHEMA_VERSION = "2"

_TABLES = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS ledger (idx INTEGER PRIMARY KEY, entry BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS rounds (
    run_id TEXT NOT NULL, server_round INTEGER NOT NULL, request_hash TEXT NOT NULL, round_key BLOB, answer BLOB,
    PRIMARY KEY (run_id, server_round)
) STRICT;
CREATE TABLE IF NOT EXISTS personal (run_id TEXT NOT NULL, kind TEXT NOT NULL, arrays BLOB NOT NULL, PRIMARY KEY (run_id, kind)) STRICT;
CREATE TABLE IF NOT EXISTS runs (run_id TEXT PRIMARY KEY, terms TEXT NOT NULL, finished INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS attempts (
    run_id TEXT NOT NULL, server_round INTEGER NOT NULL, attempt INTEGER NOT NULL, context BLOB NOT NULL UNIQUE, retry BLOB NOT NULL,
    commitment BLOB NOT NULL UNIQUE, unmasked INTEGER NOT NULL, sketch_rows INTEGER NOT NULL, PRIMARY KEY (run_id, server_round, attempt)
) STRICT;
CREATE TABLE IF NOT EXISTS outbox (
    context BLOB NOT NULL, stage TEXT NOT NULL, request_hash BLOB NOT NULL, reply BLOB, PRIMARY KEY (context, stage)
) STRICT;
CREATE TABLE IF NOT EXISTS phases (run_id TEXT PRIMARY KEY, kind INTEGER NOT NULL, data BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS rosters (
    federation TEXT PRIMARY KEY, version INTEGER NOT NULL, digest BLOB NOT NULL, body BLOB NOT NULL, log_size INTEGER NOT NULL, log_root BLOB NOT NULL
) STRICT;
"""


def connect(path: Path, *, durable: bool) -> sqlite3.Connection:
    """Open or create the database, with its tables.

    Raises:
        StorageError: not a database, damaged, or the file system refused.
    """
    try:
        connection = sqlite3.connect(path, isolation_level=None, timeout=5.0)
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute("PRAGMA journal_mode = DELETE" if durable else "PRAGMA journal_mode = TRUNCATE")
        connection.execute("PRAGMA synchronous = FULL" if durable else "PRAGMA synchronous = OFF")
        connection.execute("PRAGMA trusted_schema = OFF")
        if connection.execute("PRAGMA user_version").fetchone()[0] != int(SCHEMA_VERSION):  # each opening would parse the whole schema
            connection.executescript(f"{_TABLES} PRAGMA user_version = {SCHEMA_VERSION};")
    except sqlite3.Error as error:
        raise StorageError(f"{path} cannot be used: {error}; restore it from a copy with its anchor") from error
    return connection
