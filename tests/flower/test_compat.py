import importlib
import importlib.metadata
import logging
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedsec.errors import ConfigError
from fedsec.flower import compat


@pytest.fixture
def message():
    with compat.task_identity(7):
        message = Message(RecordDict({"a": ArrayRecord([np.ones(3, np.float32)])}), dst_node_id=5, message_type="train", group_id="2")
    compat.assign_message_id(message, "m1")
    return message


# --- A Flower whose internals moved ---------------------------------------------------------------------------------------------


def test_the_installed_flower_is_one_that_fedsec_knows() -> None:
    compat.check_compat(simulation=True)


@pytest.mark.parametrize("internal", compat.CORE + compat.SIMULATION, ids=lambda i: f"{i.module}.{i.name}")
def test_an_internal_that_moved_is_named_with_the_version_and_the_mend(internal: compat.Internal, monkeypatch: pytest.MonkeyPatch) -> None:
    head, _, last = internal.name.rpartition(".")
    owner = importlib.import_module(internal.module)
    if head:
        monkeypatch.setattr(owner, head, type(head, (), {}))
    else:
        monkeypatch.delattr(owner, last)
    with pytest.raises(ConfigError) as caught:
        compat.check_compat(simulation=True)
    text = str(caught.value)
    assert f"flwr {importlib.metadata.version('flwr')}" in text
    assert f"{internal.module}.{internal.name}" in text
    assert "pip install 'flwr>=1.41,<1.43'" in text


def test_an_internal_that_changed_its_meaning_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    serde = importlib.import_module("flwr.common.serde")
    real = serde.message_to_proto

    def forgetful(message: Message):
        proto = real(message)
        proto.metadata.group_id = ""
        return proto

    monkeypatch.setattr(serde, "message_to_proto", forgetful)
    with pytest.raises(ConfigError, match="serialised form of a message"):
        compat.check_compat()


def test_an_internal_that_changed_its_signature_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("flwr.common.serde"), "message_to_proto", lambda: None)
    with pytest.raises(ConfigError, match=r"serialised form of a message [(]TypeError"):
        compat.check_compat()
    monkeypatch.undo()
    monkeypatch.setattr(importlib.import_module("flwr.simulation.run_simulation"), "_run_simulation", lambda num_supernodes, run: None)
    with pytest.raises(ConfigError, match="argument exit_event, client_app"):
        compat.check_compat(simulation=True)


# --- The serialised form --------------------------------------------------------------------------------------------------------

scalars = st.one_of(
    st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.text(max_size=20), st.binary(max_size=20)
)
lists = st.one_of(
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5),
    st.lists(st.floats(allow_nan=False), max_size=5),
    st.lists(st.text(max_size=5), max_size=5),
)
keys = st.text(max_size=10)
arrays = hnp.arrays(
    dtype=st.sampled_from([np.float32, np.float64, np.int64, np.uint8, np.bool_]),
    shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)
records = st.one_of(
    st.dictionaries(keys, arrays.map(Array), max_size=3).map(ArrayRecord),
    st.dictionaries(keys, st.one_of(scalars, lists), max_size=3).map(ConfigRecord),
    st.dictionaries(keys, st.floats(allow_nan=False), max_size=3).map(MetricRecord),
)


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(keys, records, max_size=4), st.text(max_size=5), st.integers(2, 2**63 - 1), st.floats(1, 1e6))
def test_a_message_comes_back_as_flower_itself_would_bring_it_back(content: dict, group_id: str, node: int, ttl: float) -> None:
    serde = importlib.import_module("flwr.common.serde")
    with compat.task_identity(7):
        message = Message(RecordDict(content), dst_node_id=node, message_type="train.x", group_id=group_id, ttl=ttl)
    compat.assign_message_id(message, "m1")
    frames = compat.encode_message(message)
    back, theirs = compat.decode_message(frames), serde.message_from_proto(serde.message_to_proto(message))
    assert all(type(frame) is bytes for frame in frames)
    assert back.content == theirs.content
    assert list(back.content) == list(message.content)
    assert back.metadata == theirs.metadata
    for key, record in message.content.array_records.items():
        for name, array in record.items():
            np.testing.assert_array_equal(back.content[key][name].numpy(), array.numpy())


def test_array_data_travels_beside_the_message_without_a_copy(message: Message) -> None:
    frames = compat.encode_message(message)
    (array,) = message.content["a"].values()
    assert frames[1] is array.data
    assert array.data not in frames[0]


def test_what_happens_to_a_message_after_it_was_encoded_changes_nothing(message: Message) -> None:
    frames = compat.encode_message(message)
    (name,) = message.content["a"]
    message.content["a"][name] = Array(np.zeros(3, np.float32))
    message.content["new"] = ConfigRecord({"k": 1})
    message.metadata.group_id = "99"
    back = compat.decode_message(frames)
    assert back.content["a"][name].numpy().tolist() == [1.0, 1.0, 1.0]
    assert "new" not in back.content
    assert back.metadata.group_id == "2"


@pytest.mark.parametrize("frames", [slice(0, 1), slice(0, 3)])
def test_missing_or_extra_array_data_is_refused(message: Message, frames: slice) -> None:
    damaged = [*compat.encode_message(message), b"more"][frames]
    with pytest.raises(ValueError):
        compat.decode_message(damaged)


def test_what_flower_could_not_send_is_refused(message: Message) -> None:
    message.content["c"] = ConfigRecord({"k": 2**70})
    with pytest.raises(ValueError):
        compat.encode_message(message)


def test_an_error_travels_too(message: Message) -> None:
    back = compat.decode_message(compat.encode_message(compat.error_reply(message, code=2, reason="no")))
    assert (back.error, back.has_content(), back.metadata.reply_to_message_id) == (Error(2, "no"), False, "m1")


# --- Errors, identity, quiet ----------------------------------------------------------------------------------------------------


class _UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ZeroDivisionError("division by zero"), "<class 'ZeroDivisionError'>:<'division by zero'>"),
        (SystemExit(3), "<class 'SystemExit'>:<'3'>"),
        (ValueError("\ud800"), "<class 'ValueError'>:<'?'>"),
        (ValueError("x" * 10**6), "<class 'ValueError'>:<'" + "x" * compat.MAX_REASON_CHARACTERS + "'>"),
    ],
)
def test_an_exception_of_a_client_becomes_the_reply_that_flower_makes_of_it(message: Message, error: BaseException, reason: str) -> None:
    reply = compat.client_error_reply(message, error)
    assert reply.error == Error(code=2, reason=reason)
    assert compat.decode_message(compat.encode_message(reply)).error.reason == reason


def test_an_exception_that_cannot_be_printed_still_becomes_a_reply(message: Message) -> None:
    assert "without a readable text" in compat.client_error_reply(message, _UnprintableError()).error.reason


def test_a_client_app_that_cannot_be_loaded_has_its_own_code(message: Message) -> None:
    assert compat.client_error_reply(message, compat.LOAD_ERROR.get()("x")).error.code == 1


def test_an_unknown_error_name_is_a_moved_internal() -> None:
    with pytest.raises(ConfigError, match=r"ErrorCode\.NO_SUCH"):
        compat.error_code("NO_SUCH")


def test_identity_ends_with_its_block_even_if_it_fails() -> None:
    identity = compat.TASK_IDENTITY.get()
    before = identity._run_id, identity._node_id, identity._task_id
    with pytest.raises(KeyError), compat.task_identity(9):
        assert identity.run_id == 9
        raise KeyError
    assert (identity._run_id, identity._node_id, identity._task_id) == before


def test_telemetry_stays_off_even_if_flower_was_loaded_with_it_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    telemetry = importlib.import_module("flwr.supercore.telemetry")
    monkeypatch.setattr(telemetry, "FLWR_TELEMETRY_ENABLED", "1")
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    monkeypatch.setattr(telemetry.urllib.request, "urlopen", lambda *a, **k: pytest.fail("a telemetry request"))
    compat.disable_telemetry()
    assert telemetry.create_event(telemetry.EventType.PING, None) == "disabled"


def test_flowers_logger_is_quiet_for_the_block_only() -> None:
    logger = logging.getLogger("flwr")
    before = logger.level
    with compat.quiet_logger():
        assert not logger.isEnabledFor(logging.INFO)
        assert logger.isEnabledFor(logging.WARNING)
    assert logger.level == before
