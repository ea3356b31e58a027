"""The words of a plan say what it does and nothing more."""

import pytest

from fedsec.plan.guarantees import delta_warning, guarantee_sentence, notes, secagg_facts
from fedsec.plan.load import load_plan

CLEAR = "secagg.enabled=false"
OPEN = ["privacy.unit=none", "privacy.epsilon=inf", CLEAR]


def test_a_private_plan_names_unit_numbers_relation_adversary_and_assumption():
    sentence = guarantee_sentence(load_plan())
    for part in ("Each record", "(8, 0.001)", "add/remove", "the server", "one client"):
        assert part in sentence


def test_a_plan_without_privacy_says_so_and_claims_nothing():
    sentence = guarantee_sentence(load_plan(overrides=OPEN))
    assert sentence.startswith("No differential privacy")
    assert "protected" not in sentence


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], "seed"),
        ([CLEAR], "sees each client's update in clear"),
        ([], "not one client's update"),
        (["training.batch_size=per-client"], "record count"),
        ([CLEAR, "federation.evaluate_clients=true"], "release outside epsilon"),
        ([CLEAR, "federation.fraction=0.5"], "not counted as amplification"),
        (["model.personal=['bias']"], "after the last release"),
        (["model.personal=['bias']", "model.personal_fit=dp"], "inside the noised gradient"),
        (["training.tail_average=5"], "post-processing"),
    ],
)
def test_every_release_and_assumption_beside_the_model_has_its_note(overrides, words):
    assert any(words in note for note in notes(load_plan(overrides=overrides)))


def test_the_numbers_for_scripts_are_those_of_the_words():
    facts = secagg_facts(load_plan())
    assert facts["cohorts"] == [
        {
            "count": 1, "num_clients": 20, "num_corrupt": 4, "threshold": 13, "minimum_accepted": 10, "tolerated_dropouts": 3,
            "tolerated_dropouts_bad_dealers": 0,
        }
    ]  # fmt: skip
    assert any("3 drop-outs are survived, 0 if" in note for note in notes(load_plan()))
    assert secagg_facts(load_plan(overrides=[CLEAR])) is None


@pytest.mark.parametrize(("smallest", "warned"), [(1000, True), (1001, True), (999, False), (0, False)])
def test_a_delta_of_one_over_n_or_more_is_warned_about(smallest, warned):
    assert (delta_warning(load_plan(), smallest) is not None) == warned


def test_without_privacy_there_is_no_delta_to_warn_about():
    assert delta_warning(load_plan(overrides=OPEN), 10**6) is None
