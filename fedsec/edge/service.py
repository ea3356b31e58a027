"""The gRPC service by its names, for both sides; written out, so that no generated stub without types is needed.

1. Bodies travel in pieces: flow control then holds a sender back, and the gateway looks at a call's head before it takes its body.
2. A message is at most :data:`MAX_MESSAGE_BYTES`, whatever a peer sends.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fedsec.edge import edge_pb2
from fedsec.edge.signing import MAX_CHUNK_BYTES

SERVICE = "fedsec.edge.v1.Edge"

MAX_MESSAGE_BYTES = MAX_CHUNK_BYTES + 64 * 1024
"""Longest gRPC message of a call: a piece of a body and the fields beside it."""

MAX_BUNDLE_BYTES = 8 * 1024 * 1024
"""Longest message that a client accepts: a bundle holds the release files and the revocation list."""

KEEPALIVE_MS = 30_000
"""How often a client pings a silent connection, so that it stays open through address translation."""

CLIENT_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_BUNDLE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 250),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)
"""What an agent gives its channel. Retries are off: a call with a used counter is refused."""


class EdgeStub:
    """The client's side of the service over one ``grpc.aio`` channel."""

    def __init__(self, channel: Any) -> None:
        self.hello = channel.unary_unary(
            f"/{SERVICE}/Hello", request_serializer=_serialize, response_deserializer=edge_pb2.HelloReply.FromString
        )
        self.forward = channel.stream_stream(
            f"/{SERVICE}/Forward", request_serializer=_serialize, response_deserializer=edge_pb2.ForwardReply.FromString
        )
        self.renew = channel.unary_unary(
            f"/{SERVICE}/Renew", request_serializer=_serialize, response_deserializer=edge_pb2.RenewReply.FromString
        )
        self.bundle = channel.unary_unary(
            f"/{SERVICE}/Bundle", request_serializer=_serialize, response_deserializer=edge_pb2.BundleReply.FromString
        )


def _serialize(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


def pieces(body: bytes) -> Iterator[bytes]:
    """A body cut into pieces of at most :data:`MAX_CHUNK_BYTES`; one empty piece for an empty body."""
    if len(body) <= MAX_CHUNK_BYTES:
        yield body
        return
    view = memoryview(body)
    for start in range(0, len(body), MAX_CHUNK_BYTES):
        yield bytes(view[start : start + MAX_CHUNK_BYTES])
