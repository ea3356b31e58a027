"""A run in a process of its own, as in a deployment: what it does is said in ``live.jsonl`` of its folder, for whoever follows it."""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid

from fedsec.flower.live import LiveFeed, stopping_on_file
from fedsec.results import RoundRow
from server.session import Session, listening
from server.setup import ServerSetup, read_setup


def run_live(grid: Grid, context: Context) -> None:
    """Run the plan that the run config names.

    Raises:
        BaseException: whatever ended the run, after it was said in the folder.
    """
    named = Path(str(context.run_config.get("run-dir") or ""))
    feed: LiveFeed | None = LiveFeed(named, context.run_id) if named.is_absolute() and named.is_dir() else None
    try:
        setup = read_setup(context.run_config)
        feed = LiveFeed(setup.folder.path, context.run_id)
        _run(grid, setup, feed)
    except BaseException as error:
        if feed is not None:
            feed.fail(error)
        raise


def _run(grid: Grid, setup: ServerSetup, feed: LiveFeed) -> None:
    from server.federation import run_federation  # noqa: PLC0415 - torch and data: after the setup was found sound

    def on_start(rows: tuple[RoundRow, ...]) -> None:
        feed.say("begin", rows=[row.to_json() for row in rows])

    session = Session(
        on_start=on_start,
        on_round=lambda row: feed.say("round", row=row.to_json()),
        on_answers=lambda answered, asked: feed.say("answers", answered=answered, asked=asked),
        note=lambda text: feed.say("note", text=text),
    )
    with listening(session), stopping_on_file(setup.folder.path, session.stop):
        result = run_federation(grid, setup)
    feed.say("end", state="stopped" if result.stopped_early else "finished")
