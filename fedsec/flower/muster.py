"""Who is who, who is here, and who is gone: the server's knowledge of its clients, before the first round and between rounds.

1. Clients are known by client id; node ids are only addresses. An id that two nodes claim belongs to neither.
2. In a deployment a node's certificate says which client it is (:class:`Attendance`). A node without one is not asked; one that claims another
   client's id takes no part, and the client of its certificate is named.
3. In a deployment nodes that come later, or come back under another address, are taken in before the next round; clients whose certificate was
   revoked are asked no more; clients that are offline are not waited for.
4. In a simulation the nodes that joined are the clients, for the whole run.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from flwr.app import Message
from flwr.serverapp import Grid

from fedsec.errors import PeerError
from fedsec.flower.attendance import Attendance
from fedsec.flower.exchange import StopRequested, exchange
from fedsec.flower.records import DESCRIBE, RoundRequest, make_request, sender_of
from fedsec.flower.roster import RosterOffers
from fedsec.flower.stages import SecureRounds
from fedsec.plan.sections import FederationSection

JOIN_POLL_S = 0.05
"""Pause between two looks at who is online, while the nodes of a simulation are still joining."""
DEPLOYED_POLL_S = 0.5
"""The same in a deployment, where each look is a call to the SuperLink."""


@dataclass(kw_only=True, eq=False)
class Muster:
    """The clients of one run.

    Attributes:
        grid: way to the nodes.
        federation: timeouts and numbers of the plan.
        request: what every message before the first round says.
        secure: hands out the CA's list; None without secure aggregation.
        attendance: who may take part; None in a simulation.
        weight_limit: largest batch size that a client may declare.
        stop: ends a wait.
        note: told of everybody who may not take part, once.
        clients: client id → node id of all who joined.
        faults: why others did not, in order.
    """

    grid: Grid
    federation: FederationSection
    request: RoundRequest
    secure: SecureRounds | None
    attendance: Attendance | None
    weight_limit: int
    stop: threading.Event
    note: Callable[[str], None] = lambda _text: None
    clients: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def join(self) -> int:
        """Wait for the federation's nodes and learn their client ids; returns how many nodes there were.

        Raises:
            StopRequested: someone asked the run to stop.
        """
        wanted = self.federation.num_clients
        if self.attendance is not None and self.secure is not None:
            wanted = self.secure.membership.num_clients
        nodes = self._wait(wanted - len(self.gone()), self.federation.join_timeout_s)
        self._welcome(nodes)
        return len(nodes)

    def refresh(self, least: int) -> None:
        """Before a round of a deployment: take in who came, and wait for ``least`` clients if there are fewer.

        Raises:
            StopRequested: someone asked the run to stop.
        """
        if self.attendance is None:
            return
        nodes = self._here()
        if len(nodes) < least:
            nodes = self._wait(least, self.federation.join_timeout_s)
        known = {node: name for name, node in self.clients.items()}
        if newcomers := {node: name for node, name in nodes.items() if known.get(node) != name}:
            self._welcome(newcomers)

    def offer_again(self) -> None:
        """Hand the list that the server goes by now to everybody who is here; who does not take it, or is not on it, takes no part."""
        for name, reason in self._hand_out(self.present()).items():
            self._fault(f"{name}: {reason}")
            del self.clients[name]

    def present(self) -> dict[str, int]:
        """Client id → node id of those that can be asked now."""
        if self.attendance is None:
            return dict(self.clients)
        here, gone = self._here(), self.gone()
        return {name: node for name, node in self.clients.items() if here.get(node) == name and name not in gone}

    def gone(self) -> dict[str, str]:
        """Client id → why it takes no part any more."""
        return dict(self.attendance.gone()) if self.attendance is not None else {}

    def _here(self) -> dict[int, str | None]:
        """Nodes that are online and may take part, with the client ids that their certificates say; unknown in a simulation."""
        online = sorted(self.grid.get_node_ids())
        if self.attendance is None:
            return dict.fromkeys(online)
        admitted, gone = self.attendance.admitted(), self.gone()
        return {node: admitted[node] for node in online if node in admitted and admitted[node] not in gone}

    def _wait(self, wanted: int, timeout_s: float) -> dict[int, str | None]:
        deadline = time.monotonic() + timeout_s
        pause = JOIN_POLL_S if self.attendance is None else DEPLOYED_POLL_S
        nodes: dict[int, str | None] = {}
        while len(nodes) < wanted and time.monotonic() < deadline:
            nodes = self._here()
            if self.stop.wait(0 if len(nodes) >= wanted else pause):
                raise StopRequested
        return nodes

    def _welcome(self, nodes: Mapping[int, str | None]) -> None:
        """Ask nodes who they are, give them the CA's list, and count those that took it among the clients."""
        messages = [make_request(self.request, node_id=node, message_type=DESCRIBE) for node in nodes]
        claims: dict[str, list[int]] = {}
        for reply in exchange(self.grid, messages, timeout_s=self.federation.round_timeout_s, stop=self.stop):
            node = reply.metadata.src_node_id
            if node not in nodes and not reply.has_error():
                self._fault(f"node {node} answered without being asked")
                continue
            try:
                claims.setdefault(self._name_of(reply, nodes.get(node)), []).append(node)
            except PeerError as error:
                self._fault(str(error))  # a node that cannot say who it is, or is not as the plan provides, takes no part
        joined = {name: found[0] for name, found in sorted(claims.items()) if len(found) == 1}
        for name, reason in self._hand_out(joined).items():
            self._fault(f"{name}: {reason}")
            del joined[name]
        self.clients.update(joined)

    def _name_of(self, reply: Message, expected: str | None) -> str:
        about = sender_of(reply, run_id=self.request.run_id, phase=DESCRIBE, expected=expected)
        if not 1 <= about.batch_size <= self.weight_limit:
            reason = f"declares a batch size of {about.batch_size}, at most {self.weight_limit} is allowed"
            raise PeerError(about.client_id, DESCRIBE, reason)
        return about.client_id

    def _hand_out(self, joined: Mapping[str, int]) -> dict[str, str]:
        """Give the CA's list; who does not take it takes no part."""
        if self.secure is None or not joined:
            return {}
        offers = RosterOffers(
            grid=self.grid,
            membership=self.secure.membership,
            log=self.secure.log,
            timeout_s=self.federation.round_timeout_s,  # once a run, and engines may still be starting
            stop=self.stop,
            now_s=self.secure.now_s,
        )
        return dict(sorted(offers.hand_out(self.request, joined).items()))

    def _fault(self, text: str) -> None:
        if text not in self.faults:
            self.faults.append(text)
            self.note(text)
