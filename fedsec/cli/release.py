"""``fedsec release``: manifests of approved code."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True, help="Release manifests: build, sign, show.")
