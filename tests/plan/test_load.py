"""Text becomes a plan, or an error that names file, section, key and the mend."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsec.errors import ConfigError, FedsecError
from fedsec.plan.load import MAX_PLAN_BYTES, default_plan_text, load_plan, parse_plan, plan_to_toml
from fedsec.plan.model import Plan


def test_the_default_plan_is_sound_and_private():
    plan = load_plan()
    assert plan.federation.num_clients == 20
    assert plan.privacy.epsilon == 8.0
    assert plan.is_private


def test_a_stored_plan_reads_back_equal_with_every_key_written():
    plan = load_plan(overrides=["model.personal=['bias']", "privacy.noise_multiplier=2.5"])
    text = plan_to_toml(plan)
    assert parse_plan(text) == plan
    assert "server_momentum" in text


def test_the_name_is_not_part_of_the_digest_and_everything_else_is():
    plan = load_plan()
    assert load_plan(overrides=["name=other"]).digest() == plan.digest()
    assert load_plan(overrides=["privacy.epsilon=7.5"]).digest() != plan.digest()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[dta]\n", ["p.toml", "dta", 'did you mean "data"']),
        ("[data]\nnam = 'digits'", ["p.toml", "data.nam", 'did you mean "name"']),
        ("[data]\nname = 'digts'", ["data.name", "digts", "'digits'"]),
        ("[privacy]\nepsilon = '8'", ["privacy.epsilon", "'8'", "number"]),
        ("[privacy]\nepsilon = nan", ["privacy.epsilon"]),
        ("[privacy]\nepsilon = -1.0", ["privacy.epsilon", "greater than 0"]),
        ("[privacy]\nepsilon = inf", ["privacy.epsilon", "protects nothing"]),
        ("[privacy]\nunit = 'none'", ["privacy.epsilon", "epsilon = inf"]),
        ("[privacy]\ndelta = 1.0", ["privacy.delta"]),
        ("[privacy]\nepsilon_cap = 1.0", ["privacy.epsilon_cap", "raise the cap"]),
        ("[training]\nsteps = true", ["training.steps"]),
        ("[training]\nsteps = 3.0", ["training.steps"]),
        ("[training]\nsample_rate = 1.5", ["training.sample_rate"]),
        ("[training]\nlearning_rate = inf", ["training.learning_rate"]),
        ("[training]\nbatch_size = 'many'", ["training.batch_size"]),
        ("[training]\ndevice = 'cuda; rm'", ["training.device"]),
        ("[federation]\nrounds = 0", ["federation.rounds"]),
        ("[federation]\nnum_clients = 10\nfraction = 0.1\nmin_clients = 2", ["federation.min_clients", "lower it to 1"]),
        ("[data]\nname = 'custom'", ["data.source", "module:function"]),
        ("[data]\nname = 'custom'\nsource = 'os.system'", ["data.source", "module:function"]),
        ("[data]\nname = 'digits'\nsource = 'a:b'", ["data.source"]),
        ("[data]\nname = 'digits'\npartition = 'natural'", ["data.partition", "no natural owners"]),
        ("[data]\nname = 'heart-disease'\npartition = 'natural'", ["federation.num_clients", "4"]),
        ("[data]\ntransform = 'scattering'", ["data.transform"]),
        ("[model]\nname = 'cnn'", ["model.name"]),
        ("[model]\nname = 'custom'", ["model.factory"]),
        ("[model]\npersonal = ['bias', 'bias']", ["model.personal"]),
        ("[model]\nhidden = [0]", ["model.hidden"]),
        ("[secagg]\nenabled = true\nnum_corrupt = 9", ["secagg.num_corrupt", "cannot finish a round"]),
        ("[secagg]\nenabled = true\nnum_corrupt = 0", ["secagg.num_corrupt"]),
        ("[secagg]\nenabled = true\nminimum_accepted = 2", ["secagg.minimum_accepted", "one honest client"]),
        ("[secagg]\nenabled = true\nsketch_rows = 8", ["secagg.sketch_rows", "size of an update"]),
        ("[secagg]\nenabled = true\nsketch_rows = 100", ["secagg.sketch_rows", "multiple of 8"]),
        ("[secagg]\nenabled = true\nnorm_slack = 4.0", ["secagg.norm_slack"]),
        ("[secagg]\nenabled = true\nweight_limit = 0", ["secagg.weight_limit"]),
        ("[secagg]\nenabled = true\nupdate_norm = nan", ["secagg.update_norm"]),
        ("[secagg]\nenabled = true\nattempts = 3", ["secagg.attempts"]),
        ("[secagg]\nenabled = true\ncohort_size = 3", ["secagg.cohort_size"]),
        ("[secagg]\nenabled = true\n[federation]\nfraction = 0.5", ["federation.fraction", "every client"]),
        ("[secagg]\nenabled = true\n[federation]\nevaluate_clients = true", ["federation.evaluate_clients", "in clear"]),
        ('[secagg]\nenabled = true\n[privacy]\nunit = "none"\nepsilon = inf', ["secagg.sketch_without_dp", "chooses the model"]),
        ("[robust]\nrule = 'krumm'", ["robust.rule"]),
        ("[robust]\nnum_byzantine = 10", ["robust.num_byzantine", "no minority"]),
        ("[robust]\nnum_byzantine = -1", ["robust.num_byzantine"]),
        ("[robust]\nrule = 'median'\n[secagg]\nenabled = true", ["robust.rule", "robust.rule", "could run"]),
        ('[robust]\nrule = "screening"\n[privacy]\nunit = "none"\nepsilon = inf', ["robust.rule", "noise"]),
        ("[attack]\nname = 'sign-flop'", ["attack.name"]),
        ("[attack]\nname = 'sign-flip'\nfraction = 0.5", ["attack.fraction"]),
        ("[attack]\nname = 'sign-flip'\nfraction = 0", ["attack.fraction"]),
        ("[attack]\nname = 'sign-flip'\nstrength = nan", ["attack.strength"]),
        ("[attack]\nname = 'sign-flip'\nstrength = 1e300", ["attack.strength"]),
        ("[attack]\nname = 'nan-value'\n[secagg]\nenabled = true", ["attack.name", "masked"]),
        ("[attack]\nname = 'sketch-lie'", ["attack.name", "inside secure aggregation"]),
        ("federation = 3", ["federation", "table"]),
        ("not toml", ["TOML"]),
    ],
)
def test_an_unsound_plan_is_refused_with_its_place_and_its_mend(text, parts):
    with pytest.raises(ConfigError) as caught:
        parse_plan(text, file="p.toml")
    for part in [*parts, "p.toml"]:
        assert part in str(caught.value)


@pytest.mark.parametrize("override", ["", "=", "privacy.epsilon", "x=1", "a.b.c=1", ".x=1", "privacy.=1", "privacy.epsilom=1"])
def test_a_malformed_override_is_refused(override):
    with pytest.raises(ConfigError):
        load_plan(overrides=[override])


def test_numbers_of_a_protocol_that_is_off_do_not_change_a_plan(tmp_path):
    off, rows, on = (
        load_plan(overrides=words) for words in (["secagg.enabled=false"], ["secagg.enabled=false", "secagg.sketch_rows=64"], [])
    )
    assert off.digest() == rows.digest() != on.digest()
    assert on.digest() != load_plan(overrides=["secagg.sketch_rows=64"]).digest()


def test_overrides_take_toml_values_and_bare_words():
    plan = load_plan(overrides=["data.name=breast-cancer", "privacy.epsilon=4", "model.hidden=[8, 8]", 'name="my run"'])
    assert (plan.data.name, plan.privacy.epsilon, plan.model.hidden, plan.name) == ("breast-cancer", 4.0, (8, 8), "my run")
    assert math.isinf(load_plan(overrides=["privacy.epsilon=inf", "privacy.unit=none", "secagg.enabled=false"]).privacy.epsilon)


def test_files_that_are_no_plan_are_refused_by_name(tmp_path):
    for name, content in [("binary.toml", b"\xff\xfe\x00"), ("huge.toml", b"#" * (MAX_PLAN_BYTES + 1))]:
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=name):
            load_plan(path)
    with pytest.raises(ConfigError, match="absent"):
        load_plan(tmp_path / "absent.toml")
    with pytest.raises(ConfigError):
        load_plan(tmp_path)


@given(st.text(max_size=300))
def test_no_text_does_anything_but_parse_or_raise_a_fedsec_error(text):
    try:
        assert isinstance(parse_plan(text), Plan)
    except FedsecError:
        pass


@given(
    st.dictionaries(
        st.sampled_from(list(Plan.model_fields)),
        st.one_of(
            st.integers(), st.floats(), st.text(max_size=5), st.none(),
            st.dictionaries(st.sampled_from(["epsilon", "steps", "name", "rounds", "personal", "enabled"]), st.one_of(st.integers(), st.floats(), st.text(max_size=5), st.lists(st.integers(), max_size=3))),
        ),
    )
)  # fmt: skip
def test_no_mapping_does_anything_but_validate_or_raise_a_fedsec_error(raw):
    from fedsec.plan.load import plan_from_mapping

    try:
        plan_from_mapping(raw)
    except FedsecError:
        pass


def test_a_plan_cannot_be_changed_after_validation():
    with pytest.raises(Exception, match="frozen"):
        load_plan().privacy.epsilon = 100.0


def test_the_default_plan_text_is_the_one_shipped():
    assert "epsilon = 8.0" in default_plan_text()
