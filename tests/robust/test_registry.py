"""Every rule on rounds: the same record in the open and on sketches, sum form, weights, refusals, and what holds for all of them."""

import typing

import numpy as np
import pytest

from fedsec.errors import ConfigError, RoundAborted
from fedsec.plan.sections import RuleName
from fedsec.robust.base import Mode, RoundView
from fedsec.robust.registry import RULES, Kind, aggregate, apply_rule, rules_for
from fedsec.robust.rules import mean_update
from fedsec.robust.validation import ValidUpdate

ALL = sorted(RULES)
ON_GRAM = [name for name in ALL if RULES[name].kind is not Kind.COORDINATES]
ON_SKETCHES = [name for name in ON_GRAM if Mode.SKETCH in RULES[name].modes]
NO_DEFENCE = ("mean",)
MEAN_WITHOUT_F = [
    "mean", "group-filter", "filter", "mad-filter", "spectral", "multi-krum", "centred-clipping", "nnm-geometric-median", "arc-nnm-geometric-median",
    "trimmed-mean", "meamed", "bulyan",
]  # fmt: skip


def normal(count=19, dimension=30, seed=0):
    """Honest updates around a common direction."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=dimension) + rng.normal(size=(count, dimension))).astype(np.float32)


def view_of(vectors, f=4, *, sizes=None, mode=Mode.OPEN, root=None):
    count = len(vectors)
    sizes = np.ones(count) if sizes is None else np.asarray(sizes, dtype=np.float64)
    return RoundView(
        mode=mode,
        client_ids=tuple(f"c{i:03d}" for i in range(count)),
        vectors=vectors,
        dimension=vectors.shape[1],
        batch_sizes=sizes,
        noise_stddev=0.0,
        num_byzantine=f,
        root=np.mean(vectors[-5:] / sizes[-5:, None], axis=0).astype(np.float64) if root is None else root,
    )


def test_every_rule_of_a_plan_is_here_but_those_built_elsewhere():
    assert set(RULES) == set(typing.get_args(RuleName)) - {"auto", "screening"}
    assert all(info.name == name and info.summary and info.paper and info.breakdown for name, info in RULES.items())


@pytest.mark.parametrize("name", ON_GRAM)
def test_weights_refer_to_rows_in_sum_form(name):
    """Whatever batch sizes are declared, equal model differences get equal aggregates: a rule sees differences."""
    differences, sizes = normal(), np.arange(1.0, 20.0)
    plain = apply_rule(name, view_of(differences))
    scaled = apply_rule(name, view_of((differences * sizes[:, None]).astype(np.float32), sizes=sizes))
    assert np.array_equal(plain.accepted, scaled.accepted)
    assert np.allclose(plain.scores, scaled.scores, rtol=1e-3, atol=1e-5)
    if RULES[name].kind is Kind.WEIGHTS:
        assert np.allclose(plain.weights, scaled.weights * sizes, rtol=1e-3, atol=1e-6)
    else:
        capped = np.minimum(sizes, 3.0 * np.median(sizes[scaled.accepted]))
        assert np.allclose(scaled.weights, scaled.accepted / capped[scaled.accepted].sum())


@pytest.mark.parametrize("sizes", [[4.0] * 7, [1.0, 2.0, 4.0, 8.0, 16.0, 3.0, 1.0]])
def test_the_mean_is_the_capped_mean_of_sum_form(sizes):
    rows = normal(7) * np.array(sizes, np.float32)[:, None]
    updates = [
        ValidUpdate(client_id=f"c{i:03d}", vector=row, batch_size=int(size)) for i, (row, size) in enumerate(zip(rows, sizes, strict=True))
    ]
    result, verdict = aggregate("mean", view_of(rows, 3, sizes=sizes))
    assert np.allclose(result, mean_update(updates, weight_cap=3.0), atol=1e-6)
    assert verdict.accepted.all()
    assert not verdict.reasons


@pytest.mark.parametrize("name", ALL)
def test_the_aggregate_does_not_depend_on_who_is_who(name):
    x, root = normal(), normal(1)[0].astype(np.float64)
    x[:3] *= np.float32(-4.0)
    order = np.random.default_rng(5).permutation(len(x))
    result, verdict = aggregate(name, view_of(x, root=root))
    permuted, other = aggregate(name, view_of(x[order], root=root))
    assert np.allclose(result, permuted, atol=1e-5)
    assert np.array_equal(verdict.accepted[order], other.accepted)
    assert np.allclose(verdict.scores[order], other.scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_equal_input_gives_equal_bits_and_is_not_changed(name):
    x = normal(23, 5000)
    x.flags.writeable = False
    first, verdict = aggregate(name, view_of(x), threads=1)
    again, other = aggregate(name, view_of(x), threads=3)
    assert np.array_equal(first, again)
    assert np.array_equal(verdict.scores, other.scores)


@pytest.mark.parametrize("name", MEAN_WITHOUT_F)
def test_without_hostile_clients_it_is_the_mean(name):
    x = normal()
    result, verdict = aggregate(name, view_of(x, 0))
    assert np.allclose(result, x.astype(np.float64).mean(axis=0), atol=1e-5)
    assert verdict.accepted.all()


@pytest.mark.parametrize("factor", [-5.0, 1e3, -1e9, 1e18, 1e30])
@pytest.mark.parametrize("name", [name for name in ALL if name not in NO_DEFENCE and name != "foolsgold"])
def test_f_hostile_clients_far_out_move_it_no_farther_than_the_honest_reach(name, factor):
    x = normal()
    f = 4
    x[:f] = np.float32(factor) * np.abs(x[:f])
    honest = x[f:].astype(np.float64)
    result, verdict = aggregate(name, view_of(x, f))
    assert np.isfinite(result).all()
    assert np.isfinite(verdict.scores).all()
    reach = np.linalg.norm(honest - honest.mean(axis=0), axis=1).max()
    assert np.linalg.norm(result - honest.mean(axis=0)) <= reach
    if name not in ("krum", "bulyan", "fltrust"):
        assert (verdict.scores[:f] >= 1).all()


@pytest.mark.parametrize("name", [name for name in ON_SKETCHES if name not in (*NO_DEFENCE, "foolsgold")])
@pytest.mark.parametrize("factor", [-5.0, 1e9, 1e30])
def test_on_sketches_whoever_is_far_out_is_left_out_with_a_reason(name, factor):
    x = normal()
    x[:4] = np.float32(factor) * np.abs(x[:4])
    verdict = apply_rule(name, view_of(x, 4, mode=Mode.SKETCH))
    assert verdict.weights is None
    assert verdict.accepted.tolist() == [False] * 4 + [True] * 15
    assert sorted(verdict.reasons) == ["c000", "c001", "c002", "c003"]


@pytest.mark.parametrize("name", ON_SKETCHES)
def test_on_sketches_at_most_f_are_left_out(name):
    x = normal()
    x[:7] *= np.float32(-1e4)
    for f in range(4):
        assert np.count_nonzero(~apply_rule(name, view_of(x, f, mode=Mode.SKETCH)).accepted) <= f


@pytest.mark.parametrize("name", sorted(set(ALL) - set(ON_SKETCHES)))
def test_a_rule_that_cannot_run_on_sketches_says_which_could(name):
    with pytest.raises(ConfigError, match="filter, mad-filter") as caught:
        apply_rule(name, view_of(normal(), mode=Mode.SKETCH))
    assert all(other in str(caught.value) for other in rules_for(Mode.SKETCH))


def test_fltrust_without_a_root_update_says_what_to_do():
    view = view_of(normal())
    object.__setattr__(view, "root", None)
    with pytest.raises(ConfigError, match="trusted records"):
        apply_rule("fltrust", view)


def test_misuse_is_an_error():
    with pytest.raises(ConfigError, match="no rule 'average'"):
        apply_rule("average", view_of(normal()))
    with pytest.raises(ValueError, match="aggregate"):
        apply_rule("median", view_of(normal()))
    with pytest.raises(ValueError, match="sketches"):
        aggregate("filter", view_of(normal(), mode=Mode.SKETCH))


def test_bulyan_with_too_few_clients_fails_closed():
    with pytest.raises(RoundAborted, match="19 clients"):
        aggregate("bulyan", view_of(normal(18), 4))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_rounds_of_few_clients(name, count):
    x = normal(count)
    result, verdict = aggregate(name, view_of(x, 0))
    assert np.isfinite(result).all()
    assert verdict.accepted.any()
    if count == 1:
        assert np.allclose(result, x[0], atol=1e-5)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("value", [0.0, 2.5])
def test_identical_updates_and_zeros(name, value):
    x = np.full((9, 6), value, np.float32)
    result, verdict = aggregate(name, view_of(x, 1))
    assert np.allclose(result, value, atol=1e-6)
    assert np.isfinite(verdict.scores).all()
    if name not in ("krum", "multi-krum", "bulyan", "fltrust"):
        assert verdict.accepted.all()


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("fltrust", "foolsgold", "arc-nnm-geometric-median", "filter")])
def test_moving_all_updates_moves_the_aggregate(name):
    x, shift = normal(), np.linspace(-2, 2, 30, dtype=np.float32)
    result, verdict = aggregate(name, view_of(x))
    moved, other = aggregate(name, view_of(x + shift))
    assert np.allclose(result + shift, moved, atol=1e-4)
    assert np.array_equal(verdict.accepted, other.accepted)


@pytest.mark.parametrize("name", ON_GRAM)
def test_turning_all_updates_turns_the_aggregate(name):
    x, root = normal(), normal(1)[0].astype(np.float64)
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(30, 30)))[0]
    result, _ = aggregate(name, view_of(x, root=root))
    turned, _ = aggregate(name, view_of((x @ turn).astype(np.float32), root=root @ turn))
    assert np.allclose(result @ turn, turned, atol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_scaling_all_updates_scales_the_aggregate(name):
    x = normal()
    result, verdict = aggregate(name, view_of(x))
    scaled, other = aggregate(name, view_of(x * np.float32(1e-3)))
    assert np.allclose(result, scaled * 1e3, atol=1e-4)
    assert np.allclose(verdict.scores, other.scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_a_score_below_the_edge_is_never_rejected_by_a_rule_with_a_threshold(name):
    for seed in range(5):
        x = normal(seed=seed)
        x[0] *= np.float32(3.0)
        _, verdict = aggregate(name, view_of(x))
        if name not in ("krum", "bulyan"):
            assert (verdict.scores[~verdict.accepted] >= 1 - 1e-12).all()
        assert sorted(verdict.reasons) == [f"c{i:03d}" for i in np.flatnonzero(~verdict.accepted)]
