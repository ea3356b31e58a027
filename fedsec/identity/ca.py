"""The certificate authority of one federation: an offline root, an intermediate that works, and what they issue.

1. The root (10 years) signs intermediates only and may be kept elsewhere: a folder without ``root-key.pem`` loads and issues all the same.
2. The intermediate (1 year) may name peers of its federation only, by a critical name constraint.
3. A leaf has exactly one URI, its SPIFFE id, one key usage and one extended key usage; it lives no longer than ``verify.LIFETIMES``
   and no longer than its issuer. The subject says the role, and of a server the name (``names.subject_of``): only TLS reads it.
4. Whoever runs this is not the aggregator: a server that owns the CA can mint clients.

Source: design note IDENTITY, "Certificates"; RFC 5280; X.509-SVID specification.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fedsec.errors import CertificateError, SignatureError, StorageError
from fedsec.files import atomic_write_bytes
from fedsec.identity.folder import load_key
from fedsec.identity.names import Role, admin_uri, check_name, node_uri, parse_uri, server_uri, uri_of
from fedsec.identity.verify import BACKDATE, LIFETIMES, USAGES, Issuers, check_issuers
from fedsec.signing import Signer, decode_public_key

ROOT_LIFETIME = timedelta(days=3652)
INTERMEDIATE_LIFETIME = timedelta(days=365)

_USAGE_BITS = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign", "crl_sign",
    "encipher_only", "decipher_only",
)  # fmt: skip


@dataclass(frozen=True)
class Issued:
    """A certificate that was issued just now.

    Attributes:
        certificate_der: it.
        uri: the SPIFFE id in it.
        serial_number: its number.
        not_after: until when it is valid.
        fingerprint: its SHA-256, 32 bytes.
    """

    certificate_der: bytes
    uri: str
    serial_number: int
    not_after: datetime
    fingerprint: bytes


class CertificateAuthority:
    """Issues the certificates of one federation.

    Make it with :meth:`create` or :meth:`load`.

    Raises:
        CertificateError: the issuers are unsound, or a key is not theirs.
    """

    def __init__(self, *, root_der: bytes, intermediate_der: bytes, intermediate_key: Signer, root_key: Signer | None) -> None:
        self._issuers: Issuers = check_issuers(intermediate_der, root_der)
        root_public = self._issuers.root.public_key()
        assert isinstance(root_public, ec.EllipticCurvePublicKey)
        if intermediate_key.public_key != self._issuers.public_key:
            raise CertificateError("the intermediate's key is not that of its certificate")
        if root_key is not None and decode_public_key(root_key.public_key) != root_public:
            raise CertificateError("the root's key is not that of its certificate")
        self.root_der = root_der
        self.intermediate_der = intermediate_der
        self._intermediate_key = intermediate_key
        self._root_key = root_key

    def __repr__(self) -> str:
        return f"CertificateAuthority({self.federation})"

    @classmethod
    def create(cls, federation: str, *, now: datetime) -> Self:
        """A new authority with fresh keys.

        Args:
            federation: its trust domain, for example ``hearts.example``.
            now: aware.

        Raises:
            CertificateError: the federation's name may not stand in a SPIFFE id.
        """
        check_name("federation", federation)
        root_key, intermediate_key = Signer.generate(), Signer.generate()
        builder = _builder("fedsec root", "fedsec root", root_key.public_key, now, now + ROOT_LIFETIME)
        root = _sign(_as_ca(builder, path_length=1), root_key, root_key.public_key)
        intermediate = _intermediate(federation, intermediate_key.public_key, root_key, root.not_valid_after_utc, now)
        return cls(root_der=_der(root), intermediate_der=_der(intermediate), intermediate_key=intermediate_key, root_key=root_key)

    def with_new_intermediate(self, *, now: datetime) -> Self:
        """The same root and keys under a new certificate for the intermediate, valid for a year from now.

        Raises:
            CertificateError: the root's key is kept elsewhere, or the root is not valid now.
        """
        if self._root_key is None:
            raise CertificateError("the root's key is not here: it must sign the new intermediate")
        _check_within(self._issuers.root, now, "root")
        key, end = self._intermediate_key, self._issuers.root.not_valid_after_utc
        intermediate = _intermediate(self.federation, key.public_key, self._root_key, end, now)
        return type(self)(root_der=self.root_der, intermediate_der=_der(intermediate), intermediate_key=key, root_key=self._root_key)

    def with_fresh_intermediate(self, *, now: datetime) -> tuple[Self, Signer]:
        """The same root above an intermediate with a key of its own; and the root's key, which has to say so.

        Raises:
            CertificateError: the root's key is kept elsewhere, or the root is not valid now.
        """
        if self._root_key is None:
            raise CertificateError("the root's key is not here: it must sign the new intermediate")
        _check_within(self._issuers.root, now, "root")
        key, end = Signer.generate(), self._issuers.root.not_valid_after_utc
        intermediate = _intermediate(self.federation, key.public_key, self._root_key, end, now)
        made = type(self)(root_der=self.root_der, intermediate_der=_der(intermediate), intermediate_key=key, root_key=self._root_key)
        return made, self._root_key

    def with_intermediate(self, intermediate_der: bytes) -> Self:
        """The same root and keys under another certificate that the root gave the intermediate.

        Raises:
            CertificateError: it is not the root's, or for another key.
        """
        return type(self)(
            root_der=self.root_der, intermediate_der=intermediate_der, intermediate_key=self._intermediate_key, root_key=self._root_key
        )

    @property
    def federation(self) -> str:
        """The federation whose peers are named here."""
        return self._issuers.federation

    @property
    def signer(self) -> Signer:
        """Signs with the intermediate's key: for rosters."""
        return self._intermediate_key

    @property
    def intermediate_not_after(self) -> datetime:
        """Until when the intermediate is valid, and so whatever it issues."""
        return self._issuers.intermediate.not_valid_after_utc

    def issue_node(self, client_id: str, public_key: bytes, *, site: str, now: datetime) -> Issued:
        """A certificate for a client, valid for 72 hours from ``now``.

        Args:
            client_id: unique in the federation; the caller's to see to.
            public_key: the client's, 33 bytes.
            site: its organisation.
            now: aware.

        Raises:
            CertificateError: a bad name or key, or an intermediate that is not valid now.
        """
        return self._issue(Role.NODE, node_uri(self.federation, site, client_id), public_key, now)

    def issue_server(self, name: str, public_key: bytes, *, now: datetime) -> Issued:
        """A certificate for a server, valid for 7 days from ``now``; raises as :meth:`issue_node`."""
        return self._issue(Role.SERVER, server_uri(self.federation, name), public_key, now)

    def issue_admin(self, name: str, public_key: bytes, *, now: datetime) -> Issued:
        """A certificate for an administrator, valid for 12 hours from ``now``; raises as :meth:`issue_node`."""
        return self._issue(Role.ADMIN, admin_uri(self.federation, name), public_key, now)

    def issue(self, role: Role, site: str | None, name: str, public_key: bytes, *, now: datetime) -> Issued:
        """A certificate for a peer of any role; raises as :meth:`issue_node`."""
        return self._issue(role, uri_of(self.federation, role, site, name), public_key, now)

    def _issue(self, role: Role, uri: str, public_key: bytes, now: datetime) -> Issued:
        _check_within(self._issuers.intermediate, now, "intermediate")
        end = min(now + LIFETIMES[role], self.intermediate_not_after)
        builder = _builder("fedsec intermediate", parse_uri(uri).subject, public_key, now, end)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage("digital_signature"), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([USAGES[role]]), critical=False)
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False)
        leaf = _sign(builder, self._intermediate_key, public_key)
        return Issued(_der(leaf), uri, leaf.serial_number, leaf.not_valid_after_utc, leaf.fingerprint(hashes.SHA256()))

    def save(self, folder: Path, *, durable: bool = True, passphrase: bytes | None = None) -> None:
        """Write the authority into an existing folder; keys are readable by the owner only. Certificates come last.

        Args:
            folder: where.
            durable: survive a power cut.
            passphrase: encrypts the keys.

        Raises:
            StorageError: the file system refused.
        """
        for name, key in (("root-key.pem", self._root_key), ("intermediate-key.pem", self._intermediate_key)):
            if key is not None:
                atomic_write_bytes(folder / name, key.to_pem(passphrase=passphrase), mode=0o600, durable=durable)
        atomic_write_bytes(folder / "root.der", self.root_der, durable=durable)
        atomic_write_bytes(folder / "intermediate.der", self.intermediate_der, durable=durable)

    @classmethod
    def load(cls, folder: Path, *, passphrase: bytes | None = None, root_key: Path | None = None) -> Self:
        """Read what :meth:`save` wrote; without the root's key only the root's work is refused.

        Args:
            folder: where.
            passphrase: of the keys, if they are encrypted.
            root_key: the root's key where it is kept elsewhere; ``root-key.pem`` in the folder if left out.

        Raises:
            StorageError: a file is missing or damaged, a key may be read by others, or they do not belong together.
        """
        try:
            root_der, intermediate_der = (folder / "root.der").read_bytes(), (folder / "intermediate.der").read_bytes()
        except OSError as error:
            raise StorageError(f"cannot read the authority in {folder}: {error.strerror or error}") from error
        intermediate_key = load_key(folder / "intermediate-key.pem", passphrase=passphrase)
        root_path = root_key or folder / "root-key.pem"
        root = load_key(root_path, passphrase=passphrase) if root_key is not None or root_path.exists() else None
        try:
            return cls(root_der=root_der, intermediate_der=intermediate_der, intermediate_key=intermediate_key, root_key=root)
        except CertificateError as error:
            raise StorageError(f"the authority in {folder} is damaged: {error}") from error


def _intermediate(federation: str, public_key: bytes, root_key: Signer, end: datetime, now: datetime) -> x509.Certificate:
    builder = _builder("fedsec root", "fedsec intermediate", public_key, now, min(now + INTERMEDIATE_LIFETIME, end))
    permitted = [x509.UniformResourceIdentifier(federation)]
    builder = builder.add_extension(x509.NameConstraints(permitted_subtrees=permitted, excluded_subtrees=None), critical=True)
    return _sign(_as_ca(builder, path_length=0), root_key, public_key)


def _check_within(issuer: x509.Certificate, now: datetime, what: str) -> None:
    if not issuer.not_valid_before_utc <= now < issuer.not_valid_after_utc:
        raise CertificateError(f"the {what} is not valid now and issues nothing")


def _builder(issuer: str, subject: str, public_key: bytes, now: datetime, end: datetime) -> x509.CertificateBuilder:
    try:
        key = decode_public_key(public_key)
    except SignatureError as error:
        raise CertificateError(f"no certificate for {error}") from error
    start = (now - BACKDATE).replace(microsecond=0)
    builder = x509.CertificateBuilder().issuer_name(_subject(issuer)).subject_name(_subject(subject)).public_key(key)
    return builder.serial_number(x509.random_serial_number()).not_valid_before(start).not_valid_after(end.replace(microsecond=0))


def _subject(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _usage(*bits: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{bit: bit in bits for bit in _USAGE_BITS})


def _as_ca(builder: x509.CertificateBuilder, *, path_length: int) -> x509.CertificateBuilder:
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
    return builder.add_extension(_usage("key_cert_sign", "crl_sign"), critical=True)


def _sign(builder: x509.CertificateBuilder, issuer: Signer, public_key: bytes) -> x509.Certificate:
    subject_id = x509.SubjectKeyIdentifier.from_public_key(decode_public_key(public_key))
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(decode_public_key(issuer.public_key))
    builder = builder.add_extension(subject_id, critical=False).add_extension(issuer_id, critical=False)
    return issuer.sign_certificate(builder)


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)
