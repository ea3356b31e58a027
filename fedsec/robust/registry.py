"""The two ways to run a rule of ``fedsec.robust.catalogue`` on a round.

1. :func:`apply_rule` says what a rule makes of the clients, in the open or on sketches. It sees model differences: rows in sum form are
   divided by their declared batch sizes first.
2. Where updates are masked, weights cannot be applied. Then a rule that weights becomes one that selects: clients whose score reaches the
   edge are left out, at most f of them, and the sum is over the rest.
3. :func:`aggregate` also makes the aggregate, in the open, for every rule.
4. The mean of selected updates weights them with their capped batch sizes, as ``fedsec.robust.rules`` does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from fedsec.errors import RoundAborted
from fedsec.robust import coordinatewise, selecting, trust, weighting
from fedsec.robust.base import Matrix, Mode, RoundView, Vector, Verdict
from fedsec.robust.catalogue import RULES, Kind, RuleInfo, rule_info, rules_for
from fedsec.robust.decision import GramDecision, accept_all_but, residual_scores
from fedsec.robust.gram import combine, distances_to, gram_matrix
from fedsec.robust.rules import capped_weights
from fedsec.robust.sketch_filter import group_filter

__all__ = ["RULES", "WEIGHT_CAP", "Kind", "RuleInfo", "aggregate", "apply_rule", "rule_info", "rules_for"]

WEIGHT_CAP = 3.0
"""Default of ``training.weight_cap``."""

CANNOT_TELL = 1.5
"""Score from which on clients that the group filter had to keep, for it may reject f only, count as suspects: honest groups under strong skew
reach 1.2."""


def _group_filter(gram: Matrix, *, num_byzantine: int) -> GramDecision:
    """Who stays is under the edge, or so far over it that more than f must be hostile: then nobody can tell, and the round fails."""
    decision = group_filter(gram, num_byzantine=num_byzantine)
    near = decision.accepted & (decision.scores < CANNOT_TELL)
    return replace(decision, scores=np.where(near, np.minimum(decision.scores, np.nextafter(1.0, 0.0)), decision.scores))


_ON_GRAM: dict[str, Callable[..., GramDecision]] = {
    "mean": weighting.mean,
    "group-filter": _group_filter,
    "filter": selecting.norm_and_distance_filter,
    "mad-filter": selecting.mad_filter,
    "spectral": selecting.spectral_filter,
    "krum": selecting.krum,
    "multi-krum": selecting.multi_krum,
    "geometric-median": weighting.geometric_median,
    "centred-clipping": weighting.centred_clipping,
    "nnm-geometric-median": weighting.nnm_geometric_median,
    "arc-nnm-geometric-median": weighting.arc_nnm_geometric_median,
}

_WHY = {
    "group-filter": "with others it pulls the sum farther than groups of this size do",
    "filter": "too far from the centre of the updates, too long, or a twin of another update",
    "spectral": "too far from the centre of the updates, or agrees with others on a direction that most do not take",
    "krum": "not the most central update, and only that one is kept",
    "multi-krum": "among the f updates farthest from their neighbours",
    "fltrust": "does not point where the server's own update does",
    "foolsgold": "points where another update does",
    "bulyan": "not among the n - 2f updates that Krum selects",
}


def apply_rule(name: str, view: RoundView, *, weight_cap: float = WEIGHT_CAP, threads: int | None = None) -> Verdict:
    """What a rule on the Gram matrix says of a round.

    Args:
        name: of a rule in ``fedsec.robust.catalogue`` that is not coordinate-wise; those have no weights, see :func:`aggregate`.
        view: the round, at least one client.
        weight_cap: see :func:`fedsec.robust.rules.capped_weights`; for rules that average what they select.
        threads: see :func:`fedsec.robust.lanes.in_lanes`.

    Returns:
        In the open with weights on the rows of ``view.vectors``; on sketches without. A reason for every client that is not accepted.

    Raises:
        ConfigError: the rule cannot run on such a round; names those that could.
        ValueError: the rule is coordinate-wise, or the round is empty.
    """
    info = rule_info(name, view.mode, root=view.root is not None)
    if info.kind is Kind.COORDINATES:
        raise ValueError(f"{name} gives no weights: aggregate() runs it")
    gram = _model_gram(view, root=info.needs_root, threads=threads)
    decision = _decide(name, gram, view.num_byzantine)
    if view.mode is Mode.OPEN:
        return _verdict(name, view, decision, _row_weights(info, decision, view, weight_cap))
    if info.kind is Kind.WEIGHTS:
        decision = _as_selection(name, decision, gram, view.num_byzantine)
    return _verdict(name, view, decision, None)


def aggregate(name: str, view: RoundView, *, weight_cap: float = WEIGHT_CAP, threads: int | None = None) -> tuple[Vector, Verdict]:
    """Run any rule in the open.

    Returns:
        The aggregate of model differences, float64 [d], and the verdict. Coordinate-wise rules accept all (Bulyan: what Krum selects), with
        ``weights`` None; their scores are distances from the aggregate over the edge of ``fedsec.robust.decision``.

    Raises:
        ConfigError: as :func:`apply_rule`.
        RoundAborted: Bulyan has fewer than 4f + 3 clients.
        ValueError: the view is of sketches, or empty.
    """
    if view.mode is not Mode.OPEN:
        raise ValueError("sketches have no aggregate: the sum over the accepted is opened instead")
    info = rule_info(name, view.mode, root=view.root is not None)
    if info.kind is Kind.COORDINATES:
        return _by_coordinates(info, view, threads)
    verdict = apply_rule(name, view, weight_cap=weight_cap, threads=threads)
    assert verdict.weights is not None
    return combine(view.vectors, verdict.weights, threads=threads), verdict


def _decide(name: str, gram: Matrix, num_byzantine: int) -> GramDecision:
    if name == "fltrust":
        return trust.fltrust(gram[:-1, :-1], root_products=gram[:-1, -1], root_norm=float(np.sqrt(gram[-1, -1])))
    if name == "foolsgold":
        return trust.foolsgold(gram)
    return _ON_GRAM[name](gram, num_byzantine=num_byzantine)


def _model_gram(view: RoundView, *, root: bool, threads: int | None) -> Matrix:
    """Gram matrix of the model differences; with ``root``, of the root update too, in the last row."""
    if root and view.root is not None:
        rows = [*view.vectors, view.root.astype(view.vectors.dtype)]
        return gram_matrix(rows, scales=np.append(1.0 / view.batch_sizes, 1.0), threads=threads)
    factor, scales = _factor_and_scales(view)
    return gram_matrix(view.vectors, scales=scales, threads=threads) * factor**2


def _factor_and_scales(view: RoundView) -> tuple[float, Vector | None]:
    """What turns rows into model differences: one factor for all where all declare the same batch size, else 1 and one scale a row."""
    sizes = view.batch_sizes
    return (1.0 / float(sizes[0]), None) if (sizes == sizes[:1]).all() else (1.0, 1.0 / sizes)


def _as_selection(name: str, decision: GramDecision, gram: Matrix, num_byzantine: int) -> GramDecision:
    """What a rule that weights becomes where nothing but a sum over clients can be had."""
    scores = decision.scores
    if name == "fltrust":  # in the open it gives all trusted updates one norm; here those of a large norm have to stay out
        norms = np.sqrt(np.diagonal(gram)[:-1])
        typical = float(np.median(norms))
        scores = np.maximum(scores, norms / ((1.0 + selecting.NORM_SLACK) * typical) if typical > 0 else 0.0)
    accepted = accept_all_but(scores, num_byzantine)
    return replace(decision, accepted=accepted, scores=scores)


def _row_weights(info: RuleInfo, decision: GramDecision, view: RoundView, weight_cap: float) -> Vector:
    """Weights on rows in sum form."""
    if info.kind is Kind.WEIGHTS:
        weights: Vector = decision.weights / view.batch_sizes
        return weights
    counted = np.zeros(view.num_clients)
    counted[decision.accepted] = capped_weights(view.batch_sizes[decision.accepted].tolist(), weight_cap=weight_cap)
    row_weights: Vector = counted / view.batch_sizes / counted.sum()
    return row_weights


def _by_coordinates(info: RuleInfo, view: RoundView, threads: int | None) -> tuple[Vector, Verdict]:
    factor, scales = _factor_and_scales(view)
    accepted, f = np.ones(view.num_clients, dtype=np.bool_), view.num_byzantine
    if info.name == "bulyan":
        if view.num_clients < info.fewest_clients(f):
            raise RoundAborted(f"bulyan needs {info.fewest_clients(f)} clients to stand {f} hostile ones, {view.num_clients} are there")
        gram = gram_matrix(view.vectors, scales=scales, threads=threads)
        result, accepted = coordinatewise.bulyan(view.vectors, gram, num_byzantine=f, scales=scales, threads=threads)
    elif info.name == "median":
        result = coordinatewise.median(view.vectors, scales=scales, threads=threads)
    else:
        rule = {"trimmed-mean": coordinatewise.trimmed_mean, "meamed": coordinatewise.meamed}[info.name]
        result = rule(view.vectors, num_byzantine=f, scales=scales, threads=threads)
    scores = residual_scores(distances_to(view.vectors, result, scales=scales, threads=threads))
    decision = GramDecision(weights=np.zeros(view.num_clients), accepted=accepted, scores=scores)
    return result * factor, _verdict(info.name, view, decision, None)


def _verdict(name: str, view: RoundView, decision: GramDecision, weights: Vector | None) -> Verdict:
    left_out = np.flatnonzero(~decision.accepted)
    how = _WHY.get(name, "too far from the centre of the updates")
    reasons = {view.client_ids[index]: f"{how} (score {decision.scores[index]:.3g}, edge 1)" for index in left_out}
    suspects = float(np.count_nonzero(decision.scores >= 1.0))
    facts = {"suspects": suspects, **decision.facts}
    return Verdict(accepted=decision.accepted, scores=decision.scores, weights=weights, reasons=reasons, facts=facts)
