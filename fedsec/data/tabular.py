"""scikit-learn's digits and breast cancer, scaled by public constants.

Rule: a record's features depend on that record and on constants that were public before any run. A mean or deviation of the data
would let one record move all others and cost privacy that no accountant sees, so none is computed here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedsec.data.base import Dataset, IntArray
from fedsec.data.splits import hold_out

DIGITS_MAX = 16.0
"""A digit's pixel counts the set bits in a 4x4 block, so it lies in 0..16 by construction."""

CANCER_CLIP = 5.0
"""Bound on every scaled value; the area and error columns have long tails."""


@dataclass(frozen=True, kw_only=True)
class NucleusScale:
    """Public centre and scale of one measurement of cell nuclei, for each of the three statistics in the file."""

    name: str
    mean: tuple[float, float]
    error: tuple[float, float]
    worst: tuple[float, float]


NUCLEUS_SCALES = (
    NucleusScale(name="radius", mean=(15.0, 5.0), error=(0.4, 0.3), worst=(17.0, 5.0)),
    NucleusScale(name="texture", mean=(20.0, 5.0), error=(1.0, 0.5), worst=(25.0, 6.0)),
    NucleusScale(name="perimeter", mean=(95.0, 30.0), error=(3.0, 2.0), worst=(110.0, 35.0)),
    NucleusScale(name="area", mean=(700.0, 400.0), error=(40.0, 50.0), worst=(900.0, 600.0)),
    NucleusScale(name="smoothness", mean=(0.1, 0.02), error=(0.007, 0.003), worst=(0.13, 0.02)),
    NucleusScale(name="compactness", mean=(0.1, 0.05), error=(0.03, 0.02), worst=(0.25, 0.15)),
    NucleusScale(name="concavity", mean=(0.1, 0.1), error=(0.03, 0.03), worst=(0.3, 0.2)),
    NucleusScale(name="concave points", mean=(0.05, 0.05), error=(0.01, 0.006), worst=(0.1, 0.07)),
    NucleusScale(name="symmetry", mean=(0.2, 0.03), error=(0.02, 0.01), worst=(0.3, 0.06)),
    NucleusScale(name="fractal dimension", mean=(0.06, 0.01), error=(0.004, 0.003), worst=(0.08, 0.02)),
)
"""Feature = (value - centre) / scale.

The figures are one- or two-digit roundings of what is published about these measurements (Street, Wolberg & Mangasarian 1993, and
the table of ranges in the description of UCI data set 17): a nucleus of radius 15, hence a perimeter of about 95 and an area of
about 700 in the same unit, grey values that vary by 20 of 255, ratios of shape in tenths; "worst" is the mean of the three largest
nuclei. They are constants of this file and do not change when a record does, which is what the accounting needs. For data of
your own, take such figures from the instrument or a guideline, never from the records.
"""


def load_digits(*, test_fraction: float, seed: int) -> Dataset:
    """1,797 real images of handwritten digits, 8x8 pixels in 0..1 as [64]; test part held out by class.

    Source: scikit-learn's copy of UCI data set 80 (Alpaydin & Kaynak 1998, CC BY 4.0), its test part.
    """
    from sklearn.datasets import load_digits as sklearn_digits  # noqa: PLC0415 - a second of import time, only where it is used

    data = sklearn_digits()
    x = (data.data / DIGITS_MAX).astype(np.float32)
    return _held_out("digits", x, data.target.astype(np.int64), tuple("0123456789"), test_fraction=test_fraction, seed=seed)


def load_breast_cancer(*, test_fraction: float, seed: int) -> Dataset:
    """569 fine needle aspirates, 30 measurements of cell nuclei scaled by :data:`NUCLEUS_SCALES`; test part held out by class.

    Source: scikit-learn's copy of UCI data set 17 (Wolberg, Mangasarian, Street & Street 1995, CC BY 4.0).
    """
    from sklearn.datasets import load_breast_cancer as sklearn_cancer  # noqa: PLC0415 - a second of import time, only where it is used

    data = sklearn_cancer()
    names = tuple(str(name) for name in data.target_names)
    x = scale_nuclei(data.data)
    return _held_out("breast-cancer", x, data.target.astype(np.int64), names, test_fraction=test_fraction, seed=seed)


def scale_nuclei(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Scale measurements in scikit-learn's order (ten means, ten errors, ten worst): [n, 30] to float32 [n, 30], clipped to ±5."""
    pairs = [getattr(scale, statistic) for statistic in ("mean", "error", "worst") for scale in NUCLEUS_SCALES]
    centre, scale = np.array(pairs).T
    return np.asarray(np.clip((values - centre) / scale, -CANCER_CLIP, CANCER_CLIP), dtype=np.float32)


def _held_out(
    name: str, x: npt.NDArray[np.float32], y: IntArray, class_names: tuple[str, ...], *, test_fraction: float, seed: int
) -> Dataset:
    train, test = hold_out(y, test_fraction, seed=seed, name=name)
    return Dataset(name=name, x=x[train], y=y[train], x_test=x[test], y_test=y[test], num_classes=len(class_names), class_names=class_names)
