"""``[users]`` of a server host: which users can work, and what each of them is given. Only root can give anything away."""

import os
import pwd
import sys
import tomllib
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from gateway_lab import now

from fedsec.edge import server_users
from fedsec.edge.server_settings import TEMPLATE, parse_server_settings
from fedsec.edge.server_users import check_users, hand_over
from fedsec.edge.superlink import ServerHost, prepare_superlink, superlink_command
from fedsec.errors import ConfigError
from fedsec.identity.folder import PASSPHRASE_VARIABLE

LINK, OWN = "daemon", "nobody"
BOTH = {"superlink": LINK, "superexec": OWN, "gateway": OWN}
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


def settings_in(home, users):
    raw = tomllib.loads(TEMPLATE.format(federation="hearts.example", name="main", listen="0.0.0.0:9443", port=18000))
    return parse_server_settings({**raw, "users": users}, home, file="x")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home that was set up and enrolled by root, before [users]."""
    monkeypatch.setattr(server_users, "_check_reachable", lambda place, user: None)  # pytest's own folders are root's
    home = tmp_path / "server"
    home.mkdir(mode=0o700)
    for name in ("identity", "federation"):
        (home / name).mkdir(mode=0o700)
    (home / "identity" / "key.pem").touch(mode=0o600)
    prepare_superlink(settings_in(home, {}), now=now())
    (home / "superlink" / "state.db").write_bytes(b"runs")
    return home


def owner(path):
    return pwd.getpwuid(path.lstat().st_uid).pw_name, path.lstat().st_mode & 0o777


@needs_root
def test_each_gets_what_it_needs_and_no_folder_that_root_writes_in(home):
    settings = settings_in(home, BOTH)
    check_users(settings)
    hand_over(settings)
    assert owner(home) == ("root", 0o751)
    assert owner(home / "superlink") == ("root", 0o711)
    assert owner(home / "superlink" / "commands") == ("root", 0o755)
    for name in ("identity", "federation", "gateway", "runs", "log", "superlink/flwr"):
        assert owner(home / name) == (OWN, 0o700), name
    assert owner(home / "identity" / "key.pem") == (OWN, 0o600)
    assert owner(home / "superlink" / "key.pem") == (LINK, 0o600)
    assert owner(home / "superlink" / "refused-apps.jsonl") == (OWN, 0o600)
    assert (home / "superlink" / "database" / "state.db").read_bytes() == b"runs"
    assert owner(home / "superlink" / "database" / "state.db")[0] == LINK
    secrets = [home / "superlink" / name for name in ("superexec.secret", "superlink.secret")]
    assert [owner(path) for path in secrets] == [(OWN, 0o600), (LINK, 0o600)]
    assert secrets[0].read_bytes() == secrets[1].read_bytes()
    command = superlink_command(settings)
    assert command[command.index("--database") + 1] == str(home / "superlink" / "database" / "state.db")
    assert str(secrets[1]) in command


@needs_root
def test_a_link_or_a_second_name_gives_nothing_away_that_lies_elsewhere(home, tmp_path):
    """Whoever had the gateway's user leaves a link to root's file in its folder and waits for the next start."""
    precious = tmp_path / "precious"
    precious.touch(mode=0o600)
    hand_over(settings_in(home, BOTH))
    (home / "gateway" / "link").symlink_to(precious)
    os.link(precious, home / "gateway" / "twin")
    hand_over(settings_in(home, BOTH))
    assert owner(precious) == ("root", 0o600)


@needs_root
def test_without_users_nothing_is_given_away(home):
    before = {path: owner(path) for path in home.rglob("*")}
    hand_over(settings_in(home, {}))
    assert {path: owner(path) for path in home.rglob("*")} == before


@needs_root
def test_one_key_has_one_reader(home):
    with pytest.raises(ConfigError, match="superexec and gateway the same name"):
        check_users(settings_in(home, {**BOTH, "gateway": LINK}))


@needs_root
def test_a_place_that_the_user_cannot_get_to_is_named(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(ConfigError, match="is closed to it"):
        check_users(settings_in(closed / "server", BOTH))


@needs_root
def test_the_passphrase_is_the_users_and_not_the_superlinks(home, tmp_path, monkeypatch):
    file = tmp_path / "passphrase"
    file.touch(mode=0o600)
    monkeypatch.setenv(PASSPHRASE_VARIABLE, str(file))
    settings = settings_in(home, BOTH)
    with pytest.raises(ConfigError, match=f"chown {OWN}"):
        check_users(settings)
    os.chown(file, pwd.getpwnam(OWN).pw_uid, -1)
    check_users(settings)
    host = ServerHost(settings, os.environ)
    assert [PASSPHRASE_VARIABLE in service.environment for service in (host.gateway, host.superexec, host.superlink)] == [True, True, False]
    assert host.superlink.environment["HOME"] == str(home / "superlink" / "database")
