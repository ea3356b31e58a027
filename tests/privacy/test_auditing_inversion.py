"""Pictures from gradients: exact where mathematics says so, scored by measures that are checked themselves."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fedsec.errors import DecodeError
from fedsec.models.factory import build_model
from fedsec.models.parameters import get_arrays
from fedsec.plan.sections import ModelSection
from fedsec.privacy.auditing.first_model import class_rows, likeliest_record
from fedsec.privacy.auditing.inversion import (
    PicturePrior,
    label_from_bias,
    match_gradient,
    record_from_linear,
    update_from_sketches,
)
from fedsec.privacy.auditing.inversion_results import InversionLine, InversionReport, spell_picture
from fedsec.privacy.auditing.pictures import MAX_PSNR, psnr, ssim, ssim_window
from fedsec.privacy.dpsgd import SgdSettings, train
from fedsec.privacy.streams import RoundStreams
from fedsec.secagg.sketch import SketchMatrix


def picture(seed=1, side=28):
    """Something smooth: a few blobs."""
    generator = np.random.default_rng(seed)
    axis = np.arange(side)
    blobs = [np.exp(-((axis[:, None] - y) ** 2 + (axis - x) ** 2) / 18.0) for y, x in generator.uniform(4, side - 4, (4, 2))]
    return np.clip(np.sum(blobs, axis=0), 0, 1).astype(np.float32)


def update_of(record, label, *, noise_multiplier=None, name="logistic"):
    """What a client sends after one step on one record, by the code that clients run, as a gradient."""
    model = build_model(ModelSection(name=name, hidden=(32,)), input_shape=record.shape, num_classes=10, seed=2)
    before = get_arrays(model, dict(model.named_parameters()))
    settings = SgdSettings(
        steps=1, sample_rate=1.0, batch_size=1, learning_rate=0.5, clipping="bookkeeping",
        clip_norm=None if noise_multiplier is None else 1.0, noise_multiplier=noise_multiplier or 0.0,
    )  # fmt: skip
    train(model, record[None], np.array([label]), settings, streams=RoundStreams.derive(bytes(32)))
    after = get_arrays(model, before)
    return {key: (before[key] - after[key]) / 0.5 for key in before}


@pytest.mark.parametrize(("name", "weight", "bias"), [("logistic", "weight", "bias"), ("mlp", "hidden1.weight", "hidden1.bias")])
def test_one_record_behind_a_linear_layer_is_laid_bare_and_its_label_too(name, weight, bias):
    record = picture()
    seen = update_of(record, 7, name=name)
    assert psnr(record_from_linear(seen[weight], seen[bias]).reshape(28, 28), record) > 60.0
    assert label_from_bias(seen["bias" if name == "logistic" else "output.bias"]) == 7


def test_dp_sgd_at_epsilon_8_leaves_less_than_the_mean_picture():
    """Noise 0.6: what one release at (8, 1e-5) takes, the least that a claim of 8 allows."""
    record, mean = picture(1), np.mean([picture(seed) for seed in range(2, 60)], axis=0)
    seen = update_of(record, 7, noise_multiplier=0.601)
    assert psnr(record_from_linear(seen["weight"], seen["bias"]).reshape(28, 28), record) < psnr(mean, record)


def test_a_gradient_of_zeros_gives_a_picture_of_zeros():
    assert not record_from_linear(np.zeros((3, 5)), np.zeros(3)).any()


def test_matching_finds_the_picture_behind_a_small_networks_gradient():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 5, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 6 * 6, 10))
    record = picture(3, side=16)
    loss = nn.functional.cross_entropy(model(torch.from_numpy(record)[None, None]), torch.tensor([4]))
    seen = [gradient.numpy() for gradient in torch.autograd.grad(loss, list(model.parameters()))]
    assert label_from_bias(seen[-1]) == 4
    before = [parameter.clone() for parameter in model.parameters()]
    found = match_gradient(model, seen, 4, (1, 16, 16), steps=250, smoothness=0.01, seed=1)
    assert psnr(found[0], record) > psnr(np.full_like(record, record.mean()), record) + 6.0
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))
    assert np.array_equal(found, match_gradient(model, seen, 4, (1, 16, 16), steps=250, smoothness=0.01, seed=1))


def test_the_prior_beats_the_noisy_picture_and_is_the_mean_when_nothing_is_seen():
    pictures = np.stack([picture(seed) for seed in range(200)])
    prior, record = PicturePrior.of(pictures[1:], components=50), pictures[0]
    noisy = record + np.random.default_rng(1).normal(0, 0.5, record.shape)
    assert psnr(prior.likeliest(noisy, noise_variance=0.25).reshape(28, 28), record) > psnr(noisy, record) + 3.0
    assert prior.likeliest(noisy, noise_variance=1e12) == pytest.approx(prior.mean, abs=1e-6)


def test_sketches_of_one_update_give_it_away_after_d_over_k_rounds_and_not_before():
    generator = np.random.default_rng(1)
    update = generator.standard_normal(120)
    matrices = [SketchMatrix(seed=bytes([n]) * 32, num_rows=32, dimension=120).entries(0, 32) for n in range(4)]
    errors = [
        np.linalg.norm(update_from_sketches([m @ update for m in matrices[:n]], matrices[:n]) - update) / np.linalg.norm(update)
        for n in (1, 2, 3, 4)
    ]
    assert errors[3] < 1e-9
    assert errors[2] > 0.2
    assert errors == sorted(errors, reverse=True)


def test_fresh_noise_in_every_round_is_not_solved_away():
    generator = np.random.default_rng(2)
    update = generator.standard_normal(120) / 11.0
    matrices = [SketchMatrix(seed=bytes([n]) * 32, num_rows=32, dimension=120).entries(0, 32) for n in range(4)]
    sketches = [m @ (update + generator.standard_normal(120)) for m in matrices]
    assert np.linalg.norm(update_from_sketches(sketches, matrices) - update) > 5 * np.linalg.norm(update)


def test_psnr_counts_decibels():
    one = np.zeros((20, 20))
    assert psnr(one, one) == MAX_PSNR
    assert psnr(one + 0.1, one) == pytest.approx(20.0)
    assert psnr(one + 5.0, one) == pytest.approx(0.0)
    assert psnr(np.full((20, 20), np.nan), one) == MAX_PSNR
    with pytest.raises(ValueError):
        psnr(one[:5], one)


def test_ssim_by_a_second_implementation():
    """The definition, window by window."""
    x, y = picture(1, side=16).astype(float), np.clip(picture(2, side=16).astype(float) + 0.1, 0, 1)
    axis = np.arange(-5, 6)
    weights = np.exp(-(axis[:, None] ** 2 + axis**2) / (2 * 1.5**2))
    weights /= weights.sum()
    values = []
    for top in range(6):
        for left in range(6):
            a, b = x[top : top + 11, left : left + 11], y[top : top + 11, left : left + 11]
            ma, mb = (weights * a).sum(), (weights * b).sum()
            va, vb, both = (weights * (a - ma) ** 2).sum(), (weights * (b - mb) ** 2).sum(), (weights * (a - ma) * (b - mb)).sum()
            values.append((2 * ma * mb + 1e-4) * (2 * both + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4)))
    assert ssim(x, y) == pytest.approx(np.mean(values), rel=1e-9)
    assert ssim(x, x) == pytest.approx(1.0)
    with pytest.raises(ValueError):
        ssim(x[:2], y[:2])
    assert (ssim_window((28, 28)), ssim_window((8, 8)), ssim_window((11, 30))) == (11, 7, 11)
    assert ssim(x[:8, :8], x[:8, :8]) == pytest.approx(1.0)
    assert ssim(x[:8, :8], y[:8, :8]) < 0.9


# --- The first model of logistic regression ---------------------------------------------------------------------------------------


def test_a_sum_lays_bare_the_class_that_has_one_record_and_blends_that_of_two():
    """A server that sees only the sum of three clients: the 7 stands alone and is read off, the two 4s come out as their mean."""
    victims = [(picture(1), 7), (picture(2), 4), (picture(3), 4)]
    seen = [update_of(record, label) for record, label in victims]
    summed = {key: np.sum([one[key] for one in seen], axis=0) for key in seen[0]}
    known = np.mean([record for record, _ in victims], axis=0).reshape(-1)  # an attacker with the best possible public mean
    alone = class_rows(summed["weight"], summed["bias"], 7, known, total=3).reshape(28, 28)
    both = class_rows(summed["weight"], summed["bias"], 4, known, total=3).reshape(28, 28)
    assert psnr(alone, victims[0][0]) > 50.0
    assert psnr(both, (victims[1][0] + victims[2][0]) / 2) > 50.0
    assert psnr(both, victims[1][0]) < 30.0


@pytest.mark.parametrize("clip_norm", [0.1, 1.0, 100.0])
def test_the_likeliest_record_without_noise_is_the_record_and_its_class(clip_norm):
    """Clipped or not: the length is told apart by the public mean alone, so the record comes back up to it."""
    record = picture(1)
    prior = PicturePrior.of(np.stack([picture(seed) for seed in range(1, 60)]))
    seen = update_of(record, 7)
    norm = np.sqrt(sum((part**2).sum() for part in seen.values()))
    clipped = {key: part * min(1.0, clip_norm / norm) for key, part in seen.items()}
    found, label = likeliest_record(
        clipped["weight"],
        clipped["bias"],
        prior,
        noise=0.0,
        clip_norm=clip_norm,
        mean_norm=float(np.linalg.norm(record)),
    )
    assert label == 7
    assert psnr(found.reshape(28, 28), record) > 50.0


def test_under_great_noise_the_likeliest_record_is_the_mean_picture():
    prior = PicturePrior.of(np.stack([picture(seed) for seed in range(2, 60)]))
    seen = update_of(picture(1), 7, noise_multiplier=1.0)
    found, _ = likeliest_record(seen["weight"], seen["bias"], prior, noise=1e4, clip_norm=1.0, mean_norm=9.0)
    assert found == pytest.approx(prior.mean, abs=1e-3)


# --- What is kept of it -----------------------------------------------------------------------------------------------------------


def report():
    pictures = tuple(spell_picture(picture(seed, side=12)) for seed in (1, 2))
    blind = InversionLine(
        sees="nothing", epsilon=np.inf, attack="mean picture", psnr=(10.0, 12.0), ssim=(0.1, 0.2), label_right=None, pictures=pictures
    )
    clear = replace(blind, sees="update", attack="division", psnr=(90.0, 91.0), label_right=(True, False))
    return InversionReport(
        height=12, width=12, clients=4, classes=10, seeds=(1,), window=11, originals=pictures, lines=(blind, clear, replace(clear, attack="other", psnr=(95.0, 99.0)))
    )  # fmt: skip


def test_a_report_survives_its_file_and_the_best_attack_of_each_view_is_chosen():
    found = report()
    assert InversionReport.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False))) == found
    assert [line.attack for line in found.strongest()] == ["mean picture", "other"]
    assert found.gain(found.lines[1]) == (80.0, 79.0)
    assert found.lines[1].label_share == 0.5
    assert found.pixels(found.originals[0]) / 255.0 == pytest.approx(picture(1, side=12), abs=0.5 / 255 + 1e-6)


def test_the_best_attack_is_the_one_that_gains_most_over_the_blind_guess_of_the_same_knowledge():
    found = report()
    informed = replace(found.blind, attack="mean picture, class known", psnr=(14.0, 16.0))
    told = replace(found.lines[1], epsilon=8.0, attack="likeliest, class known", psnr=(14.5, 16.0))
    untold = replace(told, attack="likeliest", psnr=(11.0, 13.0))
    both = replace(found, lines=(found.blind, informed, untold, told))
    assert [line.attack for line in both.strongest()] == ["mean picture", "mean picture, class known", "likeliest"]
    assert (both.mean_gain(told), both.mean_gain(untold)) == (0.25, 1.0)
    of_before = replace(found, lines=(found.blind, told))  # no blind guess of the class: the mean stands in, in the attacker's favour
    assert of_before.mean_gain(told) == 4.25


@pytest.mark.parametrize(
    "spoil",
    [
        lambda value: value["originals"].__setitem__(0, "AAAA"),
        lambda value: value["originals"].__setitem__(0, "no base64!"),
        lambda value: value["lines"][1]["psnr"].pop(),
        lambda value: value["lines"][1].update(sees="everything"),
        lambda value: value["lines"].reverse(),
        lambda value: value["lines"].clear(),
        lambda value: value.update(format="other"),
        lambda value: value["lines"][1]["psnr"].__setitem__(0, "nan"),
    ],
)
def test_a_damaged_report_is_refused(spoil):
    value = json.loads(json.dumps(report().to_json()))
    spoil(value)
    with pytest.raises(DecodeError):
        InversionReport.from_json(value)
