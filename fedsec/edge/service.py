"""The gRPC service by its names, for both sides; written out, so that no generated stub without types is needed.

1. Bodies travel in pieces: flow control then holds a sender back, and the gateway looks at a call's head before it takes its body.
2. A message is at most :data:`MAX_MESSAGE_BYTES`, whatever a peer sends.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

from fedsec.edge import edge_pb2
from fedsec.edge.signing import MAX_CHUNK_BYTES

STATEMENT_METADATA = "fedsec-root-statement-bin"
"""Trailing metadata of a refusal: the root's newest statement of its intermediates (``identity.intermediates``)."""

GO_AHEAD = "fedsec-go-ahead"
"""Initial metadata of a forwarded call whose head was taken: the rest of its body may come."""

SERVICE = "fedsec.edge.v1.Edge"

MAX_MESSAGE_BYTES = MAX_CHUNK_BYTES + 64 * 1024
"""Longest gRPC message of a call: a piece of a body and the fields beside it."""

MAX_BUNDLE_BYTES = 8 * 1024 * 1024
"""Longest message that a client accepts: a bundle holds the release files and the revocation list."""

REQUEST_CHUNK = edge_pb2.ForwardRequest.CHUNK_FIELD_NUMBER << 3 | 2
"""First byte of a message of ``ForwardRequest`` that holds a piece only."""

REPLY_CHUNK = edge_pb2.ForwardReply.CHUNK_FIELD_NUMBER << 3 | 2
"""The same of ``ForwardReply``."""

Body: TypeAlias = bytes | bytearray | memoryview

KEEPALIVE_MS = 30_000
"""How often a client pings a silent connection, so that it stays open through address translation."""

FRAME_BYTES = 1 << 20
"""Largest HTTP/2 frame that either side takes: with gRPC's 16 KiB, a large body costs a third more time."""

CLIENT_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_BUNDLE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.max_frame_size", FRAME_BYTES),
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 250),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)
"""What an agent gives its channel. Retries are off: a call with a used counter is refused."""


class EdgeStub:
    """The client's side of the service over one ``grpc.aio`` channel."""

    def __init__(self, channel: Any) -> None:
        self.hello = channel.unary_unary(
            f"/{SERVICE}/Hello", request_serializer=serialize, response_deserializer=edge_pb2.HelloReply.FromString
        )
        self.forward = channel.stream_stream(f"/{SERVICE}/Forward", request_serializer=serialize, response_deserializer=read_reply)
        self.renew = channel.unary_unary(
            f"/{SERVICE}/Renew", request_serializer=serialize, response_deserializer=edge_pb2.RenewReply.FromString
        )
        self.bundle = channel.unary_unary(
            f"/{SERVICE}/Bundle", request_serializer=serialize, response_deserializer=edge_pb2.BundleReply.FromString
        )


def serialize(message: Any) -> bytes:
    """A message's bytes; a piece made by :func:`encode_piece` is one already."""
    if isinstance(message, bytes):
        return message
    data: bytes = message.SerializeToString()
    return data


def pieces(body: Body) -> Iterator[memoryview]:
    """A body cut into pieces of at most :data:`MAX_CHUNK_BYTES`, without copying; one empty piece for an empty body."""
    view = memoryview(body)
    for start in range(0, len(view) or 1, MAX_CHUNK_BYTES):
        yield view[start : start + MAX_CHUNK_BYTES]


def encode_piece(tag: int, piece: memoryview) -> bytes:
    """A message that holds a piece and nothing else, as protobuf would write it: a large body is copied once, not three times.

    Args:
        tag: :data:`REQUEST_CHUNK` or :data:`REPLY_CHUNK`.
        piece: not empty.
    """
    head = bytearray((tag,))
    left = len(piece)
    while left > 0x7F:
        head.append(left & 0x7F | 0x80)
        left >>= 7
    head.append(left)
    return b"".join((head, piece))


def decode_piece(tag: int, data: bytes) -> memoryview | None:
    """The piece in a message that :func:`encode_piece` could have written, without copying; None for any other message."""
    if not data or data[0] != tag:
        return None
    length = shift = 0
    for place in range(1, min(len(data), 6)):
        byte = data[place]
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:  # the last byte of a varint
            rest = memoryview(data)[place + 1 :]
            return rest if len(rest) == length else None
    return None


def read_request(data: bytes) -> edge_pb2.ForwardRequest | memoryview:
    """A message from an agent: a mere piece, or something with a head.

    Raises:
        google.protobuf.message.DecodeError: not a message; gRPC then ends the call.
    """
    piece = decode_piece(REQUEST_CHUNK, data)
    return edge_pb2.ForwardRequest.FromString(data) if piece is None else piece


def read_reply(data: bytes) -> edge_pb2.ForwardReply | memoryview:
    """A message from the gateway; as :func:`read_request`."""
    piece = decode_piece(REPLY_CHUNK, data)
    return edge_pb2.ForwardReply.FromString(data) if piece is None else piece
