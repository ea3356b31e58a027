"""Rejection of a run as a table, pictures and lines: every score, who was rejected, when and why, and what it did to the accuracy.

1. ``screening.csv`` has one line for each round and client that was judged or kept out; ``screening.png`` draws it.
2. Attackers are marked only where the truth is known: in a simulation.
3. Reasons and client ids come from outside: they are shown as text, never obeyed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType

from fedsec.files import atomic_write_bytes
from fedsec.report import text
from fedsec.report.tables import privacy_line, write_csv
from fedsec.results import RejectedClient, RejectionReport, RoundRow, RunResult, ScreeningRow

COLUMNS = ("server_round", "client_id", "score", "accepted", "reason", "quarantined", "event", "rule", "mode")
"""Header of ``screening.csv``; ``accepted`` and ``quarantined`` are 1 or 0, ``event`` is a change of standing; new columns go to the end."""

MOST_LINES = 8

CURVES = (("no-attack", "no attack"), ("defended", "defended"), ("undefended", "undefended"))
"""Runs that :func:`plot_defence` draws, and what it calls them."""

Lines = list[tuple[str, str, bool]]


def screened_rows(rows: Sequence[RoundRow]) -> list[tuple[int, ScreeningRow]]:
    """The rounds in which a rule ran."""
    return [(row.server_round, row.screening) for row in rows if row.screening is not None]


def write_screening_csv(path: Path, rows: Sequence[RoundRow]) -> None:
    """Write one line for each round and client under :data:`COLUMNS`.

    Raises:
        StorageError: the file system refused.
    """
    write_csv(path, COLUMNS, (cells for number, screening in screened_rows(rows) for cells in _cells(number, screening)))


def _cells(number: int, screening: ScreeningRow) -> Iterator[list[int | float | str | None]]:
    kept_out, events = screening.kept_out, dict(screening.events)
    for name in sorted({*screening.scores, *kept_out, *events}):
        judged = name in screening.scores or name in kept_out
        yield [
            number,
            name,
            screening.scores.get(name),
            int(name not in kept_out and not screening.failed) if judged else None,
            kept_out.get(name, ""),
            int(name in screening.quarantined),
            events.get(name, ""),
            screening.rule,
            screening.mode,
        ]


def rejection_lines(result: RunResult) -> Lines:
    """Lines of the table at the end of a run: name, text, and whether it is good news. None for a run without a rule."""
    report = result.rejection
    if report is None:
        return []
    rows = [screening for _, screening in screened_rows(result.rows)]
    lines = [("rejection", f"{_who(report)}{_rule(rows)}", not report.rejected and not report.named)]
    if figures := _figures_line(report):
        lines.append(("", figures, True))
    shown = sorted(report.rejected, key=lambda client: (-client.rounds, client.client_id))
    waits = Counter(name for screening in rows for name in screening.quarantined)
    lines += [
        ("rejected", _rejected_line(client, len(result.rows), waits[client.client_id]), client.attacker is True)
        for client in shown[:MOST_LINES]
    ]
    if len(shown) > MOST_LINES:
        lines.append(("", f"and {len(shown) - MOST_LINES} more: see screening.csv and result.json", False))
    for one in report.named:
        kept = f"; evidence: {text.printable(one.evidence, 80)}" if one.evidence else ""
        lines.append(
            (
                "named",
                f"{text.printable(one.client_id, 40)}{_certificate(one.certificate)}, round {one.round}: {_reason(one.reason)}{kept}",
                False,
            )
        )
    if failed := [screening.failed for screening in rows if screening.failed]:
        lines.append(("failed closed", f"{text.counted(len(failed), 'round')}, model unchanged; last: {_reason(failed[-1])}", False))
    if beside := _beside(report):
        lines.append(("beside it", beside, True))
    return lines


def _who(report: RejectionReport) -> str:
    if not report.rejected and not report.named:
        return "nobody was rejected"
    named = f", {text.counted(len(report.named), 'client')} named" if report.named else ""
    return f"{text.counted(len(report.rejected), 'client')} rejected at least once{named}"


def _rule(rows: Sequence[ScreeningRow]) -> str:
    if not rows:
        return ""
    seen = "sketches" if rows[-1].mode == "sketch" else "updates in clear"
    return f" (rule {text.printable(rows[-1].rule, 40)} on {seen})"


def _figures_line(report: RejectionReport) -> str:
    """Precision, recall and honest rejection, as far as they are known."""
    known = (
        ("precision", report.precision),
        ("recall", report.recall),
        ("honest updates kept out", report.honest_rate),
        ("worst honest client", report.worst_honest_rate),
    )
    shown = [f"{name} {text.percent(value)}" for name, value in known if value is not None]
    attack = f"attack {text.printable(report.attack, 40)} by {text.counted(len(report.attackers), 'client')}: " if report.attackers else ""
    return f"{attack}{', '.join(shown)}, from round {report.from_round}" if shown else ""


def _rejected_line(client: RejectedClient, rounds: int, quarantined: int) -> str:
    truth = {True: ", attacker", False: ", honest", None: ""}[client.attacker]
    evidence = f"; evidence: {text.printable(client.evidence, 80)}" if client.evidence else ""
    why = _reason(client.reasons[0]) if client.reasons else "no reason given"
    waited = f", {quarantined} of them in quarantine" if quarantined else ""
    when = f"{client.rounds} of {rounds} rounds{waited}, first in round {client.first_round}"
    return f"{text.printable(client.client_id, 40)}{_certificate(client.certificate)}{truth}: {when}: {why}{evidence}"


def _certificate(serial_number: str) -> str:
    return f" (certificate {text.printable(serial_number[:12], 12)}…)" if serial_number else ""


def _reason(reason: str) -> str:
    return text.printable(reason, 120)


def _beside(report: RejectionReport) -> str:
    known = (("undefended", report.accuracy_undefended), ("without the attack", report.accuracy_no_attack))
    return ", ".join(f"accuracy {name} {text.percent(value)}" for name, value in known if value is not None)


def plot_screening(result: RunResult, path: Path) -> None:
    """Heat map of scores by client and round, rejections marked, beside the rejection of honest clients by skew.

    Args:
        result: a run with a rule. Where the truth is known attackers come first and are labelled.
        path: of the PNG; its folder must exist. :func:`write_screening_csv` writes what it shows.

    Raises:
        StorageError: the file system refused.
    """
    figures, drawing = _figures(), _drawing()
    rows = screened_rows(result.rows)
    attackers = set(result.rejection.attackers if result.rejection is not None else ())
    seen = {name for _, screening in rows for name in (*screening.scores, *screening.kept_out)}
    names = sorted(seen, key=lambda name: (name not in attackers, name))
    deciles = result.rejection.honest_rate_by_skew_decile if result.rejection is not None else ()
    with figures.canvas(11.0 if deciles else 8.0, drawing.height_of(len(names))) as figure:
        panels = figure.subfigures(1, 2, width_ratios=[2.3, 1.0]) if deciles else [figure.subfigures(1, 1)]
        drawing.draw_scores(panels[0], rows, names, attackers)
        if deciles:
            drawing.draw_deciles(panels[1].subplots(), deciles, result.rejection.honest_rate if result.rejection is not None else None)
        atomic_write_bytes(path, figures.to_png(figure))


def plot_defence(runs: Mapping[str, RunResult], path: Path) -> None:
    """Accuracy over rounds of the attacked run with its rule, without it, and without the attack; the last values written beside the curves.

    Args:
        runs: by the names in :data:`CURVES`, "defended" among them; others are not drawn.
        path: of the PNG; its folder must exist. The CSV goes beside it.

    Raises:
        ValueError: no defended run.
        StorageError: the file system refused.
    """
    if "defended" not in runs:
        raise ValueError("there is no defended run to draw")
    figures = _figures()
    curves = [(key, name, [row.accuracy for row in runs[key].rows]) for key, name in CURVES if key in runs]
    title, subtitle = _defence_title(runs["defended"]), _defence_subtitle(runs["defended"])
    with figures.canvas(8.0, 4.4) as figure:
        _drawing().draw_defence(figure.subplots(), curves, title=figures.fit(title, 6.8), subtitle=subtitle)
        atomic_write_bytes(path, figures.to_png(figure))
    longest = max(len(values) for _, _, values in curves)
    lines = ([number + 1, *(values[number] if number < len(values) else None for _, _, values in curves)] for number in range(longest))
    write_csv(path.with_suffix(".csv"), ("server_round", *(key for key, _, _ in curves)), lines)


def _defence_title(result: RunResult) -> str:
    report = result.rejection
    if report is None or not report.attackers:
        return f"Accuracy over rounds: {text.printable(result.plan_name)}"
    return f"{len(report.attackers)} of {result.num_clients} clients attack: {text.printable(report.attack, 40)}"


def _defence_subtitle(result: RunResult) -> str:
    rule = next((screening.rule for _, screening in screened_rows(result.rows)), "")
    spent = result.epsilon
    privacy = f"ε = {text.epsilon(spent.prv)} at δ = {text.decimal(spent.delta)}" if spent.is_private else privacy_line(result)
    parts = (
        text.printable(result.plan_name, 40),
        f"rule {text.printable(rule, 30)}" if rule else "",
        "secure aggregation" if any(row.secagg is not None for row in result.rows) else "",
        privacy,
    )
    return "  ·  ".join(part for part in parts if part)


def _figures() -> ModuleType:
    from fedsec.report import figures  # noqa: PLC0415 - matplotlib takes half a second to import

    return figures


def _drawing() -> ModuleType:
    from fedsec.report import rejection_figures  # noqa: PLC0415 - matplotlib takes half a second to import

    return rejection_figures
