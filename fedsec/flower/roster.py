"""Before the first round: every client gets the CA's list, its cohort's certificates, and the log's proof that the list is in it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

from fedsec.errors import DecodeError, PeerError
from fedsec.flower.exchange import exchange
from fedsec.flower.records import RoundRequest
from fedsec.flower.secure_records import ROSTER, RosterOffer, RosterReply, make_stage_request, read_reply
from fedsec.secagg.config import Member
from fedsec.translog.log import TransparencyLog


@dataclass(frozen=True, kw_only=True)
class Membership:
    """The federation as the CA's list says.

    Attributes:
        federation: its name.
        roster: the list, canonical bytes.
        signature: of the CA under it.
        roster_hash: its digest.
        intermediate: certificate of the CA that signed.
        server_certificate: this server's.
        certificates: client id → certificate.
        cohorts: members of each cohort, in order.
        log_index: place of the list in the log.
    """

    federation: str
    roster: bytes
    signature: bytes
    roster_hash: bytes
    intermediate: bytes
    server_certificate: bytes
    certificates: Mapping[str, bytes]
    cohorts: tuple[tuple[Member, ...], ...]
    log_index: int

    @property
    def num_clients(self) -> int:
        """Clients on the list."""
        return sum(len(cohort) for cohort in self.cohorts)


@dataclass(frozen=True, kw_only=True, eq=False)
class RosterOffers:
    """Hands the list to clients.

    Attributes:
        grid: way to the nodes.
        membership: what to hand out.
        log: proves that the list is in it.
        timeout_s: to wait for answers.
        stop: ends the wait.
        now_s: seconds since 1970.
    """

    grid: Grid
    membership: Membership
    log: TransparencyLog
    timeout_s: float
    stop: threading.Event
    now_s: Callable[[], int]

    def hand_out(self, request: RoundRequest, nodes: Mapping[str, int]) -> dict[str, str]:
        """Offer the list; a client that followed the log before says from where, and is offered a proof from there.

        Returns:
            Client id → why it did not take the list; a silent client is among them.
        """
        names = [name for name in sorted(nodes) if name in self.membership.certificates]
        faults = {name: "is not on the list of clients" for name in nodes if name not in self.membership.certificates}
        replies = self._ask(request, dict.fromkeys(names, 0), nodes)
        again = {name: reply.log_size for name, reply in replies.items() if isinstance(reply, RosterReply) and not reply.accepted}
        replies |= self._ask(request, again, nodes) if again else {}
        for name in names:
            reply = replies.get(name, "did not answer")
            if isinstance(reply, str):
                faults[name] = reply
            elif not reply.accepted:
                faults[name] = "saw another log"
        return faults

    def _ask(self, request: RoundRequest, since: Mapping[str, int], nodes: Mapping[str, int]) -> dict[str, RosterReply | str]:
        by_node = {nodes[name]: name for name in since if since[name] <= len(self.log)}
        proofs = {
            size: self.log.prove(self.membership.log_index, size, self.now_s()).encode()
            for size in set(since.values())
            if size <= len(self.log)
        }
        messages = [
            make_stage_request(request, self._offer(name, proofs[since[name]]), node_id=node, message_type=ROSTER)
            for node, name in by_node.items()
        ]
        replies = exchange(self.grid, messages, timeout_s=self.timeout_s, stop=self.stop)
        known = [(by_node[reply.metadata.src_node_id], reply) for reply in replies if reply.metadata.src_node_id in by_node]
        return {name: self._read(reply, name) for name, reply in known}

    def _offer(self, name: str, proof: bytes) -> bytes:
        membership = self.membership
        cohort = next(members for members in membership.cohorts if any(member.client_id == name for member in members))
        return RosterOffer(
            roster=membership.roster,
            signature=membership.signature,
            intermediate=membership.intermediate,
            server_certificate=membership.server_certificate,
            certificates=tuple(membership.certificates[member.client_id] for member in cohort),
            log_proof=proof,
        ).encode()

    @staticmethod
    def _read(reply: Message, name: str) -> RosterReply | str:
        try:
            return RosterReply.decode(read_reply(reply, sender=name, phase="roster"))
        except (PeerError, DecodeError) as error:
            return str(error)
