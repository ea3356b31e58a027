"""A CA's folder and everything that its operator and its enrolment service do with it.

::

    root.der  root-key.pem       the root; its key may be moved away
    intermediate.der  intermediate-key.pem
    register.sqlite              what was issued, used, revoked
    log/  log-key.pem            the transparency log of certificates, revocations and rosters, and its own key
    tls/cert.pem  tls/key.pem    the enrolment service's own certificate, self-signed
    roster.json  roster.signature  crl.der    the newest lists, for operators to copy; made again from the register
    ca.toml                      settings
    root-statement.bin           after a rekey: the root's statement of the intermediates' keys that count
    rekey/                       a rekey that was decided and not finished: the next call finishes it

1. The register comes first, in one transaction; then the lists that follow from it; then the log; then the files; then the answer. After
   a crash anywhere, the next call catches up.
2. A register that has fewer entries than the log is an old copy: refused, since used tokens and revocations would be forgotten.
3. Several processes may work on one folder: the service, and an operator's commands beside it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from fedsec.edge.ca_rekey import finish_rekey, write_rekey
from fedsec.edge.ca_settings import CaSettings, load_ca_settings, save_ca_settings
from fedsec.edge.enrolment_frames import LOG_KEY_LABEL, Bundle
from fedsec.edge.service_certificate import load_service, make_service
from fedsec.errors import ConfigError, StorageError
from fedsec.files import atomic_write_bytes, exclusive_lock, fsync_folder
from fedsec.identity import enrolment
from fedsec.identity.ca import CertificateAuthority
from fedsec.identity.folder import keep_private, load_key
from fedsec.identity.intermediates import read_statement
from fedsec.identity.issuing import current_roster, is_signed_by, latest_crl, latest_roster
from fedsec.identity.names import Role
from fedsec.identity.register import Register
from fedsec.identity.register_rows import Alarm, Binding, Record
from fedsec.identity.revocation import Reason
from fedsec.identity.roster import SignedRoster
from fedsec.identity.tokens import ID_BYTES, MAX_LIFETIME, Token, make_token
from fedsec.signing import Signer
from fedsec.translog.entries import EntryKind, LogEntry
from fedsec.translog.log import TransparencyLog

REGISTER, LOG, LOG_KEY, TLS, LOCK = "register.sqlite", "log", "log-key.pem", "tls", "ca.lock"
LOCK_TIMEOUT_S = 20.0
HEAD_LIFETIME_S = 60.0
"""How long a signed head of an unchanged log is given out again: opening the log reads all of it."""

R = TypeVar("R")


class CaHost:
    """A CA's folder, open; see :meth:`create` and :meth:`open`. Its calls may come from several threads.

    Attributes:
        folder: where.
        authority: the CA.
        settings: of ``ca.toml``.
        service: the enrolment service's certificate.
    """

    def __init__(self, folder: Path, authority: CertificateAuthority, settings: CaSettings, log_signer: Signer) -> None:
        self.folder = folder
        self.authority = authority
        self.settings = settings
        self.service = load_service(folder / TLS)
        self._log_signer = log_signer
        self._lock = threading.Lock()
        self._logged = -1
        self._head = (0.0, b"")

    @classmethod
    def create(cls, folder: Path, federation: str, settings: CaSettings, *, now: datetime, passphrase: bytes | None = None) -> Self:
        """Make a CA in a new folder, which is there whole or not at all.

        Args:
            folder: where; nothing may be there yet. Its parent must exist.
            federation: its trust domain.
            settings: for ``ca.toml``.
            now: aware.
            passphrase: encrypts all keys.

        Raises:
            CertificateError: a federation's name that may not stand in a SPIFFE id.
            StorageError: the folder is there, or the file system refused.
        """
        authority = CertificateAuthority.create(federation, now=now)
        new = folder.parent / f".{folder.name}.{secrets.token_hex(4)}.new"
        try:
            new.mkdir(mode=0o700)
            (new / TLS).mkdir(mode=0o700)
            authority.save(new, passphrase=passphrase)
            atomic_write_bytes(new / LOG_KEY, Signer.generate().to_pem(passphrase=passphrase), mode=0o600)
            make_service(new / TLS, now=now, passphrase=passphrase)
            save_ca_settings(new, settings)
            with Register.open(new / REGISTER, create=True):
                pass
            os.rename(new, folder)  # noqa: PTH104 - replaces an empty folder, and no other
            fsync_folder(folder.parent)
        except OSError as error:
            raise StorageError(f"cannot make a CA in {folder}: {error.strerror or error}; nothing may be there yet") from error
        finally:
            shutil.rmtree(new, ignore_errors=True)
        host = cls.open(folder, passphrase=passphrase)
        host.crl(now=now)
        return host

    @classmethod
    def open(cls, folder: Path, *, passphrase: bytes | None = None, root_key: Path | None = None) -> Self:
        """Open a CA's folder.

        Args:
            folder: where.
            passphrase: of the keys, if they are encrypted.
            root_key: the root's key, where it is kept elsewhere and is needed.

        Raises:
            StorageError: something is missing, damaged, or does not belong together; or others may enter the folder and it is not ours.
            ConfigError: ``ca.toml``.
        """
        if not (folder / "root.der").exists():
            raise StorageError(f"there is no CA in {folder}; make one with `fedsec ca init`, or name it with --ca")
        keep_private(folder)
        finish_rekey(folder)
        authority = CertificateAuthority.load(folder, passphrase=passphrase, root_key=root_key)
        host = cls(folder, authority, load_ca_settings(folder), load_key(folder / LOG_KEY, passphrase=passphrase))
        with host._register(thorough=True) as register:
            host._begin_anew_after_rekey(register)
            host._settle_log(register)
        return host

    @property
    def root_sha256(self) -> bytes:
        """SHA-256 of the root's certificate."""
        return x509.load_der_x509_certificate(self.authority.root_der).fingerprint(hashes.SHA256())

    def _register(self, *, thorough: bool = False) -> Register:
        """The register; an intermediate that an operator renewed meanwhile is taken up here, at the beginning of every call."""
        try:
            intermediate = (self.folder / "intermediate.der").read_bytes()
        except OSError as error:
            raise StorageError(f"cannot read the intermediate in {self.folder}: {error.strerror or error}") from error
        if intermediate != self.authority.intermediate_der:
            self.authority = self.authority.with_intermediate(intermediate)
        return Register.open(self.folder / REGISTER, thorough=thorough)

    def token(self, role: Role, site: str | None, name: str, *, lifetime: timedelta = MAX_LIFETIME, now: datetime) -> tuple[str, Token]:
        """A one-time token, written down before it is handed out.

        Args:
            role: of whom it is for.
            site: a node's organisation.
            name: whose.
            lifetime: at most 15 minutes.
            now: aware.

        Returns:
            The token, **secret**, and what it says.

        Raises:
            ConfigError: a lifetime out of range.
            CertificateError: a name that cannot be, or that reads like a serial number.
            StorageError: the register.
        """
        if not timedelta(seconds=1) <= lifetime <= MAX_LIFETIME:
            raise ConfigError(f"a token lives from a second to {MAX_LIFETIME}, not {lifetime}")
        enrolment.check_new_name(name)
        token = Token(
            jti=secrets.token_bytes(ID_BYTES),
            federation=self.authority.federation,
            role=role,
            site=site,
            name=name,
            not_after=(now.astimezone(UTC) + lifetime).replace(microsecond=0),
            root_sha256=self.root_sha256,
            service_sha256=self.service.fingerprint,
            address=self.settings.address or None,
        )
        with self._register() as register, register.transaction():
            register.add_token(token, now=now)
        return make_token(self.authority.signer, token), token

    def enrol(self, token_text: str, csr: bytes, *, now: datetime) -> Record:
        """Issue for a token; raises as ``identity.enrolment.enrol``."""
        return self._then_settle(lambda register: enrolment.enrol(self.authority, register, token_text, csr, now=now), now)

    def renew(self, request: enrolment.RenewalRequest, *, now: datetime) -> Record:
        """Issue for the same key again; raises as ``identity.enrolment.renew``."""
        return self._then_settle(lambda register: enrolment.renew(self.authority, register, request, now=now), now)

    def issue(self, binding: Binding, csr: bytes, *, now: datetime) -> Record:
        """Issue for a request in an operator's hands; raises as ``identity.enrolment.issue_offline``."""
        return self._then_settle(lambda register: enrolment.issue_offline(self.authority, register, binding, csr, now=now), now)

    def revoke(self, target: str, reason: Reason, *, now: datetime) -> list[Record]:
        """Revoke a peer, and make a new revocation list with it; raises as ``identity.enrolment.revoke``."""

        def work(register: Register) -> list[Record]:
            with register.transaction():
                hit = enrolment.revoke(register, target, reason, now=now)
                self._crl(register, now, anew=True)
                return hit

        return self._then_settle(work, now)

    def records(self) -> list[Record]:
        """All that was issued, oldest first."""
        with self._register() as register:
            return list(register.certificates())

    def alarms(self) -> list[Alarm]:
        """Used tokens that were shown again with another key, oldest first."""
        with self._register() as register:
            return register.alarms()

    def crl(self, *, now: datetime, anew: bool = False) -> bytes:
        """The revocation list, made anew on request and when a part of its life is over."""

        def work(register: Register) -> bytes:
            with register.transaction():
                return self._crl(register, now, anew=anew)

        with self._register() as register:
            found = work(register)
            self._publish(register)
        return found

    def roster(self, *, now: datetime) -> SignedRoster:
        """Make a new list of clients with the next version.

        Raises:
            CertificateError: there is no server or no client with a valid certificate.
            StorageError: the register, the log.
        """

        def work(register: Register) -> SignedRoster:
            with register.transaction():
                signed = self._roster(register, now, anew=True)
                assert signed is not None
                return signed

        return self._then_settle(work, now)

    def bundle(self, *, now: datetime) -> Bundle:
        """What a gateway goes by."""
        with self._register() as register:
            self._settle(register, now)
            with register.transaction():
                kept = latest_roster(register)
                signed = kept if kept is not None and is_signed_by(kept, self.authority.signer.public_key) else None
                crl = self._crl(register, now)
                certificates = {item.name: item.certificate_der for item in register.current(Role.NODE, now=now)} if signed else {}
            head = self._settle_log(register, now)
        public = self._log_signer.public_key
        return Bundle(
            roster=signed.roster_bytes if signed else b"",
            roster_signature=signed.signature if signed else b"",
            intermediate=self.authority.intermediate_der,
            crl=crl,
            certificates=certificates,
            log_key=public,
            log_key_signature=self.authority.signer.sign(LOG_KEY_LABEL, public),
            log_head=head,
            root_statement=self.statement(),
        )

    def statement(self) -> bytes:
        """The root's newest statement of the intermediates that count; empty: it never made one.

        Raises:
            StorageError: it cannot be read.
        """
        return read_statement(self.folder)

    def renew_intermediate(self, *, now: datetime) -> datetime:
        """A new certificate for the intermediate, for the same key; needs the root's key.

        Returns:
            Until when it is valid.

        Raises:
            CertificateError: the root's key is not here.
            StorageError: the file system refused.
        """
        self.authority = self.authority.with_new_intermediate(now=now)
        atomic_write_bytes(self.folder / "intermediate.der", self.authority.intermediate_der)
        return self.authority.intermediate_not_after

    def rekey(self, *, now: datetime, passphrase: bytes | None = None) -> int:
        """A fresh key for the intermediate; see ``edge.ca_rekey``. This object is then out of date: open the folder again.

        Args:
            now: aware.
            passphrase: encrypts the new key.

        Returns:
            The number of the root's statement.

        Raises:
            CertificateError: the root's key is not here.
            StorageError: the file system refused.
        """
        return write_rekey(self.folder, self.authority, now=now, passphrase=passphrase)

    def _begin_anew_after_rekey(self, register: Register) -> None:
        """If the newest revocation list is not by this intermediate's key, nothing of the register is."""
        found = register.document("crl")
        if found is None:
            return
        key = x509.load_der_x509_certificate(self.authority.intermediate_der).public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        if x509.load_der_x509_crl(found.body).is_signature_valid(key):
            return
        with register.transaction():
            register.unbind_all()
            self._crl(register, datetime.now(tz=UTC), anew=True)
        self._publish(register)

    def service_key_pem(self, passphrase: bytes | None) -> bytes:
        """The enrolment service's private key, in the clear and in memory: **secret**."""
        return load_key(self.folder / TLS / "key.pem", passphrase=passphrase).to_pem()

    def keep_current(self, *, now: datetime) -> None:
        """Make the lists anew whose time has come, and write them out: for a service that nobody asks.

        Raises:
            StorageError: the register, the log, the file system.
        """
        with self._register() as register:
            self._settle(register, now)

    def _crl(self, register: Register, now: datetime, *, anew: bool = False) -> bytes:
        return latest_crl(self.authority, register, now=now, anew=anew, lifetime=self.settings.crl_lifetime)

    def _roster(self, register: Register, now: datetime, *, anew: bool = False) -> SignedRoster | None:
        settings = self.settings
        return current_roster(
            self.authority,
            register,
            settings.server,
            settings.cohort_size,
            now=now,
            anew=anew,
            lifetime=settings.roster_lifetime,
        )

    def _then_settle(self, work: Callable[[Register], R], now: datetime) -> R:
        with self._register() as register:
            result = work(register)
            self._settle(register, now)
        return result

    def _settle(self, register: Register, now: datetime) -> None:
        """Make what follows from the register, put it into the log, write the files."""
        with register.transaction():
            if self.settings.auto_roster and register.current(Role.NODE, now=now):
                self._roster(register, now)
            self._crl(register, now)
        self._settle_log(register)
        self._publish(register)

    def _settle_log(self, register: Register, now: datetime | None = None) -> bytes:
        """Copy what the journal has more than the log; with a time, give the log's head too."""
        with self._lock:
            if register.journal_size() == self._logged:
                made_s, head = self._head
                if now is None or 0 <= now.timestamp() - made_s < HEAD_LIFETIME_S:
                    return head
            with TransparencyLog.open(self.folder / LOG, self._log_signer, durable=True) as log:
                size = register.journal_size()
                if len(log) > size:
                    raise StorageError(
                        f"{self.folder / REGISTER} is an old copy: the log has {len(log)} entries, it has {size}; find the newest one, "
                        "for it knows which tokens were used and which certificates were revoked"
                    )
                for _, kind, body in register.journal(len(log)):
                    log.append(LogEntry(EntryKind(kind), body))
                self._logged = size
                self._head = (0.0, b"") if now is None else (now.timestamp(), log.head(int(now.timestamp())).encode())
                return self._head[1]

    def _publish(self, register: Register) -> None:
        """Write the newest lists where operators find them, if they are not there."""
        with self._lock, exclusive_lock(self.folder / LOCK, timeout_s=LOCK_TIMEOUT_S, what="CA"):
            crl, roster = register.document("crl"), register.document("roster")
            files = {} if crl is None else {"crl.der": crl.body}
            if roster is not None:
                files |= {"roster.json": roster.body, "roster.signature": roster.signature}
            for name, data in files.items():
                path = self.folder / name
                if not path.exists() or path.read_bytes() != data:
                    atomic_write_bytes(path, data)
