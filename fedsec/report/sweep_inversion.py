"""What gradient inversion made of a sweep's updates: pictures, a table beside the blind guess, and the sentence for the first page.

1. For each view and ε the attack that gains most is shown: chosen afterwards, in the attacker's favour. The CSV has all of them.
2. The blind guess is that of the same knowledge: the mean picture, or that of the class for who is told the class. A gain over it is a mean of
   differences victim by victim, with Student's interval over the victims of all seeds.
3. An attack that answers with the blind guess has shown nothing of a victim, however like a picture its answer looks.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from fedsec.privacy.auditing.inversion_results import CLASS_MEAN, TOLD, InversionLine, InversionReport
from fedsec.report import figures, text
from fedsec.report.intervals import half_width
from fedsec.report.sweep_audit import SweepAudits
from fedsec.report.sweep_drawing import Plot, draw_plot

COPY_DB = 30.0
"""Peak signal-to-noise ratio from which on a picture counts as a copy."""
VISIBLE_DB = 1.0
"""A gain under this many decibels is nothing that one could see, however certain it is."""
NO_BETTER, HARDLY = "no better than the blind guess", "hardly more than the blind guess"
_GAP = 1  # pixels between pictures


def view_name(line: InversionLine) -> str:
    """What the attacker of a line has, in words."""
    if line.sees == "nothing":
        return "the class alone: its mean picture" if line.attack == CLASS_MEAN else "nothing: the mean public picture"
    if math.isinf(line.epsilon):
        return "the update in clear" if line.sees == "update" else "the sum (secure aggregation)"
    return f"the update, ε = {line.epsilon:g}" if line.sees == "update" else f"the sum, ε = {line.epsilon:g} (both)"


def verdict_of(report: InversionReport, line: InversionLine) -> str:
    """What a line shows of its victims."""
    if line.sees == "nothing":
        return "the blind guess"
    if line.mean >= COPY_DB:
        return "copied"
    gain, half = report.mean_gain(line), half_width(report.gain(line))
    if half is None or gain <= half:
        return NO_BETTER
    return HARDLY if gain < VISIBLE_DB else "more than the blind guess"


def table_lines(report: InversionReport) -> list[dict[str, Any]]:
    """The strongest attack of each view, as cells."""
    return [
        {
            "view": view_name(line),
            "attack": f"{line.attack}{' (told the class)' if line.attack in TOLD and 'known' not in line.attack else ''}",
            "psnr": _spread(line.psnr),
            "best": f"{max(line.psnr):.1f}",
            "gain": "" if line.sees == "nothing" else f"{round(report.mean_gain(line), 1) + 0.0:+.1f}{_half(report.gain(line))}",
            "ssim": f"{statistics.fmean(line.ssim):.2f}",
            "label": _label(report, line),
            "verdict": verdict_of(report, line),
            "bad": verdict_of(report, line) in ("copied", "more than the blind guess"),
        }
        for line in report.strongest()
    ]


def _label(report: InversionReport, line: InversionLine) -> str:
    """Of the attacks of the same view that guess the class, the one that is right most often."""
    shares = [
        other.label_share
        for other in report.lines
        if (other.sees, other.epsilon) == (line.sees, line.epsilon) and other.label_share is not None
    ]
    return text.percent(max(shares)) if shares else "–"


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.1f}{_half(values)}"


def _half(values: Sequence[float]) -> str:
    half = half_width(values)
    return "" if half is None else f" ± {half:.1f}"


def sentence(report: InversionReport) -> str:
    """What an attacker made of pictures, for people who decide; empty where the sweep has no such figures."""
    best = report.strongest()
    clear = next((line for line in best if line.sees == "update" and math.isinf(line.epsilon)), None)
    summed = next((line for line in best if line.sees == "sum" and math.isinf(line.epsilon)), None)
    private = [line for line in best if math.isfinite(line.epsilon) and line.sees != "nothing"]
    said = []
    if clear is not None and verdict_of(report, clear) == "copied":
        said.append(
            "Whoever saw one participant’s first update without this protection, made of one picture, could compute the picture from it, exactly as a copy would be."
        )
    if summed is not None and verdict_of(report, summed) not in (NO_BETTER, HARDLY):
        said.append("Hiding single updates behind their sum alone did not stop it wholly.")
    if not private:
        return " ".join(said)
    worst = max(private, key=report.mean_gain)
    if verdict_of(report, worst) == NO_BETTER:
        said.append(
            "With it no attempt came closer than the average picture (of the class, for who is told the class), which needs no attack."
        )
    elif verdict_of(report, worst) == HARDLY:
        gain = report.mean_gain(worst)
        said.append(
            f"With it the best attempt ({view_name(worst)}) came {gain:.1f} dB closer than the average picture, which needs no attack: nothing that one could see."
        )
    else:
        said.append(
            f"With it the best attempt ({view_name(worst)}) came to {worst.mean:.1f} dB, against {report.baseline(worst).mean:.1f} of the average picture, which needs no attack."
        )
    return " ".join(said)


def plot_inversion(audits: SweepAudits, folder: Path) -> Plot | None:
    """The victims' pictures, and line by line what each attacker made of them.

    Raises:
        StorageError: the file system refused.
    """
    if audits.pictures is None:
        return None
    report = audits.pictures.report
    best = report.strongest()
    rows = [("what they held", report.originals), *((view_name(line), line.pictures) for line in best)]
    sheet = np.full((len(rows) * (report.height + _GAP) - _GAP, len(report.originals) * (report.width + _GAP) - _GAP), np.nan)
    for row, (_, pictures) in enumerate(rows):
        for column, picture in enumerate(pictures):
            top, left = row * (report.height + _GAP), column * (report.width + _GAP)
            sheet[top : top + report.height, left : left + report.width] = report.pixels(picture) / 255.0

    def draw(axes: Axes) -> None:
        figures.heading(axes, "What an attacker made of updates", "left: what it has; a line for the strongest attack of each kind")
        axes.imshow(sheet, cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest", aspect="equal")
        axes.set_yticks([row * (report.height + _GAP) + report.height / 2 for row in range(len(rows))], [name for name, _ in rows])
        axes.set_xticks([])
        axes.tick_params(length=0)
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)

    alt = f"Pictures that were held, and what attackers made of them, {len(rows)} lines of {len(report.originals)}"
    header = (
        "sees",
        "epsilon",
        "attack",
        "victims",
        "psnr_db",
        "psnr_best_db",
        "gain_db",
        "gain_half_width_95",
        "ssim",
        "label_right",
        "row",
    )
    size = (8.6, 1.0 + 0.47 * len(rows))
    return draw_plot("inversion", alt, folder, size, draw, header, _csv_lines(report, audits.pictures.row.digest[:12]))


def _csv_lines(report: InversionReport, digest: str) -> Iterator[Sequence[Any]]:
    for line in report.lines:
        gain = report.gain(line)
        figures_of = (line.mean, max(line.psnr), statistics.fmean(gain), half_width(gain), statistics.fmean(line.ssim), line.label_share)
        yield (line.sees, line.epsilon, line.attack, len(line.psnr), *figures_of, digest)


def report_json(report: InversionReport) -> list[dict[str, Any]]:
    """What ``--json`` prints of it."""
    return [
        {
            "sees": line.sees,
            "epsilon": "inf" if math.isinf(line.epsilon) else line.epsilon,
            "attack": line.attack,
            "psnr_db": line.mean,
            "blind_psnr_db": report.baseline(line).mean,
            "gain_db": report.mean_gain(line),
            "gain_half_width_95": half_width(report.gain(line)),
            "label_right": line.label_share,
            "verdict": verdict_of(report, line),
        }
        for line in report.strongest()
    ]
