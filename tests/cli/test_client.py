"""``fedsec client``: set up and enrol against a real enrolment service, look at a client that is down, renew without an agent."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent.parent / "edge"))

from agent_lab import ROOT, client_home_of, wait_for
from gateway_lab import FakeSuperLink, Lab

from experiments.ports import free_port
from fedsec.cli.main import app
from fedsec.edge.agent_releases import _read_floor
from fedsec.edge.agent_setup import renew_now
from fedsec.errors import ConfigError, FedsecError, StorageError
from fedsec.identity.folder import load_identity

RUNNER = CliRunner()
RECORDS = """\
import numpy as np
def load():
    return {"x": np.random.default_rng(0).normal(size=(60, 4)).astype("float32"), "y": np.arange(60) % 3, "num_classes": 3}
"""
SITE = [
    "--server",
    "127.0.0.1:9443",
    "--approver",
    "ada",
    "--approver",
    "ben",
    "--approvals",
    "2",
    "--source",
    "mydata:load",
    "--epsilon-cap",
    "4",
]


def invoke(*arguments, code=0, **options):
    done = RUNNER.invoke(app, ["client", *map(str, arguments)], **options)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return done.output


def test_init_writes_settings_once(tmp_path):
    home = tmp_path / "home"
    facts = json.loads(invoke("init", "client-7", *SITE, "--home", home, "--json"))
    assert facts["written"] == ["agent.toml", "settings.toml"]
    assert "nothing" in invoke("init", "client-7", *SITE, "--home", home)


def test_init_refuses_what_could_not_run(tmp_path):
    with pytest.raises(ConfigError, match="host:port"):
        invoke("init", "client-7", "--server", "nowhere", *SITE[2:], "--home", tmp_path / "home")
    with pytest.raises(ConfigError, match="approvals"):
        invoke("init", "client-7", *SITE, "--approvals", "3", "--home", tmp_path / "home")
    assert not (tmp_path / "home" / "agent.toml").exists()


def test_status_of_a_client_that_is_down_says_so_and_what_is_known(tmp_path):
    lab = Lab(tmp_path, ("node-a",))
    home = client_home_of(lab, "node-a", tmp_path / "client")
    report = json.loads(invoke("status", "--home", home, "--json", code=1))
    assert (report["state"], report["pid"], report["privacy"]["epsilon_cap"]) == ("stopped", None, 8.0)
    assert report["certificate"]["uri"] == "spiffe://hearts.example/site/basel/node/node-a"
    page = invoke("status", "--home", home, code=1)
    for words in ("stopped: the agent is not running", "72.0 h left", "ε 0 spent of 8"):
        assert words in page
    with pytest.raises(ConfigError, match="fedsec client init"):
        invoke("status", "--home", tmp_path / "nowhere")


def test_status_survives_what_is_damaged(tmp_path):
    lab = Lab(tmp_path, ("node-a",))
    home = client_home_of(lab, "node-a", tmp_path / "client")
    (home / "status.json").write_text("{")
    (home / "settings.toml").write_text("x")
    (home / "identity" / "certificate.der").write_bytes(b"x")
    report = json.loads(invoke("status", "--home", home, "--json", code=1))
    assert "error" in report["certificate"]
    assert "error" in report["privacy"]
    assert invoke("status", "--home", home, code=1)


def test_up_refuses_a_home_that_is_not_a_nodes(tmp_path):
    lab = Lab(tmp_path, ("node-a",))
    home = client_home_of(lab, "node-a", tmp_path / "client")
    (home / "settings.toml").write_text((home / "settings.toml").read_text().replace('"node-a"', '"node-b"'))
    assert "is not node-a" in invoke("up", "--home", home, code=2)
    (home / "settings.toml").write_text('client_id = "node-a"\n')
    assert "identity" in invoke("up", "--home", home, code=2)  # without one the ClientApp would believe any request


def test_reset_floor_asks_and_writes(tmp_path):
    lab = Lab(tmp_path, ("node-a",))
    home = client_home_of(lab, "node-a", tmp_path / "client")
    (home / "floor.json").unlink()
    RUNNER.invoke(app, ["client", "reset-floor", "--home", str(home)], input="n\n")
    assert not (home / "floor.json").exists()
    invoke("reset-floor", "--home", home, "--yes")
    assert _read_floor(home / "floor.json").version == 0


def test_renew_without_an_agent_says_why_it_cannot_and_changes_nothing(tmp_path):
    lab = Lab(tmp_path, ("node-a",), toml="refresh_s = 0.2\n")
    home = client_home_of(lab, "node-a", tmp_path / "client")
    before = load_identity(home / "identity")

    async def story():
        with FakeSuperLink(lab):
            async with lab.gateway():
                with pytest.raises(FedsecError, match="not renewed"):  # this lab's gateway has no CA behind it
                    await asyncio.to_thread(renew_now, home)

    asyncio.run(asyncio.wait_for(story(), 60))
    assert load_identity(home / "identity").certificate_der == before.certificate_der


def test_renew_asks_a_running_agent_by_signal(tmp_path, monkeypatch):
    """The agent is this process: it gets the signal, and the new certificate appears in the folder."""
    from datetime import UTC, datetime

    lab = Lab(tmp_path, ("node-a",))
    home = client_home_of(lab, "node-a", tmp_path / "client")
    status = {"pid": os.getpid(), "updated_at": datetime.now(UTC).isoformat(), "state": "connected"}
    (home / "status.json").write_text(json.dumps(status))
    issued = lab.issue("node-a", lab.nodes["node-a"].signer)
    previous = signal.signal(signal.SIGHUP, lambda *_: (home / "identity" / "certificate.der").write_bytes(issued.certificate_der))
    try:
        facts = json.loads(invoke("renew", "--home", home, "--json"))
    finally:
        signal.signal(signal.SIGHUP, previous)
    assert facts["serial_number"] == f"{issued.serial_number:X}"


def test_enrolment_with_a_real_ca_writes_everything(tmp_path, monkeypatch):
    """The token is read from a file; the key never leaves the home folder, and a second enrolment does not overwrite it.

    A source that gives no records is found first: the token is still good afterwards, and nothing was written.
    """
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    folder, port = tmp_path / "ca", free_port()

    def of_ca(*arguments):
        done = RUNNER.invoke(app, ["ca", *map(str, arguments), "--ca", str(folder)])
        assert done.exit_code == 0, (done.output, done.exception)
        return done.output

    of_ca("init", "hearts.example", "--address", f"127.0.0.1:{port}")
    (tmp_path / "token").write_text(json.loads(of_ca("token", "--node", "client-7", "--site", "basel", "--json"))["token"])
    (tmp_path / "token").chmod(0o600)
    with serving(folder, port):
        home = tmp_path / "home"
        with pytest.raises(ConfigError, match=r"no module 'mydata'.*--no-check-source"):
            invoke("enroll", "--token-file", tmp_path / "token", *SITE, "--home", home)
        assert not home.exists()
        (tmp_path / "site").mkdir()
        (tmp_path / "site" / "mydata.py").write_text(RECORDS)
        facts = json.loads(invoke("enroll", "--token-file", tmp_path / "token", *SITE, "--home", home, "--json"))
        assert facts["uri"] == "spiffe://hearts.example/site/basel/node/client-7"
        assert load_identity(home / "identity").name.name == "client-7"
        assert 'client_id = "client-7"' in (home / "settings.toml").read_text()
        assert (home / "identity" / "key.pem").stat().st_mode & 0o777 == 0o600
        with pytest.raises(StorageError, match="holds an identity already"):
            invoke("enroll", "--token-file", tmp_path / "token", *SITE, "--home", home, "--no-check-source")


@contextlib.contextmanager
def serving(folder, port):
    """``fedsec ca serve`` as a process."""
    command = [sys.executable, "-m", "fedsec", "ca", "serve", "--ca", str(folder), "--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        wait_for(lambda: process.poll() is not None or answers(port))
        assert process.poll() is None, process.stdout.read()
        yield
    finally:
        process.terminate()
        process.wait(15)


def answers(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=0.2):
        return True
    return False
