"""A sweep in plain words, for people who decide and do not calculate: what is protected, against whom, what epsilon means, what it costs, what to do.

1. Every number is one of the summary's; each paragraph names the table that it comes from and the rows behind it.
2. A sweep that is not whole says so first. Nothing is said of what did not run.
3. The recommendation follows from the rules of :mod:`fedsec.report.sweep_verdict`, and says which rule decided.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedsec.plan.model import Plan
from fedsec.plan.sweep import epsilon_name
from fedsec.report import text
from fedsec.report.attack_words import listed
from fedsec.report.intervals import FEWEST
from fedsec.report.sweep_audit import SweepAudits
from fedsec.report.sweep_inversion import sentence
from fedsec.report.sweep_summary import Figure, SweepSummary
from fedsec.report.sweep_verdict import MOST_COST, Recommendation, best_guess, points, worst_slice

FRONTIER, CLASSES, SITES, AUDITS, PICTURES, RULES, SETTINGS = "frontier", "classes", "sites", "audits", "pictures", "rules", "settings"
"""Anchors of the page's tables."""


@dataclass(frozen=True, kw_only=True)
class Said:
    """One paragraph.

    Attributes:
        head: what it answers.
        words: the answer.
        source: anchor of the table that its numbers stand in.
        digests: of the rows behind it.
    """

    head: str
    words: str
    source: str
    digests: tuple[str, ...] = ()


def partial_notice(summary: SweepSummary, failed: int) -> str:
    """The page's first sentence where the sweep is not whole; empty where it is."""
    if summary.is_whole:
        return ""
    total = len(summary.grid.points())
    runs = f"{len(summary.missing)} of {text.counted(total, 'run')} are missing" if summary.missing else "all runs ended"
    audits = f", {text.counted(summary.audits_missing, 'audit')} missing" if summary.audits_missing else ""
    why = f" ({failed} failed)" if failed else ""
    return f"PARTIAL REPORT: {runs}{audits}{why}. What follows is about what ended, and recommends nothing. The same command goes on."


def paragraphs(
    summary: SweepSummary, audits: SweepAudits, recommendation: Recommendation, plan: Plan, records: dict[str, Any]
) -> list[Said]:
    """The first page, in order; empty without a row."""
    if not summary.rows:
        return []
    said = [
        _protected(plan, summary),
        _against(plan),
        _meaning(plan, summary, recommendation),
        _cost(summary),
        _who_pays(summary, recommendation),
        _measured(audits),
        _pictured(audits),
        _recommended(summary, recommendation),
        _limits(plan, summary, records),
    ]
    return [paragraph for paragraph in said if paragraph.words]


def _protected(plan: Plan, summary: SweepSummary) -> Said:
    rows = summary.at(summary.main, None)
    clients = rows[0].num_clients if rows else plan.federation.num_clients
    return Said(
        head="What is protected",
        words=(
            f"Every single record (one image, one patient's line) of each of the {clients} participants. Each participant adds noise to what it computes before anything "
            f"leaves the house, so that whatever leaves depends on any one record no more than ε allows. {_site_of(plan)} The protection holds record by record: a person with "
            "several records, or with records in two houses, is protected less."
        ),
        source=SETTINGS,
    )


def _site_of(plan: Plan) -> str:
    if plan.secagg.enabled:
        return "Beside that, the server sees only sums over participants, and a short sketch of each update."
    return (
        "The server of these runs saw each noised update; the figures for accuracy are the same when masks hide them (secure aggregation)."
    )


def _against(plan: Plan) -> Said:
    beside = "" if plan.secagg.enabled else " Masks would hide single updates from the server as well; this guarantee does not need them."
    return Said(
        head="Against whom",
        words=(
            "Everybody who sees what leaves a participant: the server and its staff, the other participants, whoever gets the finished model, and all of them "
            "together, whatever else they know and however much they compute. Not against somebody inside the participant's own house, who has the "
            f"records themselves.{beside}"
        ),
        source=SETTINGS,
    )


def _meaning(plan: Plan, summary: SweepSummary, recommendation: Recommendation) -> Said:
    delta = plan.privacy.delta
    epsilons = [summary.finite[0], summary.finite[-1]] if len(summary.finite) > 1 else list(summary.finite)
    if recommendation.epsilon is not None and recommendation.epsilon not in epsilons:
        epsilons.insert(1, recommendation.epsilon)
    bounds = [f"{_guess(epsilon, delta)} at ε = {epsilon:g}" for epsilon in sorted(epsilons)]
    if not bounds:
        return Said(head="What ε means here", words="", source=FRONTIER)
    return Said(
        head="What ε means here",
        words=(
            "Suppose somebody wants to know whether one certain record was used, and has no idea beforehand. Tossing a coin, they are right in 50 of 100 cases. With all "
            f"that this system ever releases they are right in at most {listed(bounds)}. Smaller ε is safer. The bound is proven and holds against any method, known or "
            "not; what the attacks we ran reached is below."
        ),
        source=FRONTIER,
    )


def _guess(epsilon: float, delta: float) -> str:
    share = 100 * best_guess(epsilon, delta)
    return f"{math.ceil(10 * share) / 10:.1f}" if share < 99.9 else "practically 100"


def _cost(summary: SweepSummary) -> Said:
    reference = summary.figure(summary.main, math.inf)
    found = [(epsilon, figure) for epsilon in summary.finite if (figure := summary.figure(summary.main, epsilon)) is not None]
    if not found:
        return Said(head="What it costs", words="", source=FRONTIER)
    majority = summary.majority
    parts = []
    if reference is not None:
        parts.append(f"Without privacy the model is right in {with_interval(reference)} of cases it has never seen")
    parts.append(
        f"{'with privacy in' if parts else 'The model is right in'} {listed([f'{with_interval(figure)} at ε = {epsilon:g}' for epsilon, figure in found])}"
    )
    own = " of each site" if summary.is_personal else ""
    floor = f" Always naming the commonest answer{own} is right in {text.percent(majority.mean)}." if majority else ""
    if (alone := summary.alone) is not None:
        floor += f" Each site alone, with a model of its own records, no privacy and nothing sent, reaches {text.percent(alone.mean)} on average."
    shown = [figure for _, figure in found] + ([reference] if reference is not None else [])
    return Said(head="What it costs", words=f"{'; '.join(parts)}.{floor} {_how_sure(summary)}", source=FRONTIER, digests=_rows(shown))


def _how_sure(summary: SweepSummary) -> str:
    count = len(summary.grid.seeds)
    if count < FEWEST:
        return f"No interval is given: it takes {FEWEST} seeds, and this sweep has {count}. Differences of a few points may be chance."
    return f"± is the 95% interval over {count} repetitions with other random numbers; it says nothing about other records."


def _who_pays(summary: SweepSummary, recommendation: Recommendation) -> Said:
    epsilon = recommendation.epsilon if recommendation.epsilon is not None else (summary.finite[0] if summary.finite else None)
    if epsilon is None:
        return Said(head="Who pays", words="", source=CLASSES)
    parts, figures = [], []
    worst = worst_slice(summary, summary.classes(), epsilon)
    if worst is not None:
        figures.append(worst[1])
        parts.append(
            f"class {text.printable(worst[0].name, 40)}, found {points(worst[1].mean)}{_spread(worst[1])} less often"
            if worst[1].mean > 0
            else ""
        )
    hit = summary.hardest_hit(epsilon)
    if hit is not None:
        figures.append(hit)
        parts.append(f"the worst-hit site, which loses {points(hit.mean)}{_spread(hit)} on its own test records" if hit.mean > 0 else "")
    parts = [part for part in parts if part]
    if not figures:
        return Said(head="Who pays", words="", source=CLASSES)
    if not parts:
        return Said(
            head="Who pays",
            words=f"At ε = {epsilon:g} no class and no site loses accuracy on average.",
            source=CLASSES,
            digests=_rows(figures),
        )
    return Said(
        head="Who pays",
        words=f"The cost is not shared evenly. At ε = {epsilon:g} hit hardest: {listed(parts)}. Each was picked out of several as the worst, so "
        "part of its loss is chance: the tables show all.",
        source=CLASSES,
        digests=_rows(figures),
    )


def _measured(audits: SweepAudits) -> Said:
    if not audits.results and not audits.controls:
        return Said(head="What attacks reached", words="This sweep was not audited: the bound above is computed, not tried.", source=AUDITS)
    if audits.missed:
        words = "The audit is blind: it did not catch a mechanism that is broken on purpose. What it says of the rest is worth nothing."
        return Said(
            head="What attacks reached", words=words, source=AUDITS, digests=tuple({item.row.digest: None for item in audits.missed})
        )
    if audits.refuted:
        worst = max(audits.refuted, key=lambda item: item.result.lower_bound - item.result.audited.epsilon).result
        words = (
            f"REFUTED: an attack shows that ε is at least {worst.lower_bound:.2f} where {worst.audited.epsilon:.2f} was claimed. The protection is not what it is said to "
            "be. Do not use this before the fault is found."
        )
        return Said(
            head="What attacks reached", words=words, source=AUDITS, digests=tuple({item.row.digest: None for item in audits.refuted})
        )
    private = [item for item in audits.results if item.target is not None and math.isfinite(item.target)]
    strongest = max(private, key=lambda item: item.result.lower_bound, default=None)
    weak = sorted(
        {item.target for item in private if item.target is not None and all(other.result.no_power for other in audits.of(item.target))}
    )
    caught = f"The same attacks caught all {len(audits.controls)} systems that we broke on purpose. " if audits.controls else ""
    power = (
        f" At {listed([f'ε = {epsilon:g}' for epsilon in weak])} no attack of this kind could have shown a fault; its silence there proves nothing."
        if weak
        else ""
    )
    bound = ""
    if strongest is not None:
        at = strongest.result
        bound = f"The strongest attack we ran proves a leak of ε ≥ {at.lower_bound:.2f} where at most {at.audited.epsilon:.2f} was promised (ε at δ = {at.audited.delta:g}, another reading of the same guarantee): no promise was refuted."
    return Said(
        head="What attacks reached",
        words=f"{caught}{bound}{power} An attack that fails proves no safety: the bound above does.",
        source=AUDITS,
        digests=tuple({item.row.digest: None for item in (*audits.controls, *private)}),
    )


def _pictured(audits: SweepAudits) -> Said:
    head = "What an update shows"
    if audits.pictures is None:
        return Said(head=head, words="", source=PICTURES)
    return Said(head=head, words=sentence(audits.pictures.report), source=PICTURES, digests=(audits.pictures.row.digest,))


def _recommended(summary: SweepSummary, recommendation: Recommendation) -> Said:
    chosen = recommendation.chosen
    if chosen is None:
        return Said(head="What we recommend", words=f"Nothing yet: {recommendation.why_none}.{_nearest(recommendation)}", source=RULES)
    smaller = [verdict for verdict in recommendation.verdicts if verdict.epsilon < chosen.epsilon]
    why_not = ""
    if smaller:
        last = smaller[-1]
        failed = [f"{check.rule} ({check.why})" for check in last.checks if check.passed is False]
        why_not = f" ε = {last.epsilon:g} would protect more, but fails: {'; '.join(failed)}."
    audited = chosen.checks[3].passed
    audit = "" if audited else " It has not been audited."
    cost = _cost_of(chosen.price) if chosen.price is not None else ""
    delta = next((row.delta for row in summary.at(summary.main, chosen.epsilon) if row.delta is not None), 0.0)
    if chosen.price is not None and chosen.price.half_width is not None and chosen.price.mean + chosen.price.half_width > MOST_COST:
        cost += f", and these seeds do not rule out {points(chosen.price.mean + chosen.price.half_width)}"
    weak = " On paper this is a weak promise: see what ε means above." if best_guess(chosen.epsilon, delta) > 0.99 else ""
    return Said(
        head="What we recommend",
        words=f"ε = {chosen.epsilon:g}: the strongest protection of this sweep that passes every rule of the table below; {cost}.{why_not}{audit}{weak} "
        "Weigh it with those whose records these are: the rules' limits are a starting point and not a law.",
        source=RULES,
        digests=_rows([figure for figure in (chosen.accuracy, chosen.price) if figure is not None]),
    )


def _cost_of(price: Figure) -> str:
    """In words; a cost below zero is a gain, which short training and clipping can give on few records.

    >>> _cost_of(Figure(values=(0.02, 0.04), rows=()))
    'it costs 3.0 points of accuracy'
    >>> _cost_of(Figure(values=(-0.01, -0.03), rows=()))
    'it costs no accuracy here: with privacy the model is right more often, by 2.0 points'
    """
    if price.mean < 0:
        return f"it costs no accuracy here: with privacy the model is right more often, by {points(-price.mean)}{_spread(price)}"
    return f"it costs {points(price.mean)}{_spread(price)} of accuracy"


def _nearest(recommendation: Recommendation) -> str:
    """Which rules the largest epsilon fails, where it is rules that decide."""
    if "passes all rules" not in recommendation.why_none or not recommendation.verdicts:
        return ""
    last = recommendation.verdicts[-1]
    failed = [f"{check.rule} ({check.why})" for check in last.checks if check.passed is False]
    return f" {epsilon_name(last.epsilon)}, the weakest protection here, fails: {'; '.join(failed)}." if failed else ""


def _limits(plan: Plan, summary: SweepSummary, records: dict[str, Any]) -> Said:
    parts = ["This is a simulation on one machine with public seeds: it measures what privacy costs, and protects nobody by itself."]
    largest = int(records.get("largest_client", 0))
    if largest and plan.privacy.delta * largest >= 1:
        parts.append(
            f"δ = {plan.privacy.delta:g} is too large for {largest} records: a system that publishes a whole record now and then would keep this promise."
        )
    if summary.others:
        parts.append(f"{text.counted(summary.others, 'row')} of other sweeps lie in the same folder and are not shown.")
    parts.append("Trying many settings on private records costs privacy too, and no ε here counts that.")
    return Said(head="What this does not say", words=" ".join(parts), source=SETTINGS)


def with_interval(figure: Figure) -> str:
    """A share with its interval.

    >>> with_interval(Figure(values=(0.8, 0.82, 0.87), rows=()))
    '83.0% ± 9.0'
    """
    return f"{text.percent(figure.mean)}{_spread(figure)}"


def _spread(figure: Figure) -> str:
    if figure.half_width is not None:
        return f" ± {100 * figure.half_width:.1f}"
    return f" ({text.counted(figure.missing, 'seed')} missing)" if figure.missing else ""


def short_answer(summary: SweepSummary, recommendation: Recommendation) -> str:
    """The recommendation in one sentence, for the top of the page."""
    chosen = recommendation.chosen
    if chosen is None or chosen.price is None or chosen.accuracy is None:
        return f"No recommendation: {recommendation.why_none}." if recommendation.why_none else ""
    reference = summary.figure(summary.main, math.inf)
    without = f" against {text.percent(reference.mean)} without privacy" if reference is not None else ""
    return f"Recommended: ε = {chosen.epsilon:g}. The model is right in {with_interval(chosen.accuracy)}{without}."


def _rows(figures: Sequence[Figure]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(digest for figure in figures for digest in figure.digests))
