"""Certificate requests: a device shows its key, and that it holds it; whatever else it writes is never copied.

1. A request carries one P-256 key and its own signature (proof of possession). Its subject is the same for all, it has no extension.
2. The reader returns the key and nothing else: name, usage and lifetime of a certificate come from the token and the profile, so that
   a request cannot ask for them (OpenFL's CA takes them from the request).
3. A request that asks for anything is refused rather than trimmed: whoever sent it expects something that it would not get.

Source: RFC 2986.
"""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fedsec.errors import CertificateError
from fedsec.signing import Signer, encode_public_key

MAX_CSR_BYTES = 1024
"""Upper limit on a request; one of ours has under 250 bytes."""

_SUBJECT = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedsec request")])


def make_csr(signer: Signer) -> bytes:
    """A request for a certificate for this key.

    Returns:
        DER; other bytes at each call.
    """
    builder = x509.CertificateSigningRequestBuilder().subject_name(_SUBJECT)
    return signer.sign_request(builder).public_bytes(serialization.Encoding.DER)


def read_csr(der: bytes) -> bytes:
    """The key of a request whose sender has shown that it holds it.

    Args:
        der: as received.

    Returns:
        The public key, 33 bytes.

    Raises:
        CertificateError: too long, not a request of ours, a key that is not on P-256, or one that its sender does not hold.
    """
    if len(der) > MAX_CSR_BYTES:
        raise CertificateError(f"a certificate request of {len(der)} bytes is over the limit of {MAX_CSR_BYTES}")
    try:
        request = x509.load_der_x509_csr(der)
        key, subject = request.public_key(), request.subject
        asks = bool(len(request.extensions)) or bool(len(request.attributes))
        algorithm = request.signature_hash_algorithm
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        raise CertificateError("not a certificate request that can be read") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise CertificateError("a certificate request for a key that is not on P-256")
    if subject != _SUBJECT or asks:
        raise CertificateError("a certificate request asks for a name or an extension: they come from the token")
    if not isinstance(algorithm, hashes.SHA256):
        raise CertificateError("a certificate request that is not signed with ECDSA and SHA-256")
    _check_possession(request)
    return encode_public_key(key)


def _check_possession(request: x509.CertificateSigningRequest) -> None:
    try:
        sound = request.is_signature_valid
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        sound = False
    if not sound:
        raise CertificateError("a certificate request that its key did not sign")
