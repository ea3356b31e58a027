"""The Fleet paths that pass the edge, and how large a body may be on each: an exact list, the same for agent and gateway.

Not in it, so refused: ``register-node`` and ``unregister-node`` (the gateway registers, from the roster), all of Control and Runtime.
"""

from __future__ import annotations

FLEET_PREFIX = "/v1/fleet/"

ACTIVATE_NODE = "/v1/fleet/activate-node"
DEACTIVATE_NODE = "/v1/fleet/deactivate-node"
SEND_NODE_HEARTBEAT = "/v1/fleet/send-node-heartbeat"
PULL_MESSAGES = "/v1/fleet/pull-messages"
PUSH_MESSAGES = "/v1/fleet/push-messages"
GET_RUN = "/v1/fleet/get-run"
GET_FAB = "/v1/fleet/get-fab"
PUSH_OBJECT = "/v1/fleet/push-object"
PULL_OBJECT = "/v1/fleet/pull-object"
CONFIRM_MESSAGE_RECEIVED = "/v1/fleet/confirm-message-received"

SMALL_BODY_BYTES = 64 * 1024
MESSAGE_BODY_BYTES = 1024 * 1024
"""A message travels as its metadata and the tree of its objects' hashes; the objects are pushed one by one."""

BODY_LIMITS: dict[str, int | None] = {
    ACTIVATE_NODE: SMALL_BODY_BYTES,
    DEACTIVATE_NODE: SMALL_BODY_BYTES,
    SEND_NODE_HEARTBEAT: SMALL_BODY_BYTES,
    PULL_MESSAGES: SMALL_BODY_BYTES,
    PUSH_MESSAGES: MESSAGE_BODY_BYTES,
    GET_RUN: SMALL_BODY_BYTES,
    GET_FAB: SMALL_BODY_BYTES,
    PUSH_OBJECT: None,
    PULL_OBJECT: SMALL_BODY_BYTES,
    CONFIRM_MESSAGE_RECEIVED: SMALL_BODY_BYTES,
}
"""Allowed paths and the most bytes of a request's body on each; None: the operator's ``limits.object_bytes``."""

DEFAULT_OBJECT_BYTES = 256 * 1024 * 1024
"""Usual limit on one object, and on one answer."""
