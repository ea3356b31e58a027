"""One stage of secure aggregation over a Flower ``Grid``: requests out, replies in, each reply to the state machine of the member that sent it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid

from fedsec.errors import PeerError
from fedsec.flower.exchange import exchange
from fedsec.flower.records import RoundRequest
from fedsec.flower.secure_outcome import Sum
from fedsec.flower.secure_records import make_stage_request, read_reply, stage_type
from fedsec.flower.tally import Tally
from fedsec.plan.model import Plan
from fedsec.secagg.blame import BlameServer
from fedsec.secagg.checks import sign_config
from fedsec.secagg.group import GroupServer
from fedsec.secagg.labels import Phase
from fedsec.secagg.server import CohortServer
from fedsec.signing import Signer


@dataclass(frozen=True, kw_only=True, eq=False)
class RoundInput:
    """What a round is about.

    Attributes:
        request: the ordinary part of every message; the attempt is filled in.
        arrays: the model.
        model_bytes: its size on the wire.
        terms_hash: digest of plan and noise.
        root: the server's own model difference on trusted records, for a rule that needs one.
    """

    request: RoundRequest
    arrays: ArrayRecord
    model_bytes: int
    terms_hash: bytes
    root: Sum | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class StageCalls:
    """Asks the members.

    Attributes:
        grid: Flower's way to the nodes.
        plan: what to run; has the deadlines.
        signer: of the server's identity key.
        stop: set to end the wait.
        on_answers: told (answers so far, clients asked) while clients train.
    """

    grid: Grid
    plan: Plan
    signer: Signer
    stop: threading.Event
    on_answers: Callable[[int, int], None]

    def ask(self, group: GroupServer, phase: Phase, given: RoundInput, nodes: Mapping[str, int], tally: Tally) -> None:
        """Send one phase's requests, and hand the answers to the cohorts."""
        places: dict[int, tuple[int, int]] = {}
        messages: list[Message] = []
        for number, cohort in group.running().items():
            signed = sign_config(cohort.config, self.signer) if phase is Phase.ADVERTISE_KEYS else b""
            asked = {
                index: body for index, body in cohort.requests(signed_config=signed).items() if cohort.members[index].client_id in nodes
            }
            tally.add_asked(number, phase, len(asked))
            for index, body in asked.items():
                node = nodes[cohort.members[index].client_id]
                places[node] = (number, index)
                messages.append(self._message(given, cohort, phase, body, node))
                tally.add_down(number, index, len(body) + (given.model_bytes if phase is Phase.MASKED_INPUT else 0))
        for reply in self._exchange(messages, phase):
            if (place := places.get(reply.metadata.src_node_id)) is None:
                continue  # Flower itself answers for a node that is gone: a drop-out
            number, index = place
            self._take(group.cohorts[number], number, index, reply, phase, tally)

    def ask_blame(self, blame: BlameServer, nodes: Mapping[str, int], given: RoundInput, tally: Tally) -> None:
        """One phase of BLAME; openings are asked one by one, since each is a request of its own."""
        cohort, phase = blame.server, blame.phase
        waves: list[dict[int, bytes]] = []
        for index, bodies in blame.requests().items():
            for place, body in enumerate(bodies):
                waves += [{}] if place == len(waves) else []
                waves[place][index] = body
        for wave in waves:
            places = {nodes[cohort.members[index].client_id]: index for index in wave if cohort.members[index].client_id in nodes}
            messages = [self._message(given, cohort, phase, wave[index], node) for node, index in places.items()]
            for reply in self._exchange(messages, phase):
                if reply.metadata.src_node_id in places:
                    self._take(blame, cohort.config.cohort, places[reply.metadata.src_node_id], reply, phase, tally)

    def _message(self, given: RoundInput, cohort: CohortServer, phase: Phase, body: bytes, node: int) -> Message:
        request = given.request.with_attempt(cohort.config.attempt)
        arrays = given.arrays if phase is Phase.MASKED_INPUT else None
        return make_stage_request(request, body, node_id=node, message_type=stage_type(phase), arrays=arrays)

    def _exchange(self, messages: Sequence[Message], phase: Phase) -> list[Message]:
        trains = phase is Phase.MASKED_INPUT
        timeout_s = self.plan.federation.round_timeout_s if trains else self.plan.secagg.stage_timeout_s
        silent: Callable[[int, int], None] = lambda _answered, _asked: None  # noqa: E731
        return exchange(self.grid, messages, timeout_s=timeout_s, stop=self.stop, on_answers=self.on_answers if trains else silent)

    def _take(
        self, machine: CohortServer | BlameServer, number: int, index: int, reply: Message, phase: Phase, tally: Tally
    ) -> None:  # fmt: skip
        cohort = machine.server if isinstance(machine, BlameServer) else machine
        name = cohort.members[index].client_id
        try:
            body = read_reply(reply, sender=name, phase=phase)
            tally.add_up(number, index, len(body))
            machine.receive(index, body)
            tally.add_answer(number, phase)
        except PeerError as error:
            tally.refused.append((name, f"{phase}: {error.reason}"))
            tally.add_refusal(phase)
