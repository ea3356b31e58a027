"""How well a run told attackers from the honest, where the truth is known: in a simulation.

1. What is counted is one update: a client in a round. It is *kept out* if the rule rejected it, quarantine gave it weight 0, or a proven fault
   refused it. An attacker's update in a round in which it behaves counts neither way.
2. A figure without anything to count is None: recall without an attack, precision without a rejection.
3. Rates count rounds from ``from_round`` (2 by default: in the first there is no round before to learn from); times to detection count all.
4. Scores are compared within a round only: what they mean may change from round to round.

Source: design note ROBUST, "What a run reports".
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

DECILES = 10


@dataclass(frozen=True, kw_only=True)
class JudgedRound:
    """One round, with the truth.

    Attributes:
        server_round: from 1.
        scores: client id → score of each client that was judged; larger is more suspicious.
        kept_out: clients whose update is not in the aggregate, for whatever reason that is about them.
        blocked: those with weight 0 whatever they sent: in quarantine or excluded.
        attacking: attackers that attack in this round.
    """

    server_round: int
    scores: Mapping[str, float]
    kept_out: frozenset[str]
    blocked: frozenset[str] = frozenset()
    attacking: frozenset[str] = frozenset()

    @property
    def present(self) -> frozenset[str]:
        """Clients that sent something."""
        return frozenset(self.scores) | self.kept_out


@dataclass(frozen=True, kw_only=True)
class Quality:
    """The figures of :func:`rejection_quality`; ``fedsec.results.RejectionReport`` says what each means."""

    precision: float | None
    recall: float | None
    auc: float | None
    honest_rate: float | None
    worst_honest_rate: float | None
    honest_rate_by_skew_decile: tuple[float | None, ...]
    rounds_to_detection: float | None
    rounds_to_quarantine: float | None
    undetected: int
    provable_named_share: float | None
    false_named: int


def rejection_quality(
    rounds: Sequence[JudgedRound],
    *,
    attackers: Collection[str],
    skew: Mapping[str, float] | None = None,
    provable: Collection[str] = (),
    named: Collection[str] = (),
    from_round: int = 2,
) -> Quality:
    """The figures of a run.

    Args:
        rounds: in order.
        attackers: all of them; every other client is honest.
        skew: client id → how far its records are from the whole's, for example :func:`label_skew`; None: unknown.
        provable: attackers that sent what proves a fault.
        named: clients that were named for a proven fault.
        from_round: first round that rates count.
    """
    counted = [one for one in rounds if one.server_round >= from_round]
    caught = sum(len(one.kept_out & one.attacking) for one in counted)
    wrong = sum(len(one.kept_out.difference(attackers)) for one in counted)
    honest = _honest_counts(counted, attackers)
    detection = _waits(rounds, lambda one: one.kept_out)
    return Quality(
        precision=_share(caught, caught + wrong),
        recall=_share(caught, sum(len(one.present & one.attacking) for one in counted)),
        auc=_auc(counted, attackers),
        honest_rate=_share(*_total(honest.values())),
        worst_honest_rate=max((rejected / sent for rejected, sent in honest.values()), default=None),
        honest_rate_by_skew_decile=() if skew is None else _by_decile(honest, skew),
        rounds_to_detection=_mean(detection),
        rounds_to_quarantine=_mean(_waits(rounds, lambda one: one.blocked)),
        undetected=sum(wait is None for wait in detection),
        provable_named_share=_share(len(set(provable) & set(named)), len(set(provable))),
        false_named=len(set(named).difference(attackers)),
    )


def label_skew(histogram: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Total-variation distance of each client's label distribution from that of all records: 0 (the same) to 1 (nothing in common).

    Args:
        histogram: counts [clients, classes]; each client has a record.

    Returns:
        float64 [clients].

    Raises:
        ValueError: a client without records.

    >>> label_skew(np.array([[10, 10], [20, 0], [0, 20]]))
    array([0. , 0.5, 0.5])
    """
    totals = histogram.sum(axis=1, keepdims=True)
    if (totals <= 0).any():
        raise ValueError("a client without records has no label distribution")
    whole = histogram.sum(axis=0) / totals.sum()
    return np.asarray(0.5 * np.abs(histogram / totals - whole).sum(axis=1), dtype=np.float64)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _mean(waits: Sequence[int | None]) -> float | None:
    known = [wait for wait in waits if wait is not None]
    return sum(known) / len(known) if known else None


def _total(counts: Collection[tuple[int, int]]) -> tuple[int, int]:
    return sum(rejected for rejected, _ in counts), sum(sent for _, sent in counts)


def _honest_counts(rounds: Sequence[JudgedRound], attackers: Collection[str]) -> dict[str, tuple[int, int]]:
    """Client id → (updates kept out, updates sent) of each honest client."""
    counts: dict[str, tuple[int, int]] = {}
    for one in rounds:
        for name in one.present.difference(attackers):
            rejected, sent = counts.get(name, (0, 0))
            counts[name] = rejected + (name in one.kept_out), sent + 1
    return counts


def _by_decile(honest: Mapping[str, tuple[int, int]], skew: Mapping[str, float]) -> tuple[float | None, ...]:
    """Share kept out of each tenth of the honest clients, least skewed first; fewer than ten clients leave gaps."""
    ordered = sorted((name for name in honest if name in skew), key=lambda name: (skew[name], name))
    tenths: list[list[tuple[int, int]]] = [[] for _ in range(DECILES)]
    for rank, name in enumerate(ordered):
        tenths[rank * DECILES // len(ordered)].append(honest[name])
    return tuple(_share(*_total(tenth)) for tenth in tenths)


def _waits(rounds: Sequence[JudgedRound], reached: Callable[[JudgedRound], frozenset[str]]) -> list[int | None]:
    """Rounds from each attacker's first attack to the first round from there on that ``reached`` names it in, both counted; None: never."""
    first: dict[str, int] = {}
    until: dict[str, int] = {}
    for one in rounds:
        for name in one.present & one.attacking:
            first.setdefault(name, one.server_round)
        for name in reached(one) & first.keys():
            until.setdefault(name, one.server_round - first[name] + 1)
    return [until.get(name) for name in first]


def _auc(rounds: Sequence[JudgedRound], attackers: Collection[str]) -> float | None:
    """Share of pairs (attacking, honest) of one round in which the attacking update has the higher score; ties count half.

    Source: Mann and Whitney, Annals of Mathematical Statistics 18 (1947).
    """
    pairs, won = 0, 0.0
    for attacking, honest in _scores_of(rounds, attackers):
        ordered = np.sort(np.array(honest))
        below = np.searchsorted(ordered, attacking, side="left")
        not_above = np.searchsorted(ordered, attacking, side="right")
        won += float(np.sum(below + not_above)) / 2
        pairs += len(attacking) * len(honest)
    return won / pairs if pairs else None


def _scores_of(rounds: Sequence[JudgedRound], attackers: Collection[str]) -> Iterator[tuple[list[float], list[float]]]:
    for one in rounds:
        attacking = [score for name, score in one.scores.items() if name in one.attacking]
        honest = [score for name, score in one.scores.items() if name not in attackers]
        if attacking and honest:
            yield attacking, honest
