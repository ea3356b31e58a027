"""The parts of an agent's connection: its states, how a call fails, one proven channel, and Flower's headers.

1. A failed call has the HTTP status that the SuperNode is to see; which one, is decided in ``agent_link``.
2. Flower's own signature covers a time stamp and nothing else, so it is worth nothing by itself; the edge's signature covers it too.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

import grpc
import grpc.aio
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedsec.edge.edge_client import EdgeSession, FlowerHeaders
from fedsec.edge.refusal import Reason
from fedsec.edge.service import STATEMENT_METADATA, EdgeStub
from fedsec.errors import ProtocolError
from fedsec.identity.folder import Identity
from fedsec.signing import Signer, decode_public_key

FIRST_WAIT_S = 0.25
LONGEST_WAIT_S = 15.0
REFUSED_WAIT_S = 60.0


class LinkState(StrEnum):
    """How the connection stands."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    UNAUTHORISED = "unauthorised"
    """The gateway refuses this certificate: revoked, or not its federation's."""
    EXPIRED = "expired"
    """Our certificate ended, so no connection comes about."""
    WRONG_SERVER = "wrong-server"
    """Somebody else answers at the gateway's address."""


class CallFailedError(ProtocolError):
    """A call got no answer from the SuperLink.

    Args:
        status: HTTP status for the SuperNode.
        sentence: why.
    """

    code = "call-failed"

    def __init__(self, status: int, sentence: str) -> None:
        self.status = status
        super().__init__(sentence)


@dataclass(frozen=True)
class LinkSettings:
    """Where to, and who must be there.

    Attributes:
        server: ``host:port`` of the gateway.
        server_name: the name that its certificate must have.
        first_wait_s: before the first new attempt.
        longest_wait_s: between two attempts.
        refused_wait_s: between two attempts of a node that is refused.
    """

    server: str
    server_name: str
    first_wait_s: float = FIRST_WAIT_S
    longest_wait_s: float = LONGEST_WAIT_S
    refused_wait_s: float = REFUSED_WAIT_S


class FlowerSigner:
    """Makes Flower's own headers with the node's key, in the gateway's time.

    Args:
        signer: of the node's key.
    """

    def __init__(self, signer: Signer) -> None:
        key = serialization.load_pem_private_key(signer.to_pem(), password=None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self._key = key
        self.public_key = decode_public_key(signer.public_key).public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self._header = base64.b64encode(self.public_key).decode("ascii")

    def headers(self, now: datetime) -> FlowerHeaders:
        """The three headers at ``now`` (aware)."""
        timestamp = now.isoformat()
        signature = self._key.sign(
            timestamp.encode("ascii"), ec.ECDSA(hashes.SHA256())
        )  # a time begins with a digit, no label of ours does
        return FlowerHeaders(self._header, timestamp, base64.b64encode(signature).decode("ascii"))


@dataclass(eq=False)
class Connection:
    """A channel whose other end was proven, and the session on it.

    Attributes:
        identity: the node's, as the channel shows it.
        channel: gRPC's.
        stub: of the service on it.
        session: proven.
        flower: makes Flower's headers.
        watch: looks whether the channel stays on its connection.
        calls: under way.
        idle: set when the last one has ended.
    """

    identity: Identity
    channel: Any
    stub: EdgeStub
    session: EdgeSession
    flower: FlowerSigner
    watch: asyncio.Task[None] | None = None
    calls: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    def is_ready(self) -> bool:
        """Whether the channel still is on the connection that the Hello was said on, as far as gRPC tells."""
        return bool(self.channel.get_state() is grpc.ChannelConnectivity.READY)

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """One call more for the duration of the block."""
        self.calls += 1
        self.idle.clear()
        try:
            yield
        finally:
            self.calls -= 1
            if not self.calls:
                self.idle.set()


def reason_of(error: grpc.aio.AioRpcError) -> Reason | None:
    """The gateway's stable word; None: the failure is not the gateway's."""
    word = (error.details() or "").partition(":")[0]
    try:
        return Reason(word)
    except ValueError:
        return None


def statement_of(error: grpc.aio.AioRpcError) -> bytes | None:
    """The root's statement that came with a refusal, unverified."""
    found = [value for key, value in error.trailing_metadata() or () if key == STATEMENT_METADATA]
    return found[0] if found and isinstance(found[0], bytes) else None


def sentence_of(error: grpc.aio.AioRpcError) -> str:
    """What the gateway said, cut: it goes into logs."""
    text = (error.details() or error.code().name).replace("\n", " ")[:300]
    return "".join(letter if letter.isprintable() else "?" for letter in text)
