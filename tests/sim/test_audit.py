"""Audits of whole federations: what is false is caught, what is true passes, what cannot be seen is said."""

import json
import math

import numpy as np
import pytest
import torch

from client.train import local_update
from fedsec.errors import AuditError, ConfigError, PrivacyClaimRefuted
from fedsec.plan.load import load_plan
from fedsec.privacy import dpsgd
from fedsec.privacy.auditing.results import AuditReport
from fedsec.privacy.clipping import clip_and_sum
from fedsec.privacy.dpsgd import SgdSettings
from fedsec.privacy.streams import KeyedStream, RoundStreams, derive_key, simulation_root
from fedsec.sim.audit import audit_clients, audit_controls, audit_plan, judging
from fedsec.sim.audit.federation import Federation
from fedsec.sim.audit.sites import Coins

SMALL = ("federation.num_clients=4", "federation.rounds=8", "training.steps=2", "privacy.clipping=bookkeeping", "secagg.num_corrupt=1")
CLEAR = (*SMALL, "secagg.enabled=false", "robust.rule=mean", "attack.name=none")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_audited_federation_trains_as_the_client_program_does():
    plan = load_plan(None, overrides=CLEAR)
    federation = Federation.of(plan, canaries=8, candidates=0)
    coins = Coins.toss(federation.sites, 1).without_canaries()
    seen = []
    federation.run(coins, noise_multiplier=1.3, label="x", observers=[seen.append])
    site, training = federation.sites[2], plan.training
    model = federation.model()
    names = [name for name, _ in model.named_parameters()]
    settings = SgdSettings(
        steps=training.steps, sample_rate=training.sample_rate, batch_size=site.batch_size, learning_rate=training.learning_rate,
        clip_norm=plan.privacy.clip_norm, noise_multiplier=1.3, clipping="bookkeeping",
    )  # fmt: skip
    key = derive_key(simulation_root(plan.federation.seed), "audit", "x", "1", "client-2")
    update = local_update(model, site.x, site.y, settings, shared_names=names, streams=RoundStreams.derive(key))
    ours = seen[0][2] * -training.learning_rate * federation.canary_unit
    assert ours == pytest.approx(federation.layout.flatten(update), rel=1e-5, abs=1e-6)
    assert len(seen) == plan.federation.rounds


def test_a_federation_under_audit_learns():
    """Quiet canaries and all: otherwise the attacks on the released model would be on nothing."""
    plan = load_plan(None, overrides=(*CLEAR, "federation.rounds=10", "privacy.unit=none", "privacy.epsilon=inf"))
    federation = Federation.of(plan, canaries=40, candidates=0)
    assert federation.quiet
    released = federation.run(Coins.toss(federation.sites, 1), noise_multiplier=0.0, label="x")
    x, y = np.concatenate([site.x for site in federation.sites]), np.concatenate([site.y for site in federation.sites])
    with torch.no_grad():
        right = federation.model(released)(torch.from_numpy(x)).argmax(dim=1).numpy() == y
    assert right.mean() > 0.7


def test_every_control_is_caught_and_the_plan_is_not_refuted():
    plan = load_plan(None, overrides=(*CLEAR, "privacy.epsilon=1.0", "privacy.delta=1e-5", "federation.rounds=16"))
    report = audit_plan(plan, 1, canaries=1200)
    report.check()
    assert {control.arm for control in report.controls} == {"no-noise", "weak-noise", "accountant-reset"}
    assert all(control.refuted and control.audited.epsilon == 1.0 for control in report.controls)
    one_run, threshold = report.results
    assert (one_run.kind, threshold.kind) == ("one-run", "loss-threshold")
    assert one_run.lower_bound <= one_run.audited.epsilon == pytest.approx(1.0, rel=2e-3)
    assert not one_run.no_power
    assert threshold.lower_bound <= 1.0
    assert AuditReport.from_json(json.loads(json.dumps(report.to_json(), allow_nan=False))) == report


def test_an_accountant_that_understates_is_refuted_loudly(monkeypatch):
    """The plan spends what epsilon = 100 allows, and the accountant is made to say 0.5."""
    monkeypatch.setattr(judging, "epsilon_prv", lambda *_: 0.5)
    plan = load_plan(None, overrides=(*CLEAR, "privacy.epsilon=100.0"))
    report = audit_plan(plan, 1, kinds=("one-run",), controls=(), canaries=400)
    assert report.refuted
    with pytest.raises(PrivacyClaimRefuted):
        report.check()


def _a_tenth_of_the_noise(monkeypatch):
    real = KeyedStream.add_gaussian
    monkeypatch.setattr(KeyedStream, "add_gaussian", lambda self, values, stddev: real(self, values, stddev / 10.0))


def _everybody_in_every_batch(monkeypatch):
    monkeypatch.setattr(KeyedStream, "bernoulli", lambda _self, n, _rate: np.ones(n, dtype=bool))


def _no_clipping(monkeypatch):
    monkeypatch.setattr(dpsgd, "clip_and_sum", lambda parts, _: clip_and_sum(parts, math.inf))


@pytest.mark.parametrize("breaks", [_a_tenth_of_the_noise, _everybody_in_every_batch, _no_clipping])
def test_a_fault_in_the_training_code_itself_is_found(monkeypatch, breaks):
    """Nobody tells the audit: the plan says epsilon = 1, the accountant is right about what it was told, and the code does something else."""
    breaks(monkeypatch)
    plan = load_plan(None, overrides=(*CLEAR, "privacy.epsilon=1.0", "privacy.delta=1e-5", "federation.rounds=16"))
    with pytest.raises(PrivacyClaimRefuted):
        audit_plan(plan, 1, kinds=("one-run",), controls=(), canaries=1200).check()


def test_an_audit_with_hardly_a_canary_is_called_blind():
    found = audit_controls(load_plan(None, overrides=CLEAR), 1, controls=("no-noise",), canaries=4)
    report = AuditReport(plan_digest="x", seed=1, results=(), controls=found)
    with pytest.raises(AuditError, match="blind"):
        report.check()


def test_a_plan_without_privacy_claims_nothing_and_leaks():
    plan = load_plan(None, overrides=(*CLEAR, "privacy.unit=none", "privacy.epsilon=inf"))
    (result,) = audit_plan(plan, 1, kinds=("one-run",), controls=(), canaries=120).results
    assert result.audited.epsilon == math.inf
    assert not result.refuted
    assert not result.no_power
    assert result.membership.auc.value > 0.97
    assert result.lower_bound > 2.0


def test_under_secure_aggregation_the_server_sees_less_in_the_sum_and_in_sketches_than_in_the_updates():
    plan = load_plan(None, overrides=(*SMALL, "privacy.epsilon=30.0", "attack.name=none"))
    report = audit_plan(plan, 1, kinds=("one-run",), controls=(), canaries=240)
    areas = {result.adversary: result.membership.auc.value for result in report.results}
    assert areas.keys() == {"updates", "sum", "sketches"}
    assert areas["updates"] > max(areas["sum"], areas["sketches"]) + 0.03


def test_the_same_seed_gives_the_same_report_and_progress_ends_at_the_end():
    plan, told = load_plan(None, overrides=(*CLEAR, "federation.rounds=2")), []
    first, again = (
        audit_plan(plan, 5, kinds=("one-run", "loss-threshold"), controls=("no-noise",), canaries=16, progress=lambda *now: told.append(now))
        for _ in range(2)
    )  # fmt: skip
    assert first.results == again.results
    assert first.controls == again.controls
    shares = [share for _, share in told[: len(told) // 2]]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_a_short_plan_gets_a_longer_reset_and_it_is_said():
    plan = load_plan(None, overrides=(*CLEAR, "federation.rounds=2"))
    report = audit_plan(plan, 1, kinds=(), controls=("accountant-reset",), canaries=8)
    assert [control.arm for control in report.controls] == ["accountant-reset"]
    assert any("ran for 30 rounds, the plan has 2" in note for note in report.notes)


def test_a_small_model_is_trained_several_times_each_with_canaries_of_its_own():
    plan = load_plan(None, overrides=(*CLEAR, "data.name=breast-cancer", "federation.rounds=2", "data.partition=iid"))
    (result,) = audit_plan(plan, 1, kinds=("one-run",), controls=(), canaries=400).results
    federation = Federation.of(plan, canaries=400, candidates=0)
    assert federation.num_canaries < 200
    assert 400 <= result.num_canaries < 400 + federation.num_canaries
    assert result.num_canaries % federation.num_canaries == 0


def test_lira_runs_on_small_models_and_an_unknown_attack_is_refused():
    plan = load_plan(None, overrides=(*CLEAR, "federation.rounds=2", "privacy.unit=none", "privacy.epsilon=inf"))
    (result,) = audit_plan(plan, 1, kinds=("lira",), controls=(), canaries=4, shadow_models=4).results
    assert (result.kind, result.adversary) == ("lira", "model")
    assert result.num_canaries > 600
    with pytest.raises(ConfigError, match="no attack is called 'guessing'"):
        audit_plan(plan, 1, kinds=("guessing",))


def test_nothing_hides_a_whole_client_and_nothing_says_so():
    result = audit_clients(load_plan(None, overrides=(*CLEAR, "federation.rounds=3")), 1, canaries=60)
    assert (result.unit, result.adversary) == ("client", "sum")
    assert result.membership.auc.value == pytest.approx(1.0)
    assert result.audited.epsilon == math.inf
    assert result.sentence().startswith("nothing is claimed")


def test_canary_clients_of_a_mechanism_that_does_protect_clients_stay_under_its_epsilon(monkeypatch):
    """Noise as of DP-FedAvg on each sum: the estimator at client level, on a mechanism whose epsilon is known (Gaussian, all rounds together)."""
    from fedsec.privacy.auditing.gaussian import epsilon_of_gaussians
    from fedsec.sim.audit import clients

    rounds, sigma, seen, generator = 3, 1.2, clients._Sums.__call__, np.random.default_rng(7)

    def noised(self, updates):
        length = np.median(np.linalg.norm(updates[: self._clients], axis=1))
        seen(self, np.concatenate([updates, generator.normal(0.0, sigma * length, (1, updates.shape[1]))]))

    monkeypatch.setattr(clients._Sums, "__call__", noised)
    result = audit_clients(load_plan(None, overrides=(*CLEAR, f"federation.rounds={rounds}")), 1, canaries=300)
    truth = epsilon_of_gaussians(mean=math.sqrt(rounds) / sigma, stddev=1.0, other_mean=0.0, other_stddev=1.0, delta=1e-5)
    assert 0.1 * truth < result.lower_bound <= truth
    assert result.gaussian_estimate == pytest.approx(truth, rel=0.35)
