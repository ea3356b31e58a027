"""Feature maps, computed once and kept on disk as ``.npy``.

1. A cached file is used only if its record beside it (``.json``) names the same map, version, source and shape, and its SHA-256
   is the recorded one. Anything else, damage included, means: compute again, and say so in the log.
2. The array is renamed into place before its record is written, so a record never describes a file that is not there; a crash
   between the two costs a rebuild, never a wrong array.
3. Builders of one file take turns under a lock of the operating system; who waited finds the other's file and uses it. Readers need
   no lock: a file in use stays whole for them when it is replaced.
4. The array is mapped, not loaded: processes on one machine share its pages.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from fedsec.codec import digest
from fedsec.data.base import FloatArray
from fedsec.errors import StorageError
from fedsec.files import atomic_write_json, exclusive_lock, sha256_file

LOCK_TIMEOUT_S = 3600.0
"""How long to wait for another process that computes the same features: longer than the slowest machine should need."""

CHUNK_ROWS = 1024
"""Records mapped at once, so that memory stays bounded while the file grows."""

_FORMAT = "fedsec/features/v1"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FeatureMap:
    """A fixed function of one record at a time.

    Attributes:
        name: used in the file's name.
        version: changes whenever a feature could change.
        width: features per record.
        compute: float32 [n, *shape] to float32 [n, width]; row i depends on record i alone.
    """

    name: str
    version: str
    width: int
    compute: Callable[[FloatArray], FloatArray]

    def fingerprint(self, source: str) -> str:
        """Hex fingerprint of the features of data with fingerprint ``source``."""
        return digest(_FORMAT, self.name.encode(), self.version.encode(), str(self.width).encode(), source.encode()).hex()


def cached_features(feature_map: FeatureMap, records: FloatArray, *, source: str, folder: Path) -> FloatArray:
    """Features of ``records``, from the cache where it has them.

    Args:
        feature_map: the function.
        records: float32 [n, *shape].
        source: name of exactly these records: a data set's fingerprint and the part.
        folder: the cache; made if absent.

    Returns:
        float32 [n, width], read-only, mapped from the file.

    Raises:
        StorageError: the cache cannot be written, or another process held it for an hour.
        ValueError: ``compute`` gave another shape or type, or values that are not finite.
    """
    stem = f"{feature_map.name}-{feature_map.fingerprint(source)[:32]}"
    path = folder / f"{stem}.npy"
    expected = {
        "format": _FORMAT,
        "map": feature_map.name,
        "version": feature_map.version,
        "source": source,
        "shape": [len(records), feature_map.width],
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _storage_error(folder, error) from error
    if (found := _open_sound(path, expected)) is not None:
        return found
    with exclusive_lock(folder / f".{stem}.lock", timeout_s=LOCK_TIMEOUT_S, what="feature cache"):
        if (found := _open_sound(path, expected)) is None:
            _build(feature_map, records, path, expected)
            found = _open_sound(path, expected)
    if found is None:
        raise StorageError(f"{path} does not hold what was just written to it (check the disk, or set FEDSEC_CACHE to another one)")
    return found


def _record_path(path: Path) -> Path:
    return path.with_suffix(".json")


def _open_sound(path: Path, expected: dict[str, Any]) -> FloatArray | None:
    """The mapped array if file and record agree with ``expected``; None, with a line in the log, otherwise."""
    if not path.exists() or not _record_path(path).exists():
        return None
    try:
        record = json.loads(_record_path(path).read_text(encoding="utf-8"))
        if not isinstance(record, dict) or {**record, "sha256": None} != {**expected, "sha256": None}:
            _log.warning("%s: its record is of something else; computing the features again", path)
            return None
        if sha256_file(path) != record.get("sha256"):
            _log.warning("%s is damaged; computing the features again", path)
            return None
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        _log.warning("%s cannot be read (%s); computing the features again", path, error)
        return None
    if array.dtype != np.float32 or list(array.shape) != expected["shape"]:
        _log.warning("%s holds %s %s; computing the features again", path, array.dtype, array.shape)
        return None
    mapped: FloatArray = np.asarray(array)
    return mapped


def _build(feature_map: FeatureMap, records: FloatArray, path: Path, expected: dict[str, Any]) -> None:
    # One name for all builders: they hold the lock, and what a killed one left behind is overwritten, not added to.
    partial = path.with_suffix(".partial")
    try:
        with open(partial, "wb", opener=_owner_only) as handle:
            state = hashlib.sha256()
            _write(handle, state, _npy_header(expected["shape"]))
            for start in range(0, len(records), CHUNK_ROWS):
                _write(handle, state, _chunk(feature_map, records[start : start + CHUNK_ROWS]))
        os.replace(partial, path)
    except OSError as error:
        raise _storage_error(path, error) from error
    atomic_write_json(_record_path(path), {**expected, "sha256": state.hexdigest()})


def _chunk(feature_map: FeatureMap, records: FloatArray) -> bytes:
    features = feature_map.compute(records)
    if features.dtype != np.float32 or features.shape != (len(records), feature_map.width):
        raise ValueError(f"{feature_map.name} gave {features.dtype} {features.shape}, expected float32 {(len(records), feature_map.width)}")
    if not np.isfinite(features).all():
        raise ValueError(f"{feature_map.name} gave a value that is not finite")
    return features.astype("<f4", copy=False).tobytes()


def _npy_header(shape: list[int]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": tuple(shape)})
    return buffer.getvalue()


def _owner_only(path: str, flags: int) -> int:
    """Open for this user alone: features of private records are private."""
    return os.open(path, flags, 0o600)


def _write(handle: IO[bytes], state: Any, data: bytes) -> None:
    handle.write(data)
    state.update(data)


def _storage_error(path: Path, error: OSError) -> StorageError:
    return StorageError(f"cannot write the feature cache {path}: {error.strerror or error} (set FEDSEC_CACHE to a folder with room)")
