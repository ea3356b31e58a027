"""How far a mean over seeds may be off: Student's t, or nothing where there are too few seeds to say.

1. Under three values there is no interval: with one there is no spread, and with two its half width is nine standard deviations of the values.
2. An interval says how much a result moves with the seed, and nothing about other data.

Sources: Student 1908; the distribution for whole degrees of freedom from Abramowitz and Stegun 1964, 26.7.3 and 26.7.4.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

FEWEST = 3
_HALVINGS = 80
_WIDEST = 1e6


def half_width(values: Sequence[float], *, level: float = 0.95) -> float | None:
    """Half width of the interval of the mean; None under three values, or where one is not finite.

    >>> round(half_width([0.80, 0.82, 0.87]), 4)
    0.0896
    """
    if len(values) < FEWEST or not all(map(math.isfinite, values)):
        return None
    return student_quantile(len(values) - 1, level=level) * statistics.stdev(values) / math.sqrt(len(values))


def student_quantile(degrees: int, *, level: float = 0.95) -> float:
    """The t with P(|T| <= t) = level, for whole degrees of freedom.

    Raises:
        ValueError: fewer than one degree, or a level outside (0, 1).
    """
    if degrees < 1 or not 0.0 < level < 1.0:
        raise ValueError(f"no quantile for {degrees} degrees of freedom at {level}")
    low, high = 0.0, _WIDEST
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if central_probability(middle, degrees) < level else (low, middle)
    return high


def central_probability(t: float, degrees: int) -> float:
    """P(|T| <= t)."""
    angle = math.atan(t / math.sqrt(degrees))
    cosine2 = math.cos(angle) ** 2
    term, total = 1.0, 0.0
    for step in range((1 if degrees % 2 else 0) + 2, degrees + 1, 2):
        total += term
        term *= cosine2 * (step - 1) / step
    if degrees % 2 == 0:
        return math.sin(angle) * total
    return 2 / math.pi * (angle + math.sin(angle) * math.cos(angle) * total)
