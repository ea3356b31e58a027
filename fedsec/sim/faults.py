"""Which messages of a simulation go wrong, and how: named faults and seeded random ones.

1. What goes wrong is decided by partition, round and message type alone, never by order or timing, so every engine, worker count and
   resumed run sees the same faults.
2. A named fault goes before a random one; of two named ones the first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from fedsec.codec import digest


class FaultKind(StrEnum):
    """How a message goes wrong."""

    DROP = "drop"
    """The client never gets it: no reply, ever."""
    DROP_AFTER = "drop-after"
    """The client does its work (and spends its budget), but the reply is lost."""
    DELAY = "delay"
    """The reply comes late."""
    ERROR = "error"
    """The client answers with an error and does nothing."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault, for all messages that fit.

    Attributes:
        kind: how it goes wrong; its text is accepted too.
        partition: of the client; None: all.
        server_round: the round, which travels as the message's group id; None: all.
        message_type: for example ``train`` or ``train.personalise``, exactly; None: all.
        delay_s: seconds > 0 for ``delay``, 0 for the others.

    Raises:
        ValueError: a value out of range.
    """

    kind: FaultKind
    partition: int | None = None
    server_round: int | None = None
    message_type: str | None = None
    delay_s: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", FaultKind(self.kind))
        for name in ("partition", "server_round"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 0):
                raise ValueError(f"{name} must be a number from 0, not {value!r}")
        if not math.isfinite(self.delay_s) or (self.delay_s > 0) != (self.kind is FaultKind.DELAY) or self.delay_s < 0:
            raise ValueError(f"delay_s must be over 0 for a delay and 0 for other faults, not {self.delay_s!r}")

    def fits(self, *, partition: int, group_id: str, message_type: str) -> bool:
        """Whether this message goes wrong."""
        return (
            self.partition in (None, partition)
            and (self.server_round is None or group_id == str(self.server_round))
            and self.message_type in (None, message_type)
        )


@dataclass(frozen=True, kw_only=True)
class FaultPlan:
    """All faults of a simulation.

    Attributes:
        faults: named ones.
        rate: chance in [0, 1] of each other message to go wrong.
        seed: of that chance.
        random_kind: how it then goes wrong.
        message_types: the types at risk from chance; None: all.
        random_delay_s: seconds, if ``random_kind`` is ``delay``.

    Raises:
        ValueError: a value out of range.
    """

    faults: tuple[Fault, ...] = ()
    rate: float = 0.0
    seed: int = 0
    random_kind: FaultKind = FaultKind.DROP
    message_types: tuple[str, ...] | None = None
    random_delay_s: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.rate <= 1.0:
            raise ValueError(f"rate must be in [0, 1], not {self.rate!r}")
        object.__setattr__(self, "random_kind", self._random_fault().kind)

    @classmethod
    def random(
        cls, rate: float, seed: int, *, kind: FaultKind = FaultKind.DROP, message_types: tuple[str, ...] | None = None, delay_s: float = 0.0
    ) -> FaultPlan:
        """Nothing but chance.

        >>> plan = FaultPlan.random(0.5, seed=1)
        >>> plan.decide(partition=3, group_id="1", message_type="train") == plan.decide(partition=3, group_id="1", message_type="train")
        True
        """
        return cls(rate=rate, seed=seed, random_kind=kind, message_types=message_types, random_delay_s=delay_s)

    def _random_fault(self) -> Fault:
        return Fault(kind=self.random_kind, delay_s=self.random_delay_s)

    def decide(self, *, partition: int, group_id: str, message_type: str) -> Fault | None:
        """What goes wrong with this message, if anything does; a pure function of the arguments and the plan."""
        for fault in self.faults:
            if fault.fits(partition=partition, group_id=group_id, message_type=message_type):
                return fault
        if self.rate <= 0.0 or (self.message_types is not None and message_type not in self.message_types):
            return None
        parts = (str(self.seed), str(partition), group_id, message_type)
        draw = int.from_bytes(digest("fedsec/fault/v1", *(part.encode() for part in parts))[:8], "big") / 2**64
        return self._random_fault() if draw < self.rate else None
