"""Privacy numbers that took seconds to compute, kept on disk: one file shipped with the package, one of the user's.

1. A number read here is a *candidate*, never a fact: :mod:`fedsec.privacy.accounting` holds it against an independent estimate
   before it is used, so a file that was edited, damaged or written by a faulty version cannot make epsilon look smaller.
2. The shipped file is read-only. The user's lies in ``$FEDSEC_CACHE``, else ``$XDG_CACHE_HOME/fedsec``, else ``~/.cache/fedsec``.
3. Writers merge under a lock and rename into place; readers need no lock. A file that is not exactly what is expected is ignored,
   with a line in the log, and replaced at the next write. A cache that cannot be written costs time, never a run.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedsec.errors import StorageError
from fedsec.files import atomic_write_text, exclusive_lock

Kind = Literal["prv", "rdp", "sigma"]
Numbers = dict[Kind, dict[str, float]]

SHIPPED = Path(__file__).with_name("calibration_cache.json")
FILE_NAME = "calibration.json"
MAX_NUMBERS = 10_000
"""Numbers of one kind in the user's file; the oldest go first."""
MAX_BYTES = 8 * 1024 * 1024
"""A longer file is not ours and is not parsed."""

_FORMAT = "fedsec/privacy-numbers/v1"
_KINDS: tuple[Kind, ...] = ("prv", "rdp", "sigma")
_LOCK_TIMEOUT_S = 5.0
_log = logging.getLogger(__name__)


def user_file() -> Path | None:
    """The user's file, which need not exist; None for a user without any home."""
    if own := os.environ.get("FEDSEC_CACHE"):
        return Path(own) / FILE_NAME
    base = os.environ.get("XDG_CACHE_HOME", "")
    if base and Path(base).is_absolute():
        return Path(base) / "fedsec" / FILE_NAME
    try:
        return Path.home() / ".cache" / "fedsec" / FILE_NAME
    except RuntimeError:
        return None


def key_of(segments: Sequence[tuple[float, float, int]], delta: float) -> str:
    """Key of an epsilon: delta, then ``noise_multiplier,sample_rate,steps`` of each merged segment in order."""
    return ";".join([repr(delta), *(f"{sigma!r},{rate!r},{steps}" for sigma, rate, steps in segments)])


def candidates(kind: Kind, key: str) -> tuple[float, ...]:
    """Numbers on record under ``key``, the shipped one first; each is to be checked before use."""
    return tuple(numbers[kind][key] for numbers in _sources() if key in numbers[kind])


def starting_with(kind: Kind, prefix: str) -> dict[str, float]:
    """All numbers on record whose key starts with ``prefix``, as ``{rest of the key: number}``; each is to be checked before use."""
    found: dict[str, float] = {}
    for numbers in _sources():
        found |= {key.removeprefix(prefix): value for key, value in numbers[kind].items() if key.startswith(prefix)}
    return found


def remember(kind: Kind, key: str, value: float) -> None:
    """Keep a computed number in the user's file, or say in the log why not."""
    path = user_file()
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with exclusive_lock(path.with_suffix(".lock"), timeout_s=_LOCK_TIMEOUT_S, what="privacy cache"):
            numbers = read_numbers(path)
            numbers[kind].pop(key, None)
            numbers[kind][key] = value
            for surplus in list(numbers[kind])[:-MAX_NUMBERS]:
                del numbers[kind][surplus]
            write_numbers(path, numbers)
    except (StorageError, OSError) as error:
        _log.info("the privacy cache was not written: %s", error)


def read_numbers(path: Path) -> Numbers:
    """The numbers in ``path``; empty, with a line in the log, if it is not exactly such a file."""
    try:
        with path.open("rb") as handle:
            data = handle.read(MAX_BYTES + 1)
        return _parse(data)
    except FileNotFoundError:
        return _empty()
    except (OSError, ValueError, RecursionError) as error:
        _log.warning("ignoring the privacy cache %s: %s", path, error)
        return _empty()


def write_numbers(path: Path, numbers: Mapping[Kind, Mapping[str, float]]) -> None:
    """Replace ``path`` atomically.

    Raises:
        StorageError: the file system refused.
        ValueError: a number is not finite.
    """
    record = {"format": _FORMAT, "numbers": {kind: numbers[kind] for kind in _KINDS}}
    atomic_write_text(path, json.dumps(record, indent=1, allow_nan=False) + "\n", durable=False)


@dataclass(frozen=True)
class _Loaded:
    stamp: tuple[int, int, int]
    numbers: Numbers


_loaded: dict[Path, _Loaded] = {}


def _sources() -> list[Numbers]:
    return [_current(path) for path in (SHIPPED, user_file()) if path is not None]


def _current(path: Path) -> Numbers:
    """The file's numbers, parsed again only when another process has replaced it."""
    try:
        status = path.stat()
    except OSError:
        return _empty()
    stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
    held = _loaded.get(path)
    if held is None or held.stamp != stamp:
        held = _loaded[path] = _Loaded(stamp, read_numbers(path))
    return held.numbers


def _empty() -> Numbers:
    return {kind: {} for kind in _KINDS}


def _parse(data: bytes) -> Numbers:
    if len(data) > MAX_BYTES:
        raise ValueError(f"over {MAX_BYTES} bytes")
    record = json.loads(data)
    if not isinstance(record, dict) or record.get("format") != _FORMAT or not isinstance(record.get("numbers"), dict):
        raise ValueError("not a file of privacy numbers")
    numbers = record["numbers"]
    if set(numbers) != set(_KINDS) or not all(isinstance(table, dict) for table in numbers.values()):
        raise ValueError("other kinds of numbers than expected")
    for table in numbers.values():
        if not all(type(value) is float and math.isfinite(value) and value >= 0.0 for value in table.values()):
            raise ValueError("a number that is not finite and positive")
    return {kind: numbers[kind] for kind in _KINDS}
