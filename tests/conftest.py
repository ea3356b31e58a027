"""Fixtures that every test may use, and the one rule for tests that need what only some machines have."""

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", "1")
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")


def find_data_root() -> Path | None:
    """The folder with the image sets: the environment variable, or ``../shared/data`` beside the repository."""
    candidates = [os.environ.get("FEDSEC_DATA_ROOT"), str(ROOT.parent / "shared" / "data")]
    for candidate in candidates:
        if candidate and (Path(candidate) / "fashion-mnist").is_dir() and (Path(candidate) / "mnist").is_dir():
            return Path(candidate)
    return None


NEEDS = {
    "data": (
        lambda: find_data_root() is not None,
        "the image sets are not here; set FEDSEC_DATA_ROOT to a folder with mnist/ and fashion-mnist/",
    ),
    "chromium": (lambda: shutil.which("chromium") is not None, "Chromium is not installed"),
    "systemd": (lambda: shutil.which("systemd-analyze") is not None, "systemd-analyze is not installed"),
    "ray": (lambda: importlib.util.find_spec("ray") is not None, "ray is not installed; pip install 'fedsec[ray]'"),
    "cuda": (lambda: _has_cuda(), "no CUDA device"),
}


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose need is not met, with the reason; where FEDSEC_REQUIRE names the need, fail instead."""
    for marker in item.iter_markers("needs"):
        for need in marker.args:
            available, reason = NEEDS[need]
            if available():
                continue
            if need in os.environ.get("FEDSEC_REQUIRE", "").split(","):
                pytest.fail(f"needs {need}, required on this machine: {reason}")
            pytest.skip(f"needs {need}: {reason}")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with the image sets; use with ``@pytest.mark.needs("data")``."""
    root = find_data_root()
    assert root is not None
    return root


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep tests out of the user's cache, fixtures of modules included; one cache for the session, so that sigma is calibrated once."""
    before = os.environ.get("FEDSEC_CACHE")
    os.environ["FEDSEC_CACHE"] = str(tmp_path_factory.mktemp("fedsec-cache"))
    yield
    if before is None:
        del os.environ["FEDSEC_CACHE"]
    else:
        os.environ["FEDSEC_CACHE"] = before


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    """What a test leaves in the environment ends with it: the next test may be another one on every machine."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)
