"""The repository root is an ordinary Flower app: ``flwr run .`` runs the same plan to the same model as ``fedsec simulate``."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from tests.e2e.warm import Command

ROOT = Path(__file__).resolve().parents[2]
FLWR = str(Path(sys.executable).parent / "flwr")
PLAN = "[federation]\nnum_clients = 4\nrounds = 1\n[privacy]\nepsilon = 20.0\n[secagg]\nenabled = true\n"

pytestmark = pytest.mark.needs("ray")


@pytest.fixture
def flower_home(tmp_path):
    """A Flower home of its own; afterwards the SuperLink that ``flwr run`` leaves behind is ended, by its pid."""
    home = tmp_path / "flwr-home"
    yield home
    for pid in superlinks_of(home):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 20
    while superlinks_of(home) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert superlinks_of(home) == []


def superlinks_of(home):
    """Pids of SuperLink processes whose command line names this home."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if any("flower-superlink" in part for part in command) and any(str(home) in part for part in command):
                found.append(int(entry.name))
    return found


def test_flwr_run_gives_the_same_model_as_fedsec_simulate(tmp_path, flower_home):
    (tmp_path / "plan.toml").write_text(PLAN)
    environment = {**os.environ, "FLWR_HOME": str(flower_home), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    config = f'plan="{tmp_path / "plan.toml"}" run-dir="{tmp_path / "flower"}"'
    run = subprocess.run(
        [FLWR, "run", str(ROOT), "--stream", "--federation-config", "num-supernodes=4", "--run-config", config],
        check=False, capture_output=True, text=True, env=environment, timeout=280,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert (tmp_path / "flower" / "result.json").exists(), run.stdout
    result = json.loads((tmp_path / "flower" / "result.json").read_text())
    assert (result["rounds"], result["engine"]) == (1, "flower")
    local = Command(["simulate", tmp_path / "plan.toml", "--out", tmp_path / "local", "--json", "-q"], tmp_path)
    assert local.wait() == 0
    assert (tmp_path / "flower" / "model.safetensors").read_bytes() == (tmp_path / "local" / "model.safetensors").read_bytes()


def test_the_fab_holds_the_two_thin_apps_only(tmp_path):
    copy = tmp_path / "app"
    copy.mkdir()
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, copy)
    for name in ("server", "client", "fedsec"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = subprocess.run(
        [FLWR, "build"], cwd=copy, check=False, capture_output=True, text=True, env={**os.environ, "FLWR_HOME": str(tmp_path / "home")}
    )
    assert build.returncode == 0, build.stdout + build.stderr
    (fab,) = copy.glob("*.fab")
    names = {name for name in zipfile.ZipFile(fab).namelist() if not name.startswith(".info")}
    assert {"server/app.py", "client/app.py", "LICENSE", "pyproject.toml"} <= names
    assert all(name.startswith(("server/", "client/")) or name in ("LICENSE", "pyproject.toml", "README.md") for name in names)
