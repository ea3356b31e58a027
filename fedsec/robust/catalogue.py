"""Every rule by its name in a plan: what it is, where it runs, what it stands. How it runs: ``fedsec.robust.registry``.

``screening`` is not here: it keeps accounts over rounds, see ``fedsec.robust.screening``. ``auto`` is a choice that the plan makes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from fedsec.errors import ConfigError
from fedsec.robust.base import Mode


class Kind(StrEnum):
    """What a rule gives."""

    WEIGHTS = "weights"
    """A weight for each client; on sketches, a selection by score."""
    SELECTION = "selection"
    """Clients whose mean is the aggregate."""
    COORDINATES = "coordinates"
    """Each coordinate by itself; no weights."""


@dataclass(frozen=True, kw_only=True)
class RuleInfo:
    """What there is to know about a rule.

    Attributes:
        name: in a plan.
        summary: one line.
        kind: what it gives.
        modes: where it runs.
        paper: where it is from.
        breakdown: how many hostile of n clients it stands, in words; f as in the plan.
        clients_per_byzantine: a, where n >= a f + b is what the paper asks for.
        clients_besides: b.
        needs_root: needs the server's own update on trusted records.
    """

    name: str
    summary: str
    kind: Kind
    paper: str
    breakdown: str
    modes: tuple[Mode, ...] = (Mode.OPEN, Mode.SKETCH)
    clients_per_byzantine: int = 2
    clients_besides: int = 1
    needs_root: bool = False

    def fewest_clients(self, num_byzantine: int) -> int:
        """Fewest clients with which the rule stands f hostile ones; with f = 0, one."""
        return self.clients_per_byzantine * num_byzantine + self.clients_besides if num_byzantine else 1


_OPEN = (Mode.OPEN,)
_MINORITY = "f < n/2"

_ALL = (
    RuleInfo(
        name="mean",
        summary="mean by declared batch sizes, capped; no defence",
        kind=Kind.SELECTION,
        paper="McMahan et al., AISTATS 2017",
        breakdown="none: one hostile update moves it anywhere",
    ),
    RuleInfo(
        name="group-filter",
        summary="no f clients together pull the sum farther than other groups of f do: offending groups are left out, then the mean of the rest",
        kind=Kind.SELECTION,
        paper="fedsec.robust.sketch_filter; bound: ICLR 2022, arXiv 2006.09365; centre: arXiv 2405.14432, 2302.01772",
        breakdown=f"{_MINORITY} for what is far out; below the edge, the pull of any f is bounded by it",
    ),
    RuleInfo(
        name="filter",
        summary="one of each group of twins, norm gate and distance from the ARC + NNM + GM centre, then the mean of the rest",
        kind=Kind.SELECTION,
        paper="design note ROBUST; centre: arXiv 2405.14432, 2302.01772",
        breakdown=f"{_MINORITY} for what is far out; below the edge, influence is bounded by it",
    ),
    RuleInfo(
        name="mad-filter",
        summary="distance from the NNM + GM centre over median + 5 robust deviations, then the mean of the rest",
        kind=Kind.SELECTION,
        paper="design note ROBUST; centre: arXiv 2302.01772",
        breakdown=f"{_MINORITY} for what is far out; below the edge, influence is bounded by it",
    ),
    RuleInfo(
        name="spectral",
        summary="what stands out along leading principal directions is left out, step after step, then the mean of the rest",
        kind=Kind.SELECTION,
        paper="DnC: NDSS 2021; CAF: arXiv 2505.01874",
        breakdown=f"{_MINORITY} for what is far out along a leading direction",
    ),
    RuleInfo(
        name="krum",
        summary="the one update that is nearest to its n - f - 2 nearest others",
        kind=Kind.SELECTION,
        paper="Blanchard et al., NeurIPS 2017",
        breakdown="n >= 2f + 3; under skew it loses much without any attack",
        modes=_OPEN,
        clients_besides=3,
    ),
    RuleInfo(
        name="multi-krum",
        summary="mean of the n - f updates with the best Krum scores",
        kind=Kind.SELECTION,
        paper="Blanchard et al., NeurIPS 2017",
        breakdown="n >= 2f + 3; leaves out f clients in every round",
        clients_besides=3,
    ),
    RuleInfo(
        name="geometric-median",
        summary="the point with the smallest sum of distances to all updates",
        kind=Kind.WEIGHTS,
        paper="Pillutla et al., arXiv 1912.13445",
        breakdown=_MINORITY,
    ),
    RuleInfo(
        name="centred-clipping",
        summary="steps of the mean of updates clipped around the centre, radius learnt from the distances",
        kind=Kind.WEIGHTS,
        paper="Karimireddy et al., ICML 2021, arXiv 2012.10333",
        breakdown=_MINORITY,
    ),
    RuleInfo(
        name="nnm-geometric-median",
        summary="each update replaced by the mean of its n - f nearest, then the geometric median",
        kind=Kind.WEIGHTS,
        paper="Allouah et al., AISTATS 2023, arXiv 2302.01772",
        breakdown=f"{_MINORITY}, with the best possible order of error",
    ),
    RuleInfo(
        name="arc-nnm-geometric-median",
        summary="largest norms clipped to the next smaller one, then NNM and geometric median",
        kind=Kind.WEIGHTS,
        paper="Allouah et al., arXiv 2405.14432, 2302.01772",
        breakdown=f"{_MINORITY}, with the best possible order of error; norms bounded by an honest one",
    ),
    RuleInfo(
        name="fltrust",
        summary="weights by the angle to the server's own update on trusted records",
        kind=Kind.WEIGHTS,
        paper="Cao et al., NDSS 2021, arXiv 2012.13995",
        breakdown="any f in the open, while the root update points the right way; on sketches f as in the plan",
        needs_root=True,
        clients_per_byzantine=1,
    ),
    RuleInfo(
        name="foolsgold",
        summary="updates that point the same way as another count less",
        kind=Kind.WEIGHTS,
        paper="Fung et al., RAID 2020, arXiv 1808.04866",
        breakdown="any number of sybils that send the same in the open, none against a lone attacker",
        clients_per_byzantine=1,
    ),
    RuleInfo(
        name="median",
        summary="median of each coordinate",
        kind=Kind.COORDINATES,
        paper="Yin et al., ICML 2018, arXiv 1803.01498",
        breakdown=f"{_MINORITY} in each coordinate",
        modes=_OPEN,
    ),
    RuleInfo(
        name="trimmed-mean",
        summary="mean of each coordinate without its f smallest and f largest entries",
        kind=Kind.COORDINATES,
        paper="Yin et al., ICML 2018, arXiv 1803.01498",
        breakdown=f"{_MINORITY} in each coordinate",
        modes=_OPEN,
    ),
    RuleInfo(
        name="meamed",
        summary="mean of the n - f entries of each coordinate nearest to its median",
        kind=Kind.COORDINATES,
        paper="Xie et al., arXiv 1802.10116",
        breakdown=f"{_MINORITY} in each coordinate",
        modes=_OPEN,
    ),
    RuleInfo(
        name="bulyan",
        summary="n - 2f updates selected by repeated Krum, then of each coordinate the mean of the n - 4f nearest to the median",
        kind=Kind.COORDINATES,
        paper="El Mhamdi et al., ICML 2018, arXiv 1802.07927",
        breakdown="n >= 4f + 3",
        modes=_OPEN,
        clients_per_byzantine=4,
        clients_besides=3,
    ),
)

RULES = {info.name: info for info in _ALL}
"""Name → what there is to know."""


def rules_for(mode: Mode, *, root: bool = True) -> tuple[str, ...]:
    """Names of the rules that run in ``mode``, those that need a root update only with ``root``.

    >>> "median" in rules_for(Mode.OPEN), "median" in rules_for(Mode.SKETCH)
    (True, False)
    """
    return tuple(info.name for info in _ALL if mode in info.modes and (root or not info.needs_root))


def rule_info(name: str, mode: Mode, *, root: bool = True) -> RuleInfo:
    """What there is to know about a rule that is about to run in ``mode``.

    Raises:
        ConfigError: no such rule here, or not in this mode, or it needs a root update that is not there; names the rules that could run.
    """
    could = f"these could run: {', '.join(rules_for(mode, root=root))}; and screening, where there is privacy noise"
    info = RULES.get(name)
    if info is None:
        raise ConfigError(f"no rule {name!r} on one round by itself", field="robust.rule", mend=could)
    if mode not in info.modes:
        why = "single coordinates of the updates" if info.kind is Kind.COORDINATES else "to open the update of one client by itself"
        raise ConfigError(f"{name} needs {why}, which secure aggregation hides", field="robust.rule", mend=could)
    if info.needs_root and not root:
        raise ConfigError(f"{name} needs the server's own update on trusted records", field="robust.root_examples", mend=could)
    return info
