"""Who may take part at this moment, where the server does not simply ask every node: in a deployment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Attendance(Protocol):
    """Looked at anew before every round: certificates end and are revoked while a run goes on."""

    def admitted(self) -> Mapping[int, str]:
        """Node id → client id of every node whose certificate is one of the federation's, valid and not revoked."""

    def gone(self) -> Mapping[str, str]:
        """Client id → why it takes no part any more, for clients that are on the list."""
