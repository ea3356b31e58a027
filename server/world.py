"""What a run at the server stands on: who the server is, who its clients are, and which records it may look at.

Two modules make one: ``simulated`` (a throw-away CA and everybody's records in this process) and ``deployment`` (the server's home). The rest of the
server does not know which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from flwr.serverapp import Grid

from fedsec.data.base import Dataset
from fedsec.data.federated import FederatedData
from fedsec.flower.attendance import Attendance
from fedsec.flower.posted import PostedGrid
from fedsec.flower.signed import ServerIdentity, SignedGrid
from fedsec.identity.roster import SignedRoster, VerifiedRoster


@dataclass(frozen=True, kw_only=True)
class Federation:
    """The federation by its certificates.

    Attributes:
        identity: gives the server's key and certificate as they are now.
        signed: the CA's list of clients.
        verified: the same, checked.
        certificates: client id → certificate, DER, of every client on the list.
        log_folder: of the transparency log.
        durable: whether the log survives a power cut.
        now: gives the time, aware.
    """

    identity: Callable[[], ServerIdentity]
    signed: SignedRoster
    verified: VerifiedRoster
    certificates: Mapping[str, bytes]
    log_folder: Path
    durable: bool
    now: Callable[[], datetime]

    def signed_grid(self, grid: Grid) -> SignedGrid:
        """The way to the nodes on which every message is signed."""
        return SignedGrid(grid, self.identity, self.now)


@dataclass(frozen=True, kw_only=True, eq=False)
class World:
    """What a run stands on.

    Attributes:
        dataset: with the server's test records; in a simulation all records.
        parts: who holds what in a simulation; None: nobody here knows.
        weight_limit: the largest batch size that a client may declare.
        randomness: where the clients' noise comes from, for the report.
        simulation_dir: where simulated clients keep their stores; empty in a deployment.
        federation: None where clients act without certificates.
        attendance: who may take part now; None in a simulation: every node.
        gateway: folder of the gateway's hints; None: there is no gateway.
        newer: the federation by the CA's newer list, if there is one to go over to; None: there is not.
    """

    dataset: Dataset
    parts: FederatedData | None
    weight_limit: int
    randomness: str
    simulation_dir: str
    federation: Federation | None
    attendance: Attendance | None = None
    gateway: Path | None = None
    newer: Callable[[], Federation | None] = lambda: None

    def way(self, grid: Grid) -> Grid:
        """The grid to use: one that signs, wherever the server has an identity, and asks when the gateway says so, wherever there is one."""
        signed = grid if self.federation is None else self.federation.signed_grid(grid)
        return signed if self.gateway is None else PostedGrid(signed, self.gateway)
