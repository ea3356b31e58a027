"""Pictures of a sweep's audits: what attacks showed against what theory allows, and how well members are told from others."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from fedsec.plan.sweep import epsilon_name
from fedsec.report import figures, text
from fedsec.report.sweep_audit import Audited, SweepAudits
from fedsec.report.sweep_drawing import Plot, draw_panels, draw_plot, put_legend
from fedsec.report.sweep_svg import SERIES

_KINDS = {"one-run": "o", "loss-threshold": "s", "lira": "^"}


def plot_audits(audits: SweepAudits, folder: Path) -> Plot | None:
    """What attacks showed against what the theory allows: under the diagonal or it is refuted."""
    finite = [found for found in audits.results if math.isfinite(found.result.audited.epsilon)]
    if not finite:
        return None

    def draw(axes: Axes) -> None:
        figures.heading(axes, "What attacks showed, and what theory allows", "a point above the diagonal refutes the claim")
        xs = sorted({found.result.audited.epsilon for found in finite})
        span = [min(xs) / 1.3, max(xs) * 1.3]
        axes.plot(span, span, color=figures.INK, linewidth=1.2, label="theory")
        for place, kind in enumerate(dict.fromkeys(found.result.kind for found in finite)):
            results = [found.result for found in finite if found.result.kind == kind]
            colour = SERIES[place]
            axes.scatter(
                [r.audited.epsilon for r in results],
                [r.lower_bound for r in results],
                marker=_KINDS[kind],
                s=30,
                color=colour,
                label=f"{kind}: shown with 95% confidence",
                zorder=3,
            )
            guessed = [
                (r.audited.epsilon, r.gaussian_estimate)
                for r in results
                if r.gaussian_estimate is not None and math.isfinite(r.gaussian_estimate)
            ]
            if guessed:
                axes.scatter(
                    [x for x, _ in guessed],
                    [y for _, y in guessed],
                    marker="D",
                    s=26,
                    facecolors="none",
                    edgecolors=colour,
                    label=f"{kind}: Gaussian estimate, no bound",
                )
        best: dict[float, float] = {}
        for found in finite:
            best[found.result.audited.epsilon] = max(found.result.perfect_bound, best.get(found.result.audited.epsilon, 0.0))
        axes.plot(xs, [best[x] for x in xs], color=figures.GREY, linewidth=1, linestyle=(0, (2, 2)), label="a guesser that is always right")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(xs))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: text.decimal(value, 2)))
        axes.set_xlim(*span)
        axes.set_ylim(0, max(*xs, *(found.result.perfect_bound for found in finite)) * 1.08)
        axes.set_xlabel(f"ε of the claim at δ = {finite[0].result.audited.delta:g} (log scale)")
        axes.set_ylabel("ε shown")
        axes.grid(axis="y")
        put_legend(axes)

    lines = (
        (
            f.target,
            f.result.kind,
            f.row.seed,
            f.result.audited.epsilon,
            f.result.audited.delta,
            f.result.lower_bound,
            f.result.gaussian_estimate,
            f.result.perfect_bound,
            f.row.digest[:12],
        )
        for f in audits.results
    )
    header = ("target", "kind", "seed", "audited_epsilon", "audited_delta", "lower_bound", "gaussian_estimate", "perfect_bound", "row")
    return draw_plot("audit", "Audited against theoretical epsilon", folder, (8.6, 4.2), draw, header, lines)


def plot_roc(audits: SweepAudits, folder: Path) -> Plot | None:
    """ROC of membership inference, a panel for each attack, both axes logarithmic: the low false alarm rates are where an attacker works."""
    kinds = [kind for kind in _KINDS if any(found.result.membership.roc for found in _first_of_each(audits, kind))]
    if not kinds:
        return None
    lines = (
        (found.target, found.result.kind, found.row.seed, x, y, found.row.digest[:12])
        for kind in kinds
        for found in _first_of_each(audits, kind)
        for x, y in found.result.membership.roc
    )
    return draw_panels(
        "roc",
        "ROC curves of membership inference, log-log",
        folder,
        (8.6, 0.4 + 3.8 * len(kinds)),
        [partial(_draw_roc, audits, kind) for kind in kinds],
        ("target", "kind", "seed", "false_alarms", "found", "row"),
        lines,
    )


def _draw_roc(audits: SweepAudits, kind: str, axes: Axes) -> None:
    """One attack at every ε, first seed."""
    words = {
        "one-run": "planted canaries, from every update",
        "loss-threshold": "records, by the model's loss",
        "lira": "records, by shadow models",
    }
    figures.heading(axes, f"How well members are told from others: {kind}", f"{words[kind]}; first seed; both axes logarithmic")
    axes.plot([1e-4, 1], [1e-4, 1], color=figures.GREY, linewidth=1, linestyle=(0, (2, 2)), label="tossing a coin")
    for place, found in enumerate(_first_of_each(audits, kind)):
        roc = [(max(x, 1e-3), max(y, 1e-3)) for x, y in found.result.membership.roc]  # zero has no place on a logarithmic axis
        axes.plot(
            [x for x, _ in roc],
            [y for _, y in roc],
            color=SERIES[place % len(SERIES)],
            linewidth=1.6,
            label=epsilon_name(found.target or math.inf),
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(1e-3, 1)
    axes.set_ylim(1e-3, 1.05)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
        axis.set_minor_locator(NullLocator())
    axes.set_xlabel("false alarms")
    axes.set_ylabel("members found")
    axes.grid()
    put_legend(axes)


def _first_of_each(audits: SweepAudits, kind: str) -> list[Audited]:
    first: dict[float | None, Audited] = {}
    for found in audits.results:
        if found.result.kind == kind and found.target not in first:
            first[found.target] = found
    return list(first.values())
