"""Rules that weight updates: mean, geometric median, centred clipping, and what may go before them (NNM, ARC), all on the Gram matrix.

Symbols: n updates x_i, at most f of them hostile; G their Gram matrix about zero, G_ij = <x_i, x_j>. Costs are beside the Gram matrix itself
(n²d/2). A weighting rule bounds the influence of f updates and rejects nobody; its scores (residual from its own centre, over the edge of
``fedsec.robust.decision``) say who could be told apart.

Composition: a pre-aggregation is a matrix P with y_i = sum_j P_ij x_j. The rule then runs on P G P' and its weights w become P' w; so
mixing and clipping never touch the d columns.
"""

from __future__ import annotations

import math

import numpy as np

from fedsec.robust.base import Matrix, Vector
from fedsec.robust.decision import GramDecision, check_gram, distances_from, residual_scores, smallest, uniform
from fedsec.robust.gram import squared_distances

TOLERANCE = 1e-9
"""Weiszfeld stands when a step moves less than this share of the half radius: the distance within which one update has half of all."""
SMOOTHING = 1e-6
"""Distances below this share of the half radius count as that: keeps Weiszfeld off the singularity at an update."""
TOGETHER = 1e-14
"""Updates whose squared distance is below this share of their squared norms are at one place."""
MAX_STEPS = 1000
CLIPPING_STEPS = 10


def mean(gram: Matrix, *, num_byzantine: int = 0) -> GramDecision:
    """Mean, ``(1/n) sum x_i``: no defence; one hostile update moves it anywhere.

    Breakdown point: 0. Cost: nothing. f plays no part.

    >>> mean(np.eye(2)).weights
    array([0.5, 0.5])
    """
    count = check_gram(gram, num_byzantine)
    return _decision(gram, np.full(count, 1.0 / count))


def geometric_median(gram: Matrix, *, num_byzantine: int = 0) -> GramDecision:
    """Geometric median, ``argmin_z sum_i ||x_i - z||``, by Weiszfeld's steps on weights until it stands.

    Steps: ``w_i ∝ 1 / max(||x_i - z||, nu)`` with ``z = sum_j w_j x_j``. r is the half radius, the smallest distance within which one
    update has half of all; nu = ``SMOOTHING`` r; it stands when ``sum_i |Δw_i| ||x_i - z|| <= TOLERANCE r``. More than half of the updates
    at one place are the median, without a step.
    Breakdown point: 1/2 (any f < n/2). Cost: n² a step, tens to hundreds of steps. f plays no part.
    Papers: Weiszfeld 1937; smoothed, for federated learning: Pillutla, Kakade, Harchaoui, arXiv 1912.13445.

    Two of three at one place hold the median there:

    >>> np.round(geometric_median(np.array([[0.0, 0, 0], [0, 0, 0], [0, 0, 1e6]])).weights, 4)
    array([0.5, 0.5, 0. ])
    """
    check_gram(gram, num_byzantine)
    weights, steps = median_weights(gram)
    return _decision(gram, weights, steps=float(steps))


def centred_clipping(
    gram: Matrix, *, num_byzantine: int = 0, radius: float | None = None, start: Vector | None = None, steps: int = CLIPPING_STEPS
) -> GramDecision:
    """Centred clipping: ``v ← v + (1/n) sum_i (x_i - v) min(1, tau / ||x_i - v||)``, a few steps.

    Symbols: v the centre, first the update with the smallest (n-f)-th smallest distance to the others; tau the clipping radius, in each
    step the (n-f)-th smallest of ``||x_i - v||`` unless given: then at most f updates are clipped, and f = 0 gives the mean.
    Breakdown point: f < n/2; each clipped update moves a step by at most tau/n. Cost: n² a step.
    Paper: Karimireddy, He, Jaggi, ICML 2021, arXiv 2012.10333; the learnt tau is ours.

    Args:
        gram: G.
        num_byzantine: f.
        radius: fixed tau.
        start: weights of the first centre; zeros for the origin.
        steps: how many.

    >>> np.round(centred_clipping(np.diag([0.0, 0.0, 0.0, 1e6]), num_byzantine=1).weights, 4)
    array([0.3333, 0.3333, 0.3333, 0.    ])
    """
    count = check_gram(gram, num_byzantine)
    rank = count - num_byzantine - 1
    if start is None:
        start = np.zeros(count)
        start[np.argmin(np.partition(squared_distances(gram), rank, axis=1)[:, rank])] = 1.0
    weights = start
    for _ in range(steps):
        distances = distances_from(gram, weights)
        tau = float(np.partition(distances, rank)[rank]) if radius is None else radius
        factors = _shrunk_to(tau, distances) / count
        weights = weights * (1.0 - factors.sum()) + factors
    return _decision(gram, weights)


def nnm_geometric_median(gram: Matrix, *, num_byzantine: int) -> GramDecision:
    """Nearest-neighbour mixing, then the geometric median.

    Breakdown point: f < n/2, with error of order f/n times the honest spread, which is the best possible. Cost: n³ for the mixed Gram
    matrix, n² log n to sort.
    Paper: Allouah et al., AISTATS 2023, arXiv 2302.01772.

    >>> nnm_geometric_median(np.diag([0.0, 0.0, 0.0, 1e6]), num_byzantine=1).weights
    array([0.33333333, 0.33333333, 0.33333333, 0.        ])
    """
    check_gram(gram, num_byzantine)
    mixing = nearest_neighbour_mixing(gram, num_byzantine=num_byzantine)
    weights, steps = median_weights(congruent(gram, mixing))
    return _decision(gram, mixing.T @ weights, steps=float(steps))


def arc_nnm_geometric_median(gram: Matrix, *, num_byzantine: int) -> GramDecision:
    """Adaptive clipping of the largest norms, then NNM, then the geometric median. Scores are of the updates before clipping.

    Breakdown point: as NNM; besides, what f updates of huge norm can do is bounded by an honest norm. Cost: as NNM.
    Paper: Allouah et al., arXiv 2405.14432.

    >>> arc_nnm_geometric_median(np.diag([1.0, 1.0, 1.0, 1e6]), num_byzantine=1).facts["clipped"]
    1.0
    """
    check_gram(gram, num_byzantine)
    scale = adaptive_clipping(gram, num_byzantine=num_byzantine)
    clipped = gram * np.outer(scale, scale)
    mixing = nearest_neighbour_mixing(clipped, num_byzantine=num_byzantine)
    weights, steps = median_weights(congruent(clipped, mixing))
    facts = {"steps": float(steps), "clipped": float(np.count_nonzero(scale < 1.0))}
    return _decision(gram, (mixing.T @ weights) * scale, **facts)


def nearest_neighbour_mixing(gram: Matrix, *, num_byzantine: int) -> Matrix:
    """NNM as a matrix [n, n]: row i holds 1/(n-f) at the n-f updates nearest to i, itself among them; equal distances by index.

    Paper: Allouah et al., arXiv 2302.01772, section 4 (y_i = mean of the n-f nearest neighbours of x_i).

    >>> nearest_neighbour_mixing(np.diag([0.0, 0.0, 9.0]), num_byzantine=1)
    array([[0.5, 0.5, 0. ],
           [0.5, 0.5, 0. ],
           [0.5, 0. , 0.5]])
    """
    kept = len(gram) - num_byzantine
    distances = squared_distances(gram)
    np.fill_diagonal(distances, -1.0)
    return np.array([smallest(row, kept) for row in distances]) / kept


def adaptive_clipping(gram: Matrix, *, num_byzantine: int) -> Vector:
    """ARC as factors [n] on the updates: the k = ⌊2 (f/n) (n - f)⌋ largest norms become the next smaller one; all others stay.

    Paper: Allouah et al., arXiv 2405.14432, algorithm 2.

    >>> adaptive_clipping(np.diag([1.0, 4.0, 9.0, 100.0]), num_byzantine=1)
    array([1. , 1. , 1. , 0.3])
    """
    count = len(gram)
    norms = np.sqrt(np.diagonal(gram))
    limit = float(np.sort(norms)[count - 1 - clipped_count(count, num_byzantine)])
    return _shrunk_to(limit, norms)


def clipped_count(count: int, num_byzantine: int) -> int:
    """``k = ⌊2 f (n - f) / n⌋``, in whole numbers: at most n - 1.

    >>> clipped_count(17, 4)
    6
    """
    return 2 * num_byzantine * (count - num_byzantine) // count


def congruent(gram: Matrix, mixing: Matrix) -> Matrix:
    """``P G P'``: the Gram matrix of mixed updates."""
    mixed: Matrix = mixing @ gram @ mixing.T
    return (mixed + mixed.T) / 2.0


def median_weights(gram: Matrix) -> tuple[Vector, int]:
    """Weights [n] of the geometric median, and the steps it took; see :func:`geometric_median`."""
    count = len(gram)
    distances = squared_distances(gram)
    to_half = np.sqrt(np.median(distances, axis=1))
    centre = int(np.argmin(to_half))
    together = distances[centre] <= TOGETHER * (np.diagonal(gram) + gram[centre, centre])
    if 2 * np.count_nonzero(together) > count:
        return uniform(together), 0
    gram = gram - gram[centre] - gram[:, [centre]] + gram[centre, centre]
    weights = np.full(count, 1.0 / count)
    residuals = distances_from(gram, weights)
    step = 0
    while (step := step + 1) <= MAX_STEPS:
        inverse = 1.0 / np.maximum(residuals, SMOOTHING * to_half[centre])
        new = inverse / inverse.sum()
        moved = float(np.abs(new - weights) @ residuals)
        weights, residuals = new, distances_from(gram, new)
        if moved <= TOLERANCE * to_half[centre]:
            break
    return weights, step


def _shrunk_to(limit: float, lengths: Vector) -> Vector:
    """Factors [n] that bring each length down to ``limit``, or 1."""
    longer = lengths > limit
    return np.where(longer, limit / np.where(longer, lengths, 1.0), 1.0)


def _decision(gram: Matrix, weights: Vector, **facts: float) -> GramDecision:
    scores = residual_scores(distances_from(gram, weights), scale=math.sqrt(float(np.median(np.diagonal(gram)))))
    return GramDecision(weights=weights, accepted=np.ones(len(gram), dtype=np.bool_), scores=scores, facts=facts)
