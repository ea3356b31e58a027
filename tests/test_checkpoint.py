"""Checkpoints are whole, hashed, bound to their run and plan, and survive a crash at any moment."""

import numpy as np
import pytest

from fedsec import checkpoint as module
from fedsec.checkpoint import CheckpointStore
from fedsec.errors import StorageError

ARRAYS = {"vector": np.arange(5, dtype=np.float32), "sum": np.full(5, 1 / 3)}


def store(folder, run_id="r", plan="p"):
    return CheckpointStore(folder / "checkpoints", run_id=run_id, plan_digest=plan)


def test_a_saved_state_loads_bit_for_bit(tmp_path):
    store(tmp_path).save(3, ARRAYS, {"rows": [1, 2], "x": 0.1})
    loaded = store(tmp_path).load()
    assert loaded.server_round == 3
    assert loaded.state == {"rows": [1, 2], "x": 0.1}
    assert all(
        loaded.arrays[name].tobytes() == array.tobytes() and loaded.arrays[name].dtype == array.dtype for name, array in ARRAYS.items()
    )


def test_nothing_saved_is_none_and_the_newest_wins(tmp_path):
    assert store(tmp_path).load() is None
    for server_round in (1, 2, 3, 4):
        store(tmp_path).save(server_round, ARRAYS, {})
    assert store(tmp_path).load().server_round == 4
    assert len(list((tmp_path / "checkpoints").glob("*.safetensors"))) == module.KEPT


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_newest_costs_one_round_and_two_cost_the_run(tmp_path, damage):
    for server_round in (1, 2):
        store(tmp_path).save(server_round, ARRAYS, {})

    def harm(path):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        if damage == "remove":
            path.unlink()
        else:
            path.write_bytes(bytes(data) if damage == "flip" else bytes(data[:-3]))

    harm(tmp_path / "checkpoints" / "round-000002.safetensors")
    assert store(tmp_path).load().server_round == 1
    harm(tmp_path / "checkpoints" / "round-000001.safetensors")
    with pytest.raises(StorageError, match="no usable checkpoint"):
        store(tmp_path).load()


@pytest.mark.parametrize(("run_id", "plan", "message"), [("other", "p", "another run"), ("r", "other", "another plan")])
def test_a_checkpoint_of_another_run_or_plan_is_refused(tmp_path, run_id, plan, message):
    store(tmp_path).save(1, ARRAYS, {})
    with pytest.raises(StorageError, match=message):
        store(tmp_path, run_id, plan).load()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"checkpoints": [{}]}',
        '{"checkpoints": [{"round": "1", "file": "x"}]}',
        '{"checkpoints": [{"round": 1, "file": "../x"}]}',
    ],
)
def test_a_damaged_pointer_is_a_clear_error(tmp_path, text):
    store(tmp_path).save(1, ARRAYS, {})
    (tmp_path / "checkpoints" / "latest.json").write_text(text)
    with pytest.raises(StorageError, match="damaged"):
        store(tmp_path).load()


def test_a_crash_before_the_pointer_moves_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    store(tmp_path).save(1, ARRAYS, {})

    def crash(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "atomic_write_json", crash)
    with pytest.raises(KeyboardInterrupt):
        store(tmp_path).save(2, ARRAYS, {})
    assert store(tmp_path).load().server_round == 1
