"""What ``fedsec plan check`` says of the room that colluders have."""

import json
import math

import pytest
from typer.testing import CliRunner

from fedsec.cli.main import app
from fedsec.plan.load import load_plan
from server.room import room_facts, room_of, room_sentence


def room(*overrides):
    return room_of(load_plan(overrides=[*overrides]))


def test_the_default_plan_prints_its_room_and_gives_it_to_scripts():
    found, dimension = room()
    assert dimension == 650
    text = CliRunner().invoke(app, ["plan", "check"]).output
    assert f"by about {found.with_noise:.0f} noise units" in text
    facts = json.loads(CliRunner().invoke(app, ["plan", "check", "--json"]).output)["room_to_hide"]
    assert facts["with_noise"] == pytest.approx(found.with_noise)
    assert facts["dimension"] == 650


def test_more_rows_leave_less_room_and_clear_updates_least():
    few, many, clear = (room(more)[0].with_noise for more in ("secagg.sketch_rows=64", "secagg.sketch_rows=256", "secagg.enabled=false"))
    assert few > many > clear


def test_more_rounds_leave_less_room_to_a_push_that_is_kept_up():
    short, long = (room(f"federation.rounds={count}")[0] for count in (5, 80))
    assert short.over_rounds > long.over_rounds
    assert math.isfinite(long.alone_over_rounds)


@pytest.mark.parametrize("overrides", [["robust.rule=mean"], ["privacy.unit=none", "privacy.epsilon=inf", "secagg.enabled=false"]])
def test_without_screening_nothing_is_said(overrides):
    plan = load_plan(overrides=overrides)
    assert (room_facts(plan), room_sentence(plan)) == (None, None)


def test_a_data_set_that_is_not_here_is_no_fault_of_the_plan(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSEC_DATA_ROOT", str(tmp_path))
    assert room("data.name=mnist") is None
