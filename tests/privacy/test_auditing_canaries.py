"""Canaries go through the code that trains: sampled, clipped, summed and noised like a record; and scores are likelihood ratios."""

import itertools
import math

import numpy as np
import pytest
import torch

from fedsec.models.factory import build_model
from fedsec.models.parameters import get_arrays
from fedsec.plan.sections import ModelSection
from fedsec.privacy import dpsgd
from fedsec.privacy.auditing.canaries import GradientCanaries, lay_out, quiet_layer
from fedsec.privacy.auditing.scores import CanaryScores, step_weights
from fedsec.privacy.clipping import clip_and_sum
from fedsec.privacy.dpsgd import SgdSettings, train
from fedsec.privacy.streams import RoundStreams
from fedsec.vectors import Layout

SHAPES = {"logistic": (8, 8), "mlp": (64,), "cnn": (1, 28, 28)}


def model_and_layout(name, classes=10):
    model = build_model(ModelSection(name=name, hidden=(16,)), input_shape=SHAPES[name], num_classes=classes, seed=3)
    return model, Layout.of(get_arrays(model, dict(model.named_parameters())))


def directions(name, wanted=20, clients=1, seed=1):
    model, layout = model_and_layout(name)
    laid = lay_out(layout, clients=clients, wanted=wanted, quiet=quiet_layer(layout, 10), generator=np.random.default_rng(seed))
    return model, layout, laid


def flat_update(model, layout, settings, *, canaries=None, x=None, y=None, key=bytes(32)):
    before = layout.flatten(get_arrays(model, dict(layout.entries)))
    records = x if x is not None else np.zeros((0, *SHAPES["logistic"]), dtype=np.float32)
    labels = y if y is not None else np.zeros(0, dtype=np.int64)
    train(model, records, labels, settings, streams=RoundStreams.derive(key), canaries=canaries)
    return layout.flatten(get_arrays(model, dict(layout.entries))).astype(float) - before


def settings(**changes):
    return SgdSettings(**{
        "steps": 1, "sample_rate": 1.0, "batch_size": 1, "learning_rate": 1.0, "clip_norm": 1.0, "clipping": "bookkeeping", **changes,
    })  # fmt: skip


def planted(model, laid, places=None, norm=10.0):
    names = tuple(name for name, _ in model.named_parameters())
    return GradientCanaries(directions=laid, places=np.arange(len(laid)) if places is None else np.array(places), names=names, norm=norm)


@pytest.mark.parametrize("name", ["logistic", "mlp", "cnn"])
def test_quiet_directions_are_orthogonal_to_every_records_gradient_and_to_each_other(name):
    model, layout, (laid,) = directions(name, wanted=15)
    assert laid.quiet is not None
    rows = laid.expand()
    assert rows @ rows.T == pytest.approx(np.eye(15), abs=1e-5)
    generator = np.random.default_rng(2)
    x = torch.from_numpy(generator.random((6, *SHAPES[name]), dtype=np.float32))
    for place in range(6):
        loss = torch.nn.functional.cross_entropy(model(x[place : place + 1]), torch.tensor([place % 10]))
        found = torch.autograd.grad(loss, list(model.parameters()))
        named = zip(dict(model.named_parameters()), found, strict=True)
        gradient = layout.flatten({key: value.numpy() for key, value in named})
        assert np.abs(rows @ gradient).max() < 1e-5 * max(1.0, np.linalg.norm(gradient))
    assert laid.fold(rows) == pytest.approx(laid.inner, abs=1e-6)


def test_more_canaries_than_quiet_dimensions_lie_in_the_whole_space_at_most_half_of_it():
    _, layout, (laid,) = directions("logistic", wanted=10_000)
    assert laid.quiet is None
    assert len(laid) == layout.size // 2
    assert laid.fold(laid.inner) is laid.inner
    assert laid.inner @ laid.inner.T == pytest.approx(np.eye(len(laid)), abs=1e-4)


def test_canaries_of_all_clients_stay_apart_where_there_is_room():
    _, _, laid = directions("logistic", wanted=30, clients=3)
    together = np.concatenate([some.inner for some in laid])
    assert together @ together.T == pytest.approx(np.eye(30), abs=1e-5)


def test_a_model_without_a_known_last_layer_gets_random_directions():
    layout = Layout((("head.kernel", (10, 4)), ("other", (7,))))
    assert quiet_layer(layout, 10) is None
    assert quiet_layer(Layout((("weight", (3, 4)),)), 10) is None
    assert quiet_layer(Layout((("weight", (10, 4)),)), 10) == ("weight", None)


@pytest.mark.parametrize("wanted", [20, 200])
def test_a_canary_ten_clip_norms_long_leaves_exactly_one_clip_norm_in_the_sum(wanted):
    model, layout, (laid,) = directions("logistic", wanted=wanted)
    update = flat_update(model, layout, settings(clip_norm=0.5, learning_rate=2.0), canaries=planted(model, laid, places=[1, 4], norm=5.0))
    seen = laid.inner @ laid.fold(update[None])[0] / -2.0
    expected = np.zeros(len(laid))
    expected[[1, 4]] = 0.5
    assert seen == pytest.approx(expected, abs=1e-5)


def test_clipping_that_does_not_clip_is_seen(monkeypatch):
    model, layout, (laid,) = directions("logistic")
    monkeypatch.setattr(dpsgd, "clip_and_sum", lambda parts, _: clip_and_sum(parts, math.inf))
    update = flat_update(model, layout, settings(), canaries=planted(model, laid, places=[0]))
    assert -(laid.inner @ laid.fold(update[None])[0])[0] == pytest.approx(10.0, rel=1e-4)


def test_quiet_canaries_leave_the_records_part_of_the_update_alone():
    generator = np.random.default_rng(4)
    x, y = generator.random((30, 8, 8), dtype=np.float32), generator.integers(0, 10, 30)
    model, layout, (laid,) = directions("logistic")
    alone = flat_update(model, layout, settings(batch_size=30), x=x, y=y)
    model, _, _ = directions("logistic")
    both = flat_update(model, layout, settings(batch_size=30), x=x, y=y, canaries=planted(model, laid))
    difference = (both - alone) * 30
    assert difference == pytest.approx(-laid.expand().sum(axis=0), abs=1e-4)


def test_canaries_are_drawn_at_the_sample_rate_each_by_itself():
    model, layout, (laid,) = directions("logistic", wanted=60)
    counts = []
    for step in range(40):
        model, _, _ = directions("logistic", wanted=60)
        update = flat_update(model, layout, settings(sample_rate=0.25), canaries=planted(model, laid), key=step.to_bytes(32, "big"))
        drawn = -(laid.inner @ laid.fold(update[None])[0])
        assert set(np.round(drawn, 3)) <= {0.0, 1.0, -0.0}
        counts.append(np.round(drawn))
    share = np.mean(counts)
    assert abs(share - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 2400)
    pairs = np.corrcoef(np.array(counts).T)
    assert abs(np.mean(pairs[np.triu_indices(60, 1)])) < 0.03


def test_noise_lies_on_canaries_as_on_everything_else():
    model, layout, (laid,) = directions("logistic", wanted=300)
    update = flat_update(model, layout, settings(noise_multiplier=2.0), canaries=planted(model, laid, places=[]))
    seen = laid.inner @ laid.fold(update[None])[0]
    assert seen.std() == pytest.approx(2.0, rel=0.15)
    assert abs(seen.mean()) < 4 * 2.0 / math.sqrt(300)


def test_training_without_canaries_is_what_it_was():
    generator = np.random.default_rng(4)
    x, y = generator.random((30, 8, 8), dtype=np.float32), generator.integers(0, 10, 30)
    updates = []
    other, _, (laid,) = directions("logistic")
    for nobody in (None, planted(other, laid, places=[])):
        model, layout = model_and_layout("logistic")
        changes = settings(sample_rate=0.5, steps=3, noise_multiplier=1.0)
        updates.append(flat_update(model, layout, changes, x=x, y=y, canaries=nobody))
    assert np.array_equal(*updates)


# ---- scores


def test_step_weights_are_what_the_optimiser_makes_of_a_gradient():
    """One canary in every step, no noise: the round shows the sum of the weights; checked against the optimiser itself."""
    for steps, momentum in ((1, 0.0), (3, 0.0), (4, 0.9)):
        model, layout, (laid,) = directions("logistic")
        changes = settings(steps=steps, momentum=momentum)
        update = flat_update(model, layout, changes, canaries=planted(model, laid, places=[0]))
        assert -(laid.inner @ laid.fold(update[None])[0])[0] == pytest.approx(step_weights(steps, momentum).sum(), rel=1e-4)


@pytest.mark.parametrize(("steps", "momentum"), [(1, 0.0), (3, 0.0), (3, 0.9)])
def test_scores_are_the_log_likelihood_ratio_by_brute_force(steps, momentum):
    weights, rate, sigma = step_weights(steps, momentum), 0.3, 1.5
    watch = CanaryScores(count=3, weights=weights, sample_rate=rate, noise_multiplier=sigma)
    # The canaries' noise looks smaller than the plan's, so the plan's counts.
    seen = np.array([0.4, -0.2, 1.1])
    watch.see(seen, np.eye(3), slice(0, 3))
    stddev = sigma * math.sqrt(weights @ weights)
    for value, score in zip(seen, watch.scores, strict=True):
        with_it = 0.0
        for drawn in itertools.product((0, 1), repeat=steps):
            chance = math.prod(rate if one else 1 - rate for one in drawn)
            with_it += chance * math.exp(-0.5 * ((value - np.dot(drawn, weights)) / stddev) ** 2)
        assert score == pytest.approx(math.log(with_it / math.exp(-0.5 * (value / stddev) ** 2)), rel=1e-9)
    assert watch.sums == pytest.approx(seen)


def test_many_steps_are_taken_as_gaussian_and_agree_with_the_exact_ratio():
    weights = step_weights(12, 0.0)
    exact = CanaryScores(count=2, weights=weights, sample_rate=0.4, noise_multiplier=2.0)
    rough = CanaryScores(count=2, weights=weights, sample_rate=0.4, noise_multiplier=2.0)
    rough._atoms = None
    seen = np.array([3.0, 6.0])
    for watch in (exact, rough):
        watch.see(seen, np.eye(2), slice(0, 2))
    assert rough.scores == pytest.approx(exact.scores, abs=0.02)


def test_projected_canaries_are_seen_with_more_noise_and_lost_ones_with_none():
    watch = CanaryScores(count=2, weights=np.ones(1), sample_rate=1.0, noise_multiplier=1.0)
    watch.see(np.array([1.0, 0.0]), np.array([[0.5, 0.0], [0.0, 0.0]]), slice(0, 2))
    assert watch.scores[0] == pytest.approx(0.5 * (2.0 / 2.0) ** 2 - 0.5 * ((2.0 - 1.0) / 2.0) ** 2)
    assert watch.scores[1] == 0.0
