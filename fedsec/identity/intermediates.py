"""Which intermediates a federation's root stands by: a numbered statement under the root's own signature.

1. The intermediate's key lies on a host that the network reaches. If it is stolen, the root makes another, and says in a statement which
   keys count from now on. Every other one is void, whatever it signed and whenever: a thief dates as he likes.
2. Keys are named, not certificates: an intermediate that is renewed keeps its key, and a certificate has a twin of other bytes.
3. A statement has a number that grows; a verifier keeps the highest and accepts none below it, nor another one of the same number.
4. The signature is the root's, under a label of its own. No intermediate can speak for itself or against another.
5. It lies beside the pinned root, in the identity's folder, in one file: signature, then body. That file is the floor, too: it is
   verified whenever it is read, and replaced by a newer one only. A damaged one stops its holder.
6. A federation that never rekeyed has none; then every intermediate of the root counts.

Source: decision 0015, finding 21.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from fedsec.codec import canonical_json, decode_canonical_json
from fedsec.errors import CertificateError, DecodeError, StorageError
from fedsec.files import atomic_write_bytes
from fedsec.identity.names import check_name
from fedsec.signing import SIGNATURE_BYTES, Signer, encode_public_key, verify_signature

STATEMENT_LABEL = "fedsec/identity/v2/intermediates"
"""What the root's signature of a statement stands under."""

STATEMENT_FORMAT = "fedsec/intermediates/v2"
STATEMENT_FILE = "root-statement.bin"
"""Name of the newest statement in an identity's folder."""
MAX_INTERMEDIATES = 16
MAX_NUMBER = (1 << 53) - 1
MAX_STATEMENT_BYTES = 8 * 1024


@dataclass(frozen=True)
class AcceptedIntermediates:
    """A verified statement; see :func:`verify_statement`.

    Attributes:
        federation: whose.
        number: of the statement.
        key_sha256: SHA-256 of the public keys (33 bytes each) that count.
        sha256: of the statement's body.
    """

    federation: str
    number: int
    key_sha256: frozenset[bytes]
    sha256: bytes

    def check(self, public_key: bytes) -> None:
        """Refuse an intermediate that the root does not stand by.

        Args:
            public_key: the intermediate's, 33 bytes.

        Raises:
            CertificateError: it is none of them.
        """
        if hashlib.sha256(public_key).digest() not in self.key_sha256:
            raise CertificateError(f"intermediate: not one that the root stands by since its statement {self.number}; enrol anew")


def make_statement(root: Signer, *, federation: str, number: int, public_keys: list[bytes]) -> bytes:
    """The root's side: a statement, signature first.

    Args:
        root: signs.
        federation: whose.
        number: higher than that of every statement before.
        public_keys: of the intermediates that count from now on, 33 bytes each.

    Raises:
        ValueError: none or too many, or a number out of range.
    """
    if not 1 <= number <= MAX_NUMBER or not 1 <= len(public_keys) <= MAX_INTERMEDIATES:
        raise ValueError("a statement names 1 to 16 intermediates and has a positive number")
    keys = sorted({hashlib.sha256(key).hexdigest() for key in public_keys})
    body = canonical_json({"format": STATEMENT_FORMAT, "federation": federation, "number": number, "keys": keys})
    return root.sign(STATEMENT_LABEL, body) + body


def verify_statement(data: bytes, *, root_der: bytes, federation: str, known: AcceptedIntermediates | None = None) -> AcceptedIntermediates:
    """Check a statement.

    Args:
        data: as received: signature, then body.
        root_der: the pinned root.
        federation: whose statement it must be.
        known: the newest one seen so far.

    Raises:
        SignatureError: not the root's.
        DecodeError: signed, but no statement.
        CertificateError: another federation's, older than one seen, or another one of its number.
    """
    key = x509.load_der_x509_certificate(root_der).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    if not SIGNATURE_BYTES < len(data) <= MAX_STATEMENT_BYTES:
        raise DecodeError("not a statement of a root")
    signature, body = data[:SIGNATURE_BYTES], data[SIGNATURE_BYTES:]
    verify_signature(encode_public_key(key), STATEMENT_LABEL, body, signature)
    found = _read(body)
    if found.federation != federation:
        raise CertificateError(f"statement of the root: for the federation {found.federation}, not {federation}")
    if known is not None and found.number < known.number:
        raise CertificateError(f"statement of the root: number {found.number} was replaced by {known.number}")
    if known is not None and found.number == known.number and not hmac.compare_digest(found.sha256, known.sha256):
        raise CertificateError(f"statement of the root: another one of number {found.number} was seen; whoever holds the root must say why")
    return found


def newer_statement(data: bytes, *, root_der: bytes, federation: str, known: AcceptedIntermediates | None) -> AcceptedIntermediates | None:
    """What counts after a peer handed out ``data``, which is empty where it has none.

    Args:
        data: as received.
        root_der: the pinned root.
        federation: whose statement it must be.
        known: the newest one seen so far.

    Raises:
        CertificateError: there is none where one was seen, or as :func:`verify_statement`.
        SignatureError, DecodeError: as :func:`verify_statement`.
    """
    if data:
        return verify_statement(data, root_der=root_der, federation=federation, known=known)
    if known is not None:
        raise CertificateError(f"statement of the root: none, where number {known.number} was seen")
    return None


def load_statement(folder: Path, *, root_der: bytes, federation: str) -> AcceptedIntermediates | None:
    """The newest statement that a holder has; None: the root never made one that came here.

    Args:
        folder: of the identity.
        root_der: the pinned root.
        federation: the identity's.

    Raises:
        StorageError: it is damaged or cannot be read.
    """
    data = read_statement(folder)
    if not data:
        return None
    try:
        return verify_statement(data, root_der=root_der, federation=federation)
    except (CertificateError, DecodeError) as error:
        raise StorageError(f"{folder / STATEMENT_FILE} is damaged ({error}); put back the CA's newest one") from None


def read_statement(folder: Path) -> bytes:
    """The bytes of the newest statement in a folder, unverified; empty: there is none.

    Raises:
        StorageError: it cannot be read.
    """
    try:
        with (folder / STATEMENT_FILE).open("rb") as handle:
            return handle.read(MAX_STATEMENT_BYTES + 1) or b"\0"  # an empty file is a damaged one
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise StorageError(f"cannot read {folder / STATEMENT_FILE}: {error.strerror or error}") from error


def keep_statement(folder: Path, data: bytes, *, root_der: bytes, federation: str) -> AcceptedIntermediates | None:
    """Take a statement that came, and keep it if it is newer than the one that is there.

    Args:
        folder: of the identity.
        data: as received; empty: the peer has none.
        root_der: the pinned root.
        federation: the identity's.

    Returns:
        What counts from now on; None: there is still no statement.

    Raises:
        CertificateError, SignatureError, DecodeError: as :func:`newer_statement`; the old one stays.
        StorageError: the kept one is damaged, or the file system refused.
    """
    known = load_statement(folder, root_der=root_der, federation=federation)
    found = newer_statement(data, root_der=root_der, federation=federation, known=known)
    if found is not None and (known is None or found.number > known.number):
        atomic_write_bytes(folder / STATEMENT_FILE, data)
    return found


def _read(body: bytes) -> AcceptedIntermediates:
    value = decode_canonical_json(body)
    try:
        if not isinstance(value, dict) or value.keys() != {"format", "federation", "number", "keys"}:
            raise ValueError("other keys")
        number, texts = value["number"], value["keys"]
        if value["format"] != STATEMENT_FORMAT or type(number) is not int or not 1 <= number <= MAX_NUMBER:
            raise ValueError("another format, or a number out of range")
        keys = frozenset(bytes.fromhex(text) for text in texts)
        if not 1 <= len(texts) <= MAX_INTERMEDIATES or len(keys) != len(texts) or {len(item) for item in keys} != {32}:
            raise ValueError("no keys")
        return AcceptedIntermediates(check_name("federation", value["federation"]), number, keys, hashlib.sha256(body).digest())
    except (ValueError, TypeError, CertificateError) as error:
        raise DecodeError(f"not a statement of a root: {error}") from None
