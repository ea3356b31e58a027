"""Read a ledger without opening its store: for reports and for people who check it."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from fedsec.clientstore.store import DATABASE, read_entries
from fedsec.errors import StorageError
from fedsec.privacy.ledger import LedgerEntry, verify_chain


def read_ledger(folder: Path) -> tuple[LedgerEntry, ...]:
    """The entries of the ledger in ``folder``, its chain checked; the store may be in use.

    Raises:
        StorageError: no store here, or an altered ledger.
    """
    path = folder / DATABASE
    if not path.exists():
        raise StorageError(f"there is no client store in {folder}")
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            entries = read_entries(connection)
            row = connection.execute("SELECT value FROM meta WHERE key = 'store_id'").fetchone()
    except sqlite3.Error as error:
        raise StorageError(f"{path} cannot be read: {error}") from error
    verify_chain(entries, store_id=row[0] if row else "")
    return tuple(entries)
