"""Records from the first gradient of logistic regression, whose weights start at zero: there all classes are equally likely, and much is known.

1. The gradient of a record of class c is (1/C - [row is c]) times the record with a 1 behind it: a known vector times what is wanted.
2. A sum over K clients tells classes apart: row c is K/C times the mean of all records, less those of class c; and the bias counts how many those are.
3. DP-SGD clips and noises the same product. What is left to an attacker is the likeliest record, given the noise and what public records look like.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fedsec.privacy.auditing.inversion import Floats, PicturePrior


def class_rows(
    weight: npt.NDArray[np.floating], bias: npt.NDArray[np.floating], label: int, mean: Floats, *, total: int, count: int | None = None
) -> Floats:
    """The mean record of a class behind a sum over clients with one record each.

    Args:
        weight: summed gradient of the weight, [classes, n].
        bias: of the bias, [classes].
        label: class that is asked for.
        mean: public mean record, [n], in place of the mean of all records.
        total: K, records in the sum.
        count: records of the class among them; None: read off the bias.
    """
    share = total / len(bias)
    if count is None:
        count = max(1, round(share - float(bias[label])))
    found: Floats = (share * mean - weight[label].astype(np.float64)) / count
    return found


def likeliest_record(
    weight: npt.NDArray[np.floating],
    bias: npt.NDArray[np.floating],
    prior: PicturePrior,
    *,
    noise: float,
    clip_norm: float,
    mean_norm: float,
    label: int | None = None,
) -> tuple[Floats, int]:
    """The likeliest record behind a clipped, noised gradient, and its class.

    Args:
        weight: gradient of the weight, [classes, n].
        bias: of the bias, [classes].
        prior: of public records.
        noise: standard deviation of what hides each number of the gradient.
        clip_norm: of the record's gradient.
        mean_norm: root mean square of the norms of public records, without the 1 behind them.
        label: the class, if it is known; else the one in whose direction the gradient looks most like the mean public record.
    """
    classes = len(bias)
    rows = np.concatenate([weight, bias[:, None]], axis=1).astype(np.float64)
    directions = np.full((classes, classes), 1.0 / classes) - np.eye(classes)
    strength = math.sqrt(1.0 - 1.0 / classes)
    along = directions / strength @ rows
    if label is None:
        label = int(np.argmax(along @ np.append(prior.mean, 1.0)))
    length = math.sqrt(mean_norm**2 + 1.0)
    factor = 1.0 / (strength * min(1.0, clip_norm / (strength * length)))
    return prior.likeliest(along[label][:-1] * factor, noise_variance=(noise * factor) ** 2), label
