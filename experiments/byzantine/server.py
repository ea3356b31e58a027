"""The server's side of a round: what a rule sees, in the open or as sketches, and the aggregate that comes of it.

1. Rules are the project's own, through ``fedsec.robust.registry``; ``group-filter`` is ``fedsec.robust.sketch_filter`` on the same view.
2. Sketches are real: updates are encoded in fixed point with stochastic rounding, multiplied with R under a fresh seed each round, whitened and
   put back into units of the update. Masks are left out: they cancel in the sum and are tested elsewhere.
3. Under sketches the aggregate is the sum of the encoded updates of who is accepted, decoded, over the sum of their batch sizes.
4. ``flagged`` are clients that are not accepted, and, for rules that weight and reject nobody, those whose score is at the edge or over it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from experiments.byzantine.settings import Settings
from fedsec.robust.base import Mode, RoundView, Verdict
from fedsec.robust.gram import gram_matrix
from fedsec.robust.registry import aggregate, apply_rule
from fedsec.robust.sketch_filter import group_filter
from fedsec.robust.whitening import needs_row_gram, whiten
from fedsec.secagg.fixedpoint import BYTES_PER_ENTRY, FixedPoint
from fedsec.secagg.sketch import SketchMatrix

LARGEST_UPDATE = 100.0
"""L2 norm of a model difference past which the encoding shrinks it; the plan's default without privacy."""

Floats = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]
Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What the server makes of a round.

    Attributes:
        step: the aggregate as a model difference, float64 [d].
        flagged: bool [n].
        scores: float64 [n], larger is more suspicious.
    """

    step: Vector
    flagged: Flags
    scores: Vector


def judge(rule: str, view: RoundView) -> Verdict:
    """The verdict of a rule on a view, for every rule that has one; see ``fedsec.robust.registry.apply_rule``."""
    if rule != "group-filter":
        return apply_rule(rule, view)
    gram = gram_matrix(view.vectors, scales=1.0 / view.batch_sizes)
    decision = group_filter(gram, num_byzantine=view.num_byzantine)
    weights = decision.accepted / view.batch_sizes[decision.accepted].sum() if view.mode is Mode.OPEN else None
    reasons = {view.client_ids[place]: "its group pulls too far" for place in np.flatnonzero(~decision.accepted)}
    return Verdict(accepted=decision.accepted, scores=decision.scores, weights=weights, reasons=reasons)


def view_of(settings: Settings, vectors: npt.NDArray[np.floating], *, dimension: int, root: Vector | None = None) -> RoundView:
    """A round without privacy noise in which all clients declare the same batch size."""
    count = len(vectors)
    return RoundView(
        mode=Mode(settings.mode),
        client_ids=tuple(f"client-{place:04d}" for place in range(count)),
        vectors=vectors,
        dimension=dimension,
        batch_sizes=np.full(count, float(settings.batch_size)),
        noise_stddev=0.0,
        num_byzantine=settings.num_byzantine,
        root=root,
    )


def aggregate_round(settings: Settings, updates: Floats, *, root: Vector | None, generator: np.random.Generator) -> Outcome:
    """One round.

    Args:
        settings: rule, mode, batch size, rows of the sketch.
        updates: float32 [n, d], sum form, finite.
        root: the server's own model difference, for a rule that needs one.
        generator: seed of R and random bits of the rounding.
    """
    dimension = updates.shape[1]
    if settings.mode == "open":
        view = view_of(settings, updates, dimension=dimension, root=root)
        if settings.rule == "group-filter":
            verdict = judge(settings.rule, view)
            assert verdict.weights is not None
            step = verdict.weights @ updates.astype(np.float64)
        else:
            step, verdict = aggregate(settings.rule, view)
        return Outcome(step=step, flagged=_flagged(verdict), scores=verdict.scores)
    point = FixedPoint.for_norm(LARGEST_UPDATE * settings.batch_size, num_clients=len(updates), dimension=dimension)
    encoded = np.stack([point.encode(update, generator.bytes(BYTES_PER_ENTRY * dimension)) for update in updates])
    verdict = judge(settings.rule, view_of(settings, sketched(settings, encoded, point, generator), dimension=dimension))
    total = encoded[verdict.accepted].sum(axis=0, dtype=np.int64)
    step = total / point.scale / (settings.batch_size * max(1, int(np.count_nonzero(verdict.accepted))))
    return Outcome(step=step, flagged=_flagged(verdict), scores=verdict.scores)


def sketched(
    settings: Settings, encoded: npt.NDArray[np.int32], point: FixedPoint, generator: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Whitened sketches of encoded updates under a fresh R, in units of the update: float64 [n, k]."""
    matrix = SketchMatrix(seed=generator.bytes(32), num_rows=settings.sketch_rows, dimension=point.dimension)
    products = matrix.row_products().astype(np.float64) if needs_row_gram(settings.sketch_rows, point.dimension) else None
    return whiten(matrix.product_many(list(encoded)), dimension=point.dimension, rrt=products) / point.scale


def believed_rule(settings: Settings, view: RoundView) -> Vector:
    """Weights of the aggregate that a rule would make, for attackers who try what happens: float64 [n], on model differences."""
    verdict = judge(settings.rule, replace(view, batch_sizes=np.ones(view.num_clients)))
    return verdict.weights if verdict.weights is not None else verdict.accepted / max(1, int(np.count_nonzero(verdict.accepted)))


def _flagged(verdict: Verdict) -> Flags:
    """Rule 4 of this module: a weighting rule accepts all, and only its scores tell whom it would reject."""
    weighted = verdict.weights is not None and bool(verdict.accepted.all())
    flags: Flags = (verdict.scores >= 1.0) if weighted else ~verdict.accepted
    return flags
