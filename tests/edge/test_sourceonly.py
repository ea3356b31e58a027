"""A cache of byte code that says other things than its source: Python alone runs it, our processes do not."""

import importlib.util
import os
import py_compile
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from agent_lab import copy_installation, wait_for

from fedsec.admission.installed import RUNTIME_PACKAGES, scan_packages
from fedsec.edge import sourceonly
from fedsec.edge.loopback import make_loopback
from fedsec.edge.supernode import COLD_CLIENT_APP, forkserver_command, write_commands

MARK = "the poisoned cache ran"


@pytest.fixture(scope="module")
def installation(tmp_path_factory):
    return copy_installation(tmp_path_factory.mktemp("installed"))


def poison(source):
    """Byte code of another program under the source's name, time and size: what ``importlib`` looks at, and all that it looks at."""
    status, cache = source.stat(), Path(importlib.util.cache_from_source(str(source)))
    cache.parent.mkdir(exist_ok=True)
    evil = source.with_name("evil.tmp")
    evil.write_text(f"{source.read_text()}\nprint({MARK!r})\n")
    py_compile.compile(str(evil), cfile=str(cache), dfile=str(source), doraise=True)
    evil.unlink()
    data = bytearray(cache.read_bytes())
    data[8:12], data[12:16] = int(status.st_mtime).to_bytes(4, "little"), (status.st_size & 0xFFFFFFFF).to_bytes(4, "little")
    cache.write_bytes(data)


def run(installation, *command):
    environment = {**os.environ, "PYTHONPATH": str(installation)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/", timeout=60, check=False)


def test_a_poisoned_cache_is_run_by_python_and_seen_by_no_hash_and_not_run_by_ours(installation):
    before = scan_packages({name: installation / name for name in RUNTIME_PACKAGES})
    for name in ("fedsec/__init__.py", "fedsec/codec.py", "fedsec/edge/units.py", "client/settings.py"):
        poison(installation / name)
    assert scan_packages({name: installation / name for name in RUNTIME_PACKAGES}) == before
    code = "import fedsec.codec, client.settings"
    assert run(installation, sys.executable, "-P", "-c", code).stdout.count(MARK) == 3  # this is what is to be stopped
    script = str(installation / "fedsec" / "edge" / "sourceonly.py")
    clean = run(installation, sys.executable, "-P", script, "fedsec.edge.units", "x")
    assert MARK not in clean.stdout + clean.stderr
    stock = run(installation, sys.executable, "-P", "-m", "fedsec.edge.units", "x")
    assert MARK in stock.stdout


def test_the_fork_server_and_the_command_behind_it_run_no_poisoned_cache(installation, tmp_path, monkeypatch):
    for name in ("fedsec/__init__.py", "client/settings.py"):
        poison(installation / name)
    from fedsec.edge import supernode

    monkeypatch.setattr(supernode, "SOURCE_ONLY", (sys.executable, "-P", str(installation / "fedsec" / "edge" / "sourceonly.py")))
    (tmp_path / "loopback").mkdir(mode=0o700)
    from datetime import UTC, datetime

    loopback = make_loopback(tmp_path / "loopback", now=datetime.now(UTC))
    environment = {
        **os.environ,
        "PYTHONPATH": str(installation),
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = forkserver_command(loopback, ("client.settings",))
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/") as process:
        try:
            wait_for((loopback.folder / "fork.socket").exists)
        finally:
            process.terminate()
        assert MARK not in process.stdout.read()
    write_commands(loopback)
    done = run(installation, str(loopback.commands / COLD_CLIENT_APP), "--help")
    assert "usage: flwr-clientapp" in done.stdout
    assert MARK not in done.stdout


def test_a_module_of_ours_without_a_source_is_refused(tmp_path):
    (tmp_path / "client").mkdir()
    (tmp_path / "client" / "__init__.py").write_text("print('package')\n")
    (tmp_path / "client" / "x.py").write_text("print('sourceless')\n")
    py_compile.compile(str(tmp_path / "client" / "x.py"), cfile=str(tmp_path / "client" / "x.pyc"))
    (tmp_path / "client" / "x.py").unlink()
    done = run(tmp_path, sys.executable, "-P", sourceonly.__file__, "client.x")
    assert "has no source file" in done.stderr
    assert "sourceless" not in done.stdout
    assert "sourceless" in run(tmp_path, sys.executable, "-P", "-m", "client.x").stdout


def test_the_packages_are_those_that_a_manifest_lists_and_nothing_is_written(installation):
    assert frozenset(RUNTIME_PACKAGES) == sourceonly.PACKAGES
    cache = installation / "fedsec" / "edge" / "__pycache__"
    known = set(cache.iterdir()) if cache.exists() else set()
    script = str(installation / "fedsec" / "edge" / "sourceonly.py")
    run(installation, sys.executable, "-P", script, "fedsec.edge.doctor_judge")
    assert (set(cache.iterdir()) if cache.exists() else set()) == known
