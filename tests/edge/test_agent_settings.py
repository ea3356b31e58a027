"""``agent.toml``: what is read, what is refused and how the refusal names the mend."""

import tomllib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import tomli_w
from typer.testing import CliRunner

from fedsec.cli.main import app
from fedsec.edge import agent_node
from fedsec.edge.agent import load_agent
from fedsec.edge.agent_settings import client_home, load_agent_settings, read_agent_settings
from fedsec.edge.agent_setup import Site, write_home
from fedsec.edge.enrolment_client import token_text
from fedsec.edge.loopback import make_loopback
from fedsec.errors import ConfigError, StorageError
from fedsec.identity.ca import CertificateAuthority
from fedsec.identity.folder import create_identity, keep_private
from fedsec.identity.names import Role
from fedsec.signing import Signer

KEY = Signer.generate().public_key.hex()
SOUND = {"server": "gw.example:9443", "release": {"approvers": ["ada", "ben"], "approvals": 2}}
SITE = Site(
    server="gw.example:9443", server_name="main", approvers=("ada",), approvals=1, source="mydata:load", epsilon_cap=4.0, delta=1e-5
)


def read(**changes):
    return read_agent_settings({**SOUND, **changes}, home=Path("/home/x"), file="agent.toml")


def test_a_sound_file_is_read():
    settings = read(release={**SOUND["release"], "keys": {"ada": KEY}}, node={"warm_start": False, "task_poll_s": 1, "preload": []})
    assert (settings.server, settings.server_name, settings.approvers, settings.approvals) == ("gw.example:9443", "main", ("ada", "ben"), 2)
    assert (settings.warm_start, settings.task_poll_s, settings.preload) == (False, 1.0, ())
    assert settings.approver_keys == {"ada": bytes.fromhex(KEY)}
    assert settings.floor_file == Path("/home/x/floor.json")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"server": ""}, "server"),
        ({"server": "gw.example"}, "server"),
        ({"server": "gw.example:0"}, "server"),
        ({"server": "https://gw.example:9443"}, "server"),
        ({"server": 9443}, "server"),
        ({"server_name": "Main"}, "server name"),
        ({"sever": "gw.example:9443"}, "sever"),
        ({"release": []}, "release"),
        ({"release": {"approvers": "ada"}}, "approvers"),
        ({"release": {"approvers": [1]}}, "approvers"),
        ({"release": {"approvers": ["Ada"]}}, "approver"),
        ({"release": {"approvers": ["ada", "ada"], "approvals": 1}}, "approvals"),
        ({"release": {"approvers": ["ada"], "approvals": 2}}, "approvals"),
        ({"release": {"approvers": ["ada"], "approvals": 0}}, "approvals"),
        ({"release": {"approvers": ["ada"], "approvals": True}}, "approvals"),
        ({"release": {"approvers": ["ada"], "minimum": 1}}, "minimum"),
        ({"release": {"approvers": ["ada"], "keys": {"ada": "00"}}}, "ada"),
        ({"release": {"approvers": ["ada"], "keys": {"ada": 5}}}, "ada"),
        ({"release": {"approvers": ["ada"], "keys": {"eve": KEY}}}, "eve"),
        ({"node": {"task_poll_s": 0}}, "task_poll_s"),
        ({"node": {"task_poll_s": 61}}, "task_poll_s"),
        ({"node": {"task_poll_s": True}}, "task_poll_s"),
        ({"node": {"object_bytes": 1}}, "object_bytes"),
        ({"node": {"object_bytes": 1 << 40}}, "object_bytes"),
        ({"node": {"warm_start": 1}}, "warm_start"),
        ({"node": {"preload": "torch"}}, "preload"),
    ],
)
def test_what_is_unsound_is_refused_by_name(changes, field):
    with pytest.raises(ConfigError, match=field):
        read(**changes)


@pytest.mark.parametrize("text", [None, b"\xff", b"server = ", b'server = "a:1"\nserver = "b:1"\n'])
def test_a_file_that_cannot_be_read_says_how_to_make_one(tmp_path, text):
    if text is not None:
        (tmp_path / "agent.toml").write_bytes(text)
    with pytest.raises(ConfigError, match="fedsec client init"):
        load_agent_settings(tmp_path)


def test_the_home_folder_is_as_given_or_as_the_environment_says(monkeypatch):
    monkeypatch.setenv("FEDSEC_CLIENT_HOME", "/srv/client")
    assert client_home() == Path("/srv/client")
    assert client_home(Path("/tmp/x")) == Path("/tmp/x")
    monkeypatch.delenv("FEDSEC_CLIENT_HOME")
    assert client_home() == Path("~/.fedsec-client").expanduser()


def test_a_home_that_is_written_is_one_that_agent_and_client_read(tmp_path):
    from client.settings import read_settings

    home = tmp_path / "home"
    assert write_home(home, SITE, client_id="client-7") == ["agent.toml", "settings.toml"]
    settings, own = load_agent_settings(home), read_settings(home / "settings.toml")
    assert settings.approvers == ("ada",)
    assert (own.client_id, own.home, own.identity, own.server) == ("client-7", home / "store", home / "identity", "main")
    assert (own.policy.epsilon_cap, own.policy.delta, own.policy.require_secagg) == (4.0, 1e-5, True)
    assert home.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o077 for path in home.glob("*.toml")} == {0}


def test_an_approvers_key_may_be_given_with_the_name(tmp_path):
    key = Signer.generate().public_key
    write_home(tmp_path, replace(SITE, approvers=("ada", f"ben={key.hex()}"), approvals=2), client_id="client-7")
    settings = load_agent_settings(tmp_path)
    assert (settings.approvers, settings.approver_keys) == (("ada", "ben"), {"ben": key})
    with pytest.raises(ConfigError, match="public key"):
        write_home(tmp_path / "other", replace(SITE, approvers=("ada=00",), approvals=1), client_id="client-7")


def test_what_is_there_stays(tmp_path):
    write_home(tmp_path, SITE, client_id="client-7")
    (tmp_path / "floor.json").write_text('{"version": 5, "manifest_sha256": "' + "0" * 64 + '"}')
    (tmp_path / "agent.toml").write_text('server = "other.example:1"\n')
    assert write_home(tmp_path, SITE, client_id="client-8") == []
    assert '"version": 5' in (tmp_path / "floor.json").read_text()
    assert "other.example" in (tmp_path / "agent.toml").read_text()


def test_a_token_comes_from_one_place(tmp_path):
    file = tmp_path / "token"
    file.write_text("from-file\n")
    with pytest.raises(StorageError, match="may be read by others"):
        token_text(None, file, lambda: "")
    file.chmod(0o600)
    assert token_text(None, file, lambda: "") == "from-file"
    assert token_text("-", None, lambda: "from-stdin\n") == "from-stdin"
    assert token_text(None, Path("-"), lambda: "from-stdin\n") == "from-stdin"
    assert token_text("as-given", None, lambda: "") == "as-given"
    for given, path in ((None, None), ("x", file)):
        with pytest.raises(ConfigError, match="token"):
            token_text(given, path, lambda: "")
    with pytest.raises(StorageError):
        token_text(None, tmp_path / "none", lambda: "")


# --- What an agent starts with --------------------------------------------------------------------------------------------------------------


def enrolled(home, role=Role.NODE, name="client-7"):
    """A client's home with an identity of a real CA."""
    now, signer = datetime.now(UTC), Signer.generate()
    authority = CertificateAuthority.create("hearts.example", now=now)
    issued = authority.issue(role, "basel" if role is Role.NODE else None, name, signer.public_key, now=now)
    write_home(home, SITE, client_id="client-7")
    create_identity(home / "identity", signer, issued.certificate_der, authority.intermediate_der, authority.root_der)
    return home


def change(home, **changes):
    raw = tomllib.loads((home / "settings.toml").read_text())
    raw = {key: value for key, value in {**raw, **changes}.items() if value is not None}
    (home / "settings.toml").write_text(tomli_w.dumps(raw))


def test_an_agent_starts_with_what_was_set_up(tmp_path):
    settings, identity = load_agent(enrolled(tmp_path / "home"))
    assert (settings.home, identity.name.name) == (tmp_path / "home", "client-7")


@pytest.mark.parametrize("role", [Role.SERVER, Role.ADMIN])
def test_an_agent_is_a_node_and_nobody_else(tmp_path, role):
    with pytest.raises(ConfigError, match=f"is a {role.value}'s, not a node's"):
        load_agent(enrolled(tmp_path / "home", role))


@pytest.mark.parametrize("key", ["client_id", "identity", "crl"])
@pytest.mark.parametrize("value", [None, "/elsewhere"])
def test_an_agent_starts_no_client_that_goes_by_something_else_than_its_own(tmp_path, key, value):
    """Without its identity the client would believe any request; without the list, a revoked server."""
    home = enrolled(tmp_path / "home")
    change(home, **{key: value})
    with pytest.raises(ConfigError, match=key):
        load_agent(home)


def test_an_agents_processes_know_that_they_are_its(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(agent_node, "Child", lambda *_, environment, **__: seen.append(environment))
    loopback = make_loopback(tmp_path / "loopback", now=datetime.now(UTC))
    settings = load_agent(enrolled(tmp_path / "home"))[0]
    agent_node.NodeProcesses(settings, loopback, None, None, agent_port=1, node_id=lambda: 1)
    assert [environment["FEDSEC_AGENT"] for environment in seen] == ["1"] * 3


# --- Whose the home is ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("begin", [lambda home: write_home(home, SITE, client_id="client-7"), load_agent])
def test_a_home_that_others_may_enter_is_closed(tmp_path, begin, caplog):
    home = enrolled(tmp_path / "home")
    home.chmod(0o755)
    begin(home)
    assert home.stat().st_mode & 0o777 == 0o700
    assert "others could enter" in caplog.text


def test_a_servers_folder_that_others_may_enter_is_closed(tmp_path):
    home = tmp_path / "server"
    home.mkdir()
    home.chmod(0o755)
    done = CliRunner().invoke(app, ["server", "init", "--federation", "hearts.example", "--home", str(home)])
    assert (done.exit_code, home.stat().st_mode & 0o777) == (0, 0o700)
    home.chmod(0o750)
    CliRunner().invoke(app, ["server", "up", "--home", str(home)])  # there is no identity yet, so it starts nothing
    assert home.stat().st_mode & 0o777 == 0o700


def test_a_shared_folder_is_no_home_and_stays_as_it_is(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    for begin in (keep_private, lambda home: write_home(home, SITE, client_id="client-7")):
        with pytest.raises(StorageError, match="others may enter"):
            begin(shared)
    assert shared.stat().st_mode & 0o7777 == 0o1777
    with pytest.raises(StorageError):
        keep_private(tmp_path / "absent")
