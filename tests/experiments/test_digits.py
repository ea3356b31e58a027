import json

import pytest

from experiments.digits.run import HERE, RESULTS, SEEDS, jobs_of, summary_of, table_of
from fedsec.plan.load import load_plan


@pytest.fixture(scope="module")
def content():
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def plans():
    return {job.arm: load_plan(job.plan, overrides=job.overrides) for job in jobs_of(1)}


def test_the_first_arm_is_the_default_plan_itself():
    assert plans()["default"].digest() == load_plan().digest()


def test_the_other_arms_differ_in_what_their_names_say_and_nothing_else():
    of = plans()
    assert of["undefended"].model_copy(update={"robust": of["default"].robust}) == of["default"]
    assert of["no attack"].robust == of["default"].robust
    assert of["no attack"].attack.name == "none"
    assert of["clear"].model_copy(update={"secagg": of["mean"].secagg}) == of["mean"]
    public, clear = of["no-privacy"], of["clear"]
    assert public.is_private is False
    assert (public.data, public.federation) == (clear.data, clear.federation)
    assert public.training.model_copy(update={"learning_rate": clear.training.learning_rate}) == clear.training


def test_secure_aggregation_costs_no_accuracy(content):
    masked, clear = content["summary"]["mean"], content["summary"]["clear"]
    assert all(abs(one - other) <= 0.005 for one, other in zip(masked["accuracies"], clear["accuracies"], strict=True))


def test_the_attack_ruins_the_undefended_and_hardly_touches_the_defended(content):
    summary = content["summary"]
    assert summary["undefended"]["mean"] <= 0.3
    assert summary["default"]["mean"] >= summary["no attack"]["mean"] - 0.03
    assert summary["default"]["precision"] >= 0.95
    assert summary["default"]["recall"] >= 0.95
    assert summary["no attack"]["honest_rate"] <= 0.01
    assert summary["default"]["epsilon_prv"] == summary["no attack"]["epsilon_prv"]


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
