"""What is kept of each federation of a grid: one row, with what its run reports and the settings that made it.

1. A row comes from a whole run of the cell's own plan, or not at all.
2. It is JSON like every result: unknown or missing keys are refused, NaN is spelled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedsec.errors import DecodeError
from fedsec.jsonfields import INTEGER, NUMBER, NUMBER_OR_NONE, TEXT, Table, build, dump, map_of, optional
from fedsec.plan.grid import Cell
from fedsec.results import RunResult


@dataclass(frozen=True, kw_only=True)
class CellRow:
    """One finished cell.

    Attributes:
        key: digest of the plan that ran.
        attack: name, "none" without one.
        rule: name.
        fraction: share of attackers; None without an attack.
        seed: of the federation.
        strength: the attack's own number; None: the attack's default.
        accuracy: of the released model, 0 to 1, or NaN.
        majority_accuracy: of always naming the commonest class of the test set, or None.
        num_clients: clients of the federation.
        num_attackers: of them; None where the result does not say.
        precision: share of rejections that hit an attacker; None where nobody was rejected.
        recall: share of attacking updates that were rejected; None without an attack.
        honest_rate: share of honest updates that were rejected.
        attack_success: share of the attacker's aim that was reached; None where the attack has none of its own.
        epsilon: spent by the client that spent most; infinite without privacy.
        delta: the epsilon is stated at; None without privacy.
        wall_s: of the run, or of the process around it where that is known.
        fedsec_version: that ran it.
        versions: software → version.
    """

    key: str
    attack: str
    rule: str
    fraction: float | None
    seed: int
    strength: float | None
    accuracy: float
    majority_accuracy: float | None
    num_clients: int
    num_attackers: int | None
    precision: float | None
    recall: float | None
    honest_rate: float | None
    attack_success: float | None
    epsilon: float
    delta: float | None
    wall_s: float
    fedsec_version: str
    versions: dict[str, str]

    @property
    def cell(self) -> Cell:
        """Which one."""
        return Cell(attack=self.attack, rule=self.rule, fraction=self.fraction, seed=self.seed, strength=self.strength)

    @classmethod
    def from_result(cls, cell: Cell, key: str, result: RunResult) -> CellRow:
        """The row of a run that ended; its wall time is the run's own, over all its sessions.

        Raises:
            DecodeError: the run stopped early, or is not of this cell's plan.
        """
        if result.stopped_early or result.plan_digest != key:
            raise DecodeError("the run stopped early" if result.stopped_early else "another plan ran than the cell's")
        rejection = result.rejection
        return cls(
            key=key,
            attack=cell.attack,
            rule=cell.rule,
            fraction=cell.fraction,
            seed=cell.seed,
            strength=cell.strength,
            accuracy=result.accuracy,
            majority_accuracy=result.majority_accuracy,
            num_clients=result.num_clients,
            num_attackers=len(rejection.attackers) if rejection is not None and rejection.attackers else None,
            precision=rejection.precision if rejection is not None else None,
            recall=rejection.recall if rejection is not None else None,
            honest_rate=rejection.honest_rate if rejection is not None else None,
            attack_success=rejection.attack_success if rejection is not None else None,
            epsilon=result.epsilon.prv,
            delta=result.epsilon.delta,
            wall_s=result.duration_s,
            fedsec_version=result.fedsec_version,
            versions=result.versions,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, strict JSON."""
        return dump(_ROW, self)

    @classmethod
    def from_json(cls, value: Any, what: str = "cell") -> CellRow:
        """Inverse of :meth:`to_json`.

        Raises:
            DecodeError: not the JSON of this record.
        """
        return build(cls, _ROW, value, what)


_ROW: Table = {
    "key": TEXT,
    "attack": TEXT,
    "rule": TEXT,
    "fraction": NUMBER_OR_NONE,
    "seed": INTEGER,
    "strength": NUMBER_OR_NONE,
    "accuracy": NUMBER,
    "majority_accuracy": NUMBER_OR_NONE,
    "num_clients": INTEGER,
    "num_attackers": optional(INTEGER),
    "precision": NUMBER_OR_NONE,
    "recall": NUMBER_OR_NONE,
    "honest_rate": NUMBER_OR_NONE,
    "attack_success": NUMBER_OR_NONE,
    "epsilon": NUMBER,
    "delta": NUMBER_OR_NONE,
    "wall_s": NUMBER,
    "fedsec_version": TEXT,
    "versions": map_of(TEXT),
}
