"""The default sweep that is committed: its rows are whole, the page can be made from them, and its README says what they say."""

import json
import re
import shutil
from pathlib import Path

import pytest

from fedsec.cli.report import write_report
from fedsec.report import sweep_plots
from fedsec.report.sweep_inversion import NO_BETTER, verdict_of

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "default_sweep"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep") / "default"
    shutil.copytree(FOLDER, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep_plots, "plot_all", lambda *_: {})
        return write_report(folder)


def test_the_sweep_is_whole_and_no_claim_is_refuted(report):
    assert report.is_whole
    report.check()
    assert len(report.summary.rows) == 18
    assert len(report.audits.controls) == 9
    assert report.audits.missed == []


def test_every_audited_bound_lies_under_its_claim(report):
    assert report.audits.results
    for found in report.audits.results:
        assert found.result.lower_bound <= found.result.audited.epsilon


def test_updates_in_clear_are_copied_and_under_noise_nothing_is_shown(report):
    """Gradient inversion on the committed sweep: exact without privacy; with it no attack is better than the blind guess of who knows as much."""
    pictures = report.audits.pictures.report
    best = {(line.sees, line.epsilon): line for line in pictures.strongest()}
    assert best["update", float("inf")].mean == 100.0
    assert pictures.mean_gain(best["sum", float("inf")]) > 1.0
    noised = [line for line in pictures.lines if line.sees != "nothing" and line.epsilon <= 8]
    assert len(noised) == 35
    assert {verdict_of(pictures, line) for line in noised} == {NO_BETTER}


def test_the_readme_says_what_the_rows_say(report):
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    told = report.to_json()
    for line in told["frontier"]:
        assert f"{100 * line['accuracy']:.1f} % ± {100 * line['half_width_95']:.1f}" in text, line
    assert json.loads((FOLDER / "manifest.json").read_text())["command"].split(" --")[0] == "fedsec sweep"
    assert not re.search(r"/(root|work|tmp|home)/", (FOLDER / "manifest.json").read_text() + (FOLDER / "rows.jsonl").read_text())
