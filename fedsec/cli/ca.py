"""``fedsec ca``: the certificate authority of a federation."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True, help="Certificate authority: init, tokens, certificates, revocation.")
