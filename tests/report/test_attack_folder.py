"""A grid's folder: rows are whole or absent, the folder is of one plan, and only one process works in it."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.errors import ConfigError, DecodeError, StorageError
from fedsec.plan.grid import Cell, base_plan
from fedsec.plan.load import load_plan
from fedsec.report.attack_folder import open_grid_folder
from fedsec.report.attack_rows import CellRow
from fedsec.results import RejectionReport


@pytest.fixture
def base():
    return base_plan(load_plan())


def test_rows_come_back_as_they_went_in(tmp_path, base, make_cell_row):
    folder = open_grid_folder(tmp_path / "grid", base)
    rows = [make_cell_row(seed=seed, accuracy=seed / 10) for seed in (1, 2, 3)]
    assert folder.rows() == {}
    for row in rows:
        folder.append(row)
    assert list(open_grid_folder(tmp_path / "grid", base).rows().values()) == rows


def test_the_last_of_two_rows_with_one_key_counts(tmp_path, base, make_cell_row):
    folder = open_grid_folder(tmp_path / "grid", base)
    folder.append(make_cell_row(accuracy=0.1))
    folder.append(make_cell_row(accuracy=0.2))
    assert [row.accuracy for row in folder.rows().values()] == [0.2]


@pytest.mark.parametrize("cut", [1, 40, -1])
def test_a_line_that_a_crash_cut_off_counts_as_nothing_and_is_gone_with_the_next(tmp_path, base, make_cell_row, cut):
    folder = open_grid_folder(tmp_path / "grid", base)
    folder.append(make_cell_row(seed=1))
    path = tmp_path / "grid" / "cells.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + whole.replace(b'"seed": 1', b'"seed": 2')[:-1][:cut])
    assert [row.seed for row in folder.rows().values()] == [1]
    folder.append(make_cell_row(seed=3))
    assert [row.seed for row in folder.rows().values()] == [1, 3]
    assert path.read_bytes().startswith(whole)
    assert all(json.loads(line) for line in path.read_text().splitlines())


@pytest.mark.parametrize("line", [b"not json", b"{}", b"[" * 5000, b"\xff\xfe", b"[1]"])
def test_a_damaged_line_is_named_with_its_number(tmp_path, base, make_cell_row, line):
    folder = open_grid_folder(tmp_path / "grid", base)
    folder.append(make_cell_row())
    with (tmp_path / "grid" / "cells.jsonl").open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(StorageError, match="line 2 is damaged"):
        folder.rows()


@settings(max_examples=30)
@given(accuracy=st.floats(0, 1) | st.just(float("nan")), recall=st.none() | st.floats(0, 1), fraction=st.none() | st.floats(0.01, 0.49))
def test_a_row_reads_back_from_its_json(make_cell_row, accuracy, recall, fraction):
    row = make_cell_row(accuracy=accuracy, recall=recall, fraction=fraction)
    assert repr(CellRow.from_json(json.loads(json.dumps(row.to_json(), allow_nan=False)))) == repr(row)


def test_a_row_is_of_a_whole_run_of_the_cells_own_plan(make_result):
    cell = Cell(attack="alie", rule="screening", fraction=0.2, seed=1)
    result = replace(
        make_result(3),
        plan_digest="k",
        rejection=RejectionReport(precision=0.75, recall=0.5, honest_rate=0.01, attackers=("client-0001", "client-0004")),
    )
    row = CellRow.from_result(cell, "k", result)
    assert row.cell == cell
    assert (row.accuracy, row.precision, row.recall, row.honest_rate, row.num_attackers) == (result.accuracy, 0.75, 0.5, 0.01, 2)
    assert (row.epsilon, row.delta, row.wall_s) == (result.epsilon.prv, 1e-3, result.duration_s)
    bare = CellRow.from_result(cell, "k", replace(result, rejection=None))
    assert (bare.precision, bare.recall, bare.num_attackers, bare.attack_success) == (None, None, None, None)
    with pytest.raises(DecodeError, match="another plan"):
        CellRow.from_result(cell, "other", result)
    with pytest.raises(DecodeError, match="stopped early"):
        CellRow.from_result(cell, "k", replace(result, stopped_early=True))


def test_a_folder_of_another_plan_is_refused_and_left_alone(tmp_path, base):
    open_grid_folder(tmp_path / "grid", base)
    before = {path.name: path.read_bytes() for path in (tmp_path / "grid").iterdir() if path.is_file()}
    other = base_plan(load_plan(overrides=["federation.rounds=3"]))
    with pytest.raises(ConfigError, match="made with another plan") as caught:
        open_grid_folder(tmp_path / "grid", other)
    assert str(tmp_path / "grid" / "plan.toml") in str(caught.value)
    assert {path.name: path.read_bytes() for path in (tmp_path / "grid").iterdir() if path.is_file()} == before
    assert open_grid_folder(tmp_path / "grid", base_plan(load_plan(tmp_path / "grid" / "plan.toml"))).path == tmp_path / "grid"


def test_other_files_are_never_worked_among(tmp_path, base):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds no grid"):
        open_grid_folder(tmp_path, base)
    with pytest.raises(ConfigError, match="holds no grid"):
        open_grid_folder(tmp_path / "notes.txt", base)
    (tmp_path / "empty").mkdir()
    assert open_grid_folder(tmp_path / "empty", base).plan_file.exists()


@pytest.mark.parametrize("content", ["", "[]", '{"format": "other"}', '{"format": "fedsec/attack-grid/v1"}', "\x00"])
def test_a_damaged_marker_is_named(tmp_path, base, content):
    open_grid_folder(tmp_path / "grid", base)
    (tmp_path / "grid" / "grid.json").write_text(content)
    with pytest.raises(StorageError, match=r"grid\.json is damaged"):
        open_grid_folder(tmp_path / "grid", base)


def test_two_processes_do_not_work_in_one_folder(tmp_path, base, monkeypatch):
    monkeypatch.setattr("fedsec.report.attack_folder.LOCK_TIMEOUT_S", 0.0)
    folder = open_grid_folder(tmp_path / "grid", base)
    with folder.lock(), pytest.raises(StorageError, match="another process holds this grid folder"), folder.lock():
        pass


def test_run_folders_of_different_cells_differ(tmp_path, base):
    folder = open_grid_folder(tmp_path / "grid", base)
    cells = [Cell(attack="alie", rule="mean", fraction=fraction, seed=seed) for fraction in (0.1, 0.25) for seed in (1, 2)]
    assert len({folder.run_folder(cell, "a" * 64) for cell in cells}) == 4
    assert folder.run_folder(cells[0], "a" * 64) != folder.run_folder(cells[0], "b" * 64)
    assert folder.run_folder(cells[0], "a" * 64).parent == tmp_path / "grid" / "runs"
