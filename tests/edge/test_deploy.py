"""Units, Containerfile and compose file: what systemd itself says of them, and the facts that make them safe."""

import fnmatch
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from fedsec.cli.main import app
from fedsec.edge.units import UnitKind, UnitSettings, render_units, render_users, write_units
from fedsec.errors import ConfigError, StorageError

sys.path.insert(0, str(Path(__file__).parent))

import dockerfile

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "fedsec" / "edge" / "deploy"
COMMAND = str(Path(sys.executable).with_name("fedsec"))
RUNNER = CliRunner()

HARDENING = """NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
SystemCallFilter=@system-service
SystemCallFilter=~@privileged
CapabilityBoundingSet=
UMask=0077
RestrictNamespaces=yes
LockPersonality=yes
LimitCORE=0"""


def settings(kind, **changes):
    return UnitSettings(**{"kind": kind, "command": COMMAND, **changes})


def directives(text):
    """``key=value`` lines by section, in order; anything else is refused."""
    found, section = [], None
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        if match := re.fullmatch(r"\[([A-Z][a-z]+)\]", line):
            section = match[1]
            continue
        assert section
        assert re.fullmatch(r"[A-Za-z]+=.*", line), line
        found.append((section, *line.split("=", 1)))
    return found


def known_to_the_command_line(words):
    """Follow ``fedsec``'s words through its commands; every option must be one of the command's."""
    command = typer.main.get_command(app)
    words = list(words)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    options = {option for item in command.params for option in item.opts}
    return [word for word in words if word.startswith("-") and word not in ("-", *options)]


@pytest.mark.parametrize("kind", UnitKind)
def test_every_unit_has_all_of_the_hardening_and_a_command_that_exists(kind):
    (service,) = [text for name, text in render_units(settings(kind)).items() if name.endswith(".service")]
    lines = service.splitlines()
    assert [line for line in HARDENING.splitlines() if line not in lines] == []
    assert "@" not in re.sub(r"@system-service|@privileged", "", service)
    found = directives(service)
    (command,) = [value for _, key, value in found if key == "ExecStart"]
    words = shlex.split(command)
    assert words[0] == COMMAND
    assert known_to_the_command_line(words[1:]) == []
    assert [value for _, key, value in found if key == "User"] not in ([], ["root"])
    assert ("MemoryDenyWriteExecute=yes" in lines) == (kind in (UnitKind.CA, UnitKind.RENEW))


def test_each_host_has_a_user_and_a_folder_of_its_own():
    made = {kind: settings(kind) for kind in (UnitKind.GATEWAY, UnitKind.AGENT, UnitKind.CA)}
    assert len({item.user_name for item in made.values()}) == len({item.folder for item in made.values()}) == 3
    assert settings(UnitKind.RENEW).user_name == made[UnitKind.AGENT].user_name
    assert settings(UnitKind.RENEW).folder == made[UnitKind.AGENT].folder


def test_a_folder_elsewhere_is_the_only_one_that_may_be_written():
    text = render_units(settings(UnitKind.AGENT, home="/srv/fedsec/a"))["fedsec-agent.service"]
    assert "ReadWritePaths=/srv/fedsec/a\n" in text
    assert "StateDirectory" not in text
    nested = render_units(settings(UnitKind.CA))["fedsec-ca.service"]
    assert "StateDirectory=fedsec-ca\n" in nested
    assert "--ca /var/lib/fedsec-ca/ca" in nested


def test_a_passphrase_is_handed_over_by_systemd_and_never_in_the_unit():
    text = render_units(settings(UnitKind.CA, passphrase_file="/etc/fedsec/ca.passphrase"))["fedsec-ca.service"]
    assert "LoadCredential=passphrase:/etc/fedsec/ca.passphrase\n" in text
    assert "--passphrase-file %d/passphrase" in text
    assert "LoadCredential" not in render_units(settings(UnitKind.CA))["fedsec-ca.service"]
    for name in (UnitKind.AGENT, UnitKind.GATEWAY, UnitKind.RENEW):
        files = render_units(settings(name, passphrase_file="/etc/fedsec/x"))
        assert any("Environment=FEDSEC_PASSPHRASE_FILE=%d/passphrase\n" in text for text in files.values())


@pytest.mark.parametrize(
    "changes",
    [
        {"user": "root"}, {"user": ""}, {"user": "a b"}, {"user": "x\nExecStartPre=/bin/sh"}, {"user": "%u"}, {"user": "Ü"}, {"user": "a" * 40},
        {"home": "relative"}, {"home": "/var/lib/../../etc"}, {"home": "/a b"}, {"home": "/x\nUser=root"}, {"home": "/%h"}, {"home": "/$HOME"},
        {"home": "/"}, {"home": "/etc"}, {"home": "/var/lib"}, {"home": "/home/ada/fedsec"}, {"home": "/root"}, {"home": "/x/"}, {"home": "//x"},
        {"home": "/x;y"}, {"home": "/x'y"}, {"home": ""}, {"command": "fedsec"}, {"command": "/bin/sh -c"}, {"command": "-/bin/fedsec"},
        {"passphrase_file": "x"}, {"passphrase_file": "/x:y"}, {"listen": "a b"}, {"listen": ""}, {"port": 0}, {"port": 65536},
    ],
)  # fmt: skip
def test_what_may_not_stand_in_a_unit_is_refused(changes):
    with pytest.raises(ConfigError):
        settings(UnitKind.CA, **changes)


@given(st.text(max_size=60))
def test_no_text_writes_a_directive_of_its_own(text):
    wanted = [key for _, key, _ in directives(render_units(settings(UnitKind.AGENT))["fedsec-agent.service"])]
    for changes in ({"home": f"/srv/{text}"}, {"user": text}, {"command": f"/opt/{text}"}):
        try:
            made = render_units(settings(UnitKind.AGENT, **changes))["fedsec-agent.service"]
        except ConfigError:
            continue
        assert [key.replace("ReadWritePaths", "StateDirectory") for _, key, _ in directives(made)] in (
            wanted,
            [key for key in wanted if key != "StateDirectoryMode"],
        )


def test_users_line():
    assert render_users(settings(UnitKind.AGENT)) == 'u fedsec-client - "fedsec agent of an edge device" /var/lib/fedsec-client -\n'


def test_the_command_prints_and_writes(tmp_path):
    page = RUNNER.invoke(app, ["unit", "renew-timer"])
    assert page.exit_code == 0, page.output
    assert "# ----- fedsec-renew.timer" in page.output
    assert RUNNER.invoke(app, ["unit", "agent", "--out", str(tmp_path)]).exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["fedsec-agent.service"]
    assert "u fedsec-ca " in RUNNER.invoke(app, ["unit", "ca", "--users"]).output
    assert "Examples:" in RUNNER.invoke(app, ["unit", "--help"]).output
    assert isinstance(RUNNER.invoke(app, ["unit", "toaster"]).exception, ConfigError)
    assert isinstance(RUNNER.invoke(app, ["unit", "agent", "--out", str(tmp_path / "no")]).exception, StorageError)


def analyze(*words):
    return subprocess.run(["systemd-analyze", *map(str, words)], check=False, capture_output=True, text=True, timeout=60)


@pytest.mark.needs("systemd")
@pytest.mark.parametrize("kind", UnitKind)
def test_systemd_finds_nothing_to_say(kind, tmp_path):
    paths = write_units(settings(kind, passphrase_file="/etc/fedsec/passphrase"), tmp_path)
    done = analyze("verify", *paths)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.needs("systemd")
def test_systemd_would_have_said_something(tmp_path):
    (path,) = write_units(settings(UnitKind.AGENT), tmp_path)
    path.write_text(path.read_text().replace("ProtectHome=", "ProtectHouse=").replace(COMMAND, "/no/such/fedsec"))
    done = analyze("verify", path)
    assert "ProtectHouse" in done.stderr
    assert done.returncode != 0


@pytest.mark.needs("systemd")
@pytest.mark.parametrize("kind", UnitKind)
def test_exposure_is_low(kind, tmp_path):
    service = next(path for path in write_units(settings(kind), tmp_path) if path.suffix == ".service")
    done = analyze("security", "--offline=yes", "--threshold=20", service)
    assert done.returncode == 0, done.stdout[-300:]
    exposure = float(re.search(r"exposure level for \S+: ([0-9.]+)", done.stdout)[1])
    assert exposure < 2.0


@pytest.mark.needs("systemd")
def test_the_timer_comes_before_a_certificate_ends():
    (calendar,) = [value for _, key, value in directives((DEPLOY / "renew-timer.in").read_text()) if key == "OnCalendar"]
    page = analyze("calendar", "--iterations=4", calendar).stdout
    assert page.count("Iter. #") == 3, page


def test_the_cas_code_runs_where_no_memory_may_become_code():
    code = (
        "import ctypes, sys\n"
        "if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0): sys.exit(77)\n"
        "import fedsec.edge.enrolment_service, grpc\n"
        "from fedsec.signing import Signer, verify_signature\n"
        "signer = Signer.generate()\n"
        "verify_signature(signer.public_key, 'fedsec/x/v1/y', b'm', signer.sign('fedsec/x/v1/y', b'm'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    if done.returncode == 77:
        pytest.skip("this kernel has no PR_SET_MDWE")
    assert done.returncode == 0, done.stderr


ARGUMENTS, STAGES = dockerfile.parse((DEPLOY / "Containerfile").read_text())
FINAL = STAGES[-1]


def test_the_image_is_made_in_two_stages_and_runs_as_nobody_special():
    assert len(STAGES) == 2
    assert not [item for stage in STAGES for item in stage.instructions if item.word == "ADD"]
    users = [item.rest for item in FINAL.all("USER")]
    assert re.fullmatch(r"[1-9][0-9]{3,}:[1-9][0-9]{3,}", users[-1])
    assert [copy.flags.get("from") for copy in FINAL.all("COPY")] == ["build"]
    assert len(FINAL.all("HEALTHCHECK")) == 1
    assert json.loads(FINAL.all("ENTRYPOINT")[0].rest) == ["fedsec"]


def test_healthcheck_is_a_command_that_exists():
    words = json.loads(FINAL.all("HEALTHCHECK")[0].rest.removeprefix("CMD "))
    assert words[0] == "fedsec"
    assert known_to_the_command_line(words[1:]) == []


def test_no_secret_enters_a_layer():
    text = " ".join(f"{item.word} {item.rest}" for stage in STAGES for item in stage.instructions if item.word in ("ARG", "ENV", "COPY"))
    assert not re.search(r"(?i)passphrase|password|secret|token|\.pem|\.der|private", text)
    ignored = [line for line in (DEPLOY / "Containerfile.dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert ignored[0] == "*"
    let_in = {line[1:] for line in ignored if line.startswith("!")}
    copied = {word.strip("./") for copy in STAGES[0].all("COPY") for word in copy.rest.split()[:-1]}
    assert copied == let_in
    assert all((ROOT / name).exists() for name in copied)
    assert all(any(fnmatch.fnmatch(f"x/{name}", line) for line in ignored[1:]) for name in ("key.pem", "root.der", "__pycache__"))


def test_torch_is_the_pinned_one_and_comes_first():
    runs = [item.rest for item in STAGES[0].all("RUN")]
    first = next(index for index, text in enumerate(runs) if "^torch==" in text)
    assert first < next(index for index, text in enumerate(runs) if "-c constraints.txt ." in text)
    assert re.search(r"^torch==\d", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    "text",
    [
        "", "RUN x", "FROM a\nADD x y", "FROM a\nRUN if", "FROM a\nCMD fedsec", "FROM a\nCOPY --from=b x y", "FROM a\nRUN x \\", "FROM a b",
        "FROM a\nUSER", "FROM a\nENV A", "FROM a\nCMD []", "FROM a\nRUN --mount=type=secret x", "from a", 'FROM a\nHEALTHCHECK --every=1s CMD ["x"]',
    ],
)  # fmt: skip
def test_the_reader_itself_refuses_what_is_no_dockerfile(text):
    with pytest.raises(ValueError):
        dockerfile.parse(text)


def compose():
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def test_every_container_is_closed():
    services = compose()["services"]
    assert set(services) == {"ca", "server", "client"}
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["init"] is True
        assert service["logging"]["driver"] == "json-file"  # podman has no "local" and refuses the whole file for it
        assert service["pids_limit"] <= 2048
        assert not {"privileged", "cap_add", "network_mode", "pid", "ipc", "devices", "userns_mode", "env_file", "secrets"} & set(service)
        assert service["tmpfs"] == ["/tmp:size=512m,mode=1777,noexec,nosuid,nodev"]


def test_users_and_volumes_are_apart_and_are_the_images():
    data = compose()
    services = data["services"]
    made = dict(re.findall(r"\b(ca|server|client):(\d+)", FINAL.all("RUN")[0].rest))
    for name, service in services.items():
        assert service["user"] == f"{made[name]}:{made[name]}"
        assert service["volumes"] == [f"{name}:/var/lib/fedsec-{name}"]
        assert name in data["volumes"]


def test_only_the_two_public_ports_are_published():
    services = compose()["services"]
    published = {name: service.get("ports", []) for name, service in services.items()}
    assert published == {"ca": ["9444:9444"], "server": ["9443:9443"], "client": []}
    assert set(services["ca"]["networks"]) == {"enrolment"}


def test_what_the_containers_run_exists():
    for service in compose()["services"].values():
        test = service["healthcheck"]["test"]
        assert test[:2] == ["CMD", "fedsec"]
        assert known_to_the_command_line(service["command"]) == []
        assert known_to_the_command_line(test[2:]) == []
        for key in service["environment"]:
            assert key in ("FEDSEC_CA", "FEDSEC_HOME", "FEDSEC_CLIENT_HOME", "HOME")


def test_the_build_context_is_the_repositorys_root():
    build = compose()["services"]["ca"]["build"]
    assert (DEPLOY / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).samefile(DEPLOY / "Containerfile")


def test_the_page_names_every_file_and_command():
    page = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    for words in (
        "fedsec unit gateway",
        "fedsec unit agent",
        "fedsec unit renew-timer",
        "fedsec unit ca",
        "Containerfile",
        "compose.yaml",
        "18000",
        "9443",
        "9444",
    ):
        assert words in page
    for command in re.findall(
        r"(?m)^(?:sudo (?:-u \S+ )?)?(?:/opt/fedsec/bin/)?fedsec ((?:unit|ca|server|client|doctor|release)\b[^#\n|>]*)", page
    ):
        assert known_to_the_command_line(shlex.split(command)) == [], command


def test_no_other_user_is_asked_to_read_a_file_of_roots():
    """As tried: a token or passphrase that root's shell wrote is closed to the user that ``sudo -u`` makes of the command."""
    page = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if line.startswith("sudo -u ")]
    assert len(lines) >= 5
    assert [line for line in lines if re.search(r"--(token|passphrase)-file [^-]", line)] == []
    assert page.index("install -d /etc/sysusers.d") < page.index("> /etc/sysusers.d/")  # a fresh Debian has no such folder
