import json
import statistics

import pytest

from experiments.heart_disease.run import (
    EPSILONS,
    HERE,
    PLAN,
    RESULTS,
    SEEDS,
    hospital_accuracies,
    jobs_of,
    local_only,
    majority,
    mean_accuracy,
    summary_of,
    table_of,
)
from fedsec.data.federated import federated_data
from fedsec.data.heart import HOSPITALS
from fedsec.plan.load import load_plan

TARGETS = {"inf": 0.81, "5": 0.80, "1": 0.79, "0.1": 0.68}


@pytest.fixture(scope="module")
def data():
    return federated_data(load_plan(PLAN).data, num_clients=4, seed=1)


@pytest.fixture(scope="module")
def content():
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def test_the_plan_protects_examples_and_fits_intercepts_after_the_last_release():
    plan = load_plan(PLAN)
    assert (plan.privacy.unit, plan.privacy.delta) == ("example", 1e-4)
    assert (plan.model.personal, plan.model.personal_fit) == (("bias",), "after-release")
    assert isinstance(plan.training.batch_size, int)


def test_arms_differ_in_the_stated_keys_only():
    plans = [load_plan(job.plan, overrides=job.all_overrides()) for job in jobs_of(["inf", "0.1"], 2)]
    assert len({plan.digest() for plan in plans}) == len(plans) == 8
    assert len({plan.training.model_dump_json() + plan.data.model_dump_json() for plan in plans}) == 1
    assert {plan.model.personal for plan in plans} == {("bias",), ()}


def test_each_client_is_the_hospital_of_its_place(data):
    assert dict(zip(HOSPITALS, map(len, data.train_parts), strict=True)) == {
        "cleveland": 199,
        "hungarian": 172,
        "switzerland": 30,
        "va": 85,
    }
    named = hospital_accuracies({"personal_accuracy": {f"client-{index:04d}": index / 10 for index in range(4)}})
    assert named == {"cleveland": 0.0, "hungarian": 0.1, "switzerland": 0.2, "va": 0.3}


def test_majority_names_each_hospitals_own_commonest_label(data):
    # Test labels by hand: 56 of 104 healthy, 56 of 89 healthy, 15 of 16 ill, 35 of 45 ill.
    assert majority(data) == pytest.approx({"cleveland": 56 / 104, "hungarian": 56 / 89, "switzerland": 15 / 16, "va": 35 / 45})


def test_a_hospital_alone_beats_its_majority_where_it_has_records_enough(data):
    alone, common = local_only(data), majority(data)
    assert alone["cleveland"] > common["cleveland"] + 0.1
    assert alone["hungarian"] > common["hungarian"] + 0.1
    assert alone["switzerland"] == common["switzerland"]


def test_results_hold_every_arm_epsilon_and_seed_once(content):
    wanted = sorted((job.arm, job.seed) for job in jobs_of(EPSILONS.split(","), SEEDS))
    assert sorted((row["arm"], row["seed"]) for row in content["rows"]) == wanted


def test_results_spend_what_their_arm_says_and_no_more(content):
    for arm, line in content["summary"].items():
        target = float(arm.partition("-eps")[2])
        if target == float("inf"):
            assert (line["epsilon_prv"], line["delta"], line["noise_multiplier"]) == ("inf", None, 0.0)
        else:
            assert target * 0.999 < line["epsilon_prv"] <= target < line["epsilon_rdp"]
            assert line["delta"] == 1e-4


def test_the_summary_follows_from_the_rows(content):
    assert summary_of(content["rows"]) == content["summary"]
    rows = [row for row in content["rows"] if row["arm"] == "personal-eps1"]
    assert content["summary"]["personal-eps1"]["mean"] == pytest.approx(statistics.fmean(map(mean_accuracy, rows)))


@pytest.mark.parametrize(("epsilon", "target"), TARGETS.items())
def test_the_personal_intercept_reaches_its_target(content, epsilon, target):
    assert content["summary"][f"personal-eps{epsilon}"]["mean"] >= target


def test_the_page_shows_the_results(content):
    assert table_of(content) in (HERE / "README.md").read_text(encoding="utf-8")
