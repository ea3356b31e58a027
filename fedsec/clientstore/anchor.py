"""A second, small record of how far a store has come, so that one that was rolled back or copied is noticed.

1. After each commit the anchor is rewritten: store id, number of commits, hash of the newest ledger entry, inode of the database.
2. A crash between commit and anchor leaves the anchor one behind; one behind, and on the same chain, is mended. Anything else is
   refused: the store is older than its anchor (rolled back), another store's, or (deployed) a copy in another file.
3. Not noticed: database and anchor restored together into the same files by whoever controls the disk. Nothing on that machine could
   notice; a witness elsewhere (the transparency log, later) can.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from fedsec.errors import StorageError
from fedsec.files import atomic_write_text

ADVICE = "it may have lost spends, so it is not used: restore the newest copy of the folder, or ask whoever agreed to the cap"


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """How far a store had come when it last committed.

    Attributes:
        store_id: random name of the store.
        counter: commits so far.
        head: hash of the newest ledger entry, or the genesis hash.
        inode: of the database file.
    """

    store_id: str
    counter: int
    head: str
    inode: int


def write_anchor(path: Path, anchor: Anchor, *, durable: bool) -> None:
    """Replace the anchor."""
    atomic_write_text(path, json.dumps(asdict(anchor)), mode=0o600, durable=durable)


def read_anchor(path: Path) -> Anchor | None:
    """The anchor, or None where there is none.

    Raises:
        StorageError: it is damaged.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        anchor = Anchor(**raw)
        if not (
            isinstance(anchor.store_id, str) and type(anchor.counter) is int and isinstance(anchor.head, str) and type(anchor.inode) is int
        ):
            raise TypeError("a field has the wrong type")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise StorageError(f"{path} is damaged ({error}); {ADVICE}") from None
    return anchor


def check_anchor(anchor: Anchor | None, current: Anchor, heads: tuple[str, ...], *, path: Path, check_inode: bool) -> None:
    """Refuse a store that its anchor does not vouch for.

    Args:
        anchor: as read; None where there is none.
        current: what the database says of itself.
        heads: hashes of all its ledger entries, genesis first.
        path: of the anchor, for the error.
        check_inode: whether the database must be the same file.

    Raises:
        StorageError: rolled back, copied, or another store's.
    """
    if anchor is None:
        if current.counter > 0:
            raise StorageError(f"{path} is missing beside a used store; {ADVICE}")
        return
    if anchor.store_id != current.store_id:
        raise StorageError(f"{path} belongs to another store; {ADVICE}")
    if current.counter < anchor.counter:
        raise StorageError(f"the store beside {path} was rolled back: {current.counter} commits, {anchor.counter} are known; {ADVICE}")
    if (
        current.counter > anchor.counter + 1
        or anchor.head not in heads[-2:]
        or (current.counter == anchor.counter and anchor.head != heads[-1])
    ):
        raise StorageError(f"{path} does not fit its store; {ADVICE}")
    if check_inode and anchor.inode != current.inode:
        raise StorageError(
            f"the store beside {path} is a copy; two copies could spend the same budget twice. If it was moved on purpose and the old one is gone, "
            "run adopt_moved_store on the folder"
        )
