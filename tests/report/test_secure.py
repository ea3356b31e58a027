"""secagg.csv, the picture and the lines of a run under secure aggregation."""

import csv
from dataclasses import replace

import pytest

from fedsec.report.secure import COLUMNS, plot_secagg, secure_lines, write_secagg_csv
from fedsec.results import CohortRow, RoundRow, SecaggRow


def cohort(number=0, accepted=5, opening="held", **changes):
    fields = {"num_clients": 6, "dropouts": {"sketch": 1}, "reason": "" if opening == "held" else "why", "bytes_up": 10, "bytes_down": 20}
    return CohortRow(cohort=number, num_accepted=accepted, opening=opening, **(fields | changes))


def secagg(*cohorts, **changes):
    return SecaggRow(attempts=1, cohorts=cohorts or (cohort(),), stage_ms={"sketch": 1.5, "opening": 0.5}, **changes)


@pytest.fixture
def result(make_result):
    return make_result(3)


@pytest.fixture
def secure_result(result):
    rows = tuple(replace(row, secagg=secagg(cohort(0), cohort(1, 4))) for row in result.rows)
    return replace(result, rows=rows)


def test_one_line_for_each_round_and_cohort(secure_result, tmp_path):
    write_secagg_csv(tmp_path / "s.csv", secure_result.rows)
    lines = list(csv.reader((tmp_path / "s.csv").open()))
    assert tuple(lines[0]) == COLUMNS
    assert len(lines) == 1 + 2 * len(secure_result.rows)
    line = dict(zip(COLUMNS, lines[2], strict=True))
    assert (line["cohort"], line["num_accepted"], line["opening"], line["dropped_sketch"], line["ms_sketch"]) == (
        "1",
        "4",
        "held",
        "1",
        "1.5",
    )


def test_no_cell_is_a_formula_to_a_spreadsheet(result, tmp_path):
    bad = secagg(cohort(opening="failed", reason="=1+1"), named=(("=cmd", "@x"),), unresolved=("+y",))
    write_secagg_csv(tmp_path / "s.csv", [replace(result.rows[0], secagg=bad)])
    cells = list(csv.reader((tmp_path / "s.csv").open()))[1]
    assert not any(cell.startswith(("=", "+", "@")) for cell in cells)


def test_the_line_at_the_end_says_what_was_opened_and_who_is_named(secure_result):
    assert secure_lines(secure_result)[0][1].endswith("2 cohorts, smallest sum over 4 clients")
    lost = replace(secure_result.rows[0], secagg=secagg(cohort(accepted=0, opening="failed"), named=(("client-0003", "lied"),)))
    lines = secure_lines(replace(secure_result, rows=(lost, *secure_result.rows[1:])))
    assert not lines[0][2]
    assert ("named", "client-0003: lied", False) in lines


def test_a_run_without_secure_aggregation_says_that_the_server_saw_everything(result):
    assert "saw every update" in secure_lines(result)[0][1]


def test_the_picture_is_a_png_and_the_same_run_gives_the_same_bytes(secure_result, tmp_path):
    for name in ("a.png", "b.png"):
        plot_secagg(secure_result, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_rows_survive_json_and_refuse_nonsense(result):
    row = replace(result.rows[0], secagg=secagg(named=(("a", "b"),)))
    assert RoundRow.from_json(row.to_json()) == row
    for changes in ({"opening": "maybe"}, {"num_accepted": -1}, {"dropouts": {"sketch": -1}}, {"bytes_up": -5}):
        with pytest.raises(ValueError, match=r"opening|count"):
            replace(cohort(), **changes)
