"""``fedsec release``: build with the stock ``flwr build``, approve, show, verify; and what each refuses."""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedsec.cli.main import app
from fedsec.errors import AdmissionError, CertificateError, ConfigError, DecodeError, FedsecError, StorageError
from fedsec.identity.ca import CertificateAuthority
from fedsec.identity.folder import create_identity
from fedsec.identity.revocation import Revocation, make_crl
from fedsec.signing import Signer

RUNNER = CliRunner()
FEDERATION = "hearts.example"


def invoke(*arguments, **options):
    done = RUNNER.invoke(app, ["release", *map(str, arguments)], **options)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A CA, three administrators, a node, and a release of the installed fedsec."""
    folder = tmp_path_factory.mktemp("release")
    authority, now = CertificateAuthority.create(FEDERATION, now=datetime.now(UTC)), datetime.now(UTC)
    (folder / "root.der").write_bytes(authority.root_der)
    (folder / "intermediate.der").write_bytes(authority.intermediate_der)
    serials = {}
    for name in ("ada", "ben", "node"):
        signer = Signer.generate()
        issued = authority.issue_node(name, signer.public_key, site="basel", now=now) if name == "node" else authority.issue_admin(name, signer.public_key, now=now)  # fmt: skip
        create_identity(folder / name, signer, issued.certificate_der, authority.intermediate_der, authority.root_der)
        serials[name] = issued.serial_number
    (folder / "crl.der").write_bytes(make_crl(authority, [Revocation(serials["ben"], now)], number=1, now=now))
    facts = json.loads(
        invoke("build", "--federation", FEDERATION, "--version", 4, "--name", "spring", "--out", folder / "spring.json", "--json")
    )
    return folder, facts


def signed(world, *names):
    folder, _ = world
    target = folder / f"{'-'.join(names) or 'nobody'}.json"
    target.write_bytes((folder / "spring.json").read_bytes())
    for name in names:
        invoke("sign", target, "--identity", folder / name, "--yes")
    return target


def verify(world, file, *more):
    return invoke("verify", file, "--root", world[0] / "root.der", "--approver", "ada", "--approver", "ben", *more)


def test_a_built_release_is_of_this_installation_and_its_fab(world):
    folder, facts = world
    assert (facts["name"], facts["version"], facts["approvals"]) == ("spring", 4, [])
    assert (folder / "spring.fab").stat().st_size > 10_000
    output = verify(world, signed(world, "ada", "ben"), "--approvals", 2, "--fab", folder / "spring.fab", "--json")
    assert json.loads(output)["counted"] == ["ada", "ben"]


def test_the_same_installation_gives_the_same_fab(world, tmp_path):
    again = json.loads(invoke("build", "--federation", FEDERATION, "--version", 5, "--out", tmp_path / "again.json", "--json"))
    if again["installed_files"] == world[1]["installed_files"]:  # somebody may edit the tree meanwhile
        assert again["fab_sha256"] == world[1]["fab_sha256"]


def test_too_few_approvals_and_a_revoked_one_do_not_hold(world):
    with pytest.raises(AdmissionError, match="1 approvals that count here, 2 are needed"):
        verify(world, signed(world, "ada"), "--approvals", 2)
    lists = ("--crl", world[0] / "crl.der", "--intermediate", world[0] / "intermediate.der")
    with pytest.raises(AdmissionError, match="the certificate of ben was revoked"):
        verify(world, signed(world, "ada", "ben"), "--approvals", 2, *lists)
    assert "approved by ada" in verify(world, signed(world, "ada", "ben"), *lists)


def test_another_fab_does_not_hold(world, tmp_path):
    other = tmp_path / "other.fab"
    other.write_bytes((world[0] / "spring.fab").read_bytes()[:-1] + b"x")
    with pytest.raises(AdmissionError, match="is not that of release spring version 4"):
        verify(world, signed(world, "ada"), "--fab", other)


def test_a_node_may_not_approve(world):
    with pytest.raises(AdmissionError, match="may not approve"):
        signed(world, "node")


def test_signing_shows_what_is_signed_and_asks(world):
    folder, _ = world
    target = signed(world)
    done = RUNNER.invoke(app, ["release", "sign", str(target), "--identity", str(folder / "ada")], input="n\n")
    assert done.exit_code == 1
    assert "spring version 4" in done.output
    assert json.loads(invoke("show", target, "--json"))["approvals"] == []


def test_show_says_what_a_file_holds(world):
    page = invoke("show", signed(world, "ada"), "--files")
    for words in (
        "spring version 4 of hearts.example",
        "1, not verified here",
        "spiffe://hearts.example/admin/ada",
        "client/app.py",
        "fedsec/policy.py",
    ):
        assert words in page


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b"[1]"])
def test_a_file_that_is_no_release_is_refused(tmp_path, data):
    path = tmp_path / "x.json"
    path.write_bytes(data)
    with pytest.raises(DecodeError):
        invoke("show", path)
    with pytest.raises(StorageError):
        invoke("show", tmp_path / "none.json")


def test_wrong_options_say_what_is_wrong(world):
    target = signed(world, "ada")
    with pytest.raises(ConfigError, match="--crl"):
        verify(world, target, "--crl", world[0] / "crl.der")
    with pytest.raises(ConfigError, match="--approver"):
        invoke("verify", target, "--root", world[0] / "root.der", "--approver", "ada=zz")
    with pytest.raises(CertificateError):
        invoke("sign", target, "--identity", broken(world[0]), "--yes")


def broken(folder):
    """An identity whose certificate is another's."""
    import shutil

    target = folder / "broken"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder / "ada", target)
    shutil.copy(folder / "ben" / "certificate.der", target / "certificate.der")
    return target


@pytest.mark.parametrize("command", [["release", name] for name in ("enroll", "build", "sign", "show", "verify")] + [["client", name] for name in ("init", "enroll", "up", "renew", "status", "reset-floor")])  # fmt: skip
def test_every_help_page_has_examples(command):
    page = RUNNER.invoke(app, [*command, "--help"])
    assert page.exit_code == 0
    assert "Examples:" in page.output


def test_help_loads_nothing_heavy():
    import subprocess

    code = "import sys; sys.argv=['fedsec','client','--help']\nfrom fedsec.cli.main import run\ntry: run()\nexcept SystemExit: pass\nprint(sorted(m for m in ('torch','flwr','numpy','grpc','uvicorn','cryptography') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=Path(__file__).parent.parent.parent)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("token", ["", "not a token", "fedsec1.e30.AAAA"])
def test_what_is_no_token_makes_no_administrator(tmp_path, token):
    (tmp_path / "token").write_text(token)
    (tmp_path / "token").chmod(0o600)
    with pytest.raises(FedsecError):
        invoke("enroll", tmp_path / "ada", "--token-file", tmp_path / "token")
    with pytest.raises(StorageError):
        invoke("enroll", tmp_path / "ada", "--token-file", tmp_path / "none")
    assert not (tmp_path / "ada").exists()
