"""A run's folder is made whole, never overwritten, and resumed only with its own plan."""

import pytest

from fedsec.errors import ConfigError, StorageError
from fedsec.plan.load import load_plan
from fedsec.runfolder import prepare_run_folder

PLAN = load_plan()


def test_a_new_folder_holds_plan_and_run_id(tmp_path):
    folder = prepare_run_folder(tmp_path / "run", PLAN, resume=False)
    assert not folder.resumed
    assert load_plan(folder.path / "plan.toml") == PLAN
    assert sorted(path.name for path in folder.path.iterdir()) == ["plan.toml", "run.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_run_is_not_overwritten_but_resumed_or_removed_on_request(tmp_path):
    first = prepare_run_folder(tmp_path / "run", PLAN, resume=False)
    with pytest.raises(ConfigError, match="--resume"):
        prepare_run_folder(tmp_path / "run", PLAN, resume=False)
    again = prepare_run_folder(tmp_path / "run", PLAN, resume=True)
    assert again.resumed
    assert again.run_id == first.run_id
    assert prepare_run_folder(tmp_path / "run", PLAN, resume=False, fresh=True).run_id != first.run_id


def test_resume_where_nothing_is_starts_the_run(tmp_path):
    assert not prepare_run_folder(tmp_path / "a" / "run", PLAN, resume=True).resumed


def test_another_plans_run_is_not_resumed(tmp_path):
    prepare_run_folder(tmp_path / "run", PLAN, resume=False)
    with pytest.raises(ConfigError, match="another plan"):
        prepare_run_folder(tmp_path / "run", load_plan(overrides=["privacy.epsilon=1"]), resume=True)


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_with_other_files_is_never_touched(tmp_path, fresh):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError):
        prepare_run_folder(tmp_path, PLAN, resume=False, fresh=fresh)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_contradicting_flags_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="contradict"):
        prepare_run_folder(tmp_path / "run", PLAN, resume=True, fresh=True)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": "x", "run_id": "y", "plan_digest": "z"}'])
def test_a_damaged_marker_is_a_clear_error(tmp_path, text):
    folder = prepare_run_folder(tmp_path / "run", PLAN, resume=False)
    (folder.path / "run.json").write_text(text)
    with pytest.raises(StorageError, match="damaged"):
        prepare_run_folder(tmp_path / "run", PLAN, resume=True)


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises((StorageError, ConfigError)):
        prepare_run_folder(tmp_path / "file" / "run", PLAN, resume=False)


def test_one_process_at_a_time_runs_in_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("fedsec.runfolder.LOCK_TIMEOUT_S", 0.0)
    folder = prepare_run_folder(tmp_path / "run", PLAN, resume=False)
    with folder.lock(), pytest.raises(StorageError, match="another process"), folder.lock():
        pass
