"""What a run reports of rejection: who was kept out, when and why, and, in a simulation, how well that fits the truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from fedsec.data.base import Dataset
from fedsec.data.federated import FederatedData
from fedsec.defence import Defence
from fedsec.models.evaluation import evaluate
from fedsec.models.factory import Model
from fedsec.plan.model import Plan
from fedsec.plan.robust import UNDEFENDED
from fedsec.results import NamedClient, RejectedClient, RejectionReport, RoundRow
from fedsec.robust.quality import JudgedRound, label_skew, rejection_quality
from fedsec.robust.reputation_records import Standing
from fedsec.sim.attacks.catalogue import CATALOGUE, Family, is_active
from fedsec.sim.attacks.poison import attack_records
from fedsec.sim.identities import client_name

MOST_REASONS = 3
_HARMLESS = "denormal"  # malformed, but a number like any other


def rejection_report(
    plan: Plan, defence: Defence, rows: Sequence[RoundRow], data: FederatedData | None, *, attack_success: float | None,
    certificates: Mapping[str, str],
) -> RejectionReport | None:  # fmt: skip
    """The report; None where no rule rejects, nobody was named and nobody attacks.

    Args:
        plan: what was run.
        defence: as it is after the last round.
        rows: all rounds.
        data: of the simulation; its label counts give each client's skew. None: nobody knows them.
        attack_success: share of the attacker's aim that the released model gives, where the attack has one.
        certificates: client id → serial number of its certificate, where clients have any.
    """
    named = _named(defence, certificates)
    if defence.rule == UNDEFENDED and not named and plan.attack.name == "none":
        return None
    attackers = sorted(defence.attackers)
    rounds = [_judged(row, plan, defence.attackers, named) for row in rows]
    quality = rejection_quality(
        rounds,
        attackers=attackers,
        skew=None if data is None else {client_name(place): float(value) for place, value in enumerate(label_skew(data.histogram()))},
        provable=attackers if _is_provable(plan) and any(one.attacking for one in rounds) else (),
        named=[item.client_id for item in named],
    )
    return RejectionReport(
        **vars(quality),
        rejected=_rejected(rows, defence, plan, named, certificates),
        named=named,
        attackers=tuple(attackers),
        attack="" if plan.attack.name == "none" else plan.attack.name,
        attack_success=attack_success,
    )


def _is_provable(plan: Plan) -> bool:
    name = plan.attack.name
    return name not in ("none", _HARMLESS) and CATALOGUE[name].family is Family.MALFORMED


def _judged(row: RoundRow, plan: Plan, attackers: frozenset[str], named: Sequence[NamedClient]) -> JudgedRound:
    screening = row.screening
    scores: Mapping[str, float] = screening.scores if screening is not None else {}
    caught = {item.client_id for item in named if item.round == row.server_round}
    quarantined = frozenset(screening.quarantined if screening is not None else ())
    return JudgedRound(
        server_round=row.server_round,
        scores=scores,
        kept_out=frozenset(screening.kept_out if screening is not None else ()) | caught,
        blocked=quarantined | {item.client_id for item in named if item.round < row.server_round},
        attacking=attackers if is_active(plan.attack, row.server_round) else frozenset(),
    )


def _named(defence: Defence, certificates: Mapping[str, str]) -> tuple[NamedClient, ...]:
    records = defence.reputation.clients.items()
    found = [
        NamedClient(
            client_id=name, round=record.since, reason=record.reason, evidence=record.evidence_at, certificate=certificates.get(name, "")
        )
        for name, record in records
        if record.standing is Standing.EXCLUDED
    ]
    return tuple(sorted(found, key=lambda item: (item.round, item.client_id)))


def _rejected(
    rows: Sequence[RoundRow], defence: Defence, plan: Plan, named: Sequence[NamedClient], certificates: Mapping[str, str]
) -> tuple[RejectedClient, ...]:  # fmt: skip
    rounds: dict[str, list[int]] = {}
    reasons: dict[str, Counter[str]] = {}
    for row in rows:
        kept_out = {item.client_id: item.reason for item in named if item.round == row.server_round}
        kept_out |= row.screening.kept_out if row.screening is not None else {}
        for name, reason in kept_out.items():
            rounds.setdefault(name, []).append(row.server_round)
            reasons.setdefault(name, Counter())[reason] += 1
    evidence = {item.client_id: item.evidence for item in named}
    return tuple(
        RejectedClient(
            client_id=name,
            rounds=len(rounds[name]),
            first_round=rounds[name][0],
            reasons=tuple(reason for reason, _ in reasons[name].most_common(MOST_REASONS)),
            attacker=name in defence.attackers if plan.attack.name != "none" else None,
            evidence=evidence.get(name, ""),
            certificate=certificates.get(name, ""),
        )
        for name in sorted(rounds)
    )


def attack_success(plan: Plan, model: Model, dataset: Dataset) -> float | None:
    """Share of the test records concerned that the model classifies as the attackers want; None for attacks without such an aim."""
    if plan.attack.name == "none" or not CATALOGUE[plan.attack.name].poisons_records:
        return None
    x, wanted = attack_records(plan.attack, dataset.x_test, dataset.y_test, num_classes=dataset.num_classes)
    if not len(x):
        return None
    return evaluate(model, x, wanted, num_classes=dataset.num_classes, device=plan.training.device).accuracy
