"""The records of each client of the trial: all of digits, the same for each; what is tried is the deployment."""

from typing import Any


def load() -> dict[str, Any]:
    """Features in 0..1 [n, 64], classes [n]."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return {"x": x / 16.0, "y": y, "num_classes": 10}
