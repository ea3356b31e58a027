"""The picture of the experiment: what was shown against what is claimed, and ROC curves on logarithmic axes."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from fedsec.files import atomic_write_bytes
from fedsec.privacy.auditing.results import AuditResult

_COLOURS = ("#2471a3", "#7d3c98", "#ca6f1e", "#c0392b")


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """A PNG without time or machine in it."""
    figure, axes = plt.subplots(1, 2, figsize=(12.0, 5.0), layout="constrained")
    fashion = [row for row in rows if row["part"] == "fashion"]
    _bounds(axes[0], fashion)
    _curves(axes[1], fashion)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=130, metadata={"Software": None})
    plt.close(figure)
    atomic_write_bytes(path, out.getvalue())


def _one_run(row: dict[str, Any]) -> list[AuditResult]:
    return [result for result in map(AuditResult.from_json, row["results"]) if result.kind == "one-run"]


def _bounds(axes: Axes, rows: list[dict[str, Any]]) -> None:
    plans = [result for row in rows for result in _one_run(row) if result.arm == "plan" and math.isfinite(result.audited.epsilon)]
    controls = [result for row in rows for result in _one_run(row) if result.arm != "plan"]
    limit = max([10.0, *(result.audited.epsilon * 1.3 for result in plans)])
    axes.plot([0.05, limit], [0.05, limit], color="black", linewidth=0.8, label="refuted above this line")
    axes.scatter([r.audited.epsilon for r in plans], [r.lower_bound for r in plans], color=_COLOURS[0], label="lower bound, 95 %", zorder=3)
    estimates = [r for r in plans if r.gaussian_estimate is not None]
    axes.scatter(
        [r.audited.epsilon for r in estimates],
        [r.gaussian_estimate or 0.0 for r in estimates],
        marker="d",
        facecolors="none",
        edgecolors=_COLOURS[0],
        label="Gaussian estimate",
    )
    axes.scatter([r.audited.epsilon for r in plans], [r.perfect_bound for r in plans], marker="_", color="grey", label="perfect guesser")
    for colour, arm in zip(_COLOURS[1:], ("no-noise", "weak-noise", "accountant-reset"), strict=True):
        some = [r for r in controls if r.arm == arm]
        aside = 0.88 if arm == "no-noise" else 1.0  # beside each other, not on top of each other
        axes.scatter(
            [r.audited.epsilon * aside for r in some], [r.lower_bound for r in some], marker="x", color=colour, label=f"control: {arm}"
        )
    axes.set(
        xscale="log", yscale="log", xlabel="epsilon that is claimed", ylabel="epsilon that was shown", xlim=(0.7, limit), ylim=(0.05, 20.0)
    )
    axes.set_title("1000 canaries, δ = 1e-5, three seeds")
    axes.legend(fontsize=8, loc="lower right")


def _curves(axes: Axes, rows: list[dict[str, Any]]) -> None:
    for colour, name in zip(_COLOURS, dict.fromkeys(row["name"] for row in rows if row["name"] != "controls"), strict=False):
        for row in (row for row in rows if row["name"] == name):
            for result in _one_run(row):
                x, y = zip(*result.membership.roc, strict=True)
                axes.plot(x, y, color=colour, linewidth=1.0, label=name if row["seed"] == 1 else None)
    axes.plot([1e-3, 1.0], [1e-3, 1.0], color="black", linewidth=0.8, linestyle="--", label="a coin")
    axes.set(xscale="log", yscale="log", xlabel="false positive rate", ylabel="true positive rate", xlim=(1e-3, 1.0), ylim=(1e-3, 1.3))
    axes.set_title("canaries found, attacker sees every update")
    axes.legend(fontsize=8, loc="lower right")
