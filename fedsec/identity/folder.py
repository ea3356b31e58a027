"""An identity on disk: one key, its certificate, the issuer and the pinned root, in one folder.

::

    key.pem            PKCS #8, mode 0600, encrypted if there is a passphrase
    certificate.der    its certificate; replaced when it is renewed
    intermediate.der   the certificate's issuer
    root.der           the pinned root; nothing ever replaces it here
    root-statement.bin where the root made one: the newest statement of its intermediates that count (``identity.intermediates``)

1. A key that others than its owner may read is refused, as is one in a symbolic link's place: whoever could put it there knows it.
2. A new folder is written beside its place and renamed: it is there with all its files or not at all. An existing one is not overwritten.
3. A renewed certificate must be for the same key, name and root; it is checked before it is written. The issuer is written first: it
   may have been renewed too, and goes with old certificates as well, since it keeps its key.
4. Loading checks the chain, but not the time: an expired identity loads, so that its holder can say so and renew it.
5. The passphrase of an encrypted key comes from a file that ``FEDSEC_PASSPHRASE_FILE`` names, where none is given: processes hand each other
   the file's path, never its content.
6. An identity below an intermediate that does not count any more loads, for the same reason; a certificate to replace its own may not be.
7. The home folder around it (of a CA, a server, a client) is its owner's only: one that others may enter is made 0700, or refused if it
   is not ours.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import shutil
import stat
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from cryptography import x509

from fedsec.errors import CertificateError, StorageError
from fedsec.files import atomic_write_bytes, fsync_folder
from fedsec.identity.intermediates import STATEMENT_FILE, AcceptedIntermediates, load_statement, verify_statement
from fedsec.identity.names import PeerName
from fedsec.identity.verify import check_issuers, claimed_name, verify_peer
from fedsec.signing import Signer

_logger = logging.getLogger(__name__)

KEY, CERTIFICATE, INTERMEDIATE, ROOT = "key.pem", "certificate.der", "intermediate.der", "root.der"
MAX_FILE_BYTES = 64 * 1024
"""Upper limit on each of the files."""
MAX_PASSPHRASE_BYTES = 1000
PASSPHRASE_VARIABLE = "FEDSEC_PASSPHRASE_FILE"  # noqa: S105 - a name
"""Environment variable that names the file with the passphrase."""

CREDENTIALS_VARIABLE = "CREDENTIALS_DIRECTORY"
"""Environment variable in which systemd names the folder of what ``LoadCredential=`` handed over."""

_ENCRYPTED = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"


@dataclass(frozen=True)
class Identity:
    """Who somebody is, with the key to prove it.

    Attributes:
        signer: its key.
        certificate_der: its certificate.
        intermediate_der: the certificate's issuer.
        root_der: the pinned root.
        name: who, from the certificate.
        serial_number: of the certificate.
        not_before: from when the certificate is valid; UTC.
        not_after: until when; UTC.
        accepted: the root's newest statement that this holder has; None: the root never made one that came here.
    """

    signer: Signer = field(repr=False)
    certificate_der: bytes = field(repr=False)
    intermediate_der: bytes = field(repr=False)
    root_der: bytes = field(repr=False)
    name: PeerName
    serial_number: int
    not_before: datetime
    not_after: datetime
    accepted: AcceptedIntermediates | None = None

    def check_own_issuer(self) -> None:
        """Refuse an identity whose own intermediate the root does not stand by any more.

        Raises:
            CertificateError: it must enrol anew.
        """
        if self.accepted is not None:
            self.accepted.check(check_issuers(self.intermediate_der, self.root_der).public_key)


def make_identity(signer: Signer, certificate_der: bytes, intermediate_der: bytes, root_der: bytes) -> Identity:
    """Put an identity together, in memory.

    Raises:
        CertificateError: the chain is unsound at every time, or the certificate is not for this key.
    """
    name = claimed_name(certificate_der)
    leaf = x509.load_der_x509_certificate(certificate_der)
    peer = verify_peer(
        certificate_der,
        intermediate_der=intermediate_der,
        root_der=root_der,
        federation=name.federation,
        role=name.role,
        now=_a_time_within(leaf, intermediate_der),
        accepted=None,  # not here: who has to enrol anew must be able to load what it has
    )
    if peer.public_key != signer.public_key:
        raise CertificateError("the certificate is for another key")
    return Identity(
        signer, certificate_der, intermediate_der, root_der, name, peer.serial_number, leaf.not_valid_before_utc, leaf.not_valid_after_utc
    )


def _a_time_within(leaf: x509.Certificate, intermediate_der: bytes) -> datetime:
    """A time at which leaf and issuer are both valid, if there is one: an issuer that was renewed begins after an older leaf."""
    try:
        issuer = x509.load_der_x509_certificate(intermediate_der)
        return max(leaf.not_valid_before_utc, issuer.not_valid_before_utc)
    except (ValueError, x509.InvalidVersion):
        raise CertificateError("intermediate: not a certificate that can be read") from None


def load_identity(folder: Path, *, passphrase: bytes | None = None) -> Identity:
    """Read an identity.

    Args:
        folder: where.
        passphrase: of the key, if it is encrypted; None asks ``FEDSEC_PASSPHRASE_FILE``.

    Raises:
        StorageError: a file is missing or damaged, or the key may be read by others.
        CertificateError: the certificate is not for the key, or does not chain to the root.
    """
    signer = load_own_key(folder, passphrase=passphrase)
    certificate, intermediate, root = (_read(folder / name) for name in (CERTIFICATE, INTERMEDIATE, ROOT))
    found = make_identity(signer, certificate, intermediate, root)
    return replace(found, accepted=load_statement(folder, root_der=root, federation=found.name.federation))


def create_identity(
    folder: Path,
    signer: Signer,
    certificate_der: bytes,
    intermediate_der: bytes,
    root_der: bytes,
    *,
    passphrase: bytes | None = None,
    statement: bytes = b"",
) -> None:
    """Write a new identity.

    Args:
        folder: where; made by this call. Its parent must exist. An empty folder in its place is replaced.
        signer: its key.
        certificate_der: for that key.
        intermediate_der: its issuer.
        root_der: the root to pin.
        passphrase: encrypts the key.
        statement: the root's newest, if there is one.

    Raises:
        CertificateError: they do not belong together, or the intermediate does not count any more.
        SignatureError, DecodeError: the statement.
        StorageError: there is an identity already, or the file system refused.
    """
    made = make_identity(signer, certificate_der, intermediate_der, root_der)
    files = {CERTIFICATE: certificate_der, INTERMEDIATE: intermediate_der, ROOT: root_der}
    if statement:
        accepted = verify_statement(statement, root_der=root_der, federation=made.name.federation)
        replace(made, accepted=accepted).check_own_issuer()
        files[STATEMENT_FILE] = statement
    new = folder.parent / f".{folder.name}.{secrets.token_hex(4)}.new"
    try:
        new.mkdir(mode=0o700)
        atomic_write_bytes(new / KEY, signer.to_pem(passphrase=passphrase), mode=0o600)
        for name, data in files.items():
            atomic_write_bytes(new / name, data)
        os.rename(new, folder)  # noqa: PTH104 - replaces an empty folder, and no other
        fsync_folder(folder.parent)
    except OSError as error:
        raise StorageError(
            f"cannot make the identity {folder}: {error.strerror or error}; move an old one away, its key is not overwritten"
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def replace_certificate(folder: Path, certificate_der: bytes, intermediate_der: bytes, *, passphrase: bytes | None = None) -> Identity:
    """Put a renewed certificate in the place of the old one.

    Args:
        folder: of an identity.
        certificate_der: for the same key and name.
        intermediate_der: its issuer, of the same root.
        passphrase: of the key, if it is encrypted; None asks ``FEDSEC_PASSPHRASE_FILE``.

    Returns:
        The identity from now on.

    Raises:
        CertificateError: another key, name or root, or an intermediate that does not count any more; nothing was changed.
        StorageError: as :func:`load_identity`, or the file system refused.
    """
    signer, root = load_own_key(folder, passphrase=passphrase), _read(folder / ROOT)
    renewed = make_identity(signer, certificate_der, intermediate_der, root)
    renewed = replace(renewed, accepted=load_statement(folder, root_der=root, federation=renewed.name.federation))
    renewed.check_own_issuer()
    if renewed.name != claimed_name(_read(folder / CERTIFICATE)):
        raise CertificateError(f"the new certificate is for another name: {renewed.name.uri}")
    atomic_write_bytes(folder / INTERMEDIATE, intermediate_der)
    atomic_write_bytes(folder / CERTIFICATE, certificate_der)
    return renewed


def load_own_key(folder: Path, *, passphrase: bytes | None = None) -> Signer:
    """The key of an identity.

    Args:
        folder: of the identity.
        passphrase: of the key, if it is encrypted; None asks ``FEDSEC_PASSPHRASE_FILE``, for an encrypted key only.

    Raises:
        StorageError: as :func:`load_key`, or the passphrase's file cannot be used.
    """
    path = folder / KEY
    if passphrase is None and is_encrypted(path):
        passphrase = passphrase_of(None)
        if passphrase is None:
            raise StorageError(f"{path} is encrypted: name the file with its passphrase, --passphrase-file or {PASSPHRASE_VARIABLE}")
    return load_key(path, passphrase=passphrase)


def is_encrypted(path: Path) -> bool:
    """Whether a key needs a passphrase.

    Raises:
        StorageError: as :func:`read_secret`.
    """
    return _ENCRYPTED in read_secret(path)


def load_key(path: Path, *, passphrase: bytes | None = None) -> Signer:
    """Read a private key that only its owner may read.

    Raises:
        StorageError: missing, damaged, a link, readable by others, or under another passphrase.
    """
    pem = read_secret(path)
    try:
        return Signer.from_pem(pem, passphrase=passphrase)
    except StorageError as error:
        raise StorageError(f"{path}: {error}") from None


def passphrase_of(given: Path | None) -> bytes | None:
    """The passphrase in the file that is given, else in the one that ``FEDSEC_PASSPHRASE_FILE`` names; None: neither.

    Raises:
        StorageError: as :func:`read_passphrase`.
    """
    named = os.environ.get(PASSPHRASE_VARIABLE)
    return read_passphrase(given or (Path(named) if named else None))


def use_passphrase_file(given: Path | None) -> bytes | None:
    """Have this process and those that it starts use the passphrase in a file: the path goes into the environment, nothing else does.

    Args:
        given: the file; None leaves the environment as it is.

    Returns:
        The passphrase that counts from now on, if there is one.

    Raises:
        StorageError: as :func:`read_passphrase`.
    """
    found = passphrase_of(given)
    if given is not None:
        os.environ[PASSPHRASE_VARIABLE] = str(given.absolute())
    return found


def read_passphrase(path: Path | None) -> bytes | None:
    """The first line of a file that only its owner may read; None for no file.

    Raises:
        StorageError: missing, empty, a link, or readable by others.
    """
    if path is None:
        return None
    passphrase = read_secret(path).split(b"\n", 1)[0].rstrip(b"\r")
    if not 1 <= len(passphrase) <= MAX_PASSPHRASE_BYTES:
        raise StorageError(f"{path}: its first line is empty, or longer than {MAX_PASSPHRASE_BYTES} bytes")
    return passphrase


def read_secret(path: Path) -> bytes:
    """The content of a file that only its owner may read, or that systemd handed over.

    systemd grants a service its credentials by an access list, under which the mode reads 0440; in ``$CREDENTIALS_DIRECTORY`` a file of
    root's or ours that others can neither read nor write passes for that reason.

    Raises:
        StorageError: missing, a link, no plain file, or readable by others.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as handle:
            status = os.fstat(handle.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise StorageError(f"{path} is not a plain file")
            if status.st_mode & 0o077 and not _is_credential(path, status):
                raise StorageError(
                    f"{path} may be read by others (mode {stat.S_IMODE(status.st_mode):o}); chmod 600, and think of a new one"
                )
            return handle.read(MAX_FILE_BYTES)
    except OSError as error:
        why = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror or error
        raise StorageError(f"cannot read {path}: {why}") from error


def keep_private(folder: Path) -> None:
    """Let nobody but its owner enter a home folder that was there before us: it is made 0700, and the log says so.

    Args:
        folder: of a CA, a server or a client; exists.

    Raises:
        StorageError: it is another user's or a shared one (sticky), or the file system refused.
    """
    try:
        status = folder.stat()
        if not status.st_mode & 0o077:
            return
        if status.st_uid != os.getuid() or status.st_mode & stat.S_ISVTX:
            raise StorageError(f"others may enter {folder}, and it is not this user's own; take a folder of your own with mode 0700")
        folder.chmod(0o700)
    except OSError as error:
        raise StorageError(f"others may enter {folder}: {error.strerror or error}; take a folder of your own with mode 0700") from error
    _logger.warning("others could enter %s (mode %o); it is 0700 now", folder, stat.S_IMODE(status.st_mode))


def _is_credential(path: Path, status: os.stat_result) -> bool:
    folder = os.environ.get(CREDENTIALS_VARIABLE)
    if not folder or status.st_uid not in (0, os.getuid()) or status.st_mode & 0o037:
        return False
    return path.parent.resolve() == Path(folder).resolve()


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as handle:
            data = handle.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    if len(data) > MAX_FILE_BYTES:
        raise StorageError(f"{path} is over the limit of {MAX_FILE_BYTES} bytes")
    return data
