"""A grid of attacks and rules in plain words: what was run, what is missing, which rule is best, which attack hurts most, what a rule costs.

1. Every number is one of the summary's. Nothing is said of what did not run.
2. A grid that is not whole says so first, and calls its worst cases upper bounds.
3. Without three seeds there is no interval, and the words say what that means.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedsec.plan.robust import UNDEFENDED
from fedsec.report import text
from fedsec.report.attack_summary import Figure, Summary
from fedsec.report.intervals import FEWEST


def sentences(summary: Summary, *, failed: int, most_suspects: int) -> list[str]:
    """The report's first paragraph, a sentence each.

    Args:
        summary: of the grid.
        failed: cells that failed in this session.
        most_suspects: f, the most clients that a rule of this plan may reject as suspects.
    """
    said = [_what_ran(summary)]
    if summary.missing:
        said.append(_what_is_missing(summary, failed))
    best = summary.best_rules()
    if best:
        said += [
            _best_rule(summary, best),
            _runners_up(summary, best),
            _worst_attack(summary),
            _price(summary, best[0].rule),
            _attack_success(summary),
        ]
    said += [_too_many(summary, most_suspects), _how_sure(summary)]
    return [sentence for sentence in said if sentence]


def shares(fractions: Sequence[float]) -> str:
    """Shares of attackers, in per cent.

    >>> shares((0.1, 0.25))
    '10% or 25%'
    """
    return " or ".join(f"{100 * fraction:g}%" for fraction in fractions)


def listed(names: Sequence[str]) -> str:
    """Names in a row.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _what_ran(summary: Summary) -> str:
    grid = summary.grid
    clients = f" of {summary.rows[0].num_clients} clients" if summary.rows else ""
    return (
        f"{text.counted(len(grid.attacks), 'attack')} by {shares(grid.fractions)}{clients}, against {text.counted(len(grid.rules), 'rule')}, "
        f"with {text.counted(len(grid.seeds), 'seed')}: {text.counted(len(grid.cells()), 'run')}, those without an attack included."
    )


def _what_is_missing(summary: Summary, failed: int) -> str:
    why = f", {failed} of them failed" if failed else ""
    return (
        f"This grid is not complete: {len(summary.missing)} of {len(summary.grid.cells())} runs are missing{why}. "
        "What follows is about the runs that ended; a worst case can only get lower."
    )


def _best_rule(summary: Summary, best: Sequence[Figure]) -> str:
    first = best[0]
    names = listed([figure.rule for figure in best])
    at_most = "at most " if first.missing else ""
    undefended = summary.worst(UNDEFENDED)
    without = ""
    if undefended is not None:
        least = "at most " if undefended.missing else ""
        without = f"; without a rule ({UNDEFENDED}) it is {least}{text.percent(undefended.accuracy)}, {_under(summary, undefended)}"
    if first.rule == UNDEFENDED:
        return (
            f"No rule kept more in its worst case than {UNDEFENDED}, which rejects nobody: "
            f"{at_most}{text.percent(first.accuracy)}, {_under(summary, first)}."
        )
    verb = "keeps" if len(best) == 1 else "keep"
    return f"In the worst case {names} {verb} most: accuracy is {at_most}{text.percent(first.accuracy)}, {_under(summary, first)}{without}."


def _runners_up(summary: Summary, best: Sequence[Figure]) -> str:
    """Rules that the seeds do not tell from the best one; nothing where there are no intervals to tell it by."""
    first = best[0]
    if first.half_width is None:
        return ""
    low = first.accuracy - first.half_width
    others = [figure for rule in summary.grid.rules if (figure := summary.worst(rule)) is not None and figure not in best]
    close = [figure.rule for figure in others if figure.half_width is not None and figure.accuracy + figure.half_width >= low]
    return f"The intervals of {listed([first.rule, *close])} overlap: these seeds do not tell them apart." if close else ""


def _under(summary: Summary, figure: Figure) -> str:
    several = len(summary.grid.fractions) > 1 and figure.fraction is not None
    return f"under {figure.attack}{f' by {shares([figure.fraction])}' if several and figure.fraction is not None else ''}"


def _worst_attack(summary: Summary) -> str:
    damage = {attack: lost for attack in summary.grid.attacks if (lost := summary.damage(attack)) is not None}
    if not damage:
        return ""
    worst = max(damage, key=lambda attack: damage[attack])
    whom = "on average over the rules that reject" if len(summary.grid.rules) > 1 else f"from {UNDEFENDED}"
    if damage[worst] <= 0:
        return f"No attack took any accuracy {whom}."
    return f"The attack that hurts most is {worst}: it takes {_points(damage[worst])} of accuracy {whom}."


def _price(summary: Summary, rule: str) -> str:
    clean, mean = summary.no_attack(rule), summary.no_attack(UNDEFENDED)
    if clean is None:
        return ""
    alone = f"With nobody attacking, {rule} reaches {text.percent(clean.accuracy)}"
    if rule == UNDEFENDED or mean is None:
        return f"{alone}."
    cost = mean.accuracy - clean.accuracy
    says = f"costs {_points(cost)}" if cost > 0 else "costs nothing"
    rejected = clean.mean_of(lambda row: row.honest_rate)
    honest = f", and leaves out {text.percent(rejected)} of the honest updates" if rejected else ""
    return f"{alone} and {UNDEFENDED} {text.percent(mean.accuracy)}: the rule {says}{honest}."


def _attack_success(summary: Summary) -> str:
    aims = sorted({row.attack for row in summary.rows if row.attack_success is not None}, key=summary.grid.attacks.index)
    if not aims:
        return ""
    return f"How far {listed(aims)} reached an aim of its own stands in the table of rejections: accuracy alone does not show it."


def _too_many(summary: Summary, most_suspects: int) -> str:
    crews = {row.num_attackers for row in summary.rows if row.num_attackers is not None and row.num_attackers > most_suspects}
    return (
        f"With {listed([str(crew) for crew in sorted(crews)])} attackers there are more than the {most_suspects} clients that a rule may suspect here."
        if crews
        else ""
    )


def _how_sure(summary: Summary) -> str:
    count = len(summary.grid.seeds)
    if count >= FEWEST:
        return (
            f"± is half of the 95% interval over {count} seeds (Student's t): it says how much a mean moves with the seed, nothing about other "
            "data, and not that a worst case was picked out of several."
        )
    return (
        f"No interval is given: it takes {FEWEST} seeds, and this grid has {count}. Differences of a few points between runs may be chance."
    )


def _points(share: float) -> str:
    return f"{100 * share:.1f} points"
