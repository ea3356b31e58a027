"""What is kept of one round: the round itself, and its cohorts under secure aggregation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedsec.jsonfields import INTEGER, NUMBER, NUMBER_OR_NONE, TEXT, Codec, Table, build, dump, list_of, map_of, optional
from fedsec.results.fields import RECALL, REJECTIONS, SITES, check_counts, check_epsilons, check_shares
from fedsec.results.screening import ScreeningRow


@dataclass(frozen=True, kw_only=True)
class CohortRow:
    """One cohort of secure aggregation in one round.

    Attributes:
        cohort: its number, from 0.
        num_clients: its members.
        num_accepted: members in the opened sum; 0 if none was opened.
        dropouts: stage → members that were asked and gave no usable answer.
        opening: "held", "failed" (the sum contradicts the sketches and was not used) or "not reached".
        reason: why no sum was opened; empty if one was.
        bytes_up: mean over the members that answered, all stages and attempts.
        bytes_down: the same, downwards, the model included.
    """

    cohort: int
    num_clients: int
    num_accepted: int
    dropouts: dict[str, int]
    opening: str
    reason: str
    bytes_up: int
    bytes_down: int

    def __post_init__(self) -> None:
        if self.opening not in ("held", "failed", "not reached"):
            raise ValueError(f"opening is {self.opening!r}")
        check_counts(cohort=self.cohort, num_clients=self.num_clients, num_accepted=self.num_accepted, **self.dropouts)
        check_counts(bytes_up=self.bytes_up, bytes_down=self.bytes_down)

    def to_json(self) -> dict[str, Any]:
        """Plain values, strict JSON."""
        return dump(_COHORT, self)

    @classmethod
    def from_json(cls, value: Any, what: str = "cohort") -> CohortRow:
        """Inverse of :meth:`to_json`.

        Raises:
            DecodeError: not the JSON of this record.
        """
        return build(cls, _COHORT, value, what)


@dataclass(frozen=True, kw_only=True)
class SecaggRow:
    """Secure aggregation in one round.

    Attributes:
        attempts: tries of the round.
        cohorts: one each.
        stage_ms: stage → wall milliseconds, over all attempts.
        named: (client_id, reason) of members that provably lied.
        unresolved: members that sit out because an edge between them could not be settled.
    """

    attempts: int
    cohorts: tuple[CohortRow, ...]
    stage_ms: dict[str, float]
    named: tuple[tuple[str, str], ...] = ()
    unresolved: tuple[str, ...] = ()

    @property
    def num_accepted(self) -> int:
        """Clients in an opened sum."""
        return sum(cohort.num_accepted for cohort in self.cohorts)

    @property
    def all_held(self) -> bool:
        """Whether every cohort's opening check held."""
        return all(cohort.opening == "held" for cohort in self.cohorts)

    def to_json(self) -> dict[str, Any]:
        """Plain values, strict JSON."""
        return dump(_SECAGG, self)

    @classmethod
    def from_json(cls, value: Any, what: str = "secagg") -> SecaggRow:
        """Inverse of :meth:`to_json`.

        Raises:
            DecodeError: not the JSON of this record.
        """
        return build(cls, _SECAGG, value, what)


@dataclass(frozen=True, kw_only=True)
class RoundRow:
    """One finished round, as the server saw it.

    Attributes:
        server_round: from 1.
        accuracy: of the released model on the server's test set, 0 to 1, or NaN.
        loss: mean cross-entropy on the same records, in nats; may be infinite or NaN.
        recall: per class, in the order of the result's ``class_names``; None for a class without test records. Empty if not measured.
        epsilon_prv: spent since the start by the client that spent most, PRV accountant; None without privacy.
        epsilon_rdp: the same by the RDP accountant.
        num_selected: clients asked.
        num_valid: updates that entered the mean.
        num_dropped: clients without an answer in time.
        rejected: (client_id, reason) of each refused answer.
        update_norm: L2 norm of the mean update; 0 if the model stayed as it was.
        seconds: wall time of the round.
        bytes_up: model bytes from the clients; headers are not counted.
        bytes_down: model bytes to the clients.
        site_accuracy: accuracy by natural owner of the test records, where there are any.
        secagg: how secure aggregation went; None without it.
        screening: what the rule and the reputation said; None where no rule ran.
        gone: (client_id, reason) of clients on the list that took no part any more: their certificates were revoked.
    """

    server_round: int
    accuracy: float
    loss: float
    recall: tuple[float | None, ...]
    epsilon_prv: float | None
    epsilon_rdp: float | None
    num_selected: int
    num_valid: int
    num_dropped: int
    rejected: tuple[tuple[str, str], ...]
    update_norm: float
    seconds: float
    bytes_up: int
    bytes_down: int
    site_accuracy: dict[str, float] | None = None
    secagg: SecaggRow | None = None
    screening: ScreeningRow | None = None
    gone: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if self.server_round < 1:
            raise ValueError(f"rounds count from 1, not {self.server_round!r}")
        check_shares("accuracy", self.accuracy, *(self.site_accuracy or {}).values())
        check_shares("recall", *self.recall)
        check_epsilons(self.epsilon_prv, self.epsilon_rdp)
        check_counts(num_selected=self.num_selected, num_valid=self.num_valid, num_dropped=self.num_dropped)
        check_counts(bytes_up=self.bytes_up, bytes_down=self.bytes_down)

    def to_json(self) -> dict[str, Any]:
        """Plain values, strict JSON."""
        written = dump(_ROUND, self)
        if not self.gone:
            del written["gone"]  # rounds of a simulation are spelt as they were before there was any other
        return written

    @classmethod
    def from_json(cls, value: Any, what: str = "round") -> RoundRow:
        """Inverse of :meth:`to_json`.

        Raises:
            DecodeError: not the JSON of this record.
        """
        return build(cls, _ROUND, {"gone": [], **value} if isinstance(value, dict) else value, what)


_COHORT: Table = {
    "cohort": INTEGER,
    "num_clients": INTEGER,
    "num_accepted": INTEGER,
    "dropouts": map_of(INTEGER),
    "opening": TEXT,
    "reason": TEXT,
    "bytes_up": INTEGER,
    "bytes_down": INTEGER,
}

_SECAGG: Table = {
    "attempts": INTEGER,
    "cohorts": list_of(Codec(CohortRow.to_json, CohortRow.from_json)),
    "stage_ms": map_of(NUMBER),
    "named": REJECTIONS,
    "unresolved": list_of(TEXT),
}

_ROUND: Table = {
    "server_round": INTEGER,
    "accuracy": NUMBER,
    "loss": NUMBER,
    "recall": RECALL,
    "epsilon_prv": NUMBER_OR_NONE,
    "epsilon_rdp": NUMBER_OR_NONE,
    "num_selected": INTEGER,
    "num_valid": INTEGER,
    "num_dropped": INTEGER,
    "rejected": REJECTIONS,
    "update_norm": NUMBER,
    "seconds": NUMBER,
    "bytes_up": INTEGER,
    "bytes_down": INTEGER,
    "site_accuracy": SITES,
    "secagg": optional(Codec(SecaggRow.to_json, SecaggRow.from_json)),
    "screening": optional(Codec(ScreeningRow.to_json, ScreeningRow.from_json)),
    "gone": REJECTIONS,
}
