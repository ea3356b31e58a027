"""One message at one node: what every engine does around a call of the ClientApp."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from flwr.app import Context, Message, RecordDict

T = TypeVar("T")


def run_client(client_app: Callable[..., Message], message: Message, context: Context, finish: Callable[[Message], T]) -> T:
    """Have ``client_app`` answer ``message`` and return ``finish(reply)``.

    Guarantee: ``context.state`` changes only if all of it succeeds, as where Flower stores the state of a node.

    Raises:
        TypeError: the ClientApp returned something else than a message.
        ValueError: it returned a message that is no reply to ``message``.
        BaseException: whatever the ClientApp or ``finish`` raised.
    """
    trial = Context(
        run_id=context.run_id,
        node_id=context.node_id,
        node_config=dict(context.node_config),
        state=RecordDict({key: record.copy() for key, record in context.state.items()}),
        run_config=dict(context.run_config),
    )
    reply = client_app(message=message, context=trial)
    if not isinstance(reply, Message):
        raise TypeError(f"the ClientApp returned {type(reply).__name__}, not a Message")
    if reply.metadata.reply_to_message_id != message.metadata.message_id:
        raise ValueError("the ClientApp returned a message that is not a reply to the one it got")
    finished = finish(reply)
    context.state = trial.state
    return finished
