"""The pictures that attacks reconstructed, beside the originals, and what sketches give away over rounds."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import numpy as np
from matplotlib import pyplot as plt

from fedsec.files import atomic_write_bytes


def draw(victims: Any, shown: dict[tuple[str, str, str], list[Any]], sketches: dict[str, dict[str, list[float]]], path: Path) -> None:
    """One row of pictures per attack, then the curve; a PNG without time or machine in it."""
    lines = [("victims", list(victims)), *((_name(key), pictures) for key, pictures in shown.items())]
    figure = plt.figure(figsize=(11.0, 0.95 * len(lines) + 3.4), layout="constrained")
    pictures, curve = figure.subfigures(2, 1, height_ratios=(0.95 * len(lines), 3.2))
    grid = pictures.subplots(len(lines), len(victims))
    for row, (name, line) in zip(grid, lines, strict=True):
        for axes, picture in zip(row, line, strict=True):
            axes.imshow(np.clip(picture, 0.0, 1.0), cmap="gray", vmin=0.0, vmax=1.0)
            axes.set(xticks=[], yticks=[])
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    axes = curve.subplots(1, 1)
    for name, found in sketches.items():
        axes.plot(range(1, len(found["psnr"]) + 1), found["psnr"], marker="o", label=f"sketches, {name}")
    axes.axhline(next(iter(sketches.values()))["baseline"][0], color="black", linewidth=0.8, linestyle="--", label="mean picture")
    axes.set(xlabel="rounds in which the server asks for the same update (digits, k = 128, d = 650)", ylabel="PSNR, dB")
    axes.legend(fontsize=8)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)
    atomic_write_bytes(path, out.getvalue())


def _name(key: tuple[str, str, str]) -> str:
    model, arm, attack = key
    return f"{arm}:\n{attack}" if arm == "nothing seen" else f"{model}, {arm}:\n{attack}"
