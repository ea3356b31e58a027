"""Files and tables of a run: stable, strict, safe to open and to print."""

import csv
import io
import json
import math

import pytest
from rich.console import Console

from fedsec.errors import DecodeError, StorageError
from fedsec.report import tables


def printed(show, *, width=100, encoding="utf-8"):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    show(Console(file=stream, width=width))
    return raw.getvalue().decode(encoding)


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def test_rounds_csv_has_one_line_for_each_round_and_every_digit(tmp_path, make_row):
    rows = [make_row(1, site_accuracy={"Cleveland": 0.8125}), make_row(2)]
    tables.write_rounds_csv(tmp_path / "rounds.csv", rows)
    first, second = read_csv(tmp_path / "rounds.csv")
    assert tuple(first) == tables.ROUND_COLUMNS
    assert float(second["accuracy"]) == rows[1].accuracy
    assert first["recall"] == "0.9 n/a 0.5"
    assert (first["recall_worst"], first["num_rejected"], first["rejected"]) == ("0.5", "1", "client-7: not finite")
    assert first["site_accuracy"] == "Cleveland: 0.8125"


def test_rounds_csv_of_no_rounds_is_its_header(tmp_path):
    tables.write_rounds_csv(tmp_path / "rounds.csv", [])
    assert (tmp_path / "rounds.csv").read_text() == ",".join(tables.ROUND_COLUMNS) + "\n"


def test_rounds_csv_keeps_its_shape_whatever_clients_call_themselves(tmp_path, make_row):
    names = ['=cmd("calc")', '@x"\n1,2', "\x1b[2J", "a;=1", "\u202eevil", "-" * 5000]
    row = make_row(1, rejected=tuple((name, "+bad") for name in names), site_accuracy={"=site": 0.5})
    tables.write_rounds_csv(tmp_path / "rounds.csv", [row])
    (line,) = read_csv(tmp_path / "rounds.csv")
    assert line["num_rejected"] == str(len(names))
    assert line["rejected"].startswith("'=cmd")
    assert "\n" not in line["rejected"]
    assert "\x1b" not in line["rejected"]
    assert not any(value.startswith(("=", "+", "-", "@")) for value in line.values())


def test_rounds_csv_writes_absent_and_odd_numbers(tmp_path, make_row):
    row = make_row(1, accuracy=math.nan, loss=math.inf, epsilon_prv=None, epsilon_rdp=math.inf, recall=())
    tables.write_rounds_csv(tmp_path / "rounds.csv", [row])
    (line,) = read_csv(tmp_path / "rounds.csv")
    assert [line[key] for key in ("accuracy", "loss", "epsilon_prv", "epsilon_rdp", "recall_worst")] == ["nan", "inf", "", "inf", ""]


def test_same_rows_give_same_bytes(tmp_path, make_row):
    for name in ("a.csv", "b.csv"):
        tables.write_rounds_csv(tmp_path / name, [make_row(1), make_row(2)])
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_result_file_is_strict_json_and_reads_back(tmp_path, make_result):
    path = tmp_path / "result.json"
    result = make_result(3, private=False, accuracy=math.nan)
    tables.write_result(path, result)
    json.loads(path.read_text(), parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))
    assert tables.read_result(path).to_json() == result.to_json()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"{}", b"NaN", b"[" * 100_000])
def test_damaged_result_file_is_refused(tmp_path, content):
    (tmp_path / "result.json").write_bytes(content)
    with pytest.raises(DecodeError):
        tables.read_result(tmp_path / "result.json")


def test_absent_folder_and_file_are_storage_errors(tmp_path, make_result):
    with pytest.raises(StorageError):
        tables.read_result(tmp_path / "none.json")
    with pytest.raises(StorageError):
        tables.write_result(tmp_path / "none" / "result.json", make_result(1))
    with pytest.raises(StorageError):
        tables.write_rounds_csv(tmp_path / "none" / "rounds.csv", [])


def test_final_table_states_epsilon_with_delta_unit_and_relation(make_result):
    shown = printed(lambda console: tables.print_result(make_result(20), console))
    assert "ε = 8.00 at δ = 0.001, each example, add or remove one record" in shown
    assert "88.9%" in shown
    assert "50.0%  (class two)" in shown
    assert "20 clients, 20 rounds, engine local" in shown
    assert "simulation seed" in shown
    assert "runs/one" in shown
    assert "Each record is protected." in shown


def test_final_table_without_privacy_claims_none(make_result):
    shown = printed(lambda console: tables.print_result(make_result(3, private=False), console))
    assert "no differential privacy (ε is infinite)" in shown
    assert "δ" not in shown


def test_final_table_says_that_a_run_stopped_early(make_result):
    shown = printed(lambda console: tables.print_result(make_result(3, stopped_early=True), console))
    assert "Stopped early" in shown


def test_final_table_lists_few_sites_and_sums_up_many(make_result):
    few = printed(lambda console: tables.print_result(make_result(1, personal_accuracy={"Cleveland": 0.8, "Hungary": 0.9}), console))
    assert "mean 85.0%: Cleveland 80.0%, Hungary 90.0%" in few
    many = printed(lambda console: tables.print_result(make_result(1, site_accuracy={f"site {n}": n / 10 for n in range(1, 9)}), console))
    assert "mean 45.0% of 8 sites, lowest 10.0% (site 1)" in many


@pytest.mark.parametrize("width", [20, 60, 200])
def test_hostile_text_neither_acts_nor_is_markup(make_result, width):
    evil = "[bold red]\x1b[2J\x07\u202e" + "x" * 300
    result = make_result(
        2,
        plan_name=evil,
        class_names=(evil, evil, evil),
        run_dir=evil,
        guarantee=evil,
        engine=evil,
        randomness=evil,
        site_accuracy={evil: 0.5},
    )
    shown = printed(lambda console: (tables.print_result(result, console), tables.print_comparison([result], console)), width=width)
    assert not set(shown) & {"\x1b", "\x07", "\u202e"}
    assert "[bold" in shown
    assert max(map(len, shown.splitlines())) <= width


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_terminals_without_greek_letters_get_them_spelled(make_result, encoding):
    result = make_result(3, plan_name="Zürich 数字", class_names=("零", "一", "二"))
    shown = printed(lambda console: (tables.print_result(result, console), tables.print_comparison([result], console)), encoding=encoding)
    assert "epsilon = 1.20 at delta = 0.001" in shown


@pytest.mark.parametrize("field", ["plan_name", "run_dir", "guarantee", "engine", "randomness"])
def test_brackets_are_shown_and_not_obeyed(make_result, field):
    assert "[bold]a[/bold]" in printed(lambda console: tables.print_result(make_result(1, **{field: "[bold]a[/bold]"}), console))


def test_run_without_rounds_or_recall_still_has_a_table(make_result):
    result = make_result(0, accuracy=math.nan, recall=(None, None, None), majority_accuracy=None)
    assert "n/a" in printed(lambda console: tables.print_result(result, console))


def test_comparison_has_a_line_for_each_run_in_order(make_result):
    runs = [make_result(20, plan_name="first"), make_result(3, plan_name="second", private=False, stopped_early=True)]
    shown = printed(lambda console: tables.print_comparison(runs, console))
    assert shown.index("first") < shown.index("second")
    assert "8.00 at 0.001" in shown
    assert "infinite" in shown
    assert "3*" in shown
    assert "each example, add or remove one record; * stopped early" in shown
    assert printed(lambda console: tables.print_comparison([], console))


def test_worst_class_ignores_classes_without_a_number():
    assert tables.worst_class((None, 0.5, math.nan, 0.25, 0.25)) == 3
    assert tables.worst_class((None, math.nan)) is None
    assert tables.worst_class(()) is None


def test_written_files_are_readable_by_others(tmp_path, make_result):
    tables.write_result(tmp_path / "result.json", make_result(1))
    assert (tmp_path / "result.json").stat().st_mode & 0o777 == 0o644
