"""The server host: settings, command line, supervision of children, files the gateway trusts, and memory over many calls."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent))

import grpc
from gateway_lab import FakeSuperLink, Lab, LabAgent, now, refused, until

from fedsec.cli.server import app as server_app
from fedsec.edge import superlink
from fedsec.edge.authority import store_crl
from fedsec.edge.loopback_tls import ensure_loopback_tls
from fedsec.edge.refusal import Reason, Refused
from fedsec.edge.registration import Registry, members_of, read_nodes
from fedsec.edge.releases import MAX_TOTAL_BYTES, Releases
from fedsec.edge.server_settings import TEMPLATE, load_server_settings, parse_server_settings, server_home, write_ca_settings
from fedsec.edge.server_status import describe, read_status
from fedsec.edge.trust import Trust
from fedsec.errors import CertificateError, ConfigError, StorageError
from fedsec.identity.revocation import make_crl

GOOD = {"server": {"federation": "hearts.example"}}


def parse(**sections):
    return parse_server_settings({**GOOD, **sections}, Path("/srv/fedsec"), file="server.toml")


class TestSettings:
    def test_only_the_federation_is_needed(self):
        settings = parse()
        assert (settings.name, settings.superlink_address, settings.ca) == ("main", "127.0.0.1:18000", None)
        assert settings.gateway.hold_s < 30

    def test_the_template_is_allowed_and_says_what_the_defaults_are(self):
        text = TEMPLATE.format(federation="hearts.example", name="main", listen="0.0.0.0:9443", port=18000)
        assert parse_server_settings(tomllib.loads(text), Path("/srv/fedsec"), file="x") == parse()

    @pytest.mark.parametrize(
        ("sections", "says"),
        [
            ({"gatway": {}}, "did you mean gateway"),
            ({"gateway": {"lisen": "x:1"}}, "did you mean listen"),
            ({"gateway": 5}, "write \\[gateway\\]"),
            ({"gateway": {"listen": "9443"}}, "host:port"),
            ({"gateway": {"listen": "x:0"}}, "host:port"),
            ({"gateway": {"listen": "x:65536"}}, "host:port"),
            ({"gateway": {"listen": "x y:1"}}, "host:port"),
            ({"gateway": {"hold_s": 29.0}}, "gateway.hold_s"),
            ({"gateway": {"hold_s": -1}}, "gateway.hold_s"),
            ({"gateway": {"hold_s": float("nan")}}, "gateway.hold_s"),
            ({"gateway": {"hold_s": "25"}}, "gateway.hold_s"),
            ({"gateway": {"refresh_s": 60}}, "gateway.refresh_s"),
            ({"gateway": {"metrics_port": True}}, "gateway.metrics_port"),
            ({"superlink": {"port": 70000}}, "superlink.port"),
            ({"superlink": {"host": "0.0.0.0"}}, "superlink.host"),
            ({"superlink": {"port": 9443}}, "same port"),
            ({"ca": {"address": "ca:1"}}, "go together"),
            ({"ca": {"address": "ca:1", "fingerprint": "XY"}}, "ca.fingerprint"),
            ({"limits": {"calls_per_s": 0}}, "limits.calls_per_s"),
            ({"limits": {"object_bytes": 2000, "inflight_bytes": 1024}}, "limits.inflight_bytes"),
            ({"users": {"superlink": "root; rm"}}, "users.superlink"),
            ({"server": {"federation": "Hearts"}}, "server.federation"),
            ({"server": {}}, "server.federation"),
        ],
    )
    def test_unsound_settings_name_the_key_and_the_mend(self, sections, says):
        with pytest.raises(ConfigError, match=says):
            parse(**sections)

    @given(
        st.dictionaries(
            st.sampled_from(["server", "gateway", "superlink", "ca", "limits", "users", "other"]),
            st.one_of(
                st.integers(),
                st.dictionaries(
                    st.sampled_from(["federation", "name", "listen", "port", "hold_s", "address", "superlink", "object_bytes", "x"]),
                    st.one_of(st.integers(), st.floats(), st.text(max_size=8), st.booleans(), st.lists(st.integers(), max_size=2)),
                    max_size=3,
                ),
            ),
            max_size=4,
        )
    )
    def test_anything_else_is_a_config_error(self, raw):
        try:
            parse_server_settings(raw, Path("/srv"), file="x")
        except ConfigError:
            pass

    def test_missing_and_damaged_files_say_what_to_do(self, tmp_path):
        with pytest.raises(ConfigError, match="fedsec server init"):
            load_server_settings(tmp_path)
        (tmp_path / "server.toml").write_bytes(b"\xff\xfe")
        with pytest.raises(ConfigError, match="not TOML"):
            load_server_settings(tmp_path)

    def test_the_ca_is_written_into_the_file_and_replaced_later(self, tmp_path):
        (tmp_path / "server.toml").write_text(TEMPLATE.format(federation="hearts.example", name="main", listen="0.0.0.0:9443", port=18000))
        for address in ("ca:1", "ca:2"):
            write_ca_settings(tmp_path, address=address, fingerprint="ab" * 32)
            assert load_server_settings(tmp_path).ca.address == address
        text = (tmp_path / "server.toml").read_text()
        assert text.count("[ca]") == 1
        assert "# as in this server's certificate" in text
        with pytest.raises(ConfigError):
            write_ca_settings(tmp_path, address='x"\n[users]', fingerprint="ab" * 32)
        assert (tmp_path / "server.toml").read_text() == text

    def test_where_home_is(self, monkeypatch, tmp_path):
        monkeypatch.setenv("FEDSEC_HOME", str(tmp_path))
        assert server_home(None) == tmp_path
        assert server_home(Path("x")) == Path("x").absolute()


class TestCommands:
    def run(self, *arguments):
        return CliRunner().invoke(server_app, [str(item) for item in arguments], catch_exceptions=False)

    def test_init_makes_a_folder_once(self, tmp_path):
        home = tmp_path / "home"
        assert json.loads(self.run("init", "--federation", "hearts.example", "--home", home, "--json").stdout)["home"] == str(home)
        for secret in ("superlink/superexec.secret", "superlink/key.pem"):
            assert (home / secret).stat().st_mode & 0o077 == 0
        assert home.stat().st_mode & 0o077 == 0
        with pytest.raises(ConfigError, match="settings already"):
            self.run("init", "--federation", "hearts.example", "--home", home)

    def test_init_refuses_what_would_not_load(self, tmp_path):
        with pytest.raises(ConfigError, match=r"server\.federation"):
            self.run("init", "--federation", 'x"\n[users]', "--home", tmp_path / "home")
        assert not (tmp_path / "home").exists()

    @pytest.mark.parametrize("arguments", [(), ("--token", "x", "--token-file", "y"), ("--token-file", "/does/not/exist")])
    def test_enroll_wants_one_token(self, tmp_path, arguments):
        self.run("init", "--federation", "hearts.example", "--home", tmp_path / "home")
        with pytest.raises((ConfigError, StorageError), match=r"token|does/not/exist"):
            self.run("enroll", "--home", tmp_path / "home", *arguments)

    def test_up_without_an_identity_says_so_at_once(self, tmp_path):
        self.run("init", "--federation", "hearts.example", "--home", tmp_path / "home")
        with pytest.raises(StorageError, match="identity"):
            self.run("up", "--home", tmp_path / "home")

    def test_status_of_a_server_that_is_down(self, tmp_path):
        lab = Lab(tmp_path)
        before = sorted(path.name for path in lab.home.rglob("*"))
        done = self.run("status", "--home", lab.home, "--json")
        facts = json.loads(done.stdout)
        assert done.exit_code == 1
        assert facts["ports"] == {"gateway": False, "superlink": False}
        assert facts["roster"]["clients"] == 2
        assert sorted(path.name for path in lab.home.rglob("*")) == before  # it only looks
        assert "superlink: down" in self.run("status", "--home", lab.home).stdout

    def test_a_server_to_which_nobody_enrolled_is_no_sick_one(self, tmp_path):
        """There is no list before the first client: a state. A list that was there once and is gone, or a revocation list, is a fault."""
        lab = Lab(tmp_path)
        for name in ("roster.json", "roster.signature"):
            (lab.home / "federation" / name).unlink()
        facts = read_status(load_server_settings(lab.home))
        assert [fault for fault in facts["faults"] if "does not listen" not in fault] == []
        assert "  list of clients: none yet" in describe(facts)
        (lab.home / "gateway").mkdir(exist_ok=True)
        (lab.home / "gateway" / "floors.json").write_text('{"crl_number": 1, "roster_version": 1}')
        assert any("list of clients" in fault for fault in read_status(load_server_settings(lab.home))["faults"])
        (lab.home / "gateway" / "floors.json").unlink()
        (lab.home / "federation" / "crl.der").unlink()
        assert any("revocation list" in fault for fault in read_status(load_server_settings(lab.home))["faults"])

    @pytest.mark.parametrize("command", ["init", "enroll", "up", "renew", "status"])
    def test_help_has_an_example(self, command):
        assert "Example:" in self.run(command, "--help").stdout

    def test_a_taken_port_is_named(self, tmp_path):
        import socket

        lab = Lab(tmp_path)
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", lab.superlink_port))
            taken.listen()
            with pytest.raises(ConfigError, match=r"superlink\.port"):
                self.run("up", "--home", lab.home)


class TestChildren:
    def service(self, tmp_path, code, **options):
        return superlink.Service(
            name="child",
            command=[sys.executable, "-c", code],
            environment={"PATH": os.environ["PATH"]},
            log_file=tmp_path / "child.log",
            **options,
        )

    def test_started_again_after_it_ended_and_its_output_kept(self, tmp_path):
        async def story():
            service = self.service(tmp_path, "print('line one 100% {x}', flush=True)")
            task = asyncio.create_task(service.keep())
            await until(lambda: service.restarts >= 2)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        asyncio.run(story())
        assert (tmp_path / "child.log").read_text().splitlines()[:2] == ["line one 100% {x}"] * 2

    @pytest.mark.parametrize(
        "code",
        [
            "import signal, sys, time\n"  # noqa: ISC004
            "def last(*_): print('a last word\\n' * 20000, flush=True); sys.exit(0)\n"
            "signal.signal(signal.SIGTERM, last)\nprint('up', flush=True)\ntime.sleep(600)\n",
            "import subprocess, time\n"  # noqa: ISC004
            "subprocess.Popen(['sleep', '20'], start_new_session=True)\nprint('up', flush=True)\ntime.sleep(600)\n",
        ],
    )
    def test_ended_in_time_whatever_is_left_in_its_output(self, tmp_path, code):
        """Nobody reads the pipe any more, or a grandchild of another session holds it open: that the process is gone counts."""

        async def story():
            service = self.service(tmp_path, code)
            task = asyncio.create_task(service.keep())
            log = tmp_path / "child.log"
            await until(lambda: log.exists() and log.read_text().strip())
            began = time.monotonic()
            task.cancel()
            await asyncio.wait({task}, timeout=8)
            assert task.done()
            assert time.monotonic() - began < 5
            assert log.read_text().count("a last word") == (20000 if "last" in code else 0)

        asyncio.run(story())

    def test_ended_with_its_grandchildren_even_if_it_will_not(self, tmp_path, monkeypatch):
        monkeypatch.setattr(superlink, "GRACE_S", 0.5)
        code = (
            "import signal, subprocess, sys, time\n"
            "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
            "print(child.pid, flush=True)\ntime.sleep(600)\n"
        )

        async def story():
            service = self.service(tmp_path, code)
            task = asyncio.create_task(service.keep())
            log = tmp_path / "child.log"
            await until(lambda: log.exists() and log.read_text().strip())
            pids = [service.process.pid, int(log.read_text())]
            began = time.monotonic()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert time.monotonic() - began < 5
            return pids

        for pid in asyncio.run(story()):
            for _ in range(50):
                if not Path(f"/proc/{pid}").exists() or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
                    break
                time.sleep(0.05)
            else:
                raise AssertionError(f"{pid} is alive")

    def test_a_line_without_end_does_not_fill_the_memory(self, tmp_path):
        async def story():
            service = self.service(tmp_path, "import sys; sys.stdout.write('x' * 3000000 + '\\nshort\\n')")
            task = asyncio.create_task(service.keep())
            await until(lambda: service.restarts >= 1)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        asyncio.run(story())
        assert "short" in (tmp_path / "child.log").read_text()

    def test_the_environment_is_closed(self, tmp_path):
        lab = Lab(tmp_path)
        base = {
            "PATH": "/bin",
            "HTTPS_PROXY": "http://evil",
            "all_proxy": "x",
            "FLWR_HOME": "/elsewhere",
            "FLWR_DATABASE": "x",
            "SSL_CERT_FILE": "/evil.pem",
            "FEDSEC_HOME": "/elsewhere",
            "LANG": "C",
        }
        made = superlink.server_environment(base, load_server_settings(lab.home))
        assert not {"HTTPS_PROXY", "all_proxy", "FLWR_DATABASE", "SSL_CERT_FILE"} & set(made)
        assert made["FLWR_HOME"] == str(lab.home / "superlink" / "flwr")
        assert made["FEDSEC_HOME"] == str(lab.home)
        assert made["PATH"].split(":")[:2] == [str(lab.home / "superlink" / "commands"), str(Path(sys.executable).parent)]
        assert made["LANG"] == "C"

    def test_tasks_of_other_kinds_find_commands_that_end_at_once(self, tmp_path):
        """The Control API is open to local users: a run of another kind must not start another program with the server's rights."""
        lab = Lab(tmp_path)
        superlink.prepare_superlink(load_server_settings(lab.home), now=now())
        commands = lab.home / "superlink" / "commands"
        assert {path.name for path in commands.iterdir()} == {*superlink.REFUSED_COMMANDS, "flwr-serverapp"}
        assert "flwr-serverapp" not in superlink.REFUSED_COMMANDS
        for name in superlink.REFUSED_COMMANDS:
            ended = subprocess.run([commands / name, "--token", "x"], capture_output=True, text=True, check=False)
            assert (ended.returncode, ended.stdout) == (1, "")
            assert "not run on this host" in ended.stderr

    def test_the_superlink_is_on_loopback_with_authentication(self, tmp_path):
        command = superlink.superlink_command(load_server_settings(Lab(tmp_path).home))
        assert command[command.index("--host") + 1] == "127.0.0.1"
        assert {"--enable-supernode-auth", "--disable-runtime-dependency-installation", "--superexec-auth-secret-file"} <= set(command)
        assert command[command.index("--isolation") + 1] == "process"
        assert "--insecure" not in command

    @pytest.mark.parametrize(("euid", "allowed"), [(0, True), (12345, False)])
    def test_only_root_gives_a_child_another_user(self, monkeypatch, euid, allowed):
        import pwd

        entry = pwd.getpwnam("nobody")
        monkeypatch.setattr(os, "geteuid", lambda: euid)
        if not allowed:
            with pytest.raises(ConfigError, match="only root"):
                superlink.check_users(parse(users={"superlink": "nobody"}))
            return
        become = superlink._identity_of("nobody")
        assert (become["user"], become["group"]) == (entry.pw_uid, entry.pw_gid)
        assert 0 not in become["extra_groups"]

    def test_unknown_users_are_refused(self):
        with pytest.raises(ConfigError, match="no such Unix user"):
            superlink.check_users(parse(users={"superlink": "no-such-user-here"}))


class TestLoopbackTls:
    def test_kept_while_good_and_made_anew_in_time_or_when_damaged(self, tmp_path):
        assert ensure_loopback_tls(tmp_path, now=now())
        assert not ensure_loopback_tls(tmp_path, now=now())
        assert (tmp_path / "key.pem").stat().st_mode & 0o077 == 0
        assert ensure_loopback_tls(tmp_path, now=now() + timedelta(days=710))
        for name in ("ca.pem", "cert.pem", "key.pem"):
            ensure_loopback_tls(tmp_path, now=now())
            (tmp_path / name).write_text("damaged")
            assert ensure_loopback_tls(tmp_path, now=now()), name
            (tmp_path / name).unlink()
            assert ensure_loopback_tls(tmp_path, now=now()), name


class TestTrust:
    def trust(self, lab, clock=now, faults=None):
        seen = faults if faults is not None else []
        (lab.home / "gateway").mkdir(exist_ok=True)
        return Trust(
            lab.home,
            federation="hearts.example",
            server_name="main",
            clock=clock,
            on_fault=lambda what, error: seen.append((what, str(error))),
        )

    def test_the_identity_must_be_the_one_in_the_settings(self, tmp_path):
        lab = Lab(tmp_path)
        (lab.home / "gateway").mkdir()
        with pytest.raises(CertificateError, match="not the server other"):
            Trust(lab.home, federation="hearts.example", server_name="other", clock=now, on_fault=lambda *_: None)

    @pytest.mark.parametrize("name", ["crl.der", "roster.json", "roster.signature"])
    @pytest.mark.parametrize("content", [b"", b"rubbish", b"\0" * 100])
    def test_damaged_files_are_told_once_and_the_last_good_ones_stay(self, tmp_path, name, content):
        lab, faults = Lab(tmp_path), []
        trust = self.trust(lab, faults=faults)
        before = trust.standing
        (lab.home / "federation" / name).write_bytes(content)
        assert not trust.reload()
        assert not trust.reload()
        assert len(faults) == 1
        assert trust.standing == before

    def test_a_foreign_cas_lists_are_refused(self, tmp_path):
        lab, faults = Lab(tmp_path), []
        trust = self.trust(lab, faults=faults)
        (tmp_path / "foreign").mkdir()
        foreign = Lab(tmp_path / "foreign")
        for name in ("crl.der", "roster.json", "roster.signature"):
            (lab.home / "federation" / name).write_bytes((foreign.home / "federation" / name).read_bytes())
        assert not trust.reload()
        assert {what for what, _ in faults} == {"revocation list", "list of clients"}

    def test_an_older_list_of_clients_is_refused_across_a_restart(self, tmp_path):
        lab, faults = Lab(tmp_path), []
        old = {name: (lab.home / "federation" / name).read_bytes() for name in ("roster.json", "roster.signature")}
        self.trust(lab)
        lab.add("node-c")
        self.trust(lab)
        for name, content in old.items():
            (lab.home / "federation" / name).write_bytes(content)
        assert self.trust(lab, faults=faults).standing.roster is None
        assert "was replaced" in faults[0][1]

    def test_a_revocation_counts_though_the_disk_is_full_and_its_number_is_written_later(self, tmp_path, monkeypatch):
        lab, faults = Lab(tmp_path), []
        trust = self.trust(lab, faults=faults)
        floors = lab.home / "gateway" / "floors.json"
        serial_number = lab.nodes["node-a"].serial_number
        lab.revoke("node-a")

        def full(*_, **__):
            raise StorageError("no space left")

        with monkeypatch.context() as patch:
            patch.setattr("fedsec.edge.trust.atomic_write_json", full)
            assert trust.reload()
            assert trust.is_revoked(serial_number)
            assert not trust.reload()  # tried again, and told once
        assert [what for what, _ in faults] == ["revocation list"]
        assert json.loads(floors.read_text())["crl_number"] < trust.floors["crl_number"]
        assert not trust.reload()
        assert json.loads(floors.read_text())["crl_number"] == trust.floors["crl_number"]

    def test_a_list_that_could_not_be_read_once_is_read_at_the_next_look(self, tmp_path, monkeypatch):
        lab, faults = Lab(tmp_path), []
        trust = self.trust(lab, faults=faults)
        lab.revoke("node-a")

        def failing(*_, **__):
            raise StorageError("too many open files")

        with monkeypatch.context() as patch:
            patch.setattr("fedsec.edge.trust._read", failing)
            assert not trust.reload()
        assert trust.reload()
        assert trust.is_revoked(lab.nodes["node-a"].serial_number)

    @pytest.mark.parametrize("restarted", [False, True])
    def test_another_revocation_list_of_the_same_number_brings_nobody_back(self, tmp_path, restarted):
        """The CA was restored from a backup, or says one thing to some and another to others."""
        lab, faults = Lab(tmp_path), []
        self.trust(lab)
        lab.revoke("node-a")
        trust = self.trust(lab, faults=faults)
        file, serial_number = lab.home / "federation" / "crl.der", lab.nodes["node-a"].serial_number
        good, twin = file.read_bytes(), make_crl(lab.authority, [], number=lab.crl_number, now=now(), lifetime=timedelta(hours=24))
        with pytest.raises(CertificateError, match="another list"):
            store_crl(file.parent, twin, trust.identity(), now=now(), minimum_number=lab.crl_number, check=trust.check_twin)
        assert file.read_bytes() == good
        file.write_bytes(twin)
        if restarted:
            trust = self.trust(lab, faults=faults)
            assert trust.standing.crl is None
        else:
            assert not trust.reload()
            assert trust.is_revoked(serial_number)
        assert "another list" in faults[0][1]
        lab.write_crl()
        assert trust.reload()
        assert trust.is_revoked(serial_number)

    def test_an_identity_of_another_root_waits_for_a_new_start(self, tmp_path):
        """Else whoever can write the folder replaces the trust of a gateway that runs."""
        lab, faults = Lab(tmp_path), []
        trust = self.trust(lab, faults=faults)
        before = trust.standing
        (tmp_path / "foreign").mkdir()
        foreign = Lab(tmp_path / "foreign")
        for path in (foreign.home / "identity").iterdir():
            (lab.home / "identity" / path.name).write_bytes(path.read_bytes())
        assert not trust.reload()
        assert trust.standing is before
        assert [what for what, _ in faults] == ["identity"]
        assert "another root" in faults[0][1]

    def test_a_caller_that_is_known_is_refused_while_the_issuers_are_not_valid(self, tmp_path):
        lab, at = Lab(tmp_path), [now()]
        trust = self.trust(lab, clock=lambda: at[0])
        certificate = lab.nodes["node-a"].identity.certificate_der
        assert trust.check_caller(certificate).name.name == "node-a"
        at[0] -= timedelta(days=2)  # before the CA was
        with pytest.raises(Refused) as caught:
            trust.check_caller(certificate)
        assert caught.value.reason is Reason.CERTIFICATE

    def test_floors_of_an_earlier_version_are_gone_by(self, tmp_path):
        lab = Lab(tmp_path)
        (lab.home / "gateway").mkdir()
        floors = lab.home / "gateway" / "floors.json"
        floors.write_text('{"crl_number": 1, "roster_version": 1}')
        assert self.trust(lab).standing.crl is not None
        assert len(json.loads(floors.read_text())["crl_sha256"]) == 64

    def test_damaged_floors_stop_the_start(self, tmp_path):
        lab = Lab(tmp_path)
        (lab.home / "gateway").mkdir()
        for content in (
            "",
            "[]",
            '{"crl_number": 1}',
            '{"crl_number": true, "roster_version": 1}',
            '{"crl_number": "1", "roster_version": 1}',
            '{"crl_number": 1, "roster_version": 1, "crl_sha256": 1}',
            '{"crl_number": 1, "roster_version": 1, "crl_sha256": "x"}',
            '{"crl_number": 1, "roster_version": 1, "more": 1}',
        ):
            (lab.home / "gateway" / "floors.json").write_text(content)
            with pytest.raises(StorageError):
                self.trust(lab)


class TestRegistry:
    def test_nodes_json_is_refused_when_damaged(self, tmp_path):
        path = tmp_path / "nodes.json"
        for content in ("", "[]", "{}", '{"format": "other", "nodes": {}}', '{"format": "fedsec/nodes/v1", "nodes": {"x": {}}}'):
            path.write_text(content)
            with pytest.raises(StorageError):
                read_nodes(path)

    def test_a_list_that_ended_names_nobody(self, tmp_path):
        trust = TestTrust().trust(Lab(tmp_path))
        assert len(members_of(trust.standing, now())) == 2
        assert members_of(trust.standing, now() + timedelta(days=366)) == []

    def test_a_client_that_left_the_list_is_refused_but_not_unregistered_until_it_is_revoked(self, tmp_path):
        lab = Lab(tmp_path)
        (lab.home / "gateway").mkdir()
        trust = TestTrust().trust(lab)

        async def story():
            from fedsec.edge.upstream import Upstream

            with FakeSuperLink(lab) as fake:
                control = Upstream("127.0.0.1", lab.superlink_port, lab.home / "superlink" / "ca.pem")
                registry = Registry(lab.home / "gateway" / "nodes.json")
                await registry.sync(control, members_of(trust.standing, now()), trust.is_revoked)
                gone = fake.node_id("node-a")
                lab.write_lists(leave_out=("node-a",))
                trust.reload()
                await registry.sync(control, members_of(trust.standing, now()), trust.is_revoked)
                assert registry.find(lab.nodes["node-a"].signer.public_key) is None
                assert fake.unregistered == []
                again = Registry(lab.home / "gateway" / "nodes.json")  # a gateway that starts again knows less, and harms nobody
                await again.sync(control, members_of(trust.standing, now()), trust.is_revoked)
                lab.revoke("node-a")
                trust.reload()
                await registry.sync(control, members_of(trust.standing, now()), trust.is_revoked)
                assert fake.unregistered == [gone]
                control.close()

        asyncio.run(story())


class TestReleases:
    def test_newest_first_bounded_and_links_left_out(self, tmp_path):
        for number, name in enumerate(("a.json", "b.json", "c.txt")):
            (tmp_path / name).write_text(name)
            os.utime(tmp_path / name, (number, number))
        (tmp_path / "link.json").symlink_to("/etc/passwd")
        releases = Releases(tmp_path)
        assert releases.newest() == [b"b.json", b"a.json"]
        (tmp_path / "big.json").write_bytes(bytes(MAX_TOTAL_BYTES + 1))
        assert releases.newest() == [b"b.json", b"a.json"]
        assert Releases(tmp_path / "none").newest() == []


def anonymous_mb(pid):
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 1024


def test_memory_is_flat_over_thousands_of_calls(tmp_path):
    """The real gateway process; calls of three outcomes: served, refused for the path, refused for the node."""
    from fedsec.edge import fleet_pb2, paths

    lab = Lab(tmp_path, toml="[limits]\ncalls_per_s = 1000000\ncalls_burst = 1000000\nbytes_per_s = 1e12\nbytes_burst = 1000000000000\n")
    with FakeSuperLink(lab) as fake:
        process = subprocess.Popen(
            [sys.executable, "-m", "fedsec.edge.gateway", "--home", str(lab.home)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        try:
            assert process.stdout.readline().startswith(b"gateway: listening")

            async def rounds(number):
                async with LabAgent(lab, "node-a") as agent:
                    headers, mine = agent.headers(), fake.node_id("node-a")
                    good = fleet_pb2.SendNodeHeartbeatRequest(node=fleet_pb2.Node(node_id=mine)).SerializeToString()
                    bad = fleet_pb2.SendNodeHeartbeatRequest(node=fleet_pb2.Node(node_id=mine + 1)).SerializeToString()

                    async def worker(left):
                        for turn in left:
                            path, body = [(paths.SEND_NODE_HEARTBEAT, good), ("/v1/control/x", good), (paths.SEND_NODE_HEARTBEAT, bad)][
                                turn % 3
                            ]
                            if (path, body) == (paths.SEND_NODE_HEARTBEAT, good):
                                await agent.session.forward(path, body, headers, timeout_s=20)
                                continue
                            with refused(grpc.StatusCode.PERMISSION_DENIED):
                                await agent.session.forward(path, body, headers, timeout_s=20)

                    left = iter(range(number))
                    await asyncio.gather(*(worker(left) for _ in range(8)))

            async def story():
                await until((lab.home / "gateway" / "nodes.json").exists)
                await rounds(2000)  # threads, arenas and caches are warm
                before = anonymous_mb(process.pid)
                await rounds(4000)  # ten thousand are in experiments.bench.edge_gateway
                return anonymous_mb(process.pid) - before

            assert asyncio.run(story()) < 5.0
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) == 0
