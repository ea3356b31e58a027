"""docs/own-data-and-models.md: its examples run as they stand."""

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsec.data.custom import KEYS
from fedsec.data.federated import federated_data
from fedsec.models.factory import build_model
from fedsec.plan.sections import DataSection, ModelSection

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "own-data-and-models.md").read_text(encoding="utf-8")


def block(first_line: str) -> str:
    found = [text for text in re.findall(r"```\w+\n(.*?)```", PAGE, re.DOTALL) if text.startswith(f"# {first_line}\n")]
    assert len(found) == 1
    return str(found[0])


def test_the_plan_of_the_page_loads_the_data_and_builds_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mydata.py", "mymodel.py"):
        (tmp_path / name).write_text(block(name))
    plan = tomllib.loads(block("plan.toml"))
    data = federated_data(DataSection(**plan["data"]), num_clients=plan["federation"]["num_clients"], seed=1)
    assert data.dataset.class_names == ("healthy", "ill")
    assert data.dataset.group_names == ("east", "north", "south", "west")
    assert [len(part) for part in data.train_parts] == [80] * 4
    assert np.abs(data.dataset.x).max() <= 1.0
    model = build_model(ModelSection(**plan["model"]), input_shape=data.dataset.input_shape, num_classes=2, seed=1)
    assert model(torch.zeros(5, 2)).shape == (5, 2)


def test_the_table_of_the_page_names_every_key() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| `")]
    assert {key for row in rows for key in re.findall(r"`(\w+)`", row.split("|")[1])} == set(KEYS)
