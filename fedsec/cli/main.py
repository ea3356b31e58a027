"""``fedsec``: the command line's root, and the one place where errors become exit codes.

Everything heavy is imported inside the commands: ``fedsec --help`` must answer at once.
"""

from __future__ import annotations

import sys

import typer

from fedsec.cli import attack as attack_command
from fedsec.cli import ca as ca_commands
from fedsec.cli import client as client_commands
from fedsec.cli import compare as compare_command
from fedsec.cli import doctor as doctor_command
from fedsec.cli import plan as plan_commands
from fedsec.cli import release as release_commands
from fedsec.cli import report as report_command
from fedsec.cli import run as run_command
from fedsec.cli import server as server_commands
from fedsec.cli import simulate as simulate_command
from fedsec.cli import sweep as sweep_command
from fedsec.cli import unit as unit_command
from fedsec.errors import FedsecError

EPILOG = "Examples:  fedsec simulate  ·  fedsec simulate --set privacy.epsilon=2 --out runs/eps2  ·  fedsec plan check my-plan.toml"

app = typer.Typer(
    name="fedsec",
    help="Federated learning among parties that do not trust each other: DP-SGD at the clients, measured privacy, on Flower.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("simulate", epilog=simulate_command.EPILOG)(simulate_command.simulate)
app.command("attack", epilog=attack_command.EPILOG)(attack_command.attack)
app.command("sweep", epilog=sweep_command.EPILOG)(sweep_command.sweep)
app.command("compare", epilog=compare_command.EPILOG)(compare_command.compare)
app.command("report", epilog=report_command.EPILOG)(report_command.report)
app.command("run", epilog=run_command.EPILOG)(run_command.run)
app.command("doctor", epilog=doctor_command.EPILOG)(doctor_command.doctor)
app.command("unit", epilog=unit_command.EPILOG)(unit_command.unit)
app.add_typer(plan_commands.app, name="plan")
app.add_typer(ca_commands.app, name="ca")
app.add_typer(server_commands.app, name="server")
app.add_typer(client_commands.app, name="client")
app.add_typer(release_commands.app, name="release")


def _version(value: bool) -> None:
    if value:
        import fedsec

        typer.echo(f"fedsec {fedsec.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version and exit."),
) -> None:
    """Options before the command."""


def run() -> None:
    """Entry point of the ``fedsec`` script."""
    try:
        app()
    except FedsecError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(141)  # the reader of our output went away, as with `fedsec ... | head`
