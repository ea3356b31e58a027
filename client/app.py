"""The ClientApp: composition root of a participant. The same object runs on every engine; torch is imported only where it trains.

1. Before any handler runs, the server's signature on the request is checked (``client/signatures.py``): one guard stands before all of them.
2. An exception's text travels to the server as the error reply. Errors about the request say nothing about records and are sent; of any other
   only the kind leaves, and the rest stays in this client's log: a model that fails on a record may print it, and so may an import.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.settings import in_simulation
from client.signatures import check_signature
from fedsec.errors import DecodeError, FedsecError, PeerError, PrivacyBudgetExceeded, VerificationError
from fedsec.policy import PolicyRefusedError

_logger = logging.getLogger(__name__)

Handler = Callable[[Message, Context], Message]


class ClientFailedError(FedsecError):
    """What a server is told when a client fails for a reason that stays with the client."""

    code = "client-failed"


def guard(message: Message, context: Context, handler: Handler) -> Message:
    """Check who asks, have the handler answer, and let no more of an error out than the server may know."""
    try:
        check_signature(message, context)
        return handler(message, context)
    except FedsecError as error:
        _logger.warning("a request was refused: %s", error)
        _logger.debug("where", exc_info=True)
        if in_simulation() or isinstance(error, PolicyRefusedError | PrivacyBudgetExceeded | PeerError | DecodeError | VerificationError):
            raise  # these speak of the request only; a simulation's records are whoever's runs it
        raise ClientFailedError(f"this client cannot answer ({error.code}); its own log says why") from None
    except Exception as error:
        _logger.exception("a round failed")
        raise ClientFailedError(f"this client failed with {type(error).__name__}; its own log says where") from None


app = ClientApp(mods=[guard])


@app.query("describe")
def describe(message: Message, context: Context) -> Message:
    """Say who this client is."""
    from client.rounds import answer_describe  # noqa: PLC0415

    return answer_describe(message, context.node_config)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train one round and answer with the update, or with the one stored for this very request."""
    from client.rounds import answer_train  # noqa: PLC0415

    return answer_train(message, context.node_config)


@app.query("roster")
def roster(message: Message, context: Context) -> Message:
    """Take the CA's list of clients."""
    from client.secagg import answer_roster  # noqa: PLC0415

    return answer_roster(message, context)


@app.query("advertise_keys")
def advertise_keys(message: Message, context: Context) -> Message:
    """Secure aggregation, stages 0 and 1."""
    from client.secagg import answer_advertise_keys  # noqa: PLC0415

    return answer_advertise_keys(message, context)


@app.query("share_keys")
def share_keys(message: Message, context: Context) -> Message:
    """Secure aggregation, stage 2."""
    from client.secagg import answer_share_keys  # noqa: PLC0415

    return answer_share_keys(message, context)


@app.train("masked_input")
def masked_input(message: Message, context: Context) -> Message:
    """Secure aggregation, stage 3: train, mask, upload."""
    from client.secagg_input import answer_masked_input  # noqa: PLC0415 - torch

    return answer_masked_input(message, context)


@app.query("sketch")
def sketch(message: Message, context: Context) -> Message:
    """Secure aggregation, stage 4."""
    from client.secagg import answer_sketch  # noqa: PLC0415

    return answer_sketch(message, context)


@app.query("consistency_check")
def consistency_check(message: Message, context: Context) -> Message:
    """Secure aggregation, stage 5."""
    from client.secagg import answer_consistency_check  # noqa: PLC0415

    return answer_consistency_check(message, context)


@app.query("unmask")
def unmask(message: Message, context: Context) -> Message:
    """Secure aggregation, stage 6: the only one that releases shares."""
    from client.secagg import answer_unmask  # noqa: PLC0415

    return answer_unmask(message, context)


@app.query("blame")
def blame(message: Message, context: Context) -> Message:
    """Secure aggregation, stage 8: an opening failed."""
    from client.secagg import answer_blame  # noqa: PLC0415

    return answer_blame(message, context)


@app.query("blame_open")
def blame_open(message: Message, context: Context) -> Message:
    """Secure aggregation, stage 8: settle one edge."""
    from client.secagg import answer_blame_open  # noqa: PLC0415

    return answer_blame_open(message, context)


@app.train("personalise")
def personalise(message: Message, context: Context) -> Message:
    """Fit and keep the personal parameters, after the last release."""
    from client.rounds import answer_personalise  # noqa: PLC0415

    return answer_personalise(message, context.node_config)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Report this client's own test result, where its policy allows it."""
    from client.rounds import answer_evaluate  # noqa: PLC0415

    return answer_evaluate(message, context.node_config)
