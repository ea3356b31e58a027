"""The plan's rule on verified sketches: from integers and R to the view that rules look at.

1. Sketches are whitened with R·Rᵀ and put back into units of the sum-form update, so that noise of the updates has the same, publicly known
   deviation in every coordinate of the view.
2. Rounding to the grid adds at most ``1 / (4 * scale**2)`` of variance to an entry; the view counts it as noise.
3. One R for all cohorts, so all their members stand in one view; scales may differ with the cohort's size.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt

from fedsec.defence import Defence
from fedsec.plan.robust import UNDEFENDED
from fedsec.robust.accumulated import MOST_LIFTED
from fedsec.robust.base import Mode, RoundView
from fedsec.robust.whitening import lift, needs_row_gram, whiten
from fedsec.secagg.fixedpoint import FixedPoint
from fedsec.secagg.group import GroupServer, Place, Rule, accept_all
from fedsec.secagg.sketch import Sketch, SketchMatrix

MOST_WRITTEN = 1 << 25
"""Most entries of R that are written out, 256 MiB as numbers, to compare rounds in the space of the updates."""

Root = npt.NDArray[np.float64] | None


def sketch_rule(
    defence: Defence, group: GroupServer, fixed_points: Mapping[int, FixedPoint], server_round: int, root: Root = None
) -> Rule:  # fmt: skip
    """The rule of one attempt, for ``GroupServer.decide``; it raises ``RoundAborted`` where nobody may count.

    Args:
        defence: of the run.
        group: its uploads are fixed.
        fixed_points: encoding by cohort size.
        server_round: from 1.
        root: the server's own model difference; its sketch is compared with the clients'.
    """
    if defence.rule == UNDEFENDED:
        return accept_all

    def rule(sketches: Mapping[Place, Sketch]) -> Collection[Place]:
        names = {place: group.cohorts[place[0]].members[place[1]].client_id for place in sketches}
        places = sorted(sketches, key=names.__getitem__)
        view, lifted = _view(defence, group, fixed_points, server_round, {place: sketches[place] for place in places}, root)
        accepted = defence.judge(view, lifted=lifted)
        return [place for place in places if names[place] in accepted]

    return rule


def gated_members(group: GroupServer) -> dict[str, tuple[float, str]]:
    """Members whose sketch no honest update gives, whatever the rule: client id → (length over the longest allowed, reason)."""
    gated = {}
    for cohort in group.running().values():
        passed, config = cohort.screen(), cohort.config
        for index in cohort.sketches.keys() - passed.keys():
            longest = math.sqrt(config.norm_slack * config.num_rows / 2) * config.norm_bound
            ratio = float(np.linalg.norm(cohort.sketches[index].sketch.astype(np.float64))) / longest
            reason = f"its sketch is {ratio:.3g} times as long as the bound on updates allows"
            gated[cohort.members[index].client_id] = (max(1.0, ratio), reason)
    return gated


def _view(
    defence: Defence, group: GroupServer, fixed_points: Mapping[int, FixedPoint], server_round: int, sketches: Mapping[Place, Sketch],
    root: Root,
) -> tuple[RoundView, npt.NDArray[np.float64] | None]:  # fmt: skip
    cohorts = [group.cohorts[number] for number, _ in sketches]
    config = cohorts[0].config
    matrix = SketchMatrix(seed=cohorts[0].matrix_seed, num_rows=config.num_rows, dimension=config.dimension)
    scales = np.array([fixed_points[len(cohort.members)].scale for cohort in cohorts])
    rows = np.stack([sketch.astype(np.float64) for sketch in sketches.values()])
    products = matrix.row_products().astype(np.float64) if needs_row_gram(config.num_rows, config.dimension) else None
    rounding = 1.0 / (4.0 * float(scales.min()) ** 2)
    lifted = None
    small = len(rows) * config.dimension <= MOST_LIFTED and config.num_rows * config.dimension <= MOST_WRITTEN
    if defence.rule == "screening" and small:
        lifted = lift(rows, matrix.entries(0, config.num_rows), rrt=products) / scales[:, None]
    view = RoundView(
        mode=Mode.SKETCH,
        client_ids=tuple(cohort.members[index].client_id for cohort, (_, index) in zip(cohorts, sketches, strict=True)),
        vectors=whiten(rows, dimension=config.dimension, rrt=products) / scales[:, None],
        dimension=config.dimension,
        batch_sizes=np.array(
            [cohort.adverts[index][0].weight for cohort, (_, index) in zip(cohorts, sketches, strict=True)], dtype=np.float64
        ),
        noise_stddev=math.sqrt(defence.noise_stddev**2 + rounding) if defence.noise_stddev else 0.0,
        num_byzantine=defence.most_suspects(len(sketches)),
        server_round=server_round,
        root=_root_row(root, matrix, products, float(scales.min())) if root is not None else None,
    )
    return view, lifted


def _root_row(
    root: npt.NDArray[np.float64], matrix: SketchMatrix, products: npt.NDArray[np.float64] | None, scale: float
) -> npt.NDArray[np.float64]:  # fmt: skip
    """The whitened sketch of the server's own update, rounded to the grid like everybody's."""
    encoded = np.rint(root * scale).astype(np.int64)
    row: npt.NDArray[np.float64] = whiten(matrix.product(encoded)[None, :], dimension=matrix.dimension, rrt=products)[0] / scale
    return row
