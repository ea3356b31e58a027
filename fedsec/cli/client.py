"""``fedsec client``: an edge client of a live federation."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from fedsec.edge.agent_setup import Site

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Edge client: set up, enrol, start, look, renew.",
    epilog="Examples:  fedsec client enroll --token-file token --server gw.hearts.example:9443 --approver ada --source mydata:load  ·  "
    "fedsec client up  ·  fedsec client status",
)

HOME = typer.Option(
    None, "--home", envvar="FEDSEC_CLIENT_HOME", help="The client's home folder; ~/.fedsec-client if left out.", show_default=False
)
PASSPHRASE = typer.Option(
    None,
    "--passphrase-file",
    help="File (mode 0600) whose first line is the key's passphrase; else $FEDSEC_PASSPHRASE_FILE.",
    show_default=False,
)
JSON = typer.Option(False, "--json", help="One JSON object on stdout.")
SERVER = typer.Option(..., "--server", help="host:port of the gateway.")
SERVER_NAME = typer.Option("main", "--server-name", help="Name that the gateway's certificate must have.")
APPROVER = typer.Option(
    ...,
    "--approver",
    help="Administrator whose approval of a release counts at this site, or NAME=KEY to pin a public key as `fedsec release enroll` prints it; "
    "else the key of the first release is pinned. May be given often.",
)
APPROVALS = typer.Option(1, "--approvals", min=1, help="How many approvals a release needs here.")
SOURCE = typer.Option(..., "--source", help="module:function that gives this site's records.")
EPSILON = typer.Option(8.0, "--epsilon-cap", help="Most that may be spent on this site's records over all runs.")
DELTA = typer.Option(1e-5, "--delta", help="The delta that the cap is stated at.")
BATCH = typer.Option(None, "--batch-size", min=1, help="Declared batch size; the plan's if left out.", show_default=False)

CHECK_SOURCE = typer.Option(
    True, "--check-source/--no-check-source", help="Load the records once first. Leave it out where they are mounted later."
)


@app.command(
    epilog="Examples:  fedsec client init client-7 --server gw.hearts.example:9443 --approver ada --approver ben --approvals 2 --source mydata:load"
)
def init(
    client_id: str = typer.Argument(help="The client's id, as its certificate will say."),
    server: str = SERVER,
    approvers: list[str] = APPROVER,
    source: str = SOURCE,
    approvals: int = APPROVALS,
    server_name: str = SERVER_NAME,
    epsilon_cap: float = EPSILON,
    delta: float = DELTA,
    batch_size: int | None = BATCH,
    home: Path | None = HOME,
    as_json: bool = JSON,
) -> None:
    """Write agent.toml and settings.toml; files that are there stay as they are."""
    from fedsec.edge.agent_settings import client_home
    from fedsec.edge.agent_setup import write_home

    folder = client_home(home)
    site = _site(server, server_name, approvers, approvals, source, epsilon_cap, delta, batch_size)
    written = write_home(folder, site, client_id=client_id)
    _say({"home": str(folder), "written": written}, as_json, f"{folder}: wrote {', '.join(written) or 'nothing, all files were there'}")


@app.command(
    epilog="Examples:  fedsec client enroll --token-file token --ca ca.hearts.example:9444 --server gw.hearts.example:9443 --approver ada "
    "--source mydata:load  ·  fedsec client enroll - --server gw.hearts.example:9443 --approver ada --source mydata:load < token"
)
def enroll(
    token: str | None = typer.Argument(
        None,
        help="One-time token. All users of this machine can see an argument, and your shell remembers it: prefer '-' (standard input) "
        "or --token-file.",
        show_default=False,
    ),
    server: str = SERVER,
    approvers: list[str] = APPROVER,
    source: str = SOURCE,
    token_file: Path | None = typer.Option(
        None, "--token-file", help="File (mode 0600) with the token; - reads standard input.", show_default=False
    ),
    ca: str | None = typer.Option(None, "--ca", help="host:port of the enrolment service; the token's if left out.", show_default=False),
    approvals: int = APPROVALS,
    server_name: str = SERVER_NAME,
    epsilon_cap: float = EPSILON,
    delta: float = DELTA,
    batch_size: int | None = BATCH,
    keep_key: bool = typer.Option(False, "--keep-key", help="Get another certificate for the key that is there, after the old one ended."),
    home: Path | None = HOME,
    passphrase_file: Path | None = PASSPHRASE,
    check: bool = CHECK_SOURCE,
    as_json: bool = JSON,
) -> None:
    """Make a key, get its certificate for a one-time token, and write the settings. The key never leaves this machine."""
    from fedsec.edge.agent_settings import client_home
    from fedsec.edge.agent_setup import enrol_client, write_home
    from fedsec.edge.enrolment_client import token_text
    from fedsec.edge.source_check import check_source
    from fedsec.identity.folder import use_passphrase_file
    from fedsec.identity.tokens import read_token

    folder = client_home(home)
    passphrase = use_passphrase_file(passphrase_file)
    text = token_text(token, token_file, sys.stdin.read)
    site = _site(server, server_name, approvers, approvals, source, epsilon_cap, delta, batch_size)
    if check:
        check_source(source)  # before the token is spent
    written = write_home(folder, site, client_id=read_token(text).name)
    identity = enrol_client(folder, text, address=ca, passphrase=passphrase, keep_key=keep_key)
    facts = {"home": str(folder), "written": written, "uri": identity.name.uri, "not_after": identity.not_after.isoformat()}
    _say(
        facts, as_json, f"{identity.name.uri}, valid until {identity.not_after:%Y-%m-%d %H:%M} UTC\nnext: fedsec client up --home {folder}"
    )


@app.command(epilog="Examples:  fedsec client up  ·  fedsec client up --home /srv/fedsec-client")
def up(home: Path | None = HOME, passphrase_file: Path | None = PASSPHRASE, check: bool = CHECK_SOURCE) -> None:
    """Run this client's agent in the foreground; Ctrl-C ends it and everything that it started."""
    from fedsec.edge.agent import load_agent
    from fedsec.edge.agent_settings import client_home
    from fedsec.edge.source_check import check_source, source_of
    from fedsec.edge.supernode import SOURCE_ONLY
    from fedsec.errors import FedsecError
    from fedsec.identity.folder import use_passphrase_file

    use_passphrase_file(passphrase_file)
    try:
        settings, _ = load_agent(client_home(home))  # what is wrong is said here
    except FedsecError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from None
    if check and (source := source_of(settings.client_settings)):
        try:
            check_source(source)
        except FedsecError as error:  # not the end: the records may be there when a round comes
            print(f"warning: {error}", file=sys.stderr)
    command = [*SOURCE_ONLY, "fedsec.edge.agent", *(["--home", str(home)] if home is not None else [])]
    os.execv(command[0], command)  # noqa: S606 - this process again, its code from what admission hashes


@app.command(epilog="Examples:  fedsec client renew  ·  fedsec client renew --json")
def renew(home: Path | None = HOME, passphrase_file: Path | None = PASSPHRASE, as_json: bool = JSON) -> None:
    """Renew the certificate now; the agent does so by itself at two thirds of its life."""
    from fedsec.edge.agent_settings import client_home
    from fedsec.edge.agent_setup import renew_now
    from fedsec.identity.folder import use_passphrase_file

    use_passphrase_file(passphrase_file)
    identity = renew_now(client_home(home))
    facts = {"serial_number": f"{identity.serial_number:X}", "not_after": identity.not_after.isoformat()}
    _say(facts, as_json, f"certificate {facts['serial_number']}, valid until {identity.not_after:%Y-%m-%d %H:%M} UTC")


@app.command(name="reset-floor", epilog="Examples:  fedsec client reset-floor --yes")
def reset_floor(home: Path | None = HOME, yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."), as_json: bool = JSON) -> None:
    """Forget the newest release that this site accepted: older ones, with their known faults, count again."""
    from fedsec.admission.decision import Floor
    from fedsec.edge.agent_releases import write_floor
    from fedsec.edge.agent_settings import client_home, load_agent_settings
    from fedsec.files import exclusive_lock

    settings = load_agent_settings(client_home(home))
    if not yes:
        typer.confirm("Older releases will count again. Go on?", abort=True, err=True)
    with exclusive_lock(settings.home / "agent.lock", what="client's home folder"):
        write_floor(settings.floor_file, Floor())
    _say({"floor": 0}, as_json, "the floor is 0 now")


@app.command(epilog="Examples:  fedsec client status  ·  fedsec client status --json")
def status(home: Path | None = HOME, passphrase_file: Path | None = PASSPHRASE, as_json: bool = JSON) -> None:
    """Certificate, connection, round, privacy spent, last refusal. Exits with 1 if the agent is not connected."""
    from datetime import UTC, datetime

    from fedsec.edge.agent_report import client_report, report_lines
    from fedsec.edge.agent_settings import client_home
    from fedsec.identity.folder import use_passphrase_file

    use_passphrase_file(passphrase_file)
    report = client_report(client_home(home), now=datetime.now(UTC))
    print(json.dumps(report) if as_json else "\n".join(report_lines(report)))
    raise typer.Exit(0 if report["state"] == "connected" else 1)


def _site(
    server: str, server_name: str, approvers: list[str], approvals: int, source: str, epsilon: float, delta: float, batch: int | None
) -> Site:  # fmt: skip
    from fedsec.edge.agent_setup import Site, names_of

    return Site(
        server=server,
        server_name=server_name,
        approvers=names_of(approvers),
        approvals=approvals,
        source=source,
        epsilon_cap=epsilon,
        delta=delta,
        batch_size=batch,
    )


def _say(facts: dict[str, Any], as_json: bool, words: str) -> None:
    print(json.dumps(facts) if as_json else words)
