"""A site's source, loaded in a process of its own before a token is spent: what would end a round is said here, with the mend."""

import os
import time
from pathlib import Path

import pytest

from fedsec.edge import source_check
from fedsec.edge.source_check import Source, check_source, source_of
from fedsec.errors import ConfigError

GOOD = """\
import sys
import numpy as np
print("loading")  # goes to nobody
def load():
    rng = np.random.default_rng(0)
    return {"x": rng.normal(size=(60, 4)).astype("float32"), "y": np.arange(60) % 3, "num_classes": 3}
def ends():
    import os
    os._exit(7)
def sleeps():
    import subprocess, sys, time
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    open(__file__ + ".pid", "w").write(str(child.pid))
    time.sleep(600)
if sys.argv[1:] == ["sleeps"]:
    sleeps()
"""


@pytest.fixture
def base(tmp_path):
    """The environment of an agent whose unit names the folder of the site's module."""
    (tmp_path / "records_here.py").write_text(GOOD)
    return {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}


def test_a_good_source_says_how_many_records(base):
    found = check_source("records_here:load", base=base)
    assert isinstance(found, Source)
    assert (found.records + found.test_records, found.classes) == (60, 3)


def test_a_source_that_ends_its_process_is_named(base):
    with pytest.raises(ConfigError, match=r"ended the process that loads it \(status 7\)"):
        check_source("records_here:ends", base=base)


def test_a_module_that_only_the_current_folder_has_is_missed_as_in_a_round(tmp_path, base, monkeypatch):
    """The operator's shell stands in the module's folder; the agent's working folder is another."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"no module 'records_here' among the installed packages.*PYTHONPATH") as caught:
        check_source("records_here:load", base={**base, "PYTHONPATH": os.environ.get("PYTHONPATH", "")})
    assert "fedsec-source-" not in str(caught.value)


def test_a_source_that_hangs_is_ended_with_all_that_it_started(tmp_path, base, monkeypatch):
    monkeypatch.setattr(source_check, "MODULE", "records_here")  # quick: the time limit is for the module's own start here
    with pytest.raises(ConfigError, match="no records within 3 s"):
        check_source("sleeps", base=base, timeout_s=3.0)
    child = int((tmp_path / "records_here.py.pid").read_text())
    deadline = time.monotonic() + 10
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(child)


def _runs(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_the_source_of_a_home(tmp_path):
    assert source_of(tmp_path / "settings.toml") == ""
    (tmp_path / "settings.toml").write_text('source = "mydata:load"\n')
    assert source_of(tmp_path / "settings.toml") == "mydata:load"
