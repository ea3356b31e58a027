"""Vectors by file name, and reproducible bytes."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

VECTORS = Path(__file__).resolve().parent.parent / "vectors"


@pytest.fixture(scope="session")
def vectors() -> Callable[[str], Any]:
    """``vectors("shamir")`` is the content of ``secagg_shamir.json``."""
    return lambda name: json.loads((VECTORS / f"secagg_{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def expand() -> Callable[[str, int], bytes]:
    """``expand(name, n)``: n bytes that depend on the name alone."""
    return lambda name, size: hashlib.shake_256(name.encode()).digest(size)
