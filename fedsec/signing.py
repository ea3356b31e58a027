"""Signatures with P-256 keys under domain labels.

1. What is signed is ``label || 0x00 || message``, never a digest handed in: one key is also used for TLS and for Flower's headers, and
   the label keeps the protocols apart. No TLS 1.3 signature (64 spaces first), ISO time stamp or DER structure begins with a label.
   A TLS 1.2 server signs 32 bytes of its peer's choice first: who serves TLS with such a key refuses 1.2.
2. A signature is 64 bytes, r and s big-endian, with s in the lower half: no third party can make a second one for the same message
   out of the first. Signing normalises s, verification refuses everything else.
3. A public key is 33 bytes, the compressed point; it has exactly one encoding.
4. Verification returns nothing or raises. Only successes are remembered, under a hash of all that was verified.

Source: FIPS 186-5; SEC 1 section 2.3.
"""

from __future__ import annotations

import functools
import re
from collections import deque
from collections.abc import Callable
from typing import Self, TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from fedsec.codec import digest
from fedsec.errors import SignatureError, StorageError

SIGNATURE_BYTES = 64
"""Length of a signature: r and s, 32 bytes each."""

PUBLIC_KEY_BYTES = 33
"""Length of a public key: a compressed point of P-256."""

Verify: TypeAlias = Callable[[bytes, str, bytes, bytes], None]
"""Checks ``(public_key, label, message, signature)``; raises SignatureError. For example :func:`verify_signature`."""

_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_LABEL = re.compile(r"fedsec/[a-z0-9-]+/v[0-9]+/[a-z0-9-]+")
_KEYS_REMEMBERED = 1 << 14
_ECDSA = ec.ECDSA(hashes.SHA256())


@functools.lru_cache(maxsize=256)
def _label_prefix(label: str) -> bytes:
    if not _LABEL.fullmatch(label):
        raise ValueError(f"not a label of the form fedsec/<protocol>/v<n>/<purpose>: {label[:80]!r}")
    return label.encode("ascii") + b"\0"


def _signed_bytes(label: str, message: bytes) -> bytes:
    return _label_prefix(label) + message


def encode_public_key(key: ec.EllipticCurvePublicKey) -> bytes:
    """The 33 bytes of a key.

    Raises:
        ValueError: a key on another curve.
    """
    if key.curve.name != "secp256r1":
        raise ValueError(f"a key on {key.curve.name}, expected P-256")
    return key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)


@functools.lru_cache(maxsize=_KEYS_REMEMBERED)
def decode_public_key(public_key: bytes) -> ec.EllipticCurvePublicKey:
    """The key of 33 bytes.

    Raises:
        SignatureError: not the one encoding of a point of P-256.
    """
    if len(public_key) != PUBLIC_KEY_BYTES:
        raise SignatureError(f"a public key of {len(public_key)} bytes, expected {PUBLIC_KEY_BYTES}")
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), public_key)
    except (ValueError, UnsupportedAlgorithm):
        raise SignatureError("a public key that is no point of P-256") from None
    if encode_public_key(key) != public_key:
        raise SignatureError("a public key that is not canonical")
    return key


class Signer:
    """Signs with one private key.

    Args:
        private_key: on P-256.

    Raises:
        ValueError: a key on another curve.
    """

    def __init__(self, private_key: ec.EllipticCurvePrivateKey) -> None:
        self._private_key = private_key
        self._public_key = encode_public_key(private_key.public_key())

    @classmethod
    def generate(cls) -> Self:
        """A signer with a fresh key."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def from_pem(cls, pem: bytes, *, passphrase: bytes | None = None) -> Self:
        """Read what :meth:`to_pem` wrote.

        Args:
            pem: the file.
            passphrase: of an encrypted key; it must be given for such a key and for no other.

        Raises:
            StorageError: not the PEM of a private key on P-256, or another passphrase.
        """
        try:
            key = serialization.load_pem_private_key(pem, password=passphrase)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            form = "an unencrypted private key in PEM" if passphrase is None else "a private key in PEM under this passphrase"
            raise StorageError(f"not {form}") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
            raise StorageError("a private key that is not on P-256")
        return cls(key)

    def to_pem(self, *, passphrase: bytes | None = None) -> bytes:
        """The private key as PKCS #8: **secret**; for a file of mode 0600.

        Args:
            passphrase: not empty; encrypts the key. Without one it is in the clear.
        """
        encryption = serialization.NoEncryption() if passphrase is None else serialization.BestAvailableEncryption(passphrase)
        return self._private_key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)

    @property
    def public_key(self) -> bytes:
        """33 bytes."""
        return self._public_key

    def sign(self, label: str, message: bytes) -> bytes:
        """64 bytes that :func:`verify_signature` accepts for this label and message; other bytes at each call.

        Raises:
            ValueError: not a label.
        """
        r, s = decode_dss_signature(self._private_key.sign(_signed_bytes(label, message), ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32, "big") + min(s, _ORDER - s).to_bytes(32, "big")

    def sign_certificate(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        """Issue a certificate with this key: what is signed is a DER structure, which begins with 0x30."""
        return builder.sign(self._private_key, hashes.SHA256())

    def sign_request(self, builder: x509.CertificateSigningRequestBuilder) -> x509.CertificateSigningRequest:
        """Ask for a certificate for this key; as :meth:`sign_certificate`."""
        return builder.sign(self._private_key, hashes.SHA256())

    def sign_revocations(self, builder: x509.CertificateRevocationListBuilder) -> x509.CertificateRevocationList:
        """Issue a revocation list with this key; as :meth:`sign_certificate`."""
        return builder.sign(self._private_key, hashes.SHA256())

    def __repr__(self) -> str:
        return f"Signer({self._public_key.hex()})"


def verify_signature(public_key: bytes, label: str, message: bytes, signature: bytes) -> None:
    """Check a signature by :meth:`Signer.sign`.

    Args:
        public_key: whose, 33 bytes.
        label: what for; the same as at signing.
        message: what was signed.
        signature: 64 bytes.

    Raises:
        SignatureError: a malformed key or signature, or one that was not made by this key for this label and message.
        ValueError: not a label.
    """
    signed = _signed_bytes(label, message)
    key = decode_public_key(public_key)
    if len(signature) != SIGNATURE_BYTES:
        raise SignatureError(f"a signature of {len(signature)} bytes, expected {SIGNATURE_BYTES}")
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    if not (0 < r < _ORDER and 0 < s <= _ORDER // 2):
        raise SignatureError(f"a signature under {label} that is not canonical")
    try:
        key.verify(encode_dss_signature(r, s), signed, _ECDSA)
    except InvalidSignature:
        raise SignatureError(f"a signature under {label} that does not verify") from None


class VerificationCache:
    """:func:`verify_signature` that remembers successes: for simulators, where many clients in one process check the same signature.

    It is called like that function and raises the same. Failures are verified anew each time.

    Args:
        max_entries: 32 bytes each are kept for at most this many signatures; the oldest go first.

    Attributes:
        hits: calls answered from memory.
        misses: calls that verified, failures included.
    """

    def __init__(self, max_entries: int = 1 << 18) -> None:
        if max_entries < 1:
            raise ValueError(f"max_entries must be at least 1, not {max_entries}")
        self.hits = 0
        self.misses = 0
        # Single operations on a set and a deque are atomic, and a fork cannot inherit a held lock, so threads need none.
        self._verified: set[bytes] = set()
        self._order: deque[bytes] = deque()
        self._max_entries = max_entries

    def __call__(self, public_key: bytes, label: str, message: bytes, signature: bytes) -> None:
        """As :func:`verify_signature`."""
        key = digest("fedsec/signing/v1/verified", public_key, label.encode("utf-8"), message, signature)
        if key in self._verified:
            self.hits += 1
            return
        self.misses += 1
        verify_signature(public_key, label, message, signature)
        self._verified.add(key)
        self._order.append(key)
        while len(self._order) > self._max_entries:
            self._verified.discard(self._order.popleft())
