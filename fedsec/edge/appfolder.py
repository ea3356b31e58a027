"""The Flower app that a deployment runs: the two thin packages ``server`` and ``client`` as they are installed beside fedsec, and nothing else.

1. The same installation gives the same bytes each time, on every machine: ``fedsec release build`` makes the bundle (FAB) that sites approve from this
   folder, and ``fedsec run`` submits this folder, so that the SuperLink makes the same FAB of it.
2. Only Python files of the two packages are in it. ``fedsec`` itself is not: a FAB with it would shadow what the site installed.
3. Files are read where this fedsec was loaded from, not where the current folder or ``PYTHONPATH`` would find packages of these names.
"""

from __future__ import annotations

from pathlib import Path

import fedsec
from fedsec.errors import ConfigError, StorageError
from fedsec.files import atomic_write_bytes

PACKAGES = ("client", "server")

PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "fedsec"
version = "{version}"
description = "Federated learning among parties that do not trust each other: the two apps"
license = {{ file = "LICENSE" }}
dependencies = ["flwr>=1.41,<1.43"]

[tool.flwr.app]
publisher = "fedsec"
fab-format-version = 1
flwr-version-target = "1.41.0"
fab-include = ["/LICENSE", "server/**/*.py", "client/**/*.py"]

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"

[tool.flwr.app.config]
plan = ""
plan-sha256 = ""
run-dir = ""
engine = ""
"""
"""Run-config keys are those of ``server/setup.py``; Flower takes no others."""

LICENSE = "Licensed under the Apache License, Version 2.0. The full text is in the fedsec distribution.\n"


def app_files() -> dict[str, bytes]:
    """Path in the app, with forward slashes → content; sorted.

    Raises:
        ConfigError: the two packages are not installed beside fedsec.
        StorageError: a file cannot be read.
    """
    root = Path(fedsec.__file__).resolve().parent.parent
    files = {"LICENSE": LICENSE.encode(), "pyproject.toml": PYPROJECT.format(version=fedsec.__version__).encode()}
    for package in PACKAGES:
        sources = sorted((root / package).rglob("*.py"))
        if root / package / "app.py" not in sources:
            raise ConfigError(f"the package {package} is not installed beside fedsec", mend="install fedsec again, whole")
        for path in sources:
            try:
                files[path.relative_to(root).as_posix()] = path.read_bytes()
            except OSError as error:
                raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    return dict(sorted(files.items()))


def write_app_folder(folder: Path) -> Path:
    """Write the app into an empty or new folder, and return it.

    Its name must be one that Flower takes for a project: letters, digits and ``-``; ``fedsec`` say.

    Raises:
        ConfigError: something lies in it already; or as :func:`app_files`.
        StorageError: the file system refused.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty", mend="give an empty or new folder")
        for name, data in app_files().items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_bytes(path, data, durable=False)
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {error.strerror or error}") from error
    return folder
