"""Sketches as an orthonormal projection of the updates: noise that was equal in all coordinates of an update is so again.

1. ``s = R·x`` with k rows. If x holds noise of deviation s0 in each coordinate, the noise in s has covariance ``s0² R Rᵀ``. The rows of R are not
   quite orthogonal: the eigenvalues of ``R Rᵀ`` spread over ``d/2 · (1 ± √(k/d))²``. ``S·(R Rᵀ)^(-1/2)`` undoes it exactly.
2. Where k is over d, or R lacks rank for another reason, the update has fewer directions than the sketch has numbers. The result then has as many
   columns as ``R Rᵀ`` has rank: noise on the others would be zero, and no test could be calibrated on it.
3. For k/d up to ``NEGLIGIBLE_RATIO``, ``R Rᵀ`` is as good as ``d/2 · I``: the Gram matrix of noise then spreads by a factor of
   ``√(1 + k/d)``, under half a percent. ``R Rᵀ`` costs k²·d products, so this is also where it would begin to cost.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

NEGLIGIBLE_RATIO = 0.01
"""k/d up to which ``R Rᵀ`` need not be computed."""

_LEAST_EIGENVALUE = 1e-9  # of the largest; R has integer entries, so a true zero comes out near 1e-13


def needs_row_gram(num_rows: int, dimension: int) -> bool:
    """Whether k/d is so large that :func:`whiten` needs ``R Rᵀ``."""
    return num_rows > NEGLIGIBLE_RATIO * dimension


def whiten(
    sketches: npt.NDArray[np.integer | np.floating], *, dimension: int, rrt: npt.NDArray[np.integer | np.floating] | None = None
) -> npt.NDArray[np.float64]:
    """Turn sketches ``R·x`` into an orthonormal projection of x: same noise deviation per coordinate, independent coordinates.

    Args:
        sketches: integers or floats [n, k], one row a client.
        dimension: d.
        rrt: [k, k], ``R Rᵀ``; None: taken as ``d/2 · I``, allowed only where :func:`needs_row_gram` is false.

    Returns:
        float64 [n, r], r the rank of ``R Rᵀ``: k unless R lacks rank. In the unit of x as it was sketched (ring steps stay ring steps).

    Raises:
        ValueError: shapes that do not fit, entries that are not finite, or ``rrt`` missing where it is needed.
    """
    values = _checked(sketches, dimension, rrt)
    if rrt is None:
        return np.asarray(values * np.sqrt(2.0 / dimension))
    vectors, roots = _decomposed(rrt)
    whitened: npt.NDArray[np.float64] = values @ (vectors / roots)
    return whitened @ vectors.T if vectors.shape[0] == vectors.shape[1] else whitened


def lift(
    sketches: npt.NDArray[np.integer | np.floating],
    rows: npt.NDArray[np.int8],
    *,
    rrt: npt.NDArray[np.integer | np.floating] | None = None,
) -> npt.NDArray[np.float64]:
    """The part of each x that its sketch ``R·x`` determines: the orthogonal projection of x on the span of R's rows.

    Sketches of several rounds, each with its own R, can be compared and added up in this form. ``k·d`` products a client.

    Args:
        sketches: integers or floats [n, k].
        rows: int8 [k, d], R written out.
        rrt: as for :func:`whiten`.

    Returns:
        float64 [n, d], in the unit of x as it was sketched.

    Raises:
        ValueError: as :func:`whiten`.
    """
    dimension = rows.shape[1]
    values = _checked(sketches, dimension, rrt)
    if rrt is None:
        return np.asarray((values * (2.0 / dimension)) @ rows.astype(np.float64))
    vectors, roots = _decomposed(rrt)
    lifted: npt.NDArray[np.float64] = (values @ (vectors / roots**2) @ vectors.T) @ rows.astype(np.float64)
    return lifted


def _checked(
    sketches: npt.NDArray[np.integer | np.floating], dimension: int, rrt: npt.NDArray[np.integer | np.floating] | None
) -> npt.NDArray[np.float64]:
    if sketches.ndim != 2:
        raise ValueError(f"sketches are {sketches.shape}, expected [n, k]")
    values = sketches.astype(np.float64)
    num_rows = values.shape[1]
    if not np.isfinite(values).all():
        raise ValueError("an entry of a sketch is not finite")
    if rrt is None and needs_row_gram(num_rows, dimension):
        raise ValueError(f"{num_rows} rows of {dimension} coordinates are not nearly orthogonal: R Rᵀ is needed")
    if rrt is not None and (rrt.shape != (num_rows, num_rows) or not np.isfinite(rrt).all() or not np.array_equal(rrt, rrt.T)):
        raise ValueError(f"R Rᵀ is {rrt.shape}, expected a finite symmetric [{num_rows}, {num_rows}]")
    return values


def _decomposed(rrt: npt.NDArray[np.integer | np.floating]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Eigenvectors [k, r] of ``R Rᵀ`` and the roots of their eigenvalues [r], without those that are zero."""
    eigenvalues, vectors = np.linalg.eigh(rrt.astype(np.float64))
    kept = eigenvalues > _LEAST_EIGENVALUE * max(float(eigenvalues[-1]), 0.0)
    return vectors[:, kept], np.sqrt(eigenvalues[kept])
