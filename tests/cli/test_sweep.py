"""``fedsec sweep`` and ``fedsec report``: what is refused before anything runs, which points run, what a rerun, a failure, a stop, a kill and a full disk leave.

Where only the order of things is tested, the points' program is ``SMALL``: a real process that takes the arguments of a point and prints at once what
was made for exactly these settings. The last tests run the real one.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fedsec.cli import sweep_run
from fedsec.cli.main import app
from fedsec.errors import AuditError, ConfigError, PrivacyClaimRefuted, StorageError
from fedsec.plan.load import load_plan
from fedsec.plan.sweep import AT, PEACE, make_sweep, overrides_of, plans_of_sweep, sweep_base
from fedsec.privacy.auditing.inversion_results import InversionLine, InversionReport, spell_picture
from fedsec.privacy.auditing.results import AuditReport, AuditResult, Estimate, Membership, PrivacyPoint
from fedsec.report import sweep_plots
from fedsec.results import EpsilonReport, RoundRow, RunResult

RUNNER = CliRunner()
PLOT_ALL = sweep_plots.plot_all

SMALL = textwrap.dedent('''
    """Prints what was made for its settings; settings of its own come by environment: ANSWERS, FAIL, SLOW_S, LOG."""
    import json, os, sys, time

    what, plan, *words = sys.argv[1:]
    if what == "check":
        asked = json.loads(sys.stdin.read())
        print(json.dumps({"records": {"name": "digits", "smallest_client": 30, "largest_client": 128}, "warning": os.environ.get("WARN", "")}))
        sys.exit(0)
    sets = " ".join(words[place + 1] for place, word in enumerate(words) if word == "--set")
    answer = json.load(open(os.environ["ANSWERS"]))[sets]
    name = f"{what} {answer['name']}"
    with open(os.environ["LOG"], "a") as log:
        log.write("|".join([name, "fresh" if "--fresh" in words else "resume", os.environ["OMP_NUM_THREADS"], str(os.getpid())]) + "\\n")
    time.sleep(float(os.environ.get("SLOW_S", "0")))
    if os.environ.get("FAIL") and os.environ["FAIL"] in name:
        print("error: <b>no memory</b>", file=sys.stderr)
        sys.exit(7)
    print(json.dumps(answer[what]))
''')


def run_of(plan, point):
    """A run of this plan, with an accuracy that only its settings decide."""
    spread = int(hashlib.sha256(str(point).encode()).hexdigest()[:4], 16) / 65536 / 50
    accuracy = (0.94 if math.isinf(point.epsilon) else 0.7 + 0.025 * point.epsilon) - spread
    private = plan.is_private
    rows = tuple(
        RoundRow(
            server_round=number, accuracy=accuracy / 2 * number, loss=1.0, recall=(accuracy, accuracy), epsilon_prv=point.epsilon * number / 2 if private else None,
            epsilon_rdp=point.epsilon if private else None, num_selected=20, num_valid=20, num_dropped=0, rejected=(), update_norm=1.0, seconds=1.0,
            bytes_up=1, bytes_down=1,
        )
        for number in (1, 2)
    )  # fmt: skip
    result = RunResult(
        run_id="ab" * 16,
        plan_name=plan.name,
        plan_digest=plan.digest(),
        engine="local",
        num_clients=20,
        rounds=2,
        accuracy=accuracy,
        loss=1.0,
        recall=(accuracy, accuracy),
        class_names=("no", "yes"),
        epsilon=EpsilonReport(
            prv=point.epsilon,
            rdp=point.epsilon,
            delta=1e-3 if private else None,
            unit="example" if private else "none",
            relation="add-remove",
            noise_multiplier=1.0 if private else 0.0,
            statement="said",
        ),
        randomness="simulation seed",
        duration_s=1.0,
        run_dir="runs/x",
        personal_accuracy=None,
        majority_accuracy=0.5,
        rows=rows,
        stopped_early=False,
        guarantee="said",
        versions={"python": "3"},
    )
    sites = [{"name": "client 1", "train": 30, "test": 10, "accuracy": accuracy, "personal": None, "majority": 0.5, "local": None}]
    return {"result": result.to_json(), "measured": {"sites": sites, "class_tests": [5, 5], "data_fingerprint": "cd" * 32}}


def audit_of(epsilon, bound, arm="plan"):
    estimate = Estimate(value=0.7, low=0.66, high=0.74)
    result = AuditResult(
        kind="one-run", arm=arm, unit="example", adversary="updates", seed=1, num_canaries=100, num_guesses=50, num_correct=40,
        claimed=PrivacyPoint(epsilon=epsilon, delta=1e-3), audited=PrivacyPoint(epsilon=epsilon, delta=1e-5), confidence=0.95, lower_bound=bound, perfect_bound=9.0,
        gaussian_estimate=None, membership=Membership(auc=estimate, tpr_at_1=estimate, tpr_at_01=estimate, roc=((0.0, 0.0), (1.0, 1.0))),
    )  # fmt: skip
    kinds = {"results": (result,)} if arm == "plan" else {"results": (), "controls": (result,)}
    return {"report": AuditReport(plan_digest="0" * 64, seed=1, **kinds).to_json()}


def line_of(sees, epsilon, *psnr):
    return InversionLine(
        sees=sees, epsilon=epsilon, attack="division", psnr=psnr, ssim=(0.5,) * len(psnr), label_right=None, pictures=(spell_picture(np.eye(4)),) * 2
    )  # fmt: skip


PICTURES = InversionReport(
    height=4, width=4, clients=20, classes=10, seeds=(1,), window=3, originals=(spell_picture(np.eye(4)),) * 2,
    lines=(line_of("nothing", math.inf, 11.0, 12.0, 13.0), line_of("update", math.inf, 100.0, 99.0, 98.0), line_of("update", 1.0, 11.0, 12.0, 12.9)),
)  # fmt: skip


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """A file with what every point that the tests here may ask for prints."""
    found = {}
    for override in ((), ("federation.rounds=3",)):
        base = sweep_base(load_plan(overrides=[*PEACE, *override]))
        epsilons = (1.0, 2.0, 8.0, math.inf)
        for at in ({}, {epsilon: AT[epsilon] for epsilon in epsilons if epsilon in AT}):
            grid = make_sweep(base, epsilons=epsilons, seeds=3, at=at)
            for point, plan in plans_of_sweep(base, grid).items():
                claim = point.epsilon
                found.setdefault(" ".join(overrides_of(base, grid, point)) + (" r3" if override else ""), {
                    "name": str(point), "run": run_of(plan, point), "audit": audit_of(claim, min(0.3 * claim, 2.0)), "controls": audit_of(1.0, 3.0, "no-noise"),
                })  # fmt: skip
    found[""] = {"name": "pictures", "inversion": {"report": PICTURES.to_json()}}
    path = tmp_path_factory.mktemp("answers") / "answers.json"
    path.write_text(json.dumps(found))
    return path


@pytest.fixture
def small(tmp_path, monkeypatch, answers):
    """Points run ``SMALL``, and pictures, which take a second, are left out; returns the lines that it logged."""
    program = tmp_path / "small.py"
    program.write_text(SMALL)
    log = tmp_path / "log"
    monkeypatch.setattr(sweep_plots, "plot_all", lambda *_: {})
    monkeypatch.setattr(sweep_run, "POINT", (sys.executable, "-S", str(program)))
    monkeypatch.setenv("ANSWERS", str(answers))
    monkeypatch.setenv("LOG", str(log))
    return lambda: [line.split("|") for line in log.read_text().splitlines()] if log.exists() else []


def sweep(*arguments):
    return RUNNER.invoke(app, ["sweep", *arguments])


TWO = ("--epsilon", "1,8,inf", "--jobs", "2", "--audit", "none")


# --- Refused before anything runs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--epsilon", "0"], "reached by no mechanism"),
        (["--epsilon", "1,nan"], "is not a number"),
        (["--epsilon", "1,1"], "1 is there twice"),
        (["--seeds", "0"], "0 seeds run nothing"),
        (["--jobs", "0"], "0 jobs run nothing"),
        (["--audit", "one-rum"], 'did you mean "one-run"'),
        (["--audit", "lira,lira"], "lira is there twice"),
        (["--audit", "inversion", "--set", "data.name=breast-cancer"], "its records are no pictures"),
        (["--audit", "one-run,inversion", "--set", 'model.personal=["bias"]'], "keeps a part of it at the client"),
        (["--vary", "training.stepps=1,2"], 'did you mean "steps"'),
        (["--vary", "privacy.epsilon=1,2"], "--epsilon says which"),
        (["--at", "4:training.steps=1", "--epsilon", "1,inf"], "is not swept"),
        (["--ablate", "layers"], "has one layer"),
        (["--ablate", "slices", "--epsilon", "1,2"], "add inf to --epsilon"),
        (["--set", "privacy.noise_multiplier=2"], "fixes the noise"),
        (["--set", "privacy.epsilom=1"], 'did you mean "epsilon"'),
        (["/no/such/plan.toml"], "cannot read the plan"),
    ],
)
def test_what_makes_no_sweep_is_refused_before_anything_runs(small, tmp_path, arguments, words):
    done = sweep(*arguments, "--out", str(tmp_path / "sweep"))
    assert isinstance(done.exception, ConfigError), done.output
    assert words in str(done.exception)
    assert small() == []
    assert not (tmp_path / "sweep").exists()


def test_help_has_examples():
    done = sweep("--help")
    assert done.exit_code == 0
    assert "fedsec sweep --set model.name=mlp --ablate layers" in " ".join(done.output.split())


# --- What runs, and what it leaves ----------------------------------------------------------------------------------------------


def test_every_point_runs_once_with_one_thread_and_the_page_is_about_them(small, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_plots, "plot_all", PLOT_ALL)
    done = sweep(*TWO, "--out", str(tmp_path / "s"), "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert sorted(line[0] for line in small()) == sorted(f"run {e}, seed {s}" for e in ("ε = 1", "ε = 8", "no privacy") for s in (1, 2, 3))
    assert {tuple(line[1:3]) for line in small()} == {("resume", "1")}
    assert told["complete"]
    assert [line["epsilon"] for line in told["frontier"]] == [1.0, 8.0, "inf"]
    assert told["recommended"] == 8.0
    names = {path.name for path in (tmp_path / "s").iterdir()}
    assert names >= {"report.html", "rows.jsonl", "rows.csv", "manifest.json", "frontier.png", "frontier.csv", "plan.toml", "sweep.json"}
    manifest = json.loads((tmp_path / "s" / "manifest.json").read_text())
    assert manifest["seeds"] == [1, 2, 3]
    assert manifest["command"] == "fedsec sweep --epsilon 1,8,inf --seeds 3 --audit none"
    assert set(manifest["versions"]) >= {"python", "fedsec", "torch"}
    page = (tmp_path / "s" / "report.html").read_text()
    assert "PARTIAL" not in page
    assert "Recommended: ε = 8" in page


def test_a_resumed_sweep_repeats_no_finished_point_and_a_larger_one_runs_what_is_new(small, tmp_path):
    out = ("--out", str(tmp_path / "s"))
    assert sweep(*TWO, *out, "--seeds", "2").exit_code == 0
    assert len(small()) == 6
    first = (tmp_path / "s" / "report.html").read_bytes()
    assert sweep(*TWO, *out, "--seeds", "2").exit_code == 0
    assert len(small()) == 6
    assert (tmp_path / "s" / "report.html").read_bytes() == first
    assert sweep("--epsilon", "1,2,8,inf", "--audit", "none", *out).exit_code == 0
    assert len(small()) == 12
    assert sweep(*TWO, *out, "--seeds", "1", "--fresh").exit_code == 0
    assert len(small()) == 15


def test_utility_and_audits_are_rows_apart(small, tmp_path):
    done = sweep("--epsilon", "1,inf", "--seeds", "3", "--jobs", "2", "--audit", "one-run", "--out", str(tmp_path / "s"), "--json")
    assert done.exit_code == 0, done.output
    assert sorted({line[0].split()[0] for line in small()}) == ["audit", "controls", "run"]
    assert len((tmp_path / "s" / "rows.jsonl").read_text().splitlines()) == 6
    assert len((tmp_path / "s" / "audits.jsonl").read_text().splitlines()) == 3 + 6
    told = json.loads(done.stdout)
    assert told["audits"] == {"attacks": 6, "refuted": 0, "controls": 3, "controls_missed": 0, "strongest": {"1.0": 0.3, "inf": 2.0}}


def test_a_sweep_of_pictures_shows_what_updates_give_away_unless_other_audits_are_asked_for(small, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_plots, "plot_all", PLOT_ALL)
    done = sweep("--epsilon", "1,inf", "--seeds", "1", "--jobs", "2", "--out", str(tmp_path / "s"), "--json")
    assert done.exit_code == 0, done.output
    assert [line[0] for line in small()].count("inversion pictures") == 1
    told = json.loads(done.stdout)
    assert told["grid"]["audits"] == ["one-run", "loss-threshold", "inversion"]
    assert [(line["sees"], line["verdict"]) for line in told["audits"]["inversion"]] == [
        ("nothing", "the blind guess"), ("update", "copied"), ("update", "no better than the blind guess"),
    ]  # fmt: skip
    page = (tmp_path / "s" / "report.html").read_text()
    assert "With it no attempt came closer than the average picture" in page
    assert (tmp_path / "s" / "inversion.png").read_bytes().startswith(b"\x89PNG")
    assert len((tmp_path / "s" / "inversion.csv").read_text().splitlines()) == 4
    done = sweep("--epsilon", "1,inf", "--seeds", "1", "--audit", "one-run", "--out", str(tmp_path / "s"))
    assert done.exit_code == 0, done.output
    assert not (tmp_path / "s" / "inversion.png").exists()
    assert "made of updates" not in (tmp_path / "s" / "report.html").read_text()


def test_pictures_that_are_no_report_give_no_row(small, tmp_path, monkeypatch, answers):
    changed = json.loads(answers.read_text())
    changed[""]["inversion"]["report"]["originals"] = ["AAAA", "AAAA"]
    (tmp_path / "other.json").write_text(json.dumps(changed))
    monkeypatch.setenv("ANSWERS", str(tmp_path / "other.json"))
    done = sweep("--epsilon", "1", "--seeds", "1", "--audit", "inversion", "--out", str(tmp_path / "s"), "--json")
    assert done.exit_code == 1
    assert "pixels" in json.loads(done.stdout)["failed"][0]["fault"]
    assert not (tmp_path / "s" / "audits.jsonl").exists()


@pytest.mark.parametrize(("bound", "control", "raised"), [(1.5, 3.0, PrivacyClaimRefuted), (0.2, 0.5, AuditError)])
def test_an_audit_that_refutes_or_is_blind_fails_the_command_after_the_page(small, tmp_path, monkeypatch, answers, bound, control, raised):
    changed = json.loads(answers.read_text())
    for answer in changed.values():
        if answer["name"].startswith("ε = 1,"):
            answer["audit"], answer["controls"] = audit_of(1.0, bound), audit_of(1.0, control, "no-noise")
    (tmp_path / "other.json").write_text(json.dumps(changed))
    monkeypatch.setenv("ANSWERS", str(tmp_path / "other.json"))
    done = sweep("--epsilon", "1,inf", "--seeds", "1", "--audit", "one-run", "--out", str(tmp_path / "s"))
    assert isinstance(done.exception, raised)
    assert ("REFUTED" if raised is PrivacyClaimRefuted else "The audit is blind") in (tmp_path / "s" / "report.html").read_text()


def test_a_failed_point_is_tried_anew_and_reported_and_the_rest_is_kept(small, tmp_path, monkeypatch):
    monkeypatch.setenv("FAIL", "ε = 8, seed 2")
    done = sweep(*TWO, "--out", str(tmp_path / "s"))
    assert done.exit_code == 1
    assert [line[1] for line in small() if line[0] == "run ε = 8, seed 2"] == ["resume", "fresh"]
    assert "failed twice: ε = 8, seed 2: exit code 7: error: <b>no memory</b>" in " ".join(done.stdout.split())
    page = (tmp_path / "s" / "report.html").read_text()
    assert "PARTIAL REPORT: 1 of 9 runs are missing (1 failed)" in page
    assert "&lt;b&gt;no memory" in page
    monkeypatch.delenv("FAIL")
    done = sweep(*TWO, "--out", str(tmp_path / "s"), "--json")
    assert (done.exit_code, json.loads(done.stdout)["complete"]) == (0, True)
    assert len(small()) == 11
    assert "PARTIAL" not in (tmp_path / "s" / "report.html").read_text()


def test_a_program_that_ran_another_plan_gives_no_row(small, tmp_path, monkeypatch, answers):
    changed = json.loads(answers.read_text())
    for answer in (one for one in changed.values() if "run" in one):
        answer["run"]["result"]["plan_digest"] = "0" * 64
    (tmp_path / "other.json").write_text(json.dumps(changed))
    monkeypatch.setenv("ANSWERS", str(tmp_path / "other.json"))
    done = sweep("--epsilon", "1", "--seeds", "1", "--audit", "none", "--out", str(tmp_path / "s"), "--json")
    assert done.exit_code == 1
    assert "another plan ran than the point's" in json.loads(done.stdout)["failed"][0]["fault"]


def test_a_folder_of_another_plan_is_refused(small, tmp_path):
    out = ("--out", str(tmp_path / "s"))
    assert sweep(*TWO, *out, "--seeds", "1").exit_code == 0
    done = sweep(*TWO, *out, "--set", "federation.rounds=3")
    assert isinstance(done.exception, ConfigError)
    assert "was made with another plan" in str(done.exception)
    done = sweep(*TWO, "--out", str(tmp_path))
    assert "holds no sweep" in str(done.exception)


def test_nothing_but_the_object_is_on_stdout_and_a_warning_is_on_stderr(small, tmp_path, monkeypatch):
    monkeypatch.setenv("WARN", "delta = 0.1 is not below 1/128")
    done = sweep("--epsilon", "1", "--seeds", "1", "--audit", "none", "--out", str(tmp_path / "s"), "--json", "--quiet")
    assert json.loads(done.stdout)["complete"]
    assert done.stderr == "warning: delta = 0.1 is not below 1/128\n"


def test_a_full_disk_ends_the_sweep_with_whole_rows_and_no_page(small, tmp_path, monkeypatch):
    from fedsec.report import sweep_folder

    real, count = sweep_folder._append, []

    def full_after_two(path, content):
        count.append(path)
        if len(count) > 2:
            raise StorageError(f"cannot write {path}: No space left on device; the rows before it are whole")
        real(path, content)

    monkeypatch.setattr(sweep_folder, "_append", full_after_two)
    done = sweep(*TWO, "--out", str(tmp_path / "s"))
    assert isinstance(done.exception, StorageError)
    assert "No space left" in str(done.exception)
    assert not (tmp_path / "s" / "report.html").exists()
    assert len((tmp_path / "s" / "rows.jsonl").read_text().splitlines()) == 2


@pytest.fixture
def small_disk(tmp_path):
    """``small_disk(size)`` mounts a file system of this size, or gives the one that is there more room; its folder."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size):
        how = ["-o", f"remount,size={size}"] if os.path.ismount(folder) else ["-t", "tmpfs", "-o", f"size={size}", "tmpfs"]
        done = subprocess.run(["mount", *how, str(folder)], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no small file system can be mounted here: {done.stderr.strip()}")
        return folder

    yield mount
    subprocess.run(["umount", str(folder)], capture_output=True, check=False)


@pytest.mark.parametrize(("size", "rows"), [("16k", range(1, 9)), ("48k", range(9, 10))])
def test_on_a_disk_that_is_really_full_rows_are_whole_there_is_no_page_and_more_room_mends_it(small, small_disk, tmp_path, size, rows):
    """A file system of 16 kB has no room for all rows, one of 48 kB none for the page."""
    out = small_disk(size) / "s"
    done = sweep(*TWO, "--out", str(out))
    assert isinstance(done.exception, StorageError), done.output
    assert re.search("No space left on device|no room for a whole line", str(done.exception))
    assert "make room and give the same command again: it goes on, finished runs are kept" in str(done.exception)
    content = (out / "rows.jsonl").read_bytes()
    kept = len(content.splitlines())
    assert kept in rows
    assert content.endswith(b"\n")
    assert all(json.loads(line)["digest"] for line in content.splitlines())
    assert not (out / "report.html").exists()
    before = len(small())
    small_disk("2m")
    done = sweep(*TWO, "--out", str(out))
    assert done.exit_code == 0, done.output
    assert len(small()) == before + 9 - kept
    assert "PARTIAL" not in (out / "report.html").read_text()


def test_runs_that_fail_for_want_of_room_are_named_though_their_list_cannot_be_written(small, tmp_path, monkeypatch):
    from fedsec.report import sweep_folder

    def full(*_):
        raise StorageError("cannot write failures.json: No space left on device") from OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("FAIL", "run")
    monkeypatch.setattr(sweep_folder.SweepFolder, "save_failures", full)
    done = sweep("--epsilon", "1", "--seeds", "1", "--audit", "none", "--out", str(tmp_path / "s"))
    assert "make room" in str(done.exception)
    assert "failed twice: ε = 1, seed 1: exit code 7: error: <b>no memory</b>" in done.stderr


# --- fedsec report --------------------------------------------------------------------------------------------------------------


def report(*arguments):
    return RUNNER.invoke(app, ["report", *arguments])


def test_the_report_is_made_anew_from_the_rows_alone(small, tmp_path):
    assert sweep(*TWO, "--out", str(tmp_path / "s")).exit_code == 0
    page = (tmp_path / "s" / "report.html").read_bytes()
    for name in ("report.html", "rows.csv"):
        (tmp_path / "s" / name).unlink()
    done = report(str(tmp_path / "s"))
    assert done.exit_code == 0, done.output
    assert (tmp_path / "s" / "report.html").read_bytes() == page
    assert (tmp_path / "s" / "rows.csv").exists()


def test_missing_and_edited_rows_are_named(small, tmp_path):
    assert sweep(*TWO, "--out", str(tmp_path / "s"), "--seeds", "1").exit_code == 0
    rows = tmp_path / "s" / "rows.jsonl"
    text = rows.read_text()
    rows.write_text(text.replace('"accuracy": 0.9', '"accuracy": 0.99', 1))
    done = report(str(tmp_path / "s"))
    assert isinstance(done.exception, StorageError)
    assert "was edited" in str(done.exception)
    rows.unlink()
    done = report(str(tmp_path / "s"))
    assert "rows.jsonl is missing" in str(done.exception)
    rows.write_text(text.splitlines(keepends=True)[0])
    assert report(str(tmp_path / "s")).exit_code == 0
    assert "PARTIAL REPORT: 2 of 3 runs are missing" in (tmp_path / "s" / "report.html").read_text()


def test_other_folders_are_told_what_the_command_is_for(tmp_path):
    done = report(str(tmp_path))
    assert isinstance(done.exception, ConfigError)
    assert "folders that fedsec sweep, fedsec simulate or fedsec attack made" in str(done.exception)


# --- Stops and kills ------------------------------------------------------------------------------------------------------------


def start(tmp_path, answers, slow_s):
    """The command in a process of its own, on ``SMALL``."""
    (tmp_path / "small.py").write_text(SMALL)
    environment = {**os.environ, "LOG": str(tmp_path / "log"), "ANSWERS": str(answers), "SLOW_S": str(slow_s)}
    code = (
        "import sys, signal, fedsec.cli.sweep_run as run; from fedsec.cli.main import run as main\n"
        f"run.POINT = (sys.executable, '-S', {str(tmp_path / 'small.py')!r})\nmain()"
    )
    command = [sys.executable, "-c", code, "sweep", *TWO, "--out", str(tmp_path / "s")]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def started(tmp_path):
    log = tmp_path / "log"
    return [line.split("|") for line in log.read_text().splitlines()] if log.exists() else []


def finished(tmp_path):
    path = tmp_path / "s" / "rows.jsonl"
    return path.read_bytes().splitlines() if path.exists() else []


def alive(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    return False


def wait_for(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stop_and_a_kill_lose_what_is_in_flight_only_and_the_same_command_goes_on(tmp_path, answers, number):
    process = start(tmp_path, answers, 0.6)
    wait_for(lambda: len(finished(tmp_path)) >= 2 and len(started(tmp_path)) >= 4)
    process.send_signal(number)
    out, error = process.communicate(timeout=60)
    assert "Traceback" not in error
    wait_for(lambda: not [line for line in started(tmp_path) if alive(int(line[3]))], seconds=10)
    done, begun = len(finished(tmp_path)), len(started(tmp_path))
    assert 2 <= done < 9
    assert begun - done <= 2
    page = tmp_path / "s" / "report.html"
    if number == signal.SIGINT:
        assert process.returncode == 130, error
        assert f"{9 - done} of 9 runs are missing" in out
        assert "PARTIAL REPORT" in page.read_text()
    else:
        assert not page.exists()
    process = start(tmp_path, answers, 0)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert len(finished(tmp_path)) == 9
    assert len(started(tmp_path)) == begun + 9 - done
    assert "PARTIAL" not in page.read_text()


# --- fedsec compare -------------------------------------------------------------------------------------------------------------


def compare(*arguments):
    return RUNNER.invoke(app, ["compare", *map(str, arguments)])


def test_two_sweeps_stand_side_by_side_with_what_differs(small, tmp_path):
    assert sweep(*TWO, "--out", str(tmp_path / "a")).exit_code == 0
    assert sweep("--epsilon", "2,8", "--audit", "none", "--seeds", "1", "--out", str(tmp_path / "b")).exit_code == 0
    done = compare(tmp_path / "a", tmp_path / "b", "--out", tmp_path / "c", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert [(Path(line["folder"]).name, line["epsilon"], line["seeds"]) for line in told["results"]] == [
        ("a", 1.0, 3),
        ("a", 8.0, 3),
        ("a", "inf", 3),
        ("b", 2.0, 1),
        ("b", 8.0, 1),
    ]
    assert [line["half_width_95"] is None for line in told["results"]] == [False, False, False, True, True]
    assert told["differs"] == {}
    assert json.loads((tmp_path / "c" / "compare.json").read_text()) == told
    assert (tmp_path / "c" / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_folders_that_cannot_be_compared_are_refused_with_the_reason(small, tmp_path):
    assert sweep("--epsilon", "8", "--audit", "none", "--seeds", "1", "--out", str(tmp_path / "a")).exit_code == 0
    assert "one folder cannot be compared" in str(compare(tmp_path / "a").exception)
    assert "a folder is there twice" in str(compare(tmp_path / "a", tmp_path / "a" / ".." / "a").exception)
    (tmp_path / "empty").mkdir()
    assert "holds no finished run and no sweep" in str(compare(tmp_path / "a", tmp_path / "empty").exception)


def test_other_records_have_no_common_scale(tmp_path):
    from fedsec.report.sweep_folder import make_sweep_folder

    for name, overrides in (("a", ()), ("b", ("data.name=breast-cancer",))):
        base = sweep_base(load_plan(overrides=[*PEACE, *overrides]))
        make_sweep_folder(tmp_path / name, base, make_sweep(base, epsilons=(1.0,), seeds=1))
    done = compare(tmp_path / "a", tmp_path / "b")
    assert isinstance(done.exception, ConfigError)
    assert "about digits" in str(done.exception)
    assert "about breast-cancer: accuracies on different records have no common scale" in str(done.exception)


def run_folder(folder, *overrides):
    """A run's folder as ``fedsec simulate`` leaves it, as far as it is read here."""
    from fedsec.plan.load import plan_to_toml
    from fedsec.plan.sweep import Point

    plan = load_plan(overrides=[*PEACE, *overrides])
    folder.mkdir()
    (folder / "plan.toml").write_text(plan_to_toml(plan))
    result = run_of(plan, Point(epsilon=plan.privacy.epsilon, seed=1))["result"]
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def test_runs_are_compared_with_each_other_and_what_differs_is_marked(tmp_path):
    first, second = run_folder(tmp_path / "a", "privacy.epsilon=2"), run_folder(tmp_path / "b", "training.steps=5")
    done = compare(first, second, "--json")
    told = json.loads(done.stdout)
    assert [(line["epsilon"], line["seeds"], line["half_width_95"]) for line in told["results"]] == [(2.0, 1, None), (8.0, 1, None)]
    assert told["differs"] == {"training.steps": ["3", "5"]}
    shown = " ".join(compare(first, second).output.split())
    assert "training.steps: 3 | 5" in shown


def test_the_report_of_a_simulation_is_its_table(tmp_path):
    done = report(str(run_folder(tmp_path / "run")))
    assert done.exit_code == 0, done.output
    assert "overview.png" in done.output
    assert json.loads(report(str(tmp_path / "run"), "--json").stdout)["format"] == "fedsec/result/v1"


def test_a_grid_of_attacks_is_pointed_to_its_own_page(tmp_path):
    (tmp_path / "attack.html").write_text("<p>a grid</p>")
    assert "attack.html" in report(str(tmp_path)).output


@pytest.mark.parametrize("command", ["report", "compare"])
def test_the_other_commands_have_examples_too(command):
    done = RUNNER.invoke(app, [command, "--help"])
    assert done.exit_code == 0
    assert "Examples:" in done.output
