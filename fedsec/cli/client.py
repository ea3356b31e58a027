"""``fedsec client``: an edge client of a live federation."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True, help="Edge client: enrol, start, status, renew.")
