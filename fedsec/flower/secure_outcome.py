"""What one round of secure aggregation gave: the sum over all cohorts that were opened, and the rows of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fedsec.flower.tally import Tally
from fedsec.results import CohortRow, SecaggRow
from fedsec.secagg.config import Member
from fedsec.secagg.fixedpoint import FixedPoint
from fedsec.secagg.opening import Opened

Sum = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class SecureOutcome:
    """What one round gave.

    Attributes:
        total: float64 [d], the sum of sum-form updates of all accepted clients; None if no cohort was opened.
        weights: declared weights of the accepted clients.
        refused: (client id, reason) of answers that were refused.
        row: for the result.
        evidence: named client → path of its evidence in the result folder.
    """

    total: Sum | None
    weights: dict[str, int]
    refused: tuple[tuple[str, str], ...]
    row: SecaggRow
    evidence: Mapping[str, str] = field(default_factory=dict)


def outcome_of(
    results: Mapping[int, Opened | None], tally: Tally, cohorts: Sequence[Sequence[Member]], fixed_points: Mapping[int, FixedPoint]
) -> SecureOutcome:
    """Add the cohorts up.

    Args:
        results: cohort → its checked sum, None if it has none to use.
        tally: of the round.
        cohorts: the members of each.
        fixed_points: encoding by cohort size.
    """
    total: Sum | None = None
    weights: dict[str, int] = {}
    rows = []
    for number, members in enumerate(cohorts):
        opened = results.get(number)
        if opened is not None:
            part = fixed_points[len(members)].decode(opened.total)
            total = part if total is None else total + part
            weights |= {members[index].client_id: weight for index, weight in opened.weights.items()}
        rows.append(_row(number, len(members), opened, tally))
    row = SecaggRow(
        attempts=max(tally.attempts, 1),
        cohorts=tuple(rows),
        stage_ms={stage: round(seconds * 1000, 3) for stage, seconds in tally.seconds.items()},
        named=tuple(tally.named),
        unresolved=tuple(tally.unresolved),
    )
    return SecureOutcome(total=total, weights=weights, refused=tuple(tally.refused), row=row, evidence=tally.evidence)


def _row(number: int, num_clients: int, opened: Opened | None, tally: Tally) -> CohortRow:
    lost = "the server restarted after shares were asked for, or too often; the round is lost"
    return CohortRow(
        cohort=number,
        num_clients=num_clients,
        num_accepted=len(opened.accepted) if opened is not None else 0,
        dropouts=tally.dropouts(number),
        opening="held" if opened is not None else tally.openings.get(number, "not reached"),
        reason="" if opened is not None else tally.reasons.get(number) or lost,
        bytes_up=tally.mean_up(number),
        bytes_down=tally.mean_down(number),
    )
