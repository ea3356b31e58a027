"""Whom a certificate names: bytes in, :class:`VerifiedPeer` out, or an error that says what was wrong.

1. One flat list of checks, all made here: gRPC's and ``cryptography``'s own path validation accept a leaf without extended key usage.
2. The chain has exactly three certificates: the pinned root, an intermediate that may name peers of one federation only, the leaf.
3. A key, a lifetime, a usage or a name that this federation's CA would not issue is refused, whoever signed it.
4. The subject must be the one that goes with the name: TLS, which cannot look at a URI, goes by it.
5. Of the intermediates of a root only those count that its newest statement names (``identity.intermediates``), where there is one.
6. The caller says what time it is. Checks that do not depend on the time are remembered for a pair of issuers.
7. The signature on a certificate has a twin (the other s), which anybody can compute: a fingerprint stands for bytes, not for a
   certificate. Revocation goes by the serial number.
8. Only :func:`verify_peer` makes a :class:`VerifiedPeer`.

Source: RFC 5280 sections 4.2 and 6.1; X.509-SVID specification.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID, SignatureAlgorithmOID

from fedsec.errors import CertificateError
from fedsec.identity.intermediates import AcceptedIntermediates
from fedsec.identity.names import PeerName, Role, check_name, parse_uri
from fedsec.signing import encode_public_key

BACKDATE = timedelta(minutes=5)
"""How long before its issue a certificate begins to be valid: clocks differ."""

LIFETIMES = {Role.NODE: timedelta(hours=72), Role.SERVER: timedelta(days=7), Role.ADMIN: timedelta(hours=12)}
"""Longest validity of a leaf, from its issue."""

USAGES = {
    Role.NODE: ExtendedKeyUsageOID.CLIENT_AUTH,
    Role.SERVER: ExtendedKeyUsageOID.SERVER_AUTH,
    Role.ADMIN: ExtendedKeyUsageOID.CLIENT_AUTH,
}
"""The one extended key usage of a leaf. A node and an administrator are told apart by their names."""

_CA_USAGE = frozenset({"key_cert_sign", "crl_sign"})
_LEAF_USAGE = frozenset({"digital_signature"})
_USAGE_BITS = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign", "crl_sign",
)  # fmt: skip
_KNOWN_EXTENSIONS = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
        ExtensionOID.NAME_CONSTRAINTS,
    }
)


@dataclass(frozen=True)
class VerifiedPeer:
    """A peer whose certificate was verified; made by :func:`verify_peer` only.

    Attributes:
        name: who.
        public_key: 33 bytes.
        serial_number: of the certificate.
        not_after: until when the certificate is valid.
        fingerprint: SHA-256 of the certificate, 32 bytes.
    """

    name: PeerName
    public_key: bytes
    serial_number: int
    not_after: datetime
    fingerprint: bytes


@dataclass(frozen=True)
class Issuers:
    """A root and an intermediate that passed every check but that of the time; made by :func:`check_issuers` only.

    Attributes:
        federation: the one whose peers the intermediate may name.
        root: the pinned root.
        intermediate: issues leaves and signs rosters.
        public_key: of the intermediate, 33 bytes.
    """

    federation: str
    root: x509.Certificate
    intermediate: x509.Certificate
    public_key: bytes

    def check_time(self, now: datetime) -> None:
        """Refuse issuers that are not valid now.

        Raises:
            CertificateError: says which.
        """
        _check_validity(self.root, now, "root")
        _check_validity(self.intermediate, now, "intermediate")

    def check(self, *, federation: str, now: datetime, accepted: AcceptedIntermediates | None) -> None:
        """Refuse issuers that do not count now, for this federation.

        Args:
            federation: the one that they must be for.
            now: aware.
            accepted: the root's newest statement; None: it never made one that came here.

        Raises:
            CertificateError: says which, and why.
        """
        self.check_time(now)
        if self.federation != federation:
            raise CertificateError(f"intermediate certificate: for the federation {self.federation}, not {federation}")
        if accepted is not None:
            accepted.check(self.public_key)


def verify_peer(
    certificate_der: bytes,
    *,
    intermediate_der: bytes,
    root_der: bytes,
    federation: str,
    role: Role,
    now: datetime,
    accepted: AcceptedIntermediates | None = None,
) -> VerifiedPeer:
    """Check a peer's certificate.

    Args:
        certificate_der: what the peer showed.
        intermediate_der: its issuer.
        root_der: the pinned root.
        federation: the federation that the peer must belong to.
        role: what the peer must be.
        now: aware; the time at which all three must be valid.
        accepted: the root's newest statement that the verifier has.

    Raises:
        CertificateError: says which certificate, and what is wrong with it.
        ValueError: ``now`` is naive.
    """
    what = f"{role.value} certificate"
    issuers = check_issuers(intermediate_der, root_der)
    issuers.check(federation=federation, now=now, accepted=accepted)
    leaf = _parse(certificate_der, what)
    _check_issued(leaf, issuers.intermediate, what)
    _check_validity(leaf, now, what)
    _check_lifetime(leaf, role, what)
    _check_critical_extensions(leaf, what)
    _check_leaf_constraints(leaf, what)
    _check_key_usage(leaf, _LEAF_USAGE, what)
    _check_extended_usage(leaf, role, what)
    name = _name_of(leaf, what)
    if name.role is not role:
        raise CertificateError(f"{what}: names a {name.role.value}")
    if name.federation != federation:
        raise CertificateError(f"{what}: for the federation {name.federation}, not {federation}")
    _check_subject(leaf, name, what)
    return VerifiedPeer(name, _public_key(leaf, what), leaf.serial_number, leaf.not_valid_after_utc, leaf.fingerprint(hashes.SHA256()))


@functools.lru_cache(maxsize=64)
def check_issuers(intermediate_der: bytes, root_der: bytes) -> Issuers:
    """Check a chain's upper end, except for the time; remembered for the pair.

    Raises:
        CertificateError: says which certificate, and what is wrong with it.
    """
    root, intermediate = _parse(root_der, "root"), _parse(intermediate_der, "intermediate")
    for certificate, issuer, path_length, what in ((root, root, 1, "root"), (intermediate, root, 0, "intermediate")):
        _check_issued(certificate, issuer, what)
        _check_critical_extensions(certificate, what)
        _check_ca_constraints(certificate, path_length, what)
        _check_key_usage(certificate, _CA_USAGE, what)
        _public_key(certificate, what)
    return Issuers(_constrained_to(intermediate), root, intermediate, _public_key(intermediate, "intermediate"))


def claimed_name(certificate_der: bytes) -> PeerName:
    """The name that a certificate claims, **unverified**: for its own holder, who asks what it was issued for.

    Raises:
        CertificateError: it cannot be read, or claims no one name.
    """
    return _name_of(_parse(certificate_der, "the certificate"), "the certificate")


def claimed_serial_number(certificate_der: bytes) -> str:
    """The serial number that a certificate claims, **unverified**, as upper-case hex: what a CA needs to find and to revoke it.

    Raises:
        CertificateError: it cannot be read.
    """
    return f"{_parse(certificate_der, 'the certificate').serial_number:X}"


def _parse(der: bytes, what: str) -> x509.Certificate:
    """Everything that may fail to parse later is touched here, so that it fails here."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        _ = certificate.extensions, certificate.public_key(), certificate.not_valid_before_utc, certificate.not_valid_after_utc
        _ = certificate.issuer, certificate.subject
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        raise CertificateError(f"{what}: not a certificate that can be read") from None
    if certificate.version is not x509.Version.v3 or certificate.serial_number < 1:
        raise CertificateError(f"{what}: not of version 3, or its serial number is not positive")
    if not der.endswith(b"\0" + certificate.signature):  # the parser skips the count of unused bits: it would be anybody's to change
        raise CertificateError(f"{what}: not in the one encoding of its signature")
    return certificate


def _check_issued(certificate: x509.Certificate, issuer: x509.Certificate, what: str) -> None:
    if certificate.signature_algorithm_oid != SignatureAlgorithmOID.ECDSA_WITH_SHA256:
        raise CertificateError(f"{what}: not signed with ECDSA and SHA-256")
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        raise CertificateError(f"{what}: not issued by the {'root' if issuer is certificate else 'CA above it'}") from None


def _check_validity(certificate: x509.Certificate, now: datetime, what: str) -> None:
    if now.tzinfo is None:
        raise ValueError("now must be aware of its time zone")
    if now < certificate.not_valid_before_utc:
        raise CertificateError(f"{what}: not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M:%S} UTC")
    if now > certificate.not_valid_after_utc:
        raise CertificateError(f"{what}: expired at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M:%S} UTC")


def _check_lifetime(certificate: x509.Certificate, role: Role, what: str) -> None:
    lifetime = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    if lifetime > LIFETIMES[role] + BACKDATE:
        raise CertificateError(f"{what}: valid for {lifetime}, longer than {LIFETIMES[role]}")


def _check_critical_extensions(certificate: x509.Certificate, what: str) -> None:
    for extension in certificate.extensions:
        if extension.critical and extension.oid not in _KNOWN_EXTENSIONS:
            raise CertificateError(f"{what}: unknown critical extension {extension.oid.dotted_string}")


def _extension(certificate: x509.Certificate, kind: type[x509.ExtensionType], what: str, *, critical: bool) -> x509.ExtensionType:
    try:
        extension = certificate.extensions.get_extension_for_class(kind)
    except x509.ExtensionNotFound:
        raise CertificateError(f"{what}: no {kind.__name__}") from None
    if critical and not extension.critical:
        raise CertificateError(f"{what}: {kind.__name__} is not critical")
    return extension.value


def _check_ca_constraints(certificate: x509.Certificate, path_length: int, what: str) -> None:
    value = _extension(certificate, x509.BasicConstraints, what, critical=True)
    if value != x509.BasicConstraints(ca=True, path_length=path_length):
        raise CertificateError(f"{what}: not a CA with {path_length} more below it")


def _check_leaf_constraints(certificate: x509.Certificate, what: str) -> None:
    value = _extension(certificate, x509.BasicConstraints, what, critical=True)
    if value != x509.BasicConstraints(ca=False, path_length=None):
        raise CertificateError(f"{what}: a CA, not a peer")
    if any(extension.oid == ExtensionOID.NAME_CONSTRAINTS for extension in certificate.extensions):
        raise CertificateError(f"{what}: has name constraints, which are a CA's")


def _check_key_usage(certificate: x509.Certificate, expected: frozenset[str], what: str) -> None:
    value = _extension(certificate, x509.KeyUsage, what, critical=True)
    usages = {bit for bit in _USAGE_BITS if getattr(value, bit)}
    if usages != expected:
        raise CertificateError(f"{what}: key usage is {', '.join(sorted(usages)) or 'none'}, expected {', '.join(sorted(expected))}")


def _check_extended_usage(certificate: x509.Certificate, role: Role, what: str) -> None:
    value = _extension(certificate, x509.ExtendedKeyUsage, what, critical=False)
    if value != x509.ExtendedKeyUsage([USAGES[role]]):
        raise CertificateError(f"{what}: extended key usage is not exactly that of a {role.value}")


def _name_of(certificate: x509.Certificate, what: str) -> PeerName:
    value = _extension(certificate, x509.SubjectAlternativeName, what, critical=False)
    assert isinstance(value, x509.SubjectAlternativeName)
    names = list(value)
    if len(names) != 1 or not isinstance(names[0], x509.UniformResourceIdentifier):
        raise CertificateError(f"{what}: {len(names)} alternative names, expected one URI and nothing else")
    return parse_uri(names[0].value)


def _check_subject(certificate: x509.Certificate, name: PeerName, what: str) -> None:
    if certificate.subject != x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name.subject)]):
        raise CertificateError(f"{what}: its subject is not {name.subject!r}, which goes with its name")


def _constrained_to(intermediate: x509.Certificate) -> str:
    """The one federation whose peers the intermediate may name."""
    value = _extension(intermediate, x509.NameConstraints, "intermediate", critical=True)
    assert isinstance(value, x509.NameConstraints)
    permitted = value.permitted_subtrees or []
    if len(permitted) != 1 or value.excluded_subtrees or not isinstance(permitted[0], x509.UniformResourceIdentifier):
        raise CertificateError("intermediate: its name constraint is not exactly one federation")
    return check_name("federation", permitted[0].value)


def _public_key(certificate: x509.Certificate, what: str) -> bytes:
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise CertificateError(f"{what}: its key is not on P-256")
    return encode_public_key(key)
