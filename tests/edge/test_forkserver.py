"""The fork server and its shim, as real processes: statuses, signals, streams, seeds, who may ask for what, and who dies with whom."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from agent_lab import alive, wait_for

from fedsec.edge import shim as shim_module
from fedsec.edge.children import bound_command
from fedsec.edge.forkserver import _read_request, build_arguments
from fedsec.edge.loopback import make_loopback
from fedsec.edge.supernode import flower_environment, free_port

SHIM = Path(shim_module.__file__)
SERVER = """
import sys, os, time, signal, json, random
from pathlib import Path
import numpy
from fedsec.edge.forkserver import ForkServer
def run():
    kind = sys.argv[1]
    if kind == "say": print("out", *sys.argv[1:]); print("err", file=sys.stderr)
    elif kind == "exit": sys.exit(int(sys.argv[2]))
    elif kind == "word": sys.exit("a word")
    elif kind == "raise": raise RuntimeError("boom")
    elif kind == "kill": os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "draw": print(random.random(), numpy.random.random())
    elif kind == "pid": print(os.getpid(), flush=True); time.sleep(60)
    elif kind == "slow":
        signal.signal(signal.SIGTERM, lambda *_: (print("asked", flush=True), sys.exit(5)))
        print(os.getpid(), flush=True); time.sleep(60)
    elif kind == "look": print(json.dumps({"fds": sorted(os.listdir("/proc/self/fd")), "in": sys.stdin.read(), "sid": os.getsid(0) == os.getpid()}))
def build(given):
    if given[0] == "no": raise ValueError("not this")
    return given
ForkServer(Path(sys.argv[1]), run, build).serve()
"""


class Server:
    def __init__(self, folder):
        self.folder = folder
        self.process = subprocess.Popen(bound_command([sys.executable, "-P", "-c", SERVER, str(folder)]), stderr=subprocess.DEVNULL)
        wait_for(lambda: (folder / "fork.socket").exists())

    def command(self, *arguments, real="/bin/false"):
        return [sys.executable, "-I", "-S", str(SHIM), str(self.folder), real, *arguments]

    def run(self, *arguments, **options):
        return subprocess.run(self.command(*arguments), capture_output=True, text=True, timeout=20, check=False, **options)

    def start(self, *arguments):
        process = subprocess.Popen(self.command(*arguments), stdout=subprocess.PIPE, text=True)
        return process, int(process.stdout.readline())

    def stop(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    found = Server(tmp_path_factory.mktemp("fork"))
    yield found
    found.stop()


def test_arguments_and_streams_reach_the_copy(server):
    done = server.run("say", "hello", "ä b")
    assert (done.returncode, done.stdout, done.stderr) == (0, "out say hello ä b\n", "err\n")


@pytest.mark.parametrize(
    ("arguments", "code"), [(("exit", "0"), 0), (("exit", "7"), 7), (("exit", "256"), 0), (("word",), 1), (("raise",), 1)]
)
def test_the_status_is_the_copys(server, arguments, code):
    assert server.run(*arguments).returncode == code


def test_a_killed_copy_looks_killed(server):
    assert server.run("kill").returncode == -signal.SIGKILL


def test_no_two_copies_draw_the_same_numbers(server):
    """A fork copies the state of every global generator: data shuffles and loaders would repeat themselves in each message."""
    drawn = [tuple(server.run("draw").stdout.split()) for _ in range(4)]
    assert len({first for first, _ in drawn}) == len({second for _, second in drawn}) == 4


def test_a_copy_has_nothing_of_the_servers_but_its_streams(server):
    done = server.run("look", input="secret")
    found = json.loads(done.stdout)
    assert found["in"] == ""
    assert found["sid"]
    assert set(found["fds"]) <= {"0", "1", "2", "3"}  # 3 is the listing itself


def test_signals_pass_through(server):
    process, pid = server.start("slow")
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 5
    assert process.stdout.read() == "asked\n"
    wait_for(lambda: not alive(pid))


def test_a_copy_ends_with_its_caller(server):
    process, pid = server.start("slow")
    process.kill()
    process.wait()
    wait_for(lambda: not alive(pid), 10)


def test_what_the_agent_does_not_allow_is_not_run_at_all(server):
    done = server.run("no")
    assert (done.returncode, done.stdout) == (1, "")


def test_the_token_is_wiped_from_the_command_line(server):
    process, pid = server.start("pid", "--token", "SECRET")
    try:
        line = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        assert b"SECRET" not in line
        assert line.startswith(b"flwr-clientapp")
    finally:
        process.kill()
        process.wait()
        wait_for(lambda: not alive(pid), 10)


def test_junk_on_the_socket_does_no_harm(server):
    for data in (b"", b"\x00", b"\xff\xff\xff\xff", b"\x00\x00\x00\x02{}", b"\x00\x00\x00\x04null"):
        with socket.socket(socket.AF_UNIX) as connection:
            os.chdir(server.folder)
            connection.connect("fork.socket")
            os.chdir("/")
            connection.sendall(data)
    assert server.run("exit", "3").returncode == 3


def test_the_copies_die_with_the_fork_server_and_the_shim_says_so(tmp_path):
    server = Server(tmp_path)
    process, pid = server.start("pid")
    server.stop()
    assert process.wait(10) == 70
    wait_for(lambda: not alive(pid), 10)


def test_without_a_fork_server_the_stock_command_runs_and_gets_the_token_in_no_command_line(tmp_path):
    real = tmp_path / "real"
    real.write_text('#!/bin/sh\necho "$@"\nwhile [ "$1" != --token-file ]; do shift; done\ncat "$2"\n')
    real.chmod(0o700)
    command = [sys.executable, "-I", "-S", str(SHIM), str(tmp_path), str(real), "--insecure", "--token", "SECRET", "--parent-pid", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    first, second = done.stdout.splitlines()
    assert first.startswith("--insecure --token-file /proc/self/fd/")
    assert first.endswith(" --parent-pid 1")
    assert "SECRET" not in first
    assert second == "SECRET"


# --- What a copy may be told ------------------------------------------------------------------------------------------------------------

SOUND = ["--runtime-api-address", "127.0.0.1:9", "--token", "0a" * 16, "--root-certificates", "/x/ca.pem", "--parent-pid", "77"]


def build(given):
    return build_arguments(given, address="127.0.0.1:9", root_certificates="/x/ca.pem")


def test_a_copys_arguments_are_the_agents_own():
    assert build(SOUND) == [
        "--runtime-api-address",
        "127.0.0.1:9",
        "--root-certificates",
        "/x/ca.pem",
        "--token",
        "0a" * 16,
        "--parent-pid",
        "77",
    ]


@pytest.mark.parametrize(
    "given",
    [
        [],
        SOUND[:-1],
        [*SOUND, "--insecure"],
        [*SOUND, "--allow-runtime-dependency-installation"],
        [*SOUND, "--token", "0b" * 16],
        [*SOUND[:2], "--token-file", "/etc/passwd", *SOUND[4:]],
        ["--runtime-api-address", "evil.example:1", *SOUND[2:]],
        [*SOUND[:4], "--root-certificates", "/evil.pem", *SOUND[6:]],
        [*SOUND[:3], "../x", *SOUND[4:]],
        [*SOUND[:3], "", *SOUND[4:]],
        [*SOUND[:7], "0"],
        [*SOUND[:7], "1; id"],
        [*SOUND[:7], "-1"],
    ],
)
def test_an_option_that_leads_elsewhere_is_refused(given):
    """With another address a copy would fetch and run any FAB: admission would never see it."""
    with pytest.raises(ValueError):
        build(given)


# --- What Flower's processes see -----------------------------------------------------------------------------------------------------------


def test_the_environment_of_flowers_processes_is_without_proxies_and_foreign_trust(tmp_path):
    from datetime import UTC, datetime

    loopback = make_loopback(tmp_path / "loopback", now=datetime.now(UTC))
    base = {
        "PATH": "/bin",
        "HTTPS_PROXY": "http://evil:1",
        "http_proxy": "x",
        "SSL_CERT_FILE": "/evil",
        "FLWR_HOME": "/other",
        "FLWR_X": "1",
        "HOME": "/h",
    }
    found = flower_environment(base, loopback, task_poll_s=0.1)
    assert not {"HTTPS_PROXY", "http_proxy", "SSL_CERT_FILE", "FLWR_X"} & found.keys()
    assert found["PATH"] == f"{loopback.commands}:/bin"
    assert (found["FLWR_HOME"], found["HOME"], found["FLWR_TELEMETRY_ENABLED"]) == (str(loopback.flower_home), "/h", "0")
    assert {path.stat().st_mode & 0o077 for path in [tmp_path / "loopback", *(tmp_path / "loopback").rglob("*")]} == {0}
    assert 1024 <= free_port() <= 65535


def test_a_child_of_the_launcher_dies_with_its_parent(tmp_path):
    code = "import subprocess, sys, time\nfrom fedsec.edge.children import bound_command\np = subprocess.Popen(bound_command(['sleep', '60']))\nprint(p.pid, flush=True)\ntime.sleep(60)"
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    time.sleep(0.3)
    assert alive(pid)
    parent.kill()
    parent.wait()
    wait_for(lambda: not alive(pid), 5)


def test_another_users_request_is_not_even_read(monkeypatch):
    """The system says who is at the other end; the socket's mode is not the only thing that keeps others out."""
    data = json.dumps({"arguments": ["say"]}).encode()

    def ask():
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        descriptors = []
        with ours, theirs:
            socket.send_fds(theirs, [len(data).to_bytes(4, "big")], [1, 2])
            theirs.sendall(data)
            ours.settimeout(5)
            try:
                return _read_request(ours, descriptors), len(descriptors)
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)

    assert ask() == (["say"], 2)
    user = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: user + 1)
    with pytest.raises(ValueError, match="another user"):
        ask()


LOADING = SERVER.replace(
    "ForkServer(Path(sys.argv[1]), run, build).serve()",
    "server = ForkServer(Path(sys.argv[1]), run, build)\nPath('bound').touch()\nwhile not Path('loaded').exists(): time.sleep(0.02)\nserver.serve()",
)


def loading_server(folder):
    process = subprocess.Popen(bound_command([sys.executable, "-P", "-c", LOADING, str(folder)]), stderr=subprocess.DEVNULL)
    wait_for(lambda: (folder / "bound").exists())
    return process


def test_who_asks_while_the_server_is_loading_waits_for_it(tmp_path):
    """A cold start beside a fork server that loads the same on the same cores took 15 s of a first exchange."""
    server = loading_server(tmp_path)
    command = [sys.executable, "-I", "-S", str(SHIM), str(tmp_path), "/bin/false", "say", "hello"]
    asked = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    time.sleep(0.3)
    assert asked.poll() is None
    (tmp_path / "loaded").touch()
    assert asked.communicate(timeout=20)[0] == "out say hello\n"
    assert asked.returncode == 0
    server.kill()
    server.wait()


def test_who_went_away_while_the_server_was_loading_gets_no_copy(tmp_path):
    """Its task may run elsewhere by now: a second copy would answer the same message once more."""
    server = loading_server(tmp_path)
    code = f"import socket, os, json\nos.chdir({str(tmp_path)!r})\nc = socket.socket(socket.AF_UNIX)\nc.connect('fork.socket')\n"
    code += "d = json.dumps({'arguments': ['touch']}).encode()\nsocket.send_fds(c, [len(d).to_bytes(4, 'big')], [1, 2])\nc.sendall(d)"
    gone = subprocess.run(
        [sys.executable, "-c", code.replace("'touch'", "'say', 'twice'")], stdout=(tmp_path / "said").open("w"), timeout=20, check=True
    )
    assert gone.returncode == 0
    (tmp_path / "loaded").touch()
    after = subprocess.run([sys.executable, "-I", "-S", str(SHIM), str(tmp_path), "/bin/false", "exit", "4"], timeout=20, check=False)
    assert after.returncode == 4  # it is served in order: the other one was seen before
    assert (tmp_path / "said").read_text() == ""
    server.kill()
    server.wait()


def test_a_server_that_dies_while_loading_leaves_the_task_to_the_stock_command(tmp_path):
    server = loading_server(tmp_path)
    command = [sys.executable, "-I", "-S", str(SHIM), str(tmp_path), "/bin/echo", "stock", "--token", "SECRET"]
    asked = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    time.sleep(0.3)
    server.kill()
    server.wait()
    assert asked.communicate(timeout=20)[0].startswith("stock --token-file /proc/self/fd/")


def test_copies_know_the_platform_and_start_no_process_for_it():
    """Flower asks for telemetry that is off, twice a message; each time Python would start ``uname`` and ``file``."""
    code = (
        "import platform, subprocess\nstock = platform.architecture()\nfrom fedsec.edge.forkserver import _remember_platform\n_remember_platform()\n"
        "class No:\n    def __init__(self, *_, **__): raise AssertionError('a process')\nsubprocess.Popen = No\n"
        "assert platform.architecture() == stock\nplatform.platform(), platform.machine(), platform.uname().processor\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=20)
