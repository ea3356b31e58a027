"""Membership by likelihood ratios: how confident would the model be of this record with it, and without it?

1. Shadow models are trained like the target, each on its own random half of the candidate records. For every candidate this gives
   confidences with and without it; the target's confidence is held against both.
2. Confidence is the log-odds of the true class, which is nearly Gaussian; a probability is not.
3. Online: both kinds of shadow models. Offline: only those without the record, so that shadow models need not be trained anew for each question; weaker.
4. Under ``FEWEST_FOR_OWN`` shadow models of a kind, one deviation is used for all candidates: own ones would be noise.

Source: Carlini et al. 2022, "Membership Inference Attacks From First Principles" (arXiv 2112.03570), algorithm 1 and section VI.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt

FEWEST_FOR_OWN = 32
"""Shadow models of a kind from which on each candidate has deviations of its own."""

_LEAST_STDDEV = 1e-6
_FLOOR = 1e-12

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


def log_odds(probabilities: npt.NDArray[np.floating]) -> Floats:
    """Log-odds of the true class, finite for 0 and 1 too.

    Args:
        probabilities: of the true class, [...], in [0, 1].
    """
    p = np.clip(probabilities.astype(np.float64), _FLOOR, 1.0 - _FLOOR)
    odds: Floats = np.log(p) - np.log1p(-p)
    return odds


def lira_scores(target: Floats, shadows: Floats, members: Flags, *, mode: Literal["online", "offline"] = "online") -> Floats:
    """Scores of the candidates, higher where membership is likelier.

    Args:
        target: [m], the target's log-odds.
        shadows: [s, m], each shadow model's.
        members: bool [s, m], which candidates each shadow model was trained on.
        mode: online needs, for each candidate, shadow models of both kinds; offline those without it.

    Raises:
        ValueError: shapes that do not fit, or a candidate without the shadow models it needs.
    """
    if shadows.shape != members.shape or shadows.shape[1:] != target.shape:
        raise ValueError(f"shadows {shadows.shape}, members {members.shape} and target {target.shape} do not fit")
    out_mean, out_stddev = _fit(shadows, ~members)
    standard = (target - out_mean) / out_stddev
    if mode == "offline":
        return standard  # the logarithm of a one-sided tail, up to a rising function
    in_mean, in_stddev = _fit(shadows, members)
    inside = -0.5 * ((target - in_mean) / in_stddev) ** 2 - np.log(in_stddev)
    ratio: Floats = inside - (-0.5 * standard**2 - np.log(out_stddev))
    return ratio


def _fit(shadows: Floats, chosen: Flags) -> tuple[Floats, Floats]:
    """Mean and deviation per candidate over the chosen shadow models."""
    counts = chosen.sum(axis=0)
    if len(counts) == 0 or counts.min() < 1:
        raise ValueError("a candidate is in all shadow models, or in none: train more of them")
    mean = np.where(chosen, shadows, 0.0).sum(axis=0) / counts
    squares = np.where(chosen, (shadows - mean) ** 2, 0.0).sum(axis=0)
    if counts.min() >= FEWEST_FOR_OWN:
        stddev = np.sqrt(squares / (counts - 1))
    else:
        freedom = max(1, int(counts.sum()) - len(counts))
        stddev = np.full(mean.shape, math.sqrt(float(squares.sum()) / freedom))
    return mean, np.maximum(stddev, _LEAST_STDDEV)
