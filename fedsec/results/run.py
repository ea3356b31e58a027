"""A whole run: what it reached, what it spent, and its rounds. This is what ``result.json`` holds and ``--json`` prints."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import fedsec
from fedsec.errors import DecodeError
from fedsec.jsonfields import FLAG, INTEGER, NUMBER, NUMBER_OR_NONE, TEXT, Codec, Table, build, dump, list_of, map_of, optional
from fedsec.results.fields import RECALL, SITES, check_counts, check_epsilons, check_shares
from fedsec.results.rejection import RejectionReport
from fedsec.results.rounds import RoundRow

RESULT_FORMAT = "fedsec/result/v1"


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
        check_epsilons(self.prv, self.rdp)
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
        rejection: who was rejected, and how well; None where no rule rejects.
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
    rejection: RejectionReport | None = None
    fedsec_version: str = field(default=fedsec.__version__)

    def __post_init__(self) -> None:
        check_shares("accuracy", self.accuracy, self.majority_accuracy, *self.recall)
        check_shares("accuracy", *(self.personal_accuracy or {}).values(), *(self.site_accuracy or {}).values())
        check_counts(num_clients=self.num_clients, rounds=self.rounds)
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
    "recall": RECALL,
    "class_names": list_of(TEXT),
    "majority_accuracy": NUMBER_OR_NONE,
    "site_accuracy": SITES,
    "personal_accuracy": SITES,
    "epsilon": Codec(EpsilonReport.to_json, EpsilonReport.from_json),
    "randomness": TEXT,
    "guarantee": TEXT,
    "duration_s": NUMBER,
    "run_dir": TEXT,
    "versions": map_of(TEXT),
    "rejection": optional(Codec(RejectionReport.to_json, RejectionReport.from_json)),
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
