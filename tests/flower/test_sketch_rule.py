"""The plan's rule on real, verified sketches: units, names, cohorts, and what happens to a sketch that no honest client sends."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from fedsec.defence import Defence
from fedsec.errors import RoundAborted
from fedsec.flower.sketch_rule import _view, gated_members, sketch_rule
from fedsec.plan.load import load_plan
from fedsec.secagg.labels import Phase
from fedsec.secagg.sketch import SketchMatrix

STDDEV, ROWS, DIMENSION, CLIENTS = 5.0, 64, 300, 20
PEACE = ["attack.name=none"]


def _rounds():
    name = "fedsec_tests_secagg_rounds"
    if name not in sys.modules:
        path = Path(__file__).resolve().parent.parent / "secagg" / "rounds.py"
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


rounds = _rounds()


def federation(name, *, push=0.0, colluders=4, **config):
    """Twenty members whose updates are noise of a known deviation; the first few push one way together. In SKETCH, all answered."""
    fed = rounds.Federation(
        num_clients=CLIENTS, num_corrupt=2, dimension=DIMENSION, num_rows=ROWS, name=name, weights=[10] * CLIENTS, **config
    )
    draw = np.random.default_rng([1, len(name)])
    for index in range(CLIENTS):
        update = draw.normal(0, STDDEV, DIMENSION) + (push * STDDEV / np.sqrt(DIMENSION) if index < colluders else 0.0)
        fed.updates[index] = update.astype(np.float32)
        fed.encoded[index] = fed.config.fixed_point.encode(fed.updates[index], rounds.expand(f"{name}/{index}", 4 * DIMENSION))
    fed.run(Phase.SKETCH)
    for index in fed.server.asked():
        fed.answer(index)
        fed.deliver(index, fed.messages[Phase.SKETCH][index])
    return fed


def group_of(fed):
    return rounds.group([fed])


def defence(*more, stddev=STDDEV):
    return Defence(plan=load_plan(overrides=[*PEACE, *more]), noise_stddev=stddev)


def names(fed, indices):
    return {fed.members[index].client_id for index in indices}


def test_whitened_sketches_have_the_noise_of_the_updates_in_each_coordinate():
    fed = federation("units")
    sketches = {(0, index): sketch for index, sketch in fed.server.screen().items()}
    places = sorted(sketches, key=lambda place: fed.members[place[1]].client_id)
    view, lifted = _view(defence(), group_of(fed), {CLIENTS: fed.config.fixed_point}, 1, {p: sketches[p] for p in places}, None)
    assert view.vectors.shape == (CLIENTS, ROWS)
    assert np.sqrt(np.mean(view.vectors**2)) == pytest.approx(STDDEV, rel=0.05)
    assert view.noise_stddev == pytest.approx(STDDEV, rel=1e-6)
    rows = SketchMatrix(seed=fed.server.matrix_seed, num_rows=ROWS, dimension=DIMENSION).entries(0, ROWS).astype(float)
    projector = rows.T @ np.linalg.solve(rows @ rows.T, rows)
    for place, row, back in zip(places, view.vectors, lifted, strict=True):
        seen = projector @ fed.updates[place[1]]
        assert np.linalg.norm(row) == pytest.approx(np.linalg.norm(seen), rel=1e-4)
        np.testing.assert_allclose(back, seen, atol=1e-2 * STDDEV)


def test_colluders_are_left_out_of_the_sum_and_the_rest_is_opened_exactly():
    fed = federation("colluders", push=40.0)
    defending, group = defence(), group_of(fed)
    group.decide(sketch_rule(defending, group, {CLIENTS: fed.config.fixed_point}, 1))
    assert set(fed.server.accepted) == set(range(4, CLIENTS))
    fed._ask()
    opened = fed.finish()
    np.testing.assert_array_equal(opened.total, fed.expected(range(4, CLIENTS)))
    row = defending.finish(1, named={})
    assert {name for name, _ in row.rejected} == names(fed, range(4))
    assert row.mode == "sketch"


def test_without_a_rule_everybody_behind_the_gate_is_in():
    fed = federation("mean", push=25.0)
    group = group_of(fed)
    group.decide(sketch_rule(defence("robust.rule=mean"), group, {CLIENTS: fed.config.fixed_point}, 1))
    assert set(fed.server.accepted) == set(range(CLIENTS))


def test_too_many_suspects_end_the_round_for_all_cohorts():
    fed = federation("crowd", push=60.0, colluders=9)
    fed_defence, group = defence(), group_of(fed)
    before = fed_defence.to_json()
    with pytest.raises(RoundAborted, match="at most 5"):
        group.decide(sketch_rule(fed_defence, group, {CLIENTS: fed.config.fixed_point}, 1))
    assert fed_defence.to_json() == before


@pytest.mark.parametrize(
    "rule", ["group-filter", "filter", "mad-filter", "spectral", "multi-krum", "geometric-median", "nnm-geometric-median", "fltrust"]
)
def test_every_rule_for_sketches_runs_on_sketches(rule):
    fed = federation(f"rule {rule}", push=80.0)
    root = np.full(DIMENSION, -1.0) if rule == "fltrust" else None
    fixed, group = {CLIENTS: fed.config.fixed_point}, group_of(fed)
    overrides = ["privacy.unit=none", "privacy.epsilon=inf", "secagg.sketch_without_dp=true", f"robust.rule={rule}"]
    group.decide(sketch_rule(defence(*overrides, stddev=0.0), group, fixed, 1, root))
    assert not set(fed.server.accepted) & set(range(4))
    assert len(fed.server.accepted) >= 10


def test_a_sketch_longer_than_any_update_can_give_is_out_with_its_ratio():
    fed = federation("gate")
    made = fed.server.sketches[3]
    fed.server.sketches[3] = type(made)(
        envelope=made.envelope, statement=made.statement, sketch=np.full(ROWS, 2**31 - 1, dtype=np.int32), salt=made.salt
    )  # fmt: skip
    group = group_of(fed)
    ((name, (score, reason)),) = gated_members(group).items()
    assert name == fed.members[3].client_id
    assert score > 100
    assert "as long as the bound" in reason
    defending = defence()
    defending.reject(1, gated_members(group))
    group.decide(sketch_rule(defending, group, {CLIENTS: fed.config.fixed_point}, 1))
    assert 3 not in fed.server.accepted
    assert dict(defending.finish(1, named={}).rejected)[name] == reason
