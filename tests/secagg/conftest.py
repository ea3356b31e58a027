"""Vectors by file name, reproducible bytes, and honest rounds."""

import hashlib
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
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


@pytest.fixture(scope="session")
def rounds() -> ModuleType:
    """The module rounds.py: builders of honest rounds."""
    name = "fedsec_tests_secagg_rounds"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("rounds.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]
