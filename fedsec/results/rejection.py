"""Rejection over a whole run: who was rejected, when and why, who was named, and how well it went where the truth is known.

1. The truth (who attacks) is known in a simulation only: in a deployment every figure that needs it is None.
2. A figure that cannot be computed is None, never 0 or 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from fedsec.jsonfields import FLAG, INTEGER, NUMBER_OR_NONE, TEXT, Codec, Table, build, dump, list_of, optional
from fedsec.results.fields import check_counts, check_shares


@dataclass(frozen=True, kw_only=True)
class RejectedClient:
    """One client whose update was kept out at least once, by the rule or by quarantine.

    Attributes:
        client_id: who.
        rounds: how many rounds.
        first_round: the first of them.
        reasons: a few distinct ones, the commonest first.
        attacker: whether it is one; None in a deployment.
        evidence: path of what shows it, relative to the result folder; empty where the reason is statistical.
        certificate: serial number of its certificate, hex; empty where it has none.
    """

    client_id: str
    rounds: int
    first_round: int
    reasons: tuple[str, ...]
    attacker: bool | None
    evidence: str = ""
    certificate: str = ""

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.first_round < 1:
            raise ValueError(f"a rejected client was rejected once at least, in a round from 1: {self.rounds!r}, {self.first_round!r}")

    def to_json(self) -> dict[str, Any]:
        """Plain values, strict JSON."""
        return dump(_REJECTED, self)

    @classmethod
    def from_json(cls, value: Any, what: str = "rejected") -> RejectedClient:
        """Inverse of :meth:`to_json`.

        Raises:
            DecodeError: not the JSON of this record.
        """
        return build(cls, _REJECTED, value, what)


@dataclass(frozen=True, kw_only=True)
class NamedClient:
    """One client with a provable fault: excluded for the rest of the run, candidate for revocation.

    Attributes:
        client_id: who.
        round: when.
        reason: what its own message shows.
        evidence: path of the evidence, relative to the result folder; empty where the server's log is all there is.
        certificate: serial number of its certificate, hex: what the CA needs to revoke it; empty where it has none.
    """

    client_id: str
    round: int
    reason: str
    evidence: str = ""
    certificate: str = ""

    def __post_init__(self) -> None:
        if self.round < 1:
            raise ValueError(f"rounds count from 1, not {self.round!r}")

    def to_json(self) -> dict[str, Any]:
        """Plain values, strict JSON."""
        return dump(_NAMED, self)

    @classmethod
    def from_json(cls, value: Any, what: str = "named") -> NamedClient:
        """Inverse of :meth:`to_json`.

        Raises:
            DecodeError: not the JSON of this record.
        """
        return build(cls, _NAMED, value, what)


@dataclass(frozen=True, kw_only=True)
class RejectionReport:
    """Rejection over a run; ``fedsec.robust.quality`` says how each figure is counted.

    Attributes:
        precision: share of rejections that hit an attacker.
        recall: share of attacking updates that were rejected.
        auc: chance that an attacking update scores above an honest one of the same round.
        honest_rate: share of honest updates rejected.
        worst_honest_rate: the same for the honest client rejected most often.
        honest_rate_by_skew_decile: the same for tenths of the honest clients, least skewed first; empty where skew is unknown.
        rounds_to_detection: mean over the detected attackers of rounds from the first attack to the first rejection; 1: at once.
        rounds_to_quarantine: the same to quarantine or exclusion.
        undetected: attackers that attacked and were never rejected.
        provable_named_share: share of the clients with a provable fault that were named.
        false_named: named clients that are no attackers.
        from_round: precision, recall, auc and honest rates count rounds from this one.
        rejected: by client id.
        named: by round, then client id.
        attackers: their ids; empty in a deployment.
        attack: its name; empty without one.
        attack_success: share of the attacker's aim that was reached, where the attack has one.
        accuracy_undefended: of the same federation without a rule, at the end; None unless compared.
        accuracy_no_attack: of the same federation without attackers, at the end; None unless compared.
    """

    precision: float | None = None
    recall: float | None = None
    auc: float | None = None
    honest_rate: float | None = None
    worst_honest_rate: float | None = None
    honest_rate_by_skew_decile: tuple[float | None, ...] = ()
    rounds_to_detection: float | None = None
    rounds_to_quarantine: float | None = None
    undetected: int | None = None
    provable_named_share: float | None = None
    false_named: int | None = None
    from_round: int = 2
    rejected: tuple[RejectedClient, ...] = ()
    named: tuple[NamedClient, ...] = ()
    attackers: tuple[str, ...] = ()
    attack: str = ""
    attack_success: float | None = None
    accuracy_undefended: float | None = None
    accuracy_no_attack: float | None = None

    def __post_init__(self) -> None:
        rates = (self.precision, self.recall, self.auc, self.honest_rate, self.worst_honest_rate, *self.honest_rate_by_skew_decile)
        check_shares("a rate of rejection", *rates, self.provable_named_share, self.attack_success)
        if any(rate is not None and math.isnan(rate) for rate in (*rates, self.provable_named_share, self.attack_success)):
            raise ValueError("a rate that cannot be computed is None, never NaN")
        check_shares("accuracy", self.accuracy_undefended, self.accuracy_no_attack)
        for value in (self.rounds_to_detection, self.rounds_to_quarantine):
            if value is not None and not 1.0 <= value < math.inf:
                raise ValueError(f"rounds to a detection are at least 1, not {value!r}")
        check_counts(false_named=self.false_named or 0, undetected=self.undetected or 0)
        if self.from_round < 1 or len(self.honest_rate_by_skew_decile) not in (0, 10):
            raise ValueError("rounds count from 1, and there are ten deciles or none")

    def to_json(self) -> dict[str, Any]:
        """Plain values, strict JSON."""
        return dump(_REPORT, self)

    @classmethod
    def from_json(cls, value: Any, what: str = "rejection") -> RejectionReport:
        """Inverse of :meth:`to_json`.

        Raises:
            DecodeError: not the JSON of this record.
        """
        return build(cls, _REPORT, value, what)


_REJECTED: Table = {
    "client_id": TEXT,
    "rounds": INTEGER,
    "first_round": INTEGER,
    "reasons": list_of(TEXT),
    "attacker": optional(FLAG),
    "evidence": TEXT,
    "certificate": TEXT,
}

_NAMED: Table = {"client_id": TEXT, "round": INTEGER, "reason": TEXT, "evidence": TEXT, "certificate": TEXT}

_REPORT: Table = {
    "precision": NUMBER_OR_NONE,
    "recall": NUMBER_OR_NONE,
    "auc": NUMBER_OR_NONE,
    "honest_rate": NUMBER_OR_NONE,
    "worst_honest_rate": NUMBER_OR_NONE,
    "honest_rate_by_skew_decile": list_of(NUMBER_OR_NONE),
    "rounds_to_detection": NUMBER_OR_NONE,
    "rounds_to_quarantine": NUMBER_OR_NONE,
    "undetected": optional(INTEGER),
    "provable_named_share": NUMBER_OR_NONE,
    "false_named": optional(INTEGER),
    "from_round": INTEGER,
    "rejected": list_of(Codec(RejectedClient.to_json, RejectedClient.from_json)),
    "named": list_of(Codec(NamedClient.to_json, NamedClient.from_json)),
    "attackers": list_of(TEXT),
    "attack": TEXT,
    "attack_success": NUMBER_OR_NONE,
    "accuracy_undefended": NUMBER_OR_NONE,
    "accuracy_no_attack": NUMBER_OR_NONE,
}
