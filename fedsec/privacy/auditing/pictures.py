"""How like the original a reconstructed picture is, and what a blind guess reaches.

PSNR and SSIM are of pictures with pixels in 0..1. The baseline to beat is the mean picture of public data of the same kind: an attacker who has seen
nothing of the victim can always answer with it.

Sources: SSIM, Wang et al. 2004, Gaussian window of 11 pixels with deviation 1.5, constants 0.01² and 0.03²; borders that the window does not cover are left out.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

MAX_PSNR = 100.0
"""Decibels that an exact copy counts as: float32 noise is there in any case."""

_WINDOW, _LEAST_WINDOW, _DEVIATION = 11, 3, 1.5
_C1, _C2 = 0.01**2, 0.03**2

Picture = npt.NDArray[np.floating]


def psnr(found: Picture, original: Picture) -> float:
    """Peak signal-to-noise ratio in decibels, at most ``MAX_PSNR``; ``found`` is clipped to 0..1 first.

    >>> round(psnr(np.full((4, 4), 0.1), np.zeros((4, 4))), 1)
    20.0
    """
    if found.shape != original.shape:
        raise ValueError(f"pictures of shape {found.shape} and {original.shape}")
    error = float(((np.clip(np.nan_to_num(found), 0.0, 1.0) - original) ** 2).mean())
    return MAX_PSNR if error <= 10.0 ** (-MAX_PSNR / 10.0) else -10.0 * math.log10(error)


def ssim_window(shape: tuple[int, ...]) -> int:
    """Side of the window that fits a picture, pixels: 11, or the largest odd number under its smaller side."""
    return min(_WINDOW, (min(shape) - 1) // 2 * 2 + 1)


def ssim(found: Picture, original: Picture) -> float:
    """Structural similarity, at most 1; ``found`` is clipped to 0..1 first.

    Args:
        found: [height, width], both at least 3; under 11 the window is smaller than usual (:func:`ssim_window`).
        original: the same shape.
    """
    if found.shape != original.shape or found.ndim != 2 or min(found.shape) < _LEAST_WINDOW:
        raise ValueError(f"pictures of shape {found.shape} and {original.shape}: both must be [height, width] of at least {_LEAST_WINDOW}")
    x, y = np.clip(np.nan_to_num(found), 0.0, 1.0).astype(np.float64), original.astype(np.float64)
    window = ssim_window(found.shape)
    mean_x, mean_y = _smooth(x, window), _smooth(y, window)
    var_x, var_y = _smooth(x * x, window) - mean_x**2, _smooth(y * y, window) - mean_y**2
    both = _smooth(x * y, window) - mean_x * mean_y
    ratio = ((2 * mean_x * mean_y + _C1) * (2 * both + _C2)) / ((mean_x**2 + mean_y**2 + _C1) * (var_x + var_y + _C2))
    return float(ratio.mean())


def _smooth(values: npt.NDArray[np.float64], window: int) -> npt.NDArray[np.float64]:
    axis = np.arange(window) - window // 2
    weights = np.exp(-(axis**2) / (2 * _DEVIATION**2))
    weights /= weights.sum()
    for direction in (0, 1):
        windows = np.lib.stride_tricks.sliding_window_view(values, window, axis=direction)
        values = windows @ weights
    return values
