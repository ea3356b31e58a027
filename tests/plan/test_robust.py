"""Which rule a plan runs, how many clients it may reject, and what is refused."""

import pytest

from fedsec.errors import ConfigError
from fedsec.plan.guarantees import notes, robust_notes
from fedsec.plan.load import load_plan
from fedsec.plan.robust import MALFORMED_ATTACKS, OPEN_ONLY, PROTOCOL_ATTACKS, max_suspects, rule_of
from fedsec.robust.base import Mode
from fedsec.robust.catalogue import RULES
from fedsec.sim.attacks.catalogue import CATALOGUE, Family

PUBLIC = ["privacy.unit=none", "privacy.epsilon=inf", "attack.name=none"]
CLEAR = "secagg.enabled=false"
SKETCHES = "secagg.sketch_without_dp=true"


@pytest.mark.parametrize(
    ("overrides", "rule"),
    [
        ([], "screening"),
        ([CLEAR], "screening"),
        ([*PUBLIC, CLEAR], "arc-nnm-geometric-median"),
        ([*PUBLIC, SKETCHES], "group-filter"),
        (["federation.num_clients=7", "secagg.num_corrupt=1"], "mean"),
        (["federation.num_clients=8", "secagg.num_corrupt=1"], "screening"),
        (["robust.rule=multi-krum"], "multi-krum"),
    ],
)
def test_auto_stands_for_one_rule_that_follows_from_the_plan(overrides, rule):
    assert rule_of(load_plan(overrides=overrides)) == rule


@pytest.mark.parametrize(
    ("wanted", "present", "most"), [(None, 20, 5), (None, 3, 0), (None, 1, 0), (9, 20, 9), (9, 10, 4), (0, 20, 0), (4, 5, 2)]
)
def test_suspects_are_always_fewer_than_half_of_who_is_there(wanted, present, most):
    overrides = [] if wanted is None else [f"robust.num_byzantine={wanted}"]
    assert max_suspects(load_plan(overrides=overrides), present) == most


def test_the_lists_of_the_plan_are_those_of_the_pillars():
    assert set(OPEN_ONLY) == {name for name, info in RULES.items() if Mode.SKETCH not in info.modes}
    assert set(MALFORMED_ATTACKS) == {name for name, info in CATALOGUE.items() if info.family is Family.MALFORMED}
    assert set(PROTOCOL_ATTACKS) == {name for name, info in CATALOGUE.items() if info.family is Family.PROTOCOL}


def test_comparing_changes_no_digest_and_peace_has_the_digest_of_old():
    assert load_plan(overrides=["attack.compare=false"]).digest() == load_plan().digest()
    peace = ["robust.rule=mean", "attack.name=none"]
    other = [*peace, "robust.quarantine_rounds=9", "attack.fraction=0.3"]
    assert load_plan(overrides=peace).digest() == load_plan(overrides=other).digest() != load_plan().digest()


def test_an_attack_makes_another_digest_in_each_of_its_numbers():
    digests = {
        load_plan(overrides=more).digest() for more in ([], ["attack.strength=4"], ["attack.own_noise=false"], ["attack.fraction=0.1"])
    }
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], 'rule "screening" on sketches rejects at most 5 of 20'),
        ([CLEAR], "on updates in clear"),
        ([], "4 certified, colluding clients"),
        (["secagg.num_corrupt=2"], "more than secagg.num_corrupt = 2"),
        (["robust.rule=mean"], "No outlier is rejected:"),
        (["federation.num_clients=6", "secagg.num_corrupt=1"], "too few to tell"),
    ],
)
def test_the_notes_say_which_rule_runs_and_who_attacks(overrides, words):
    assert any(words in line for line in notes(load_plan(overrides=overrides)))


def test_a_plan_without_attack_says_nothing_of_one():
    assert not any("attack" in line for line in robust_notes(load_plan(overrides=["attack.name=none"])))


@pytest.mark.parametrize("rule", OPEN_ONLY)
def test_a_rule_on_coordinates_is_refused_under_masks_and_runs_in_clear(rule):
    with pytest.raises(ConfigError, match="secure aggregation hides"):
        load_plan(overrides=[f"robust.rule={rule}"])
    assert rule_of(load_plan(overrides=[f"robust.rule={rule}", "robust.num_byzantine=4", CLEAR])) == rule


def test_a_rule_is_refused_where_it_stands_fewer_hostile_clients_than_the_plan_provides_for():
    with pytest.raises(ConfigError, match="23 clients to stand 5"):
        load_plan(overrides=["robust.rule=bulyan", CLEAR])
