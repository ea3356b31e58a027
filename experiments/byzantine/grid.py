"""Which runs make each table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from experiments.byzantine.flanders import FIRST_ROUND
from experiments.byzantine.settings import Settings

Part = Literal["n17", "flanders", "skew"]
PARTS: tuple[Part, ...] = ("n17", "flanders", "skew")

WORST_OVER = ("optimised-alie", "optimised-ipm", "mimic", "label-flip")
"""Attacks over which the worst case of part n17 is taken."""

Mode = Literal["open", "sketch"]
OPEN: Mode = "open"
SKETCH: Mode = "sketch"

N17_RULES: tuple[tuple[str, Mode], ...] = (
    ("mean", OPEN),
    ("median", OPEN),
    ("krum", OPEN),
    ("multi-krum", OPEN),
    ("geometric-median", OPEN),
    ("nnm-geometric-median", OPEN),
    ("arc-nnm-geometric-median", OPEN),
    ("group-filter", OPEN),
    ("fltrust", OPEN),
    ("filter", SKETCH),
    ("group-filter", SKETCH),
)
DISGUISED: tuple[tuple[str, Mode], ...] = (("arc-nnm-geometric-median", OPEN), ("filter", SKETCH), ("group-filter", SKETCH))
"""Rules that are also held against colluders who do not look alike."""
CAREFUL: tuple[tuple[str, Mode], ...] = (("group-filter", SKETCH),)
CAREFUL_DRAWS = 8
"""Rules that are also held against attackers who average their search over so many sketches of their own."""

N17: dict[str, Any] = {
    "part": "n17", "num_clients": 17, "num_byzantine": 4, "alpha": 0.1, "rounds": 100, "steps": 5, "batch_size": 32, "learning_rate": 0.3,
}  # fmt: skip
FLANDERS: dict[str, Any] = {
    "part": "flanders", "num_clients": 100, "num_byzantine": 20, "alpha": 0.5, "rounds": 50, "steps": 5, "batch_size": 32,
    "learning_rate": 0.3, "sketch_rows": 128,
}  # fmt: skip
SKEW: dict[str, Any] = {**N17, "part": "skew", "num_clients": 20, "num_byzantine": 5}

FLANDERS_RULES: tuple[tuple[str, Mode], ...] = (("arc-nnm-geometric-median", OPEN), ("group-filter", SKETCH))
FLANDERS_COLUMNS: dict[str, tuple[str, ...]] = {
    "Gauss": ("flanders-gauss",),
    "ALIE (LIE)": ("flanders-lie", "alie"),
    "OPT": ("flanders-opt", "fang"),
    "Min-Max (AGR-MM)": ("min-max",),
}
"""Their column → the forms in which we run its attack; the column's figure is the worse of the two."""
FLANDERS_BEST = {"Gauss": 0.90, "ALIE (LIE)": 0.87, "OPT": 0.84, "Min-Max (AGR-MM)": 0.88}
"""Best of their ten rules in each column, MNIST, 20 of 100 malicious: the highest accuracy from round 3 on, one seed (their table 15)."""

SKEW_RULES: tuple[tuple[str, Mode], ...] = (("arc-nnm-geometric-median", OPEN), ("filter", SKETCH), ("group-filter", SKETCH))
SKEW_ALPHAS = (0.1, 0.5, 1.0)


def runs_of(part: Part, seeds: int) -> list[Settings]:
    """All runs of a part, seed by seed."""
    make = {"n17": _n17, "flanders": _flanders, "skew": _skew}[part]
    return [settings for seed in range(1, seeds + 1) for settings in make(seed)]


def _n17(seed: int) -> Iterator[Settings]:
    for rule, mode in N17_RULES:
        for attack in ("none", *WORST_OVER):
            yield Settings(rule=rule, mode=mode, attack=attack, seed=seed, **N17)
    for rule, mode in DISGUISED:
        for attack in WORST_OVER[:2]:
            yield Settings(rule=rule, mode=mode, attack=attack, seed=seed, disguised=True, **N17)
    for rule, mode in CAREFUL:
        for attack in WORST_OVER[:2]:
            for disguised in (False, True):
                yield Settings(rule=rule, mode=mode, attack=attack, seed=seed, disguised=disguised, draws=CAREFUL_DRAWS, **N17)


def _flanders(seed: int) -> Iterator[Settings]:
    forms = ("none", *(form for forms in FLANDERS_COLUMNS.values() for form in forms))
    undefended: tuple[tuple[str, Mode], ...] = (("mean", OPEN),) if seed == 1 else ()
    for rule, mode in (*undefended, *FLANDERS_RULES):
        for form in forms:
            first = FIRST_ROUND if form.startswith("flanders-") else 1
            yield Settings(rule=rule, mode=mode, attack=form, seed=seed, first_round=first, **FLANDERS)


def _skew(seed: int) -> Iterator[Settings]:
    for alpha in SKEW_ALPHAS:
        for rule, mode in SKEW_RULES:
            yield Settings(rule=rule, mode=mode, attack="none", seed=seed, **{**SKEW, "alpha": alpha})
