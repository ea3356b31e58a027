"""Which epsilon a sweep recommends, by stated rules; the page shows the rules beside the outcome of each.

An epsilon passes if all of these hold:

1. the accuracy's 95 % interval lies above always naming the commonest class;
2. privacy costs at most :data:`MOST_COST` of accuracy, on average over seeds, against the same runs without privacy;
3. no class loses more than :data:`MOST_SLICE` of its recall, on average over seeds;
4. no audit refuted the claim, and in every seed the audit caught its controls; without audits this is not known and not held against it;
5. where natural sites were also measured alone, the interval lies above the mean of what each reaches with its own records: otherwise nobody needs the federation.

The smallest epsilon that passes is recommended: it protects most. There is no recommendation from a sweep that is not whole, has under three seeds
or has no run without privacy, nor where no epsilon passes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedsec.report import text
from fedsec.report.intervals import FEWEST
from fedsec.report.sweep_audit import SweepAudits
from fedsec.report.sweep_summary import Figure, Slice, SweepSummary

MOST_COST = 0.05
MOST_SLICE = 0.20


@dataclass(frozen=True, kw_only=True)
class Check:
    """One rule at one epsilon.

    Attributes:
        rule: in a few words.
        passed: None: not known.
        why: the numbers.
    """

    rule: str
    passed: bool | None
    why: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """All rules at one epsilon.

    Attributes:
        epsilon: which.
        accuracy: of the main series; None where no run ended.
        price: what privacy costs.
        checks: one a rule.
    """

    epsilon: float
    accuracy: Figure | None
    price: Figure | None
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether no rule fails and only the audit may be unknown."""
        return all(check.passed is not False for check in self.checks) and all(check.passed is not None for check in self.checks[:3])


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """What a sweep recommends.

    Attributes:
        verdicts: one for each epsilon with privacy, rising.
        epsilon: recommended; None: none is.
        why_none: why there is none; empty where there is.
    """

    verdicts: tuple[Verdict, ...]
    epsilon: float | None
    why_none: str

    @property
    def chosen(self) -> Verdict | None:
        """The verdict of the recommended epsilon."""
        return next((verdict for verdict in self.verdicts if verdict.epsilon == self.epsilon), None)


def recommend(summary: SweepSummary, audits: SweepAudits) -> Recommendation:
    """Apply the rules to the main series."""
    verdicts = tuple(_verdict(summary, audits, epsilon) for epsilon in summary.finite)
    reason = _no_grounds(summary, audits)
    passing = [verdict for verdict in verdicts if verdict.passed]
    if not reason and not passing:
        reason = "no ε of this sweep passes all rules"
    return Recommendation(verdicts=verdicts, epsilon=None if reason else passing[0].epsilon, why_none=reason)


def _no_grounds(summary: SweepSummary, audits: SweepAudits) -> str:
    if audits.refuted:
        return "an audit refuted the privacy that was claimed: nothing here may be relied on before that is explained"
    if audits.missed:
        return "the audit did not catch its own controls: it cannot see, and nothing may be built on it"
    if not summary.is_whole:
        return "this sweep is not complete"
    if len(summary.grid.seeds) < FEWEST:
        return f"it takes {FEWEST} seeds to tell a result from chance, and this sweep has {len(summary.grid.seeds)}"
    if not any(map(math.isinf, summary.grid.epsilons)):
        return "there is no run without privacy to measure the cost from (add inf to --epsilon)"
    return ""


def worst_slice(summary: SweepSummary, slices: list[Slice], epsilon: float) -> tuple[Slice, Figure] | None:
    """The slice that loses most against the run without privacy; None where none has a figure."""
    losses = [(part, loss) for part in slices if (loss := summary.price(summary.main, epsilon, part.read)) is not None]
    return max(losses, key=lambda item: item[1].mean) if losses else None


def _verdict(summary: SweepSummary, audits: SweepAudits, epsilon: float) -> Verdict:
    accuracy = summary.figure(summary.main, epsilon)
    price = summary.price(summary.main, epsilon)
    checks = (
        _above_majority(summary, accuracy),
        _cost(price),
        _classes(summary, epsilon),
        _audit(audits, epsilon),
        *_above_alone(summary, accuracy),
    )
    return Verdict(epsilon=epsilon, accuracy=accuracy, price=price, checks=checks)


def _above_majority(summary: SweepSummary, accuracy: Figure | None) -> Check:
    rule, majority = "better than the commonest class", summary.majority
    if accuracy is None or accuracy.low is None or majority is None:
        return Check(rule=rule, passed=None, why="no interval")
    return Check(
        rule=rule, passed=accuracy.low > majority.mean, why=f"at least {text.percent(accuracy.low)} against {text.percent(majority.mean)}"
    )


def _above_alone(summary: SweepSummary, accuracy: Figure | None) -> list[Check]:
    """Nothing where sites were not measured alone."""
    rule, alone = "better than each site alone", summary.alone
    if alone is None:
        return []
    if accuracy is None or accuracy.low is None:
        return [Check(rule=rule, passed=None, why="no interval")]
    return [
        Check(rule=rule, passed=accuracy.low > alone.mean, why=f"at least {text.percent(accuracy.low)} against {text.percent(alone.mean)}")
    ]


def _cost(price: Figure | None) -> Check:
    rule = f"costs at most {points(MOST_COST)}"
    if price is None:
        return Check(rule=rule, passed=None, why="not measured")
    return Check(rule=rule, passed=price.mean <= MOST_COST, why=points(price.mean))


def _classes(summary: SweepSummary, epsilon: float) -> Check:
    rule = f"no class loses over {points(MOST_SLICE)}"
    worst = worst_slice(summary, summary.classes(), epsilon)
    if worst is None:
        return Check(rule=rule, passed=None, why="not measured")
    return Check(rule=rule, passed=worst[1].mean <= MOST_SLICE, why=f"class {text.printable(worst[0].name, 24)}: {points(worst[1].mean)}")


def _audit(audits: SweepAudits, epsilon: float) -> Check:
    rule, found = "no audit refutes it", audits.of(epsilon)
    if not found:
        return Check(rule=rule, passed=None, why="not audited")
    if audits.missed:
        return Check(rule=rule, passed=False, why="a control was not caught")
    strongest = max(found, key=lambda item: item.result.lower_bound)
    silent = "; could not have refuted it" if all(item.result.no_power for item in found) else ""
    return Check(
        rule=rule, passed=not any(item.result.refuted for item in found), why=f"shown: at least {strongest.result.lower_bound:.2f}{silent}"
    )


def points(share: float) -> str:
    """A difference of shares in points.

    >>> points(0.0315), points(-0.01)
    ('3.1 points', '-1.0 points')
    """
    return f"{100 * share:.1f} points"


def best_guess(epsilon: float, delta: float) -> float:
    """Share of right guesses, at even odds beforehand, that nobody can pass who tries to tell whether one record was used.

    From the definition of (ε, δ): false alarms and misses of any test are at least (1 - δ)/(1 + e^ε) when equal, and their mean is never less.

    Source: Kairouz, Oh, Viswanath 2015, "The composition theorem for differential privacy", theorem 2.1.

    >>> round(best_guess(1.0, 0.0), 3)
    0.731
    """
    return 1.0 - (1.0 - delta) / (1.0 + math.exp(min(epsilon, 700.0)))
