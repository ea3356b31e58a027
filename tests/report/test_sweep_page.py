"""The page about a sweep: every number comes from a row, a part never passes for the whole, nothing hostile acts, and what it recommends follows from its rules."""

import csv
import json
import math
import re
from dataclasses import replace

import pytest

from fedsec.errors import AuditError, ConfigError, DecodeError, PrivacyClaimRefuted, StorageError
from fedsec.plan.arms import layer_arms
from fedsec.report.sweep_audit import gather
from fedsec.report.sweep_folder import make_sweep_folder, open_sweep_folder
from fedsec.report.sweep_page import SweepFacts, render_sweep
from fedsec.report.sweep_plots import plot_all
from fedsec.report.sweep_rows import AuditRow, UtilityRow
from fedsec.report.sweep_summary import summarise_sweep
from fedsec.report.sweep_verdict import best_guess, recommend

MANIFEST = {
    "command": "fedsec sweep --epsilon 1,8,inf --seeds 3",
    "commit": "c0ffee",
    "records": {"largest_client": 128, "smallest_client": 30},
}


def page_of(sweeps, grid, rows, audits=(), failures=(), plots=None, plan=None, manifest=MANIFEST):
    keys = sweeps.keys(grid)
    summary = summarise_sweep(
        grid,
        rows,
        audits,
        keys=[k for (what, _), k in keys.items() if what == "run"],
        audit_keys=[k for (what, _), k in keys.items() if what != "run"],
    )
    found = gather(summary.audits)
    verdict = recommend(summary, found)
    facts = SweepFacts(plan=plan or sweeps.plan, manifest=manifest, failures=failures, plots=plots or {})
    return render_sweep(summary, found, verdict, facts), verdict, summary


def words_of(html):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html.partition("<body>")[2]))


# --- Numbers and rows -----------------------------------------------------------------------------------------------------------


def test_every_row_is_an_anchor_and_every_link_leads_to_one(sweeps):
    grid = sweeps.grid(audits=("one-run",))
    rows, audits = sweeps.rows(grid), sweeps.audits(grid)
    html, _, _ = page_of(sweeps, grid, rows, audits)
    anchors = set(re.findall(r'id="r-([0-9a-f]+)"', html))
    links = set(re.findall(r'href="#r-([0-9a-f]+)"', html))
    assert anchors == {row.digest[:10] for row in (*rows, *audits)}
    assert links
    assert links <= anchors


def test_the_frontier_shows_mean_interval_seeds_and_cost_of_the_rows(sweeps):
    grid = sweeps.grid()
    html, _, summary = page_of(sweeps, grid, sweeps.rows(grid))
    words = words_of(html)
    assert "80.0% ± 1.0" in words  # .796 .800 .804, t = 4.303
    assert "79.6%, 80.0%, 80.4%" in words
    assert summary.price(summary.main, 1.0).mean == pytest.approx(0.14)
    assert "14.0 points" in words


def test_the_first_page_answers_the_five_questions_in_order(sweeps):
    grid = sweeps.grid(audits=("one-run",))
    words = words_of(page_of(sweeps, grid, sweeps.rows(grid), sweeps.audits(grid))[0])
    heads = [
        "What is protected",
        "Against whom",
        "What ε means here",
        "What it costs",
        "Who pays",
        "What attacks reached",
        "What we recommend",
    ]
    places = [words.index(head) for head in heads]
    assert places == sorted(places)
    assert "73.2" in words  # best guess at ε = 1 and δ = 1e-3, rounded up
    assert f"{100 * best_guess(1.0, 1e-3):.3f}".startswith("73.1")


# --- Recommendation -------------------------------------------------------------------------------------------------------------


def test_the_smallest_epsilon_that_passes_every_rule_is_recommended(sweeps):
    grid = sweeps.grid(epsilons=(1.0, 4.0, 8.0, math.inf))
    html, verdict, _ = page_of(sweeps, grid, sweeps.rows(grid))
    assert verdict.epsilon == 8.0  # at 4 the class "two" loses .06 + .13, and the whole .06
    assert "ε = 4 would protect more, but fails: costs at most 5.0 points (6.0 points)" in words_of(html)
    cheap = [replace(row, accuracy=0.93, recall=(0.93, 0.9, 0.9)) if row.target == 4.0 else row for row in sweeps.rows(grid)]
    assert page_of(sweeps, grid, cheap)[1].epsilon == 4.0


def test_a_class_that_pays_too_much_stops_the_recommendation(sweeps):
    grid = sweeps.grid()
    rows = [replace(row, recall=(0.9, 0.9, 0.5)) if row.target == 8.0 else row for row in sweeps.rows(grid)]
    html, verdict, _ = page_of(sweeps, grid, rows)
    assert verdict.epsilon is None
    assert "no class loses over 20.0 points (class two: 42.0 points)" in words_of(html)


def test_a_model_no_better_than_the_commonest_class_is_never_recommended(sweeps):
    grid = sweeps.grid()
    rows = [replace(row, majority_accuracy=0.95) for row in sweeps.rows(grid)]
    assert page_of(sweeps, grid, rows)[1].epsilon is None


@pytest.mark.parametrize(
    ("grid_of", "words"),
    [
        ({"seeds": 2}, "it takes 3 seeds to tell a result from chance, and this sweep has 2"),
        ({"epsilons": (1.0, 8.0)}, "there is no run without privacy to measure the cost from"),
    ],
)
def test_without_grounds_there_is_no_recommendation(sweeps, grid_of, words):
    grid = sweeps.grid(**grid_of)
    html, verdict, _ = page_of(sweeps, grid, sweeps.rows(grid))
    assert verdict.epsilon is None
    assert words in words_of(html)


def test_one_seed_has_no_interval_and_the_page_says_why(sweeps):
    grid = sweeps.grid(seeds=1)
    words = words_of(page_of(sweeps, grid, sweeps.rows(grid))[0])
    assert "No interval is given: it takes 3 seeds, and this sweep has 1" in words
    assert "±" not in words.partition("Assumptions")[0]


# --- Parts --------------------------------------------------------------------------------------------------------------------


def test_a_part_never_passes_for_the_whole(sweeps):
    grid = sweeps.grid()
    rows = sweeps.rows(grid)
    html, verdict, _ = page_of(sweeps, grid, rows[:-1], failures=[("no privacy, seed 3", "exit code 7: no memory")])
    words = words_of(html)
    assert words.strip().startswith("The price of privacy: digits, 20 clients PARTIAL REPORT: 1 of 9 runs are missing (1 failed).")
    assert "<title>PARTIAL: " in html
    assert verdict.epsilon is None
    assert "no memory" in words
    assert "1 of 9 runs no privacy, seed 3" in words
    assert "PARTIAL" not in page_of(sweeps, grid, rows)[0]


def test_a_missing_seed_takes_the_interval(sweeps):
    grid = sweeps.grid()
    _, _, summary = page_of(sweeps, grid, sweeps.rows(grid)[:-1])
    assert summary.figure(summary.main, math.inf).half_width is None
    assert summary.figure(summary.main, 1.0).half_width is not None


def test_missing_audits_make_the_report_partial_too(sweeps):
    grid = sweeps.grid(audits=("one-run",))
    html, verdict, _ = page_of(sweeps, grid, sweeps.rows(grid), sweeps.audits(grid)[:-2])
    assert "PARTIAL REPORT: all runs ended, 2 audits missing" in html
    assert verdict.epsilon is None


def test_a_sweep_of_which_nothing_ended_says_only_that(sweeps):
    html, _, _ = page_of(sweeps, sweeps.grid(), [])
    assert "No run has ended yet" in html
    assert "What it costs" not in html


def test_a_diverged_run_counts_as_nothing_right(sweeps):
    grid = sweeps.grid()
    rows = [replace(row, accuracy=math.nan) if (row.target, row.seed) == (1.0, 1) else row for row in sweeps.rows(grid)]
    html, _, summary = page_of(sweeps, grid, rows)
    assert summary.figure(summary.main, 1.0).values == (0.0, 0.8, 0.804)
    assert "1 diverged" in html


def test_rows_of_other_sweeps_are_left_out_and_counted(sweeps):
    small, large = sweeps.grid(epsilons=(8.0, math.inf)), sweeps.grid()
    html, _, summary = page_of(sweeps, small, sweeps.rows(large))
    assert len(summary.rows) == 6
    assert "3 rows of other sweeps" in html


# --- Audits ---------------------------------------------------------------------------------------------------------------------


def test_audits_are_shown_with_what_they_cannot_show(sweeps):
    grid = sweeps.grid(audits=("one-run",))
    words = words_of(page_of(sweeps, grid, sweeps.rows(grid), sweeps.audits(grid))[0])
    assert "The same attacks caught all 6 systems that we broke on purpose" in words
    assert "At ε = 8 no attack of this kind could have shown a fault" in words  # a perfect guesser reaches 5.4
    assert "no promise was refuted" in words


def test_a_refuted_claim_is_said_first_of_all_and_ends_the_command(sweeps):
    grid = sweeps.grid(audits=("one-run",))
    audits = sweeps.audits(grid, share=1.5)
    html, verdict, _ = page_of(sweeps, grid, sweeps.rows(grid), audits)
    assert verdict.epsilon is None
    assert "REFUTED: an attack shows that ε is at least 1.50 where 1.00 was claimed" in words_of(html)
    with pytest.raises(PrivacyClaimRefuted):
        gather(audits).check()


def test_a_blind_audit_is_no_evidence(sweeps):
    grid = sweeps.grid(audits=("one-run",))
    audits = sweeps.audits(grid, caught=False)
    html, verdict, _ = page_of(sweeps, grid, sweeps.rows(grid), audits)
    assert "The audit is blind" in html
    assert verdict.epsilon is None
    with pytest.raises(AuditError):
        gather(audits).check()


def test_an_audit_whose_verdict_was_changed_is_refused(sweeps):
    grid = sweeps.grid(audits=("one-run",))
    row = sweeps.audits(grid)[-1]
    report = json.loads(json.dumps(row.report))
    report["results"][0]["lower_bound"] = 99.0
    with pytest.raises(StorageError, match="is damaged"):
        gather([replace(row, report=report)])


def test_each_attack_has_its_curve_and_one_that_sees_nothing_without_privacy_is_called_blind(sweeps, tmp_path):
    """The attack on the loss tosses a coin even where nothing is protected; shadow models tell members there."""
    grid = sweeps.grid(audits=("one-run", "loss-threshold", "lira"))
    rows, audits = sweeps.rows(grid), []
    for row in sweeps.audits(grid):
        report = json.loads(json.dumps(row.report))
        for result in report["results"]:
            if result["kind"] == "loss-threshold":
                result["membership"]["auc"] = {"value": 0.5, "low": 0.46, "high": 0.54}
        audits.append(replace(row, report=report))
    html, _, summary = page_of(sweeps, grid, rows, audits)
    words = words_of(html)
    assert "loss-threshold, its control: without privacy it tells members from others in 0 of 3 runs (AUC 0.50 to 0.50" in words
    assert "it is blind here, and that it finds little under privacy says little" in words
    assert "lira, its control: without privacy it tells members from others in 3 of 3 runs" in words
    assert words.count("blind here") == 1
    found = gather(summary.audits)
    plot = plot_all(summary, found, sweeps.plan, tmp_path)["roc"]
    for kind in grid.audits:
        assert f"How well members are told from others: {kind}" in plot.svg
    kinds = {line["kind"] for line in csv.DictReader((tmp_path / "roc.csv").open())}
    assert kinds == set(grid.audits)


def test_without_a_run_without_privacy_nobody_knows_what_an_attack_on_the_model_sees(sweeps):
    grid = sweeps.grid(epsilons=(1.0, 8.0), audits=("lira",))
    words = words_of(page_of(sweeps, grid, sweeps.rows(grid), sweeps.audits(grid))[0])
    assert "lira was not run on a training without privacy" in words


# --- Sites ----------------------------------------------------------------------------------------------------------------------


def test_clients_that_each_seed_deals_anew_are_not_averaged_by_number(sweeps):
    grid = sweeps.grid()
    html, _, summary = page_of(sweeps, grid, sweeps.rows(grid))
    assert [part.name for part in summary.sites()][:3] == ["worst-off site of each run", "middle site", "best-off site"]
    assert "Each seed deals the records anew" in html


def test_hospitals_are_the_same_in_every_seed_and_stand_by_name(sweeps):
    grid = sweeps.grid()
    rows = [
        replace(row, sites=tuple(replace(site, name=f"H{i}", train=50) for i, site in enumerate(row.sites))) for row in sweeps.rows(grid)
    ]
    _, _, summary = page_of(sweeps, grid, rows)
    assert [part.name for part in summary.sites()] == [f"H{i}" for i in range(8)]
    loss = summary.hardest_hit(1.0)
    assert loss.values == pytest.approx((0.14, 0.14, 0.14))


def test_personal_parameters_make_the_mean_of_the_sites_the_figure_of_merit(sweeps):
    grid = sweeps.grid()
    rows = [replace(row, sites=tuple(replace(site, personal=0.5) for site in row.sites)) for row in sweeps.rows(grid)]
    html, _, summary = page_of(sweeps, grid, rows)
    assert summary.figure(summary.main, 8.0).mean == 0.5
    assert summary.majority.mean == pytest.approx(0.2)
    assert "commonest class of each site" in html


def test_what_each_site_reaches_alone_stands_beside_the_federation(sweeps):
    grid = sweeps.grid()
    rows = [replace(row, sites=tuple(replace(site, local=0.83) for site in row.sites)) for row in sweeps.rows(grid)]
    words = words_of(page_of(sweeps, grid, rows)[0])
    assert "Each site alone, with a model of its own records, no privacy and nothing sent, reaches 83.0% on average." in words
    assert "each site alone" not in page_of(sweeps, grid, sweeps.rows(grid))[0]


def test_a_federation_that_is_no_better_than_each_site_alone_is_not_recommended(sweeps):
    """Three hospitals reach 85 % each by themselves: what ε = 1 reaches (80 %) is not worth its price, however little privacy costs."""
    grid = sweeps.grid()

    def alone(local):
        cheap = {1.0: 0.80, 8.0: 0.84, math.inf: 0.84}
        return [
            replace(row, accuracy=cheap[row.target], recall=(0.8, 0.8, 0.8), sites=tuple(replace(site, local=local) for site in row.sites))
            for row in sweeps.rows(grid)
        ]

    assert page_of(sweeps, grid, alone(0.7))[1].epsilon == 1.0
    html, verdict, _ = page_of(sweeps, grid, alone(0.82))
    assert verdict.epsilon == 8.0
    assert "better than each site alone (at least 80.0% against 82.0%)" in words_of(html)
    assert page_of(sweeps, grid, alone(0.85))[1].epsilon is None


def test_a_series_without_personal_parameters_beside_one_with_them_is_measured_alike(sweeps):
    """One intercept for all beside intercepts of their own: each hospital counts the same in both, and each has its line in both."""
    grid = sweeps.grid(varied=(("model.personal", ('["bias"]', "[]")),))
    rows = []
    for row in sweeps.rows(grid):
        own = row.varied["model.personal"] != "[]"
        sites = tuple(
            replace(site, name=f"H{i}", train=50, accuracy=0.6 + 0.01 * i, personal=0.8 if own else None)
            for i, site in enumerate(row.sites)
        )
        rows.append(replace(row, sites=sites))
    html, _, summary = page_of(sweeps, grid, rows)
    own, shared = summary.series
    assert summary.figure(own, 8.0).mean == pytest.approx(0.8)
    assert summary.figure(shared, 8.0).mean == pytest.approx(0.635)  # mean of .60 to .67, and not the share of all test records
    tables = html.partition('id="sites"')[2].partition('id="audits"')[0]
    assert tables.count(">H3</th>") == 2
    assert "63.0%" in tables


# --- Hostile words, and the page itself -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", ["<script>alert(1)</script>", "\x1b[2J", "\u202egnp.exe", '"><img src=x onerror=alert(1)>', "{{ 7*7 }}"])
def test_hostile_words_show_and_never_act(sweeps, tmp_path, words):
    grid = sweeps.grid()
    rows = [replace(row, class_names=(words, "one", "two")) for row in sweeps.rows(grid)]
    plan = sweeps.plan.model_copy(update={"name": words})
    keys = [key for (what, _), key in sweeps.keys(grid).items() if what == "run"]
    plots = plot_all(summarise_sweep(grid, rows, (), keys=keys), gather(()), plan, tmp_path)
    html, _, _ = page_of(sweeps, grid, rows, failures=[(words, words)], plots=plots, plan=plan, manifest={"command": words})
    assert "<script" not in html
    assert "<img" not in html
    assert "\x1b" not in html
    assert "\u202e" not in html


def test_the_page_asks_nothing_of_the_network_and_has_no_script(sweeps, tmp_path):
    grid = sweeps.grid()
    rows = sweeps.rows(grid)
    summary = page_of(sweeps, grid, rows)[2]
    html = page_of(sweeps, grid, rows, plots=plot_all(summary, gather(()), sweeps.plan, tmp_path))[0]
    assert "default-src 'none'" in html
    assert not re.findall(r'(?:src|href)="(?!#|data:|\w+\.(?:png|csv)")', re.sub(r'xlink:href="#[^"]*"', "", html))
    assert "<script" not in html
    for address in re.findall(r"https?://[^\s\"'<]+", html):
        assert address.startswith("http://www.w3.org/")  # names of SVG, asked for by nobody


def test_two_pictures_share_no_identifier_and_the_same_rows_give_the_same_bytes(sweeps, tmp_path):
    grid = sweeps.grid(audits=("one-run",))
    rows, audits = sweeps.rows(grid), sweeps.audits(grid)
    summary = page_of(sweeps, grid, rows, audits)[2]
    plots = plot_all(summary, gather(audits), sweeps.plan, tmp_path)
    assert set(plots) == {"frontier", "classes", "sites", "epsilon_rounds", "audit", "roc"}
    found = [name for plot in plots.values() for name in re.findall(r'\bid="([^"]+)"', plot.svg)]
    assert len(found) == len(set(found))
    again = plot_all(summary, gather(audits), sweeps.plan, tmp_path)
    assert {name: plot.svg for name, plot in again.items()} == {name: plot.svg for name, plot in plots.items()}
    for name in plots:
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert len(list(csv.reader((tmp_path / f"{name}.csv").open()))) > 1


def test_an_ablation_over_layers_says_which_arm_protects_nothing(sweeps, tmp_path):
    plan = sweeps.plan.model_copy(update={"model": sweeps.plan.model.model_copy(update={"name": "mlp", "hidden": (16, 8)})})
    maker = type(sweeps)()
    maker.plan = plan
    grid = maker.grid(epsilons=(1.0, math.inf), arms=layer_arms(plan))
    rows = maker.rows(grid)
    summary = page_of(maker, grid, rows, plan=plan)[2]
    plots = plot_all(summary, gather(()), plan, tmp_path)
    assert "layers" in plots
    words = words_of(page_of(maker, grid, rows, plots=plots, plan=plan)[0])
    assert "noise in hidden1 alone protects nothing" in words
    assert "only output trains" in words


# --- Rows on disk ---------------------------------------------------------------------------------------------------------------


def test_rows_survive_their_file_and_an_edited_one_is_noticed(sweeps):
    grid = sweeps.grid(audits=("one-run",))
    for cls, row in ((UtilityRow, sweeps.rows(grid)[0]), (AuditRow, sweeps.audits(grid)[-1])):
        written = json.loads(json.dumps(row.to_json(), allow_nan=False))
        assert cls.from_json(written) == row
        for key, value in (("accuracy", 0.99), ("seed", 9), ("wall_s", 1.0)):
            if key in written:
                with pytest.raises(DecodeError, match="was edited"):
                    cls.from_json({**written, key: value})
        with pytest.raises(DecodeError, match="has no digest"):
            cls.from_json({key: value for key, value in written.items() if key != "digest"})


def test_a_folder_keeps_rows_over_a_torn_line_and_refuses_a_damaged_one(sweeps, tmp_path):
    grid = sweeps.grid()
    folder = make_sweep_folder(tmp_path / "sweep", sweeps.plan, grid)
    first, second, *_ = sweeps.rows(grid)
    folder.append(first)
    with (folder.path / "rows.jsonl").open("ab") as file:
        file.write(b'{"key": "torn')  # what a kill in the middle of a line leaves
    assert list(folder.rows()) == [first.key]
    folder.append(second)
    assert list(folder.rows().values()) == [first, second]
    text = (folder.path / "rows.jsonl").read_text().replace('"seed": 1', '"seed": 7', 1)
    (folder.path / "rows.jsonl").write_text(text)
    with pytest.raises(StorageError, match=r"line 1 is damaged \(row was edited"):
        folder.rows()


def test_a_folder_of_another_plan_or_with_other_files_is_refused(sweeps, tmp_path):
    grid = sweeps.grid()
    make_sweep_folder(tmp_path / "sweep", sweeps.plan, grid)
    other = sweeps.plan.model_copy(update={"training": sweeps.plan.training.model_copy(update={"steps": 2})})
    with pytest.raises(ConfigError, match="was made with another plan"):
        make_sweep_folder(tmp_path / "sweep", other, grid)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="holds no sweep"):
        make_sweep_folder(tmp_path / "mine", sweeps.plan, grid, fresh=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()
    with pytest.raises(ConfigError, match="holds no sweep"):
        open_sweep_folder(tmp_path / "nowhere")


def test_an_edited_plan_is_noticed(sweeps, tmp_path):
    folder = make_sweep_folder(tmp_path / "sweep", sweeps.plan, sweeps.grid())
    assert folder.plan() == sweeps.plan
    text = folder.plan_file.read_text().replace("rounds = 20", "rounds = 2")
    folder.plan_file.write_text(text)
    with pytest.raises(ConfigError, match="is not the plan that the sweep was made with"):
        folder.plan()


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"format": "other"}', '{"format": "fedsec/sweep/v1", "digest": "x", "grid": {}}'])
def test_a_damaged_marker_is_named(sweeps, tmp_path, content):
    folder = make_sweep_folder(tmp_path / "sweep", sweeps.plan, sweeps.grid())
    (folder.path / "sweep.json").write_text(content)
    with pytest.raises(StorageError, match=r"sweep.json is damaged"):
        open_sweep_folder(folder.path)


def test_a_full_disk_leaves_whole_rows_and_says_so(sweeps, tmp_path, monkeypatch):
    import os

    grid = sweeps.grid()
    folder = make_sweep_folder(tmp_path / "sweep", sweeps.plan, grid)
    first, second, *_ = sweeps.rows(grid)
    folder.append(first)
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, offset: real(descriptor, data[:100], offset))
    with pytest.raises(StorageError, match=r"no room for a whole line; the rows before it are whole"):
        folder.append(second)
    monkeypatch.undo()
    assert list(folder.rows().values()) == [first]
    assert (folder.path / "rows.jsonl").read_bytes().endswith(b"\n")


def test_only_real_pictures_of_a_sane_size_come_into_the_page(tmp_path):
    from fedsec.report.sweep_pictures import MOST_BYTES, MOST_PICTURES, pictures_in

    assert pictures_in(tmp_path) == []
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(MOST_PICTURES + 3):
        (folder / f"b{number:02d}.png").write_bytes(b"\x89PNG\r\n\x1a\n rest")
    (folder / "a-fake.png").write_text("<svg onload=alert(1)>")
    (folder / "a-huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(MOST_BYTES))
    (folder / "captions.json").write_text('{"b00": "what was sent, and what came back"}')
    found = pictures_in(tmp_path)
    assert {picture.name[0] for picture in found} == {"b"}
    assert len(found) <= MOST_PICTURES
    assert found[0].caption == "what was sent, and what came back"
    (folder / "captions.json").write_text("[1, 2")
    assert pictures_in(tmp_path)[0].caption == "b00"


@pytest.mark.parametrize("name", ["failures.json", "manifest.json"])
@pytest.mark.parametrize("content", ["{", "3", '[{"name": 1}]'])
def test_damaged_notes_of_a_folder_are_named(sweeps, tmp_path, name, content):
    folder = make_sweep_folder(tmp_path / "sweep", sweeps.plan, sweeps.grid())
    (folder.path / name).write_text(content)
    with pytest.raises(StorageError, match=f"{name} is damaged"):
        folder.failures() if name.startswith("fail") else folder.manifest()


def test_varied_settings_are_series_of_one_frontier(sweeps, tmp_path):
    grid = sweeps.grid(varied=(("training.steps", ("1", "3")),))
    rows = [replace(row, accuracy=row.accuracy - 0.05) if row.varied["training.steps"] == "3" else row for row in sweeps.rows(grid)]
    html, verdict, summary = page_of(sweeps, grid, rows)
    assert verdict.epsilon == 8.0  # of the first choice, which the first page is about
    assert "training.steps=3" in words_of(html)
    assert summary.figure(summary.series[1], 8.0).mean == pytest.approx(0.85)
    plots = plot_all(summary, gather(()), sweeps.plan, tmp_path)
    assert "training.steps=1" in plots["frontier"].svg
    assert len(list(csv.reader((tmp_path / "frontier.csv").open()))) == 1 + 6 + 1
