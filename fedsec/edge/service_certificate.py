"""The enrolment service's own TLS certificate: self-signed, pinned by its SHA-256, nothing to do with the federation's CA.

With a certificate of the federation, any server of it would pass for the service: a gRPC client cannot look at a server's URI.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from fedsec.edge.enrolment_frames import SERVICE_TARGET
from fedsec.errors import StorageError
from fedsec.files import atomic_write_bytes
from fedsec.signing import Signer, decode_public_key

_SERVICE_LIFETIME = timedelta(days=3652)
"""Long: the certificate is pinned by its hash, in tokens and in gateways' settings, and nothing else speaks for it."""


@dataclass(frozen=True)
class ServiceCertificate:
    """The enrolment service's own TLS certificate.

    Attributes:
        certificate_der: it.
        fingerprint: its SHA-256, 32 bytes: what tokens pin.
    """

    certificate_der: bytes
    fingerprint: bytes


def make_service(folder: Path, *, now: datetime, passphrase: bytes | None) -> None:
    """Make key and certificate in an existing folder.

    Args:
        folder: where.
        now: aware.
        passphrase: encrypts the key.

    Raises:
        StorageError: the file system refused.
    """
    signer = Signer.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, SERVICE_TARGET)])
    builder = x509.CertificateBuilder().issuer_name(name).subject_name(name).public_key(decode_public_key(signer.public_key))
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before((now - timedelta(days=1)).replace(microsecond=0))
    builder = builder.not_valid_after((now + _SERVICE_LIFETIME).replace(microsecond=0))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(SERVICE_TARGET)]), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    certificate = signer.sign_certificate(builder)
    atomic_write_bytes(folder / "key.pem", signer.to_pem(passphrase=passphrase), mode=0o600)
    atomic_write_bytes(folder / "cert.pem", certificate.public_bytes(serialization.Encoding.PEM))


def load_service(folder: Path) -> ServiceCertificate:
    """Read the certificate; raises StorageError."""
    path = folder / "cert.pem"
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError:
        raise StorageError(f"{path} is not a certificate") from None
    return ServiceCertificate(certificate.public_bytes(serialization.Encoding.DER), certificate.fingerprint(hashes.SHA256()))
