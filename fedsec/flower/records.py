"""What travels between server and clients: requests and replies as Flower records, and strict readers for both.

1. A request carries the whole plan as canonical JSON, so client and server train by one object; a client that disagrees with
   it (its own policy) refuses.
2. Readers trust nothing: missing, extra, ill-typed or oversized parts raise, naming the sender.
3. Beside the update, a reply holds only public constants: client id, round, declared batch size, and the client's spends.
"""

from __future__ import annotations

import hmac
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from numpy.lib import format as npy_format

from fedsec.codec import canonical_json, decode_canonical_json, digest
from fedsec.errors import DecodeError, PeerError
from fedsec.plan.load import plan_from_mapping
from fedsec.plan.model import Plan, plan_to_jsonable
from fedsec.results import SiteMetrics
from fedsec.vectors import arrays_digest

TRAIN = "train"
EVALUATE = "evaluate"
DESCRIBE = "query.describe"
PERSONALISE = "train.personalise"

MAX_CLIENT_ID_LENGTH = 128
MAX_ARRAYS = 4096
MAX_TEXT_BYTES = 1 << 20
MAX_RUN_ID_LENGTH = 128
MAX_ROUNDS = 10**6
MAX_SEGMENTS = 16
"""Mechanisms in a client's list of spends: a longer one costs the accountant minutes."""

EXPLAINED = {
    5: "the node went away",
    7: "its site does not admit this code: have the release signed, and see that the site has its manifest (fedsec release show)",
}
"""What some numbers of Flower's error replies mean in a deployment."""

ArrayMap = Mapping[str, npt.NDArray[np.generic]]


@dataclass(frozen=True, kw_only=True)
class RoundRequest:
    """What the server asks of a client in one message.

    Attributes:
        run_id: fedsec's id of the run; survives a resume.
        server_round: from 1; 0 before training.
        attempt: from 1.
        plan_json: the plan, canonical JSON.
        noise_multiplier: sigma over clip norm; 0 without privacy.
        model_hash: digest of the shared parameters sent along; empty where none are.
        simulation_dir: where simulated clients keep their stores; deployed clients ignore it.
    """

    run_id: str
    server_round: int
    plan_json: str
    noise_multiplier: float
    attempt: int = 1
    model_hash: str = ""
    simulation_dir: str = ""

    def plan(self) -> Plan:
        """The plan, validated again here.

        Raises:
            DecodeError: not canonical JSON.
            ConfigError: not a sound plan.
        """
        return plan_from_canonical(self.plan_json)

    def with_attempt(self, attempt: int) -> RoundRequest:
        """The same, for another attempt."""
        return replace(self, attempt=attempt)

    def request_hash(self) -> str:
        """Hex digest of all that shapes the answer: equal requests get the stored answer, others of the same round do not."""
        parts = [self.run_id, str(self.server_round), str(self.attempt), self.plan_json, self.noise_multiplier.hex(), self.model_hash]
        return digest("fedsec/round-request/v1", *(part.encode() for part in parts)).hex()


def plan_to_canonical(plan: Plan) -> str:
    """The plan as canonical JSON text."""
    return canonical_json(plan_to_jsonable(plan)).decode()


def plan_from_canonical(text: str) -> Plan:
    """Inverse of :func:`plan_to_canonical`; see :meth:`RoundRequest.plan`."""
    raw = decode_canonical_json(text.encode())
    if not isinstance(raw, dict):
        raise DecodeError("a plan is a JSON object")
    sections = {key: _read_infinity(value) for key, value in raw.items()}
    return plan_from_mapping(sections, file="plan in the request")


def _read_infinity(section: Any) -> Any:
    if not isinstance(section, dict):
        return section
    return {key: float("inf") if value == "inf" else value for key, value in section.items()}


def arrays_to_record(arrays: ArrayMap) -> ArrayRecord:
    """Named arrays as a Flower record, in sorted order."""
    return ArrayRecord({name: Array(np.ascontiguousarray(arrays[name])) for name in sorted(arrays)})


def record_to_arrays(record: ArrayRecord) -> dict[str, npt.NDArray[np.generic]]:
    """Named arrays of a Flower record.

    Raises:
        DecodeError: too many arrays, or one that numpy cannot read.
    """
    if len(record) > MAX_ARRAYS:
        raise DecodeError(f"{len(record)} arrays are over the limit of {MAX_ARRAYS}")
    return {name: _read_npy(name, array) for name, array in record.items()}


def _read_npy(name: str, array: Array) -> npt.NDArray[np.generic]:
    """Read one array without ever allocating what a header merely claims: ``numpy.load`` would, before it reads the data."""
    stream = io.BytesIO(array.data)
    try:
        if array.stype != "numpy.ndarray":
            raise ValueError(f"serialisation {array.stype[:40]!r}")
        version = npy_format.read_magic(stream)
        read_header = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
        shape, fortran, dtype = read_header(stream, max_header_size=10_000)
        body = memoryview(array.data)[stream.tell() :]
        if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(body):
            raise ValueError("its header does not match its bytes")
        return np.frombuffer(body, dtype=dtype).reshape(shape, order="F" if fortran else "C")
    except Exception as error:  # noqa: BLE001 - numpy's header reader raises many types on hostile bytes
        raise DecodeError(f"array {name[:60]!r} cannot be read: {str(error)[:100]}") from None


def make_request(request: RoundRequest, *, node_id: int, message_type: str, arrays: ArrayRecord | None = None) -> Message:
    """One message to one node; the group id is the round."""
    config = ConfigRecord(
        {
            "run_id": request.run_id,
            "server_round": request.server_round,
            "attempt": request.attempt,
            "plan": request.plan_json,
            "noise_multiplier": float(request.noise_multiplier),
            "model_hash": request.model_hash,
            "simulation_dir": request.simulation_dir,
        }
    )
    content = RecordDict({"config": config})
    if arrays is not None:
        content["model"] = arrays
    return Message(content, dst_node_id=node_id, message_type=message_type, group_id=str(request.server_round))


def read_request(message: Message) -> tuple[RoundRequest, dict[str, npt.NDArray[np.generic]]]:
    """What a client was asked, and the arrays that came along: exactly those whose hash the request names.

    Raises:
        DecodeError: not a request of this protocol, or other arrays.
    """
    config = message.content.config_records.get("config")
    if config is None:
        raise DecodeError("the request has no config record; server and client run different versions?")
    kinds = {
        "run_id": str, "server_round": int, "attempt": int, "plan": str, "noise_multiplier": float, "model_hash": str, "simulation_dir": str,
    }  # fmt: skip
    for key, kind in kinds.items():
        if type(config.get(key)) is not kind:
            raise DecodeError(f"request field {key} is missing or not {kind.__name__}")
        if isinstance(config[key], str) and len(str(config[key])) > MAX_TEXT_BYTES:
            raise DecodeError(f"request field {key} is too long")
    fields: dict[str, Any] = {key: config[key] for key in kinds}
    if not 0 < len(fields["run_id"]) <= MAX_RUN_ID_LENGTH or not fields["run_id"].isprintable():
        raise DecodeError(f"run_id is not 1..{MAX_RUN_ID_LENGTH} printable characters")
    if not (0 <= fields["server_round"] <= MAX_ROUNDS and 1 <= fields["attempt"] <= MAX_ROUNDS):
        raise DecodeError("server_round or attempt is out of range")
    request = RoundRequest(plan_json=fields.pop("plan"), **fields)
    record = message.content.array_records.get("model")
    if record is None:
        return request, {}
    arrays = record_to_arrays(record)
    if not hmac.compare_digest(arrays_digest(arrays), request.model_hash.encode("ascii", "replace").decode()):
        raise DecodeError("the model is not the one whose hash the request names")
    return request, arrays


@dataclass(frozen=True, kw_only=True)
class About:
    """The public constants beside a reply.

    Attributes:
        client_id: who says so.
        run_id: of the request.
        server_round: of the request.
        batch_size: declared expected batch size.
        randomness: ``simulation seed`` or ``operating system``.
        segments: the client's spends on this data set, over all runs: (noise multiplier, sample rate, steps).
    """

    client_id: str
    run_id: str
    server_round: int
    batch_size: int
    randomness: str
    segments: tuple[tuple[float, float, int], ...] = ()


def make_reply(message: Message, about: About, *, arrays: ArrayMap | None = None, metrics: Mapping[str, Any] | None = None) -> Message:
    """A client's answer."""
    record = ConfigRecord(
        {
            "client_id": about.client_id,
            "run_id": about.run_id,
            "server_round": about.server_round,
            "batch_size": about.batch_size,
            "randomness": about.randomness,
            "segments": json.dumps([list(segment) for segment in about.segments]),
        }
    )
    content = RecordDict({"about": record})
    if arrays is not None:
        content["update"] = arrays_to_record(arrays)
    if metrics is not None:
        content["metrics"] = MetricRecord(dict(metrics))
    return Message(content, reply_to=message)


def read_about(message: Message, *, sender: str, phase: str) -> About:
    """The public constants of a reply.

    Raises:
        PeerError: missing, ill-typed or oversized.
    """
    record = message.content.config_records.get("about")
    kinds = {"client_id": str, "run_id": str, "server_round": int, "batch_size": int, "randomness": str, "segments": str}
    if record is None or any(type(record.get(key)) is not kind for key, kind in kinds.items()):
        raise PeerError(sender, phase, "the reply lacks its description, or a field of it has the wrong type")
    fields: dict[str, Any] = {key: record[key] for key in kinds}
    if not 0 < len(fields["client_id"]) <= MAX_CLIENT_ID_LENGTH or not fields["client_id"].isprintable():
        raise PeerError(sender, phase, f"client id is not 1..{MAX_CLIENT_ID_LENGTH} printable characters")
    fields["segments"] = _read_segments(fields["segments"], sender, phase)
    return About(**fields)


def sender_of(reply: Message, *, run_id: str, phase: str, expected: str | None = None) -> About:
    """The public constants of a reply in this run, from the client that was asked.

    Args:
        reply: as it came.
        run_id: of the run.
        phase: for the error.
        expected: client id that was asked, where the server knows it.

    Raises:
        PeerError: an error reply, a malformed one, or one for another run or from another client.
    """
    sender = expected or f"node {reply.metadata.src_node_id}"
    if reply.has_error():
        known = f"{EXPLAINED[reply.error.code]}; " if reply.error.code in EXPLAINED else ""
        raise PeerError(sender, phase, f"{known}error reply {reply.error.code}: {(reply.error.reason or '')[:300]}")
    about = read_about(reply, sender=sender, phase=phase)
    if about.run_id != run_id:
        raise PeerError(sender, phase, "the reply is for another run")
    if expected is not None and about.client_id != expected:
        raise PeerError(sender, phase, f"the reply says that it is from another client: {about.client_id!r}")
    return about


def _read_segments(text: str, sender: str, phase: str) -> tuple[tuple[float, float, int], ...]:
    fault = PeerError(sender, phase, "the list of spends is malformed")
    if len(text) > MAX_TEXT_BYTES:
        raise fault
    try:
        raw = json.loads(text)
        segments = tuple((float(sigma), float(rate), int(steps)) for sigma, rate, steps in raw)
    except (ValueError, TypeError, RecursionError, OverflowError):
        raise fault from None
    if len(segments) > MAX_SEGMENTS or any(not (0.05 <= s <= 1e6 and 1e-9 <= q <= 1 and 0 < t < 1e9) for s, q, t in segments):
        raise fault
    return segments


def read_update(message: Message, *, sender: str) -> dict[str, npt.NDArray[np.generic]]:
    """The arrays of a training reply, unvalidated.

    Raises:
        PeerError: no arrays, or arrays that cannot be read.
    """
    record = message.content.array_records.get("update")
    if record is None:
        raise PeerError(sender, TRAIN, "the reply has no update")
    try:
        return record_to_arrays(record)
    except DecodeError as error:
        raise PeerError(sender, TRAIN, str(error)) from None


def read_site_metrics(message: Message, *, sender: str) -> SiteMetrics:
    """A client's own test result.

    Raises:
        PeerError: missing, ill-typed, or numbers that no test set gives.
    """
    record = message.content.metric_records.get("metrics")
    try:
        if record is None:
            raise ValueError("no metrics")
        values: dict[str, Any] = {key: record[key] for key in ("accuracy", "personal_accuracy", "num_examples")}
        return SiteMetrics(**values)
    except (KeyError, ValueError, TypeError) as error:
        raise PeerError(sender, EVALUATE, f"metrics are malformed: {str(error)[:100]}") from None
