"""Sample runs, shaped like real ones."""

import importlib.util
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedsec.plan.load import load_plan
from fedsec.plan.sweep import PEACE, make_sweep, plans_of_sweep, sweep_base
from fedsec.plan.sweep_tasks import task_keys
from fedsec.privacy.auditing.results import AuditReport, AuditResult, Estimate, Membership, PrivacyPoint
from fedsec.report.attack_rows import CellRow
from fedsec.report.sweep_rows import AuditRow, SiteRow, UtilityRow
from fedsec.results import EpsilonReport, RoundRow, RunResult


def _row(server_round=1, **changes):
    values = {
        "server_round": server_round,
        "accuracy": 0.3 + 0.6 * (1 - math.exp(-server_round / 5)),
        "loss": 2.3 * math.exp(-server_round / 8),
        "recall": (0.9, None, 0.5),
        "epsilon_prv": 0.4 * server_round,
        "epsilon_rdp": 0.45 * server_round,
        "num_selected": 20,
        "num_valid": 18,
        "num_dropped": 1,
        "rejected": (("client-7", "not finite"),),
        "update_norm": 0.25,
        "seconds": 0.6,
        "bytes_up": 46_800,
        "bytes_down": 52_000,
    }
    return RoundRow(**(values | changes))


def _result(count=20, /, **changes):
    rows = changes.pop("rows", tuple(_row(number) for number in range(1, count + 1)))
    private = changes.pop("private", True)
    spent = (rows[-1].epsilon_prv or 0.0) if rows else 0.0
    values = {
        "run_id": "ab" * 16,
        "plan_name": "digits, 20 clients",
        "plan_digest": "0" * 64,
        "engine": "local",
        "num_clients": 20,
        "rounds": len(rows),
        "accuracy": 0.889,
        "loss": 0.4,
        "recall": (0.9, None, 0.5),
        "class_names": ("zero", "one", "two"),
        "epsilon": EpsilonReport(
            prv=spent if private else math.inf,
            rdp=spent * 1.1 if private else math.inf,
            delta=1e-3 if private else None,
            unit="example" if private else "none",
            relation="add-remove",
            noise_multiplier=1.4 if private else 0.0,
            statement="said in one sentence",
        ),
        "randomness": "simulation seed",
        "duration_s": 14.2,
        "run_dir": "runs/one",
        "personal_accuracy": None,
        "majority_accuracy": 0.102,
        "rows": rows,
        "stopped_early": False,
        "guarantee": "Each record is protected.",
        "versions": {"python": "3.11"},
    }
    return RunResult(**(values | changes))


@pytest.fixture(scope="session")
def make_row():
    """``make_row(server_round, **changes)``: one round of a private run."""
    return _row


@pytest.fixture(scope="session")
def make_result():
    """``make_result(count, private=…, **changes)``: one run of three classes."""
    return _result


def _cell_row(**changes):
    values = {
        "attack": "alie",
        "rule": "screening",
        "fraction": 0.2,
        "seed": 1,
        "strength": None,
        "accuracy": 0.5,
        "majority_accuracy": 0.1,
        "num_clients": 20,
        "num_attackers": 4,
        "precision": 0.9,
        "recall": 0.8,
        "honest_rate": 0.01,
        "attack_success": None,
        "epsilon": 7.99,
        "delta": 1e-3,
        "wall_s": 12.5,
        "fedsec_version": "0.1.0",
        "versions": {"python": "3.11"},
    } | changes
    key = "-".join(str(values[name]) for name in ("attack", "rule", "fraction", "seed", "strength"))
    return CellRow(**({"key": key} | values))


@pytest.fixture(scope="session")
def make_cell_row():
    """``make_cell_row(**changes)``: one finished cell of a grid; its key says which."""
    return _cell_row


@pytest.fixture
def histogram():
    """Label counts of 20 clients over 3 classes."""
    return np.random.default_rng(0).integers(0, 40, size=(20, 3))


# --- Sweeps ---------------------------------------------------------------------------------------------------------------------

PEACEFUL = sweep_base(load_plan(overrides=PEACE))


class SweepMaker:
    """Rows of a sweep as a real one would leave them, with figures that a test may choose."""

    plan = PEACEFUL

    def grid(self, epsilons=(1.0, 8.0, math.inf), seeds=3, **more):
        return make_sweep(self.plan, epsilons=epsilons, seeds=seeds, **more)

    def keys(self, grid):
        return task_keys(grid, plans_of_sweep(self.plan, grid))

    def row(self, point, key, **changes):
        private = math.isfinite(point.epsilon)
        base = {1.0: 0.80, 2.0: 0.85, 4.0: 0.88, 8.0: 0.90}.get(point.epsilon, 0.94) + 0.004 * (point.seed - 2)
        accuracy = changes.pop("accuracy", base)
        values = {
            "key": key,
            "plan_digest": "0" * 64,
            "target": point.epsilon,
            "seed": point.seed,
            "varied": dict(point.varied),
            "arm": point.arm.code,
            "accuracy": accuracy,
            "loss": 0.4,
            "majority_accuracy": 0.102,
            "class_names": ("zero", "one", "two"),
            "recall": (accuracy, accuracy - 0.03, accuracy - (0.15 if private else 0.02)),
            "class_tests": (120, 120, 119),
            "sites": tuple(
                SiteRow(
                    name=f"client {i + 1}",
                    train=30 + 7 * i + point.seed,
                    test=18,
                    accuracy=accuracy - 0.01 * i,
                    personal=None,
                    majority=0.2,
                )
                for i in range(8)
            ),
            "epsilon": point.epsilon * 0.999,
            "epsilon_rdp": point.epsilon * 1.12,
            "delta": 1e-3 if private else None,
            "unit": "example" if private else "none",
            "relation": "add-remove",
            "noise_multiplier": 4.0 / point.epsilon if private else 0.0,
            "rounds_accuracy": (0.3, 0.6, accuracy),
            "rounds_epsilon": (point.epsilon / 3, point.epsilon / 2, point.epsilon * 0.999) if private else (None, None, None),
            "num_clients": 20,
            "guarantee": "said",
            "data_fingerprint": "ab" * 32,
            "wall_s": 12.0,
            "fedsec_version": "0.1.0",
            "versions": {"python": "3.11"},
        }
        return UtilityRow(**(values | changes))

    def rows(self, grid, **changes):
        return [self.row(point, key, **changes) for (what, point), key in self.keys(grid).items() if what == "run"]

    def result(self, *, epsilon, bound, perfect=5.4, kind="one-run", arm="plan", seed=1):
        estimate = Estimate(value=0.7, low=0.66, high=0.74)
        roc = ((0.0, 0.0), (0.001, 0.02), (0.01, 0.08), (0.1, 0.4), (1.0, 1.0))
        return AuditResult(
            kind=kind,
            arm=arm,
            unit="example",
            adversary="updates",
            seed=seed,
            num_canaries=1000,
            num_guesses=200,
            num_correct=150,
            claimed=PrivacyPoint(epsilon=epsilon, delta=1e-3),
            audited=PrivacyPoint(epsilon=epsilon, delta=1e-5),
            confidence=0.95,
            lower_bound=bound,
            perfect_bound=perfect,
            gaussian_estimate=min(bound * 1.4, perfect),
            membership=Membership(auc=estimate, tpr_at_1=replace(estimate, value=0.68), tpr_at_01=estimate, roc=roc),
        )

    def audits(self, grid, share=0.3, caught=True):
        found = []
        for (what, point), key in self.keys(grid).items():
            if what == "run":
                continue
            controls = what == "controls"
            results = (
                ()
                if controls
                else tuple(
                    self.result(epsilon=point.epsilon, bound=min(share * point.epsilon, 2.4), kind=kind, seed=point.seed)
                    for kind in grid.audits
                )
            )
            broken = (
                tuple(
                    self.result(epsilon=2.0, bound=3.1 if caught else 0.5, arm=arm, seed=point.seed) for arm in ("no-noise", "weak-noise")
                )
                if controls
                else ()
            )
            report = AuditReport(
                plan_digest="0" * 64, seed=point.seed, results=results, controls=broken, notes=("Canaries are pooled over clients.",)
            )
            found.append(
                AuditRow(
                    key=key,
                    what="controls" if controls else "plan",
                    target=None if controls else point.epsilon,
                    seed=point.seed,
                    varied={},
                    kinds=grid.audits,
                    report=report.to_json(),
                    wall_s=9.0,
                    fedsec_version="0.1.0",
                )
            )
        return found


@pytest.fixture(scope="session")
def sweeps():
    """Makes grids, rows and audits of sweeps."""
    return SweepMaker()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A Chromium without a window; use with ``@pytest.mark.needs("chromium")``."""
    spec = importlib.util.spec_from_file_location("report_browser", Path(__file__).with_name("browser.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.Browser(tmp_path_factory.mktemp("profile")) as found:
        yield found
