"""What k sketch rows are worth: how likely colluders hide g times the norm of what their sketches show.

The bound is per subset of colluders and assumes an honest server: one that helps can try many roots. For a fixed vector V, R is drawn after
V, and ``‖R·V‖² ≤ k/2 · ‖V‖² / g²`` has probability at most

* the lower tail of chi-squared with k degrees, for directions of many entries: ``P(chi2_k ≤ k/g²) ≤ exp(k/2 · (1 - 1/g² + ln(1/g²)))``,
* ``P(Bin(k, ½) ≤ k / 2g²)`` for a vector of one entry, whose rows are 0 with probability ½: the worst shape that was found among
  vectors of up to five entries.

Source: design note SECAGG, "Why lies that cancel do not matter"; decision 0010, finding 17, and "P(k, g)" under what was found sound.
"""

from __future__ import annotations

import math


def log2_hiding(num_rows: int, factor: float) -> float:
    """log2 of the probability above for k rows and g = ``factor`` > 1.

    Raises:
        ValueError: numbers out of range.

    >>> round(log2_hiding(256, 2.0)), round(log2_hiding(64, 3.0))
    (-118, -49)
    """
    if num_rows < 1 or not factor > 1:
        raise ValueError(f"{num_rows} rows and factor {factor}: expected at least one row and a factor over 1")
    share = 1.0 / factor**2
    chi = num_rows / 2 * (1 - share - math.log(1 / share)) / math.log(2)
    most = math.floor(num_rows * share / 2)
    binomial = math.log2(sum(math.comb(num_rows, hits) for hits in range(most + 1))) - num_rows
    return min(0.0, max(chi, binomial))


def hiding_factor(num_rows: int, *, subsets_bits: float, target_bits: float = 40.0) -> float:
    """The least g, in steps of a quarter from 1.25, with ``subsets_bits + log2 P(k, g) <= -target_bits``; infinity if there is none up to 64."""
    factor = 1.25
    while factor <= 64:
        if subsets_bits + log2_hiding(num_rows, factor) <= -target_bits:
            return factor
        factor += 0.25
    return math.inf
