"""``fedsec doctor`` as a user meets it: one line a check, the mend beside it, an exit code, and one JSON object on request."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedsec.cli.main import app
from fedsec.edge.doctor_host import hides_processes, read_proc_options
from fedsec.errors import ConfigError, StorageError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "edge"))

from doctor_world import World, client_home, gateway

from fedsec.identity.names import Role

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.fixture
def healthy(world, tmp_path):
    with gateway(world.party(Role.SERVER, "main"), crl=world.crl()) as address:
        yield client_home(tmp_path / "home", address, world.party())


RECORDS = """\
import numpy as np
def load():
    return {"x": np.random.default_rng(0).normal(size=(60, 4)).astype("float32"), "y": np.arange(60) % 3, "num_classes": 3}
"""


def doctor(*arguments, source="--no-check-source", **environment):
    return RUNNER.invoke(app, ["doctor", "--idle", "0", source, *map(str, arguments)], env={"FEDSEC_PASSPHRASE_FILE": None, **environment})


def test_all_in_order_ends_with_zero_and_one_line_a_check(healthy, tmp_path):
    (tmp_path / "mydata.py").write_text(RECORDS)
    (healthy / "settings.toml").write_text('source = "mydata:load"\n')
    page = doctor("--home", healthy, source="--check-source", PYTHONPATH=str(tmp_path))
    assert page.exit_code == 0, page.output
    *lines, last = page.output.splitlines()
    hidden = hides_processes(read_proc_options())  # how this machine mounts /proc is not the test's to say
    warned = [line for line in lines if not line.startswith("ok ")]
    assert [line.split()[0] for line in warned] == ([] if hidden else ["warning"])
    assert all("command lines in /proc" in line for line in warned)
    assert (last == "no fault found") == hidden
    assert len({line.split()[1] for line in lines}) == 20
    assert any(line.split()[1] == "source" and "3 classes" in line for line in lines)


@pytest.mark.parametrize(
    ("settings", "says"), [("", "names no source"), ('source = "no_such_module_here:load"\n', "no module 'no_such_module_here'")]
)
def test_a_source_that_gives_no_records_is_a_fault(healthy, settings, says):
    (healthy / "settings.toml").write_text(settings)
    page = doctor("--home", healthy, source="--check-source")
    (line,) = [line for line in page.output.splitlines() if line.startswith("fault")]
    assert line.split()[1] == "source"
    assert says in line
    assert page.exit_code == 1


def test_a_fault_ends_with_one_and_has_its_mend_on_its_line(healthy):
    page = doctor("--home", healthy, "--server", "127.0.0.1:1")
    assert page.exit_code == 1
    (line,) = [line for line in page.output.splitlines() if line.startswith("fault")]
    assert "refuses connections — start the server" in line
    assert "not checked, because of what is above: tls" in page.output


def test_json_is_one_object(healthy):
    facts = json.loads(doctor("--home", healthy, "--json").stdout)
    assert (facts["kind"], facts["faults"], facts["not_checked"]) == ("client", 0, [])
    assert {"check", "code", "level", "text", "mend"} == facts["findings"][0].keys()


def test_the_home_folder_comes_from_the_environment(healthy):
    assert json.loads(doctor("--json", FEDSEC_CLIENT_HOME=str(healthy)).stdout)["home"] == str(healthy)


def test_quick_makes_no_handshake(healthy):
    facts = json.loads(doctor("--home", healthy, "--quick", "--json").stdout)
    assert {"tls", "session"}.isdisjoint(item["check"] for item in facts["findings"])
    assert facts["not_checked"] == []


def test_a_passphrase_comes_from_a_file(world, healthy, tmp_path):
    from fedsec.signing import Signer

    key = healthy / "identity" / "key.pem"
    key.write_bytes(Signer.from_pem(key.read_bytes()).to_pem(passphrase=b"open sesame"))
    assert "key.locked" in doctor("--home", healthy, "--json").stdout
    secret = tmp_path / "passphrase"
    secret.touch(mode=0o600)
    secret.write_bytes(b"open sesame\n")
    assert doctor("--home", healthy, "--passphrase-file", secret).exit_code == 0
    assert doctor("--home", healthy, FEDSEC_PASSPHRASE_FILE=str(secret)).exit_code == 0


def test_a_token_is_looked_at_from_stdin_and_not_repeated(healthy):
    page = RUNNER.invoke(app, ["doctor", "--home", str(healthy), "--quick", "--token-file", "-"], input="fedsec-token-1.secret.part\n")
    assert page.exit_code == 1
    assert "token" in page.output
    assert "secret.part" not in page.output


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--server", "nonsense"], ConfigError),
        (["--token-file", "/no/such/file"], ConfigError),
        (["--passphrase-file", "/no/such/file"], StorageError),
    ],
)
def test_bad_arguments(healthy, arguments, error):
    assert isinstance(doctor("--home", healthy, *arguments).exception, error)


def test_help_has_examples():
    page = RUNNER.invoke(app, ["doctor", "--help"])
    assert page.exit_code == 0
    assert "Examples:" in page.output


def test_the_script_itself_on_a_bare_machine(tmp_path):
    environment = {**os.environ, "HOME": str(tmp_path)}
    for name in ("FEDSEC_HOME", "FEDSEC_CLIENT_HOME"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-m", "fedsec", "doctor"], check=False, capture_output=True, text=True, timeout=60, env=environment
    )
    assert done.returncode == 1
    assert done.stderr == ""
    assert "fedsec client enroll" in done.stdout
