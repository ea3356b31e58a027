"""Loopback TLS for Flower's processes: a throw-away CA and one certificate for 127.0.0.1; nothing to do with the federation's CA.

1. Flower wants TLS for node authentication, even on loopback. The CA's key is dropped at once: it signs one certificate, ever.
2. What is there and good for another month is kept, so that processes that run go on trusting each other; else both are made anew.
3. Key 0600; all files are written atomically, the CA last.
"""

from __future__ import annotations

import ipaddress
import ssl
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedsec.errors import StorageError
from fedsec.files import atomic_write_bytes

CA_FILE, CERTIFICATE_FILE, KEY_FILE = "ca.pem", "cert.pem", "key.pem"
LIFETIME = timedelta(days=730)
RENEW_BEFORE = timedelta(days=30)
_BACKDATE = timedelta(minutes=5)


def ensure_loopback_tls(folder: Path, *, now: datetime) -> bool:
    """Make ``ca.pem``, ``cert.pem`` and ``key.pem`` unless good ones are there.

    Args:
        folder: exists.
        now: aware.

    Returns:
        Whether they were made.

    Raises:
        StorageError: the file system refused.
    """
    if _is_good(folder, now):
        return False
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = _certificate("fedsec loopback CA", ca_key.public_key(), None, ca_key, now)
    leaf = _certificate("fedsec loopback", key.public_key(), ca, ca_key, now)
    encoded = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    atomic_write_bytes(folder / KEY_FILE, encoded, mode=0o600)
    atomic_write_bytes(folder / CERTIFICATE_FILE, leaf.public_bytes(serialization.Encoding.PEM))
    atomic_write_bytes(folder / CA_FILE, ca.public_bytes(serialization.Encoding.PEM))
    return True


def _is_good(folder: Path, now: datetime) -> bool:
    """All three are there, belong together, and last."""
    try:
        leaf, ca = (x509.load_pem_x509_certificate((folder / name).read_bytes()) for name in (CERTIFICATE_FILE, CA_FILE))
        leaf.verify_directly_issued_by(ca)
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(folder / CERTIFICATE_FILE, folder / KEY_FILE)
    except FileNotFoundError:
        return False
    except OSError as error:
        if isinstance(error, ssl.SSLError):
            return False
        raise StorageError(f"cannot read the loopback certificates in {folder}: {error.strerror or error}") from error
    except Exception:  # noqa: BLE001 - damaged in whatever way: they are made anew
        return False
    return leaf.not_valid_before_utc <= now < leaf.not_valid_after_utc - RENEW_BEFORE


def _certificate(
    name: str, public_key: ec.EllipticCurvePublicKey, ca: x509.Certificate | None, ca_key: ec.EllipticCurvePrivateKey, now: datetime
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    start = (now - _BACKDATE).replace(microsecond=0)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject if ca is None else ca.subject).public_key(public_key)
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(start).not_valid_after(start + LIFETIME)
    builder = builder.add_extension(x509.BasicConstraints(ca=ca is None, path_length=0 if ca is None else None), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    builder = builder.add_extension(issuer_id, critical=False)
    is_ca = ca is None
    usage = x509.KeyUsage(
        digital_signature=not is_ca, key_cert_sign=is_ca, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, crl_sign=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    builder = builder.add_extension(usage, critical=True)
    if not is_ca:
        names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    return builder.sign(ca_key, hashes.SHA256())
