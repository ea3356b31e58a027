"""What a ServerApp is told to run: the plan and the folder, from Flower's run config.

1. ``plan`` is a path, bound by ``plan-sha256`` where that is given; empty means the default plan.
2. ``run-dir`` is the folder of the run; empty means a new one under ``$FEDSEC_HOME/runs`` (``~/.fedsec`` by default).
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


@dataclass(frozen=True, kw_only=True)
class ServerSetup:
    """A plan and the folder to run it in.

    Attributes:
        plan: what to run.
        folder: where; exists.
        engine: ``local``, ``ray``, ``flower`` or ``deployment``, for the result.
    """

    plan: Plan
    folder: RunFolder
    engine: str


def fedsec_home() -> Path:
    """``$FEDSEC_HOME``, or ``~/.fedsec``."""
    return Path(os.environ.get("FEDSEC_HOME") or Path.home() / ".fedsec")


def read_setup(run_config: Mapping[str, object]) -> ServerSetup:
    """Read the run config.

    Raises:
        ConfigError: the plan is unreadable, unsound, or not the one that was bound; or the folder holds another run.
    """
    path_text, bound, folder_text = (str(run_config.get(key) or "") for key in ("plan", "plan-sha256", "run-dir"))
    path = Path(path_text) if path_text else None
    if path is not None and bound and path.is_file() and not hmac.compare_digest(sha256_file(path), bound):
        raise ConfigError("the plan's SHA-256 is not the one the run was submitted with", file=path_text, mend="submit the run again")
    plan = load_plan(path)
    new = fedsec_home() / "runs" / datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
    folder_path = Path(folder_text) if folder_text else new
    folder_path.parent.mkdir(parents=True, exist_ok=True)
    folder = prepare_run_folder(folder_path.absolute(), plan, resume=True)
    return ServerSetup(plan=plan, folder=folder, engine=str(run_config.get("engine") or "flower"))
