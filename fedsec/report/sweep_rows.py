"""What is kept of each run of a sweep: one row, with everything that the report says about it. Rows of audits are of a kind of their own.

1. A row comes from a whole run of the point's own plan, or not at all.
2. A row ends with the digest of its content: one that was edited afterwards is noticed when it is read. The digest guards against slips, not against
   somebody who computes it anew.
3. It is JSON like every result: unknown or missing keys are refused, NaN is spelled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from fedsec.codec import digest_json
from fedsec.errors import DecodeError
from fedsec.jsonfields import INTEGER, NUMBER, NUMBER_OR_NONE, TEXT, Codec, Table, build, dump, list_of, map_of
from fedsec.plan.arms import Arm
from fedsec.plan.sweep import Point
from fedsec.results import RunResult
from fedsec.results.fields import check_counts, check_shares

ROW_FORMAT = "fedsec/sweep-row/v1"
R = TypeVar("R", bound="UtilityRow | AuditRow")


@dataclass(frozen=True, kw_only=True)
class SiteRow:
    """One site's part of the test records.

    Attributes:
        name: hospital or client.
        train: training records it holds.
        test: its test records.
        accuracy: share of them that the shared model gets right.
        personal: the same with the site's own parameters; None where there are none.
        majority: of always naming the commonest class of the site's own training records.
        local: of a model that the site fits to its own records alone, without privacy and without sending anything; None where not measured.
    """

    name: str
    train: int
    test: int
    accuracy: float
    personal: float | None
    majority: float
    local: float | None = None

    def __post_init__(self) -> None:
        check_shares("accuracy", self.accuracy, self.personal, self.majority, self.local)
        check_counts(train=self.train, test=self.test)

    def to_json(self) -> dict[str, Any]:
        """Plain values, strict JSON."""
        return dump(_SITE, self)

    @classmethod
    def from_json(cls, value: Any, what: str = "site") -> SiteRow:
        """Inverse of :meth:`to_json`.

        Raises:
            DecodeError: not the JSON of this record.
        """
        return build(cls, _SITE, value, what)


@dataclass(frozen=True, kw_only=True)
class UtilityRow:
    """One finished run.

    Attributes:
        key: digest of the point, as :func:`fedsec.plan.sweep.point_key` gives it.
        plan_digest: of the plan that ran.
        target: epsilon asked for; infinite: without privacy.
        seed: of the federation.
        varied: section.key → value as TOML.
        arm: code of the arm.
        accuracy: of the released model on the test records, 0 to 1, or NaN.
        loss: mean cross-entropy, nats.
        majority_accuracy: of always naming the commonest class.
        class_names: of the classes.
        recall: of each class; None without a test record of it.
        class_tests: test records of each class.
        sites: natural owners, or the clients of the simulation.
        epsilon: spent by the client that spent most, PRV accountant; infinite where nothing is protected.
        epsilon_rdp: the same by RDP.
        delta: both are stated at; None without privacy.
        unit: "example" or "none".
        relation: neighbouring relation.
        noise_multiplier: sigma over clip norm.
        rounds_accuracy: after each round.
        rounds_epsilon: after each round; None without privacy.
        num_clients: of the federation.
        guarantee: the claim in one sentence.
        data_fingerprint: hex SHA-256 of the records.
        wall_s: of the process, seconds.
        fedsec_version: that ran it.
        versions: software → version.
    """

    key: str
    plan_digest: str
    target: float
    seed: int
    varied: dict[str, str]
    arm: str
    accuracy: float
    loss: float
    majority_accuracy: float | None
    class_names: tuple[str, ...]
    recall: tuple[float | None, ...]
    class_tests: tuple[int, ...]
    sites: tuple[SiteRow, ...]
    epsilon: float
    epsilon_rdp: float
    delta: float | None
    unit: str
    relation: str
    noise_multiplier: float
    rounds_accuracy: tuple[float, ...]
    rounds_epsilon: tuple[float | None, ...]
    num_clients: int
    guarantee: str
    data_fingerprint: str
    wall_s: float
    fedsec_version: str
    versions: dict[str, str]

    def __post_init__(self) -> None:
        check_shares("accuracy", self.accuracy, self.majority_accuracy, *self.recall)
        if not self.target > 0.0:
            raise ValueError(f"epsilon is over 0, not {self.target!r}")
        if len({len(self.class_names), len(self.recall), len(self.class_tests)}) != 1:
            raise ValueError("recall and counts need one number for each class")
        Arm.from_code(self.arm)

    @property
    def point(self) -> Point:
        """Which one."""
        return Point(epsilon=self.target, seed=self.seed, varied=tuple(self.varied.items()), arm=Arm.from_code(self.arm))

    @property
    def personal_mean(self) -> float | None:
        """Mean over the sites with their own parameters, each counting the same; None where a site has none."""
        known = [site.personal for site in self.sites if site.personal is not None]
        return sum(known) / len(known) if known and len(known) == len(self.sites) else None

    @property
    def digest(self) -> str:
        """Of the whole row."""
        return digest_json(ROW_FORMAT, dump(_UTILITY, self))

    @classmethod
    def from_result(cls, point: Point, key: str, result: RunResult, measured: Mapping[str, Any], wall_s: float) -> UtilityRow:
        """The row of a run that ended.

        Args:
            point: which.
            key: its key.
            result: of the run.
            measured: what the point's process measured beside it: sites, class_tests, data_fingerprint.
            wall_s: of the process.

        Raises:
            DecodeError: the run stopped early, or what was measured is not that.
        """
        if result.stopped_early:
            raise DecodeError("the run stopped early")
        is_claim = not point.arm.noise_only  # noise in one layer protects nothing, whatever its plan says
        spent = result.epsilon
        try:
            return cls(
                key=key,
                plan_digest=result.plan_digest,
                target=point.epsilon,
                seed=point.seed,
                varied=dict(point.varied),
                arm=point.arm.code,
                accuracy=result.accuracy,
                loss=result.loss,
                majority_accuracy=result.majority_accuracy,
                class_names=result.class_names,
                recall=result.recall or (None,) * len(result.class_names),
                class_tests=tuple(int(count) for count in measured["class_tests"]),
                sites=tuple(SiteRow.from_json(site) for site in measured["sites"]),
                epsilon=spent.prv if is_claim else math.inf,
                epsilon_rdp=spent.rdp if is_claim else math.inf,
                delta=spent.delta if is_claim else None,
                unit=spent.unit if is_claim else "none",
                relation=spent.relation,
                noise_multiplier=spent.noise_multiplier,
                rounds_accuracy=tuple(row.accuracy for row in result.rows),
                rounds_epsilon=tuple(row.epsilon_prv if is_claim else None for row in result.rows),
                num_clients=result.num_clients,
                guarantee=result.guarantee if is_claim else "Noise in one layer alone: nothing is protected.",
                data_fingerprint=str(measured["data_fingerprint"]),
                wall_s=wall_s,
                fedsec_version=result.fedsec_version,
                versions=result.versions,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DecodeError(f"the point's measurement is not whole: {error}") from None

    def to_json(self) -> dict[str, Any]:
        """Plain values, strict JSON, sealed with the digest."""
        return {**dump(_UTILITY, self), "digest": self.digest}

    @classmethod
    def from_json(cls, value: Any, what: str = "row") -> UtilityRow:
        """Inverse of :meth:`to_json`.

        Raises:
            DecodeError: not the JSON of this record, or edited.
        """
        return _sealed(cls, _UTILITY, value, what)


@dataclass(frozen=True, kw_only=True)
class AuditRow:
    """One finished audit.

    Attributes:
        key: digest of what was audited and how.
        what: "plan" (a point's claim), "controls" (what the audit must catch) or "inversion" (pictures out of updates, all points).
        target: epsilon of the point; None for controls.
        seed: of the audit.
        varied: as of the point.
        kinds: of audits that ran.
        report: as ``fedsec.privacy.auditing.results.AuditReport.to_json`` gives it.
        wall_s: of the process, seconds.
        fedsec_version: that ran it.
    """

    key: str
    what: str
    target: float | None
    seed: int
    varied: dict[str, str]
    kinds: tuple[str, ...]
    report: dict[str, Any]
    wall_s: float
    fedsec_version: str

    def __post_init__(self) -> None:
        if self.what not in ("plan", "controls", "inversion"):
            raise ValueError(f"an audit is of the plan, of controls or of pictures, not {self.what[:40]!r}")

    @property
    def digest(self) -> str:
        """Of the whole row."""
        return digest_json(ROW_FORMAT, dump(_AUDIT, self))

    def to_json(self) -> dict[str, Any]:
        """Plain values, strict JSON, sealed with the digest."""
        return {**dump(_AUDIT, self), "digest": self.digest}

    @classmethod
    def from_json(cls, value: Any, what: str = "audit") -> AuditRow:
        """Inverse of :meth:`to_json`.

        Raises:
            DecodeError: not the JSON of this record, or edited.
        """
        return _sealed(cls, _AUDIT, value, what)


def _sealed(cls: type[R], table: Table, value: Any, what: str) -> R:
    if not isinstance(value, dict) or "digest" not in value:
        raise DecodeError(f"{what} has no digest")
    row = build(cls, table, {key: item for key, item in value.items() if key != "digest"}, what)
    if row.digest != value["digest"]:
        raise DecodeError(f"{what} was edited: its content does not match its digest")
    return row


def _read_object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DecodeError(f"{what} is not an object")
    return value


_SITE: Table = {
    "name": TEXT,
    "train": INTEGER,
    "test": INTEGER,
    "accuracy": NUMBER,
    "personal": NUMBER_OR_NONE,
    "majority": NUMBER,
    "local": NUMBER_OR_NONE,
}

_UTILITY: Table = {
    "key": TEXT,
    "plan_digest": TEXT,
    "target": NUMBER,
    "seed": INTEGER,
    "varied": map_of(TEXT),
    "arm": TEXT,
    "accuracy": NUMBER,
    "loss": NUMBER,
    "majority_accuracy": NUMBER_OR_NONE,
    "class_names": list_of(TEXT),
    "recall": list_of(NUMBER_OR_NONE),
    "class_tests": list_of(INTEGER),
    "sites": list_of(Codec(SiteRow.to_json, SiteRow.from_json)),
    "epsilon": NUMBER,
    "epsilon_rdp": NUMBER,
    "delta": NUMBER_OR_NONE,
    "unit": TEXT,
    "relation": TEXT,
    "noise_multiplier": NUMBER,
    "rounds_accuracy": list_of(NUMBER),
    "rounds_epsilon": list_of(NUMBER_OR_NONE),
    "num_clients": INTEGER,
    "guarantee": TEXT,
    "data_fingerprint": TEXT,
    "wall_s": NUMBER,
    "fedsec_version": TEXT,
    "versions": map_of(TEXT),
}

_AUDIT: Table = {
    "key": TEXT,
    "what": TEXT,
    "target": NUMBER_OR_NONE,
    "seed": INTEGER,
    "varied": map_of(TEXT),
    "kinds": list_of(TEXT),
    "report": Codec(dict, _read_object),
    "wall_s": NUMBER,
    "fedsec_version": TEXT,
}
