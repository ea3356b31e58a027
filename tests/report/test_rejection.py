"""screening.csv, the pictures and the lines of a run with a rule: complete, safe, and silent about truth that nobody knows."""

import csv
import io
import itertools
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from fedsec.errors import StorageError
from fedsec.report import tables
from fedsec.report.rejection import COLUMNS, MOST_LINES, plot_defence, plot_screening, rejection_lines, write_screening_csv
from fedsec.report.rejection_figures import LABEL_GAP, _apart
from fedsec.results import NamedClient, RejectedClient, RejectionReport, RoundRow, RunResult, ScreeningRow

HOSTILE = ("$\\frac{$", "\x1b[2J\u202e", "=cmd()", "x" * 400, "[bold]a[/bold]", "")


@pytest.fixture(autouse=True)
def _no_warning_from_matplotlib():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def screening(**changes):
    fields = {
        "rule": "screening",
        "mode": "sketch",
        "scores": {"client-1": 0.5, "client-2": 2.5, "client-3": 0.25},
        "rejected": (("client-2", "over the edge along direction 1"),),
        "quarantined": ("client-3",),
        "events": (("client-2", "quarantined for 5 clean rounds"),),
        "suspects": 1,
        "facts": {"edge": 12.5},
        "aggregate_error": 0.25,
        "honest": 2,
    }
    return ScreeningRow(**(fields | changes))


def rejected(client_id="client-2", **changes):
    fields = {"rounds": 3, "first_round": 1, "reasons": ("over the edge along direction 1",), "attacker": True}
    return RejectedClient(client_id=client_id, **(fields | changes))


REPORT = RejectionReport(
    precision=1.0,
    recall=0.975,
    honest_rate=0.003,
    worst_honest_rate=0.05,
    rejected=(rejected(),),
    attackers=("client-2",),
    attack="sign-flip",
    honest_rate_by_skew_decile=(0.0, None, 0.1, *(None,) * 7),
    rounds_to_detection=1.0,
)


@pytest.fixture
def screened(make_row, make_result):
    """``screened(count, report=…, **changes of a screening)``."""

    def make(count=3, *, report=REPORT, **changes):
        rows = tuple(make_row(number, screening=screening(**changes)) for number in range(1, count + 1))
        return make_result(rows=rows, rejection=report)

    return make


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def check_picture(path):
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert 600 <= image.width <= 2400
        assert 200 <= image.height <= 1800
        assert set(image.info) <= {"dpi"}
        grey = np.asarray(image.convert("L")).copy()
    assert all((edge > 250).all() for edge in (grey[0], grey[-1], grey[:, 0], grey[:, -1])), "something is clipped"
    return grey


# --- The file ----------------------------------------------------------------------------------------------------------------------


def test_one_line_for_each_round_and_client(screened, tmp_path):
    write_screening_csv(tmp_path / "s.csv", screened(2).rows)
    lines = read_csv(tmp_path / "s.csv")
    assert tuple(lines[0]) == COLUMNS
    assert [(line["server_round"], line["client_id"], line["accepted"], line["quarantined"]) for line in lines] == [
        (number, client, accepted, quarantined)
        for number in ("1", "2")
        for client, accepted, quarantined in (("client-1", "1", "0"), ("client-2", "0", "0"), ("client-3", "0", "1"))
    ]
    assert lines[1]["score"] == "2.5"
    assert lines[1]["reason"] == "over the edge along direction 1"
    assert lines[1]["event"] == "quarantined for 5 clean rounds"
    assert lines[2]["reason"] == "in quarantine"


def test_nobody_is_accepted_in_a_round_that_failed_and_rounds_without_a_rule_have_no_lines(screened, make_row, tmp_path):
    rows = (make_row(1), *screened(1, failed="6 suspects, and f is 5").rows)
    write_screening_csv(tmp_path / "s.csv", rows)
    assert {line["accepted"] for line in read_csv(tmp_path / "s.csv")} == {"0"}
    write_screening_csv(tmp_path / "s.csv", (make_row(1),))
    assert (tmp_path / "s.csv").read_text() == ",".join(COLUMNS) + "\n"


def test_who_was_named_without_being_judged_has_a_line_for_the_event(screened, tmp_path):
    write_screening_csv(tmp_path / "s.csv", screened(1, events=(("client-9", "excluded"),)).rows)
    line = read_csv(tmp_path / "s.csv")[-1]
    assert (line["client_id"], line["score"], line["accepted"], line["event"]) == ("client-9", "", "", "excluded")


def test_no_cell_is_a_formula_and_no_line_is_torn(screened, tmp_path):
    bad = screened(1, rejected=(("=cmd()", "@x\n1,2"),), events=(("+y", "-z"),), rule="=rule")
    write_screening_csv(tmp_path / "s.csv", bad.rows)
    lines = read_csv(tmp_path / "s.csv")
    assert len(lines) == 5
    assert not any(cell.startswith(("=", "+", "-", "@")) for line in lines for cell in line.values())


def test_rounds_csv_counts_who_was_kept_out(screened, make_row, tmp_path):
    tables.write_rounds_csv(tmp_path / "r.csv", (*screened(1, failed="why").rows, make_row(2)))
    first, second = read_csv(tmp_path / "r.csv")
    assert [first[key] for key in ("num_kept_out", "num_quarantined", "failed_closed")] == ["2", "1", "why"]
    assert [second[key] for key in ("num_kept_out", "num_quarantined", "failed_closed")] == ["", "", ""]


# --- The lines ---------------------------------------------------------------------------------------------------------------------


def printed(result, *, width=160, encoding="utf-8"):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    tables.print_result(result, Console(file=stream, width=width))
    return raw.getvalue().decode(encoding)


def test_the_lines_say_who_when_why_and_how_well(screened):
    lines = rejection_lines(screened())
    assert lines[0] == ("rejection", "1 client rejected at least once (rule screening on sketches)", False)
    assert lines[1][1] == (
        "attack sign-flip by 1 client: precision 100.0%, recall 97.5%, honest updates kept out 0.3%, worst honest client 5.0%, from round 2"
    )
    assert lines[2] == ("rejected", "client-2, attacker: 3 of 3 rounds, first in round 1: over the edge along direction 1", True)
    assert len(lines) == 3
    shown = printed(screened())
    assert "client-2, attacker: 3 of 3 rounds" in shown


def test_the_named_are_named_by_certificate_with_their_evidence(screened):
    named = NamedClient(
        client_id="client-7", round=4, reason="3 entries are not finite", evidence="evidence/client-7.json", certificate="3FA9C0D1E2B3A4"
    )
    report = replace(REPORT, named=(named,), rejected=(rejected(evidence="evidence/e.json"),))
    lines = [text for name, text, _ in rejection_lines(screened(report=report)) if name in ("named", "rejected")]
    assert lines == [
        "client-2, attacker: 3 of 3 rounds, first in round 1: over the edge along direction 1; evidence: evidence/e.json",
        "client-7 (certificate 3FA9C0D1E2B3…), round 4: 3 entries are not finite; evidence: evidence/client-7.json",
    ]


def test_one_line_if_nobody_was_rejected(screened):
    assert rejection_lines(screened(report=RejectionReport(), rejected=(), quarantined=(), mode="open")) == [
        ("rejection", "nobody was rejected (rule screening on updates in clear)", True)
    ]


def test_a_run_without_a_rule_has_no_lines(make_result):
    assert rejection_lines(make_result(3)) == []


def test_a_deployment_claims_no_truth(screened):
    report = RejectionReport(rejected=(rejected(attacker=None),))
    shown = printed(screened(report=report))
    assert "client-2: 3 of 3 rounds" in shown
    assert not any(word in shown for word in ("attacker", "honest", "precision"))


def test_time_in_quarantine_failed_rounds_and_the_runs_beside_it_are_told(screened):
    report = replace(REPORT, rejected=(rejected("client-3", attacker=False),), accuracy_undefended=0.1, accuracy_no_attack=0.9)
    shown = printed(screened(report=report, failed="6 suspects, and f is 5"))
    assert "client-3, honest: 3 of 3 rounds, 3 of them in quarantine" in shown
    assert "3 rounds, model unchanged; last: 6 suspects, and f is 5" in shown
    assert "accuracy undefended 10.0%, accuracy without the attack 90.0%" in shown


def test_most_rejected_first_and_the_rest_in_one_line(screened):
    many = tuple(rejected(f"client-{number:02d}", rounds=1 + number) for number in range(MOST_LINES + 3))
    lines = [text for name, text, _ in rejection_lines(screened(report=replace(REPORT, rejected=many))) if name in ("rejected", "")]
    assert lines[1].startswith("client-10")
    assert lines[-1].startswith("and 3 more")


def test_who_is_named_twice_over_is_told_once(screened):
    from fedsec.results import CohortRow, SecaggRow

    cohort = CohortRow(cohort=0, num_clients=6, num_accepted=5, dropouts={}, opening="held", reason="", bytes_up=1, bytes_down=1)
    secagg = SecaggRow(attempts=1, cohorts=(cohort,), stage_ms={}, named=(("client-7", "sketch lie"), ("client-8", "share lie")))
    named = NamedClient(client_id="client-7", round=1, reason="sketch lie")
    result = screened(report=replace(REPORT, named=(named,)))
    shown = printed(replace(result, rows=tuple(replace(row, secagg=secagg) for row in result.rows)))
    assert shown.count("client-7") == 1
    assert shown.count("client-8") == 1


@pytest.mark.parametrize("width", [20, 60, 200])
@pytest.mark.parametrize("evil", HOSTILE)
def test_hostile_text_neither_acts_nor_is_markup(screened, width, evil):
    report = replace(
        REPORT,
        rejected=(rejected(evil, reasons=(evil,), evidence=evil),),
        named=(NamedClient(client_id=evil, round=1, reason=evil, evidence=evil),),
        attack=evil,
    )
    result = screened(report=report, rule=evil, failed=evil)
    shown = printed(result, width=width)
    assert not set(shown) & {"\x1b", "\x07", "\u202e"}
    assert max(map(len, shown.splitlines())) <= width
    assert ("[bold]a[/bold]" in printed(result)) == (evil == "[bold]a[/bold]")
    printed(result, encoding="ascii")


# --- The pictures ------------------------------------------------------------------------------------------------------------------


def many(make_row, make_result, clients, rounds, *, attackers=(), deciles=(), absent=0.1, seed=0):
    rng = np.random.default_rng(seed)
    names = [f"client-{number:04d}" for number in range(clients)]
    rows = []
    for number in range(1, rounds + 1):
        values = rng.gamma(2.0, 0.3, clients) + 2.0 * np.isin(names, attackers)
        scores = {name: float(value) for name, value in zip(names, values, strict=True) if rng.random() >= absent}
        over = tuple((name, "over the edge") for name, value in scores.items() if value >= 1)
        rows.append(make_row(number, screening=screening(scores=scores, rejected=over, quarantined=tuple(names[:1]), events=())))
    report = RejectionReport(attackers=tuple(attackers), honest_rate_by_skew_decile=deciles, honest_rate=0.04)
    return make_result(rows=tuple(rows), rejection=report)


@pytest.mark.parametrize(("clients", "rounds"), [(1, 1), (20, 20), (40, 3), (41, 120), (300, 60)])
@pytest.mark.parametrize("deciles", [(), (0.1, None, 0.0, 0.3, None, None, 0.0, 0.0, 0.0, 1.0)], ids=["", "skew"])
def test_scores_of_any_size_are_drawn_and_nothing_is_clipped(make_row, make_result, tmp_path, clients, rounds, deciles):
    result = many(make_row, make_result, clients, rounds, attackers=["client-0000"], deciles=deciles)
    plot_screening(result, tmp_path / "s.png")
    check_picture(tmp_path / "s.png")


def test_the_picture_shows_scores_attackers_and_rejections(screened, tmp_path):
    pictures = {}
    for name, result in {
        "usual": screened(),
        "again": screened(),
        "other scores": screened(scores={"client-1": 0.9, "client-2": 2.5, "client-3": 0.25}),
        "not rejected": screened(rejected=()),
        "not quarantined": screened(quarantined=()),
        "truth unknown": screened(report=replace(REPORT, attackers=())),
        "no skew": screened(report=replace(REPORT, honest_rate_by_skew_decile=())),
    }.items():
        plot_screening(result, tmp_path / "s.png")
        pictures[name] = (tmp_path / "s.png").read_bytes()
    assert pictures["usual"] == pictures["again"]
    assert len(set(pictures.values())) == len(pictures) - 1


def test_attackers_stand_on_top(screened, tmp_path):
    scores = {f"client-{number}": 0.0 for number in range(9)} | {"client-9": 5.0}
    report = RejectionReport(attackers=("client-9",))
    plot_screening(screened(scores=scores, rejected=(), quarantined=(), report=report), tmp_path / "s.png")
    with Image.open(tmp_path / "s.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    left = pixels[:, : pixels.shape[1] // 2]  # the colour bar is on the right
    rows = np.flatnonzero((np.abs(left - (0xC2, 0x4E, 0x00)).sum(axis=2) < 3).sum(axis=1) > 100)
    assert rows.size
    assert rows.max() < pixels.shape[0] / 3


def test_runs_without_anything_to_draw(make_result, screened, tmp_path):
    for result in (make_result(3), make_result(0), screened(scores={}, rejected=(), quarantined=(), events=())):
        plot_screening(result, tmp_path / "s.png")
        check_picture(tmp_path / "s.png")


def test_rounds_without_a_rule_and_infinite_scores_leave_a_picture(make_row, make_result, tmp_path):
    rows = (
        make_row(1),
        make_row(2, screening=screening(scores={"a": math.inf, "b": 0.0})),
        make_row(3),
        make_row(4, screening=screening()),
    )
    plot_screening(make_result(rows=rows), tmp_path / "s.png")
    check_picture(tmp_path / "s.png")


def test_hostile_names_are_drawn_as_text(screened, tmp_path):
    scores = {name: 0.1 * place for place, name in enumerate(HOSTILE)}
    report = replace(REPORT, attackers=HOSTILE[:4], attack=HOSTILE[0] + HOSTILE[3])
    result = replace(screened(scores=scores, rejected=(), quarantined=(), report=report), plan_name=HOSTILE[0] + HOSTILE[3])
    plot_screening(result, tmp_path / "s.png")
    check_picture(tmp_path / "s.png")
    plot_defence({"defended": result}, tmp_path / "d.png")
    check_picture(tmp_path / "d.png")


def runs_of(screened, make_result, make_row):
    flat = make_result(rows=tuple(make_row(number, accuracy=0.1) for number in range(1, 4)))
    return {"defended": screened(), "undefended": flat, "no-attack": make_result(5)}


def test_the_defence_is_drawn_with_its_numbers_beside_it(screened, make_result, make_row, tmp_path):
    runs = runs_of(screened, make_result, make_row)
    plot_defence(runs, tmp_path / "d.png")
    check_picture(tmp_path / "d.png")
    lines = read_csv(tmp_path / "d.csv")
    assert list(lines[0]) == ["server_round", "no-attack", "defended", "undefended"]
    assert [line["no-attack"] for line in lines] == [repr(row.accuracy) for row in runs["no-attack"].rows]
    assert [line["undefended"] for line in lines] == ["0.1", "0.1", "0.1", "", ""]
    first = (tmp_path / "d.png").read_bytes()
    plot_defence(dict(reversed(runs.items())), tmp_path / "d.png")
    assert (tmp_path / "d.png").read_bytes() == first


def test_the_defence_alone_diverged_or_without_rounds(screened, make_result, make_row, tmp_path):
    diverged = make_result(rows=(make_row(1, accuracy=math.nan),))
    for runs in ({"defended": screened()}, {"defended": screened(), "undefended": diverged}, {"defended": make_result(0)}):
        plot_defence(runs, tmp_path / "d.png")
        check_picture(tmp_path / "d.png")
    with pytest.raises(ValueError, match="defended"):
        plot_defence({"no-attack": screened()}, tmp_path / "d.png")
    with pytest.raises(StorageError):
        plot_defence({"defended": screened()}, tmp_path / "none" / "d.png")


@pytest.mark.parametrize("heights", [[], [0.9], [0.9, 0.91, 0.89], [1.0, 1.0, 1.0], [0.0, 0.0, 0.5], [0.1, 0.9, 0.1]])
def test_labels_stand_apart_and_inside(heights):
    placed = sorted(_apart(heights))
    assert all(upper - lower >= LABEL_GAP - 1e-9 for lower, upper in itertools.pairwise(placed))
    assert all(0 <= height <= 1 + 1e-9 for height in placed)
    assert all(abs(one - other) < 3 * LABEL_GAP for one, other in zip(placed, sorted(heights), strict=True))


# --- The records -------------------------------------------------------------------------------------------------------------------


def test_records_survive_json(screened):
    named = (NamedClient(client_id="client-7", round=4, reason="lied", evidence="evidence/e.json"),)
    result = screened(report=replace(REPORT, named=named, attack_success=0.25, accuracy_no_attack=math.nan))
    again = RunResult.from_json(result.to_json())
    assert again.rows == result.rows
    assert again.to_json() == result.to_json()
    assert again.rejection.named == named
    assert {"precision", "recall", "honest_rate", "rejected", "named"} <= result.to_json()["rejection"].keys()


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": "blind"},
        {"scores": {"client-1": math.nan}},
        {"suspects": -1},
        {"honest": -1},
        {"aggregate_error": math.nan},
        {"aggregate_error": -0.5},
    ],
)
def test_screening_refuses_impossible_numbers(changes):
    with pytest.raises(ValueError):
        screening(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": 1.5},
        {"recall": math.nan},
        {"attack_success": -0.1},
        {"honest_rate_by_skew_decile": (0.0,) * 9},
        {"honest_rate_by_skew_decile": (math.nan,) * 10},
        {"rounds_to_detection": 0.5},
        {"rounds_to_quarantine": math.inf},
        {"undetected": -1},
        {"false_named": -1},
        {"from_round": 0},
        {"accuracy_undefended": 2.0},
    ],
)
def test_report_refuses_impossible_numbers(changes):
    with pytest.raises(ValueError):
        replace(REPORT, **changes)


def test_clients_of_a_report_were_rejected_in_a_round():
    for changes in ({"rounds": 0}, {"first_round": 0}):
        with pytest.raises(ValueError):
            rejected(**changes)
    with pytest.raises(ValueError):
        NamedClient(client_id="a", round=0, reason="b")


def test_a_rejection_says_more_than_quarantine():
    row = screening(quarantined=("client-2", "client-3"))
    assert row.kept_out == {"client-2": "over the edge along direction 1", "client-3": "in quarantine"}


def test_rows_without_a_rule_say_so(make_row):
    assert RoundRow.from_json(make_row(1).to_json()).screening is None
