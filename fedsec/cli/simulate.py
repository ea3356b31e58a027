"""``fedsec simulate``: one federation on this machine, from plan to result folder."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from fedsec.plan.model import Plan
    from fedsec.results import RunResult
    from fedsec.runfolder import RunFolder
    from fedsec.sim.faults import FaultPlan
    from server.session import Session

EPILOG = (
    "Examples:  fedsec simulate  ·  fedsec simulate my-plan.toml --out runs/mine  ·  "
    "fedsec simulate --set privacy.epsilon=2 --set federation.rounds=10  ·  fedsec simulate --out runs/mine --resume  ·  fedsec simulate --json"
)
STOPPED_EXIT_CODE = 130
"""What shells report for a program that Ctrl-C ended."""


class EngineName(StrEnum):
    """Where the clients run."""

    LOCAL = "local"
    RAY = "ray"


def simulate(
    plan: Path | None = typer.Argument(None, help="Plan file; the default plan if left out.", show_default=False),
    overrides: list[str] = typer.Option(
        [], "--set", help="Override one key, as section.key=value; may be given often.", show_default=False
    ),
    engine: EngineName = typer.Option(EngineName.LOCAL, help="local: this process and forked workers; ray: Flower's engine."),
    out: Path | None = typer.Option(None, help="Result folder; runs/TIME if left out.", show_default=False),
    resume: bool = typer.Option(False, "--resume", help="Go on with the run in --out, or start it if there is none."),
    fresh: bool = typer.Option(False, "--fresh", help="Remove the run in --out first."),
    workers: int | None = typer.Option(None, min=1, help="Worker processes; one per core if left out.", show_default=False),
    data_root: Path | None = typer.Option(
        None, help="Folder with the image sets; else $FEDSEC_DATA_ROOT, else a cache.", show_default=False
    ),
    as_json: bool = typer.Option(False, "--json", help="Print exactly one JSON object on stdout."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="No progress on stderr."),
) -> None:
    """Run one federation on this machine and leave a folder with model, tables, plots and plan."""
    from fedsec.cli.arms import check_arms, run_arms
    from fedsec.errors import ConfigError
    from fedsec.plan.load import load_plan
    from fedsec.report.tables import print_result
    from fedsec.runfolder import prepare_run_folder

    if data_root is not None:
        os.environ["FEDSEC_DATA_ROOT"] = str(data_root.absolute())
    folder_path = (out if out is not None else Path("runs") / datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")).absolute()
    stored = folder_path / "plan.toml"
    checked = load_plan(stored if plan is None and resume and stored.exists() else plan, overrides=overrides)
    if engine is EngineName.RAY and checked.federation.dropout:
        raise ConfigError(
            "only the local engine makes clients vanish", field="federation.dropout", mend="use --engine local, or set it to 0"
        )
    if (folder_path / "run.json").exists() and not fresh:  # refuse the wrong folder before anything slow
        prepare_run_folder(folder_path, checked, resume=resume)
    check_arms(checked, folder_path)
    _warn_early(checked, quiet=quiet)
    folder = prepare_run_folder(folder_path, checked, resume=resume, fresh=fresh)
    result = _run(checked, folder, engine=engine, workers=workers, quiet=quiet).result
    if result is None:
        raise typer.Exit(STOPPED_EXIT_CODE)
    if not result.stopped_early:

        def run_one(arm: Plan, path: Path) -> RunResult | None:
            arm_folder = prepare_run_folder(path, arm, resume=True)
            return _run(arm, arm_folder, engine=engine, workers=workers, quiet=quiet).result

        result = run_arms(checked, result, run_one)
    if as_json:
        print(json.dumps(result.to_json(), allow_nan=False))
    else:
        from rich.console import Console

        print_result(result, Console())
    if result.stopped_early or _lacks_arms(checked, result):
        raise typer.Exit(STOPPED_EXIT_CODE)


def _lacks_arms(plan: Plan, result: RunResult) -> bool:
    """Whether the runs to compare with were stopped."""
    from fedsec.cli.arms import arms_of

    return bool(arms_of(plan)) and (result.rejection is None or result.rejection.accuracy_no_attack is None)


def _warn_early(plan: Plan, *, quiet: bool) -> None:
    """Load the data before anything is written or forked: a missing file is found here, and workers share the one copy."""
    from fedsec.data.federated import federated_data
    from fedsec.plan.guarantees import delta_warning
    from server.federation import noise_multiplier_of

    data = federated_data(plan.data, num_clients=plan.federation.num_clients, seed=plan.federation.seed)
    noise_multiplier_of(plan)
    warning = delta_warning(plan, data.smallest_client)
    if warning and not quiet:
        print(f"warning: {warning}", file=sys.stderr)


def _run(plan: Plan, folder: RunFolder, *, engine: EngineName, workers: int | None, quiet: bool) -> Session:
    import client.app
    import client.warm
    import server.app
    from fedsec.environment import environment
    from fedsec.files import sha256_file
    from fedsec.report.progress import RunProgress
    from server.session import Session, listening

    stored = folder.path / "plan.toml"
    run_config = {"plan": str(stored), "plan-sha256": sha256_file(stored), "run-dir": str(folder.path), "engine": str(engine)}
    progress = RunProgress(
        rounds=plan.federation.rounds,
        epsilon_target=plan.privacy.epsilon if plan.is_private else None,
        title=plan.name,
        quiet=quiet,
    )
    session = Session(on_start=progress.on_start, on_round=progress.on_round, on_answers=progress.clients_answered)
    apps: Any = {"server_app": server.app.app, "client_app": client.app.app, "num_nodes": plan.federation.num_clients}
    no_own_records = environment({"FEDSEC_SIMULATION": "1"})  # to the workers: these clients have none to protect
    with no_own_records, listening(session), _stopping_on_signals(session), progress:
        if engine is EngineName.RAY:
            from fedsec.flower.ray import run_ray

            run_ray(**apps, run_config=run_config, workers=workers)
        else:
            from fedsec.flower.local import run_local

            client.warm.preload()
            run_local(**apps, run_config=run_config, workers=workers, faults=_faults(plan))
    return session


def _faults(plan: Plan) -> FaultPlan | None:
    """Clients that vanish at random while they should train, or in any stage of the protocol; the same ones on every run of the plan."""
    from fedsec.flower.records import TRAIN
    from fedsec.flower.secure_records import STAGES, stage_type
    from fedsec.sim.faults import FaultPlan

    rate = plan.federation.dropout
    types: tuple[str, ...] = (TRAIN,)
    if not rate:
        return None
    if plan.secagg.enabled:
        types = tuple(stage_type(stage) for stage in STAGES)
        rate = 1 - (1 - rate) ** (1 / len(types))  # of a round, spread evenly over its stages
    return FaultPlan.random(rate=rate, seed=plan.federation.seed, message_types=types)


@contextlib.contextmanager
def _stopping_on_signals(session: Session) -> Iterator[None]:
    """First Ctrl-C or SIGTERM: end with a usable result. Second: end at once."""

    def ask(_number: int, _frame: object) -> None:
        if session.stop.is_set():
            raise KeyboardInterrupt
        session.stop.set()

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
