"""What a sweep notes about itself: command, versions, seeds, records, commit, machine."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import fedsec
from fedsec.plan.sweep import SweepGrid

MANIFEST_FORMAT = "fedsec/sweep-manifest/v1"
_PACKAGES = ("fedsec", "flwr", "torch", "opacus", "numpy", "scikit-learn", "matplotlib")
_GIT_TIMEOUT_S = 10.0


def manifest_of(before: Mapping[str, Any], facts: Mapping[str, Any], command: str, grid: SweepGrid) -> dict[str, Any]:
    """The manifest of a session; the first session's time and what is known of the records stay.

    Args:
        before: the manifest that is there, or nothing.
        facts: of the check of the plan; may be empty when the sweep goes on.
        command: that makes the sweep.
        grid: the sweep.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {
        "format": MANIFEST_FORMAT,
        "command": command,
        "seeds": list(grid.seeds),
        "records": {**before.get("records", {}), **facts.get("records", {})},
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "commit": commit(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "started": before.get("started", now),
        "went_on": now,
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def commit() -> str | None:
    """The commit of fedsec's own sources, marked where files differ from it; None where they are in no repository."""
    folder = Path(fedsec.__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(  # noqa: S603 - fixed words
            ["git", "-C", str(folder), *words],  # noqa: S607 - the user's own git
            capture_output=True,
            text=True,
            check=True,
            timeout=_GIT_TIMEOUT_S,
        ).stdout.strip()

    try:
        head = git("rev-parse", "HEAD")
        return f"{head}{' with changes' if git('status', '--porcelain', '--untracked-files=no', '.') else ''}"
    except (OSError, subprocess.SubprocessError):
        return None
