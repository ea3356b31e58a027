"""The cells of a grid: which there are, what makes each of them, and what is refused before one runs."""

import pytest

from fedsec.errors import ConfigError
from fedsec.plan.grid import (
    ATTACKS,
    NO_ATTACK,
    RULES,
    AttackGrid,
    Cell,
    base_plan,
    grid_digest,
    make_grid,
    parse_fractions,
    parse_names,
    plans_of,
)
from fedsec.plan.load import load_plan, parse_plan, plan_to_toml


def plan_of(*overrides):
    return load_plan(overrides=overrides)


def grid_of(plan, attacks=("alie", "ipm"), rules=("mean", "multi-krum"), fractions=(0.1, 0.2), seeds=2):
    return make_grid(plan, attacks=attacks, rules=rules, fractions=fractions, seeds=seeds)


def test_every_rule_runs_without_an_attack_and_the_mean_always_runs():
    cells = grid_of(plan_of("federation.seed=7"), rules=("multi-krum",)).cells()
    assert len(cells) == len(set(cells)) == 2 * (2 + 2 * 2 * 2)
    assert {(cell.rule, cell.seed) for cell in cells if cell.attack == NO_ATTACK} == {
        ("mean", 7), ("mean", 8), ("multi-krum", 7), ("multi-krum", 8)
    }  # fmt: skip
    assert {cell.rule for cell in cells} == {"mean", "multi-krum"}
    assert [cell.seed for cell in cells] == [7] * 10 + [8] * 10, "a grid that is cut short has whole seeds"


def test_a_cells_settings_give_its_plan_and_nothing_else_changes():
    plan = plan_of("federation.rounds=3", "attack.knowledge=partial")
    base = base_plan(plan)
    for cell, made in plans_of(base, grid_of(plan)).items():
        assert (made.attack.name, made.robust.rule, made.federation.seed) == (cell.attack, cell.rule, cell.seed)
        assert cell.fraction is None or made.attack.fraction == cell.fraction
        assert made.attack.compare is False
        assert made.attack.knowledge == "partial"
        assert made.federation.rounds == 3
        assert made == parse_plan(plan_to_toml(base), overrides=cell.overrides())


def test_every_cell_has_a_key_of_its_own_that_no_other_grid_changes():
    plan = plan_of()
    keys = {cell: made.digest() for cell, made in plans_of(base_plan(plan), grid_of(plan)).items()}
    assert len(set(keys.values())) == len(keys)
    larger = plans_of(base_plan(plan), grid_of(plan, attacks=("label-flip", "alie", "ipm"), fractions=(0.1, 0.2, 0.3), seeds=3))
    assert all(larger[cell].digest() == key for cell, key in keys.items())


def test_the_plans_strength_is_its_own_attacks_number():
    plan = plan_of("attack.name=ipm", "attack.strength=2.5")
    grid = grid_of(plan)
    assert {(cell.attack, cell.strength) for cell in grid.cells()} == {(NO_ATTACK, None), ("alie", None), ("ipm", 2.5)}
    made = plans_of(base_plan(plan), grid)
    assert {cell.attack: made[cell].attack.strength for cell in made} == {NO_ATTACK: None, "alie": None, "ipm": 2.5}
    assert grid_of(plan, attacks=("alie",)).strengths == {}


def test_auto_is_what_it_stands_for():
    assert grid_of(plan_of(), rules=("auto",)).rules == ("mean", "screening")
    assert grid_of(plan_of("federation.num_clients=6", "secagg.enabled=false"), rules=("auto",)).rules == ("mean",)
    with pytest.raises(ConfigError, match='"auto" stands for "screening"'):
        grid_of(plan_of(), rules=("auto", "screening"))


def test_a_base_forgets_what_cells_decide_and_nothing_that_they_share():
    plain = base_plan(plan_of("attack.name=none", "robust.rule=mean"))
    assert grid_digest(plain) == grid_digest(base_plan(plan_of("attack.name=ipm", "attack.fraction=0.3", "robust.rule=filter")))
    assert grid_digest(plain) == grid_digest(base_plan(plan_of("attack.name=none", "name=other")))
    for other in ("attack.knowledge=partial", "federation.seed=2", "secagg.enabled=false", "robust.num_byzantine=3"):
        assert grid_digest(plain) != grid_digest(base_plan(plan_of("attack.name=none", other))), other
    assert base_plan(base_plan(plain)) == plain


@pytest.mark.parametrize("rule", ["median", "trimmed-mean", "meamed", "bulyan", "krum"])
def test_rules_that_cannot_run_on_sketches_are_all_named_with_those_that_can(rule):
    plan = plan_of()
    with pytest.raises(ConfigError) as caught:
        plans_of(base_plan(plan), grid_of(plan, rules=(rule, "multi-krum")))
    said = str(caught.value)
    assert said.startswith(f"--rules: cannot run in this plan: {rule} (")
    could = said.partition("these can: ")[2]
    assert "multi-krum" in could
    assert "screening" in could
    assert "median," not in could.replace("geometric-median,", "")
    assert "--open" in said


def test_in_the_open_those_rules_run():
    plan = plan_of("secagg.enabled=false")
    assert len(plans_of(base_plan(plan), grid_of(plan, rules=("median", "krum")))) == 2 * 3 * 5


def test_attacks_that_masks_rule_out_are_all_named():
    plan = plan_of()
    with pytest.raises(ConfigError, match="--attacks: cannot run in this plan: nan-value, wrong-shape") as caught:
        plans_of(base_plan(plan), grid_of(plan, attacks=("nan-value", "alie", "wrong-shape")))
    assert "sketch-lie" in str(caught.value)
    clear = plan_of("secagg.enabled=false")
    with pytest.raises(ConfigError, match="--attacks: cannot run in this plan: silence") as caught:
        plans_of(base_plan(clear), grid_of(clear, attacks=("silence",)))
    assert "--open" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("alie,nope", '"nope" is unknown'),
        ("sign-flp", 'did you mean "sign-flip"'),
        ("alie,", '"" is unknown'),
        ("", '"" is unknown'),
        ("alie, alie", "alie is there twice"),
        ("none", "always part of the grid"),
        ("x" * 5000, "unknown"),
        ("\x1b[31malie", "unknown"),
    ],
)
def test_bad_names_are_refused(text, words):
    with pytest.raises(ConfigError) as caught:
        parse_names(text, known=ATTACKS, option="--attacks")
    assert words in str(caught.value)
    assert caught.value.field == "--attacks"
    assert len(str(caught.value)) < 300


def test_good_names_keep_their_order():
    assert parse_names(" ipm , alie", known=ATTACKS, option="--attacks") == ("ipm", "alie")
    assert "auto" in RULES
    assert NO_ATTACK not in ATTACKS


@pytest.mark.parametrize("text", ["0", "0.5", "-0.1", "nan", "inf", "20%", "", "0.1,", "0.1,0.10", "1e-400"])
def test_bad_fractions_are_refused(text):
    with pytest.raises(ConfigError) as caught:
        parse_fractions(text)
    assert caught.value.field == "--fractions"


def test_fractions_rise():
    assert parse_fractions("0.3, 0.1,.2") == (0.1, 0.2, 0.3)


@pytest.mark.parametrize("seeds", [0, -3])
def test_no_seeds_are_refused(seeds):
    with pytest.raises(ConfigError, match="--seeds"):
        grid_of(plan_of(), seeds=seeds)


def test_a_grid_without_end_is_refused():
    with pytest.raises(ConfigError, match="smaller grid"):
        grid_of(plan_of(), seeds=10**9)


def test_seeds_past_the_last_one_are_refused_before_anything_runs():
    plan = plan_of(f"federation.seed={2**63 - 1}")
    with pytest.raises(ConfigError, match="seed"):
        plans_of(base_plan(plan), grid_of(plan, seeds=2))


def test_misuse_is_refused():
    with pytest.raises(ValueError, match="none twice"):
        AttackGrid(attacks=("alie", "alie"), rules=("mean",), fractions=(0.1,), seeds=(1,))
    with pytest.raises(ValueError, match="mean stands first"):
        AttackGrid(attacks=("alie",), rules=("filter",), fractions=(0.1,), seeds=(1,))


def test_a_cell_reads_well():
    assert str(Cell(attack="alie", rule="mean", fraction=0.25, seed=3)) == "alie by 25%, mean, seed 3"
    assert str(Cell(attack=NO_ATTACK, rule="mean", fraction=None, seed=3)) == "no attack, mean, seed 3"
