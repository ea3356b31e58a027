"""Device names: auto falls back, a name that is asked for does not."""

import pytest
import torch

from fedsec.errors import ConfigError
from fedsec.models.device import resolve_device


@pytest.fixture
def gpus(monkeypatch):
    def _set(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return _set


@pytest.mark.parametrize(("count", "expected"), [(0, "cpu"), (2, "cuda")])
def test_auto_takes_a_gpu_where_there_is_one(gpus, count, expected):
    gpus(count)
    assert resolve_device("auto") == torch.device(expected)


def test_named_devices_that_exist_are_taken(gpus):
    gpus(2)
    assert [resolve_device(name) for name in ("cpu", "cuda", "cuda:1")] == [torch.device(name) for name in ("cpu", "cuda", "cuda:1")]


@pytest.mark.parametrize(
    ("name", "count"), [("cuda", 0), ("cuda:0", 0), ("cuda:2", 2), ("mps", 0), ("meta", 0), ("", 0), ("cuda:x", 1), ("gpu" * 1000, 1)]
)
def test_devices_that_are_not_here_are_refused_and_never_replaced(gpus, name, count):
    gpus(count)
    with pytest.raises(ConfigError) as caught:
        resolve_device(name)
    assert caught.value.field == "training.device"
    assert len(str(caught.value)) < 200
