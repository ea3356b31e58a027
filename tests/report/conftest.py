"""Sample runs, shaped like real ones."""

import math

import numpy as np
import pytest

from fedsec.report.attack_rows import CellRow
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
