"""Which device ``training.device`` means on this machine."""

from __future__ import annotations

import torch

from fedsec.errors import ConfigError

_FIELD = "training.device"


def resolve_device(name: str) -> torch.device:
    """The device that ``name`` (cpu, cuda, cuda:N or auto) means here.

    ``auto`` is the first GPU where there is one, else the CPU. A GPU that is asked for by name is never replaced in silence.

    Raises:
        ConfigError: no such device here.

    >>> resolve_device("cpu")
    device(type='cpu')
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"unknown device {name[:40]!r}", field=_FIELD, mend='use "cpu", "cuda", "cuda:N" or "auto"') from None
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise ConfigError(f"device {name!r} is not supported", field=_FIELD, mend='use "cpu", "cuda", "cuda:N" or "auto"')
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= count:
        raise ConfigError(f"{name} is asked for, but torch finds {count} GPUs here", field=_FIELD, mend='use "auto" or "cpu"')
    return device
