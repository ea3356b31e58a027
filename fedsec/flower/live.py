"""What a run in another process says while it goes on: one JSON object a line, appended to ``live.jsonl`` in the run's folder.

1. A ServerApp of a deployment writes; ``fedsec run --follow`` reads, at the same time. Each start of the run, resumed or not, begins with ``begin``.
2. Nothing depends on it: it is neither read back by the run nor made durable. A line that is cut off is waited for, a damaged one is skipped.
3. A file ``stop`` beside it asks the run to end after the current wait, with a usable result.

Every event has ``flower_run_id``. Events: ``begin`` (rows so far) · ``answers`` (answered, asked) · ``round`` (row) · ``note`` (text) · ``end`` (state: finished, stopped or
failed; and of a failure code, exit_code, text).
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedsec.errors import FedsecError

LIVE = "live.jsonl"
STOP = "stop"
STOP_POLL_S = 0.5
MAX_LINE_BYTES = 1 << 24


class LiveFeed:
    """The writer's end; one process writes, under the lock of the run's folder.

    Args:
        folder: of the run.
        flower_run_id: Flower's id of this start of the run; in every event.
    """

    def __init__(self, folder: Path, flower_run_id: int) -> None:
        self._path = folder / LIVE
        self._flower_run_id = flower_run_id
        self._lock = threading.Lock()

    def say(self, event: str, **values: Any) -> None:
        """Append one event. A file system that refuses costs the picture, not the run."""
        line = json.dumps({"event": event, "flower_run_id": self._flower_run_id, **values}, separators=(",", ":")) + "\n"
        with self._lock, contextlib.suppress(OSError), self._path.open("a", encoding="utf-8") as handle:
            handle.write(line)

    def fail(self, error: BaseException) -> None:
        """Say that the run failed, and why; of errors that are not fedsec's only a short text."""
        code, exit_code = (error.code, error.exit_code) if isinstance(error, FedsecError) else ("internal", 1)
        text = str(error) if isinstance(error, FedsecError) else f"{type(error).__name__}: {str(error)[:300]}"
        self.say("end", state="failed", code=code, exit_code=exit_code, text=text)


class LiveReader:
    """The reader's end.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LIVE
        self._at = 0

    def newest_run(self) -> int | None:
        """Flower's id of the start of the run that spoke last; None if none ever did. Does not count as reading."""
        last = None
        for event in LiveReader(self._path.parent).events():
            last = event.get("flower_run_id", last)
        return last if type(last) is int else None

    def unended_run(self) -> int | None:
        """Flower's id of the last start of the run if it did not say that it ended. Does not count as reading."""
        last = None
        for event in LiveReader(self._path.parent).events():
            last = None if event["event"] == "end" else event.get("flower_run_id")
        return last if type(last) is int else None

    def events(self) -> Iterator[dict[str, Any]]:
        """What was said since the last call, whole lines only."""
        try:
            with self._path.open("rb") as handle:
                handle.seek(self._at)
                while (line := handle.readline(MAX_LINE_BYTES)).endswith(b"\n"):
                    self._at += len(line)
                    with contextlib.suppress(ValueError):
                        value = json.loads(line)
                        if isinstance(value, dict) and isinstance(value.get("event"), str):
                            yield value
        except FileNotFoundError:
            return


@contextlib.contextmanager
def stopping_on_file(folder: Path, stop: threading.Event) -> Iterator[None]:
    """Set ``stop`` once a file ``stop`` lies in the folder; one from before is removed."""
    path, over = folder / STOP, threading.Event()
    path.unlink(missing_ok=True)

    def watch() -> None:
        while not over.wait(STOP_POLL_S):
            if path.exists():
                stop.set()
                return

    thread = threading.Thread(target=watch, name="fedsec-stop", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        path.unlink(missing_ok=True)
