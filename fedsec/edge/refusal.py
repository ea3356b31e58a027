"""Why the gateway refuses a call: a gRPC status for the agent, a stable word for logs and tests, a sentence for people.

The status is what the agent acts on; ``edge.proto`` lists what each means. Nothing of a request's body is ever in the sentence.
"""

from __future__ import annotations

from enum import StrEnum

import grpc

from fedsec.errors import ProtocolError


class Reason(StrEnum):
    """Stable words; the status that goes with each is in :data:`STATUS`."""

    TLS = "tls"
    CERTIFICATE = "certificate"
    REVOKED = "revoked"
    SESSION = "session"
    COUNTER = "counter"
    SIGNATURE = "signature"
    PUBLIC_KEY = "public-key"
    PATH = "path"
    NODE = "node"
    MESSAGE = "message"
    MALFORMED = "malformed"
    SIZE = "size"
    RATE = "rate"
    BUSY = "busy"
    SLOW = "slow"
    NOT_REGISTERED = "not-registered"
    NO_REVOCATION_LIST = "no-revocation-list"
    SUPERLINK = "superlink"
    CA = "ca"
    RENEWAL = "renewal"
    STOPPING = "stopping"
    INTERNAL = "internal"


_CODE = grpc.StatusCode

STATUS: dict[Reason, grpc.StatusCode] = {
    Reason.TLS: _CODE.UNAUTHENTICATED,
    Reason.CERTIFICATE: _CODE.UNAUTHENTICATED,
    Reason.REVOKED: _CODE.UNAUTHENTICATED,
    Reason.SESSION: _CODE.FAILED_PRECONDITION,
    Reason.COUNTER: _CODE.FAILED_PRECONDITION,
    Reason.SIGNATURE: _CODE.PERMISSION_DENIED,
    Reason.PUBLIC_KEY: _CODE.PERMISSION_DENIED,
    Reason.PATH: _CODE.PERMISSION_DENIED,
    Reason.NODE: _CODE.PERMISSION_DENIED,
    Reason.MESSAGE: _CODE.PERMISSION_DENIED,
    Reason.MALFORMED: _CODE.INVALID_ARGUMENT,
    Reason.SIZE: _CODE.RESOURCE_EXHAUSTED,
    Reason.RATE: _CODE.RESOURCE_EXHAUSTED,
    Reason.BUSY: _CODE.RESOURCE_EXHAUSTED,
    Reason.SLOW: _CODE.RESOURCE_EXHAUSTED,
    Reason.NOT_REGISTERED: _CODE.UNAVAILABLE,
    Reason.NO_REVOCATION_LIST: _CODE.UNAVAILABLE,
    Reason.SUPERLINK: _CODE.UNAVAILABLE,
    Reason.CA: _CODE.UNAVAILABLE,
    Reason.RENEWAL: _CODE.PERMISSION_DENIED,
    Reason.STOPPING: _CODE.UNAVAILABLE,
    Reason.INTERNAL: _CODE.INTERNAL,
}


class Refused(ProtocolError):  # noqa: N818 - what happened to the call, as in the audit log
    """The gateway does not serve this call.

    Args:
        reason: the stable word.
        sentence: what is wrong and the mend; goes to the caller and into the audit log.
    """

    code = "refused"

    def __init__(self, reason: Reason, sentence: str) -> None:
        self.reason = reason
        super().__init__(f"{reason.value}: {sentence}")

    @property
    def status(self) -> grpc.StatusCode:
        """What the agent acts on."""
        return STATUS[self.reason]
