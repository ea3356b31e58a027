"""``fedsec release``: manifests of approved code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from datetime import datetime

    from fedsec.admission.manifest import Release
    from fedsec.identity.intermediates import AcceptedIntermediates

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Releases of approved code: enroll, build, sign, show, verify. Sites run nothing else.",
    epilog="Examples:  fedsec release enroll ada --token-file token.txt  ·  fedsec release build --federation hearts.example --version 1  ·  fedsec release sign release-1.json --identity ada  ·  "
    "fedsec release show release-1.json",
)

JSON = typer.Option(False, "--json", help="One JSON object on stdout.")
FILE = typer.Argument(help="Release file.")


@app.command(
    epilog="Examples:  fedsec release build --federation hearts.example --version 4  ·  "
    "fedsec release build --federation hearts.example --version 5 --name spring --days 60 --out spring.json"
)
def build(
    federation: str = typer.Option(..., "--federation", help="Whose release it is, for example hearts.example."),
    version: int = typer.Option(..., "--version", min=1, help="Whole number, higher than every one before."),
    name: str = typer.Option("fedsec", "--name", help="Name of the release, for people."),
    days: int = typer.Option(30, "--days", min=1, max=90, help="How long it counts."),
    out: Path | None = typer.Option(None, "--out", help="Release file; release-VERSION.json if left out.", show_default=False),
    as_json: bool = JSON,
) -> None:
    """Build the FAB of the installed fedsec and the manifest that names it and every installed file; nobody has approved it yet."""
    import tempfile

    from fedsec.edge.release_tools import build_fab, make_release, write_release
    from fedsec.files import atomic_write_bytes

    target = out if out is not None else Path(f"release-{version}.json")
    with tempfile.TemporaryDirectory(prefix="fedsec-fab-") as scratch:
        fab = build_fab(Path(scratch))
        content, fab_name = fab.read_bytes(), fab.name
    made = make_release(content, name=fab_name, federation=federation, release=name, version=version, days=days, now=_now())
    fab_path = target.with_suffix(".fab")
    atomic_write_bytes(fab_path, content)
    write_release(target, made)
    facts = {"release": str(target), "fab": str(fab_path), **_facts(made)}
    print(
        json.dumps(facts) if as_json else f"{_words(made)}\nwritten to {target}, the FAB to {fab_path}; next: fedsec release sign {target}"
    )


@app.command(
    epilog="Examples:  fedsec release enroll ada --token-file token.txt  ·  fedsec release enroll ada --token-file - --ca ca.hearts.example:9444"
)
def enroll(
    folder: Path = typer.Argument(help="New folder for the administrator's key and certificate."),
    token_file: Path = typer.Option(
        ..., "--token-file", help="File (mode 0600) with the token of `fedsec ca token --admin NAME`; - reads standard input."
    ),
    ca: str | None = typer.Option(None, "--ca", help="host:port of the CA's service. Default: what the token says.", show_default=False),
    keep_key: bool = typer.Option(False, "--keep-key", help="Get another certificate for the key that is there, after the old one ended."),
    as_json: bool = JSON,
) -> None:
    """Become an administrator, who approves releases: make a key, get a certificate of twelve hours. After that: a new token and --keep-key."""
    import sys

    from fedsec.edge.enrolment_client import enrol_folder, token_text
    from fedsec.errors import CertificateError
    from fedsec.identity.names import Role
    from fedsec.identity.tokens import read_token

    text = token_text(None, token_file, sys.stdin.read)
    claims = read_token(text)
    if claims.role is not Role.ADMIN:
        raise CertificateError(f"the token is for {claims.uri}, no administrator; ask for one made with --admin")
    identity = enrol_folder(folder, text, address=ca, keep_key=keep_key)
    facts = {
        "uri": identity.name.uri,
        "serial_number": f"{identity.serial_number:X}",
        "not_after": identity.not_after.isoformat(),
        "public_key": identity.signer.public_key.hex(),
    }
    words = (
        f"key {facts['public_key']}, for sites that pin it\n"
        f"enrolled as {identity.name.uri} until {identity.not_after:%Y-%m-%d %H:%M} UTC; next: fedsec release sign FILE --identity {folder}"
    )
    print(json.dumps(facts) if as_json else words)


@app.command(
    epilog="Examples:  fedsec release sign release-4.json --identity ~/ada  ·  fedsec release sign release-4.json --identity ada --yes"
)
def sign(
    file: Path = FILE,
    identity: Path = typer.Option(..., "--identity", help="Folder of an administrator's identity."),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
    as_json: bool = JSON,
) -> None:
    """Approve a release as an administrator: whoever signs says that this code may see the sites' records."""
    from fedsec.edge.release_tools import read_release, sign_release, write_release

    release = read_release(file)
    if not yes:
        typer.echo(_words(release), err=True)
        typer.confirm("Approve exactly this?", abort=True, err=True)
    signed, name = sign_release(release, identity, now=_now())
    write_release(file, signed)
    facts = {"release": str(file), "approved_by": name, "approvals": len(signed.approvals), "manifest_sha256": signed.sha256.hex()}
    print(json.dumps(facts) if as_json else f"approved by {name}; {file} now has {len(signed.approvals)} approvals")


@app.command(
    epilog="Examples:  fedsec release show release-4.json  ·  fedsec release show release-4.json --files  ·  fedsec release show release-4.json --json"
)
def show(
    file: Path = FILE,
    files: bool = typer.Option(False, "--files", help="Every file with its hash."),
    as_json: bool = JSON,
) -> None:
    """Say what a release file holds; nothing is verified."""
    from fedsec.edge.release_tools import read_release

    release = read_release(file)
    if as_json:
        listed = {"files": [_file(item) for item in release.manifest.files], "runtime": [_file(item) for item in release.manifest.runtime]}
        print(json.dumps({**_facts(release), **(listed if files else {})}))
        return
    print(_words(release))
    if files:
        for what, entries in (("FAB", release.manifest.files), ("installed", release.manifest.runtime)):
            for item in entries:
                print(f"{what:9} {item.sha256} {item.size:9} {item.path}")


@app.command(
    epilog="Examples:  fedsec release verify release-4.json --root root.der --approver ada --approver ben --approvals 2 --installed  ·  "
    "fedsec release verify release-4.json --root root.der --approver ada --fab release-4.fab --crl crl.der --intermediate intermediate.der"
)
def verify(
    file: Path = FILE,
    root: Path = typer.Option(..., "--root", help="The federation's root certificate (DER)."),
    approvers: list[str] = typer.Option(..., "--approver", help="A name that counts, or NAME=PUBLIC_KEY; may be given often."),
    approvals: int = typer.Option(1, "--approvals", min=1, help="How many are needed."),
    fab: Path | None = typer.Option(None, "--fab", help="This FAB must be the release's.", show_default=False),
    installed: bool = typer.Option(False, "--installed", help="The packages installed here must be the release's."),
    crl: Path | None = typer.Option(None, "--crl", help="Revocation list (DER); with --intermediate.", show_default=False),
    intermediate: Path | None = typer.Option(None, "--intermediate", help="Its issuer (DER).", show_default=False),
    statement: Path | None = typer.Option(
        None, "--statement", help="The root's newest statement (root-statement.bin).", show_default=False
    ),
    as_json: bool = JSON,
) -> None:
    """Check a release as a site would; exits with an error that says what does not hold."""
    from fedsec.edge.release_tools import check_release, read_release

    release, root_der = read_release(file), _read(root)
    accepted = _accepted(statement, root_der, release.manifest.federation)
    revoked = frozenset[int]()
    if crl is not None or intermediate is not None:
        revoked = _revoked(crl, intermediate, root_der, release.manifest.federation, accepted)
    verified = check_release(
        release,
        root_der=root_der,
        approvers=_approvers(approvers),
        approvals=approvals,
        now=_now(),
        revoked=revoked,
        fab=_read(fab) if fab is not None else None,
        installed=installed,
        accepted=accepted,
    )
    facts = {**_facts(release), "counted": list(verified.approvers), "revocation_list": crl is not None}
    if as_json:
        print(json.dumps(facts))
        return
    unchecked = "" if crl is not None else "; revocations were not looked at (--crl)"
    print(
        f"release {release.manifest.release} version {release.manifest.version} holds: approved by {', '.join(verified.approvers)}{unchecked}"
    )


def _accepted(statement: Path | None, root_der: bytes, federation: str) -> AcceptedIntermediates | None:
    from fedsec.identity.intermediates import verify_statement

    return verify_statement(_read(statement), root_der=root_der, federation=federation) if statement is not None else None


def _revoked(
    crl: Path | None, intermediate: Path | None, root_der: bytes, federation: str, accepted: AcceptedIntermediates | None
) -> frozenset[int]:
    from fedsec.errors import ConfigError
    from fedsec.identity.revocation import verify_crl

    if crl is None or intermediate is None:
        raise ConfigError("a revocation list is checked with its issuer", field="--crl", mend="give both --crl and --intermediate")
    found = verify_crl(
        _read(crl), intermediate_der=_read(intermediate), root_der=root_der, federation=federation, now=_now(), accepted=accepted
    )
    return found.serial_numbers


def _approvers(given: list[str]) -> dict[str, bytes | None]:
    from fedsec.errors import ConfigError

    found: dict[str, bytes | None] = {}
    for item in given:
        name, _, key = item.partition("=")
        try:
            found[name] = bytes.fromhex(key) if key else None
        except ValueError:
            raise ConfigError("not NAME=PUBLIC_KEY with 66 hex digits", field="--approver") from None
    return found


def _read(path: Path) -> bytes:
    from fedsec.errors import StorageError

    try:
        return path.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error


def _facts(release: Release) -> dict[str, Any]:
    manifest = release.manifest
    return {
        "federation": manifest.federation,
        "name": manifest.release,
        "version": manifest.version,
        "not_before": manifest.not_before.isoformat(),
        "not_after": manifest.not_after.isoformat(),
        "manifest_sha256": release.sha256.hex(),
        "fab_sha256": manifest.fab.sha256,
        "fab_files": len(manifest.files),
        "installed_files": len(manifest.runtime),
        "approvals": [_approval(item.certificate, item.approved_at.isoformat()) for item in release.approvals],
    }


def _approval(certificate: bytes, approved_at: str) -> dict[str, str]:
    from fedsec.errors import CertificateError
    from fedsec.identity.verify import claimed_name

    try:
        claims = claimed_name(certificate).uri
    except CertificateError:
        claims = "unreadable"
    return {"claims_to_be": claims, "approved_at": approved_at}


def _words(release: Release) -> str:
    manifest, facts = release.manifest, _facts(release)
    lines = [
        f"release    {manifest.release} version {manifest.version} of {manifest.federation}",
        f"valid      {manifest.not_before:%Y-%m-%d %H:%M} to {manifest.not_after:%Y-%m-%d %H:%M} UTC",
        f"manifest   SHA-256 {facts['manifest_sha256']}",
        f"FAB        SHA-256 {manifest.fab.sha256}, {manifest.fab.size} bytes, {len(manifest.files)} files, {manifest.fab.name}",
        f"installed  {len(manifest.runtime)} files",
    ]
    claims = [f"{item['claims_to_be']} at {item['approved_at']}" for item in facts["approvals"]]
    lines.append(f"approvals  {len(claims)}, not verified here" + "".join(f"\n           {line}" for line in claims))
    return "\n".join(lines)


def _file(entry: Any) -> dict[str, Any]:
    return {"path": entry.path, "sha256": entry.sha256, "size": entry.size}


def _now() -> datetime:
    from datetime import UTC, datetime

    return datetime.now(UTC)
