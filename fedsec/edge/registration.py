"""Clients of the signed list become nodes of the SuperLink, and back: which key has which node id.

1. Only keys on the CA's list are registered, by the Control API on loopback; a node cannot register itself.
2. A client whose certificates were revoked is unregistered, so that the ServerApp does not wait for it. A client that is merely not on
   the list any more stays registered and is refused: the SuperLink never takes a key twice, and a list may be mended.
3. ``nodes.json`` names the nodes that are served now; the ServerApp reads it. It is written only when it changed, atomically. A client or
   a key that stands in it twice makes it worth nothing: nobody counts twice.
4. A client that enrolled anew with another key is another node: the one of its old key is unregistered, revoked or not.
5. An outage of the SuperLink is told by the exception; calling again later mends it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from google.protobuf.message import DecodeError as ProtobufError

from fedsec.edge import fleet_pb2
from fedsec.edge.fleet_calls import Node, flower_public_key
from fedsec.edge.trust import Standing
from fedsec.edge.upstream import PROTOBUF, Response, UpstreamError
from fedsec.errors import StorageError
from fedsec.files import atomic_write_json

NODES_FORMAT = "fedsec/nodes/v1"

_LIST = "/v1/control/list-nodes"
_REGISTER = "/v1/control/register-node"
_UNREGISTER = "/v1/control/unregister-node"
_UNREGISTERED = "unregistered"


class Control(Protocol):
    """Whoever sends POSTs to the SuperLink: ``Upstream``."""

    async def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> Response:
        """Send one."""


@dataclass(frozen=True)
class Member:
    """A client of the list.

    Attributes:
        client_id: its name.
        public_key: 33 bytes.
        serial_number: of the CA's newest certificate for it, if that is known.
    """

    client_id: str
    public_key: bytes
    serial_number: int | None


def members_of(standing: Standing, now: datetime) -> list[Member]:
    """The clients of the list that counts now; none if there is no list, or it has ended."""
    if standing.roster is None or now > standing.roster.not_after:
        return []
    known = standing.serial_numbers
    return [Member(entry.client_id, entry.public_key, known.get(entry.client_id)) for entry in standing.roster.members]


class Registry:
    """Which nodes there are.

    Args:
        nodes_file: ``nodes.json``; what an earlier process wrote there says which certificates were in use.

    Attributes:
        on_gone: told the key and the id of each node that was unregistered.
    """

    def __init__(self, nodes_file: Path) -> None:
        self._file = nodes_file
        self._written: dict[str, Any] | None = None
        self._by_key: dict[bytes, Node] = {}
        self._shown: dict[bytes, int] = {}
        self._known: dict[bytes, int] = {}
        self._names: dict[bytes, str] = {}
        self.on_gone: Callable[[bytes, int], Awaitable[None]] = _nobody
        with contextlib.suppress(StorageError):
            before = read_nodes(nodes_file).values()
            self._known = {entry.public_key: entry.serial_number for entry in before if entry.serial_number is not None}
            self._names = {entry.public_key: entry.client_id for entry in before}

    def __len__(self) -> int:
        return len(self._by_key)

    def find(self, public_key: bytes) -> Node | None:
        """The node of a key, if it is on the list and registered."""
        return self._by_key.get(public_key)

    @property
    def keys(self) -> set[bytes]:
        """Keys of all nodes."""
        return set(self._by_key)

    def saw(self, public_key: bytes, serial_number: int) -> bool:
        """A caller showed this certificate; True if ``nodes.json`` does not say so yet."""
        if public_key not in self._by_key or self._shown.get(public_key) == serial_number:
            return False
        before = self.serial_number(public_key)
        self._shown[public_key] = serial_number
        return before != serial_number

    def serial_number(self, public_key: bytes) -> int | None:
        """The newest certificate known to be in use for a key."""
        return self._shown.get(public_key, self._known.get(public_key))

    async def sync(self, control: Control, members: list[Member], is_revoked: Callable[[int], bool]) -> list[str]:
        """Make the SuperLink's nodes those of the list.

        Args:
            control: the SuperLink.
            members: of :func:`members_of`.
            is_revoked: whether the current revocation list names a certificate.

        Returns:
            What was done, a verb and a client id or key each, for the audit log.

        Raises:
            UpstreamError: the SuperLink does not answer, or refuses.
            StorageError: ``nodes.json`` cannot be written.
        """
        self._known |= {member.public_key: member.serial_number for member in members if member.serial_number is not None}
        gone = {key for key in self._known.keys() | self._shown.keys() if is_revoked(self.serial_number(key) or 0)}
        keys = {member.client_id: member.public_key for member in members}
        gone |= {key for key, name in self._names.items() if keys.get(name, key) != key}
        registered = await _list(control)
        done: list[str] = []
        served: dict[bytes, Node] = {}
        for key in gone:
            node_id = registered.pop(flower_public_key(key), None)
            if node_id is not None:
                await _unregister(control, node_id)
                await self.on_gone(key, node_id)
                done.append(f"unregistered {key.hex()}")
        for member in members:
            if member.public_key in gone:
                continue
            pem = flower_public_key(member.public_key)
            node_id = registered.get(pem)
            if node_id is None:
                node_id = await _register(control, pem, member.client_id)
                done.append(f"registered {member.client_id}")
            served[member.public_key] = Node(member.client_id, member.public_key, node_id)
        self._by_key = served
        self._names = {key: name for key, name in self._names.items() if key not in gone}
        self._names |= {member.public_key: member.client_id for member in members}
        self._write()
        return done

    def _write(self) -> None:
        nodes = {}
        for node in sorted(self._by_key.values(), key=lambda node: node.node_id):
            serial_number = self.serial_number(node.public_key)
            if serial_number is not None:  # else it never called, and nobody could say whether it is revoked
                nodes[str(node.node_id)] = {
                    "client_id": node.client_id,
                    "public_key": node.public_key.hex(),
                    "serial_number": f"{serial_number:X}",
                }
        content = {"format": NODES_FORMAT, "nodes": nodes}
        if content != self._written:
            atomic_write_json(self._file, content)
            self._written = content


async def _nobody(_key: bytes, _node_id: int) -> None:
    """Nobody is told."""


async def _call(control: Control, path: str, request: Any, answer: Any) -> Any:
    response = await control.post(path, request.SerializeToString(), {})
    if response.status != 200 or not response.content_type.startswith(PROTOBUF):
        raise UpstreamError(f"the SuperLink answers {path} with HTTP {response.status}")
    try:
        return answer.FromString(response.body)
    except ProtobufError:
        raise UpstreamError(f"the SuperLink's answer to {path} cannot be read") from None


async def _list(control: Control) -> dict[bytes, int]:
    answer = await _call(control, _LIST, fleet_pb2.ListNodesRequest(), fleet_pb2.ListNodesResponse)
    return {node.public_key: node.node_id for node in answer.nodes_info if node.status != _UNREGISTERED}


async def _register(control: Control, pem: bytes, client_id: str) -> int:
    request = fleet_pb2.RegisterNodeRequest(public_key=pem, name=client_id)
    node_id = int((await _call(control, _REGISTER, request, fleet_pb2.RegisterNodeResponse)).node_id)
    if not node_id:
        raise UpstreamError("the SuperLink registered a node without an id")
    return node_id


async def _unregister(control: Control, node_id: int) -> None:
    await _call(control, _UNREGISTER, fleet_pb2.UnregisterNodeRequest(node_id=node_id), fleet_pb2.UnregisterNodeResponse)


def read_nodes(path: Path) -> dict[int, Member]:
    """What ``nodes.json`` says, by node id.

    Raises:
        StorageError: missing or damaged, or a client or a key is in it twice.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != NODES_FORMAT:
            raise ValueError("another format")
        nodes = {int(node_id): _member(entry) for node_id, entry in content["nodes"].items()}
        if any(
            len(set(column)) != len(nodes) for column in ([m.client_id for m in nodes.values()], [m.public_key for m in nodes.values()])
        ):
            raise ValueError("a client or a key is in it twice")
        return nodes
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(f"cannot read {path}: {error}") from error


def _member(entry: Any) -> Member:
    return Member(entry["client_id"], bytes.fromhex(entry["public_key"]), int(entry["serial_number"], 16))
