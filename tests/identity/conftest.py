"""A builder of chains with one defect each; by itself it builds what the real CA issues."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedsec.identity.names import Role
from fedsec.identity.verify import VerifiedPeer, verify_peer

NOW = datetime(2030, 5, 1, 12, 0, 0, tzinfo=UTC)
FEDERATION = "hearts.example"
NODE_URI = f"spiffe://{FEDERATION}/site/basel/node/client-7"
SERVER_URI = f"spiffe://{FEDERATION}/server/main"
ADMIN_URI = f"spiffe://{FEDERATION}/admin/ada"
SUBJECTS = {Role.NODE: "fedsec node", Role.SERVER: "fedsec server main", Role.ADMIN: "fedsec admin"}
URIS = {Role.NODE: NODE_URI, Role.SERVER: SERVER_URI, Role.ADMIN: ADMIN_URI}
CA_USAGE = ("key_cert_sign", "crl_sign")
USAGE_BITS = (*CA_USAGE, "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only")  # fmt: skip

ROOT_KEY, INTERMEDIATE_KEY, LEAF_KEY, OTHER_KEY = (ec.generate_private_key(ec.SECP256R1()) for _ in range(4))


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def usage(*bits: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{bit: bit in bits for bit in USAGE_BITS})


def uris(*values: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(value) for value in values])


def constraint(*federations: str) -> x509.NameConstraints:
    return x509.NameConstraints([x509.UniformResourceIdentifier(value) for value in federations], None)


def certificate(
    *, subject: str, issuer: str, key: Any, issuer_key: Any, start: datetime, end: datetime, extensions: dict[str, tuple[Any, bool] | None],
    algorithm: hashes.HashAlgorithm | None = None,
) -> bytes:  # fmt: skip
    builder = x509.CertificateBuilder().subject_name(name(subject)).issuer_name(name(issuer)).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(start).not_valid_after(end)
    for extension in extensions.values():
        if extension is not None:
            builder = builder.add_extension(extension[0], critical=extension[1])
    return builder.sign(issuer_key, algorithm or hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def root(**changes: Any) -> bytes:
    extensions = {"constraints": (x509.BasicConstraints(ca=True, path_length=1), True), "usage": (usage(*CA_USAGE), True)}
    extensions |= changes.pop("extensions", {})
    sound = {
        "subject": "root",
        "issuer": "root",
        "key": ROOT_KEY,
        "issuer_key": ROOT_KEY,
        "start": NOW - timedelta(days=9),
        "end": NOW + timedelta(days=3000),
    }
    return certificate(**{**sound, **changes}, extensions=extensions)  # fmt: skip


def intermediate(**changes: Any) -> bytes:
    extensions = {
        "constraints": (x509.BasicConstraints(ca=True, path_length=0), True),
        "usage": (usage(*CA_USAGE), True),
        "names": (constraint(FEDERATION), True),
    }
    extensions |= changes.pop("extensions", {})
    sound = {
        "subject": "intermediate",
        "issuer": "root",
        "key": INTERMEDIATE_KEY,
        "issuer_key": ROOT_KEY,
        "start": NOW - timedelta(days=8),
        "end": NOW + timedelta(days=300),
    }
    return certificate(**{**sound, **changes}, extensions=extensions)  # fmt: skip


def leaf(role: Role = Role.NODE, **changes: Any) -> bytes:
    """``extensions={"eku": None}`` leaves one out; other names add one."""
    serving = role is Role.SERVER
    extensions = {
        "constraints": (x509.BasicConstraints(ca=False, path_length=None), True),
        "usage": (usage("digital_signature"), True),
        "eku": (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH if serving else ExtendedKeyUsageOID.CLIENT_AUTH]), False),
        "names": (uris(URIS[role]), False),
    }
    extensions |= changes.pop("extensions", {})
    sound = {
        "subject": SUBJECTS[role],
        "issuer": "intermediate",
        "key": LEAF_KEY,
        "issuer_key": INTERMEDIATE_KEY,
        "start": NOW - timedelta(hours=1),
        "end": NOW + timedelta(hours=11 if role is Role.ADMIN else 71),
    }
    return certificate(**{**sound, **changes}, extensions=extensions)  # fmt: skip


class Pki:
    """What the tests use: the builders above, a sound root and intermediate, and the verifier with all else sound."""

    root = staticmethod(root)
    intermediate = staticmethod(intermediate)
    leaf = staticmethod(leaf)
    uris = staticmethod(uris)
    usage = staticmethod(usage)
    constraint = staticmethod(constraint)
    now = NOW
    federation = FEDERATION
    node_uri = NODE_URI
    leaf_key = LEAF_KEY
    other_key = OTHER_KEY

    def __init__(self) -> None:
        self.root_der = root()
        self.intermediate_der = intermediate()

    def verify(self, certificate_der: bytes, **changes: Any) -> VerifiedPeer:
        sound = {
            "intermediate_der": self.intermediate_der,
            "root_der": self.root_der,
            "federation": FEDERATION,
            "role": Role.NODE,
            "now": NOW,
        }
        return verify_peer(certificate_der, **{**sound, **changes})


@pytest.fixture(scope="session")
def pki() -> Pki:
    return Pki()
