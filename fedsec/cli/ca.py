"""``fedsec ca``: the certificate authority of a federation, on a machine that is not the server's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from fedsec.edge.ca_host import CaHost
    from fedsec.identity.register_rows import Record

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Certificate authority: tokens, certificates, revocation, the list of clients. Keep it apart from the server.",
    epilog="Examples:  fedsec ca init hearts.example  ·  fedsec ca token --node client-1 --site basel  ·  fedsec ca serve",
)

LISTS_EVERY_S = 600.0
"""How often a running service looks whether a list has to be made anew."""

CA = typer.Option(Path("ca"), "--ca", envvar="FEDSEC_CA", help="Folder of the CA.")
PASSPHRASE = typer.Option(None, "--passphrase-file", help="File (mode 0600) whose first line encrypts the keys.", show_default=False)
JSON = typer.Option(False, "--json", help="One JSON object on stdout.")
NODE = typer.Option(None, "--node", help="Client id.", show_default=False)
SITE = typer.Option(None, "--site", help="The client's organisation; with --node.", show_default=False)
SERVER = typer.Option(None, "--server", help="Name of a server.", show_default=False)
ADMIN = typer.Option(None, "--admin", help="Name of an administrator, who approves releases.", show_default=False)


@app.command(
    epilog="Examples:  fedsec ca init hearts.example  ·  fedsec ca init hearts.example --address ca.hearts.example:9444 --ca /srv/ca"
)
def init(
    federation: str = typer.Argument(help="Trust domain, for example hearts.example."),
    folder: Path = CA,
    address: str = typer.Option("", "--address", help="host:port of `fedsec ca serve` as devices reach it; stands in tokens."),
    server: str = typer.Option("main", "--server", help="Name of the server that the list of clients names."),
    cohort_size: int = typer.Option(64, "--cohort-size", help="Largest number of clients in a group of secure aggregation."),
    passphrase_file: Path | None = PASSPHRASE,
    as_json: bool = JSON,
) -> None:
    """Make a CA: root, intermediate, register, log, and the enrolment service's own certificate."""
    from fedsec.edge.ca_host import CaHost
    from fedsec.edge.ca_settings import CaSettings
    from fedsec.identity.folder import read_passphrase

    settings = CaSettings(address=address, server=server, cohort_size=cohort_size)
    host = CaHost.create(folder, federation, settings, now=_now(), passphrase=read_passphrase(passphrase_file))
    facts = {
        "federation": federation,
        "folder": str(folder),
        "root_sha256": host.root_sha256.hex(),
        "service_sha256": host.service.fingerprint.hex(),
        "intermediate_not_after": _time(host.authority.intermediate_not_after),
    }
    if as_json:
        print(json.dumps(facts))
        return
    print(f"CA of {federation} in {folder}\nroot    SHA-256 {facts['root_sha256']}\nservice SHA-256 {facts['service_sha256']}")
    print(f"\nMove {folder / 'root-key.pem'} to a place that is offline: only `fedsec ca renew-intermediate` needs it, within a year.")


@app.command(
    epilog="Examples:  fedsec ca token --node client-1 --site basel  ·  fedsec ca token --server main  ·  fedsec ca token --admin ada --minutes 5"
)
def token(
    node: str | None = NODE,
    site: str | None = SITE,
    server: str | None = SERVER,
    admin: str | None = ADMIN,
    minutes: float = typer.Option(15.0, "--minutes", help="How long it counts; at most 15."),
    folder: Path = CA,
    passphrase_file: Path | None = PASSPHRASE,
    as_json: bool = JSON,
) -> None:
    """Print a one-time token for a device; hand it over on a channel that you trust."""
    from datetime import timedelta

    role, name = _who(node, site, server, admin)
    host = _open(folder, passphrase_file)
    text, claims = host.token(role, site, name, lifetime=timedelta(minutes=minutes), now=_now())
    if as_json:
        print(json.dumps({"token": text, "uri": claims.uri, "not_after": _time(claims.not_after), "address": claims.address}))
        return
    print(text)


@app.command(epilog="Examples:  fedsec ca issue request.der --node client-1 --site basel --out client-1/")
def issue(
    csr: Path = typer.Argument(help="Certificate request in DER, as a device made it."),
    out: Path = typer.Option(..., "--out", help="Folder for certificate.der, intermediate.der and root.der; made if absent."),
    node: str | None = NODE,
    site: str | None = SITE,
    server: str | None = SERVER,
    admin: str | None = ADMIN,
    folder: Path = CA,
    passphrase_file: Path | None = PASSPHRASE,
    as_json: bool = JSON,
) -> None:
    """Issue for a request that came in a file: you vouch for whose it is."""
    from fedsec.files import atomic_write_bytes
    from fedsec.identity.csr import MAX_CSR_BYTES, read_csr
    from fedsec.identity.register_rows import Binding

    role, name = _who(node, site, server, admin)
    host = _open(folder, passphrase_file)
    request = _read(csr, MAX_CSR_BYTES)
    record = host.issue(Binding(role, site, name, read_csr(request)), request, now=_now())
    _make_folder(out)
    chain = (("intermediate.der", host.authority.intermediate_der), ("root.der", host.authority.root_der))
    for file, data in (*chain, ("certificate.der", record.certificate_der)):
        atomic_write_bytes(out / file, data)
    print(json.dumps(_facts(record)) if as_json else f"{_line(record)}\nin {out}")


@app.command("list", epilog="Examples:  fedsec ca list  ·  fedsec ca list --all  ·  fedsec ca list --alarms  ·  fedsec ca list --json")
def list_certificates(
    everything: bool = typer.Option(False, "--all", help="Also those that ended, or were renewed since."),
    alarms: bool = typer.Option(False, "--alarms", help="Instead: used tokens that were shown again with another key."),
    folder: Path = CA,
    passphrase_file: Path | None = PASSPHRASE,
    as_json: bool = JSON,
) -> None:
    """List certificates: the newest of each name, and what was revoked; or alarms."""
    host = _open(folder, passphrase_file)
    if alarms:
        _print_alarms(host, as_json=as_json)
        return
    records = host.records()
    if not everything:
        newest = {(record.role, record.name, record.public_key): record for record in records}
        records = sorted(newest.values(), key=lambda record: (record.role, record.name, record.issued_at))
    if as_json:
        print(json.dumps({"certificates": [_facts(record) for record in records]}))
        return
    for record in records:
        print(_line(record))


@app.command(
    epilog="Examples:  fedsec ca revoke client-3 --reason key-compromise  ·  fedsec ca revoke 5E1D…  ·  fedsec ca revoke spiffe://hearts.example/server/main"
)
def revoke(
    target: str = typer.Argument(help="Serial number in hex, name, or SPIFFE id."),
    reason: str = typer.Option(
        "unspecified", "--reason", help="unspecified, key-compromise, affiliation-changed, superseded, cessation or privilege-withdrawn."
    ),
    folder: Path = CA,
    passphrase_file: Path | None = PASSPHRASE,
    as_json: bool = JSON,
) -> None:
    """Revoke a peer: all living certificates of its key; its name is free again, its key never comes back."""
    from fedsec.errors import ConfigError
    from fedsec.identity.revocation import Reason

    try:
        why = Reason(reason)
    except ValueError:
        raise ConfigError(f"no reason {reason[:40]!r}", field="--reason", mend=f"one of {', '.join(Reason)}") from None
    hit = _open(folder, passphrase_file).revoke(target, why, now=_now())
    if as_json:
        print(json.dumps({"revoked": [_facts(record) for record in hit]}))
        return
    for record in hit:
        print(f"revoked {_line(record)}")
    print(
        f"{len(hit)} on the new revocation list; gateways that reach the CA have it within seconds" if hit else "nothing of it was living"
    )


@app.command(epilog="Examples:  fedsec ca crl  ·  fedsec ca crl --out crl.der")
def crl(
    out: Path | None = typer.Option(None, "--out", help="Where to write it; crl.der in the CA's folder if left out.", show_default=False),
    folder: Path = CA,
    passphrase_file: Path | None = PASSPHRASE,
    as_json: bool = JSON,
) -> None:
    """Make a new revocation list; `crl_hours` in ca.toml says how long it is good for."""
    from fedsec.files import atomic_write_bytes
    from fedsec.identity.revocation import verify_crl

    host, now = _open(folder, passphrase_file), _now()
    der = host.crl(now=now, anew=True)
    found = verify_crl(
        der,
        intermediate_der=host.authority.intermediate_der,
        root_der=host.authority.root_der,
        federation=host.authority.federation,
        now=now,
        accepted=None,  # the CA's own, made this moment
    )
    if out is not None:
        atomic_write_bytes(out, der)
    where = str(out or folder / "crl.der")
    if as_json:
        print(
            json.dumps(
                {"number": found.number, "revoked": len(found.serial_numbers), "next_update": _time(found.next_update), "file": where}
            )
        )
        return
    print(f"list {found.number}: {len(found.serial_numbers)} revoked, good until {_time(found.next_update)}; {where}")


@app.command(epilog="Examples:  fedsec ca roster  ·  fedsec ca roster --json")
def roster(folder: Path = CA, passphrase_file: Path | None = PASSPHRASE, as_json: bool = JSON) -> None:
    """Make a new list of clients, signed, with the next version."""
    from fedsec.identity.roster import Roster

    made = Roster.decode(_open(folder, passphrase_file).roster(now=_now()).roster_bytes)
    if as_json:
        print(
            json.dumps(
                {"version": made.version, "members": list(made.by_id), "cohort_size": made.cohort_size, "not_after": _time(made.not_after)}
            )
        )
        return
    print(f"list {made.version}: {len(made.members)} clients in groups of up to {made.cohort_size}; {folder / 'roster.json'}")


@app.command(epilog="Examples:  fedsec ca export /media/usb/hearts  (then copy it into the server's federation/ folder)")
def export(
    out: Path = typer.Argument(help="Folder; made if absent."),
    folder: Path = CA,
    passphrase_file: Path | None = PASSPHRASE,
    as_json: bool = JSON,
) -> None:
    """Write what a gateway goes by into files, where it does not reach the CA."""
    from fedsec.files import atomic_write_bytes
    from fedsec.identity.intermediates import STATEMENT_FILE

    bundle = _open(folder, passphrase_file).bundle(now=_now())
    _make_folder(out / "certificates")
    for old in (out / "certificates").glob("*.der"):
        if old.stem not in bundle.certificates:
            old.unlink(missing_ok=True)
    files = {f"certificates/{name}.der": der for name, der in bundle.certificates.items()}
    files |= {"intermediate.der": bundle.intermediate, "crl.der": bundle.crl}
    if bundle.roster:
        files |= {"roster.json": bundle.roster, "roster.signature": bundle.roster_signature}
    if bundle.root_statement:
        files[STATEMENT_FILE] = bundle.root_statement
    for name, data in files.items():
        atomic_write_bytes(out / name, data)
    print(json.dumps({"folder": str(out), "files": sorted(files)}) if as_json else f"{len(files)} files in {out}")


@app.command("renew-intermediate", epilog="Examples:  fedsec ca renew-intermediate --root-key /media/usb/root-key.pem")
def renew_intermediate(
    root_key: Path | None = typer.Option(None, "--root-key", help="The root's key, where it is kept.", show_default=False),
    folder: Path = CA,
    passphrase_file: Path | None = PASSPHRASE,
    as_json: bool = JSON,
) -> None:
    """Give the intermediate another year; its key stays, so that all certificates below it go on."""
    end = _open(folder, passphrase_file, root_key=root_key).renew_intermediate(now=_now())
    print(json.dumps({"intermediate_not_after": _time(end)}) if as_json else f"the intermediate is valid until {_time(end)}")


@app.command(epilog="Examples:  fedsec ca rekey --root-key /media/usb/root-key.pem --yes")
def rekey(
    root_key: Path | None = typer.Option(None, "--root-key", help="The root's key, where it is kept.", show_default=False),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
    folder: Path = CA,
    passphrase_file: Path | None = PASSPHRASE,
    as_json: bool = JSON,
) -> None:
    """Give the intermediate a fresh key, after its theft. Stop the service first; then every peer enrols anew, and may keep its key."""
    from fedsec.identity.folder import read_passphrase

    if not yes:
        typer.confirm("All certificates, tokens and lists of this CA will count no more. Go on?", abort=True, err=True)
    number = _open(folder, passphrase_file, root_key=root_key).rekey(now=_now(), passphrase=read_passphrase(passphrase_file))
    host = _open(folder, passphrase_file)
    facts = {"statement": number, "intermediate_not_after": _time(host.authority.intermediate_not_after)}
    print(
        json.dumps(facts)
        if as_json
        else f"a fresh intermediate, valid until {facts['intermediate_not_after']}; the root's statement {number} is in {folder}\n"
        "next: start the service, then new tokens; the server first: fedsec server enroll --keep-key, then fedsec client enroll --keep-key"
    )


@app.command(epilog="Examples:  fedsec ca serve  ·  fedsec ca serve --host 0.0.0.0 --port 9444 --ca /srv/ca")
def serve(
    host: str = typer.Option("127.0.0.1", "--host", help="Address to listen on."),
    port: int = typer.Option(9444, "--port", min=0, max=65535, help="Port; 0 takes a free one. The gateway's is 9443."),
    folder: Path = CA,
    passphrase_file: Path | None = PASSPHRASE,
    as_json: bool = JSON,
) -> None:
    """Run the enrolment service until SIGTERM or SIGINT; one line of JSON a decision on stderr."""
    import logging
    import signal
    import threading

    from fedsec.edge.enrolment_service import make_server
    from fedsec.errors import FedsecError
    from fedsec.identity.folder import read_passphrase

    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    ca = _open(folder, passphrase_file)
    server, bound = make_server(ca, f"{host}:{port}", passphrase=read_passphrase(passphrase_file))
    server.start()
    facts = {"address": f"{host}:{bound}", "federation": ca.authority.federation, "service_sha256": ca.service.fingerprint.hex()}
    print(json.dumps(facts) if as_json else f"enrolment service of {facts['federation']} on {facts['address']}", flush=True)
    while not stop.wait(LISTS_EVERY_S):
        try:
            ca.keep_current(now=_now())
        except FedsecError as error:  # the next time may go better; callers are told meanwhile
            logging.getLogger("fedsec.enrolment").error("the lists were not looked after: %s", error)  # noqa: TRY400 - a sentence
    server.stop(5.0).wait()


def _open(folder: Path, passphrase_file: Path | None, *, root_key: Path | None = None) -> CaHost:
    from fedsec.edge.ca_host import CaHost
    from fedsec.identity.folder import read_passphrase

    return CaHost.open(folder, passphrase=read_passphrase(passphrase_file), root_key=root_key)


def _who(node: str | None, site: str | None, server: str | None, admin: str | None) -> tuple[Any, str]:
    """Role and name out of the options, of which exactly one names somebody."""
    from fedsec.errors import ConfigError
    from fedsec.identity.names import Role

    given = [(role, name) for role, name in ((Role.NODE, node), (Role.SERVER, server), (Role.ADMIN, admin)) if name is not None]
    if len(given) != 1:
        raise ConfigError("say for whom", mend="exactly one of --node, --server and --admin")
    if (site is not None) != (node is not None):
        raise ConfigError("a node has a site, and nobody else has", field="--site", mend="give --node and --site together")
    return given[0]


def _print_alarms(host: CaHost, *, as_json: bool) -> None:
    found = host.alarms()
    if as_json:
        facts = [
            {
                "role": item.role.value,
                "site": item.site,
                "name": item.name,
                "serial_number": f"{item.serial_number:X}",
                "first_at": _time(item.first_at),
                "last_at": _time(item.last_at),
                "times": item.times,
            }
            for item in found
        ]
        print(json.dumps({"alarms": facts}))
        return
    for item in found:
        print(f"{_time(item.last_at)}  the token for {item.role.value} {item.name} was used, and shown {item.times}x with another key")
        print(
            f"    ask whose key got {item.serial_number:X}; if it was not the device's: fedsec ca revoke {item.serial_number:X} --reason key-compromise"
        )
    if not found:
        print("no alarms")


def _facts(record: Record) -> dict[str, Any]:
    return {
        "serial_number": f"{record.serial_number:X}",
        "role": record.role.value,
        "site": record.site,
        "name": record.name,
        "public_key": record.public_key.hex(),
        "not_before": _time(record.not_before),
        "not_after": _time(record.not_after),
        "issued_at": _time(record.issued_at),
        "origin": record.origin,
        "revoked_at": None if record.revoked_at is None else _time(record.revoked_at),
        "reason": record.reason,
    }


def _line(record: Record) -> str:
    who = f"{record.name} of {record.site}" if record.site else record.name
    state = f"revoked {_time(record.revoked_at)} ({record.reason})" if record.revoked_at is not None else f"until {_time(record.not_after)}"
    return f"{record.role.value:6} {who:32} {record.serial_number:X}  {state}"


def _now() -> Any:
    from datetime import UTC, datetime

    return datetime.now(tz=UTC)


def _time(time: Any) -> str:
    return f"{time:%Y-%m-%dT%H:%M:%SZ}"


def _read(path: Path, limit: int) -> bytes:
    from fedsec.errors import StorageError

    try:
        with path.open("rb") as handle:
            return handle.read(limit + 1)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error


def _make_folder(folder: Path) -> None:
    from fedsec.errors import StorageError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make {folder}: {error.strerror or error}") from error
