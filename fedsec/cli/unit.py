"""``fedsec unit``: hardened systemd units, printed or written."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

EPILOG = (
    "Examples:  fedsec unit agent  ·  fedsec unit gateway --user fedsec-server --home /var/lib/fedsec-server --out /etc/systemd/system  ·  "
    "fedsec unit renew-timer --out /etc/systemd/system  ·  fedsec unit ca --passphrase-file /etc/fedsec/ca.passphrase  ·  "
    "fedsec unit agent --users > /etc/sysusers.d/fedsec-agent.conf"
)


def unit(
    kind: str = typer.Argument(help="gateway (with the SuperLink), agent, renew-timer or ca."),
    user: str | None = typer.Option(None, help="System user; fedsec-server, fedsec-client or fedsec-ca if left out.", show_default=False),
    home: str | None = typer.Option(None, help="Folder of the server, client or CA; under /var/lib if left out.", show_default=False),
    command: str | None = typer.Option(None, help="The fedsec script; that of this installation if left out.", show_default=False),
    passphrase_file: str | None = typer.Option(
        None, help="File with the key's passphrase, root's alone; systemd hands it to the service.", show_default=False
    ),
    listen: str = typer.Option("0.0.0.0", help="ca: address to listen on."),  # noqa: S104 - shown in the unit, for the operator to narrow
    port: int = typer.Option(9444, help="ca: port."),
    out: Path | None = typer.Option(None, help="Folder to write into; printed if left out.", show_default=False),
    users: bool = typer.Option(False, "--users", help="Print the sysusers.d line that makes the user instead."),
) -> None:
    """Print or write a hardened systemd unit. Nothing is enabled or started."""
    from fedsec.edge.units import UnitKind, UnitSettings, render_units, render_users, write_units
    from fedsec.errors import ConfigError

    try:
        which = UnitKind(kind)
    except ValueError:
        raise ConfigError(f"no unit {kind[:40]!r}", field="KIND", mend=f"one of {', '.join(UnitKind)}") from None
    settings = UnitSettings(
        kind=which,
        command=command or str(Path(sys.executable).with_name("fedsec")),
        user=user,
        home=home,
        passphrase_file=passphrase_file,
        listen=listen,
        port=port,
    )
    if users:
        print(render_users(settings), end="")
    elif out is not None:
        for path in write_units(settings, out):
            print(f"wrote {path}")
        print("next: systemd-analyze verify them, systemctl daemon-reload, systemctl enable --now; docs/deploy.md has each step")
    else:
        files = render_units(settings)
        for name, text in files.items():
            print(f"# ----- {name}\n{text}" if len(files) > 1 else text, end="")
