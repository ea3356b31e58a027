"""Hand a run to the SuperLink of this host, with Flower's own command: ``flwr run`` on the app folder, in the server's Flower home.

1. The app is made afresh from what is installed (``appfolder``), so the SuperLink makes the very FAB that ``fedsec release build`` made.
2. The run config goes as a file: no path is ever quoted by hand. It names the plan and binds it by SHA-256.
3. Flower's command is started, never imported. What it says is turned into one sentence; its output goes along.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from fedsec.edge.appfolder import write_app_folder
from fedsec.errors import ConfigError, FedsecError

FLOWER_HOME = Path("superlink") / "flwr"
"""Of the server's home: where ``fedsec server up`` writes how to reach the SuperLink."""
TIMEOUT_S = 120.0
MAX_OUTPUT = 600


class SubmissionError(FedsecError):
    """The SuperLink did not take the run, or cannot say how it is."""

    code = "submission"


@dataclass(frozen=True)
class FlowerRun:
    """A run as Flower lists it.

    Attributes:
        flower_run_id: Flower's id.
        status: for example ``running`` or ``finished:failed``.
    """

    flower_run_id: int
    status: str

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.status.startswith("finished")


def submit(home: Path, run_config: Mapping[str, str]) -> int:
    """Submit the installed app; returns Flower's id of the run.

    Args:
        home: of the server.
        run_config: keys of ``server/setup.py``.

    Raises:
        ConfigError: there is no server in this home.
        SubmissionError: the SuperLink is not there, or refused.
    """
    with tempfile.TemporaryDirectory(prefix="fedsec-submit-") as scratch:
        app = write_app_folder(Path(scratch) / "fedsec")
        config = Path(scratch) / "run.toml"
        config.write_text(tomli_w.dumps(dict(run_config)), encoding="utf-8")
        said = _flwr(home, ["run", str(app), "--run-config", str(config), "--format", "json"])
    try:
        return int(said["run-id"])
    except (KeyError, TypeError, ValueError):
        raise SubmissionError(f"the SuperLink gave no id for the run: {json.dumps(said)[:MAX_OUTPUT]}") from None


def look_up(home: Path, flower_run_id: int) -> FlowerRun:
    """How a run stands.

    Raises:
        ConfigError, SubmissionError: as :func:`submit`.
    """
    said = _flwr(home, ["list", "--run-id", str(flower_run_id), "--format", "json"])
    try:
        (run,) = said["runs"]
        return FlowerRun(flower_run_id=flower_run_id, status=str(run["status"]))
    except (KeyError, TypeError, ValueError):
        raise SubmissionError(f"the SuperLink does not know run {flower_run_id}; was its database removed?") from None


def end(home: Path, flower_run_id: int) -> None:
    """Tell the SuperLink that nothing more comes of a run.

    The nodes of a run whose ServerApp died wait for the rest of its last message, up to a minute each, and hear nothing else meanwhile.

    Raises:
        ConfigError: as :func:`submit`.
        SubmissionError: as :func:`submit`, or the run is over already.
    """
    _flwr(home, ["stop", str(flower_run_id), "--format", "json"])


def _flwr(home: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """Run Flower's command in the server's Flower home; its JSON."""
    flower_home = home / FLOWER_HOME
    if not (flower_home / "config.toml").is_file():
        raise ConfigError(
            f"{home} is not the home of a server that was started", mend="start it with: fedsec server up (or set FEDSEC_HOME)"
        )
    environment = {**os.environ, "FLWR_HOME": str(flower_home), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        environment.pop(name, None)
        environment.pop(name.upper(), None)
    command = [str(Path(sys.executable).parent / "flwr"), *arguments]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=TIMEOUT_S)  # noqa: S603
    except FileNotFoundError:
        raise ConfigError("Flower's command flwr is not installed beside this Python", mend="install fedsec again, whole") from None
    except subprocess.TimeoutExpired:
        raise SubmissionError(f"the SuperLink did not answer within {TIMEOUT_S:.0f} s; look at {home / 'superlink'}/*.log") from None
    value = _json_of(done.stdout)
    if done.returncode != 0 or value is None or value.get("success") is False:
        raise SubmissionError(_reason(done, value))
    return value


def _json_of(text: str) -> dict[str, Any] | None:
    """The JSON object that Flower printed, after whatever else it printed."""
    start = text.find("{")
    try:
        value = json.loads(text[start:]) if start >= 0 else None
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _reason(done: subprocess.CompletedProcess[str], value: dict[str, Any] | None) -> str:
    said = str(value.get("error-message", "")) if value is not None else ""
    said = " ".join((said or done.stderr or done.stdout).split())[:MAX_OUTPUT]
    lowered = said.lower()
    if any(word in lowered for word in ("unavailable", "connection refused", "connect", "unreachable")):
        return f"the SuperLink does not answer; start it with: fedsec server up ({said})"
    return f"Flower refused the run: {said or f'exit status {done.returncode}'}"
