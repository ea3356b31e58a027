import json
import statistics

import pytest

from experiments.digits.run import HERE, RESULTS, SEEDS, jobs_of, summary_of, table_of
from fedsec.plan.load import load_plan


@pytest.fixture(scope="module")
def content():
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def test_the_private_arm_is_the_default_plan_itself():
    job = jobs_of(1)[0]
    assert load_plan(job.plan, overrides=job.overrides).digest() == load_plan().digest()


def test_the_other_arm_differs_in_privacy_and_learning_rate_only():
    private, clear, public = (load_plan(job.plan, overrides=job.overrides) for job in jobs_of(1))
    assert clear.model_copy(update={"secagg": private.secagg}) == private
    assert public.is_private is False
    assert public.data == private.data
    assert public.federation == private.federation
    assert public.training.model_copy(update={"learning_rate": private.training.learning_rate}) == private.training


def test_secure_aggregation_costs_no_accuracy_and_little_time(content):
    with_it, without = content["summary"]["default"], content["summary"]["clear"]
    assert all(abs(one - other) <= 0.005 for one, other in zip(with_it["accuracies"], without["accuracies"], strict=True))
    seconds = {arm: [row["result"]["duration_s"] for row in content["rows"] if row["arm"] == arm] for arm in ("default", "clear")}
    taken, clear = (statistics.median(seconds[arm]) for arm in ("default", "clear"))
    assert taken <= max(2 * clear, clear + 10)


def test_results_hold_all_arms_and_every_seed_once(content):
    assert sorted((row["arm"], row["seed"]) for row in content["rows"]) == sorted((job.arm, job.seed) for job in jobs_of(SEEDS))


def test_the_summary_follows_from_the_rows(content):
    assert summary_of(content["rows"]) == content["summary"]


def test_the_targets_are_reached(content):
    assert content["summary"]["default"]["mean"] >= 0.88
    assert content["summary"]["no-privacy"]["mean"] >= 0.93
    assert 7.99 < content["summary"]["default"]["epsilon_prv"] <= 8.0


def test_the_page_shows_the_results(content):
    assert table_of(content) in (HERE / "README.md").read_text(encoding="utf-8")
