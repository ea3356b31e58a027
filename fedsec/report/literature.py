"""Published points of accuracy against epsilon, by data set: what a frontier is drawn beside.

Each was taken from its paper, for its own mechanism and tuning; none was run here. ``central``: one party holds all records and adds noise once, which is
an easier setting than that of a federation whose clients each add enough noise for themselves.
"""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """One published point.

    Attributes:
        what: method and setting.
        epsilon: at ``delta``.
        delta: of the guarantee.
        accuracy: on the usual test set.
        source: paper.
    """

    what: str
    epsilon: float
    delta: float
    accuracy: float
    source: str


_TRAMER = "Tramèr & Boneh 2021, arXiv 2011.11660"
_PAPERNOT = "Papernot et al. 2021, arXiv 2007.14191"
_FLAMBY = "Ogier du Terrail et al. 2022 (FLamby), results file at commit b00c657a, mean of four hospitals, 5 seeds"

PUBLISHED: dict[str, tuple[Published, ...]] = {
    "mnist": (
        Published("ScatterNet + linear, central", 3.0, 1e-5, 0.987, _TRAMER),
        Published("CNN, central", 3.0, 1e-5, 0.981, _TRAMER),
        Published("tempered sigmoids, central", 2.93, 1e-5, 0.981, _PAPERNOT),
    ),
    "fashion-mnist": (
        Published("ScatterNet + linear, central", 3.0, 1e-5, 0.897, _TRAMER),
        Published("ScatterNet + CNN, central", 3.0, 1e-5, 0.890, _TRAMER),
        Published("CNN, central", 3.0, 1e-5, 0.860, _TRAMER),
        Published("tempered sigmoids, central", 2.7, 1e-5, 0.861, _PAPERNOT),
    ),
    "heart-disease": (
        Published("FedAvg, one model for all", 5.0, 1e-4, 0.704, _FLAMBY),
        Published("FedAvg, one model for all", 1.0, 1e-4, 0.685, _FLAMBY),
        Published("FedAvg, one model for all", 0.1, 1e-4, 0.606, _FLAMBY),
    ),
}


def published(name: str) -> tuple[Published, ...]:
    """Points for a data set, by its name in a plan; none where none is known."""
    return PUBLISHED.get(name, ())
