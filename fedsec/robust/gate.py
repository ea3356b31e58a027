"""The two-sided gate on norms: an honest update holds the noise that everybody knows of, no less, and not much beside it.

In noise units an honest row is ``u = m + z``: its signal m and k independent standard normal numbers. So ``‖u‖²`` is chi-squared with k degrees and
noncentrality ``‖m‖²``.

1. **Least.** Signal only adds: the lower quantile of the central distribution is a limit for every honest client, whatever its signal. Who is
   under it left out noise.
2. **Most.** What honest signals add is estimated from the round itself, by a median that a minority cannot move beyond honest values, and
   allowed for ``allowance`` times over, more for clients of larger declared batch: in sum form signal grows with it and noise does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedsec.robust.base import Vector
from fedsec.robust.tails import chi_squared_place, chi_squared_quantile, normal_quantile

_MEDIAN_ERROR = 1.2533
"""Standard error of the median of many normal numbers, in that of their mean."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Gate:
    """The gate of one round, all in noise units.

    Attributes:
        norms: [n], of the rows.
        least: under it an update has too little noise.
        most: [n], over it an update has too much beside noise.
        scores: [n], at least 1 exactly for who is outside; how far a norm is from its expectation, over how far it may be.
        typical_signal: estimate of the norm of the signal of a client of median size, at least 0.
    """

    norms: Vector
    least: float
    most: Vector
    scores: Vector
    typical_signal: float

    def reason(self, index: int) -> str:
        """Why this client is outside the gate."""
        norm = self.norms[index]
        if norm <= self.least:
            return f"norm {norm:.1f} is under the least {self.least:.1f} that honest noise allows"
        return f"norm {norm:.1f} is over the most {self.most[index]:.1f} that honest noise and signal allow"


def allowed_signal(typical: float, degrees: int, num_clients: int, *, allowance: float) -> float:
    """Squared norm of the signal that a client of median size may have, given the typical one: the estimate's own error is added."""
    return allowance * (typical + _MEDIAN_ERROR * math.sqrt(2 * degrees / num_clients))


def gate_of(squares: Vector, degrees: int, relative_sizes: Vector, *, tail: float, allowance: float) -> Gate:
    """The gate for rows with these squared norms.

    Args:
        squares: [n] squared norms of the rows in noise units, n at least 1.
        degrees: k.
        relative_sizes: [n] declared batch sizes over their median.
        tail: chance of an honest client to fall outside, on each side.
        allowance: how many times the typical signal a client of median size may show.
    """
    z = normal_quantile(tail)
    typical = max(0.0, float(np.median(squares)) - degrees)
    signals = allowed_signal(typical, degrees, len(squares), allowance=allowance) * np.maximum(1.0, relative_sizes) ** 2
    over = [chi_squared_place(float(square), degrees, float(signal)) for square, signal in zip(squares, signals, strict=True)]
    under = [-chi_squared_place(float(square), degrees) for square in squares]
    return Gate(
        norms=np.sqrt(squares),
        least=math.sqrt(chi_squared_quantile(degrees, -z)),
        most=np.sqrt([chi_squared_quantile(degrees, z, float(signal)) for signal in signals]),
        scores=np.maximum(np.maximum(over, under) / z, 0.0),
        typical_signal=math.sqrt(typical),
    )
