"""Make ``scattering_kymatio.json``: scattering coefficients of three synthetic images by kymatio, to compare our own with.

kymatio 0.3 does not import with scipy 1.15 or later, so it has an environment of its own (README.md beside this file says how).
Run there: ``python tests/vectors/make_scattering_kymatio.py`` writes the file again; the numbers differ by rounding at most.
"""

import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from kymatio.torch import Scattering2D

UNIT = 1e-6


def synthetic_pixels() -> np.ndarray:
    """Three uint8 images, by integer formulas: texture, disc on a ramp, black but for one pixel."""
    row, column = np.mgrid[0:28, 0:28]
    texture = (3 * row * row + 5 * row * column + 7 * column) % 256
    disc = np.where((row - 15) ** 2 + (column - 11) ** 2 < 60, 255, 2 * (row + column))
    point = np.where((row == 3) & (column == 20), 255, 0)
    return np.stack([texture, disc, point]).astype(np.uint8)


def main() -> None:
    torch.set_num_threads(1)
    pixels = synthetic_pixels()
    images = pixels.astype(np.float32) / 255
    coefficients = Scattering2D(J=2, shape=(28, 28), L=8)(torch.from_numpy(images)).numpy()
    record = {
        "id": "scattering-kymatio",
        "comment": "Scattering2D(J=2, shape=(28, 28), L=8) of pixels / 255, before any normalisation; in units of 'unit'",
        "made_by": {
            "kymatio": version("kymatio"),
            "torch": version("torch"),
            "scipy": version("scipy"),
            "python": platform.python_version(),
        },
        "unit": UNIT,
        "shape": list(coefficients.shape),
        "pixels": pixels.reshape(-1).tolist(),
        "coefficients": np.rint(coefficients.astype(np.float64) / UNIT).astype(int).reshape(-1).tolist(),
    }
    path = Path(__file__).with_name("scattering_kymatio.json")
    path.write_text(json.dumps(record, separators=(",", ":")) + "\n", encoding="utf-8")
    sys.stdout.write(f"{path.name}: {path.stat().st_size} bytes, largest coefficient {coefficients.max():.3f}\n")


if __name__ == "__main__":
    main()
