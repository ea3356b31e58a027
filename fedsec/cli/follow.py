"""Follow a run that goes on in another process, from what it says in its folder.

1. Ctrl-C detaches: the run goes on, and can be followed again.
2. A run whose process died says nothing: then its lock is free, or Flower calls it finished. Both are noticed, and told with the way to resume.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fedsec.errors import FedsecError

if TYPE_CHECKING:
    from fedsec.plan.model import Plan
    from fedsec.report.progress import RunProgress
    from fedsec.results import RunResult
    from fedsec.runfolder import RunFolder

POLL_S = 0.2
START_S = 45.0
"""How long a submitted run may take to say its first word before Flower is asked how it stands; the same between two such questions."""
SILENT_S = 5.0
"""How long the lock of a run that has begun may be free before it counts as dead."""
DETACHED_EXIT_CODE = 130


class RunFailedError(FedsecError):
    """A run ended with an error, or without a word."""

    code = "run-failed"


def is_running(folder: RunFolder) -> bool:
    """Whether a process holds the run's lock."""
    try:
        descriptor = os.open(folder.path / "run.lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def stop_run(folder: RunFolder) -> None:
    """Ask a run to end.

    Raises:
        RunFailedError: it does not run.
    """
    from fedsec.flower.live import STOP

    if not is_running(folder):
        raise RunFailedError(f"run {folder.run_id} does not run; resume it with: fedsec run --resume {folder.run_id}")
    (folder.path / STOP).touch()
    print(f"asked run {folder.run_id} to end; it keeps the rounds that it has", file=sys.stderr)


def follow_run(home: Path, folder: RunFolder, plan: Plan, flower_run_id: int | None, *, as_json: bool, quiet: bool) -> None:
    """Show rounds until the run ends, then its result as ``fedsec simulate`` does.

    Args:
        home: of the server.
        folder: of the run.
        plan: of the run.
        flower_run_id: of the submission just made; None: it ran before.
        as_json: print the result as JSON.
        quiet: no progress.

    Raises:
        RunFailedError: the run failed; says why and how to go on.
    """
    from fedsec.report.progress import RunProgress
    from fedsec.report.tables import print_result, read_result

    progress = RunProgress(
        rounds=plan.federation.rounds,
        epsilon_target=plan.privacy.epsilon if plan.is_private else None,
        title=plan.name,
        quiet=quiet,
    )
    try:
        with progress:
            end = _wait(home, folder, flower_run_id, progress)
    except KeyboardInterrupt:
        print(
            f"detached; the run goes on. Follow it again: fedsec run --resume {folder.run_id} --follow; end it: fedsec run --stop {folder.run_id}",
            file=sys.stderr,
        )
        raise typer.Exit(DETACHED_EXIT_CODE) from None
    if end["state"] == "failed":
        raise _failed(folder, end)
    result: RunResult = read_result(folder.path / "result.json")
    if as_json:
        print(json.dumps(result.to_json(), allow_nan=False))
    else:
        from rich.console import Console

        print_result(result, Console())
    if result.stopped_early:
        raise typer.Exit(DETACHED_EXIT_CODE)


def _failed(folder: RunFolder, end: dict[str, Any]) -> RunFailedError:
    error = RunFailedError(f"{end.get('text', 'no reason was given')} (resume with: fedsec run --resume {folder.run_id} --follow)")
    if type(end.get("exit_code")) is int and 1 <= end["exit_code"] <= 100:
        error.exit_code = end["exit_code"]
    return error


def _wait(home: Path, folder: RunFolder, flower_run_id: int | None, progress: RunProgress) -> dict[str, Any]:
    """Until the run says that it ended, or is found to be dead; returns the event that ended it."""
    from fedsec.flower.live import LiveReader

    reader = LiveReader(folder.path)
    wanted = flower_run_id if flower_run_id is not None else reader.newest_run()
    begun, alive_at, asked_at = False, time.monotonic(), time.monotonic()
    while True:
        for event in reader.events():
            if event.get("flower_run_id") != wanted:
                continue  # of an earlier start of the same run
            begun, alive_at = True, time.monotonic()
            _show(event, progress)
            if event["event"] == "end":
                return event
        now = time.monotonic()
        if is_running(folder):
            begun, alive_at = True, now
        if begun and now - alive_at > SILENT_S:
            return {
                "state": "failed",
                "text": "the server's process of this run is gone without a word; it was killed, or its host went down",
            }
        if not begun and wanted is not None and now - asked_at > START_S:
            asked_at = now
            if (over := _over_at_flower(home, wanted)) is not None:
                return over
        time.sleep(POLL_S)


def _over_at_flower(home: Path, flower_run_id: int) -> dict[str, Any] | None:
    from fedsec.edge.submit import look_up

    found = look_up(home, flower_run_id)
    if not found.is_over:
        return None
    return {"state": "failed", "text": f"the run did not begin, Flower calls it {found.status}; the logs in {home / 'superlink'} say why"}


def _show(event: dict[str, Any], progress: RunProgress) -> None:
    """One event on the display; one that cannot be read is no reason to stop following."""
    from fedsec.errors import DecodeError
    from fedsec.results import RoundRow

    try:
        if event["event"] == "begin":
            progress.on_start(tuple(RoundRow.from_json(row) for row in event["rows"]))
        elif event["event"] == "round":
            row = RoundRow.from_json(event["row"])
            progress.on_round(row)
            for name, reason in row.gone:
                progress.note(f"{name} is gone: {reason}")
        elif event["event"] == "answers":
            progress.clients_answered(int(event["answered"]), int(event["asked"]))
        elif event["event"] == "note":
            progress.note(str(event["text"]))
    except (KeyError, TypeError, ValueError, DecodeError):
        return
