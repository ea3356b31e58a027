"""What an agent says of itself: ``status.json`` for people and ``fedsec client status``, ``audit.jsonl`` for whoever must know later.

1. The status file is whole at any time, is written at most once a second, and says when; a reader can tell a live agent from a dead one.
2. Neither file holds a body, a key or a record; the identity's secret half never comes here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedsec.edge.audit import AuditLog
from fedsec.errors import StorageError
from fedsec.files import atomic_write_text

STATUS_FORMAT = "fedsec/agent-status/v1"
WRITE_EVERY_S = 1.0
ALIVE_WITHIN_S = 15.0
"""A running agent writes its status at least that often."""


def utc_now() -> datetime:
    """This machine's clock."""
    return datetime.now(UTC)


class Status:
    """The live state.

    Args:
        path: of the status file; its folder must exist.
        audit: where decisions go.
        clock: aware time.
    """

    def __init__(self, path: Path, audit: AuditLog, *, clock: Callable[[], datetime] = utc_now) -> None:
        self._path, self._audit, self._clock = path, audit, clock
        self._facts: dict[str, Any] = {"format": STATUS_FORMAT, "pid": os.getpid(), "started_at": _time(clock())}
        self._changed = True
        self._written_at = 0.0

    def set(self, **facts: Any) -> None:
        """Replace top-level facts; plain JSON values."""
        if any(self._facts.get(key) != value for key, value in facts.items()):
            self._facts.update(facts)
            self._changed = True

    def get(self, key: str) -> Any:
        """One fact, or None."""
        return self._facts.get(key)

    def event(self, name: str, /, **facts: str | float | bool | None) -> None:
        """Write a line into the audit log."""
        self._audit.write(self._clock(), name, facts)

    def refuse(self, *, run_id: int, fab_sha256: str, reason: str) -> None:
        """A FAB was refused: into both files."""
        self.event("fab-refused", run_id=str(run_id), fab_sha256=fab_sha256, reason=reason)
        refusal = {"at": _time(self._clock()), "run_id": str(run_id), "fab_sha256": fab_sha256, "reason": reason}
        self.set(last_refusal=refusal, refusals=self._facts.get("refusals", 0) + 1)

    def write(self) -> None:
        """Write the file now; a full disk is not an agent's end."""
        self._facts["updated_at"] = _time(self._clock())
        self._changed = False
        with contextlib.suppress(StorageError):
            atomic_write_text(self._path, json.dumps(self._facts, indent=1) + "\n", mode=0o600, durable=False)

    async def keep_written(self) -> None:
        """Write the file while it changes, and every few seconds otherwise; runs until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            if self._changed or loop.time() - self._written_at > ALIVE_WITHIN_S / 3:
                self.write()
                self._written_at = loop.time()
            await asyncio.sleep(WRITE_EVERY_S)


def read_status(path: Path, *, now: datetime) -> dict[str, Any] | None:
    """What the agent last said, with ``alive`` added: whether it is running now. None: it was never started here.

    Raises:
        StorageError: the file is there and cannot be read.
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        updated = datetime.fromisoformat(facts["updated_at"])
        pid = int(facts["pid"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"cannot read {path}: {error}") from None
    fresh = abs((now - updated).total_seconds()) <= ALIVE_WITHIN_S
    return {**facts, "alive": fresh and facts.get("state") != "stopped" and _exists(pid)}


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds")
