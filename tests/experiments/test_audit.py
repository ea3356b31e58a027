"""The committed results of the audit: every figure that the docs claim is in the file, and the table is the file's."""

import json
from pathlib import Path

import pytest

from experiments.audit import run
from fedsec.privacy.auditing.results import AuditResult

ROWS = json.loads(run.RESULTS.read_text(encoding="utf-8"))["rows"]


def results(part, name=None):
    return [AuditResult.from_json(value) for row in ROWS if row["part"] == part and name in (None, row["name"]) for value in row["results"]]


def test_the_table_of_the_page_is_made_from_the_rows():
    assert run.table_of(ROWS) in (run.HERE / "README.md").read_text(encoding="utf-8")


def test_every_part_was_run_with_three_seeds():
    for part in ("fashion", "digits", "lira"):
        for name in run.audits_of(part):
            assert sorted(row["seed"] for row in ROWS if (row["part"], row["name"]) == (part, name)) == [1, 2, 3]


def test_no_plan_is_refuted_and_every_control_is():
    every = results("fashion") + results("digits") + results("lira")
    assert all(not result.refuted for result in every if result.arm == "plan")
    controls = [result for result in every if result.arm != "plan"]
    assert len(controls) == 18
    assert all(result.refuted for result in controls)
    assert all(result.audited.epsilon <= 2 and not result.no_power for result in controls)


@pytest.mark.parametrize(("name", "epsilon"), [("ε = 1", 1.0), ("ε = 3", 3.0), ("ε = 8", 8.0)])
def test_bounds_on_fashion_mnist_lie_under_the_claim(name, epsilon):
    found = [result for result in results("fashion", name) if result.kind == "one-run"]
    assert len(found) == 3
    for result in found:
        assert result.num_canaries == 1000
        assert result.audited.delta == result.claimed.delta == 1e-5
        assert result.audited.epsilon == pytest.approx(epsilon, rel=2e-3)
        assert result.lower_bound <= epsilon
        if epsilon == 3.0:
            assert result.lower_bound >= 0.15 * epsilon
        if epsilon == 8.0:
            assert result.no_power


def test_the_inversion_figures_hold():
    from experiments.inversion import run as inversion

    content = json.loads(inversion.RESULTS.read_text(encoding="utf-8"))
    rows = content["rows"]

    def mean(model, arm, attack):
        some = [row["psnr"] for row in rows if (row["model"], row["arm"], row["attack"]) == (model, arm, attack)]
        assert len(some) == 30
        return sum(some) / 30

    baseline = mean("–", "nothing seen", "mean picture")
    assert content["epsilon"] == 8.0
    assert mean("linear", "plain", "division") >= 30.0
    assert mean("linear", "DP-SGD", "division") <= baseline
    assert mean("CNN", "DP-SGD", "matching") <= baseline
    assert mean("–", "nothing seen", "mean picture, class known") > baseline + 1.0
    for key in (("linear", "DP-SGD", "prior"), ("linear", "DP-SGD", "prior, class known"), ("linear", "both", "prior")):
        gains = inversion.gains_of(rows, key)  # at the blind guess of the same knowledge: no attack is certainly over it
        assert sum(gains) / 30 - inversion._half(gains) <= 0.0, key
    assert content["sketches"]["no privacy"]["psnr"][-1] >= 30.0
    assert max(content["sketches"]["ε = 8"]["psnr"]) <= content["sketches"]["ε = 8"]["baseline"][0]
    assert inversion.table_of(rows) in Path(inversion.HERE / "README.md").read_text(encoding="utf-8")
