"""Flower's internals: the one module that touches what ``flwr`` does not promise to keep.

1. Every internal stands in the table below, with the reason why no public name will do; nothing else of flwr's inside is used.
2. Internals are looked up when used, never at import, so one that moved gives a :class:`ConfigError` that names it and the
   installed version, and :func:`check_compat` finds it before a run starts.
3. Messages travel as Flower's own protobuf; the bytes of arrays stand beside it, so they are neither parsed nor copied on the way.

Source: flwr 1.41.0 and 1.42.0.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, Metadata, RecordDict, UserConfigValue

from fedsec.errors import ConfigError, FedsecError

SUPPORTED = ">=1.41,<1.43"
LOGGER_NAME = "flwr"
MAX_REASON_CHARACTERS = 65_536
"""Longest text of an exception in an error reply."""


@dataclass(frozen=True, slots=True)
class Internal:
    """A name that flwr does not export.

    Attributes:
        module: where it is.
        name: attribute of the module, dotted where nested.
        reason: why fedsec needs it.
    """

    module: str
    name: str
    reason: str

    def get(self) -> Any:
        """The object.

        Raises:
            ConfigError: it is not there in the installed version.
        """
        try:
            found: Any = importlib.import_module(self.module)
            for part in self.name.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            raise _moved(f"{self.module}.{self.name} ({self.reason})") from error
        return found


TASK_IDENTITY = Internal("flwr.supercore.task_identity", "TaskIdentity", "Message() reads run and node from it")
MAKE_MESSAGE = Internal("flwr.app.message", "make_message", "the public constructor cannot set metadata")
MESSAGE_TO_PROTO = Internal("flwr.common.serde", "message_to_proto", "the form in which messages travel")
MESSAGE_FROM_PROTO = Internal("flwr.common.serde", "message_from_proto", "the form in which messages travel")
PROTO_MESSAGE = Internal("flwr.proto.message_pb2", "Message", "the form in which messages travel")
ERROR_CODE = Internal("flwr.common.constant", "ErrorCode", "the numbers in error replies")
LOAD_ERROR = Internal("flwr.clientapp.client_app", "LoadClientAppError", "has an error code of its own")
SYSTEM_TYPE = Internal("flwr.supercore.constant", "SYSTEM_MESSAGE_TYPE", "type of the SuperLink's own error replies")
SERVER_NODE_ID = Internal("flwr.common.constant", "SUPERLINK_NODE_ID", "sender of the server's messages")
PARTITION_KEY = Internal("flwr.common.constant", "PARTITION_ID_KEY", "how a simulated node knows its partition")
PARTITIONS_KEY = Internal("flwr.common.constant", "NUM_PARTITIONS_KEY", "how a simulated node knows how many there are")
RUN = Internal("flwr.supercore.run", "Run", "a Grid must be able to say which run it serves")
NO_FEDERATION = Internal("flwr.supercore.constant", "NOOP_FEDERATION_ID", "the federation of a simulated run")
TELEMETRY = Internal("flwr.supercore.telemetry", "FLWR_TELEMETRY_ENABLED", "read from the environment once, at import")
SIMULATE = Internal("flwr.simulation.run_simulation", "_run_simulation", "run_simulation() takes no run config and no task identity")
EVENT = Internal("flwr.supercore.telemetry", "EventType.PYTHON_API_RUN_SIMULATION_LEAVE", "argument of _run_simulation")

CORE = (
    TASK_IDENTITY, MAKE_MESSAGE, MESSAGE_TO_PROTO, MESSAGE_FROM_PROTO, PROTO_MESSAGE, ERROR_CODE, LOAD_ERROR, SYSTEM_TYPE, SERVER_NODE_ID,
    PARTITION_KEY, PARTITIONS_KEY, RUN, TELEMETRY,
)  # fmt: skip
SIMULATION = (NO_FEDERATION, SIMULATE, EVENT)
SIMULATE_ARGUMENTS = ("num_supernodes", "exit_event", "client_app", "server_app", "backend_config", "server_app_context", "run")


def _version() -> str:
    try:
        return importlib.metadata.version("flwr")
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def _moved(what: str) -> ConfigError:
    return ConfigError(
        f"flwr {_version()} is not the Flower that fedsec knows: {what} is not there, or behaves differently",
        mend=f"pip install 'flwr{SUPPORTED}'",
    )


def check_compat(*, simulation: bool = False) -> None:
    """See that every internal is where it was and does what it did.

    Args:
        simulation: also look at the Simulation Engine, which takes a second to import.

    Raises:
        ConfigError: names the installed version and what moved.
    """
    for internal in CORE + (SIMULATION if simulation else ()):
        internal.get()
    try:
        _try_round_trip()
    except FedsecError:
        raise
    except Exception as error:
        raise _moved(f"the serialised form of a message ({type(error).__name__}: {error})") from error
    if simulation:
        accepted = inspect.signature(SIMULATE.get()).parameters
        if missing := [name for name in SIMULATE_ARGUMENTS if name not in accepted]:
            raise _moved(f"argument {', '.join(missing)} of {SIMULATE.module}.{SIMULATE.name}")


def _try_round_trip() -> None:
    """One message through every function below; any difference is an internal that changed its meaning."""
    array = Array(dtype="float32", shape=(1,), stype="numpy.ndarray", data=b"\x01\x02")
    with task_identity(7):
        content = RecordDict({"a": ArrayRecord({"w": array}), "c": ConfigRecord({"k": [1, 2]})})
        message = Message(content, dst_node_id=9, message_type="train.x", group_id="3", ttl=60.0)
    assign_message_id(message, "m1")
    back = decode_message(encode_message(message))
    meta = back.metadata
    found = (meta.run_id, meta.message_id, meta.src_node_id, meta.dst_node_id, meta.group_id, meta.message_type, meta.ttl)
    if found != (7, "m1", server_node_id(), 9, "3", "train.x", 60.0) or back.content != message.content:
        raise _moved("the serialised form of a message (it comes back changed)")
    reply = error_reply(back, code=error_code("CLIENT_APP_RAISED_EXCEPTION"), reason="r")
    if reply.metadata.reply_to_message_id != "m1" or not reply.has_error() or error_code("CLIENT_APP_RAISED_EXCEPTION") != 2:
        raise _moved("the form of an error reply")
    make_run(7)


# --- Identity, messages, runs ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def task_identity(run_id: int) -> Iterator[None]:
    """Be the server's task of run ``run_id`` for the duration of the block, so that ``Message(...)`` works."""
    identity = TASK_IDENTITY.get()
    ours: dict[str, Any] = {"_task_id": 1, "_run_id": run_id, "_node_id": server_node_id()}
    before = {name: getattr(identity, name, None) for name in ours}
    for name, value in ours.items():
        setattr(identity, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(identity, name, value)


def assign_message_id(message: Message, message_id: str) -> None:
    """Give ``message`` its id, as Flower's own grids do; the attribute has no setter."""
    message.metadata.__dict__["_message_id"] = message_id


def server_node_id() -> int:
    """The node id that the server's messages come from."""
    return int(SERVER_NODE_ID.get())


def make_run(run_id: int) -> Any:
    """A ``Run`` with nothing but its id, as ``Grid.run`` must return."""
    run = RUN.get().create_empty(run_id=run_id)
    run.primary_task_id = 1
    return run


def server_context(run_id: int, run_config: Mapping[str, UserConfigValue]) -> Context:
    """The context that a ServerApp gets."""
    return Context(run_id=run_id, node_id=0, node_config={}, state=RecordDict(), run_config=dict(run_config))


def client_node_config(partition: int, num_partitions: int) -> dict[str, UserConfigValue]:
    """The node config that Flower's simulation gives to the node of ``partition``."""
    return {str(PARTITION_KEY.get()): partition, str(PARTITIONS_KEY.get()): num_partitions}


# --- The serialised form --------------------------------------------------------------------------------------------------------


def encode_message(message: Message) -> list[bytes]:
    """``message`` as bytes: Flower's protobuf without array data, then the data of each array in order.

    What Flower could not send raises here; the frames share no mutable state with ``message``, and array data is not copied.

    Raises:
        ValueError, TypeError: the content cannot be serialised, for example an integer over 64 bits.
    """
    frames = [b""]
    content = None
    if message.has_content():
        content = RecordDict({key: _take_data(record, frames) for key, record in message.content.items()})
    error = message.error if message.has_error() else None
    bare = MAKE_MESSAGE.get()(metadata=message.metadata, content=content, error=error)
    frames[0] = MESSAGE_TO_PROTO.get()(bare).SerializeToString()
    return frames


def _take_data(record: Any, frames: list[bytes]) -> Any:
    if not isinstance(record, ArrayRecord):
        return record
    bare = ArrayRecord()
    for name, array in record.items():
        frames.append(array.data if type(array.data) is bytes else bytes(array.data))
        bare[name] = _bare_array(array.dtype, tuple(array.shape), array.stype)
    return bare


@functools.lru_cache(maxsize=4096)
def _bare_array(dtype: str, shape: tuple[int, ...], stype: str) -> Array:
    """An array without data; shared, because Flower's constructor is slow, and never given out."""
    return Array(dtype=dtype, shape=shape, stype=stype, data=b"")


def decode_message(frames: Sequence[bytes]) -> Message:
    """Inverse of :func:`encode_message`.

    Raises:
        ValueError: the number of frames does not match the message.
    """
    message: Message = MESSAGE_FROM_PROTO.get()(PROTO_MESSAGE.get().FromString(frames[0]))
    arrays = [] if not message.has_content() else [a for record in message.content.array_records.values() for a in record.values()]
    for array, data in zip(arrays, frames[1:], strict=True):
        array.data = data
    return message


def decode_metadata(frame: bytes) -> Message:
    """The message of a first frame with empty content: enough to write an error reply to it."""
    message: Message = MESSAGE_FROM_PROTO.get()(PROTO_MESSAGE.get().FromString(frame))
    bare: Message = MAKE_MESSAGE.get()(metadata=message.metadata, content=RecordDict())
    return bare


# --- Errors ---------------------------------------------------------------------------------------------------------------------


def error_code(name: str) -> int:
    """The number of an error, for example ``CLIENT_APP_RAISED_EXCEPTION``.

    Raises:
        ConfigError: the installed version has no such error.
    """
    code = getattr(ERROR_CODE.get(), name, None)
    if code is None:
        raise _moved(f"{ERROR_CODE.module}.ErrorCode.{name}")
    return int(code)


def error_reply(message: Message, *, code: int, reason: str) -> Message:
    """The error reply to ``message``."""
    return Message(Error(code=code, reason=reason), reply_to=message)


def client_error_reply(message: Message, error: BaseException) -> Message:
    """What Flower answers for a ClientApp that raised ``error``.

    Source: flwr/supernode/runtime/run_clientapp.py, whose wording of the reason is kept.
    """
    if isinstance(error, LOAD_ERROR.get()):
        reason = "An exception was raised when attempting to load `ClientApp`"
        return error_reply(message, code=error_code("LOAD_CLIENT_APP_EXCEPTION"), reason=reason)
    return error_reply(message, code=error_code("CLIENT_APP_RAISED_EXCEPTION"), reason=f"{type(error)}:<'{_text_of(error)}'>")


def _text_of(error: BaseException) -> str:
    """The text of an exception that foreign code raised: it may fail, be endless, or not be Unicode."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - whatever its own __str__ does
        text = "an exception without a readable text"
    return text[:MAX_REASON_CHARACTERS].encode("utf-8", "replace").decode("utf-8")


def unavailable_reply(message_id: str, *, run_id: int, created_at: float) -> Message:
    """What Flower answers when asked for the reply to a message that it does not know, no longer keeps, or that expired."""
    node = server_node_id()
    metadata = Metadata(
        run_id=run_id, message_id="", src_node_id=node, dst_node_id=node, reply_to_message_id=message_id, group_id="",
        created_at=created_at, ttl=0, message_type=SYSTEM_TYPE.get(),
    )  # fmt: skip
    reason = "Error: Message Unavailable - it expired, was answered already, or never existed."
    reply: Message = MAKE_MESSAGE.get()(metadata=metadata, error=Error(code=error_code("MESSAGE_UNAVAILABLE"), reason=reason))
    assign_message_id(reply, f"{message_id}-unavailable")
    return reply


# --- Quiet, and the Simulation Engine -------------------------------------------------------------------------------------------


def disable_telemetry() -> None:
    """Flower sends nothing to anyone from this process and its children."""
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
    TELEMETRY.get()
    setattr(sys.modules[TELEMETRY.module], TELEMETRY.name, "0")


@contextlib.contextmanager
def quiet_logger(level: int = logging.WARNING) -> Iterator[None]:
    """Silence Flower's logger below ``level`` for the duration of the block."""
    logger = logging.getLogger(LOGGER_NAME)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


def run_simulation_engine(
    *,
    server_app: Callable[..., None],
    client_app: Callable[..., Message],
    num_nodes: int,
    run_id: int,
    run_config: Mapping[str, UserConfigValue],
    backend_config: dict[str, Any],
) -> None:
    """Run Flower's Simulation Engine until ``server_app(grid=, context=)`` returns; Flower's own signature, with a run config."""
    run = make_run(run_id)
    run.federation_id = NO_FEDERATION.get()
    with task_identity(run_id):
        SIMULATE.get()(
            num_supernodes=num_nodes,
            exit_event=EVENT.get(),
            client_app=client_app,
            server_app=server_app,
            backend_config=backend_config,
            server_app_context=server_context(run_id, run_config),
            run=run,
        )
