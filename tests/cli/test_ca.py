"""``fedsec ca`` as an operator uses it."""

import json
import os
import signal
import stat
import subprocess
import sys
from datetime import UTC, datetime

import pytest
from typer.testing import CliRunner

from fedsec.cli.main import app
from fedsec.edge.ca_host import CaHost
from fedsec.edge.enrolment_client import enrol_folder
from fedsec.errors import CertificateError, ConfigError, StorageError
from fedsec.identity.csr import make_csr
from fedsec.identity.folder import create_identity, load_identity
from fedsec.identity.names import Role
from fedsec.identity.revocation import verify_crl
from fedsec.identity.tokens import read_token
from fedsec.identity.verify import verify_peer
from fedsec.signing import Signer

RUNNER = CliRunner()
COMMANDS = ["init", "token", "issue", "list", "revoke", "crl", "roster", "export", "renew-intermediate", "rekey", "serve"]


def run(*arguments, fails=None):
    result = RUNNER.invoke(app, ["ca", *map(str, arguments)])
    if fails is not None:
        assert isinstance(result.exception, fails), result.output
        return str(result.exception)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def said(*arguments):
    return json.loads(run(*arguments, "--json"))


@pytest.fixture
def ca(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSEC_CA", str(tmp_path / "ca"))
    run("init", "hearts.example", "--address", "127.0.0.1:9443")
    return tmp_path / "ca"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_examples(command):
    page = RUNNER.invoke(app, ["ca", command, "--help"])
    assert page.exit_code == 0
    assert f"fedsec ca {command}" in page.output


def test_init_says_what_to_keep_where_and_makes_keys_for_the_owner_only(tmp_path):
    facts = said("init", "hearts.example", "--ca", tmp_path / "ca")
    assert facts["federation"] == "hearts.example"
    assert len(facts["root_sha256"]) == len(facts["service_sha256"]) == 64
    assert stat.S_IMODE((tmp_path / "ca").stat().st_mode) == 0o700
    for path in (tmp_path / "ca").rglob("*key*.pem"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "offline" in run("init", "hearts.example", "--ca", tmp_path / "second")
    run("init", "hearts.example", "--ca", tmp_path / "ca", fails=StorageError)
    run("init", "Hearts", "--ca", tmp_path / "third", fails=CertificateError)
    assert not (tmp_path / "third").exists()


def test_a_token_says_for_whom_it_is(ca):
    token = read_token(run("token", "--node", "client-1", "--site", "basel").strip())
    assert (token.uri, token.address) == ("spiffe://hearts.example/site/basel/node/client-1", "127.0.0.1:9443")
    assert said("token", "--server", "main")["uri"] == "spiffe://hearts.example/server/main"
    assert read_token(said("token", "--admin", "ada", "--minutes", "5")["token"]).role is Role.ADMIN


@pytest.mark.parametrize(
    "arguments",
    [[], ["--node", "a"], ["--site", "b"], ["--server", "a", "--site", "b"], ["--node", "a", "--site", "b", "--server", "c"], ["--server", "a", "--minutes", "16"], ["--server", "a", "--minutes", "0"]],
)  # fmt: skip
def test_a_token_for_nobody_or_for_too_long_is_refused(ca, arguments):
    run("token", *arguments, fails=ConfigError)


@pytest.mark.parametrize(
    "arguments", [["--node", "A", "--site", "b"], ["--node", "a", "--site", "../b"], ["--server", ""], ["--admin", "a b"]]
)
def test_a_token_for_a_name_that_cannot_be_is_refused(ca, arguments):
    run("token", *arguments, fails=CertificateError)


def test_a_request_in_a_file_is_issued(ca, tmp_path):
    signer = Signer.generate()
    (tmp_path / "request.der").write_bytes(make_csr(signer))
    facts = said("issue", tmp_path / "request.der", "--node", "client-1", "--site", "basel", "--out", tmp_path / "out")
    files = {name: (tmp_path / "out" / f"{name}.der").read_bytes() for name in ("certificate", "intermediate", "root")}
    create_identity(tmp_path / "identity", signer, files["certificate"], files["intermediate"], files["root"])
    assert f"{load_identity(tmp_path / 'identity').serial_number:X}" == facts["serial_number"]
    assert facts["origin"] == "offline"
    (tmp_path / "request.der").write_bytes(b"nonsense")
    run("issue", tmp_path / "request.der", "--server", "main", "--out", tmp_path / "out", fails=CertificateError)
    run("issue", tmp_path / "none.der", "--server", "main", "--out", tmp_path / "out", fails=StorageError)


def issue(tmp_path, *who):
    (tmp_path / "request.der").write_bytes(make_csr(Signer.generate()))
    return said("issue", tmp_path / "request.der", *who, "--out", tmp_path / "out")


def test_list_revoke_crl_roster_and_export(ca, tmp_path):
    run("roster", fails=CertificateError)
    issue(tmp_path, "--node", "client-1", "--site", "basel")
    second = issue(tmp_path, "--node", "client-2", "--site", "basel")
    issue(tmp_path, "--server", "main")
    assert [item["name"] for item in said("list")["certificates"]] == ["client-1", "client-2", "main"]
    assert "client-1 of basel" in run("list", "--all")
    assert said("roster")["members"] == ["client-1", "client-2"]
    said("export", tmp_path / "copy")
    hit = said("revoke", second["serial_number"], "--reason", "key-compromise")["revoked"]
    assert [(item["name"], item["serial_number"]) for item in hit] == [("client-2", second["serial_number"])]
    assert "revoked" in run("list")
    facts = said("crl", "--out", tmp_path / "crl.der")
    chain = {"intermediate_der": (ca / "intermediate.der").read_bytes(), "root_der": (ca / "root.der").read_bytes()}
    found = verify_crl((tmp_path / "crl.der").read_bytes(), **chain, federation="hearts.example", now=datetime.now(tz=UTC))
    assert (found.number, found.serial_numbers) == (facts["number"], {int(second["serial_number"], 16)})
    files = said("export", tmp_path / "copy")["files"]
    assert files == ["certificates/client-1.der", "crl.der", "intermediate.der", "roster.json", "roster.signature"]
    assert os.listdir(tmp_path / "copy" / "certificates") == ["client-1.der"]
    run("revoke", "client-1", "--reason", "boredom", fails=ConfigError)
    run("revoke", "nobody", fails=CertificateError)
    assert "nothing of it was living" in run("revoke", "client-2")


def test_alarms_are_listed(ca):
    assert run("list", "--alarms").strip() == "no alarms"
    assert said("list", "--alarms") == {"alarms": []}
    host, token = CaHost.open(ca), said("token", "--server", "main")["token"]
    record = host.enrol(token, make_csr(Signer.generate()), now=datetime.now(tz=UTC))
    with pytest.raises(CertificateError):
        host.enrol(token, make_csr(Signer.generate()), now=datetime.now(tz=UTC))
    assert f"fedsec ca revoke {record.serial_number:X}" in run("list", "--alarms")
    (alarm,) = said("list", "--alarms")["alarms"]
    assert (alarm["name"], alarm["times"], alarm["serial_number"]) == ("main", 1, f"{record.serial_number:X}")


def test_the_root_may_be_kept_elsewhere(ca, tmp_path):
    (ca / "root-key.pem").rename(tmp_path / "root-key.pem")
    run("token", "--server", "main")
    assert "root's key is not here" in run("renew-intermediate", fails=CertificateError)
    before = (ca / "intermediate.der").read_bytes()
    said("renew-intermediate", "--root-key", tmp_path / "root-key.pem")
    assert (ca / "intermediate.der").read_bytes() != before
    record = issue(tmp_path, "--server", "main")
    out = tmp_path / "out"
    peer = verify_peer(
        (out / "certificate.der").read_bytes(), intermediate_der=(out / "intermediate.der").read_bytes(), root_der=(ca / "root.der").read_bytes(),
        federation="hearts.example", role=Role.SERVER, now=datetime.now(tz=UTC),
    )  # fmt: skip
    assert f"{peer.serial_number:X}" == record["serial_number"]
    run("renew-intermediate", "--root-key", tmp_path / "none.pem", fails=StorageError)


def test_keys_under_a_passphrase(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSEC_CA", str(tmp_path / "ca"))
    path = tmp_path / "passphrase"
    path.write_text("open sesame\n")
    assert "read by others" in run("init", "hearts.example", "--passphrase-file", path, fails=StorageError)
    path.chmod(0o600)
    run("init", "hearts.example", "--passphrase-file", path)
    run("token", "--server", "main", "--passphrase-file", path)
    assert "sesame" not in run("token", "--server", "main", fails=StorageError)


def test_no_ca_is_said_with_the_mend(tmp_path):
    assert "fedsec ca init" in run("list", "--ca", tmp_path / "none", fails=StorageError)


def test_serve_enrols_and_ends_on_a_signal(ca, tmp_path):
    command = [sys.executable, "-m", "fedsec", "ca", "serve", "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            facts = json.loads(process.stdout.readline())
            token = run("token", "--node", "client-1", "--site", "basel").strip()
            identity = enrol_folder(tmp_path / "identity", token, address=facts["address"])
            process.send_signal(signal.SIGTERM)
            _, log = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 0
    assert identity.name.uri in log
    assert token not in log
    assert said("list")["certificates"][0]["serial_number"] == f"{identity.serial_number:X}"


def test_help_of_the_group_loads_nothing_heavy():
    code = "import sys; sys.argv=['fedsec','ca','--help']\nfrom fedsec.cli.main import run\ntry: run()\nexcept SystemExit: pass\nprint(sorted(m for m in ('torch','flwr','numpy','grpc','cryptography') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"
