import json

import numpy as np
import pytest

from experiments.fashion_mnist import run
from experiments.fashion_mnist.run import HERE, LEARNING_RATES, PLAN, RESULTS, asked_or_finished, jobs_of, summary_of, table_of
from experiments.fashion_mnist.validation import HELD_OUT, held_out_part, load
from experiments.seeded_runs import ResultsFile
from fedsec.data.base import Dataset
from fedsec.plan.load import load_plan


@pytest.fixture(scope="module")
def content():
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def a_dataset(records=50):
    x = np.arange(records, dtype=np.float32).reshape(records, 1)
    y = np.arange(records, dtype=np.int64) % 2
    return Dataset(name="small", x=x, y=y, x_test=x[:5] + 1000, y_test=y[:5], num_classes=2, class_names=("even", "odd"))


def a_row(job, accuracy=0.5):
    epsilon = {"prv": 3.0, "rdp": 3.3, "delta": 1e-5, "noise_multiplier": 3.5}
    return {
        "arm": job.arm,
        "seed": job.seed,
        "plan_digest": job.digest(),
        "wall_s": 9.0,
        "result": {"accuracy": accuracy, "epsilon": epsilon},
    }


def test_the_plan_is_the_one_that_the_figure_is_about():
    plan = load_plan(PLAN)
    assert (plan.federation.num_clients, plan.privacy.unit, plan.privacy.epsilon, plan.privacy.delta) == (10, "example", 3.0, 1e-5)
    assert jobs_of(["3"], 1)[0].overrides == ()


def test_every_epsilon_differs_in_privacy_and_learning_rate_only():
    plan = load_plan(PLAN)
    for job in jobs_of(list(LEARNING_RATES), 1):
        other = load_plan(job.plan, overrides=job.overrides)
        assert job.arm == f"eps{other.privacy.epsilon:g}"
        assert (other.data, other.federation, other.model) == (plan.data, plan.federation, plan.model)
        assert other.training.model_copy(update={"learning_rate": plan.training.learning_rate}) == plan.training


def test_the_control_is_one_client_with_the_same_privacy():
    jobs = jobs_of(list(LEARNING_RATES), 1, one_client=True)
    half = len(jobs) // 2
    for job, control in zip(jobs[:half], jobs[half:], strict=True):
        plan, central = (load_plan(one.plan, overrides=one.overrides) for one in (job, control))
        assert control.arm == f"one-client-{job.arm}"
        assert (plan.federation.num_clients, central.federation.num_clients) == (10, 1)
        assert central.privacy == plan.privacy


def test_held_out_records_are_training_records_and_no_others():
    dataset = a_dataset()
    parts = held_out_part(dataset, 20)
    assert (len(parts.y), len(parts.y_test)) == (30, 20)
    assert sorted([*parts.x[:, 0], *parts.x_test[:, 0]]) == sorted(dataset.x[:, 0])
    assert np.array_equal(parts.x[:, 0] % 2, parts.y)
    assert np.array_equal(parts.x_test[:, 0] % 2, parts.y_test)


@pytest.mark.needs("data")
def test_the_validation_part_comes_from_the_real_files(data_root, monkeypatch):
    monkeypatch.setenv("FEDSEC_DATA_ROOT", str(data_root))
    parts = load()
    assert (len(parts.y), len(parts.y_test)) == (60_000 - HELD_OUT, HELD_OUT)
    assert np.bincount(parts.y_test).min() > 900


def test_rows_of_earlier_calls_are_kept_and_those_of_another_plan_are_not(tmp_path):
    file = ResultsFile(tmp_path / "results.json")
    file.add(a_row(jobs_of(["1"], 1)[0]))
    file.add(a_row(jobs_of(["8"], 1)[0]) | {"plan_digest": "of another plan"})
    jobs = asked_or_finished(jobs_of(["3"], 2), file)
    assert [(job.arm, job.seed) for job in jobs] == [("eps1", 1), ("eps3", 1), ("eps3", 2)]


def test_an_unknown_epsilon_is_refused_before_anything_runs(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["run", "--epsilon", "3,5"])
    monkeypatch.setattr(run, "run_all", lambda *_args, **_kwargs: pytest.fail("it ran"))
    with pytest.raises(SystemExit) as stopped:
        run.main()
    assert stopped.value.code == 2
    assert "--epsilon one of 1, 2, 3" in capsys.readouterr().err


def test_results_are_of_the_plan_as_it_stands(content):
    digests = {(job.arm, job.seed): job.digest() for job in jobs_of(list(LEARNING_RATES), 3, one_client=True)}
    assert {(row["arm"], row["seed"]) for row in content["rows"]} >= {("eps3", 1), ("eps3", 2), ("eps3", 3)}
    assert all(row["plan_digest"] == digests[row["arm"], row["seed"]] for row in content["rows"])


def test_the_summary_follows_from_the_rows(content):
    assert summary_of(content["rows"]) == content["summary"]


def test_the_target_is_reached(content):
    line = content["summary"]["eps3"]
    assert line["mean"] >= 0.87
    assert max(line["seconds"]) <= 300
    assert 2.99 < line["epsilon_prv"] <= 3.0
    assert line["delta"] == 1e-5


def test_the_page_shows_the_results(content):
    assert table_of(content) in (HERE / "README.md").read_text(encoding="utf-8")
