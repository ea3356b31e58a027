"""Order-2 Morlet scattering of 28x28 images, J=2 and L=8: a fixed, public feature map that knows no training data.

1. Filters come from a formula; nothing is fitted, so the map costs no privacy and every party computes the same features.
2. Each image is normalised by its own numbers only (GroupNorm without affine part): records never mix.
3. Images are worked off in chunks: beside input and output it needs about 100 MB, however many there are.

The wavelet modulus cascade is ``x``, ``|x * psi_1|``, ``||x * psi_1| * psi_2|`` with the scale of ``psi_2`` coarser than that of ``psi_1``;
each of the 1 + 16 + 64 = 81 signals is smoothed by a Gaussian and sampled every 4 pixels, 7x7 numbers a signal. Products
stand in the Fourier domain; subsampling by 2 is a fold (periodisation) there; the Gaussian is separable, so smoothing and
sampling are two small matrix products.

Source: Bruna & Mallat 2013 (arXiv 1203.1513); filters and order of channels as in kymatio 0.3 ``Scattering2D(J=2, L=8)``,
which the tests compare with; features for DP as in Tramèr & Boneh 2021 (arXiv 2011.11660). Differs: the Gaussian's
constant is pi, not 3.1415.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

VERSION = "fedsec/scattering/v1 morlet J=2 L=8 order=2 groupnorm=27"
"""Part of the key of cached features: it changes whenever a feature could."""

IMAGE_SIDE = 28
NUM_CHANNELS = 81
NUM_FEATURES = NUM_CHANNELS * 7 * 7
"""3969."""

CHUNK = 64
"""Images in one pass. Small enough that the second-order signals (64 of 18x18 complex numbers an image) stay near the cache."""

_ORIENTATIONS = 8
_PADDING = 4  # pixels reflected at each border, so that the outermost kept samples see no wrap-around
_SIDE = IMAGE_SIDE + 2 * _PADDING
_HALF = _SIDE // 2
_GROUPS = 27
_EPS = 1e-5

FloatArray = npt.NDArray[np.float32]


def _gabor(sigma: float, theta: float, frequency: float, slant: float) -> npt.NDArray[np.complex128]:
    """A plane wave under an elliptic Gaussian that sums to about one, wrapped around the padded grid: [36, 36]."""
    cosine, sine = math.cos(theta), math.sin(theta)
    axis = np.arange(-2 * _SIDE, 3 * _SIDE, dtype=np.float64)
    row, column = np.meshgrid(axis, axis, indexing="ij")
    along, across = row * cosine + column * sine, -row * sine + column * cosine
    wave = np.exp(-(along**2 + (slant * across) ** 2) / (2 * sigma**2) + 1j * frequency * along)
    wrapped = wave.reshape(5, _SIDE, 5, _SIDE).sum(axis=(0, 2))
    return np.asarray(wrapped * (slant / (2 * math.pi * sigma**2)), dtype=np.complex128)


def _morlet(scale: int, orientation: int) -> npt.NDArray[np.float64]:
    """Fourier transform, real, of one wavelet of zero mean: [36, 36]."""
    theta = (_ORIENTATIONS // 2 - 1 - orientation) * math.pi / _ORIENTATIONS
    sigma, frequency, slant = 0.8 * 2**scale, 0.75 * math.pi / 2**scale, 4.0 / _ORIENTATIONS
    wave, envelope = _gabor(sigma, theta, frequency, slant), _gabor(sigma, theta, 0.0, slant)
    wavelet = wave - (wave.sum() / envelope.sum()) * envelope
    return np.asarray(np.fft.fft2(wavelet).real, dtype=np.float64)


def _smoothing(side: int) -> npt.NDArray[np.float64]:
    """Matrix [7, side] that smooths one axis by the Gaussian (sigma 1.6 pixels) and samples it every 4 pixels, borders dropped."""
    sigma = 1.6
    axis = np.arange(-2 * _SIDE, 3 * _SIDE, dtype=np.float64)
    gaussian = np.exp(-(axis**2) / (2 * sigma**2)).reshape(5, _SIDE).sum(axis=0) / (math.sqrt(2 * math.pi) * sigma)
    spectrum = np.fft.fft(gaussian).real
    low = np.concatenate([spectrum[: side // 2], spectrum[_SIDE - side // 2 :]])  # frequencies that a grid of `side` points has
    kernel = np.fft.ifft(low).real
    step = side // (_SIDE // 4)
    return np.stack([kernel[(step * k - np.arange(side)) % side] for k in range(1, 8)])


@dataclass(frozen=True, kw_only=True, eq=False)
class _Bank:
    """All filters as float32 tensors.

    Attributes:
        fine: [8, 36*36*2], the wavelets of scale 0 in the Fourier domain; each number twice, for the real and the imaginary part.
        coarse: [4, 8, 18*18*2], those of scale 1, cut into the four quarters that a fold by 2 lays on each other; holds its 1/4.
        smooth_full: [7, 36] and smooth_half: [7, 18], for signals at full and half resolution.
    """

    fine: torch.Tensor
    coarse: torch.Tensor
    smooth_full: torch.Tensor
    smooth_half: torch.Tensor


@functools.cache
def _bank() -> _Bank:
    fine = np.stack([_morlet(0, orientation) for orientation in range(_ORIENTATIONS)])
    coarse = np.stack([_morlet(1, orientation) for orientation in range(_ORIENTATIONS)])
    quarters = coarse.reshape(_ORIENTATIONS, 2, _HALF, 2, _HALF).transpose(1, 3, 0, 2, 4) / 4
    return _Bank(
        fine=torch.tensor(fine.reshape(_ORIENTATIONS, -1).repeat(2, axis=-1), dtype=torch.float32),
        coarse=torch.tensor(quarters.reshape(4, _ORIENTATIONS, -1).repeat(2, axis=-1), dtype=torch.float32),
        smooth_full=torch.tensor(_smoothing(_SIDE), dtype=torch.float32),
        smooth_half=torch.tensor(_smoothing(_HALF), dtype=torch.float32),
    )


def _modulus(signal: torch.Tensor) -> torch.Tensor:
    """Modulus of a complex tensor. Squares cannot overflow for pixels in 0..1, and this takes two thirds of the time of ``abs``."""
    real, imaginary = signal.real, signal.imag
    return torch.addcmul(real * real, imaginary, imaginary).sqrt_()


def _coarse_modulus(spectrum: torch.Tensor, bank: _Bank) -> torch.Tensor:
    """Modulus at half resolution after each wavelet of scale 1: complex [m, 36, 36] to float [m, 8, 18, 18]."""
    quarters = torch.view_as_real(spectrum).reshape(-1, 2, _HALF, 2, _HALF * 2).permute(1, 3, 0, 2, 4).reshape(4, -1, 1, 2 * _HALF**2)
    folded = quarters[0] * bank.coarse[0]
    for quarter, wavelets in zip(quarters[1:], bank.coarse[1:], strict=True):
        folded.addcmul_(quarter, wavelets)
    return _modulus(torch.fft.ifft2(torch.view_as_complex(folded.view(-1, _ORIENTATIONS, _HALF, _HALF, 2))))


def _scatter(images: torch.Tensor, bank: _Bank) -> torch.Tensor:
    """Scattering coefficients before normalisation: float32 [n, 28, 28] to [n, 81, 7, 7]."""
    count = images.shape[0]
    padded = functional.pad(images[:, None], (_PADDING,) * 4, mode="reflect")
    spectrum = torch.fft.fft2(padded)
    filtered = (torch.view_as_real(spectrum).reshape(count, 1, -1) * bank.fine).view(count, _ORIENTATIONS, _SIDE, _SIDE, 2)
    fine = _modulus(torch.fft.ifft2(torch.view_as_complex(filtered)))
    coarse = _coarse_modulus(spectrum, bank)
    second = _coarse_modulus(torch.fft.fft2(fine).reshape(-1, _SIDE, _SIDE), bank).reshape(count, -1, _HALF, _HALF)
    full = bank.smooth_full @ torch.cat([padded, fine], dim=1) @ bank.smooth_full.T
    half = bank.smooth_half @ torch.cat([coarse, second], dim=1) @ bank.smooth_half.T
    return torch.cat([full, half], dim=1)


def _check(images: FloatArray) -> None:
    if images.dtype != np.float32 or images.ndim != 3 or images.shape[1:] != (IMAGE_SIDE, IMAGE_SIDE):
        raise ValueError(f"images must be float32 [n, {IMAGE_SIDE}, {IMAGE_SIDE}], not {images.dtype} {list(images.shape)}")


def _chunk(images: FloatArray, start: int) -> torch.Tensor:
    part = images[start : start + CHUNK]
    # Written so that a NaN fails it.
    if not (part.min() >= 0.0 and part.max() <= 1.0):
        raise ValueError(f"images must lie in 0..1: a pixel of images {start}..{start + len(part) - 1} does not")
    return torch.tensor(part)


def scattering_coefficients(images: FloatArray) -> FloatArray:
    """Scattering coefficients before normalisation, for comparison with other implementations.

    Args:
        images: float32 [n, 28, 28] in 0..1.

    Returns:
        float32 [n, 81, 7, 7]: order 0, then order 1 by scale and orientation, then order 2 by first and second orientation.

    Raises:
        ValueError: wrong shape or dtype, or a pixel outside 0..1.
    """
    _check(images)
    result = np.empty((len(images), NUM_CHANNELS, 7, 7), dtype=np.float32)
    with torch.inference_mode():
        for start in range(0, len(images), CHUNK):
            result[start : start + CHUNK] = _scatter(_chunk(images, start), _bank()).numpy()
    return result


def scattering_features(images: FloatArray) -> FloatArray:
    """Scattering coefficients, normalised for each image by itself in 27 groups of 3 channels.

    Guarantee: row i depends on image i alone, up to float32 rounding.

    Args:
        images: float32 [n, 28, 28] in 0..1.

    Returns:
        float32 [n, 3969], 16 kB an image; in each group of 147 numbers the mean is 0 and the variance 1 (0 for a group that is constant).

    Raises:
        ValueError: wrong shape or dtype, or a pixel outside 0..1.

    >>> scattering_features(np.zeros((2, 28, 28), dtype=np.float32)).shape
    (2, 3969)
    """
    _check(images)
    result = np.empty((len(images), NUM_FEATURES), dtype=np.float32)
    with torch.inference_mode():
        for start in range(0, len(images), CHUNK):
            coefficients = _scatter(_chunk(images, start), _bank())
            result[start : start + CHUNK] = functional.group_norm(coefficients, _GROUPS, eps=_EPS).flatten(1).numpy()
    return result
