"""The sweep of Fed-Heart-Disease that is committed: its figures are those of the experiment beside it, run by run and hospital by hospital."""

import json
import shutil
from pathlib import Path

import pytest

from fedsec.cli.report import write_report
from fedsec.data.heart import HOSPITALS
from fedsec.report import sweep_plots

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "heart_disease" / "sweep"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep") / "heart"
    shutil.copytree(FOLDER, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep_plots, "plot_all", lambda *_: {})
        return write_report(folder)


@pytest.fixture(scope="module")
def results():
    return json.loads((FOLDER.parent / "results.json").read_text(encoding="utf-8"))


def test_every_run_is_that_of_the_experiment_to_the_last_digit(report, results):
    rows = {(row["arm"], row["seed"]): row for row in results["rows"]}
    assert len(report.summary.rows) == len(rows) == 40
    for row in report.summary.rows:
        arm = "plain" if row.varied["model.personal"] == "[]" else "personal"
        other = rows[f"{arm}-eps{row.target:g}", row.seed]
        assert row.plan_digest == other["result"]["plan_digest"]
        assert row.epsilon == pytest.approx(
            float(other["result"]["epsilon"]["prv"]), rel=1e-9
        )  # the accountant's last digits are the machine's
        assert [site.name for site in row.sites] == list(HOSPITALS)
        for index, site in enumerate(row.sites):
            assert (site.personal is None) == (arm == "plain")
            found = site.accuracy if site.personal is None else site.personal
            assert found == other["result"]["personal_accuracy"][f"client-{index:04d}"]
            assert site.local == pytest.approx(results["baselines"]["local-only"]["accuracy"][site.name])
            assert site.majority == pytest.approx(results["baselines"]["majority"]["accuracy"][site.name])


def test_both_series_have_the_means_of_the_experiment(report, results):
    summary = report.summary
    assert report.is_whole
    for series in summary.series:
        arm = "plain" if dict(series[0])["model.personal"] == "[]" else "personal"
        for epsilon in summary.grid.epsilons:
            figure, other = summary.figure(series, epsilon), results["summary"][f"{arm}-eps{epsilon:g}"]
            assert figure.mean == pytest.approx(other["mean"], abs=1e-12)
            assert figure.half_width == pytest.approx(other["half_width_95"], rel=1e-6)


def test_the_recommendation_is_better_than_each_hospital_alone(report):
    assert report.recommendation.epsilon == 1.0
    smallest = report.recommendation.verdicts[0]
    assert [check.rule for check in smallest.checks if check.passed is False] == ["better than each site alone"]


def test_the_readme_says_what_the_rows_say(report):
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    for line in report.to_json()["frontier"]:
        assert f"{100 * line['accuracy']:.1f} % ± {100 * line['half_width_95']:.1f}" in text, line
