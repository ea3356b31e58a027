"""One run as data: a row for each round and the result of the whole.

1. Records are frozen and check themselves when they are made, so a wrong number shows in the round that made it.
2. ``from_json`` is the strict inverse of ``to_json``: unknown or missing keys and other types are refused. One table for each record
   (``_ROUND``, ``_EPSILON``, ``_RESULT``) says how every key is written and read.
3. An epsilon is never NaN: "unknown" is None, "unbounded" is infinity, spelled ``"inf"`` in JSON. Accuracy and loss may be NaN (a
   diverged model is a result too), spelled ``"nan"``: the file is JSON for every reader, and ``float(value)`` reads both spellings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import fedsec
from fedsec.errors import DecodeError
from fedsec.jsonfields import (
    FLAG,
    INTEGER,
    NUMBER,
    NUMBER_OR_NONE,
    TEXT,
    Codec,
    Table,
    build,
    clean,
    dump,
    list_of,
    map_of,
    optional,
    read_object,
)

RESULT_FORMAT = "fedsec/result/v1"


def _read_rejection(value: Any, what: str) -> tuple[str, str]:
    pair = read_object({"client_id": TEXT, "reason": TEXT}, value, what)
    return pair["client_id"], pair["reason"]


_RECALL = list_of(NUMBER_OR_NONE)
_SITES = optional(map_of(NUMBER))
_REJECTIONS = list_of(Codec(lambda pair: {"client_id": clean(pair[0]), "reason": clean(pair[1])}, _read_rejection))


def _check_shares(what: str, *values: float | None) -> None:
    for value in values:
        if value is not None and not math.isnan(value) and not 0.0 <= value <= 1.0:
            raise ValueError(f"{what} is a share between 0 and 1, not {value!r}")


def _check_epsilons(*values: float | None) -> None:
    for value in values:
        if value is not None and not value >= 0.0:  # NaN fails this too
            raise ValueError(f"epsilon is at least 0 or unknown (None), not {value!r}")


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 0:
            raise ValueError(f"{name} is a count, not {count!r}")


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
        _check_counts(cohort=self.cohort, num_clients=self.num_clients, num_accepted=self.num_accepted, **self.dropouts)
        _check_counts(bytes_up=self.bytes_up, bytes_down=self.bytes_down)

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

    def __post_init__(self) -> None:
        if self.server_round < 1:
            raise ValueError(f"rounds count from 1, not {self.server_round!r}")
        _check_shares("accuracy", self.accuracy, *(self.site_accuracy or {}).values())
        _check_shares("recall", *self.recall)
        _check_epsilons(self.epsilon_prv, self.epsilon_rdp)
        _check_counts(num_selected=self.num_selected, num_valid=self.num_valid, num_dropped=self.num_dropped)
        _check_counts(bytes_up=self.bytes_up, bytes_down=self.bytes_down)

    def to_json(self) -> dict[str, Any]:
        """Plain values, strict JSON."""
        return dump(_ROUND, self)

    @classmethod
    def from_json(cls, value: Any, what: str = "round") -> RoundRow:
        """Inverse of :meth:`to_json`.

        Raises:
            DecodeError: not the JSON of this record.
        """
        return build(cls, _ROUND, value, what)


@dataclass(frozen=True, kw_only=True)
class EpsilonReport:
    """What the run spent, with everything an epsilon means nothing without.

    Attributes:
        prv: epsilon of the client that spent most, PRV accountant: the number to quote. Infinite without privacy.
        rdp: the same by the looser RDP accountant.
        delta: both are stated at; None without privacy.
        unit: "example" or "none".
        relation: neighbouring relation, for example "add-remove".
        noise_multiplier: noise deviation over clip norm of each step; 0 without privacy.
        statement: the claim in one sentence.
    """

    prv: float
    rdp: float
    delta: float | None
    unit: str
    relation: str
    noise_multiplier: float
    statement: str

    def __post_init__(self) -> None:
        _check_epsilons(self.prv, self.rdp)
        if self.delta is not None and not 0.0 <= self.delta < 1.0:
            raise ValueError(f"delta lies in [0, 1), not {self.delta!r}")

    @property
    def is_private(self) -> bool:
        """Whether the run has a finite epsilon."""
        return math.isfinite(self.prv)

    def to_json(self) -> dict[str, Any]:
        """Plain values, strict JSON."""
        return dump(_EPSILON, self)

    @classmethod
    def from_json(cls, value: Any, what: str = "epsilon") -> EpsilonReport:
        """Inverse of :meth:`to_json`.

        Raises:
            DecodeError: not the JSON of this record.
        """
        return build(cls, _EPSILON, value, what)


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """One run, whole: what ``result.json`` holds and ``--json`` prints.

    Attributes:
        run_id: fedsec's id of the run; survives a resume.
        plan_name: the plan's free text.
        plan_digest: hex digest of the plan as run.
        engine: "local", "ray" or "deployment".
        num_clients: clients that took part.
        rounds: rounds completed; equals ``len(rows)``.
        accuracy: of the released model on the server's test set, 0 to 1, or NaN.
        loss: mean cross-entropy on the same records, in nats.
        recall: per class; None for a class without test records.
        class_names: in the order of ``recall``.
        epsilon: what was spent.
        randomness: where noise and sampling came from: "simulation seed" or "operating system".
        duration_s: wall time over all sessions of the run.
        run_dir: the result folder.
        personal_accuracy: site → accuracy with its personal parameters, or None.
        majority_accuracy: of always naming the commonest class of the test set, or None.
        rows: one for each completed round, in order.
        stopped_early: whether the run ended before the plan's last round.
        guarantee: what is protected, against whom, in one sentence.
        versions: software → version.
        site_accuracy: site → accuracy of the shared model on that site's test records, or None.
        fedsec_version: that made the result.
    """

    run_id: str
    plan_name: str
    plan_digest: str
    engine: str
    num_clients: int
    rounds: int
    accuracy: float
    loss: float
    recall: tuple[float | None, ...]
    class_names: tuple[str, ...]
    epsilon: EpsilonReport
    randomness: str
    duration_s: float
    run_dir: str
    personal_accuracy: dict[str, float] | None
    majority_accuracy: float | None
    rows: tuple[RoundRow, ...]
    stopped_early: bool
    guarantee: str
    versions: dict[str, str]
    site_accuracy: dict[str, float] | None = None
    fedsec_version: str = field(default=fedsec.__version__)

    def __post_init__(self) -> None:
        _check_shares("accuracy", self.accuracy, self.majority_accuracy, *self.recall)
        _check_shares("accuracy", *(self.personal_accuracy or {}).values(), *(self.site_accuracy or {}).values())
        _check_counts(num_clients=self.num_clients, rounds=self.rounds)
        numbers = [row.server_round for row in self.rows]
        if numbers != list(range(1, self.rounds + 1)):
            raise ValueError(f"{self.rounds} rounds need one row each, in order from 1, not {numbers[:8]}…")
        if any(len(recall) not in (0, len(self.class_names)) for recall in (self.recall, *(row.recall for row in self.rows))):
            raise ValueError(f"recall must have {len(self.class_names)} entries, one for each class name")

    def to_json(self) -> dict[str, Any]:
        """Plain values, strict JSON."""
        return {"format": RESULT_FORMAT, **dump(_RESULT, self)}

    @classmethod
    def from_json(cls, value: Any, what: str = "result") -> RunResult:
        """Inverse of :meth:`to_json`.

        Raises:
            DecodeError: not a result, or one of another format.
        """
        if not isinstance(value, dict) or value.get("format") != RESULT_FORMAT:
            raise DecodeError(f"{what} is not of the format {RESULT_FORMAT!r}")
        return build(cls, _RESULT, {key: item for key, item in value.items() if key != "format"}, what)


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
    "named": _REJECTIONS,
    "unresolved": list_of(TEXT),
}

_ROUND: Table = {
    "server_round": INTEGER,
    "accuracy": NUMBER,
    "loss": NUMBER,
    "recall": _RECALL,
    "epsilon_prv": NUMBER_OR_NONE,
    "epsilon_rdp": NUMBER_OR_NONE,
    "num_selected": INTEGER,
    "num_valid": INTEGER,
    "num_dropped": INTEGER,
    "rejected": _REJECTIONS,
    "update_norm": NUMBER,
    "seconds": NUMBER,
    "bytes_up": INTEGER,
    "bytes_down": INTEGER,
    "site_accuracy": _SITES,
    "secagg": optional(Codec(SecaggRow.to_json, SecaggRow.from_json)),
}

_EPSILON: Table = {
    "prv": NUMBER,
    "rdp": NUMBER,
    "delta": NUMBER_OR_NONE,
    "unit": TEXT,
    "relation": TEXT,
    "noise_multiplier": NUMBER,
    "statement": TEXT,
}

_RESULT: Table = {
    "fedsec_version": TEXT,
    "run_id": TEXT,
    "plan_name": TEXT,
    "plan_digest": TEXT,
    "engine": TEXT,
    "num_clients": INTEGER,
    "rounds": INTEGER,
    "stopped_early": FLAG,
    "accuracy": NUMBER,
    "loss": NUMBER,
    "recall": _RECALL,
    "class_names": list_of(TEXT),
    "majority_accuracy": NUMBER_OR_NONE,
    "site_accuracy": _SITES,
    "personal_accuracy": _SITES,
    "epsilon": Codec(EpsilonReport.to_json, EpsilonReport.from_json),
    "randomness": TEXT,
    "guarantee": TEXT,
    "duration_s": NUMBER,
    "run_dir": TEXT,
    "versions": map_of(TEXT),
    "rows": list_of(Codec(RoundRow.to_json, RoundRow.from_json)),
}


@dataclass(frozen=True, kw_only=True)
class SiteMetrics:
    """A client's own test result.

    Attributes:
        accuracy: of the shared model with personal parameters at their public constant.
        personal_accuracy: with the client's own fitted parameters; equals ``accuracy`` where there are none.
        num_examples: test records.
    """

    accuracy: float
    personal_accuracy: float
    num_examples: int

    def __post_init__(self) -> None:
        for value in (self.accuracy, self.personal_accuracy):
            if type(value) is not float or not 0.0 <= value <= 1.0:
                raise ValueError(f"an accuracy is a share between 0 and 1, not {str(value)[:40]}")
        if type(self.num_examples) is not int or self.num_examples < 0:
            raise ValueError("num_examples is a count")
