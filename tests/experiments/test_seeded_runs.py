import json
from pathlib import Path

import pytest

import experiments.seeded_runs as seeded
from experiments.seeded_runs import (
    Interval,
    Job,
    ResultsFile,
    markdown_table,
    privacy_overrides,
    replace_block,
    run_all,
    run_job,
    student_interval,
)
from fedsec.errors import FedsecError, StorageError


def a_job(seed=1, **changes):
    return Job(**{"arm": "small", "seed": seed, "plan": None, "overrides": ("federation.rounds=1",), **changes})


def a_row(job, accuracy=0.5):
    return {"arm": job.arm, "seed": job.seed, "plan_digest": job.digest(), "wall_s": 1.0, "result": {"accuracy": accuracy}}


def test_interval_is_students_t():
    # Five values 1..5: mean 3, deviation sqrt(2.5), t(0.975, 4) = 2.7764 (tables).
    interval = student_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert interval.mean == 3.0
    assert interval.half_width == pytest.approx(2.7764 * 2.5**0.5 / 5**0.5, rel=1e-4)


def test_one_seed_has_no_interval_and_none_has_no_mean():
    assert student_interval([0.5]) == Interval(mean=0.5, half_width=None)
    assert "±" not in str(student_interval([0.5]))
    with pytest.raises(ValueError, match="no values"):
        student_interval([])


def test_infinite_epsilon_switches_privacy_off_and_a_number_is_kept():
    assert privacy_overrides(float("inf")) == ("privacy.unit=none", "privacy.epsilon=inf")
    assert privacy_overrides(0.1) == ("privacy.epsilon=0.1",)


def test_seed_and_settings_are_part_of_a_jobs_digest():
    digests = {a_job().digest(), a_job(2).digest(), a_job(overrides=("federation.rounds=2",)).digest()}
    assert len(digests) == 3
    assert a_job(arm="other").digest() == a_job().digest()


def test_a_run_is_started_as_a_user_would():
    assert a_job(3).command("OUT") == [
        "-m", "fedsec", "simulate", "--set", "federation.rounds=1", "--set", "federation.seed=3", "--out", "OUT", "--resume", "--json", "--quiet",
    ]  # fmt: skip


def test_the_command_on_record_names_no_folder_of_this_machine():
    shown = a_job(plan=seeded.ROOT / "experiments" / "heart_disease" / "plan.toml").shown()
    assert shown.startswith("python -m fedsec simulate experiments/heart_disease/plan.toml --set ")
    assert str(seeded.ROOT) not in shown


def test_finished_rows_are_found_again_and_a_changed_plan_is_not(tmp_path):
    file = ResultsFile(tmp_path / "results.json")
    file.add(a_row(a_job()))
    file.save({"name": "x"})
    again = ResultsFile(tmp_path / "results.json")
    assert again.find(a_job())["result"] == {"accuracy": 0.5}
    assert again.find(a_job(2)) is None
    assert again.find(a_job(overrides=("federation.rounds=2",))) is None


def test_a_new_row_takes_the_place_of_the_old_one(tmp_path):
    file = ResultsFile(tmp_path / "results.json")
    file.add(a_row(a_job(), 0.1))
    file.add(a_row(a_job(), 0.2))
    assert [row["result"]["accuracy"] for row in file.rows] == [0.2]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "other", "rows": []}', '{"format": "fedsec/experiment/v1", "rows": 3}'])
def test_a_damaged_results_file_is_refused(tmp_path, text):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(StorageError, match="not a results file"):
        ResultsFile(path)


def test_a_series_that_was_stopped_goes_on_where_it_was(tmp_path, monkeypatch):
    started = []

    def fake(job, _runs, *, workers):
        started.append(job.seed)
        if len(started) == 2:
            raise FedsecError("the power went out")
        return a_row(job)

    monkeypatch.setattr(seeded, "run_job", fake)
    jobs, path = [a_job(1), a_job(2)], tmp_path / "results.json"
    with pytest.raises(FedsecError, match="power"):
        run_all(jobs, ResultsFile(path), {}, accuracy=lambda row: row["result"]["accuracy"], runs=tmp_path, workers=None)
    rows = run_all(jobs, ResultsFile(path), {}, accuracy=lambda row: row["result"]["accuracy"], runs=tmp_path, workers=None)
    assert started == [1, 2, 2]
    assert [row["seed"] for row in rows] == [1, 2]
    assert [row["seed"] for row in json.loads(path.read_text())["rows"]] == [1, 2]


def test_the_file_keeps_no_rows_that_were_not_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(seeded, "run_job", lambda job, _runs, *, workers: a_row(job))
    file = ResultsFile(tmp_path / "results.json")
    file.add(a_row(a_job(arm="older setting")))
    run_all([a_job()], file, {}, accuracy=lambda row: row["result"]["accuracy"], runs=tmp_path, workers=None)
    assert [row["arm"] for row in json.loads(file.path.read_text())["rows"]] == ["small"]


def test_a_failed_run_is_an_error_with_its_own_words(tmp_path):
    with pytest.raises(FedsecError, match=r"small, seed 1 ended with .*not an empty folder"):
        folder = tmp_path / f"small-seed1-{a_job().digest()[:8]}"
        folder.mkdir()
        (folder / "something else").touch()
        run_job(a_job(), tmp_path)


def test_a_table_has_one_line_a_row():
    assert markdown_table(["a", "b"], [["x", "1"]]) == "| a | b |\n| --- | ---: |\n| x | 1 |"


def test_a_table_is_put_between_the_markers_only(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- results -->\nold\n<!-- /results -->\nafter\n")
    replace_block(page, "new")
    replace_block(page, "newer")
    assert page.read_text() == "before\n<!-- results -->\nnewer\n<!-- /results -->\nafter\n"


def test_a_page_without_markers_is_left_alone(tmp_path: Path):
    page = tmp_path / "README.md"
    page.write_text("before\n")
    with pytest.raises(StorageError, match="no results block"):
        replace_block(page, "new")
    assert page.read_text() == "before\n"
