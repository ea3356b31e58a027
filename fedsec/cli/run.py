"""``fedsec run``: a plan on a live federation, submitted on the server's host and followed from the run's folder."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from fedsec.plan.model import Plan
    from fedsec.runfolder import RunFolder

EPILOG = (
    "Examples:  fedsec run plan.toml --follow  ·  fedsec run plan.toml --json  ·  fedsec run --resume RUN --follow  ·  fedsec run --stop RUN  "
    "(RUN is the run id that fedsec run printed. Ctrl-C while following leaves the run alone.)"
)


def run(
    plan: Path | None = typer.Argument(None, help="Plan file.", show_default=False),
    follow: bool = typer.Option(False, "--follow", "-f", help="Show the rounds until the run ends; Ctrl-C detaches, the run goes on."),
    resume: str | None = typer.Option(
        None, metavar="RUN", help="Go on with a run from its checkpoint; follow it if it still runs.", show_default=False
    ),
    stop: str | None = typer.Option(None, metavar="RUN", help="Ask a run to end now, with the rounds that it has.", show_default=False),
    home: Path | None = typer.Option(None, help="Home of the server; else $FEDSEC_HOME, else ~/.fedsec.", show_default=False),
    as_json: bool = typer.Option(False, "--json", help="Print exactly one JSON object on stdout."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="No progress on stderr."),
) -> None:
    """Run a plan on the live federation of this server. Use it on the server's host, as the service's user."""
    from fedsec.cli.follow import follow_run, is_running, stop_run
    from fedsec.errors import ConfigError

    if sum(given is not None for given in (plan, resume, stop)) != 1:
        raise ConfigError("give a plan, or --resume RUN, or --stop RUN", mend="fedsec run --help has examples")
    at = _home(home)
    if stop is not None:
        stop_run(_open(at, stop)[0])
        return
    folder, checked = _open(at, resume) if resume is not None else _new(at, plan)
    running = resume is not None and is_running(folder)
    if resume is not None and not running:
        _end_last(at, folder)
    flower_run_id = None if running else _submit(at, folder)
    if not follow:
        _say_submitted(folder, flower_run_id, as_json=as_json, quiet=quiet)
        return
    follow_run(at, folder, checked, flower_run_id, as_json=as_json, quiet=quiet)


def _home(given: Path | None) -> Path:
    from fedsec.errors import ConfigError
    from server.setup import FEDERATION, fedsec_home

    home = given.absolute() if given is not None else fedsec_home()
    if not (home / FEDERATION).is_dir():
        raise ConfigError(
            f"{home} is not the home of a server: it has no list of clients",
            mend="run this where fedsec server up runs, or set FEDSEC_HOME",
        )
    _check_user(home)
    return home


def _check_user(home: Path) -> None:
    """Refuse to make a run as root where the ServerApp is another user, which then could not write in its folder."""
    import os
    import pwd

    from fedsec.errors import ConfigError

    with contextlib.suppress(FileNotFoundError):
        owner = (home / "runs").stat().st_uid
        if os.geteuid() == 0 and owner != 0:
            try:
                name = pwd.getpwuid(owner).pw_name
            except KeyError:
                name = f"#{owner}"
            raise ConfigError(
                f"runs here are {name}'s, which could not write what root makes",
                file=str(home / "runs"),
                mend=f"sudo -u {name} fedsec run …",
            )


def _new(home: Path, path: Path | None) -> tuple[RunFolder, Plan]:
    """Check everything that can be checked before anybody is asked, then make the folder."""
    from fedsec.plan.load import load_plan
    from fedsec.runfolder import new_run_folder
    from server.deployment import check_deployable, check_home
    from server.federation import noise_multiplier_of

    plan = load_plan(path)
    check_deployable(plan)
    check_home(plan, home)
    noise_multiplier_of(plan)
    (home / "runs").mkdir(mode=0o700, exist_ok=True)
    return new_run_folder(home / "runs", plan), plan


def _open(home: Path, name: str) -> tuple[RunFolder, Plan]:
    """The folder of a run that was submitted before, by its run id."""
    from fedsec.errors import ConfigError
    from fedsec.plan.load import load_plan
    from fedsec.runfolder import prepare_run_folder

    folder = home / "runs" / name
    if Path(name).name != name or not (folder / "run.json").is_file():
        known = sorted(path.parent.name for path in (home / "runs").glob("*/run.json"))
        raise ConfigError(f"there is no run {name[:80]!r} in {home / 'runs'}", mend=f"known: {', '.join(known[-5:]) or 'none'}")
    plan = load_plan(folder / "plan.toml")
    return prepare_run_folder(folder, plan, resume=True), plan


def _end_last(home: Path, folder: RunFolder) -> None:
    """Free the nodes from a start of this run whose process is gone. Where Flower knows by now that it is over, it refuses, and nothing is held up."""
    from fedsec.edge.submit import SubmissionError, end
    from fedsec.flower.live import LiveReader

    last = LiveReader(folder.path).unended_run()
    if last is not None:
        with contextlib.suppress(SubmissionError):  # a SuperLink that is not there is said by the submission that follows
            end(home, last)


def _submit(home: Path, folder: RunFolder) -> int:
    from fedsec.edge.submit import submit
    from fedsec.files import sha256_file
    from server.setup import DEPLOYMENT

    stored = folder.path / "plan.toml"
    return submit(
        home, {"plan": str(stored), "plan-sha256": sha256_file(stored), "run-dir": str(folder.path), "engine": DEPLOYMENT}
    )  # fmt: skip


def _say_submitted(folder: RunFolder, flower_run_id: int | None, *, as_json: bool, quiet: bool) -> None:
    if as_json:
        print(json.dumps({"run_id": folder.run_id, "run_dir": str(folder.path), "flower_run_id": flower_run_id}))
        return
    print(folder.run_id)
    if not quiet:
        what = "submitted" if flower_run_id is not None else "already going on"
        print(f"{what}; follow it with: fedsec run --resume {folder.run_id} --follow; results go to {folder.path}", file=sys.stderr)
