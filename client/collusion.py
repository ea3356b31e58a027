"""What simulated colluders remember of earlier rounds, in a folder of their own, so that every process has the same."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedsec.errors import StorageError
from fedsec.files import atomic_write_bytes
from fedsec.flower.records import RoundRequest
from fedsec.sim.attacks.knowledge import Past
from fedsec.vectors import FloatArray, Layout

ArrayMap = Mapping[str, npt.NDArray[np.generic]]

MOST_REMEMBERED = 8


def remember(request: RoundRequest, arrays: ArrayMap, own: FloatArray, sizes: npt.NDArray[np.int64]) -> tuple[Past, ...]:
    """Earlier rounds, oldest first; keeps this one. In a folder of the colluders' own, so that every process has the same."""
    if not request.simulation_dir:
        return ()
    folder = Path(request.simulation_dir) / "colluders"
    model = Layout.of(arrays).flatten(dict(arrays)).astype(np.float64)
    deltas = (own / sizes.astype(np.float32)[:, None]).astype(np.float32)
    kept = [_load(path) for path in sorted(folder.glob("*.npz")) if int(path.stem) < request.server_round][-MOST_REMEMBERED:]
    _save(folder / f"{request.server_round:06d}.npz", deltas, model)
    models = [past[2] for past in kept] + [model]
    return tuple(
        Past(server_round=number, own=rows, step=models[place + 1] - models[place]) for place, (number, rows, _) in enumerate(kept)
    )  # fmt: skip


def _save(path: Path, deltas: FloatArray, model: npt.NDArray[np.float64]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, own=deltas, model=model)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, buffer.getvalue())


def _load(path: Path) -> tuple[int, FloatArray, npt.NDArray[np.float64]]:
    try:
        with np.load(path, allow_pickle=False) as kept:
            return int(path.stem), kept["own"], kept["model"]
    except (OSError, ValueError, KeyError) as error:
        raise StorageError(f"{path} is damaged: {error}") from None
