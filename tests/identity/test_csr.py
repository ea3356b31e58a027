"""Requests: the key and nothing else comes out, and only if its sender holds it."""

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import AttributeOID, ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.errors import CertificateError
from fedsec.identity.csr import MAX_CSR_BYTES, make_csr, read_csr
from fedsec.signing import Signer

SIGNER = Signer.generate()
SHA256 = hashes.SHA256()
DER = make_csr(SIGNER)
SUBJECT = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedsec request")])


def build(key=None, *, subject=SUBJECT, extensions=(), attributes=(), algorithm=SHA256):
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    for oid, value in attributes:
        builder = builder.add_attribute(oid, value)
    return builder.sign(key or ec.generate_private_key(ec.SECP256R1()), algorithm).public_bytes(Encoding.DER)


def test_the_key_comes_back():
    assert read_csr(make_csr(SIGNER)) == SIGNER.public_key
    assert len(make_csr(SIGNER)) < 250
    read_csr(build())


URI = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://hearts.example/server/main")])


@pytest.mark.parametrize(
    "extension",
    [URI, x509.BasicConstraints(ca=True, path_length=None), x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])],
    ids=["a name", "to be a CA", "to be a server"],
)
def test_a_device_that_asks_for_more_gets_nothing(extension):
    with pytest.raises(CertificateError, match="come from the token"):
        read_csr(build(extensions=[extension]))


def test_a_subject_or_attribute_is_refused():
    with pytest.raises(CertificateError, match="come from the token"):
        read_csr(build(subject=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedsec server")])))
    with pytest.raises(CertificateError, match="come from the token"):
        read_csr(build(attributes=[(AttributeOID.CHALLENGE_PASSWORD, b"secret")]))


@pytest.mark.parametrize(
    "make_key",
    [lambda: ec.generate_private_key(ec.SECP384R1()), lambda: ec.generate_private_key(ec.SECP224R1()), lambda: rsa.generate_private_key(65537, 1024)],
    ids=["P-384", "P-224", "RSA-1024"],
)  # fmt: skip
def test_other_keys_are_refused(make_key):
    with pytest.raises(CertificateError, match="not on P-256"):
        read_csr(build(make_key()))


def test_an_ed25519_key_and_other_hashes_are_refused():
    with pytest.raises(CertificateError):
        read_csr(build(ed25519.Ed25519PrivateKey.generate(), algorithm=None))
    with pytest.raises(CertificateError, match="SHA-256"):
        read_csr(build(algorithm=hashes.SHA512()))


def test_somebody_elses_key_under_ones_own_signature_is_refused():
    """A thief of a public key asks for a certificate for it: the request is signed by another key."""
    own, stolen = make_csr(Signer.generate()), make_csr(SIGNER)
    point = x509.load_der_x509_csr(own).public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)  # fmt: skip
    victim = x509.load_der_x509_csr(stolen).public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)  # fmt: skip
    assert own.count(point) == 1
    with pytest.raises(CertificateError, match="its key did not sign"):
        read_csr(own.replace(point, victim))


@pytest.mark.parametrize("data", [b"", b"\x30\x00", b"\x30\x82\xff\xff", b"nonsense", b"-----BEGIN CERTIFICATE REQUEST-----"])
def test_bytes_that_are_no_request(data):
    with pytest.raises(CertificateError, match="that can be read"):
        read_csr(data)


def test_a_request_is_short():
    with pytest.raises(CertificateError, match="over the limit"):
        read_csr(make_csr(SIGNER) + bytes(MAX_CSR_BYTES))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_changed_request_never_yields_another_key(data):
    der = bytearray(DER)
    for _ in range(data.draw(st.integers(1, 3))):
        der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert read_csr(bytes(der)) == SIGNER.public_key
    except CertificateError:
        pass
