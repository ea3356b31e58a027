"""The assumptions and settings of a sweep, as lines of a table; what stands there is read from plan, rows and manifest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fedsec.plan.guarantees import notes
from fedsec.plan.model import Plan
from fedsec.plan.robust import rule_of
from fedsec.plan.sweep import SweepGrid
from fedsec.report import text
from fedsec.report.sweep_summary import SweepSummary
from fedsec.report.sweep_verdict import MOST_COST, MOST_SLICE, points


def assumptions(plan: Plan, summary: SweepSummary, records: Mapping[str, Any]) -> list[str]:
    """What must hold for the numbers to mean what they say, one sentence each."""
    privacy = plan.privacy
    lines = [
        "Unit: one record. Neighbours: data sets that differ in one record that is there or not (add/remove).",
        "Adversary: the server, all other clients and every reader of the model together; what a client's own house does is outside.",
        (
            f"Mechanism: DP-SGD at each client: Poisson batches at rate {plan.training.sample_rate:g}, gradients clipped to {privacy.clip_norm:g} record by record, Gaussian noise; "
            f"{plan.total_steps} steps a client over the whole run."
        ),
        "ε is the PRV accountant's upper bound for the client that spent most, over all rounds together; RDP, which is looser, stands beside it.",
        _delta(plan, records),
        "ε holds for each client's own records. People must not have records with several clients, or they pay the sum.",
        "The run without privacy is the same plan without clipping and noise"
        + (f"; it differs further in {', '.join(summary.grid.at[float('inf')])}." if float("inf") in summary.grid.at else "."),
        "At some ε the plan has settings of its own (in the table below). To choose settings on private records costs privacy that no ε counts; those of the default "
        "sweep were chosen on held-out digits, which are public."
        if any(math.isfinite(epsilon) for epsilon in summary.grid.at)
        else "",
        f"The cost of privacy is the difference between runs of the same seed. Limits of the recommendation: {points(MOST_COST)} of accuracy, {points(MOST_SLICE)} of any class.",
        "Intervals: Student's t over seeds, 95%. A seed moves partition, first weights, batches and noise, and where the data set has no test part of its own also which records are tested.",
    ]
    if not plan.secagg.enabled:
        lines.append(
            "Sums were formed in clear. Under secure aggregation the same updates are summed behind masks; all that differs is the rounding of their fixed point (under a millionth of the loss). Tests compare one point of both: same accuracy, recall and ε."
        )
    if rule_of(plan) == "mean" and plan.attack.name == "none":
        lines.append("Nobody attacks and no rule rejects in these runs: this is the price of privacy alone.")
    skip = ("In a simulation, noise", "The server sees each client's update")
    lines += [line for line in notes(plan) if not line.startswith(skip)]
    lines.append("Simulation: noise and sampling come from the plan's public seed. A deployment takes them from the operating system.")
    return [line for line in lines if line]


def _delta(plan: Plan, records: Mapping[str, Any]) -> str:
    largest, delta = int(records.get("largest_client", 0)), plan.privacy.delta
    if not largest:
        return f"δ = {delta:g}."
    if delta * largest < 1:
        return f"δ = {delta:g}, below 1/{largest}, one over the records of the largest client."
    return f"δ = {delta:g} is NOT below 1/{largest}, one over the records of the largest client: such a δ allows publishing a whole record now and then."


def _audits(grid: SweepGrid) -> str:
    if not grid.audits:
        return "none"
    counts = [f"{grid.canaries} canaries"] if "one-run" in grid.audits else []
    counts += [f"{grid.shadow_models} shadow models for each ε and seed"] if "lira" in grid.audits else []
    return ", ".join([*grid.audits, *counts, "apart from the runs above"])


def settings(plan: Plan, summary: SweepSummary, manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and value of everything that made the sweep."""
    federation, training, records = plan.federation, plan.training, manifest.get("records", {})
    rows = summary.rows
    hashes = dict.fromkeys(f"seed {row.seed}: {row.data_fingerprint[:16]}" for row in sorted(rows, key=lambda row: row.seed))
    dealt = f"{plan.data.partition}{f' with α = {plan.data.alpha:g}' if plan.data.partition == 'dirichlet' else ''}"
    counted = f", {records['train']} to train on and {records['test']} to test on" if "train" in records else ""
    versions = ", ".join(f"{name} {number}" for name, number in manifest.get("versions", {}).items())
    return [
        (
            "clients and rounds",
            f"{text.counted(federation.num_clients, 'client')}, {text.counted(federation.rounds, 'round')} of {text.counted(training.steps, 'step')}",
        ),
        (
            "records",
            f"{plan.data.name}{counted}; dealt {dealt}; features: {plan.data.transform if plan.data.transform != 'none' else 'as they are'}",
        ),
        (
            "sizes of clients",
            f"{records['smallest_client']} to {records['largest_client']} training records"
            if "smallest_client" in records
            else text.MISSING,
        ),
        ("model", f"{plan.model.name}{', personal: ' if plan.model.personal else ''}{', '.join(plan.model.personal)}"),
        (
            "training",
            (
                f"learning rate {training.learning_rate:g}, momentum {training.momentum:g}, at the server {training.server_learning_rate:g} and {training.server_momentum:g}, "
                f"mean of the last {max(training.tail_average, 1)} rounds released"
            ),
        ),
        (
            "privacy",
            f"ε = {', '.join(f'{epsilon:g}' for epsilon in summary.finite)} at δ = {plan.privacy.delta:g}, clip norm {plan.privacy.clip_norm:g}",
        ),
        ("varied", "; ".join(f"{key}: {', '.join(values)}" for key, values in summary.grid.varied) or "nothing else"),
        ("settings of one ε alone", "; ".join(f"{epsilon:g}: {', '.join(given)}" for epsilon, given in summary.grid.at.items()) or "none"),
        ("seeds", ", ".join(map(str, summary.grid.seeds))),
        (
            "audits",
            _audits(summary.grid),
        ),
        ("secure aggregation", "on" if plan.secagg.enabled else "off in these runs"),
        ("rule and attack", f"{rule_of(plan)}; {plan.attack.name}"),
        ("data hashes (SHA-256)", "; ".join(hashes) or text.MISSING),
        ("time of all processes", text.duration(sum(row.wall_s for row in rows) + sum(row.wall_s for row in summary.audits))),
        ("machine", str(manifest.get("machine", text.MISSING))),
        ("versions", versions or text.MISSING),
        ("commit", str(manifest.get("commit") or "unknown")),
        ("started, went on", f"{manifest.get('started', text.MISSING)}, {manifest.get('went_on', text.MISSING)}"),
    ]
