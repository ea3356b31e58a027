"""Which node belongs to which certificate: the file that the gateway writes when it has seen a certificate, and the ServerApp reads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsec.errors import StorageError
from fedsec.signing import PUBLIC_KEY_BYTES

FORMAT = "fedsec/nodes/v1"
MAX_BYTES = 1 << 25


@dataclass(frozen=True)
class SeenNode:
    """What the gateway saw.

    Attributes:
        client_id: name in the certificate.
        public_key: of certificate and node, 33 bytes.
        serial_number: of the certificate that was shown last.
    """

    client_id: str
    public_key: bytes
    serial_number: int


def read_nodes(path: Path) -> dict[int, SeenNode]:
    """Node id → what the gateway saw; empty while no client has ever come.

    Raises:
        StorageError: damaged, or a client on two nodes.
    """
    try:
        with path.open("rb") as handle:
            data = handle.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError("too long")
        value = json.loads(data)
        if value["format"] != FORMAT or not isinstance(value["nodes"], dict):
            raise ValueError("of another format")
        nodes = {int(number): _read(entry) for number, entry in value["nodes"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise StorageError(f"{path} is damaged ({error}); restart the gateway, which writes it anew") from None
    if len({seen.client_id for seen in nodes.values()}) != len(nodes) or len({seen.public_key for seen in nodes.values()}) != len(nodes):
        raise StorageError(f"{path} has a client or a key on two nodes; restart the gateway, which writes it anew")
    return nodes


@dataclass(frozen=True)
class Floor:
    """Of the newest revocation list that the gateway went by.

    Attributes:
        number: 0 before the first.
        sha256: in hex; empty if the gateway wrote none.
    """

    number: int
    sha256: str


def read_floor(path: Path) -> Floor:
    """What the gateway wrote down in ``floors.json``; number 0 if it has not written yet.

    Raises:
        StorageError: damaged.
    """
    try:
        value = json.loads(path.read_bytes())
        floor = Floor(value["crl_number"], value.get("crl_sha256", ""))
        if type(floor.number) is not int or not isinstance(floor.sha256, str):
            raise ValueError("of another form")
    except FileNotFoundError:
        return Floor(0, "")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StorageError(f"{path} is damaged ({error}); the gateway says the mend") from None
    return floor


def _read(entry: Any) -> SeenNode:
    seen = SeenNode(str(entry["client_id"]), bytes.fromhex(entry["public_key"]), int(entry["serial_number"], 16))
    if len(seen.public_key) != PUBLIC_KEY_BYTES or seen.serial_number < 1 or not isinstance(entry["client_id"], str):
        raise ValueError("a node without a key, a name or a number")
    return seen
