"""Sigma spends its target and no more; what cannot be met is refused with what could be; an edited cache is noticed."""

import json
import logging
import math

import pytest

from fedsec.errors import ConfigError
from fedsec.plan.load import load_plan
from fedsec.privacy import accounting, cache, calibration
from fedsec.privacy.accounting import Segment, epsilon_prv, epsilon_rdp
from fedsec.privacy.calibration import RunShape, calibrate_noise_multiplier, warm

TARGET = {"epsilon": 4.0, "delta": 1e-3, "sample_rate": 0.25, "steps": 6}


def forget():
    for function in (accounting._cached_prv, accounting._cached_rdp, accounting._quick):
        function.cache_clear()


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSEC_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "SHIPPED", tmp_path / "none.json")
    forget()
    yield tmp_path / cache.FILE_NAME
    forget()


@pytest.fixture
def runs_of_prv(monkeypatch):
    """A list that grows by one at each run of the slow accountant."""
    runs, original = [], accounting._opacus_prv

    def counted(*arguments):
        runs.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(accounting, "_opacus_prv", counted)
    return runs


def spent(sigma, target):
    return epsilon_prv([Segment(noise_multiplier=sigma, sample_rate=target["sample_rate"], steps=target["steps"])], target["delta"])


@pytest.mark.parametrize(
    ("epsilon", "delta", "rate", "steps"),
    [(8.0, 1e-3, 0.25, 60), (3.0, 1e-5, 0.1365, 90), (0.1, 1e-4, 0.5, 30), (3, 1e-5, 1, 100), (100.0, 1e-3, 0.25, 60), (8.0, 1e-5, 1e-4, 5), (1.0, 0.5, 1.0, 1)],
)  # fmt: skip
def test_the_target_is_met_from_below_within_a_thousandth(empty_cache, runs_of_prv, epsilon, delta, rate, steps):
    target = {"epsilon": epsilon, "delta": delta, "sample_rate": rate, "steps": steps}
    sigma = calibrate_noise_multiplier(**target)
    assert epsilon * (1 - 1e-3) < spent(sigma, target) <= epsilon
    assert float(f"{sigma:.5e}") == sigma
    assert len(runs_of_prv) <= 6


def test_a_second_call_runs_no_accountant_even_in_a_new_process(empty_cache, runs_of_prv):
    sigma = calibrate_noise_multiplier(**TARGET)
    runs_of_prv.clear()
    forget()
    assert calibrate_noise_multiplier(**TARGET) == sigma
    assert runs_of_prv == []


def edit(path, **factors):
    record = json.loads(path.read_text())
    for kind, factor in factors.items():
        record["numbers"][kind] = {key: value * factor for key, value in record["numbers"][kind].items()}
    path.write_text(json.dumps(record))


@pytest.mark.parametrize("factors", [{"sigma": 0.9}, {"sigma": 0.99}, {"sigma": 1.5}, {"sigma": 1e-9}, {"sigma": 1e12}, {"prv": 0.5}])
def test_an_edited_cache_is_noticed_and_sigma_calibrated_again(empty_cache, caplog, factors):
    sigma = calibrate_noise_multiplier(**TARGET)
    edit(empty_cache, **factors)
    forget()
    with caplog.at_level(logging.WARNING):
        assert calibrate_noise_multiplier(**TARGET) == pytest.approx(sigma, rel=1e-3)
    assert "cached" in caplog.text


def test_a_forged_pair_of_sigma_and_epsilon_is_noticed_too(empty_cache, caplog):
    sigma = calibrate_noise_multiplier(**TARGET)
    record = json.loads(empty_cache.read_text())
    ((target, _),) = record["numbers"]["sigma"].items()
    record["numbers"]["sigma"][target] = 0.5
    record["numbers"]["prv"] = {cache.key_of([(0.5, 0.25, 6)], 1e-3): 3.999}
    empty_cache.write_text(json.dumps(record))
    forget()
    with caplog.at_level(logging.WARNING):
        assert calibrate_noise_multiplier(**TARGET) == pytest.approx(sigma, rel=1e-3)
    assert "not supported" in caplog.text


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"epsilon": 0.0}, "privacy.epsilon"),
        ({"epsilon": -1.0}, "privacy.epsilon"),
        ({"epsilon": math.nan}, "privacy.epsilon"),
        ({"epsilon": math.inf}, "privacy.epsilon"),
        ({"epsilon": 1e4}, "privacy.epsilon"),
        ({"epsilon": 1e-6}, "privacy.epsilon"),
        ({"epsilon": "8"}, "privacy.epsilon"),
        ({"epsilon": True}, "privacy.epsilon"),
        ({"delta": 0.0}, "privacy.delta"),
        ({"delta": 1.0}, "privacy.delta"),
        ({"delta": math.nan}, "privacy.delta"),
        ({"sample_rate": 0.0}, "training.sample_rate"),
        ({"sample_rate": 1.5}, "training.sample_rate"),
        ({"sample_rate": math.nan}, "training.sample_rate"),
        ({"steps": 0}, "training.steps"),
        ({"steps": 1.5}, "training.steps"),
        ({"steps": True}, "training.steps"),
        ({"steps": 10**12}, "training.steps"),
    ],
)
def test_impossible_arguments_are_refused_by_name(change, field):
    with pytest.raises(ConfigError) as caught:
        calibrate_noise_multiplier(**{**TARGET, **change})
    assert caught.value.field == field


def test_an_unreachable_target_says_how_many_steps_would_be_reachable(empty_cache, monkeypatch):
    monkeypatch.setattr(calibration, "MAX_NOISE_MULTIPLIER", 64.0)
    with pytest.raises(ConfigError, match="no noise up to 64") as caught:
        calibrate_noise_multiplier(epsilon=1.0, delta=1e-3, sample_rate=0.5, steps=100_000)
    reachable = int(str(caught.value.mend).split("at most ")[1].split()[0])
    assert 1 < reachable < 100_000
    assert calibration._Target(epsilon=1.0, delta=1e-3, sample_rate=0.5, steps=reachable).rough(64.0) <= 1.0
    assert calibration._Target(epsilon=1.0, delta=1e-3, sample_rate=0.5, steps=reachable * 11 // 10).rough(64.0) > 1.0


def test_warming_writes_sigma_and_both_epsilons_of_every_round(empty_cache, tmp_path, runs_of_prv):
    path = tmp_path / "warmed.json"
    shape = RunShape(epsilon=4.0, delta=1e-3, sample_rate=0.25, steps=2, rounds=3)
    assert warm([shape], path=path) == 1 + 3 + 3
    assert warm([shape], path=path) == 1 + 3 + 3
    numbers = cache.read_numbers(path)
    (sigma,) = numbers["sigma"].values()
    assert sigma == calibrate_noise_multiplier(**TARGET)
    for done in (2, 4, 6):
        spent_so_far = [Segment(noise_multiplier=sigma, sample_rate=0.25, steps=done)]
        key = cache.key_of([(sigma, 0.25, done)], 1e-3)
        assert (numbers["prv"][key], numbers["rdp"][key]) == (epsilon_prv(spent_so_far, 1e-3), epsilon_rdp(spent_so_far, 1e-3))


def test_the_default_plan_starts_without_any_accountant(tmp_path, monkeypatch, runs_of_prv):
    monkeypatch.setenv("FEDSEC_CACHE", str(tmp_path))
    forget()
    plan = load_plan()
    sigma = calibrate_noise_multiplier(
        epsilon=plan.privacy.epsilon, delta=plan.privacy.delta, sample_rate=plan.training.sample_rate, steps=plan.total_steps
    )
    monkeypatch.setattr(accounting, "_compute_rdp", None)
    for server_round in range(1, plan.federation.rounds + 1):
        done = [Segment(noise_multiplier=sigma, sample_rate=plan.training.sample_rate, steps=server_round * plan.training.steps)]
        assert 0 < epsilon_prv(done, plan.privacy.delta) < epsilon_rdp(done, plan.privacy.delta)
    assert runs_of_prv == []
    forget()


def test_every_shipped_number_is_supported_by_the_independent_estimate():
    numbers = cache.read_numbers(cache.SHIPPED)
    assert numbers["sigma"]
    for kind in ("prv", "rdp"):
        for key, value in numbers[kind].items():
            delta, sigma, rate, steps = key.replace(";", ",").split(",")
            segments = (Segment(noise_multiplier=float(sigma), sample_rate=float(rate), steps=int(steps)),)
            assert accounting._agrees(value, segments, float(delta), kind=kind), key
