"""``fedsec doctor``: what is wrong between this host and the server, one line each, with the mend."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from fedsec.edge.doctor import Report

EPILOG = (
    "Examples:  fedsec doctor  ·  fedsec doctor --server gateway.example:9443  ·  fedsec doctor --home /var/lib/fedsec-client --json  ·  "
    "fedsec doctor --token-file token.txt  ·  fedsec doctor --quick  (this host and the port only, for health checks)"
)
PASSPHRASE_VARIABLE = "FEDSEC_PASSPHRASE_FILE"  # noqa: S105 - a name
_COLOURS = {"ok": typer.colors.GREEN, "warning": typer.colors.YELLOW, "fault": typer.colors.RED}
_MAX_BYTES = 4096


def doctor(
    server: str | None = typer.Option(None, help="host:port of the gateway; else as the settings say.", show_default=False),
    home: Path | None = typer.Option(
        None,
        help="Home folder of a client, server or CA; else $FEDSEC_CLIENT_HOME, $FEDSEC_HOME, or the default of either.",
        show_default=False,
    ),
    token_file: Path | None = typer.Option(
        None, help="File with an enrolment token to look at, without spending it; - reads stdin.", show_default=False
    ),
    passphrase_file: Path | None = typer.Option(
        None, help=f"File with the key's passphrase; else ${PASSPHRASE_VARIABLE}.", show_default=False
    ),
    idle: float = typer.Option(3.0, min=0.0, max=3600.0, help="Seconds that the connection is left alone, to see whether it survives."),
    timeout: float = typer.Option(5.0, min=0.1, max=120.0, help="Seconds for each step."),
    quick: bool = typer.Option(False, "--quick", help="This host and the port only."),
    check_source: bool = typer.Option(True, "--check-source/--no-check-source", help="Load a client's records once."),
    as_json: bool = typer.Option(False, "--json", help="Print exactly one JSON object on stdout."),
) -> None:
    """Check this host, its certificates, and the way to the server. Ends with 1 if there is a fault. Changes nothing."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC's own lines say less than ours
    from datetime import UTC, datetime

    from fedsec.edge.doctor import Question, examine
    from fedsec.edge.doctor_findings import Level
    from fedsec.identity.folder import passphrase_of

    question = Question(
        home=_home(home),
        clock=lambda: datetime.now(UTC),
        server=server,
        token=_secret(token_file, "--token-file").decode("utf-8", "replace") if token_file else None,
        passphrase=passphrase_of(passphrase_file),
        idle_s=idle,
        timeout_s=timeout,
        quick=quick,
        check_source=check_source,
    )
    report = examine(question)
    if as_json:
        print(json.dumps(report.to_json(), ensure_ascii=False))
    else:
        _print(report)
    if report.count(Level.FAULT):
        raise typer.Exit(1)


def _home(given: Path | None) -> Path:
    """The folder to look at: as given, else that of a client, else that of a server."""
    candidates = [os.environ.get("FEDSEC_CLIENT_HOME"), os.environ.get("FEDSEC_HOME")]
    named = given or next((Path(text) for text in candidates if text), None)
    if named is None:
        defaults = [Path("~/.fedsec-client").expanduser(), Path("~/.fedsec").expanduser()]
        named = next((path for path in defaults if path.exists()), defaults[0])
    return named.expanduser().absolute()


def _secret(path: Path, option: str) -> bytes:
    """A short secret from a file or stdin; a line's end does not belong to it."""
    from fedsec.errors import ConfigError

    try:
        if str(path) == "-":
            return sys.stdin.buffer.read(_MAX_BYTES).rstrip(b"\r\n")
        with path.open("rb") as handle:
            return handle.read(_MAX_BYTES).rstrip(b"\r\n")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}", field=option) from error


def _print(report: Report) -> None:
    from fedsec.edge.doctor_findings import Level

    width = max(len(item.check) for item in report.findings)
    for item in report.findings:
        level = typer.style(f"{item.level:7}", fg=_COLOURS[item.level])
        typer.echo(f"{level}  {item.check:{width}}  {item.text}{f' — {item.mend}' if item.mend else ''}")
    if report.not_checked:
        typer.echo(f"not checked, because of what is above: {', '.join(report.not_checked)}")
    faults, warnings = report.count(Level.FAULT), report.count(Level.WARNING)
    typer.echo(
        "no fault found" if not faults and not warnings else f"{faults} fault(s), {warnings} warning(s); docs/doctor.md explains each"
    )
