"""An agent's home beside the gateway's lab, a release of what is installed, and agents as real processes."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import tomli_w

from fedsec.edge.agent_releases import begin_floor
from fedsec.identity.folder import create_identity
from fedsec.signing import Signer

ROOT = Path(__file__).resolve().parent.parent.parent


def utc():
    return datetime.now(UTC)


def alive(pid):
    with contextlib.suppress(OSError):
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def children_of(pid):
    """All processes below one, by their parents."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            parents[int(path.parent.name)] = int(fields[1])
    found, last = set(), {pid}
    while last:
        last = {child for child, parent in parents.items() if parent in last} - found
        found |= last
    return found


def wait_for(condition, seconds=30.0, every=0.05):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(every)
    return value


def copy_installation(folder):
    """fedsec, client and server as they are now: agents of the tests run this copy, whoever edits the tree meanwhile."""
    for name in ("fedsec", "client", "server"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def python_environment(installation):
    return {**os.environ, "PYTHONPATH": str(installation), "FLWR_TELEMETRY_ENABLED": "0", "OMP_NUM_THREADS": "1"}


def fedsec(installation, *arguments, cwd):
    """The command line of the copy."""
    command = [sys.executable, "-P", "-m", "fedsec", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=python_environment(installation), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def admin_identity(lab, folder, name):
    """An administrator's identity folder."""
    signer = Signer.generate()
    issued = lab.authority.issue_admin(name, signer.public_key, now=utc())
    create_identity(folder, signer, issued.certificate_der, lab.authority.intermediate_der, lab.authority.root_der)
    return folder


def client_home_of(lab, name, folder, *, approvers=("ada",), approvals=1, port=None, node=None):
    """A client's home folder, as enrolment leaves it."""
    folder.mkdir(mode=0o700)
    party = lab.nodes[name]
    create_identity(folder / "identity", party.signer, party.issued.certificate_der, lab.authority.intermediate_der, lab.authority.root_der)
    for part in ("releases", "store", "logs"):
        (folder / part).mkdir(mode=0o700)
    agent = {
        "server": f"127.0.0.1:{port or lab.port}",
        "release": {"approvers": list(approvers), "approvals": approvals},
        "node": node or {"preload": [], "task_poll_s": 0.05},
    }
    (folder / "agent.toml").write_text(tomli_w.dumps(agent))
    settings = {
        "client_id": name,
        "home": str(folder / "store"),
        "source": "mydata:load",
        "identity": str(folder / "identity"),
        "crl": str(folder / "crl.der"),
        "policy": {"epsilon_cap": 8.0, "delta": 1e-5},
    }
    (folder / "settings.toml").write_text(tomli_w.dumps(settings))
    begin_floor(folder / "floor.json")
    return folder


class AgentProcess:
    """``python -m fedsec.edge.agent`` as a process of its own."""

    def __init__(self, home, installation=ROOT):
        self.home = home
        self.log = (home / "agent.log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "fedsec.edge.agent", "--home", str(home)],
            env=python_environment(installation),
            stdout=self.log,
            stderr=self.log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        family = children_of(self.process.pid)
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(12)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.log.close()
        for pid in family:
            if alive(pid):
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)

    def status(self):
        with contextlib.suppress(OSError, ValueError):
            return json.loads((self.home / "status.json").read_text())
        return {}

    def said(self):
        return (self.home / "agent.log").read_text() + "".join(
            f"\n--- {path.name}\n{path.read_text()[-3000:]}" for path in (self.home / "logs").glob("*.log")
        )
