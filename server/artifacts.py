"""The files of a result: model, tables, pictures. Each is whole or absent; ``result.json`` comes last, so where it is, all are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fedsec.files import atomic_write_bytes
from fedsec.report import plots, rejection, secure, tables
from fedsec.results import RunResult
from fedsec.vectors import FloatArray
from server.world import World


def write_artifacts(folder: Path, result: RunResult, model: Mapping[str, FloatArray], world: World) -> None:
    """Write everything that a reader of the run needs.

    Raises:
        StorageError: the file system refused; what was written before stays.
    """
    from safetensors.numpy import save  # noqa: PLC0415

    payload = save({name: np.ascontiguousarray(array) for name, array in model.items()})
    atomic_write_bytes(folder / "model.safetensors", payload)
    tables.write_rounds_csv(folder / "rounds.csv", result.rows)
    owners: tuple[str, ...] = ()
    histogram = None if world.parts is None else world.parts.histogram()
    if world.parts is not None and histogram is not None:  # label counts of real clients are nobody's to know
        owners = world.dataset.group_names if len(world.dataset.group_names) == len(world.parts.train_parts) else ()
        plots.plot_label_skew(histogram, world.dataset.class_names, folder / "label_skew.png", client_names=owners)
    if any(row.secagg is not None for row in result.rows):
        secure.write_secagg_csv(folder / "secagg.csv", result.rows)
        secure.plot_secagg(result, folder / "secagg.png")
    if any(row.screening is not None for row in result.rows):
        rejection.write_screening_csv(folder / "screening.csv", result.rows)
        rejection.plot_screening(result, folder / "screening.png")
    if result.rows:
        plots.plot_accuracy_and_epsilon(result, folder / "accuracy_and_epsilon.png")
        plots.plot_recall(result, folder / "recall.png")
        plots.plot_overview(result, histogram, folder / "overview.png", client_names=owners)
    tables.write_result(folder / "result.json", result)
