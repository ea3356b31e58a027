"""From rows to figures: the summary, the tables of the page, CSV and PNG. Nothing here is typed in by hand, so page and results cannot drift apart.

1. The worst case of a rule is taken in each seed over the attacks, and then averaged over seeds.
2. Intervals are 95 %, Student's t over seeds: they say how much a figure moves with the seed.
3. A figure whose runs are not all there is left out.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.byzantine.figure import draw
from experiments.byzantine.grid import (
    CAREFUL,
    CAREFUL_DRAWS,
    DISGUISED,
    FLANDERS_BEST,
    FLANDERS_COLUMNS,
    FLANDERS_RULES,
    N17_RULES,
    PARTS,
    SKEW_ALPHAS,
    SKEW_RULES,
    WORST_OVER,
    runs_of,
)
from experiments.seeded_runs import ROOT, markdown_table, replace_block, student_interval
from fedsec.files import atomic_write_bytes

SKETCH_ROWS = {part: runs_of(part, 1)[0].sketch_rows for part in PARTS}
PAGE = ROOT / "docs" / "robustness-figures.md"

Row = dict[str, Any]
Figure = dict[str, Any]


def summary_of(rows: Sequence[Row]) -> dict[str, Any]:
    """The figures of all tables as plain values."""
    return {"n17": _n17(rows), "flanders": _flanders(rows), "skew": _skew(rows)}


def page(summary: dict[str, Any]) -> str:
    """All tables, in Markdown, each under a line that says what it is."""
    parts = [
        "**A. n = 17, f = 4, MNIST, Dirichlet 0.1.** Test accuracy; worst: over the four attacks, in each seed.",
        n17_table(summary["n17"]),
        "**Recall and false alarms of the same runs.** Share of attackers' updates that the rule rejects or flags, and of honest ones.",
        recall_table(summary["n17"]),
        "**Colluders who do not look alike**: each adds noise as long as an honest residual; the search counts it in.",
        disguised_table(summary["n17"]),
        f"**Attackers who average their search over {CAREFUL_DRAWS} sketches of their own**, and so aim lower and are found less.",
        careful_table(summary["n17"]),
        "**B. FLANDERS's setting: 100 clients, 20 attackers, MNIST, Dirichlet 0.5, 50 rounds.** The worse of our two forms of an attack, where there are two.",
        flanders_table(summary["flanders"]),
        "**Each form of attack by itself**: mean over the last 10 rounds (highest accuracy from round 10 on).",
        forms_table(summary["flanders"]),
        "**C. Honest clients rejected or flagged with no attacker**, n = 20, f = 5, from round 2 on.",
        skew_table(summary["skew"]),
    ]
    return "\n\n".join(parts)


def name_of(rule: str, mode: str, sketch_rows: int) -> str:
    """A rule as the tables name it."""
    return rule + (f" ({sketch_rows}-number sketches)" if mode == "sketch" else "")


def n17_table(lines: Sequence[dict[str, Any]]) -> str:
    """Rule × attack."""
    header = ["rule", "no attack", "opt. ALIE", "opt. IPM", "mimic", "label flip", "worst"]
    return markdown_table(header, [[line["name"], *(_shown(line[attack]) for attack in ("none", *WORST_OVER, "worst"))] for line in lines])


def recall_table(lines: Sequence[dict[str, Any]]) -> str:
    """Rule × recall under each attack, and honest rejection without one."""
    header = ["rule", "recall: opt. ALIE", "opt. IPM", "mimic", "label flip", "honest, no attack"]
    cells = [
        [line["name"], *(_shown(line["recall"][attack], percent=True) for attack in WORST_OVER), _shown(line["false"], percent=True)]
        for line in lines
    ]
    return markdown_table(header, cells)


def disguised_table(lines: Sequence[dict[str, Any]]) -> str:
    """Rule × attacks of colluders with noise of their own."""
    cells = [[line["name"], *(_shown(line["disguised"][attack]) for attack in WORST_OVER[:2])] for line in lines if line["disguised"]]
    return markdown_table(["rule", "opt. ALIE", "opt. IPM"], cells)


def careful_table(lines: Sequence[dict[str, Any]]) -> str:
    """Rule × attacks that do not trust one sketch."""
    keys = [f"{attack}{look}" for attack in WORST_OVER[:2] for look in ("", " disguised")]
    cells = [[line["name"], *(_shown(line["careful"][key]) for key in keys)] for line in lines if line["careful"]]
    return markdown_table(["rule", "opt. ALIE", "opt. ALIE, own noise", "opt. IPM", "opt. IPM, own noise"], cells)


def flanders_table(lines: Sequence[dict[str, Any]]) -> str:
    """Rule × their columns, beside their best."""
    header = ["rule", "no attack", *FLANDERS_COLUMNS]
    theirs = [
        "FLANDERS, best rule of each column, maximum over rounds, one seed",
        "0.87",
        *(f"{FLANDERS_BEST[column]:.2f}" for column in FLANDERS_COLUMNS),
    ]
    cells = [[line["name"], _shown(line["none"]), *(_shown(line["columns"][column]) for column in FLANDERS_COLUMNS)] for line in lines]
    return markdown_table(header, [theirs, *cells])


def forms_table(lines: Sequence[dict[str, Any]]) -> str:
    """Rule × form of attack."""
    forms = [form for forms in FLANDERS_COLUMNS.values() for form in forms]
    cells = [[line["name"], *(f"{_shown(line['forms'][form])} ({_shown(line['best'][form])})" for form in forms)] for line in lines]
    return markdown_table(["rule", *forms], cells)


def skew_table(lines: Sequence[dict[str, Any]]) -> str:
    """Rule × skew: share rejected, worst client, accuracy."""
    header = ["rule", *(f"Dirichlet {alpha:g}" for alpha in SKEW_ALPHAS), "accuracy at 0.5"]
    cells = [
        [line["name"], *(_shown(line[f"{alpha:g}"], percent=True) for alpha in SKEW_ALPHAS), _shown(line["accuracy"])] for line in lines
    ]
    return markdown_table(header, cells)


def write_all(summary: dict[str, Any], folder: Path) -> None:
    """Write CSV and PNG beside the results, and the tables into the page."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["part", "rule", "what", "mean", "half_width_95", "values"])
    writer.writerows(_flat(summary))
    atomic_write_bytes(folder / "results.csv", table.getvalue().encode())
    atomic_write_bytes(folder / "results.png", draw(summary))
    replace_block(PAGE, page(summary))


# --- Parts ------------------------------------------------------------------------------------------------------------------------


def _n17(rows: Sequence[Row]) -> list[dict[str, Any]]:
    lines = []
    for rule, mode in N17_RULES:
        of_rule = _select(rows, "n17", rule, mode)
        plain = {attack: [row for row in of_rule if _is(row, attack)] for attack in ("none", *WORST_OVER)}
        line: dict[str, Any] = {"name": name_of(rule, mode, SKETCH_ROWS["n17"]), "rule": rule, "mode": mode}
        line |= {attack: _figure(runs, "accuracy") for attack, runs in plain.items()}
        line["worst"] = _worst([plain[attack] for attack in WORST_OVER])
        line["recall"] = {attack: _figure(plain[attack], "recall") for attack in WORST_OVER}
        line["false"] = _figure(plain["none"], "honest_rate")
        hidden = (rule, mode) in DISGUISED
        line["disguised"] = (
            {a: _figure([row for row in of_rule if _is(row, a, disguised=True)], "accuracy") for a in WORST_OVER[:2]} if hidden else {}
        )
        line["careful"] = _careful(of_rule) if (rule, mode) in CAREFUL else {}
        lines.append(line)
    return lines


def _careful(of_rule: Sequence[Row]) -> dict[str, Figure | None]:
    picks = {f"{attack}{' disguised' * disguised}": (attack, disguised) for attack in WORST_OVER[:2] for disguised in (False, True)}
    return {
        key: _figure([row for row in of_rule if _is(row, attack, disguised=disguised, draws=CAREFUL_DRAWS)], "accuracy")
        for key, (attack, disguised) in picks.items()
    }


def _flanders(rows: Sequence[Row]) -> list[dict[str, Any]]:
    lines = []
    for rule, mode in (("mean", "open"), *FLANDERS_RULES):
        of_rule = _select(rows, "flanders", rule, mode)
        forms = {form: [row for row in of_rule if _is(row, form)] for forms in FLANDERS_COLUMNS.values() for form in forms}
        lines.append(
            {
                "name": name_of(rule, mode, SKETCH_ROWS["flanders"]),
                "rule": rule,
                "mode": mode,
                "none": _figure([row for row in of_rule if _is(row, "none")], "accuracy"),
                "columns": {column: _worst([forms[form] for form in names]) for column, names in FLANDERS_COLUMNS.items()},
                "forms": {form: _figure(runs, "accuracy") for form, runs in forms.items()},
                "best": {form: _figure(runs, "best") for form, runs in forms.items()},
            }
        )
    return lines


def _skew(rows: Sequence[Row]) -> list[dict[str, Any]]:
    lines = []
    for rule, mode in SKEW_RULES:
        of_rule = _select(rows, "skew", rule, mode)
        by_alpha = {f"{alpha:g}": [row for row in of_rule if row["settings"]["alpha"] == alpha] for alpha in SKEW_ALPHAS}
        line: dict[str, Any] = {"name": name_of(rule, mode, SKETCH_ROWS["skew"]), "rule": rule, "mode": mode}
        lines.append(
            line
            | {alpha: _figure(runs, "honest_rate") for alpha, runs in by_alpha.items()}
            | {"accuracy": _figure(by_alpha["0.5"], "accuracy")}
        )
    return lines


def _select(rows: Sequence[Row], part: str, rule: str, mode: str) -> list[Row]:
    wanted = {"part": part, "rule": rule, "mode": mode}
    return [row for row in rows if wanted.items() <= row["settings"].items()]


def _is(row: Row, attack: str, *, disguised: bool = False, draws: int = 1) -> bool:
    seen = row["settings"]
    return bool(seen["attack"] == attack and seen["disguised"] is disguised and seen.get("draws", 1) == draws)


def _figure(runs: Sequence[Row], key: str) -> Figure | None:
    """Mean and interval over seeds; None where nothing was measured."""
    values = [row["result"][key] for row in sorted(runs, key=_seed)]
    return _of_values(values) if values and all(value is not None for value in values) else None


def _worst(groups: Sequence[Sequence[Row]]) -> Figure | None:
    """Rule 1 of this module; None where an attack lacks a seed that another one has."""
    by_seed = [{_seed(row): row["result"]["accuracy"] for row in runs} for runs in groups]
    seeds = sorted(by_seed[0])
    if not seeds or any(sorted(one) != seeds for one in by_seed):
        return None
    return _of_values([min(one[seed] for one in by_seed) for seed in seeds])


def _seed(row: Row) -> int:
    return int(row["settings"]["seed"])


def _of_values(values: list[float]) -> Figure:
    interval = student_interval(values)
    return {"mean": interval.mean, "half_width": interval.half_width, "values": values}


def _shown(figure: Figure | None, *, percent: bool = False) -> str:
    if figure is None:
        return "–"
    write: Callable[[float], str] = (lambda value: f"{100 * value:.1f}") if percent else (lambda value: f"{value:.3f}")
    spread = "" if figure["half_width"] is None else f" ± {write(figure['half_width'])}"
    return f"{write(figure['mean'])}{spread}{' %' if percent else ''}"


def _flat(summary: dict[str, Any]) -> Iterable[list[Any]]:
    for part, lines in summary.items():
        for line in lines:
            for what, figure in _figures(line):
                half = "" if figure["half_width"] is None else f"{figure['half_width']:.6f}"
                yield [part, line["name"], what, f"{figure['mean']:.6f}", half, " ".join(f"{value:.6f}" for value in figure["values"])]


def _figures(line: dict[str, Any], before: str = "") -> Iterable[tuple[str, Figure]]:
    for key, value in line.items():
        if isinstance(value, dict):
            yield from [(before + key, value)] if "mean" in value else _figures(value, f"{before}{key} ")
