"""Rules that select updates and average them: Krum, Multi-Krum, and three filters, all on the Gram matrix.

Symbols as in ``fedsec.robust.weighting``. What is selected counts equally, so these rules mean the same for updates in clear and for
sketches of masked ones. Filters reject only what is separable, and so nobody in most rounds; Krum and Multi-Krum reject a fixed number.
"""

from __future__ import annotations

import math

import numpy as np

from fedsec.robust.base import Flags, Matrix, Vector
from fedsec.robust.decision import (
    DEVIATIONS,
    MAD_TO_STDDEV,
    ROUNDING,
    GramDecision,
    accept_all_but,
    check_gram,
    distances_from,
    residual_scores,
    scores_by_rank,
    smallest,
    uniform,
)
from fedsec.robust.gram import squared_distances
from fedsec.robust.weighting import adaptive_clipping, arc_nnm_geometric_median, nnm_geometric_median

TWINS = 0.25
"""Share of the usual distance between nearest neighbours below which two updates are twins."""
NORM_SLACK = 1.0
"""How far over the norm threshold an update may be, as a share of it."""
IMPUTATIONS = 3
"""Rounds in which the spectral filter finds the part of each squared norm that common directions explain."""
DIRECTIONS = 3
"""Leading directions that the spectral filter looks at in each step."""


def krum(gram: Matrix, *, num_byzantine: int, neighbours: int | None = None) -> GramDecision:
    """Krum: the one update with the smallest sum of squared distances to its n - f - 2 nearest others.

    Breakdown point: f with n >= 2f + 3. Under skew it loses much without any attack: one client's update is the aggregate. Cost: n² log n.
    Paper: Blanchard, El Mhamdi, Guerraoui, Stainer, NeurIPS 2017.

    Args:
        gram: G.
        num_byzantine: f.
        neighbours: how many others count; default n - f - 2, at least 1. (ByzFL counts n - f - 1.)

    >>> krum(np.diag([0.0, 1.0, 2.0, 1e6]), num_byzantine=1).accepted
    array([ True, False, False, False])
    """
    return _by_krum_scores(gram, num_byzantine, neighbours, 1)


def multi_krum(gram: Matrix, *, num_byzantine: int, neighbours: int | None = None, kept: int | None = None) -> GramDecision:
    """Multi-Krum: the mean of the n - f updates (or ``kept``) with the smallest Krum scores.

    Breakdown point, cost, paper: as :func:`krum`. f = 0 gives the mean.

    >>> multi_krum(np.diag([0.0, 1.0, 2.0, 1e6]), num_byzantine=1).weights
    array([0.33333333, 0.33333333, 0.33333333, 0.        ])
    """
    return _by_krum_scores(gram, num_byzantine, neighbours, len(gram) - num_byzantine if kept is None else kept)


def mad_filter(gram: Matrix, *, num_byzantine: int) -> GramDecision:
    """MAD filter: the mean of all updates whose distance from the NNM + GM centre is below the edge; at most f are rejected.

    Score: ``||x_i - c|| / edge``, edge = median + max(5 * 1.4826 MAD, median / 4) of those distances, c from
    :func:`~fedsec.robust.weighting.nnm_geometric_median`.
    Breakdown point: f < n/2 for what is far out; a hostile update below the edge stays, and moves the mean by at most edge/n. Cost: as NNM.
    Source: design note ROBUST; median and MAD as location and scale: Hampel 1974.

    >>> mad_filter(np.diag([1.0, 1.0, 1.0, 1e6]), num_byzantine=1).accepted
    array([ True,  True,  True, False])
    """
    check_gram(gram, num_byzantine)
    centre = nnm_geometric_median(gram, num_byzantine=num_byzantine)
    return _filtered(centre.scores, num_byzantine)


def norm_and_distance_filter(gram: Matrix, *, num_byzantine: int, slack: float = NORM_SLACK) -> GramDecision:
    """Filter: of twins all but one are left out, then what fails a norm gate or lies beyond the edge; at most f in all. Mean of the rest.

    Twins are updates nearer to each other than ``TWINS`` of what is usual between nearest neighbours (the median). Training on different
    records does not give twins; colluders who send one vector f times are, and a geometric median is drawn to such a point. Of each group
    the first by client id stays. Colluders who add noise of an honest size are no twins; in two dimensions honest updates are, by chance.
    Score of the others: the larger of ``||x_i|| / ((1 + slack) tau)``, tau the norm to which ARC would clip, and ``||x_i - c|| / edge`` as
    in :func:`mad_filter`, c from :func:`~fedsec.robust.weighting.arc_nnm_geometric_median` without the twins: clipping makes the centre,
    updates as sent are scored. The score of twins is at least 1.
    Breakdown point: f < n/2, as :func:`mad_filter`. Cost: as NNM.
    Source: design note ROBUST (default on sketches without privacy); twins: ours, in the spirit of FoolsGold (arXiv 1808.04866).

    >>> norm_and_distance_filter(np.diag([1.0, 1.0, 1.0, 1e6]), num_byzantine=1).accepted
    array([ True,  True,  True, False])
    """
    count = check_gram(gram, num_byzantine)
    twins = find_twins(gram, num_byzantine=num_byzantine)
    single = ~twins
    left = num_byzantine - int(np.count_nonzero(twins))
    among = gram[np.ix_(single, single)]
    centre = np.zeros(count)
    centre[single] = arc_nnm_geometric_median(among, num_byzantine=left).weights
    norms = np.sqrt(np.diagonal(gram))
    tau = float(np.max(norms[single] * adaptive_clipping(among, num_byzantine=left)))
    by_norm = norms / ((1.0 + slack) * tau) if tau > 0 else (norms > 0).astype(np.float64)
    by_distance = residual_scores(distances_from(gram, centre), scale=float(np.median(norms[single])), among=single)
    scores = np.maximum(by_norm, by_distance)
    accepted = single & accept_all_but(np.where(single, scores, 0.0), left)
    scores[twins] = np.maximum(scores[twins], 1.0)
    facts = {"tau": tau, "twins": float(np.count_nonzero(twins))}
    return GramDecision(weights=uniform(accepted), accepted=accepted, scores=scores, facts=facts)


def find_twins(gram: Matrix, *, num_byzantine: int) -> Flags:
    """Updates that are near another one of a smaller index, as :func:`norm_and_distance_filter` says; at most f: bool [n].

    >>> find_twins(np.diag([4.0, 4.0, 4.0, 0.0, 0.0]), num_byzantine=2)
    array([False, False, False, False,  True])
    """
    distances = np.sqrt(squared_distances(gram))
    np.fill_diagonal(distances, np.inf)
    near = distances < TWINS * float(np.median(distances.min(axis=1)))
    twins = np.zeros(len(gram), dtype=np.bool_)
    for index in range(1, len(gram)):
        if np.count_nonzero(twins) < num_byzantine:
            twins[index] = bool(near[index, :index][~twins[:index]].any())
    return twins


def spectral_filter(gram: Matrix, *, num_byzantine: int, directions: int = DIRECTIONS) -> GramDecision:
    """Spectral filter: as :func:`mad_filter`, and reject also who agrees with others on a direction that most do not take; mean of the rest.

    Step, over the updates still accepted: the leading eigenvectors of the centred Gram matrix, of its diagonal only what common directions
    explain, give each update its coordinate p_i along each direction, its product with itself left out: what counts is how far it goes
    together with others. Score ``|p_i - median p| / (5 max(1.4826 MAD p, u))``, u the deviation along a typical direction (from the median
    of the positive eigenvalues); the largest over the directions, and over the score of :func:`mad_filter`. Scores of 1 and more are
    rejected, at most f in all. Ends when a step rejects nobody.
    Breakdown point: f < n/2 for what is far out. Cost: n³ a step, at most f + 1 steps.
    Papers: Shejwalkar, Houmansadr, NDSS 2021 (DnC: fixed number, random coordinates); Allouah et al., arXiv 2505.01874 (CAF: weights).
    Here: all coordinates, several directions, no diagonal, and a number that the updates decide.

    >>> spectral_filter(np.diag([1.0, 1.0, 1.0, 1.0, 1e6]), num_byzantine=1).accepted
    array([ True,  True,  True,  True, False])
    """
    count = check_gram(gram, num_byzantine)
    by_distance = nnm_geometric_median(gram, num_byzantine=num_byzantine).scores
    scores, accepted = by_distance.copy(), np.ones(count, dtype=np.bool_)
    while True:
        together = _agreement(gram[np.ix_(accepted, accepted)], directions)
        scores[accepted] = np.maximum(by_distance[accepted], together)
        left = num_byzantine - int(np.count_nonzero(~accepted))
        keep = accept_all_but(np.where(accepted, scores, 0.0), left)
        if keep.all():
            break
        accepted &= keep
    return GramDecision(weights=uniform(accepted), accepted=accepted, scores=scores)


def _agreement(gram: Matrix, directions: int) -> Vector:
    """How far each update goes along the leading directions because of others, in multiples of the edge.

    An update's coordinate along a direction is its products with all updates, weighted; its product with itself is left out here, but for
    what the other leading directions explain of that: else a long update would make a direction and lie far out along it.
    """
    count = len(gram)
    shared = _shared_products(gram, directions + 1)
    centred = shared - shared.mean(axis=0)
    centred -= centred.mean(axis=1, keepdims=True)
    values, vectors = np.linalg.eigh((centred + centred.T) / 2.0)
    least = ROUNDING**2 * max(float(np.median(np.diagonal(gram))), float(values[-1]))
    positive = values[values > least]
    leading = min(directions, len(positive))
    if not leading:
        return np.zeros(count)
    chosen, variances = vectors[:, -leading:], values[-leading:]
    explained = chosen**2 * variances
    own = np.diagonal(centred)[:, None] - explained.sum(axis=1, keepdims=True) + explained
    along = chosen * (variances - own) / np.sqrt(variances)
    away = np.abs(along - np.median(along, axis=0))
    typical = math.sqrt(float(np.median(positive)) / count)
    spread = np.maximum(MAD_TO_STDDEV * np.median(away, axis=0), typical)
    scores: Vector = np.max(away / (DEVIATIONS * spread), axis=1)
    return scores


def _shared_products(gram: Matrix, rank: int) -> Matrix:
    """The Gram matrix with a diagonal that holds only what ``rank`` common directions explain of it.

    Starts with the means of the rows, then takes the diagonal of the best approximation of that rank, again and again.
    Paper: Zhang, Cai, Wu, Annals of Statistics 2022, arXiv 1810.08316 (HeteroPCA).
    """
    shared = gram.copy()
    np.fill_diagonal(shared, (gram.sum(axis=1) - np.diagonal(gram)) / max(1, len(gram) - 1))
    for _ in range(IMPUTATIONS):
        values, vectors = np.linalg.eigh(shared)
        np.fill_diagonal(shared, (vectors[:, -rank:] ** 2) @ np.maximum(values[-rank:], 0.0))
    return shared


def _by_krum_scores(gram: Matrix, num_byzantine: int, neighbours: int | None, kept: int) -> GramDecision:
    count = check_gram(gram, num_byzantine)
    nearest = min(count - 1, max(1, count - num_byzantine - 2) if neighbours is None else neighbours)
    distances = np.sort(squared_distances(gram), axis=1)
    values = distances[:, 1 : nearest + 1].sum(axis=1)
    accepted = smallest(values, kept)
    return GramDecision(weights=uniform(accepted), accepted=accepted, scores=scores_by_rank(values, accepted))


def _filtered(scores: Vector, num_byzantine: int, **facts: float) -> GramDecision:
    accepted: Flags = accept_all_but(scores, num_byzantine)
    return GramDecision(weights=uniform(accepted), accepted=accepted, scores=scores, facts=facts)
