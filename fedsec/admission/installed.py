"""The files of the installed packages, as a manifest lists them.

1. Every file counts, code or not: an extra one is as much a difference as an edited one.
2. Only ``__pycache__`` is left out: its contents follow from the source and the interpreter. Whoever may write there may as well change the
   interpreter or a library; such a one is not kept out here.
3. Links are refused: what they lead to is nobody's list's.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import fedsec
from fedsec.admission.manifest import FileEntry, check_file_set
from fedsec.errors import AdmissionError, StorageError

RUNTIME_PACKAGES = ("client", "fedsec", "server")
"""The packages that one installation of fedsec brings."""
CACHE_FOLDER = "__pycache__"


def installed_packages() -> dict[str, Path]:
    """Where each of the packages lies that ``import`` would find here.

    Raises:
        AdmissionError: one is missing, is no plain package, or lies elsewhere than this fedsec: another one stands before it in the path.
    """
    root, found = Path(fedsec.__file__).parent.parent, {}
    for name in RUNTIME_PACKAGES:
        spec = find_spec(name)
        if spec is None or spec.origin is None or Path(spec.origin).name != "__init__.py":
            raise AdmissionError(f"the package {name} is not installed here; install fedsec whole")
        found[name] = Path(spec.origin).parent
        if found[name] != root / name:
            raise AdmissionError(f"the package {name} would be imported from {found[name]}, not from beside fedsec ({root})")
    return found


def scan_packages(packages: Mapping[str, Path]) -> tuple[FileEntry, ...]:
    """Every file of the packages, by path.

    Args:
        packages: name → folder.

    Raises:
        AdmissionError: a link, or a name that may not stand in a manifest.
        StorageError: a file cannot be read.
    """
    entries = sorted(
        _entry(f"{name}/{path.relative_to(folder).as_posix()}", path) for name, folder in packages.items() for path in _files(folder)
    )
    check_file_set(entries, "the installation")
    return tuple(entries)


def _files(folder: Path) -> list[Path]:
    found = []
    try:
        with os.scandir(folder) as listing:
            items = sorted(listing, key=lambda item: item.name)
        for item in items:
            if item.is_symlink():
                raise AdmissionError(f"{item.path} is a link; an installation has none")
            if item.is_dir():
                found += [] if item.name == CACHE_FOLDER else _files(Path(item.path))
            else:
                found.append(Path(item.path))
    except OSError as error:
        raise StorageError(f"cannot read {folder}: {error.strerror or error}") from error
    return found


def _entry(name: str, path: Path) -> FileEntry:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    return FileEntry(name, hashlib.sha256(data).hexdigest(), len(data))
