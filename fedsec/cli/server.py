"""``fedsec server``: the server host of a live federation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from fedsec.edge.server_settings import ServerSettings

app = typer.Typer(no_args_is_help=True, help="Server host: enrol, start SuperLink and gateway.")

HOME = typer.Option(None, "--home", help="The server's folder. Default: $FEDSEC_HOME, or ~/.fedsec.")
PASSPHRASE = typer.Option(
    None, "--passphrase-file", help="File (mode 0600) whose first line is the key's passphrase. Default: $FEDSEC_PASSPHRASE_FILE."
)
JSON = typer.Option(False, "--json", help="Print one JSON object.")


def _print(facts: dict[str, Any], lines: list[str], *, as_json: bool) -> None:
    print(json.dumps(facts, indent=2) if as_json else "\n".join(lines))


@app.command(epilog="Example:  fedsec server init --federation hearts.example --listen 0.0.0.0:9443")
def init(
    federation: str = typer.Option(..., "--federation", help="Trust domain of the federation, as at its CA."),
    name: str = typer.Option("main", "--name", help="This server's name, as in its certificate."),
    listen: str = typer.Option("0.0.0.0:9443", "--listen", help="host:port on which agents connect."),
    superlink_port: int = typer.Option(18000, "--superlink-port", help="Port of the SuperLink on 127.0.0.1."),
    home: Path | None = HOME,
    as_json: bool = JSON,
) -> None:
    """Make the server's folder with server.toml, loopback certificates and secrets. An existing server.toml is not overwritten."""
    import tomllib
    from datetime import UTC, datetime

    from fedsec.edge.server_settings import SETTINGS_FILE, TEMPLATE, parse_server_settings, server_home
    from fedsec.edge.superlink import prepare_superlink
    from fedsec.errors import ConfigError, StorageError
    from fedsec.files import atomic_write_text
    from fedsec.identity.folder import keep_private

    folder = server_home(home)
    path = folder / SETTINGS_FILE
    if path.exists():
        raise ConfigError("there are settings already", file=str(path), mend="edit them, or name another folder with --home")
    raw = {"server": {"federation": federation, "name": name}, "gateway": {"listen": listen}, "superlink": {"port": superlink_port}}
    parse_server_settings(raw, folder, file="the command line")
    text = TEMPLATE.format(federation=federation, name=name, listen=listen, port=superlink_port)
    settings = parse_server_settings(tomllib.loads(text), folder, file=str(path))
    try:
        for part in (folder, folder / "federation", folder / "gateway", folder / "releases", folder / "runs"):
            part.mkdir(mode=0o700, parents=True, exist_ok=True)
        keep_private(folder)
    except OSError as error:
        raise StorageError(f"cannot make {folder}: {error.strerror or error}") from error
    prepare_superlink(settings, now=datetime.now(UTC))
    atomic_write_text(path, text)
    _print(
        {"home": str(folder), "settings": str(path)},
        [f"made {folder}", "next: fedsec server enroll --token-file TOKEN, with a token of `fedsec ca token` for this server"],
        as_json=as_json,
    )


@app.command(epilog="Example:  fedsec server enroll --token-file token.txt --ca ca.hearts.example:9444")
def enroll(
    token: str | None = typer.Option(
        None, "--token", help="The token. All users of this host can see an argument, and your shell remembers it: prefer --token-file."
    ),
    token_file: Path | None = typer.Option(None, "--token-file", help="File (mode 0600) with the token; - reads standard input."),
    ca: str | None = typer.Option(None, "--ca", help="host:port of the CA's service. Default: what the token says."),
    keep_key: bool = typer.Option(False, "--keep-key", help="Get another certificate for the key that is there, after the old one ended."),
    home: Path | None = HOME,
    passphrase_file: Path | None = PASSPHRASE,
    as_json: bool = JSON,
) -> None:
    """Make this server's key, get its certificate from the CA, and write the CA's address into server.toml."""
    import sys

    from fedsec.edge.enrolment_client import enrol_folder, token_text
    from fedsec.edge.server_settings import load_server_settings, server_home, write_ca_settings
    from fedsec.errors import CertificateError, ConfigError
    from fedsec.identity.folder import passphrase_of
    from fedsec.identity.names import Role
    from fedsec.identity.tokens import read_token

    settings = load_server_settings(server_home(home))
    passphrase = passphrase_of(passphrase_file)
    text = token_text(token, token_file, sys.stdin.read)
    claims = read_token(text)
    if (claims.role, claims.federation, claims.name) != (Role.SERVER, settings.federation, settings.name):
        raise CertificateError(
            f"the token is for {claims.uri}, this is the server {settings.name} of {settings.federation}; ask for another"
        )
    address = ca or claims.address
    if address is None:
        raise ConfigError("the token does not say where the CA's service is", mend="give --ca HOST:PORT")
    identity = enrol_folder(settings.home / "identity", text, address=address, passphrase=passphrase, keep_key=keep_key)
    write_ca_settings(settings.home, address=address, fingerprint=claims.service_sha256.hex())
    _print(
        {"uri": identity.name.uri, "serial_number": f"{identity.serial_number:X}", "not_after": identity.not_after.isoformat()},
        [
            f"enrolled as {identity.name.uri}",
            f"valid until {identity.not_after:%Y-%m-%d %H:%M} UTC; renewed by itself",
            "next: fedsec server up",
        ],
        as_json=as_json,
    )


@app.command(epilog="Example:  fedsec server renew --json")
def renew(home: Path | None = HOME, passphrase_file: Path | None = PASSPHRASE, as_json: bool = JSON) -> None:
    """Renew the certificate now; a running gateway does so by itself at two thirds of its life, and takes this one up at once."""
    import asyncio
    from datetime import UTC, datetime

    from fedsec.edge.authority import CaClient, renew_own
    from fedsec.edge.server_settings import load_server_settings, server_home
    from fedsec.errors import ConfigError
    from fedsec.identity.folder import load_identity, use_passphrase_file

    settings = load_server_settings(server_home(home))
    use_passphrase_file(passphrase_file)
    folder = settings.home / "identity"
    identity = load_identity(folder)
    if settings.ca is None:
        raise ConfigError("the settings do not say where the CA is", field="ca", mend="enrol with its service, or copy a new certificate")
    client = CaClient(settings.ca)
    try:
        identity = asyncio.run(renew_own(client, identity, folder, now=datetime.now(UTC)))
    finally:
        client.close()
    facts = {"serial_number": f"{identity.serial_number:X}", "not_after": identity.not_after.isoformat()}
    _print(facts, [f"certificate {facts['serial_number']}, valid until {identity.not_after:%Y-%m-%d %H:%M} UTC"], as_json=as_json)


@app.command(epilog="Example:  fedsec server up     (Ctrl-C or SIGTERM ends it)")
def up(home: Path | None = HOME, passphrase_file: Path | None = PASSPHRASE) -> None:
    """Start the SuperLink on loopback, SuperExec and the gateway; keep them running until told to end."""
    import logging

    from fedsec.edge.server_settings import UserSettings, load_server_settings, server_home
    from fedsec.edge.superlink import run_server
    from fedsec.identity.folder import keep_private, load_identity, use_passphrase_file

    settings = load_server_settings(server_home(home))
    if settings.users == UserSettings():
        keep_private(settings.home)  # with [users] it is root's, and theirs to pass through
    use_passphrase_file(passphrase_file)  # the gateway and the ServerApp find its path in their environment
    load_identity(settings.home / "identity")  # says at once that there is none
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    print(f"starting; logs are in {settings.home / 'superlink'}", flush=True)
    run_server(settings, on_ready=lambda: print(f"up: agents connect to {settings.gateway.listen}", flush=True))
    print("ended", flush=True)


@app.command(epilog="Example:  fedsec server status --json")
def status(home: Path | None = HOME, passphrase_file: Path | None = PASSPHRASE, as_json: bool = JSON) -> None:
    """Show certificate, lists, nodes and processes. Exits with 1 if the gateway or the SuperLink is down or a list is missing."""
    from fedsec.edge.server_settings import load_server_settings, server_home
    from fedsec.edge.server_status import describe, read_status
    from fedsec.identity.folder import use_passphrase_file

    use_passphrase_file(passphrase_file)
    settings: ServerSettings = load_server_settings(server_home(home))
    facts = read_status(settings)
    _print(facts, describe(facts), as_json=as_json)
    if not facts["healthy"]:
        raise typer.Exit(1)
