"""A client's own limits stand whatever the server asks."""

import math

import pytest

from fedsec.errors import ConfigError
from fedsec.plan.load import load_plan
from fedsec.policy import ClientPolicy

STRICT = ClientPolicy(epsilon_cap=2.0, delta=1e-3, min_noise_multiplier=1.0)
PRIVATE = load_plan()
OPEN = load_plan(overrides=["privacy.unit=none", "privacy.epsilon=inf", "secagg.enabled=false"])


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan, math.inf, 0.99])
def test_too_little_noise_is_refused(sigma):
    with pytest.raises(ConfigError, match="noise"):
        STRICT.check_training(PRIVATE, sigma)


def test_enough_noise_passes():
    STRICT.check_training(PRIVATE, 1.0)


def test_a_plan_without_privacy_is_refused_unless_the_client_allows_it():
    with pytest.raises(ConfigError, match="does not train without"):
        STRICT.check_training(OPEN, 0.0)
    ClientPolicy(epsilon_cap=math.inf, delta=1e-3, allow_unprotected=True).check_training(OPEN, 0.0)


def test_a_larger_delta_than_the_clients_is_refused():
    with pytest.raises(ConfigError, match="delta"):
        STRICT.check_training(load_plan(overrides=["privacy.delta=0.01"]), 5.0)


def test_test_results_leave_only_where_allowed():
    with pytest.raises(ConfigError, match="release in clear"):
        STRICT.check_evaluation()
    ClientPolicy.of_plan(PRIVATE).check_evaluation()


@pytest.mark.parametrize(
    "limits",
    [
        {"epsilon_cap": 0.0, "delta": 1e-3},
        {"epsilon_cap": math.nan, "delta": 1e-3},
        {"epsilon_cap": math.inf, "delta": 1e-3},
        {"epsilon_cap": 1.0, "delta": 0.0},
        {"epsilon_cap": 1.0, "delta": 1.0},
        {"epsilon_cap": 1.0, "delta": math.nan},
        {"epsilon_cap": 1.0, "delta": 1e-3, "min_noise_multiplier": math.nan},
    ],
)
def test_an_unsound_policy_is_refused(limits):
    with pytest.raises(ConfigError):
        ClientPolicy(**limits)


def test_a_simulated_client_spends_what_its_plan_says():
    assert ClientPolicy.of_plan(PRIVATE).epsilon_cap == 8.0
    assert ClientPolicy.of_plan(OPEN).allow_unprotected


def test_a_plan_cannot_make_a_client_run_code_that_its_operator_did_not_list():
    plan = load_plan(overrides=["model.name=custom", "model.factory='os:system'"])
    with pytest.raises(ConfigError, match="does not run os:system"):
        STRICT.check_code(plan)
    ClientPolicy(epsilon_cap=2.0, delta=1e-3, model_factories=("os:system",)).check_code(plan)
