"""Quantiles that the screening tests are cut at, in closed form: chi-squared, central and not, and the spectrum of a noise Gram matrix.

1. Chi-squared quantiles are Wilson and Hilferty's cube (1931); a non-central one is first matched to a central one by two moments (Patnaik 1949).
2. The largest eigenvalue of ``U Uᵀ - k I`` for n rows of k independent standard normal numbers follows Tracy and Widom's law once it is centred
   and scaled as in Johnstone (2001, Annals of Statistics 29, theorem 1.1). Taking out the whole diagonal instead of ``k I`` only
   lowers it (measured: docs/screening.md), so that law gives an upper bound.
3. The eigenvalues below it lie about as Wigner's semicircle does.
"""

from __future__ import annotations

import math
from statistics import NormalDist

TRACY_WIDOM = {0.05: 0.9793, 0.01: 2.0234, 0.001: 3.2724}
"""Upper quantiles of Tracy and Widom's first law by tail probability (tabulated values)."""


def normal_quantile(tail: float) -> float:
    """The z that a standard normal number passes with probability ``tail``."""
    return NormalDist().inv_cdf(1.0 - tail)


def chi_squared_quantile(degrees: float, z: float, noncentrality: float = 0.0) -> float:
    """The value whose place in the distribution is that of ``z`` in the standard normal one; z < 0 for the lower tail.

    Args:
        degrees: of freedom, over 0.
        z: standard normal quantile.
        noncentrality: squared norm of the mean.

    >>> round(chi_squared_quantile(128, 3.0)), round(chi_squared_quantile(128, -3.0))
    (181, 85)
    """
    stretch, matched, spread = _matched(degrees, noncentrality)
    return stretch * matched * max(0.0, 1.0 - spread + z * math.sqrt(spread)) ** 3


def chi_squared_place(value: float, degrees: float, noncentrality: float = 0.0) -> float:
    """The z of a value: inverse of :func:`chi_squared_quantile`.

    >>> round(chi_squared_place(chi_squared_quantile(128, 3.0, 40.0), 128, 40.0), 6)
    3.0
    """
    stretch, matched, spread = _matched(degrees, noncentrality)
    place = (math.cbrt(value / (stretch * matched)) - (1.0 - spread)) / math.sqrt(spread)
    return float(place)


def _matched(degrees: float, noncentrality: float) -> tuple[float, float, float]:
    """Patnaik's factor and degrees, and the variance of Wilson and Hilferty's cube root."""
    mean = degrees + noncentrality
    stretch = (degrees + 2 * noncentrality) / mean
    matched = mean / stretch
    return stretch, matched, 2.0 / (9.0 * matched)


def spectral_edge(num_rows: int, num_columns: float, tail: float) -> float:
    """What the top eigenvalue of the diagonal-free Gram matrix of pure noise passes with probability at most about ``tail``.

    Args:
        num_rows: n, clients, at least 1.
        num_columns: k, coordinates of each, at least 1.
        tail: one of the keys of ``TRACY_WIDOM``.

    Returns:
        in squared noise units.

    >>> round(spectral_edge(20, 128, 0.01))
    140
    """
    rows, columns = math.sqrt(num_rows - 0.5), math.sqrt(num_columns - 0.5)
    centre = (rows + columns) ** 2
    scale = (rows + columns) * math.cbrt(1 / rows + 1 / columns)
    return centre + TRACY_WIDOM[tail] * scale - num_columns


def semicircle_quantile(share: float) -> float:
    """The x in [0, 1] that a share of up to one half of the mass of the semicircle on [-1, 1] lies above.

    >>> round(semicircle_quantile(0.5), 6), round(semicircle_quantile(0.125), 2)
    (0.0, 0.63)
    """
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        above = 0.5 - (middle * math.sqrt(1 - middle * middle) + math.asin(middle)) / math.pi
        low, high = (middle, high) if above > share else (low, middle)
    return (low + high) / 2
