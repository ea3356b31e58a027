"""The defender's own rule in the hands of simulated attackers: as weights, and as the whole pipeline on candidate updates."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from fedsec.plan.model import Plan
from fedsec.plan.robust import OPEN_ONLY, UNDEFENDED, max_suspects, rule_of
from fedsec.robust.base import Flags, Matrix, Mode, RoundView, Vector
from fedsec.robust.registry import apply_rule
from fedsec.robust.screening import screen
from fedsec.robust.whitening import whiten
from fedsec.secagg.sketch import SketchMatrix
from fedsec.vectors import FloatArray

_GRID = 1 << 16  # steps to a noise unit when an attacker sketches candidates: any fine grid will do


def rule_weights(plan: Plan) -> Callable[[Matrix], Vector] | None:
    """The rule as weights from a Gram matrix; None where the attackers take it for the mean.

    Rows that have this Gram matrix are as good as the updates to a rule that looks at nothing else.
    """
    rule = rule_of(plan)
    if rule in (UNDEFENDED, "screening", "fltrust", *OPEN_ONLY):
        return None

    def weights(gram: Matrix) -> Vector:
        values, vectors = np.linalg.eigh(gram)
        rows = vectors * np.sqrt(np.maximum(values, 0.0))
        verdict = apply_rule(rule, _view_of(plan, rows, np.ones(len(rows)), dimension=rows.shape[1], stddev=0.0))
        chosen: Vector = verdict.weights if verdict.weights is not None else verdict.accepted / max(1, int(verdict.accepted.sum()))
        return chosen

    return weights


def _view_of(plan: Plan, rows: npt.NDArray[np.floating], sizes: Vector, *, dimension: int, stddev: float) -> RoundView:
    return RoundView(
        mode=Mode.SKETCH if plan.secagg.enabled else Mode.OPEN,
        client_ids=tuple(f"{place:06d}" for place in range(len(rows))),
        vectors=rows,
        dimension=dimension,
        batch_sizes=sizes,
        noise_stddev=stddev,
        num_byzantine=max_suspects(plan, len(rows)),
    )


def pipeline(plan: Plan, stddev: float, sizes: npt.NDArray[np.int64]) -> Callable[[FloatArray], Flags] | None:
    """Which of some candidate updates the defender would accept, under an R of the attackers' own: the true one is drawn after the uploads."""
    rule = rule_of(plan)
    if rule in (UNDEFENDED, "fltrust", *OPEN_ONLY):
        return None
    generator = np.random.default_rng([plan.federation.seed, 7])

    def accepted(rows: FloatArray) -> Flags:
        vectors: npt.NDArray[np.floating] = rows
        if plan.secagg.enabled:
            matrix = SketchMatrix(seed=generator.bytes(32), num_rows=plan.secagg.sketch_rows, dimension=rows.shape[1])
            step = (stddev or float(np.abs(rows).max()) or 1.0) / _GRID
            encoded = [np.rint(row.astype(np.float64) / step).astype(np.int64) for row in rows]
            vectors = whiten(matrix.product_many(encoded), dimension=rows.shape[1], rrt=matrix.row_products().astype(np.float64)) * step
        view = _view_of(plan, vectors, np.resize(sizes, len(rows)).astype(np.float64), dimension=rows.shape[1], stddev=stddev)
        verdict = screen(view)[0] if rule == "screening" else apply_rule(rule, view)
        return verdict.accepted

    return accepted
