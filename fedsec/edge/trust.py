"""Whom the gateway believes: its identity, the revocation list and the list of clients, read from files and read again when they change.

1. Every file is verified against the pinned root before it counts; one that fails leaves the last good one in use, and is said.
2. Numbers only grow: an older revocation list or list of clients than one seen is refused, across restarts too (``floors.json``), and
   so is another revocation list of the same number: the ServerApp reads the same file.
   A list counts before its number is written down, and what failed is tried again at the next look.
3. Without a revocation list that is good now, no caller passes: fail closed, as an outage (503), for the mend is here and not there.
4. A caller passes if its certificate is a node's of this federation, valid now, and not revoked: each call anew. What does not depend
   on the time is remembered for a certificate.

5. The root's statement of its intermediates (``federation/root-statement.bin``, from the CA or an operator) is taken up into the identity's
   folder and counts at once. If it leaves out the server's own intermediate nobody passes, as an outage, until the server enrolled anew.

Files below the server's home: ``identity/``, ``federation/{crl.der,roster.json,roster.signature,root-statement.bin,certificates/<client id>.der}``,
``gateway/floors.json``.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from fedsec.edge.refusal import Reason, Refused
from fedsec.errors import CertificateError, FedsecError, StorageError
from fedsec.files import atomic_write_json
from fedsec.identity.folder import Identity, load_identity
from fedsec.identity.intermediates import MAX_STATEMENT_BYTES, STATEMENT_FILE, keep_statement, newer_statement, read_statement
from fedsec.identity.names import Role, check_name
from fedsec.identity.revocation import MAX_CRL_BYTES, RevocationList, RevokedError, verify_crl
from fedsec.identity.roster import Roster, SignedRoster, verify_roster
from fedsec.identity.verify import VerifiedPeer, check_issuers, claimed_serial_number, verify_peer

_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_REMEMBERED = 4096
_MAX_ROSTER_BYTES = 16 * 1024 * 1024
_MAX_CERTIFICATE_BYTES = 64 * 1024


@dataclass(frozen=True)
class Standing:
    """What counts now.

    Attributes:
        identity: the server's.
        crl: None: there is none that could be verified.
        crl_der: its bytes; empty if there is none.
        roster: None: there is none that could be verified.
        serial_numbers: of the certificates that the CA holds for the current ones, by client id; some may be unknown.
        statement: the root's newest, as it is handed out; empty: none.
    """

    identity: Identity
    crl: RevocationList | None
    crl_der: bytes
    roster: Roster | None
    serial_numbers: dict[str, int]
    statement: bytes = b""


class Trust:
    """Reads and checks the files.

    Args:
        home: the server's.
        federation: its trust domain.
        server_name: that the identity must have.
        clock: gives the time, aware.
        on_fault: told of a file that was refused, once for each version of it.
        read_only: write nothing: for whoever only looks.

    Raises:
        FedsecError: the identity cannot be used; the other files may be missing.
    """

    def __init__(
        self,
        home: Path,
        *,
        federation: str,
        server_name: str,
        clock: Callable[[], datetime],
        on_fault: Callable[[str, FedsecError], None],
        read_only: bool = False,
    ) -> None:
        self._read_only = read_only
        self._home, self._federation, self._server_name = home, federation, server_name
        self._clock, self.on_fault = clock, on_fault
        self._marks: dict[str, object] = {}
        self._faults: dict[str, object] = {}
        self._remembered: OrderedDict[bytes, VerifiedPeer] = OrderedDict()
        self.floors, self.crl_sha256 = _read_floors(home / "gateway" / "floors.json")
        self._written: dict[str, int | str] = {**self.floors, "crl_sha256": self.crl_sha256}
        self.standing = Standing(self._load_identity(), None, b"", None, {}, read_statement(home / "identity"))
        self.reload()

    def reload(self) -> bool:
        """Read what changed; True if anything did. Faults are told, not raised."""
        before = self.standing
        for what, files, load in (
            ("root's statement", (f"federation/{STATEMENT_FILE}",), self._reload_statement),
            (
                "identity",
                ("identity/certificate.der", "identity/intermediate.der", "identity/key.pem", f"identity/{STATEMENT_FILE}"),
                self._reload_identity,
            ),
            ("revocation list", ("federation/crl.der",), self._reload_crl),
            ("list of clients", ("federation/roster.json", "federation/roster.signature", "federation/certificates"), self._reload_roster),
        ):
            mark = tuple(_mark(self._home / name) for name in files)
            if mark == self._marks.get(what):
                continue
            try:
                load()
            except FedsecError as error:
                fault = mark, type(error)
                if self._faults.get(what) != fault:
                    self._faults[what] = fault
                    self.on_fault(what, error)
            else:
                self._marks[what] = mark  # only now: what failed for a full disk or a clock is tried again
                self._faults.pop(what, None)
        return self.standing is not before

    def identity(self) -> Identity:
        """The server's identity as it is now; for gRPC's threads."""
        return self.standing.identity

    def check_caller(self, certificate_der: bytes) -> VerifiedPeer:
        """Who calls.

        Args:
            certificate_der: as the TLS layer showed it.

        Raises:
            Refused: not a node of this federation now, or nobody can be checked.
        """
        now, standing = self._clock(), self.standing
        try:
            standing.identity.check_own_issuer()
        except CertificateError as error:
            raise Refused(Reason.NO_REVOCATION_LIST, f"the gateway's own {error}") from None
        try:
            peer = self._verified(certificate_der, now)
        except CertificateError as error:
            raise Refused(Reason.CERTIFICATE, str(error)) from None
        if standing.crl is None:
            raise Refused(Reason.NO_REVOCATION_LIST, "the gateway has no revocation list; its operator must fetch one from the CA")
        try:
            standing.crl.check_time(now)
        except CertificateError as error:
            raise Refused(Reason.NO_REVOCATION_LIST, str(error)) from None
        try:
            standing.crl.check(peer.serial_number)
        except RevokedError as error:
            raise Refused(Reason.REVOKED, str(error)) from None
        return peer

    def is_revoked(self, serial_number: int) -> bool:
        """Whether the current list names a certificate."""
        return self.standing.crl is not None and serial_number in self.standing.crl.serial_numbers

    def can_serve(self) -> bool:
        """Whether there are lists to go by, and an identity that is valid."""
        now, standing = self._clock(), self.standing
        if standing.crl is None or standing.roster is None:
            return False
        try:
            standing.identity.check_own_issuer()
        except CertificateError:
            return False
        in_time = now < standing.crl.next_update and now <= standing.roster.not_after
        return in_time and standing.identity.not_before <= now <= standing.identity.not_after

    def _verified(self, certificate_der: bytes, now: datetime) -> VerifiedPeer:
        identity = self.standing.identity
        peer = self._remembered.get(certificate_der)
        if peer is None or now > peer.not_after:
            peer = verify_peer(
                certificate_der,
                intermediate_der=identity.intermediate_der,
                root_der=identity.root_der,
                federation=self._federation,
                role=Role.NODE,
                now=now,
                accepted=identity.accepted,
            )
            self._remembered[certificate_der] = peer
            while len(self._remembered) > _REMEMBERED:
                self._remembered.popitem(last=False)
        check_issuers(identity.intermediate_der, identity.root_der).check_time(now)
        return peer

    def _load_identity(self) -> Identity:
        identity = load_identity(self._home / "identity")
        name = identity.name
        if (name.role, name.federation, name.name) != (Role.SERVER, self._federation, self._server_name):
            raise CertificateError(f"the identity is {name.uri}, not the server {self._server_name} of {self._federation}; see server.toml")
        return identity

    def _reload_statement(self) -> None:
        offered = self._home / "federation" / STATEMENT_FILE
        if not offered.exists():  # the root never made one, or the operator took it away: the one in the identity's folder stays
            return
        data, identity = _read(offered, MAX_STATEMENT_BYTES), self.standing.identity
        if self._read_only:
            accepted = newer_statement(data, root_der=identity.root_der, federation=self._federation, known=identity.accepted)
        else:
            accepted = keep_statement(self._home / "identity", data, root_der=identity.root_der, federation=self._federation)
        self._use(replace(identity, accepted=accepted), data)

    def _reload_identity(self) -> None:
        identity = self._load_identity()
        if identity != self.standing.identity:
            if identity.root_der != self.standing.identity.root_der:
                raise CertificateError("the identity has another root; the gateway goes on with the old one until it is started again")
            self._use(identity, read_statement(self._home / "identity"))

    def _use(self, identity: Identity, statement: bytes) -> None:
        """Go by an identity and what the root says. Of a new statement the lists are not read yet: the old key may have signed them."""
        lists: dict[str, object] = {}
        if identity.accepted != self.standing.identity.accepted:
            lists = {"crl": None, "crl_der": b""}
            for what in ("revocation list", "list of clients"):
                self._marks.pop(what, None)
        self._remembered.clear()
        self._replace(identity=identity, statement=statement, **lists)

    def _reload_crl(self) -> None:
        identity, der = self.standing.identity, _read(self._home / "federation" / "crl.der", MAX_CRL_BYTES)
        crl = verify_crl(
            der,
            intermediate_der=identity.intermediate_der,
            root_der=identity.root_der,
            federation=self._federation,
            now=self._clock(),
            minimum_number=self.floors["crl_number"],
            accepted=identity.accepted,
        )
        self.check_twin(crl.number, der)
        self._replace(crl=crl, crl_der=der)  # before the floor is written: a full disk must not keep a revocation from counting
        self.crl_sha256 = hashlib.sha256(der).hexdigest()
        self._raise_floor("crl_number", crl.number)

    def _reload_roster(self) -> None:
        identity, folder = self.standing.identity, self._home / "federation"
        signed = SignedRoster(_read(folder / "roster.json", _MAX_ROSTER_BYTES), _read(folder / "roster.signature", 64))
        roster = verify_roster(
            signed,
            intermediate_der=identity.intermediate_der,
            root_der=identity.root_der,
            federation=self._federation,
            now=self._clock(),
            minimum_version=self.floors["roster_version"],
            accepted=identity.accepted,
        ).roster
        self._replace(roster=roster, serial_numbers=_serial_numbers(folder / "certificates", roster))
        self._raise_floor("roster_version", roster.version)

    def _replace(self, **changes: object) -> None:
        changed = Standing(**{**vars(self.standing), **changes})
        if changed != self.standing:
            self.standing = changed

    def _raise_floor(self, name: str, number: int) -> None:
        self.floors[name] = max(number, self.floors[name])
        content: dict[str, int | str] = {**self.floors, "crl_sha256": self.crl_sha256}
        if content != self._written and not self._read_only:
            atomic_write_json(self._home / "gateway" / "floors.json", content)
            self._written = content

    def check_twin(self, number: int, crl_der: bytes) -> None:
        """Refuse a revocation list that has the number of the one in use and another content.

        Raises:
            CertificateError: says the mend.
        """
        known = self.crl_sha256
        if known and number == self.floors["crl_number"] and not hmac.compare_digest(hashlib.sha256(crl_der).hexdigest(), known):
            raise CertificateError(f"revocation list: number {number} was another list before; the CA must issue one with a higher number")


def _serial_numbers(folder: Path, roster: Roster) -> dict[str, int]:
    """From the certificates that the CA handed out with the list; a missing or unreadable one is left out, for it proves nothing here."""
    found = {}
    for member in roster.members:
        try:
            der = _read(folder / f"{check_name('client id', member.client_id)}.der", _MAX_CERTIFICATE_BYTES)
            found[member.client_id] = int(claimed_serial_number(der), 16)
        except FedsecError:
            continue
    return found


def _mark(path: Path) -> object:
    """Changes whenever the file does."""
    try:
        status = os.stat(path)  # noqa: PTH116 - as cheap as can be, once a second
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as handle:
            data = handle.read(limit + 1)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}; it comes from the CA") from error
    if len(data) > limit:
        raise StorageError(f"{path} is over the limit of {limit} bytes")
    return data


def _read_floors(path: Path) -> tuple[dict[str, int], str]:
    floors = {"crl_number": 0, "roster_version": 0}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return floors, ""
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot read {path}: {error}; remove it to accept whatever list comes next") from error
    digest = found.pop("crl_sha256", "") if isinstance(found, dict) else None  # an earlier version wrote none
    if not isinstance(digest, str) or (digest and not _SHA256.fullmatch(digest)):
        raise StorageError(f"{path} is damaged; remove it to accept whatever list comes next")
    if found.keys() != floors.keys() or not all(type(value) is int for value in found.values()):
        raise StorageError(f"{path} is damaged; remove it to accept whatever list comes next")
    return found, digest
