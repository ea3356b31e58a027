"""What a ServerApp is told to run: the plan, the folder and the engine, from Flower's run config and this process's environment.

1. ``plan`` is a path, bound by ``plan-sha256`` where that is given; empty means the default plan.
2. ``run-dir`` is the folder of the run; empty means a new one under ``$FEDSEC_HOME/runs`` (``~/.fedsec`` by default).
3. ``engine`` says where the clients are. Without it, a home with a folder ``federation`` is a server's, and the run is a deployment; any other is a
   simulation in Flower's engine. Nothing that a client says has a part in this.
4. A deployment's plan must be bound, and its folder lies under ``$FEDSEC_HOME/runs``: the run config comes through Flower's control interface,
   which every local user of the server's host reaches.
5. On a server host (``fedsec server up`` says so in the environment) nothing but deployments runs, and of plans only one that lies in its
   run's folder, where ``fedsec run`` put it: a plan names code and records, and that folder is the service's alone.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fedsec.errors import ConfigError
from fedsec.files import sha256_file
from fedsec.plan.load import load_plan
from fedsec.plan.model import Plan
from fedsec.runfolder import RunFolder, prepare_run_folder

DEPLOYMENT = "deployment"
SIMULATIONS = ("local", "ray", "flower")
FEDERATION = "federation"
"""Folder of a server's home with the CA's list of clients."""
SERVER_HOST_VARIABLE = "FEDSEC_SERVER_HOST"
"""Environment variable by which the processes of ``fedsec server up`` know that they are its: 1."""


@dataclass(frozen=True, kw_only=True)
class ServerSetup:
    """A plan and the folder to run it in.

    Attributes:
        plan: what to run.
        folder: where; exists.
        engine: ``local``, ``ray``, ``flower`` or ``deployment``.
        home: of the server; a deployment reads identity and clients there.
    """

    plan: Plan
    folder: RunFolder
    engine: str
    home: Path


def fedsec_home() -> Path:
    """``$FEDSEC_HOME``, or ``~/.fedsec``."""
    return Path(os.environ.get("FEDSEC_HOME") or Path.home() / ".fedsec").absolute()


def engine_of(run_config: Mapping[str, object], home: Path) -> str:
    """Where the clients of this run are.

    Raises:
        ConfigError: an engine that there is not.
    """
    said = str(run_config.get("engine") or "")
    if not said:
        return DEPLOYMENT if (home / FEDERATION).is_dir() else "flower"
    if said not in (DEPLOYMENT, *SIMULATIONS):
        raise ConfigError(f"there is no engine {said[:40]!r}", field="engine", mend=f"one of {', '.join((DEPLOYMENT, *SIMULATIONS))}")
    return said


def read_setup(run_config: Mapping[str, object]) -> ServerSetup:
    """Read the run config.

    Raises:
        ConfigError: the plan is unreadable, unsound, or not the one that was bound; or the folder holds another run.
    """
    home = fedsec_home()
    engine = engine_of(run_config, home)
    path_text, bound, folder_text = (str(run_config.get(key) or "") for key in ("plan", "plan-sha256", "run-dir"))
    path = Path(path_text) if path_text else None
    if engine == DEPLOYMENT and not (path is not None and bound and path.is_file()):
        raise ConfigError(
            "a deployment's plan is not named and bound by its SHA-256", field="plan", mend="submit it with: fedsec run PLAN.toml"
        )
    if path is not None and bound and path.is_file() and not hmac.compare_digest(sha256_file(path), bound):
        raise ConfigError("the plan's SHA-256 is not the one the run was submitted with", file=path_text, mend="submit the run again")
    if os.environ.get(SERVER_HOST_VARIABLE) == "1":
        _check_hosted(engine, path, folder_text, home)
    plan = load_plan(path)
    new = home / "runs" / datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
    folder_path = (Path(folder_text) if folder_text else new).absolute()
    if engine == DEPLOYMENT and folder_path.resolve().parent != (home / "runs").resolve():
        raise ConfigError(
            "a deployment's folder does not lie in the server's home", field="run-dir", mend="submit it with: fedsec run PLAN.toml"
        )
    folder_path.parent.mkdir(parents=True, exist_ok=True)
    folder = prepare_run_folder(folder_path, plan, resume=True)
    return ServerSetup(plan=plan, folder=folder, engine=engine, home=home)


def _check_hosted(engine: str, path: Path | None, folder_text: str, home: Path) -> None:
    """Refuse what somebody else than ``fedsec run`` may have submitted on a server host.

    Raises:
        ConfigError: another engine, or a plan that does not lie in the run's folder in the server's home.
    """
    inside = path is not None and folder_text and path.resolve().parent == Path(folder_text).resolve()
    if engine != DEPLOYMENT or not inside or Path(folder_text).resolve().parent != (home / "runs").resolve():
        raise ConfigError("this host runs what was submitted in its home only", field="plan", mend="submit it with: fedsec run PLAN.toml")
