"""``fedsec server``: the server host of a live federation."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True, help="Server host: enrol, start SuperLink and gateway.")
