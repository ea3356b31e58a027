"""Somebody with an account on the server host submits an app of his own: nothing of it is loaded beside the server's key."""

import os
import py_compile
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.cli.install import install_from_fab

from fedsec.edge.appfolder import app_files, write_app_folder
from fedsec.edge.serverapp import Guard, check_app_folder
from fedsec.errors import AdmissionError

ROOT = Path(__file__).resolve().parent.parent.parent

LOAD = """
import os, sys, threading
from fedsec.edge.appfolder import app_files
from fedsec.edge.serverapp import Guard
sys.addaudithook(Guard(app_files(), list(sys.path), [sys.prefix, sys.base_prefix], os.environ["FLWR_HOME"], lambda why: print("reported:", why)).hook)
sys.path.insert(0, sys.argv[1])  # as Flower does with the folder of the app
import importlib
print("loaded", importlib.import_module("{module}").__file__)  # as Flower does
"""


@pytest.fixture
def app(tmp_path, monkeypatch):
    """The app as Flower unpacks it: built and installed by Flower's own commands."""
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    fab = build_fab_from_disk(write_app_folder(tmp_path / "fedsec"))
    install_from_fab(fab, skip_prompt=True)
    (folder,) = (tmp_path / "flwr" / "apps").iterdir()
    return folder


def load(app, module="server.app"):
    environment = {**os.environ, "FLWR_HOME": str(app.parent.parent)}
    command = [sys.executable, "-P", "-B", "-c", LOAD.format(module=module), str(app)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=60, check=False)


def test_the_app_that_fedsec_run_submits_is_loaded_from_where_flower_unpacked_it(app):
    check_app_folder(app, app_files())
    done = load(app)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"loaded {app}/server/app.py"]


def edited(app):
    with (app / "server" / "setup.py").open("a") as handle:
        handle.write("\n")


def shadow(app):
    (app / "numpy.py").write_text("print('mine')\n")


def byte_code(app):
    (app / "mine.py").write_text("print('mine')\n")
    py_compile.compile(str(app / "mine.py"), cfile=str(app / "mine.pyc"))
    (app / "mine.py").unlink()


def link(app):
    (app / "server" / "setup.py").unlink()
    (app / "server" / "setup.py").symlink_to(ROOT / "server" / "setup.py")


def folder_link(app):
    (app / "mine").symlink_to(app.parent)


def fewer(app):
    (app / "server" / "setup.py").unlink()


def another_project(app):
    text = (app / "pyproject.toml").read_text()
    (app / "pyproject.toml").write_text(text.replace("server.app:app", "mine:app"))


@pytest.mark.parametrize("change", [edited, shadow, byte_code, link, folder_link, fewer, another_project])
def test_a_folder_that_is_not_the_app_is_refused_before_a_line_of_it_runs(app, change):
    """Also if it lies there already: Flower's installer does not look into a folder of the name that it wants."""
    change(app)
    wanted = {shadow: "numpy", byte_code: "mine"}.get(change, "server.app")
    done = load(app, wanted)
    assert done.returncode == 1
    assert "this host runs the installed app only" in done.stderr
    assert done.stdout.startswith("reported: refused to run")
    assert "mine\n" not in done.stdout


def test_a_cache_of_byte_code_beside_the_app_is_not_read_as_a_module_of_its_own(app):
    (app / "__pycache__").mkdir()
    (app / "__pycache__" / "numpy.py").write_text("print('mine')\n")
    assert load(app).stdout.splitlines() == [f"loaded {app}/server/app.py"]


def test_a_folder_that_passed_is_not_looked_into_once_more(app):
    """Somebody has another bundle of the same eight digits unpacked over it while the run goes on, and waits for the next ``import``."""
    later = LOAD.format(module="server.app") + (
        f"(lambda path: path.write_text(\"print('mine')\"))(__import__('pathlib').Path({str(app)!r}) / 'wave.py')\n"
        "import wave\nprint(wave.__file__ == __import__('os').__file__.replace('os.py', 'wave.py'), sys.argv[1] in sys.path)\n"
    )
    command, environment = [sys.executable, "-P", "-B", "-c", later, str(app)], {**os.environ, "FLWR_HOME": str(app.parent.parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=60, check=False)
    assert done.stdout.splitlines()[1:] == ["True False"], done.stderr


def test_who_is_told_of_a_refusal_loads_nothing_from_the_folder(app, monkeypatch):
    (app / "evil_report.py").write_text("print('mine')\n")
    monkeypatch.setattr(sys, "path", [str(app), *sys.path])
    guard = Guard(app_files(), list(sys.path[1:]), [sys.prefix], str(app.parent.parent), lambda _: hooked())

    def hooked():
        guard.hook("import", ("evil_report", None, sys.path, None, None))

    with pytest.raises(AdmissionError, match="loads nothing"):
        guard.hook("import", ("numpy", None, sys.path, None, None))


MAIN = """
import importlib.metadata, os, sys
from fedsec.edge import serverapp
class Entry:
    def load(self):
        return run
def run():
    from flwr.supercore.object_ref import load_app  # as Flower's command goes on
    print(load_app("server.app:app", RuntimeError, sys.argv[1]).__class__.__name__, sys.modules["server.app"].__file__.startswith(sys.argv[1]))
    import server.setup
    print(server.setup.__file__.startswith(sys.argv[1]), sys.argv[1] in sys.path)
serverapp.entry_points, serverapp.wipe_command_line = (lambda **_: [Entry()]), (lambda _: None)
serverapp.main()
"""


@pytest.mark.parametrize("sound", [True, False])
def test_the_command_runs_the_installed_app_and_nothing_from_the_folder_that_it_looked_at(app, tmp_path, sound):
    if not sound:
        edited(app)
    environment = {**os.environ, "FLWR_HOME": str(app.parent.parent), "FEDSEC_HOME": str(tmp_path)}
    command = [sys.executable, "-P", "-c", MAIN, str(app)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=60, check=False)
    assert done.stdout.splitlines() == ["ServerApp False", "False False"][: 2 if sound else 1], done.stderr
    assert ("runs the installed app only" in done.stderr) is not sound


def test_byte_code_in_the_folder_that_python_would_take_unseen_is_not_taken(app, tmp_path):
    """A cache that says of itself that nobody need compare it with its source (PEP 552), beside a source that is the installed one's."""
    for name in ("__init__", "app", "setup"):
        (tmp_path / "mine.py").write_text("print('mine')\n")
        cache = app / "server" / "__pycache__" / f"{name}.{sys.implementation.cache_tag}.pyc"
        py_compile.compile(str(tmp_path / "mine.py"), str(cache), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    unguarded = subprocess.run(
        [sys.executable, "-c", "import server.app"], capture_output=True, text=True, cwd=app, timeout=60, check=False
    )
    assert unguarded.stdout.splitlines()[:1] == ["mine"]
    environment = {**os.environ, "FLWR_HOME": str(app.parent.parent), "FEDSEC_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", MAIN, str(app)], capture_output=True, text=True, env=environment, cwd=ROOT, timeout=60, check=False
    )
    assert done.stdout.splitlines() == ["ServerApp False", "False False"], done.stderr


def test_flowers_home_counts_as_foreign_wherever_it_lies(tmp_path):
    (tmp_path / "prefix" / "flwr" / "apps" / "x").mkdir(parents=True)
    (tmp_path / "prefix" / "lib").mkdir()
    (tmp_path / "prefix" / "flwr" / "apps" / "x" / "mine.py").touch()
    guard = Guard(app_files(), [], [str(tmp_path / "prefix")], str(tmp_path / "prefix" / "flwr"), lambda _: None)
    assert guard.check(str(tmp_path / "prefix" / "lib"))
    with pytest.raises(AdmissionError, match="installed app only"):
        guard.check(str(tmp_path / "prefix" / "flwr" / "apps" / "x"))


INSTALL = """
import os, sys
from pathlib import Path
from fedsec.edge.appfolder import app_files
from fedsec.edge.serverapp import Guard
from flwr.cli.install import install_from_fab
sys.addaudithook(Guard(app_files(), list(sys.path), [sys.prefix, sys.base_prefix], os.environ["FLWR_HOME"], lambda why: print("reported:", why)).hook)
install_from_fab(Path(sys.argv[1]).read_bytes(), skip_prompt=True)
"""


@pytest.mark.parametrize(("version", "lands"), [("1/../../../../runs/x", False), ("0.1.0.0a1b2c3d/x", False), ("1", True)])
@pytest.mark.parametrize("home", ["home", "runs/../home"])
def test_a_bundle_whose_version_is_a_path_puts_no_plan_into_the_folder_of_runs(tmp_path, version, lands, home):
    """Flower's installer joins the version to its folder as it is; a plan in ``runs`` names code, and would count as the operator's own.

    Nor into the folder that another app will have: Flower unpacks nothing where one is, and the check would refuse the installed app.
    """
    source, flower_home = write_app_folder(tmp_path / "fedsec"), tmp_path / home / "superlink" / "flwr"
    project = (source / "pyproject.toml").read_text()
    (source / "pyproject.toml").write_text(re.sub(r'^version = ".*"$', f'version = "{version}"', project, count=1, flags=re.MULTILINE))
    (tmp_path / "runs").mkdir()
    flower_home.mkdir(parents=True)
    (tmp_path / "home" / "runs").mkdir()
    (tmp_path / "evil.bin").write_bytes(build_fab_from_disk(source))
    command = [sys.executable, "-P", "-c", INSTALL, str(tmp_path / "evil.bin")]
    environment = {**os.environ, "FLWR_HOME": str(flower_home)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=60, check=False)
    assert (done.returncode == 0) is lands, done.stderr
    assert lands or "reported: refused to unpack an app" in done.stdout
    assert not list((tmp_path / "home" / "runs").iterdir())
    assert bool(list(flower_home.glob("apps/*"))) is lands


def test_every_thread_and_every_later_place_is_looked_at(tmp_path):
    (tmp_path / "flwr").mkdir()
    told = []
    guard = Guard({}, ["/trusted", str(tmp_path / "flwr" / "x")], [sys.prefix], str(tmp_path / "flwr"), told.append)
    guard.hook("open", (None, None, [str(tmp_path)]))  # another event
    guard.hook("import", ("a", None, ["/trusted", sys.prefix + "/lib"], None, None))
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "x.py").touch()

    def refused(place):
        try:
            guard.hook("import", ("a", None, [place], None, None))
        except AdmissionError:
            told.append(threading.current_thread().name)

    threads = [threading.Thread(target=refused, args=(str(tmp_path / "evil"),), name=f"t{number}") for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(text for text in told if text.startswith("t")) == ["t0", "t1", "t2", "t3"]
    (tmp_path / "flwr" / "x").mkdir()
    (tmp_path / "flwr" / "x" / "y.py").touch()
    with pytest.raises(AdmissionError):  # named as trusted at the start, but it is Flower's
        guard.hook("import", ("a", None, [str(tmp_path / "flwr" / "x")], None, None))
