"""What keeps an agent's loopback to itself: a folder that is made anew at each start, with a CA, keys and a secret of that start only.

1. SuperNode, SuperExec and ``flwr-clientapp`` trust one CA: its key signs one certificate for 127.0.0.1 and is then forgotten. Another
   local user who takes a free port has no certificate for it.
2. The SuperNode's key is fresh too: the agent signs for the node towards the gateway, so Flower's processes never hold the node's key.
   The agent knows its SuperNode by it.
3. A fresh Ed25519 key of the agent is the only trusted entity: the SuperNode runs what the agent admitted and nothing else.
4. All files are 0600 in a folder of 0700.

Source: flwr 1.41, ``--trusted-entities`` and ``--superexec-auth-secret-file``; design note FLOWER.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import json
import os
import secrets
import shutil
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedsec.errors import StorageError
from fedsec.files import atomic_write_bytes

HOST = "127.0.0.1"
TRUSTED_NAME = "fedsec-agent"
LIFETIME = timedelta(days=3650)
"""Of the loopback certificate; it is made anew at each start, and an agent may run for long."""

_NO_ENCRYPTION = serialization.NoEncryption()
_PEM = serialization.Encoding.PEM
_USAGE = {
    "digital_signature": False, "content_commitment": False, "key_encipherment": False, "data_encipherment": False, "key_agreement": False,
    "key_cert_sign": False, "crl_sign": False, "encipher_only": False, "decipher_only": False,
}  # fmt: skip


@dataclass(frozen=True)
class Loopback:
    """The folder's contents, and the keys that never touch the disk.

    Attributes:
        folder: where.
        node_public_key: of the SuperNode, PEM; its requests are signed with it.
        signer: admits FABs.
    """

    folder: Path
    node_public_key: bytes
    signer: ed25519.Ed25519PrivateKey = field(repr=False)

    @property
    def ca(self) -> Path:
        """PEM of the CA."""
        return self.folder / "ca.pem"

    @property
    def certificate(self) -> Path:
        """PEM of the certificate for 127.0.0.1."""
        return self.folder / "certificate.pem"

    @property
    def key(self) -> Path:
        """PEM of its key."""
        return self.folder / "key.pem"

    @property
    def node_key(self) -> Path:
        """The SuperNode's key, in OpenSSH's form."""
        return self.folder / "node_key"

    @property
    def trusted_entities(self) -> Path:
        """YAML that names the agent's Ed25519 key."""
        return self.folder / "trusted.yaml"

    @property
    def superexec_secret(self) -> Path:
        """Secret between SuperNode and SuperExec."""
        return self.folder / "superexec.secret"

    @property
    def flower_home(self) -> Path:
        """Flower's own folder; FABs are unpacked there."""
        return self.folder / "flwr"

    @property
    def commands(self) -> Path:
        """First folder of PATH for SuperExec."""
        return self.folder / "bin"

    def verifications(self, content: bytes, now: datetime) -> dict[str, str]:
        """What makes the SuperNode run this FAB: Flower's record of a verification.

        Args:
            content: the admitted FAB.
            now: aware.
        """
        signed_at = int(now.timestamp())
        signature = self.signer.sign(signed_at.to_bytes(8, "big") + hashlib.sha256(content).digest())
        record = {"signed_at": signed_at, "signature": base64.urlsafe_b64encode(signature).decode("ascii")}
        return {"valid_license": "fedsec", TRUSTED_NAME: json.dumps(record)}


def make_loopback(folder: Path, *, now: datetime) -> Loopback:
    """Make the folder anew; what an earlier start left is removed.

    Args:
        folder: its parent must exist.
        now: aware.

    Raises:
        StorageError: the file system refused.
    """
    try:
        if folder.is_symlink():
            raise StorageError(f"{folder} is a link; remove it")
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(mode=0o700)
        (folder / "flwr").mkdir(mode=0o700)
        (folder / "bin").mkdir(mode=0o700)
    except OSError as error:
        raise StorageError(f"cannot make {folder}: {error.strerror or error}") from error
    node_key, signer = ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate()
    public = node_key.public_key().public_bytes(_PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    made = Loopback(folder, public, signer)
    ca, certificate, key = _certificates(now)
    ssh = signer.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    for path, data in (
        (made.ca, ca),
        (made.certificate, certificate),
        (made.key, key),
        (made.node_key, node_key.private_bytes(_PEM, serialization.PrivateFormat.OpenSSH, _NO_ENCRYPTION)),
        (made.trusted_entities, f"{TRUSTED_NAME}: {ssh.decode('ascii')}\n".encode("ascii")),
        (made.superexec_secret, secrets.token_bytes(32)),
    ):
        atomic_write_bytes(path, data, mode=0o600, durable=False)
    return made


def write_command(path: Path, text: str) -> None:
    """Write an executable of the private folder.

    Raises:
        StorageError: the file system refused.
    """
    atomic_write_bytes(path, text.encode("utf-8"), mode=0o700, durable=False)


def _certificates(now: datetime) -> tuple[bytes, bytes, bytes]:
    """CA, certificate for 127.0.0.1, its key; all PEM."""
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"fedsec loopback {os.getpid()}")])
    ca_builder = _builder(issuer, issuer, ca_key, ca_key, now)
    ca_builder = ca_builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    ca_builder = ca_builder.add_extension(x509.KeyUsage(**{**_USAGE, "key_cert_sign": True}), critical=True)
    leaf = _builder(x509.Name([]), issuer, key, ca_key, now)
    leaf = leaf.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    leaf = leaf.add_extension(x509.KeyUsage(**{**_USAGE, "digital_signature": True}), critical=True)
    leaf = leaf.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    leaf = leaf.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))]), critical=True)
    signed = [builder.sign(ca_key, hashes.SHA256()).public_bytes(_PEM) for builder in (ca_builder, leaf)]
    return signed[0], signed[1], key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, _NO_ENCRYPTION)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, issuer_key: ec.EllipticCurvePrivateKey, now: datetime
) -> x509.CertificateBuilder:  # fmt: skip
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + LIFETIME)  # the clock may be set back while it runs
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    return builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
