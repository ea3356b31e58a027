"""Sweeps before anything runs: points, their settings and keys, and what is refused with which words."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsec.errors import ConfigError
from fedsec.plan.arms import ALL, Arm, layer_arms, layers_of
from fedsec.plan.load import load_plan
from fedsec.plan.sweep import (
    PEACE,
    SweepGrid,
    make_sweep,
    overrides_of,
    parse_at,
    parse_epsilons,
    parse_varied,
    plans_of_sweep,
    point_key,
    sweep_base,
    sweep_digest,
)
from fedsec.plan.sweep_tasks import name_of, pictured_points, task_keys, tasks_of, why_no_pictures

BASE = sweep_base(load_plan(overrides=PEACE))
MLP = sweep_base(load_plan(overrides=[*PEACE, "model.name=mlp", "model.hidden=[16, 8]"]))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0", "reached by no mechanism"),
        ("-1", "reached by no mechanism"),
        ("nan", "is not a number"),
        ("one", "is not a number"),
        ("", "is not a number"),
        ("1,,2", "is not a number"),
        ("1,1.0", "1.0 is there twice"),
        ("inf,∞", "∞ is there twice"),
        ("-inf", "reached by no mechanism"),
    ],
)
def test_an_epsilon_that_is_none_is_refused_with_the_reason(text, words):
    with pytest.raises(ConfigError, match="--epsilon") as refused:
        parse_epsilons(text)
    assert words in str(refused.value)


def test_epsilons_rise_and_infinity_stands_last():
    assert parse_epsilons("inf, 8,0.5") == (0.5, 8.0, math.inf)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["training.steps"], "is not section.key=a,b,c"),
        (["steps=1,2"], "is not section.key=a,b,c"),
        (["training.steps="], "is not section.key=a,b,c"),
        (["training.steps=1,1"], "one twice"),
        (["training.steps=1,,2"], "an empty value"),
        (["training.steps=1,2", "training.steps=3"], "varied twice"),
        (["privacy.epsilon=1,2"], "--epsilon says which"),
        (["privacy.unit=none"], "--epsilon inf"),
        (["federation.seed=1,2"], "--seeds says how many"),
        (["privacy.noise_multiplier=1,2"], "calibrates the noise"),
    ],
)
def test_what_cannot_be_varied_is_refused(texts, words):
    with pytest.raises(ConfigError) as refused:
        parse_varied(texts)
    assert words in str(refused.value)


def test_commas_inside_brackets_and_quotes_belong_to_a_value():
    assert parse_varied(["model.hidden=[32, 16],[8]", 'data.source="a,b:c"']) == (
        ("model.hidden", ("[32, 16]", "[8]")),
        ("data.source", ('"a,b:c"',)),
    )


@pytest.mark.parametrize("text", ["training.steps=1", "inf", "zero:training.steps=1", "inf:privacy.epsilon=1", ":x=1"])
def test_a_setting_of_one_epsilon_needs_its_form(text):
    with pytest.raises(ConfigError):
        parse_at([text])


def test_a_setting_at_an_epsilon_that_is_not_swept_is_refused():
    with pytest.raises(ConfigError, match="no privacy is not swept"):
        make_sweep(BASE, epsilons=(1.0,), seeds=1, at={math.inf: ("training.learning_rate=5",)})


def test_every_point_is_the_plan_with_its_own_settings():
    grid = make_sweep(
        BASE,
        epsilons=(1.0, math.inf),
        seeds=2,
        varied=parse_varied(["training.steps=1,3"]),
        at=parse_at(["inf:training.learning_rate=5.0"]),
    )
    plans = plans_of_sweep(BASE, grid)
    assert len(plans) == 2 * 2 * 2
    for point, plan in plans.items():
        assert plan.federation.seed == point.seed
        assert plan.is_private == math.isfinite(point.epsilon)
        assert plan.training.learning_rate == (5.0 if math.isinf(point.epsilon) else BASE.training.learning_rate)
        assert str(plan.training.steps) == dict(point.varied)["training.steps"]
        assert plan.secagg.enabled is False
        assert plan.attack.name == "none"
        assert plan.robust.rule == "mean"
    assert [point.seed for point in plans] == [1] * 4 + [2] * 4  # whole seeds first


def test_the_key_of_a_point_is_the_same_in_every_sweep_and_its_own():
    small = make_sweep(BASE, epsilons=(1.0,), seeds=1)
    large = make_sweep(BASE, epsilons=(0.5, 1.0, math.inf), seeds=3)
    keys = {point: point_key(plan, point.arm) for point, plan in plans_of_sweep(BASE, large).items()}
    assert len(set(keys.values())) == 9
    (point, plan), *_ = plans_of_sweep(BASE, small).items()
    assert keys[point] == point_key(plan, point.arm)


def test_two_points_that_are_one_run_are_refused():
    grid = make_sweep(BASE, epsilons=(1.0,), seeds=1, varied=(("training.learning_rate", ("3.0", "3e0")),))
    with pytest.raises(ConfigError, match="are the same run"):
        plans_of_sweep(BASE, grid)


def test_what_the_plan_refuses_is_named_with_its_point():
    grid = make_sweep(BASE, epsilons=(1.0,), seeds=1, varied=(("training.sample_rate", ("2.0",)),))
    with pytest.raises(ConfigError, match=r"ε = 1, seed 1, training.sample_rate=2.0"):
        plans_of_sweep(BASE, grid)


@pytest.mark.parametrize("seeds", [0, -3])
def test_no_seed_is_refused(seeds):
    with pytest.raises(ConfigError, match="run nothing"):
        make_sweep(BASE, epsilons=(1.0,), seeds=seeds)


def test_a_sweep_of_more_points_than_anybody_runs_is_refused():
    with pytest.raises(ConfigError, match="are more than"):
        make_sweep(BASE, epsilons=(1.0,), seeds=100_001)


def test_a_plan_that_fixes_the_noise_cannot_be_swept():
    with pytest.raises(ConfigError, match="fixes the noise"):
        sweep_base(load_plan(overrides=[*PEACE, "privacy.noise_multiplier=1.1"]))


def test_a_plan_without_privacy_is_a_base_like_any_other():
    bare = sweep_base(load_plan(overrides=[*PEACE, "privacy.unit=none", "privacy.epsilon=inf"]))
    assert bare.is_private
    assert sweep_digest(bare) == sweep_digest(BASE)


def test_the_reference_of_a_plan_with_masks_is_allowed_to_show_its_sketches():
    masked = sweep_base(load_plan(overrides=["attack.name=none"]))
    grid = make_sweep(masked, epsilons=(8.0, math.inf), seeds=1)
    plans = plans_of_sweep(masked, grid)
    assert all(plan.secagg.enabled for plan in plans.values())
    private, reference = grid.points()
    assert "secagg.sketch_without_dp=true" in overrides_of(masked, grid, reference)
    assert "secagg.sketch_without_dp=true" not in overrides_of(masked, grid, private)


@given(
    st.lists(st.floats(min_value=0.01, max_value=100), min_size=1, max_size=4, unique=True),
    st.integers(1, 4),
    st.sampled_from([(), (("training.steps", ("1", "3")),)]),
    st.lists(st.sampled_from(["one-run", "loss-threshold", "lira", "inversion"]), unique=True),
)
def test_a_grid_survives_its_file(epsilons, seeds, varied, audits):
    grid = make_sweep(BASE, epsilons=sorted(epsilons), seeds=seeds, varied=varied, audits=audits, canaries=300, shadow_models=6)
    assert SweepGrid.from_json(json.loads(json.dumps(grid.to_json(), allow_nan=False))) == grid


# --- Tasks ----------------------------------------------------------------------------------------------------------------------


def test_runs_and_audits_are_tasks_apart_and_controls_come_once_a_seed():
    grid = make_sweep(BASE, epsilons=(1.0, math.inf), seeds=2, audits=("one-run", "loss-threshold"))
    kinds = [what for what, _ in tasks_of(grid)]
    assert kinds == ["run"] * 4 + ["controls"] * 2 + ["audit"] * 4
    keys = task_keys(grid, plans_of_sweep(BASE, grid))
    assert len(set(keys.values())) == 10
    assert len({name_of(task) for task in keys}) == 10


def test_without_canaries_there_are_no_controls():
    grid = make_sweep(BASE, epsilons=(1.0,), seeds=1, audits=("loss-threshold",))
    assert [what for what, _ in tasks_of(grid)] == ["run", "audit"]


def test_another_number_of_canaries_is_another_audit_of_the_same_run():
    def keys(canaries):
        grid = make_sweep(BASE, epsilons=(1.0,), seeds=1, audits=("one-run",), canaries=canaries)
        return dict(zip(["run", "controls", "audit"], task_keys(grid, plans_of_sweep(BASE, grid)).values(), strict=True))

    few, many = keys(100), keys(1000)
    assert few["run"] == many["run"]
    assert few["audit"] != many["audit"]
    assert few["controls"] != many["controls"]


def test_another_number_of_shadow_models_is_another_audit_where_they_are_used():
    def audit(kinds, shadow_models):
        grid = make_sweep(BASE, epsilons=(1.0,), seeds=1, audits=kinds, shadow_models=shadow_models)
        return next(key for (what, _), key in task_keys(grid, plans_of_sweep(BASE, grid)).items() if what == "audit")

    assert audit(("lira",), 4) != audit(("lira",), 16)
    assert audit(("one-run",), 4) == audit(("one-run",), 16)


def test_a_grid_of_before_there_was_a_choice_is_read():
    grid = make_sweep(BASE, epsilons=(1.0,), seeds=1, audits=("lira",))
    old = {key: value for key, value in grid.to_json().items() if key != "shadow_models"}
    assert SweepGrid.from_json(old) == grid


def test_pictures_are_one_task_for_all_epsilons_and_seeds_and_change_no_other_audit():
    def keys(*audits, **more):
        grid = make_sweep(BASE, epsilons=(1.0, math.inf), seeds=2, audits=audits, varied=(("training.steps", ("3", "1")),), **more)
        assert {(point.epsilon, point.seed) for point in pictured_points(grid)} == {(e, s) for e in (1.0, math.inf) for s in (1, 2)}
        assert {point.varied for point in pictured_points(grid)} == {(("training.steps", "3"),)}
        return {name_of(task): key for task, key in task_keys(grid, plans_of_sweep(BASE, grid)).items()}

    without, with_pictures, alone = keys("one-run"), keys("one-run", "inversion"), keys("inversion")
    assert {name: key for name, key in with_pictures.items() if name in without} == without
    assert sorted(set(with_pictures) - set(without)) == ["pictures out of updates"]
    assert alone["pictures out of updates"] == with_pictures["pictures out of updates"]
    assert not [name for name in alone if "audit" in name]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.name=breast-cancer"], "no pictures"),
        (["data.name=mnist", "data.transform=scattering"], "no pictures"),
        (["data.name=mnist", "model.name=cnn"], "linear first layer"),
        (['model.personal=["bias"]'], "keeps a part of it"),
    ],
)
def test_where_no_picture_can_be_made_the_reason_is_said(overrides, words):
    assert words in why_no_pictures(load_plan(overrides=[*PEACE, *overrides]))
    assert why_no_pictures(BASE) == ""
    assert why_no_pictures(MLP) == ""


# --- Arms -----------------------------------------------------------------------------------------------------------------------


def test_each_layer_trains_alone_stays_frozen_and_is_noised_alone():
    arms = layer_arms(MLP)
    assert layers_of(MLP) == ("hidden1", "hidden2", "output")
    assert [str(arm) for arm in arms] == [
        "all layers", "only hidden1 trains", "only hidden2 trains", "only output trains", "hidden1 frozen", "hidden2 frozen", "output frozen",
        "noise in hidden1 alone", "noise in hidden2 alone", "noise in output alone",
    ]  # fmt: skip
    assert arms[1].personal == ("hidden2.weight", "hidden2.bias", "output.weight", "output.bias")
    assert all(Arm.from_code(arm.code) == arm for arm in arms)


def test_noise_in_one_layer_has_no_run_without_privacy_and_a_key_of_its_own():
    grid = make_sweep(MLP, epsilons=(1.0, math.inf), seeds=1, arms=layer_arms(MLP))
    plans = plans_of_sweep(MLP, grid)
    noised = [point for point in plans if point.arm.kind == "noise"]
    assert len(noised) == 3
    assert all(math.isfinite(point.epsilon) for point in noised)
    assert len({point_key(plan, point.arm) for point, plan in plans.items()}) == len(plans)
    whole = next(point for point in plans if point.arm == ALL and point.epsilon == 1.0)
    assert plans[noised[0]].digest() == plans[whole].digest()  # the plan is the same; the arm is what differs


def test_two_layers_give_no_arm_twice():
    two = sweep_base(load_plan(overrides=[*PEACE, "model.name=mlp", "model.hidden=[16]"]))
    grid = make_sweep(two, epsilons=(1.0, math.inf), seeds=1, arms=layer_arms(two))
    assert len(plans_of_sweep(two, grid)) == 2 * 3 + 2


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.name=logistic"], "has one layer"),
        (["model.name=custom", "model.factory=a:b"], "are not known to a plan"),
        (["model.name=mlp", "model.hidden=[]"], "has one layer"),
        (["model.name=mlp", 'model.personal=["output.bias"]'], "personal parameters of its own"),
    ],
)
def test_a_model_without_layers_to_compare_is_refused(overrides, words):
    with pytest.raises(ConfigError, match=words):
        layer_arms(load_plan(overrides=[*PEACE, *overrides]))


@pytest.mark.parametrize("code", ["", "all:x", "only", "only:x", "other:x:y", "noise:x"])
def test_a_code_that_is_no_arm_is_refused(code):
    with pytest.raises(ValueError):
        Arm.from_code(code)
