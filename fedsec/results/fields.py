"""Checks and codecs that the records of a run have in common."""

from __future__ import annotations

import math
from typing import Any

from fedsec.jsonfields import NUMBER, NUMBER_OR_NONE, TEXT, Codec, clean, list_of, map_of, optional, read_object


def pairs_of(first: str, second: str) -> Codec:
    """Pairs of texts, each written as an object with these two keys."""

    def read(value: Any, what: str) -> tuple[str, str]:
        pair = read_object({first: TEXT, second: TEXT}, value, what)
        return pair[first], pair[second]

    return list_of(Codec(lambda pair: {first: clean(pair[0]), second: clean(pair[1])}, read))


RECALL = list_of(NUMBER_OR_NONE)
SITES = optional(map_of(NUMBER))
REJECTIONS = pairs_of("client_id", "reason")


def check_shares(what: str, *values: float | None) -> None:
    """Shares lie between 0 and 1; NaN and None are no numbers, and pass."""
    for value in values:
        if value is not None and not math.isnan(value) and not 0.0 <= value <= 1.0:
            raise ValueError(f"{what} is a share between 0 and 1, not {value!r}")


def check_epsilons(*values: float | None) -> None:
    """Epsilons are at least 0 or unknown; infinity passes, NaN does not."""
    for value in values:
        if value is not None and not value >= 0.0:  # NaN fails this too
            raise ValueError(f"epsilon is at least 0 or unknown (None), not {value!r}")


def check_counts(**counts: int) -> None:
    """Counts are not negative."""
    for name, count in counts.items():
        if count < 0:
            raise ValueError(f"{name} is a count, not {count!r}")
