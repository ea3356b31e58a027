"""A fresh key for a CA's intermediate, after its theft: decided in one rename, finished by whoever opens the folder next.

1. Needs the root's key, and the service stopped: a running one refuses everything from then on.
2. Everything that the old key signed counts no more here: tokens, lists, certificates. Every peer enrols anew, and may keep its key.
3. The root signs a numbered statement of the intermediates' keys that count (``identity.intermediates``). It travels with every certificate and
   with the bundle; whoever has it refuses what the old key signs.
"""

from __future__ import annotations

import secrets
import shutil
from datetime import datetime
from pathlib import Path

from fedsec.errors import StorageError
from fedsec.files import atomic_write_bytes, fsync_folder
from fedsec.identity.ca import CertificateAuthority
from fedsec.identity.intermediates import STATEMENT_FILE, load_statement, make_statement

REKEY = "rekey"


def write_rekey(folder: Path, authority: CertificateAuthority, *, now: datetime, passphrase: bytes | None) -> int:
    """Make and put in place a fresh intermediate, and the root's statement.

    Args:
        folder: of the CA.
        authority: as it is, with the root's key.
        now: aware.
        passphrase: encrypts the new key.

    Returns:
        The statement's number.

    Raises:
        CertificateError: the root's key is not here.
        StorageError: the file system refused.
    """
    fresh, root = authority.with_fresh_intermediate(now=now)
    known = load_statement(folder, root_der=fresh.root_der, federation=fresh.federation)
    number = known.number + 1 if known is not None else 1
    statement = make_statement(root, federation=fresh.federation, number=number, public_keys=[fresh.signer.public_key])
    new = folder / f".rekey.{secrets.token_hex(4)}.new"
    try:
        new.mkdir(mode=0o700)
        atomic_write_bytes(new / "intermediate-key.pem", fresh.signer.to_pem(passphrase=passphrase), mode=0o600)
        for name, data in (("intermediate.der", fresh.intermediate_der), (STATEMENT_FILE, statement)):
            atomic_write_bytes(new / name, data)
        new.rename(folder / REKEY)  # from here on it is decided
        fsync_folder(folder)
    except OSError as error:
        raise StorageError(f"cannot write into {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    finish_rekey(folder)
    return number


def finish_rekey(folder: Path) -> None:
    """Put a decided rekey in its place; again after a crash.

    Raises:
        StorageError: the file system refused.
    """
    new = folder / REKEY
    try:
        if new.is_dir():
            for name in ("intermediate-key.pem", "intermediate.der", STATEMENT_FILE):
                if (new / name).exists():
                    (new / name).replace(folder / name)
            new.rmdir()
            fsync_folder(folder)
    except OSError as error:
        raise StorageError(f"the rekey in {new} cannot be finished: {error.strerror or error}") from error
