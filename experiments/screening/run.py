"""Screening under attack: the tables and the picture of docs/screening.md.

``python -m experiments.screening.run [--seeds 5] [--processes 2] [--parts main,extra,...]``

Every row is one setting, attack and defence over seeds; arms of one seed share data, partition, batches and noise. Rows of parts that are not asked for
stay as they are in results.json.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import shlex
import statistics
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from experiments.screening.arms import EXTRA, FLIP_2_NOISE, FLIP_5_NOISE, LABEL_FLIP, MAIN, NOBODY, Arm, fixed
from experiments.screening.lab import Setting
from experiments.screening.noise import false_alarms
from experiments.screening.picture import draw
from experiments.screening.rounds import AT_ONCE, DEFENDED, HONEST_ONLY, PROMPT, UNDEFENDED, Outcome, run
from experiments.seeded_runs import markdown_table, replace_block, student_interval
from fedsec.files import atomic_write_json, atomic_write_text

HERE = Path(__file__).resolve().parent
RESULTS, TABLE, PICTURE = HERE / "results.json", HERE / "table.csv", HERE / "screening.png"
PAGE = HERE.parent.parent / "docs" / "screening.md"
FORMAT = "fedsec/experiment/screening/v1"
SEEDS = 5
AMPLITUDES = (2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 15.0, 20.0)

SCREENED = (DEFENDED, AT_ONCE)
ALL = (UNDEFENDED, *SCREENED)


class Cell(NamedTuple):
    """One row to be: a part of the experiment, a setting, an attack, a defence."""

    part: str
    setting: Setting
    arm: Arm
    defence: str


def cells_of(part: str) -> Iterator[Cell]:
    """All rows of a part."""
    yield from (Cell(part, *rest) for rest in _PARTS[part]())


def _main() -> Iterator[tuple[Setting, Arm, str]]:
    for epsilon in (8.0, 2.0):
        for alpha in (1.0, 0.3):
            setting = Setting(epsilon=epsilon, alpha=alpha)
            yield setting, FLIP_5_NOISE, HONEST_ONLY
            yield from ((setting, arm, defence) for arm in MAIN for defence in ALL)


def _extra() -> Iterator[tuple[Setting, Arm, str]]:
    for setting in (Setting(), Setting(alpha=0.3), Setting(epsilon=2.0)):
        arms = [arm for arm in EXTRA if arm.name != "adaptive" or setting.alpha == 1.0]
        yield from ((setting, arm, defence) for arm in arms for defence in ALL)


def _rows() -> Iterator[tuple[Setting, Arm, str]]:
    for num_rows in (32, 64, 128, 256, 0):
        for alpha in (1.0, 0.3):
            arms = (NOBODY, FLIP_5_NOISE, FLIP_2_NOISE, fixed(6.0, own_noise=True), LABEL_FLIP)
            yield from ((Setting(num_rows=num_rows, alpha=alpha), arm, defence) for arm in arms for defence in SCREENED)


def _honest() -> Iterator[tuple[Setting, Arm, str]]:
    for epsilon in (8.0, 2.0):
        for num_rows in (128, 256, 0):
            base = Setting(epsilon=epsilon, num_rows=num_rows)
            for alpha in (1.0, 0.3, 0.1):
                settings = [replace(base, alpha=alpha, per_client=sizes) for sizes in (False, True)]
                yield from ((setting, NOBODY, defence) for setting in settings for defence in SCREENED)
            large = replace(base, per_client=True, large_share=0.55)
            yield from ((large, arm, defence) for arm in (NOBODY, FLIP_5_NOISE) for defence in ALL)


def _sweep() -> Iterator[tuple[Setting, Arm, str]]:
    for epsilon in (8.0, 2.0):
        yield from ((Setting(epsilon=epsilon), NOBODY, defence) for defence in ALL)
        for amplitude in AMPLITUDES:
            yield from ((Setting(epsilon=epsilon), fixed(amplitude, own_noise=True), defence) for defence in ALL)


def _pace() -> Iterator[tuple[Setting, Arm, str]]:
    extra = {arm.name: arm for arm in EXTRA}
    arms = (NOBODY, fixed(6.0, own_noise=True), fixed(10.0, own_noise=True), extra["orthogonal noise"], extra["frame 12 + noise"])
    for num_rows in (128, 256):
        for epsilon in (8.0, 2.0):
            for alpha in (1.0, 0.3, 0.1):
                setting = Setting(epsilon=epsilon, alpha=alpha, num_rows=num_rows)
                yield from ((setting, arm, defence) for arm in arms for defence in (DEFENDED, PROMPT, AT_ONCE))


_PARTS = {"main": _main, "extra": _extra, "rows": _rows, "honest": _honest, "sweep": _sweep, "pace": _pace}
PARTS = tuple(_PARTS)


def _outcome(part: str, index: int, seed: int) -> Outcome:
    """One run; a worker finds its cell by number, since arms hold functions."""
    cell = list(cells_of(part))[index]
    return run(replace(cell.setting, seed=seed), cell.arm, cell.defence)


def row_of(cell: Cell, outcomes: list[Outcome]) -> dict[str, Any]:
    """What is kept of a cell."""
    caught, missed = sum(o.caught for o in outcomes), sum(o.missed for o in outcomes)
    rejected, kept = sum(o.honest_rejected for o in outcomes), sum(o.honest_kept for o in outcomes)
    by_rule = sum(o.honest_by_rule for o in outcomes)
    suspected = [o.first_suspected for o in outcomes if o.first_suspected is not None]
    return {
        "part": cell.part,
        "setting": {name: value for name, value in asdict(cell.setting).items() if name != "seed"},
        "name": cell.setting.name,
        "attack": cell.arm.name,
        "defence": cell.defence,
        "accuracies": [round(o.accuracy, 4) for o in outcomes],
        "precision": caught / (caught + rejected) if caught + rejected and cell.arm.craft else None,
        "recall": caught / (caught + missed) if caught + missed else None,
        "honest_rejected": rejected / (rejected + kept) if rejected + kept else None,
        "honest_rejected_by_rule": by_rule / (rejected + kept) if rejected + kept else None,
        "worst_honest": max(o.worst_honest for o in outcomes),
        "failed_rounds": sum(o.failed_rounds for o in outcomes),
        "first_suspected": statistics.fmean(suspected) if suspected and cell.defence not in (UNDEFENDED, HONEST_ONLY) else None,
        "honest_suspects": sum(o.honest_suspects for o in outcomes),
        "facts_of_last_round": {name: round(value, 2) for name, value in outcomes[0].facts.items()} if cell.part == "main" else {},
    }


def run_part(part: str, seeds: int, pool: ProcessPoolExecutor) -> list[dict[str, Any]]:
    """All rows of a part."""
    cells = list(cells_of(part))
    jobs = [(part, index, seed) for index in range(len(cells)) for seed in range(1, seeds + 1)]
    outcomes = list(pool.map(_outcome, *zip(*jobs, strict=True), chunksize=seeds))
    rows = []
    for index, cell in enumerate(cells):
        row = row_of(cell, outcomes[index * seeds : (index + 1) * seeds])
        print(f"{part}: {row['name']}, {row['attack']}, {row['defence']}: {student_interval(row['accuracies'])}", file=sys.stderr)
        rows.append(row)
    return rows


def find(rows: Iterable[dict[str, Any]], part: str, name: str, attack: str, defence: str) -> dict[str, Any] | None:
    """The row, if it is there."""
    return next((r for r in rows if (r["part"], r["name"], r["attack"], r["defence"]) == (part, name, attack, defence)), None)


def _loss(row: dict[str, Any], reference: dict[str, Any]) -> str:
    """Points lost against the run without attack and defence of the same seeds."""
    differences = [100 * (b - a) for a, b in zip(row["accuracies"], reference["accuracies"], strict=True)]
    interval = student_interval(differences)
    return f"{interval.mean:.1f}" + (f" ± {interval.half_width:.1f}" if interval.half_width is not None else "")


def _share(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def attack_table(rows: list[dict[str, Any]], part: str, name: str) -> str:
    """Attacks of one setting: accuracies, points lost, precision, recall, honest rejection."""
    header = [
        name, "undefended", "defended", "points lost", "P", "R", "honest rejected", "at once", "R at once", "first suspected",
    ]  # fmt: skip
    reference = find(rows, "main", name, NOBODY.name, UNDEFENDED)
    lines = []
    for attack in dict.fromkeys(row["attack"] for row in rows if row["part"] == part and row["name"] == name):
        found = {defence: find(rows, part, name, attack, defence) for defence in ALL}
        undefended, defended, at_once = (found[defence] for defence in ALL)
        if undefended is None or defended is None or at_once is None or reference is None:
            continue
        lines.append(
            [
                attack,
                str(student_interval(undefended["accuracies"])),
                str(student_interval(defended["accuracies"])),
                _loss(defended, reference),
                _share(defended["precision"]),
                _share(defended["recall"]),
                f"{100 * defended['honest_rejected']:.2f} %",
                f"{statistics.fmean(at_once['accuracies']):.3f}",
                _share(at_once["recall"]),
                _share(at_once["first_suspected"], 1),
            ]
        )
    honest = find(rows, part, name, FLIP_5_NOISE.name, HONEST_ONLY)
    if honest is not None:
        lines.append(["the 16 honest alone", str(student_interval(honest["accuracies"])), *[""] * 8])
    return markdown_table(header, lines)


def small_table(rows: list[dict[str, Any]], part: str) -> str:
    """One line a row: for sketch sizes and honest rejection."""
    header = ["", "attack", "defence", "accuracy", "P", "R", "honest rejected", "worst client", "honest suspects"]
    lines = [
        [
            row["name"], row["attack"], row["defence"], f"{statistics.fmean(row['accuracies']):.3f}", _share(row["precision"]),
            _share(row["recall"]), f"{100 * (row['honest_rejected'] or 0):.2f} %", f"{100 * row['worst_honest']:.0f} %", str(row["honest_suspects"]),
        ]
        for row in rows
        if row["part"] == part and row["defence"] != UNDEFENDED
    ]  # fmt: skip
    return markdown_table(header, lines)


def page_of(content: dict[str, Any]) -> str:
    """All tables of the README."""
    rows, parts = content["rows"], []
    names = list(dict.fromkeys(row["name"] for row in rows if row["part"] == "main"))
    parts += [attack_table(rows, "main", name) for name in names]
    parts.append("### More attacks, made against this rule")
    parts += [attack_table(rows, "extra", name) for name in dict.fromkeys(row["name"] for row in rows if row["part"] == "extra")]
    parts += ["### Sketch sizes", small_table(rows, "rows"), "### Honest clients", small_table(rows, "honest")]
    if any(row["part"] == "pace" for row in rows):
        parts += ["### How fast to act on a suspicion", small_table(rows, "pace")]
    parts += ["### A push of growing amplitude", small_table(rows, "sweep")]
    alarms = [
        [str(a["clients"]), str(a["columns"]), f"{a['edge']:.0f}", f"{a['top_99']:.0f}", f"{100 * a['over_edge']:.2f} %",
         f"{100 * a['gate']:.3f} %", f"{100 * a['rejected']:.3f} %", f"{100 * a['suspected']:.3f} %"]
        for a in content["noise"]
    ]  # fmt: skip
    header = [
        "clients",
        "columns",
        "edge",
        "99 % of noise",
        "rounds over it",
        "clients outside the gate",
        "clients rejected",
        "suspect in 20 rounds",
    ]
    parts += ["### Pure noise", markdown_table(header, alarms)]
    return "\n\n".join(parts)


def short_table(rows: list[dict[str, Any]]) -> str:
    """For docs/screening.md: undefended → defended accuracy of every attack in the four main settings, and P and R in the first."""
    names = list(dict.fromkeys(row["name"] for row in rows if row["part"] == "main"))
    lines = []
    for part in ("main", "extra"):
        for attack in dict.fromkeys(row["attack"] for row in rows if row["part"] == part):
            cells = []
            for name in names:
                before, after = (find(rows, part, name, attack, defence) for defence in (UNDEFENDED, DEFENDED))
                found = before is not None and after is not None
                cells.append(f"{_mean(before):.2f} → {_mean(after):.2f}" if found else "")  # type: ignore[arg-type]
            first = find(rows, part, names[0], attack, DEFENDED)
            lines.append([attack, *cells, _share(first["precision"]) if first else "", _share(first["recall"]) if first else ""])
    alone = [find(rows, "main", name, FLIP_5_NOISE.name, HONEST_ONLY) for name in names]
    lines.append(["the 16 honest alone", *(f"{_mean(row):.2f}" if row else "" for row in alone), "", ""])
    return markdown_table(["undefended → defended", *(name.removesuffix(", k = 128") for name in names), "P", "R"], lines)


def _mean(row: dict[str, Any]) -> float:
    return statistics.fmean(row["accuracies"])


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Everything as CSV."""
    columns = [
        "part", "name", "attack", "defence", "precision", "recall", "honest_rejected", "honest_rejected_by_rule", "worst_honest",
        "failed_rounds", "first_suspected", "honest_suspects",
    ]  # fmt: skip
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*columns, "accuracy", "accuracies"])
    for row in rows:
        mean = f"{statistics.fmean(row['accuracies']):.4f}"
        writer.writerow([*(row[column] for column in columns), mean, " ".join(map(str, row["accuracies"]))])
    atomic_write_text(path, out.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="seeds 1..N (default: 5)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="worker processes")
    parser.add_argument("--parts", default=",".join((*PARTS, "noise")), help="parts to run anew, with commas between")
    arguments = parser.parse_args()
    content: dict[str, Any] = {"format": FORMAT, "rows": [], "noise": []}
    if RESULTS.exists():
        content = json.loads(RESULTS.read_text(encoding="utf-8"))
    content["command"] = shlex.join(["python", "-m", "experiments.screening.run", "--seeds", str(arguments.seeds)])
    wanted = arguments.parts.split(",")
    with ProcessPoolExecutor(arguments.processes) as pool:
        for part in PARTS:
            if part in wanted:
                fresh = run_part(part, arguments.seeds, pool)
                content["rows"] = [row for row in content["rows"] if row["part"] != part] + fresh
                atomic_write_json(RESULTS, content)
    if "noise" in wanted:
        content["noise"] = [false_alarms(*size) for size in ((8, 128), (20, 32), (20, 128), (20, 256), (20, 650), (50, 128), (100, 256))]
    content["rows"].sort(key=lambda row: PARTS.index(row["part"]))
    atomic_write_json(RESULTS, content)
    write_table(TABLE, content["rows"])
    draw(content["rows"], PICTURE)
    replace_block(HERE / "README.md", page_of(content))
    replace_block(PAGE, short_table(content["rows"]))


if __name__ == "__main__":
    main()
