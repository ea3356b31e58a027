"""Lies under secure aggregation: a client that takes all steps honestly, and then sends something else under its own signature.

1. A liar's upload holds a poison on top of its encoded update; its sketch is that of the update alone, as its store holds it. The opened sum then
   contradicts the sketches, and blame has to name it.
2. The phase is moved along with the lie, so the liar stays in the round and can be asked on.
3. Where :func:`tamper` gives None the client says nothing: its app raises, or never replies.
4. After its lie a liar answers truthfully (but for ``silence``). Lies *about* masks, which blame must see through, are in the protocol's own tests.

A simulated client calls ``tamper`` on what a step of the state machine gave, before that is stored and sent.

==================  ==============================  ================================  ===========================================================
attack              upload                          sketch                            meant to be stopped by
==================  ==============================  ================================  ===========================================================
sketch-lie          x + P                           R·x                               the opening check; blame
sketch-lie-mod      x + 2**31 in two entries        R·that, modulo 2**32, as int32    the norm gate; a check modulo 2**32 would pass
wrong-mask          x + uniform words               R·x                               the opening check; blame
cancelling-pair     x + Q and x − Q                 R·x                               nothing, while both are accepted: the sum is right
silence             x + P                           R·x, then no word                 the opening check; blame, which then has no proof
==================  ==============================  ================================  ===========================================================

Source: design note SECAGG, stages 4 to 8; decision 0010.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from fedsec.secagg.checks import sign_statement
from fedsec.secagg.client import Sketched, Uploaded
from fedsec.secagg.labels import Phase
from fedsec.secagg.messages import Envelope, Input, SketchOpening, SketchStatement
from fedsec.secagg.seat import MakeMatrix, plain_matrix
from fedsec.secagg.views import input_digest, sketch_commitment, vector_hash
from fedsec.secagg.wire import Record
from fedsec.signing import Signer

HALF_RING = 1 << 31
PAIR_SIZE = 1 << 16
"""Largest entry of what a cancelling pair adds and subtracts; any number would do."""

_LIES = 0x11E
SILENT_FROM: Sequence[Phase] = (Phase.CONSISTENCY_CHECK, Phase.UNMASK, Phase.BLAME, Phase.BLAME_OPEN)
"""Stages after the lie, in order: round by round ``silence`` falls silent at the next one."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Lie:
    """What a liar of one round needs.

    Attributes:
        name: an attack of the protocol family.
        honest: int32 [d], its encoded update x, as its store holds it.
        poison: int32 [d], encoded: what it wants in the sum instead; P is the difference.
        place: among the colluders, from 0.
        num_attackers: all colluders.
        server_round: from 1.
        seed: of the run.
        signer: of the client's identity key.
        matrix: how to make R.
    """

    name: str
    honest: npt.NDArray[np.int32]
    poison: npt.NDArray[np.int32]
    place: int
    num_attackers: int
    server_round: int
    seed: int
    signer: Signer = field(repr=False)
    matrix: MakeMatrix = plain_matrix

    @property
    def silent_from(self) -> Phase:
        """Where ``silence`` falls silent in this round."""
        return SILENT_FROM[(self.server_round - 1) % len(SILENT_FROM)]


def _generator(lie: Lie, place: int) -> np.random.Generator:
    """The same for every call in one round."""
    return np.random.default_rng([lie.seed, lie.server_round, place, _LIES])


def extra(lie: Lie) -> npt.NDArray[np.int64]:
    """What the liar's upload holds on top of its encoded update, [d], to be taken modulo 2**32."""
    size = len(lie.honest)
    match lie.name:
        case "sketch-lie" | "silence":
            return lie.poison.astype(np.int64) - lie.honest
        case "sketch-lie-mod":
            chosen = _generator(lie, lie.place).choice(size, size=min(2, size), replace=False)
            return np.isin(np.arange(size), chosen).astype(np.int64) * HALF_RING
        case "wrong-mask":
            return _generator(lie, lie.place).integers(0, 1 << 32, size=size, dtype=np.int64)
        case "cancelling-pair":
            if lie.place ^ 1 >= lie.num_attackers:  # the odd one out stays honest
                return np.zeros(size, dtype=np.int64)
            common = _generator(lie, lie.place // 2).integers(-PAIR_SIZE, PAIR_SIZE + 1, size=size, dtype=np.int64)
            return common if lie.place % 2 == 0 else -common
    raise ValueError(f"{lie.name} is no attack on the protocol")


def tamper(lie: Lie, phase: Phase, state: Record, body: bytes) -> tuple[Record, bytes] | None:
    """What the liar keeps and sends instead of what the honest step gave.

    Args:
        lie: whose, and which.
        phase: that is answered.
        state: the client's next phase, as the honest step gave it.
        body: the message, as the honest step gave it.

    Returns:
        The same two where the liar is honest; None where it says nothing.

    Raises:
        ValueError: the attack is none on the protocol.
    """
    added = extra(lie)
    if lie.name == "silence" and phase in SILENT_FROM and SILENT_FROM.index(phase) >= SILENT_FROM.index(lie.silent_from):
        return None
    if isinstance(state, Uploaded) and phase is Phase.MASKED_INPUT:
        return lie_in_upload(state, body, added, signer=lie.signer)
    if isinstance(state, Sketched) and phase is Phase.SKETCH and lie.name == "sketch-lie-mod":
        config = state.seat.config
        shown = lie.matrix(state.matrix_seed, config.num_rows, config.dimension).product(added)
        return lie_in_sketch(state, body, shown, signer=lie.signer)
    return state, body


def lie_in_upload(state: Uploaded, body: bytes, added: npt.NDArray[np.int64], *, signer: Signer) -> tuple[Uploaded, bytes]:
    """Another upload: ``added`` ([d], integers) on top of the masked vector, modulo 2**32; the liar stands by it from now on."""
    envelope = Envelope.decode(body)
    statement = Input.decode(envelope.content)
    vector = np.frombuffer(envelope.attachment, dtype="<u4").astype(np.uint32) + added.astype(np.uint32)
    statement = replace(statement, vector_hash=vector_hash(statement.context, statement.sender, vector))
    moved = replace(state, input_digest=input_digest(statement.encode()))
    return moved, sign_statement(statement, signer, attachment=vector.astype("<u4", copy=False).tobytes())


def lie_in_sketch(state: Sketched, body: bytes, added: npt.NDArray[np.int64], *, signer: Signer) -> tuple[Sketched, bytes]:
    """Another sketch: ``added`` ([k], integers) on top, reduced to int32; the liar stands by it from now on."""
    envelope = Envelope.decode(body)
    statement, opening = SketchStatement.decode(envelope.content), SketchOpening.decode(envelope.attachment)
    values = (np.frombuffer(opening.sketch, dtype="<i4").astype(np.int64) + added).astype(np.uint32).astype("<i4").tobytes()
    statement = replace(statement, commitment=sketch_commitment(statement.context, statement.sender, opening.salt, values))
    moved = replace(state, commitment=statement.commitment)
    return moved, sign_statement(statement, signer, attachment=SketchOpening(salt=opening.salt, sketch=values).encode())
