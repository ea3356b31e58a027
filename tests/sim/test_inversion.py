"""Pictures out of the updates of a plan: what arithmetic gives away is found, and what noise hides is not."""

import math

import pytest
import torch

from fedsec.plan.load import load_plan
from fedsec.plan.sweep import PEACE
from fedsec.sim.audit.inversion import invert

SMALL = (*PEACE, "federation.num_clients=6", "federation.rounds=2", "privacy.clipping=bookkeeping")
CLEAR = ("privacy.unit=none", "privacy.epsilon=inf")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def found(*overrides):
    plans = [
        load_plan(overrides=[*SMALL, *overrides, *privacy, f"federation.seed={seed}"])
        for seed in (1, 2)
        for privacy in (("privacy.epsilon=8.0",), CLEAR)
    ]
    report = invert(plans, shape=(8, 8))
    return report, {(line.sees, line.epsilon, line.attack): line for line in report.lines}


def test_an_update_in_clear_gives_the_picture_away_and_one_under_noise_does_not():
    """Six clients with one digit each. The server divides; then it tries whatever it knows about digits against the noise."""
    report, lines = found()
    assert (report.clients, report.seeds, report.window) == (6, (1, 2), 7)
    clear = lines["update", math.inf, "division"]
    assert min(clear.psnr) > 60.0
    assert clear.label_right == (True,) * 12
    assert clear.pictures == report.originals
    assert lines["update", 8.0, "division"].mean < report.blind.mean
    noised = [line for line in report.lines if math.isfinite(line.epsilon)]
    assert {line.attack for line in noised} == {"division", "class rows", "likeliest", "likeliest, class known"}
    assert max(report.mean_gain(line) for line in noised) < 1.0
    assert lines["update", 8.0, "likeliest"].pictures != report.originals


def test_who_is_told_the_class_is_measured_against_the_mean_picture_of_the_class():
    """It is decibels nearer than the mean of all, and no merit of the attack: told the class, whoever sees no update has it too."""
    report, lines = found()
    blind = lines["nothing", math.inf, "mean picture, class known"]
    told = lines["update", 8.0, "likeliest, class known"]
    assert blind.mean > report.blind.mean + 1.0
    assert told.mean > report.blind.mean + 1.0
    assert report.baseline(told) is blind
    assert report.baseline(lines["update", 8.0, "likeliest"]) is report.blind
    assert report.baseline(lines["sum", math.inf, "class rows"]) is blind


def test_a_sum_in_clear_tells_more_than_the_mean_picture():
    report, lines = found()
    assert lines["sum", math.inf, "class rows"].mean > report.blind.mean + 3.0
    assert lines["sum", math.inf, "division"].mean < 30.0


def test_behind_a_hidden_layer_division_is_what_there_is():
    _, lines = found("model.name=mlp", "model.hidden=[16]")
    assert {attack for _, _, attack in lines} == {"mean picture", "mean picture, class known", "division"}
    assert min(lines["update", math.inf, "division"].psnr) > 60.0


def test_the_same_plans_give_the_same_pictures():
    assert found()[0] == found()[0]
