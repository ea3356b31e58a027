"""``fedsec run``: what is checked before anybody is asked, what a follower sees, and how a dead run is noticed."""

import json
import subprocess
import sys
import threading
import time

import pytest
import typer

from experiments.live_federation.stock import StockFederation
from fedsec.cli import follow
from fedsec.cli import run as run_command
from fedsec.edge.appfolder import app_files, write_app_folder
from fedsec.edge.submit import SubmissionError, _json_of, look_up, submit
from fedsec.errors import ConfigError, RoundAborted
from fedsec.files import exclusive_lock
from fedsec.flower.live import LiveFeed, LiveReader, stopping_on_file
from fedsec.plan.load import load_plan, plan_to_toml
from fedsec.runfolder import new_run_folder

PLAN = load_plan(
    overrides=["attack.name=none", "federation.num_clients=4", "federation.rounds=2", "secagg.num_corrupt=1", "training.batch_size=60"]
)


@pytest.fixture
def home(tmp_path):
    federation = StockFederation(root=tmp_path, count=4)
    federation.make()
    (federation.home / "runs").mkdir()
    return federation.home


@pytest.fixture
def folder(home):
    return new_run_folder(home / "runs", PLAN)


def run(home, **changes):
    given = {"plan": None, "follow": False, "resume": None, "stop": None, "home": home, "as_json": False, "quiet": True, **changes}
    return run_command.run(**given)


def quickly(monkeypatch):
    monkeypatch.setattr(follow, "POLL_S", 0.01)
    monkeypatch.setattr(follow, "SILENT_S", 0.1)
    monkeypatch.setattr(follow, "START_S", 0.1)


# --- Before anybody is asked ----------------------------------------------------------------------------------------------------


def test_help_has_examples_and_says_what_ctrl_c_does():
    done = subprocess.run([sys.executable, "-m", "fedsec", "run", "--help"], check=True, capture_output=True, text=True)
    assert "--resume RUN" in done.stdout
    assert "Examples" in done.stdout
    assert "detaches" in " ".join(done.stdout.split())


@pytest.mark.parametrize("changes", [{}, {"resume": "a", "stop": "b"}])
def test_exactly_one_of_plan_resume_and_stop(home, changes):
    with pytest.raises(ConfigError, match="give a plan"):
        run(home, **changes)


def test_a_folder_that_is_no_servers_home_is_refused_with_the_mend(tmp_path):
    with pytest.raises(ConfigError, match="fedsec server up"):
        run(tmp_path, resume="x")


@pytest.mark.parametrize("key", ["attack.name=sign-flip", "training.batch_size=uniform", "federation.num_clients=9"])
def test_a_plan_that_cannot_run_here_leaves_no_folder(home, tmp_path, key):
    plan = load_plan(overrides=["attack.name=none", "federation.num_clients=4", "secagg.num_corrupt=1", "training.batch_size=60", key])
    (tmp_path / "plan.toml").write_text(plan_to_toml(plan))
    with pytest.raises(ConfigError, match=key.split("=")[0]):
        run(home, plan=tmp_path / "plan.toml")
    assert list((home / "runs").iterdir()) == []


@pytest.mark.parametrize("name", ["nothing", "../identity", "", ".", "/etc"])
def test_a_run_that_is_not_there_is_refused(home, name):
    with pytest.raises(ConfigError, match="there is no run"):
        run(home, resume=name)


def test_a_superlink_that_was_never_started_is_told_in_one_sentence(home):
    with pytest.raises(ConfigError, match="fedsec server up"):
        submit(home, {"plan": "x"})


def test_a_superlink_that_does_not_answer_is_told_in_one_sentence(home):
    """Flower's own command, against a port that nobody listens on."""
    from experiments.live_federation.stock import loopback_certificate
    from experiments.ports import free_port

    loopback_certificate(home / "superlink")
    config = f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{free_port()}"\nroot-certificates = "{home / "superlink" / "ca.pem"}"\n'
    (home / "superlink" / "flwr" / "config.toml").write_text(config)
    with pytest.raises(SubmissionError, match="start it with: fedsec server up"):
        look_up(home, 5)


def test_json_is_found_behind_whatever_else_flower_prints():
    assert _json_of('Note: hello\n{"run-id": "5"}\n') == {"run-id": "5"}
    assert _json_of("no json") is None
    assert _json_of("{broken") is None


# --- The app --------------------------------------------------------------------------------------------------------------------


def test_the_app_holds_the_two_thin_packages_and_is_the_same_each_time(tmp_path):
    files = app_files()
    assert {"client/app.py", "server/app.py", "pyproject.toml", "LICENSE"} <= files.keys()
    assert all(name.split("/")[0] in ("client", "server", "LICENSE", "pyproject.toml") for name in files)
    first, second = (write_app_folder(tmp_path / name / "fedsec") for name in "ab")
    assert {p.relative_to(first): p.read_bytes() for p in first.rglob("*") if p.is_file()} == {
        p.relative_to(second): p.read_bytes() for p in second.rglob("*") if p.is_file()
    }
    with pytest.raises(ConfigError, match="not empty"):
        write_app_folder(first)


def test_the_app_takes_every_key_that_the_server_reads_and_the_submission_sends():
    import tomllib

    keys = tomllib.loads(app_files()["pyproject.toml"].decode())["tool"]["flwr"]["app"]["config"].keys()
    assert keys == {"plan", "plan-sha256", "run-dir", "engine"}


def test_the_app_is_read_beside_fedsec_not_where_the_current_folder_has_such_names(tmp_path, monkeypatch):
    (tmp_path / "client").mkdir()
    (tmp_path / "client" / "app.py").write_text("evil = True\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert b"evil" not in app_files()["client/app.py"]


# --- Following ------------------------------------------------------------------------------------------------------------------


def wait(home, folder, flower_run_id):
    from fedsec.report.progress import RunProgress

    with RunProgress(rounds=2, epsilon_target=None, quiet=True) as progress:
        return follow._wait(home, folder, flower_run_id, progress)


def test_a_follower_sees_the_end_of_its_own_start_and_not_of_an_earlier_one(home, folder, monkeypatch):
    quickly(monkeypatch)
    LiveFeed(folder.path, 1).fail(RoundAborted("too few"))
    feed = LiveFeed(folder.path, 2)
    threading.Timer(0.1, lambda: (feed.say("begin", rows=[]), feed.say("end", state="finished"))).start()
    monkeypatch.setattr(follow, "START_S", 60.0)
    assert wait(home, folder, 2)["state"] == "finished"


def test_a_failure_is_told_in_the_servers_own_words_with_the_way_to_resume(folder):
    LiveFeed(folder.path, 1).fail(RoundAborted("2 of 4 nodes joined, 4 are needed"))
    (end,) = LiveReader(folder.path).events()
    error = follow._failed(folder, end)
    assert "2 of 4 nodes joined" in str(error)
    assert f"fedsec run --resume {folder.run_id}" in str(error)


def test_a_run_whose_process_was_killed_is_noticed_by_its_free_lock(home, folder, monkeypatch):
    quickly(monkeypatch)
    LiveFeed(folder.path, 3).say("begin", rows=[])
    assert "gone without a word" in wait(home, folder, 3)["text"]


def test_a_run_that_is_busy_is_not_taken_for_dead(home, folder, monkeypatch):
    quickly(monkeypatch)
    feed = LiveFeed(folder.path, 3)
    feed.say("begin", rows=[])
    ended = []

    def busy():
        with exclusive_lock(folder.path / "run.lock"):
            time.sleep(0.6)
            feed.say("end", state="finished")
            ended.append(time.monotonic())

    thread = threading.Thread(target=busy)
    thread.start()
    time.sleep(0.05)
    assert follow.is_running(folder)
    assert wait(home, folder, 3)["state"] == "finished"
    thread.join()
    assert not follow.is_running(folder)


def test_ctrl_c_detaches_and_says_how_to_come_back(home, folder, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(follow, "_wait", interrupted)
    with pytest.raises(typer.Exit) as caught:
        follow.follow_run(home, folder, PLAN, 1, as_json=False, quiet=True)
    assert caught.value.exit_code == 130
    assert f"--resume {folder.run_id} --follow" in capsys.readouterr().err
    assert not (folder.path / "stop").exists()  # the run was not asked to end


def test_lines_that_are_cut_off_are_waited_for_and_damaged_ones_skipped(folder):
    reader, path = LiveReader(folder.path), folder.path / "live.jsonl"
    assert list(reader.events()) == []
    path.write_text('{"event":"note","text":"a"}\nnot json\n[1]\n{"event":5}\n{"event":"no')
    assert [event["text"] for event in reader.events()] == ["a"]
    with path.open("a") as handle:
        handle.write('te","text":"b"}\n')
    assert [event["text"] for event in reader.events()] == ["b"]


@pytest.mark.parametrize(
    "event",
    [{"event": "round"}, {"event": "round", "row": 5}, {"event": "begin", "rows": 5}, {"event": "answers", "answered": "x", "asked": None}],
)
def test_an_event_that_makes_no_sense_costs_nothing(event):
    from fedsec.report.progress import RunProgress

    follow._show(event, RunProgress(rounds=2, epsilon_target=None, quiet=True))


# --- Stopping -------------------------------------------------------------------------------------------------------------------


def test_a_file_asks_a_run_to_stop_and_one_from_before_does_not(folder, monkeypatch):
    from fedsec.flower import live

    monkeypatch.setattr(live, "STOP_POLL_S", 0.01)
    stop = threading.Event()
    (folder.path / "stop").touch()
    with stopping_on_file(folder.path, stop):
        assert not stop.wait(0.1)
        with exclusive_lock(folder.path / "run.lock"):
            follow.stop_run(folder)
        assert stop.wait(5)
    assert not (folder.path / "stop").exists()


def test_a_run_that_does_not_run_cannot_be_stopped(home, folder):
    with pytest.raises(follow.RunFailedError, match="does not run"):
        run(home, stop=folder.run_id)


def test_without_follow_the_run_id_is_printed_and_json_has_all_of_it(home, folder, monkeypatch, capsys):
    monkeypatch.setattr(run_command, "_submit", lambda _home, _folder: 17)
    run(home, resume=folder.run_id)
    assert capsys.readouterr().out == f"{folder.run_id}\n"
    run(home, resume=folder.run_id, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"run_id": folder.run_id, "run_dir": str(folder.path), "flower_run_id": 17}
    assert folder.path.is_absolute()


def test_a_start_whose_process_died_is_ended_at_flower_before_the_run_is_submitted_again(home, folder, monkeypatch):
    """Its nodes wait up to a minute for what the dead process did not send; one that said its end, or never began, holds nobody."""
    told = []
    monkeypatch.setattr(run_command, "_submit", lambda _home, _folder: told.append("submitted") or 17)
    monkeypatch.setattr("fedsec.edge.submit.end", lambda at, number: told.append((at, number)))
    run(home, resume=folder.run_id)
    feed = LiveFeed(folder.path, 5)
    feed.say("begin", rows=[])
    run(home, resume=folder.run_id)
    feed.say("end", state="stopped")
    run(home, resume=folder.run_id)
    assert told == ["submitted", (home, 5), "submitted", "submitted"]


def test_a_superlink_that_refuses_to_end_a_start_does_not_stop_the_resumption(home, folder, monkeypatch):
    def refused(_home, _number):
        raise SubmissionError("run 5 is already finished")

    monkeypatch.setattr(run_command, "_submit", lambda _home, _folder: 17)
    monkeypatch.setattr("fedsec.edge.submit.end", refused)
    LiveFeed(folder.path, 5).say("begin", rows=[])
    run(home, resume=folder.run_id)
