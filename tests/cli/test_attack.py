"""``fedsec attack``: what is refused before anything runs, which cells run, what a rerun, a failure, a stop and a kill leave.

Where only the order of things is tested, the cells' program is ``SMALL``: a real process that takes the arguments of ``fedsec simulate`` and
prints at once the result that was made for exactly this plan file and these settings. The last test runs the real one.
"""

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedsec.cli import attack_run
from fedsec.cli.main import app
from fedsec.errors import ConfigError, FedsecError
from fedsec.plan.grid import ATTACKS, RULES, base_plan, make_grid, plans_of
from fedsec.plan.load import load_plan, plan_to_toml
from fedsec.results import EpsilonReport, RejectionReport, RunResult

RUNNER = CliRunner()

SMALL = textwrap.dedent('''
    """Prints the result of its cell; settings of its own come by environment: ANSWERS, FAIL, SLOW_S, LOG."""
    import hashlib, json, os, sys, time

    words = sys.argv[1:]
    sets = [words[place + 1] for place, word in enumerate(words) if word == "--set"]
    plan = hashlib.sha256(open(words[0], "rb").read()).hexdigest()
    cell = json.load(open(os.environ["ANSWERS"]))[" ".join([plan, *sets])]
    if os.environ.get("LOG"):
        said = [cell["name"], "fresh" if "--fresh" in words else "resume", os.environ["OMP_NUM_THREADS"], words[words.index("--workers") + 1]]
        with open(os.environ["LOG"], "a") as log:
            log.write("|".join([*said, str(os.getpid())]) + "\\n")
    time.sleep(float(os.environ.get("SLOW_S", "0")))
    if os.environ.get("FAIL") and os.environ["FAIL"] in cell["name"]:
        print("error: <b>no memory</b>", file=sys.stderr)
        sys.exit(7)
    print(json.dumps(cell["result"]))
''')


def result_of(plan, name):
    """A result of this plan, with an accuracy that only its settings decide."""
    return RunResult(
        run_id="ab" * 16,
        plan_name=plan.name,
        plan_digest=plan.digest(),
        engine="local",
        num_clients=plan.federation.num_clients,
        rounds=0,
        accuracy=int(hashlib.sha256(name.encode()).hexdigest()[:4], 16) / 65536,
        loss=1.0,
        recall=(),
        class_names=(),
        epsilon=EpsilonReport(prv=7.9, rdp=8.5, delta=1e-3, unit="example", relation="add-remove", noise_multiplier=1.1, statement="said"),
        randomness="simulation seed",
        duration_s=1.0,
        run_dir="runs/x",
        personal_accuracy=None,
        majority_accuracy=0.1,
        rows=(),
        stopped_early=False,
        guarantee="said",
        versions={"python": "3"},
        rejection=RejectionReport(precision=0.75, recall=0.5, attackers=("client-0001",)) if plan.attack.name != "none" else None,
    )


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """A file with the result of every cell that the tests here may ask for."""
    found = {}
    for override in ("federation.seed=1", "federation.rounds=3", "secagg.enabled=false"):
        base = base_plan(load_plan(overrides=[override, "attack.name=none"]))
        file = hashlib.sha256(plan_to_toml(base).encode()).hexdigest()
        grid = make_grid(base, attacks=("alie", "ipm"), rules=("filter",), fractions=(0.1, 0.2), seeds=3)
        for cell, plan in plans_of(base, grid).items():
            name = f"{cell.attack} {cell.rule} {cell.fraction} {cell.seed}"
            found[" ".join([file, *cell.overrides()])] = {"name": name, "result": result_of(plan, name).to_json()}
    path = tmp_path_factory.mktemp("answers") / "answers.json"
    path.write_text(json.dumps(found))
    return path


@pytest.fixture
def small(tmp_path, monkeypatch, answers):
    """Cells run ``SMALL``, and the plan is taken to run here; returns the lines that it logged."""
    program = tmp_path / "small.py"
    program.write_text(SMALL)
    log = tmp_path / "log"
    monkeypatch.setattr(attack_run, "SIMULATE", (sys.executable, "-S", str(program)))
    monkeypatch.setattr(attack_run, "_try_plan", lambda _base: None)
    monkeypatch.setenv("ANSWERS", str(answers))
    monkeypatch.setenv("LOG", str(log))
    return lambda: log.read_text().splitlines() if log.exists() else []


def attack(*arguments):
    return RUNNER.invoke(app, ["attack", *arguments])


OWN = ("--set", "attack.name=none")
GRID = (*OWN, "--attacks", "alie", "--rules", "filter", "--jobs", "2")


# --- Refused before anything runs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--attacks", "sign-flp"], 'did you mean "sign-flip"'),
        (["--attacks", "none"], "always part of the grid"),
        (["--attacks", "alie,alie"], "alie is there twice"),
        (["--rules", "medium"], 'did you mean "median"'),
        (["--rules", "filter,filter"], "filter is there twice"),
        (["--rules", "auto,screening"], '"auto" stands for "screening"'),
        (["--rules", "median,krum"], "cannot run in this plan: median, krum"),
        (["--attacks", "nan-value"], "cannot run in this plan: nan-value"),
        (["--open", "--attacks", "wrong-mask"], "cannot run in this plan: wrong-mask"),
        (["--fractions", "0.5"], "no share of attackers"),
        (["--fractions", "0.1,0.11"], "0.1 and 0.11 of 20 clients are both 2 attackers"),
        (["--fractions", "0.1,0.1"], "0.1 is there twice"),
        (["--seeds", "0"], "0 seeds run nothing"),
        (["--jobs", "0"], "0 jobs run nothing"),
        (["--set", "privacy.epsilom=1"], 'did you mean "epsilon"'),
        (["/no/such/plan.toml"], "cannot read the plan"),
    ],
)
def test_what_makes_no_grid_is_refused_before_anything_runs(small, tmp_path, arguments, words):
    done = attack(*arguments, "--out", str(tmp_path / "grid"))
    assert isinstance(done.exception, ConfigError), done.output
    assert words in str(done.exception)
    assert small() == []
    assert not (tmp_path / "grid").exists()


def test_a_plan_that_cannot_run_here_is_refused_before_a_folder_is_made(tmp_path):
    done = attack("--set", "data.name=mnist", "--data-root", str(tmp_path / "nothing"), "--out", str(tmp_path / "grid"))
    assert isinstance(done.exception, FedsecError), done.output
    assert "nothing" in str(done.exception)
    done = attack("--set", "privacy.noise_multiplier=0.1", "--set", "federation.rounds=1", "--out", str(tmp_path / "grid"))
    assert isinstance(done.exception, ConfigError), done.output
    assert "privacy.noise_multiplier" in str(done.exception)
    assert "/dev" not in str(done.exception)
    assert not (tmp_path / "grid").exists()


def test_a_folder_of_another_plan_or_of_other_files_is_refused(small, tmp_path):
    assert attack(*GRID, "--out", str(tmp_path / "grid")).exit_code == 0
    before = len(small())
    done = attack(*GRID, "--open", "--out", str(tmp_path / "grid"))
    assert isinstance(done.exception, ConfigError)
    assert "made with another plan" in str(done.exception)
    done = attack(*GRID, "--out", str(tmp_path))
    assert "holds no grid" in str(done.exception)
    assert len(small()) == before


# --- Which cells run, and what they leave ---------------------------------------------------------------------------------------


def test_every_cell_runs_once_with_one_thread_and_the_page_is_about_them(small, tmp_path):
    done = attack(*GRID, "--fractions", "0.1,0.2", "--seeds", "2", "--out", str(tmp_path / "grid"), "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    lines = [line.split("|") for line in small()]
    assert sorted(line[0] for line in lines) == sorted(
        f"{name} {rule} {fraction} {seed}"
        for rule in ("mean", "filter")
        for seed in (1, 2)
        for name, fraction in (("none", "None"), ("alie", "0.1"), ("alie", "0.2"))
    )
    assert {tuple(line[1:4]) for line in lines} == {("resume", "1", "1")}
    assert (told["complete"], told["num_cells"], len(told["cells"]), told["missing"], told["failed"]) == (True, 12, 12, [], [])
    mean = {(row["attack"], row["fraction"]): [] for row in told["cells"]}
    for row in told["cells"]:
        if row["rule"] == "filter":
            mean[row["attack"], row["fraction"]].append(row["accuracy"])
    lowest = min(sum(values) / 2 for (name, _), values in mean.items() if name == "alie")
    assert told["worst"]["filter"]["accuracy"] == pytest.approx(lowest)
    assert told["worst"]["filter"]["half_width_95"] is None
    page = (tmp_path / "grid" / "attack.html").read_text()
    assert f"{100 * lowest:.1f}%" in page
    assert "not complete" not in page
    assert "--attacks alie --rules mean,filter --fractions 0.1,0.2 --seeds 2" in page
    assert {path.name for path in (tmp_path / "grid").iterdir()} >= {
        "attack.html",
        "cells.csv",
        "heatmap.csv",
        "heatmap.png",
        "cells.jsonl",
    }


def test_finished_cells_are_not_run_again_and_a_larger_grid_runs_what_is_new(small, tmp_path):
    out = ("--out", str(tmp_path / "grid"))
    assert attack(*GRID, *out).exit_code == 0
    assert len(small()) == 4
    first = (tmp_path / "grid" / "attack.html").read_bytes()
    assert attack(*GRID, *out).exit_code == 0
    assert len(small()) == 4
    assert (tmp_path / "grid" / "attack.html").read_bytes() == first
    done = attack(*OWN, "--attacks", "ipm,alie", "--rules", "mean,filter", "--jobs", "2", "--seeds", "2", *out, "--json")
    assert done.exit_code == 0
    assert len(small()) == 4 + 2 + 6
    assert len(json.loads(done.stdout)["cells"]) == 12


def test_the_same_command_finds_its_folder_by_itself(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert attack(*GRID).exit_code == 0
    assert attack(*GRID).exit_code == 0
    assert len(small()) == 4
    (folder,) = (tmp_path / "runs").iterdir()
    assert attack(*GRID, "--set", "federation.rounds=3").exit_code == 0
    assert len(small()) == 8
    assert len(list((tmp_path / "runs").iterdir())) == 2
    assert attack(str(folder / "plan.toml"), *GRID, "--out", str(folder)).exit_code == 0, "a folder's own plan goes on with it"
    assert len(small()) == 8


def test_a_failed_cell_is_tried_anew_and_reported_and_the_rest_is_kept(small, tmp_path, monkeypatch):
    monkeypatch.setenv("FAIL", "alie filter")
    done = attack(*GRID, "--out", str(tmp_path / "grid"))
    assert done.exit_code == 1
    tries = [line.split("|")[1] for line in small() if line.startswith("alie filter")]
    assert tries == ["resume", "fresh"]
    assert len(small()) == 5
    assert "alie by 20%, filter, seed 1" in done.stderr
    assert "<b>no memory</b>" in done.stderr
    assert "1 of 4 runs are missing, 1 of them failed" in done.stdout
    page = (tmp_path / "grid" / "attack.html").read_text()
    assert "exit code 7: error: &lt;b&gt;no memory&lt;/b&gt;" in page
    assert "This grid is not complete: 1 of 4 runs are missing, 1 of them failed." in page
    monkeypatch.delenv("FAIL")
    done = attack(*GRID, "--out", str(tmp_path / "grid"), "--json")
    assert (done.exit_code, json.loads(done.stdout)["complete"], len(small())) == (0, True, 6)
    assert "not complete" not in (tmp_path / "grid" / "attack.html").read_text()


def test_a_program_that_runs_another_plan_gives_no_row(small, tmp_path, monkeypatch):
    other = json.loads(Path(os.environ["ANSWERS"]).read_text())
    for cell in other.values():
        cell["result"]["plan_digest"] = "0" * 64
    (tmp_path / "other.json").write_text(json.dumps(other))
    monkeypatch.setenv("ANSWERS", str(tmp_path / "other.json"))
    done = attack(*OWN, "--attacks", "alie", "--rules", "mean", "--out", str(tmp_path / "grid"), "--json")
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    assert (told["cells"], told["complete"], told["worst"]["mean"]) == ([], False, None)
    assert {failure["fault"] for failure in told["failed"]} == {"its output is no result: another plan ran than the cell's"}


def test_nothing_but_the_object_is_on_stdout_and_quiet_is_quiet(small, tmp_path):
    done = attack(*GRID, "--out", str(tmp_path / "grid"), "--json")
    assert json.loads(done.stdout)["format"] == "fedsec/attack-grid/v1"
    assert "4 runs, 2 at a time" in done.stderr
    assert re.search(r"\[4/4\] .*: accuracy \d", done.stderr)
    (tmp_path / "grid" / "cells.jsonl").unlink()
    assert attack(*GRID, "--out", str(tmp_path / "grid"), "--json", "--quiet").stderr == ""


# --- Stops and kills ------------------------------------------------------------------------------------------------------------


def start(tmp_path, answers, slow_s):
    """The command in a process of its own, on ``SMALL``."""
    (tmp_path / "small.py").write_text(SMALL)
    environment = {**os.environ, "LOG": str(tmp_path / "log"), "ANSWERS": str(answers), "SLOW_S": str(slow_s)}
    code = (
        "import sys, fedsec.cli.attack_run as run; from fedsec.cli.main import run as main\n"
        f"run.SIMULATE = (sys.executable, '-S', {str(tmp_path / 'small.py')!r}); run._try_plan = lambda base: None\nmain()"
    )
    command = [sys.executable, "-c", code, "attack", *GRID, "--seeds", "2", "--out", str(tmp_path / "grid")]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def started(tmp_path):
    log = tmp_path / "log"
    return [line.split("|") for line in log.read_text().splitlines()] if log.exists() else []


def finished(tmp_path):
    path = tmp_path / "grid" / "cells.jsonl"
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def alive(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    return False


def wait_for(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)


def test_a_stop_ends_the_children_keeps_what_is_done_and_the_same_command_goes_on(tmp_path, answers):
    process = start(tmp_path, answers, 0.6)
    wait_for(lambda: len(finished(tmp_path)) >= 2 and len(started(tmp_path)) >= 4)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "Traceback" not in error
    done = len(finished(tmp_path))
    assert 2 <= done < 8
    assert f"{8 - done} of 8 runs are missing" in out
    assert not [line for line in started(tmp_path) if alive(int(line[4]))]
    names = {line[0] for line in started(tmp_path)}
    page = (tmp_path / "grid" / "attack.html").read_text()
    assert f"This grid is not complete: {8 - done} of 8 runs are missing." in page
    process = start(tmp_path, answers, 0)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert len(finished(tmp_path)) == 8
    again = [line[0] for line in started(tmp_path)]
    assert len(again) - len(set(again)) == len(names) - done, "only what was in flight ran twice"


def test_a_kill_loses_the_cells_in_flight_only_and_leaves_nothing_running(tmp_path, answers):
    process = start(tmp_path, answers, 0.6)
    wait_for(lambda: len(finished(tmp_path)) >= 2 and len(started(tmp_path)) >= 4)
    process.kill()
    process.communicate()
    wait_for(lambda: not [line for line in started(tmp_path) if alive(int(line[4]))], seconds=10)
    done, begun = len(finished(tmp_path)), len(started(tmp_path))
    assert begun - done <= 2
    process = start(tmp_path, answers, 0)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert len(finished(tmp_path)) == 8
    assert len(started(tmp_path)) == begun + 8 - done


def test_two_commands_do_not_work_in_one_folder(tmp_path, answers, small):
    process = start(tmp_path, answers, 30)
    try:
        wait_for(lambda: started(tmp_path))
        done = attack(*GRID, "--seeds", "2", "--out", str(tmp_path / "grid"))
        assert "another process holds this grid folder" in str(done.exception)
    finally:
        process.kill()
        process.communicate()


# --- Pages for people -----------------------------------------------------------------------------------------------------------


def test_help_has_examples():
    page = attack("--help")
    assert page.exit_code == 0
    assert "Examples:" in page.output
    assert "fedsec attack --list" in page.output


def test_the_list_explains_every_attack_and_every_rule():
    told = json.loads(attack("--list", "--json").stdout)
    assert list(told["attacks"]) == list(ATTACKS)
    assert list(told["rules"]) == list(RULES)
    assert all(facts["formula"] for facts in told["attacks"].values())
    assert all(facts["summary"] and facts["runs"] for facts in told["rules"].values())
    assert told["rules"]["median"]["runs"] == "in clear"
    page = attack("--list").output
    words = " ".join(page.split())
    assert all(f" {name} " in words for name in (*ATTACKS, *RULES))
    assert "−c·μ" in words
    assert "breakdown:" in words


# --- The real program -----------------------------------------------------------------------------------------------------------

TINY = ("--open", "--set", "federation.num_clients=4", "--set", "federation.rounds=1", "--set", "robust.num_byzantine=1")


def test_a_small_real_grid_runs_and_a_row_that_was_lost_comes_again_to_the_last_bit(tmp_path):
    command = (
        *TINY,
        "--attacks",
        "sign-flip",
        "--rules",
        "mean",
        "--fractions",
        "0.25",
        "--jobs",
        "2",
        "--out",
        str(tmp_path / "grid"),
        "--json",
    )
    done = attack(*command)
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["complete"]
    assert [(row["attack"], row["rule"], row["num_attackers"]) for row in told["cells"]] == [
        ("none", "mean", None),
        ("sign-flip", "mean", 1),
    ]
    assert all(0 <= row["accuracy"] <= 1 and 0 < row["epsilon"] <= 8 for row in told["cells"])
    path = tmp_path / "grid" / "cells.jsonl"
    lines = path.read_text().splitlines()
    path.write_text(lines[0] + "\n" + lines[1][:50])
    again = json.loads(attack(*command).stdout)
    assert [row | {"wall_s": 0} for row in again["cells"]] == [row | {"wall_s": 0} for row in told["cells"]]
