"""Certificates, revocation lists and tokens as the doctor sees them: bytes and a time in, every fault by itself out.

1. ``verify_peer`` stops at the first fault, as a verifier must. A doctor names them all, so the questions are asked one by one here; what
   they do not cover, ``verify_peer`` itself says at the end. Nothing in here ever admits anybody.
2. Pure: the time is an argument.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID

from fedsec.edge.doctor_findings import Finding, finding, ok, settle
from fedsec.errors import CertificateError, DecodeError, VerificationError
from fedsec.identity.intermediates import verify_statement
from fedsec.identity.names import PeerName, Role
from fedsec.identity.revocation import RevokedError, verify_crl
from fedsec.identity.tokens import Token, read_token
from fedsec.identity.verify import USAGES, check_issuers, claimed_name, verify_peer

LATE = 4
"""Renewal comes at two thirds of a certificate's life: with less than a quarter of it left, it is late."""

ISSUER_WARNING = timedelta(days=30)

_USAGE_NAMES = {ExtendedKeyUsageOID.CLIENT_AUTH: "clientAuth", ExtendedKeyUsageOID.SERVER_AUTH: "serverAuth"}


@dataclass(frozen=True)
class Chain:
    """A certificate and what stands above it.

    Attributes:
        certificate_der: the leaf.
        intermediate_der: the issuer, as known here.
        root_der: the pinned root.
    """

    certificate_der: bytes
    intermediate_der: bytes
    root_der: bytes


@dataclass(frozen=True)
class Expected:
    """Whom a certificate should name; None: not known here.

    Attributes:
        role: what it must be.
        federation: the trust domain.
        name: client id, or name of the server.
    """

    role: Role
    federation: str | None = None
    name: str | None = None


def examine_chain(prefix: str, chain: Chain, expected: Expected, *, now: datetime) -> list[Finding]:
    """Every fault of a certificate.

    Args:
        prefix: ``certificate`` (our own) or ``server-certificate``.
        chain: with the root of this folder.
        expected: whom it should name.
        now: aware.
    """
    try:
        leaf = x509.load_der_x509_certificate(chain.certificate_der)
    except ValueError as error:
        return [finding(f"{prefix}.unreadable", f"{error}")]
    try:
        name = claimed_name(chain.certificate_der)
    except CertificateError as error:  # the enrolment service's own has no name that could be read, and is known by who signed it
        own_issue = [item for item in _examine_issue(prefix, leaf, chain) if item.code == "server-certificate.self-signed"]
        return own_issue or [finding(f"{prefix}.unreadable", f"{error}")]
    found = [*_examine_issue(prefix, leaf, chain), *examine_time(prefix, leaf, now), *_examine_usage(prefix, leaf, expected.role)]
    found += _examine_name(prefix, name, expected)
    if not any(item.code.endswith((".wrong-ca", ".self-signed", ".wrong-usage", ".wrong-role", ".wrong-federation")) for item in found):
        found += _examine_rest(prefix, leaf, chain, name)
    return settle(prefix, found, f"{name.uri}, valid until {leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC")


def _examine_issue(prefix: str, leaf: x509.Certificate, chain: Chain) -> list[Finding]:
    if _issued_by(leaf, leaf):
        code = f"{prefix}.self-signed" if prefix == "server-certificate" else f"{prefix}.wrong-ca"
        return [finding(code, "the certificate signed itself; no CA did")]
    try:
        intermediate = x509.load_der_x509_certificate(chain.intermediate_der)
        root = x509.load_der_x509_certificate(chain.root_der)
    except ValueError:
        return [finding("issuer.unsound", "root or intermediate cannot be read")]
    if _issued_by(leaf, intermediate) and _issued_by(intermediate, root):
        return []
    return [finding(f"{prefix}.wrong-ca", f"not issued below the root that is pinned here ({_short(root)})")]


def examine_time(prefix: str, leaf: x509.Certificate, now: datetime) -> list[Finding]:
    """Expired, not yet valid, or near its end (our own only)."""
    begin, end = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    clock = f"here it is {now:%Y-%m-%d %H:%M:%S} UTC"
    if now > end:
        return [finding(f"{prefix}.expired", f"expired at {end:%Y-%m-%d %H:%M:%S} UTC, {_span(now - end)} ago; {clock}")]
    if now < begin:
        return [
            finding(f"{prefix}.not-yet-valid", f"not valid before {begin:%Y-%m-%d %H:%M:%S} UTC, {_span(begin - now)} from now; {clock}")
        ]
    if prefix == "certificate" and (end - now) * LATE < end - begin:
        return [finding(f"{prefix}.expires-soon", f"expires at {end:%Y-%m-%d %H:%M:%S} UTC, in {_span(end - now)}")]
    return []


def _examine_usage(prefix: str, leaf: x509.Certificate, role: Role) -> list[Finding]:
    try:
        usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return [finding(f"{prefix}.wrong-usage", f"no extended key usage; a {role.value} has exactly one")]
    except ValueError:
        return [finding(f"{prefix}.unreadable", "its extensions cannot be read")]
    if usages != x509.ExtendedKeyUsage([USAGES[role]]):
        names = ", ".join(_USAGE_NAMES.get(usage, usage.dotted_string) for usage in usages)
        return [finding(f"{prefix}.wrong-usage", f"its extended key usage is {names}, not that of a {role.value}")]
    return []


def _examine_name(prefix: str, name: PeerName, expected: Expected) -> list[Finding]:
    found = []
    if name.role is not expected.role:
        found.append(finding(f"{prefix}.wrong-role", f"it names a {name.role.value} ({name.uri}), not a {expected.role.value}"))
    if expected.federation is not None and name.federation != expected.federation:
        found.append(finding(f"{prefix}.wrong-federation", f"it is of the federation {name.federation}, not {expected.federation}"))
    elif prefix == "server-certificate" and name.role is Role.SERVER and expected.name is not None and name.name != expected.name:
        found.append(finding(f"{prefix}.another-server", f"the server {name.name} answers, agent.toml expects {expected.name}"))
    return found


def _examine_rest(prefix: str, leaf: x509.Certificate, chain: Chain, name: PeerName) -> list[Finding]:
    """What ``verify_peer`` refuses beside what was asked above, at a time at which all three are valid."""
    try:
        intermediate = x509.load_der_x509_certificate(chain.intermediate_der)
        verify_peer(
            chain.certificate_der,
            intermediate_der=chain.intermediate_der,
            root_der=chain.root_der,
            federation=name.federation,
            role=name.role,
            now=max(leaf.not_valid_before_utc, intermediate.not_valid_before_utc),
            accepted=None,  # examine_issuers says it
        )
    except (CertificateError, ValueError) as error:
        return [finding(f"{prefix}.unsound", f"{error}")]
    return []


def examine_issuers(intermediate_der: bytes, root_der: bytes, *, now: datetime, statement: bytes = b"") -> list[Finding]:
    """Root and intermediate of a folder, and what the root says about the intermediate, if anything."""
    try:
        issuers = check_issuers(intermediate_der, root_der)
    except CertificateError as error:
        return [finding("issuer.unsound", f"{error}")]
    found = []
    if statement:
        try:
            verify_statement(statement, root_der=root_der, federation=issuers.federation).check(issuers.public_key)
        except (VerificationError, DecodeError) as error:
            found.append(finding("issuer.void", f"{error}"))
    for what, certificate in (("root", issuers.root), ("intermediate", issuers.intermediate)):
        end = certificate.not_valid_after_utc
        if now > end:
            found.append(finding("issuer.expired", f"the {what} expired at {end:%Y-%m-%d %H:%M:%S} UTC"))
        elif now < certificate.not_valid_before_utc:
            found.append(
                finding("issuer.not-yet-valid", f"the {what} is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC")
            )
        elif end - now < ISSUER_WARNING:
            found.append(finding("issuer.expires-soon", f"the {what} expires at {end:%Y-%m-%d %H:%M} UTC, in {_span(end - now)}"))
    return settle("issuer", found, f"root {_short(issuers.root)} of {issuers.federation}")


def examine_crl(crl: bytes, chain: Chain, serial_numbers: dict[str, int], *, now: datetime) -> list[Finding]:
    """A revocation list and what it says.

    Args:
        crl: DER, or empty: none.
        chain: intermediate and root that must have made it.
        serial_numbers: what to look for: ``certificate`` (our own) and ``server-certificate``.
        now: aware.
    """
    if not crl:
        return [finding("revocation.unknown", "there is no revocation list")]
    try:
        issuers = check_issuers(chain.intermediate_der, chain.root_der)
        made = x509.load_der_x509_crl(crl).last_update_utc
        trusted = {"intermediate_der": chain.intermediate_der, "root_der": chain.root_der, "federation": issuers.federation}
        listed = verify_crl(crl, **trusted, now=max(made, issuers.intermediate.not_valid_before_utc), accepted=None)  # type: ignore[arg-type]
    except (CertificateError, ValueError, UnsupportedAlgorithm) as error:
        return [finding("revocation.unknown", f"the revocation list cannot be used: {error}")]
    found = []
    for what, number in serial_numbers.items():
        try:
            listed.check(number)
        except RevokedError as error:
            found.append(finding("revocation.revoked" if what == "certificate" else f"{what}.revoked", f"{error}"))
    try:
        listed.check_time(now)
    except CertificateError as error:
        found.append(finding("revocation.ended", f"{error}"))
    return settle(
        "revocation",
        found,
        f"list {listed.number}, {len(listed.serial_numbers)} revoked, good until {listed.next_update:%Y-%m-%d %H:%M} UTC",
    )


def examine_token(
    text: str, *, role: Role | None, name: PeerName | None, root_der: bytes | None, now: datetime
) -> tuple[list[Finding], Token | None]:
    """A token, before it is spent.

    Args:
        text: the line; secret.
        role: what this folder is for; None: not known.
        name: of the identity that is here already; None: none.
        root_der: pinned here already; None: none.
        now: aware.

    Returns:
        Findings (none: all is in order so far), and what the token says, if it can be read.
    """
    try:
        token = read_token(text.strip())
    except DecodeError as error:
        return [finding("token.unreadable", f"{error}")], None
    found = []
    if now > token.not_after:
        found.append(finding("token.expired", f"ended at {token.not_after:%Y-%m-%d %H:%M:%S} UTC; here it is {now:%Y-%m-%d %H:%M:%S} UTC"))
    if name is not None and token.federation != name.federation:
        found.append(finding("token.other-federation", f"for the federation {token.federation}; this folder is of {name.federation}"))
    elif root_der is not None and not hmac.compare_digest(hashlib.sha256(root_der).digest(), token.root_sha256):
        found.append(finding("token.other-root", f"it pins another root than this folder, though both say {token.federation}"))
    elif name is not None:
        found.append(finding("token.used", f"this folder already has the identity {name.uri}"))
    if role is not None and token.role is not role:
        found.append(finding("token.other-role", f"it is for a {token.role.value}; this folder is for a {role.value}"))
    if token.address is None:
        found.append(finding("token.no-address", "it does not say where the enrolment service is"))
    return found, token


def examine_service(token: Token, certificate_der: bytes) -> Finding:
    """Whether what answers at the token's address is the CA that made it."""
    if not hmac.compare_digest(hashlib.sha256(certificate_der).digest(), token.service_sha256):
        return finding("token.other-service", f"{token.address} shows another certificate than the token pins")
    return ok("token", f"for {token.uri}, until {token.not_after:%H:%M:%S} UTC; {token.address} is the CA's service")


def _issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _short(certificate: x509.Certificate) -> str:
    return f"SHA-256 {certificate.fingerprint(hashes.SHA256()).hex()[:16]}…"


def _span(length: timedelta) -> str:
    seconds = int(length.total_seconds())
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} seconds"
