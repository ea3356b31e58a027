"""A site's releases: what came as files or from the gateway, which one counts, and the decision about a FAB.

1. Files in ``releases/`` and what the gateway hands out are verified alike: approvals against the pinned root, the revocation list, the
   site's approvers, period, version floor.
2. The newest release that is installed here is the site's. It and the floor are on disk before its FAB passes.
3. Without a revocation list that is good now nothing passes: an approver's stolen key must be stoppable.
4. Every decision reads the installed files anew.

5. A missing floor is refused like a damaged one: without it an old release would come back. It is made when a client is set up.
6. Approvers' keys are pinned: those that ``agent.toml`` names, and, if they are fewer than the approvals that are needed, those with which
   the first accepted release was approved: as many as were needed, no more. From then on an approver without a pinned key does not count
   until ``agent.toml`` names the key, so that a CA that issues a certificate in an approver's name for a key of its own gains nothing.
7. Code that changed on disk under a running agent is refused: what is loaded is not what is there.
8. What cannot be read or judged, from a file or from the gateway, is skipped with its reason and keeps nothing else from counting. The
   site's own ``manifest.json`` is read first, then the newest files.

Files: ``releases/*.json`` (release files; ``manifest.json`` is the site's), ``floor.json``, and beside it ``approver-keys.json``, ``crl.der`` and
``crl-floor.json``: the newest revocation list, which the ClientApp reads too. A ``releases/crl.der`` that an operator copied is taken up
at the start.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import stat
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from fedsec.admission.decision import Approver, Floor, SitePolicy, VerifiedRelease, admit, choose_release, verify_release
from fedsec.admission.installed import installed_packages, scan_packages
from fedsec.admission.manifest import MAX_RELEASE_BYTES, Approval, FileEntry, decode_release
from fedsec.errors import AdmissionError, CertificateError, ConfigError, FedsecError, StorageError, VerificationError
from fedsec.files import atomic_write_bytes, atomic_write_text
from fedsec.identity.crl_file import CRL_FILE, FLOOR_FILE, CrlFile
from fedsec.identity.folder import Identity
from fedsec.identity.names import Role
from fedsec.identity.revocation import MAX_CRL_BYTES, RevocationList
from fedsec.identity.verify import verify_peer
from fedsec.signing import PUBLIC_KEY_BYTES

_logger = logging.getLogger(__name__)

MANIFEST_FILE, APPROVER_KEYS_FILE = "manifest.json", "approver-keys.json"
MAX_CANDIDATES = 64


def scan_installation() -> tuple[FileEntry, ...]:
    """The files of the packages that this Python would import."""
    return scan_packages(installed_packages())


@dataclass(frozen=True)
class _Candidate:
    """A release file's bytes, or where to read them."""

    source: str
    found: bytes | Path

    @property
    def data(self) -> bytes:
        """The bytes; read when they are asked for."""
        return self.found if isinstance(self.found, bytes) else _read(self.found, MAX_RELEASE_BYTES)


class ReleaseStore:
    """The releases of one site. May be used from several threads.

    Args:
        folder: ``releases/``; must exist.
        identity: the node's; says federation and pinned root.
        approvers: names whose approval counts here.
        approvals: how many are needed.
        floor_file: made by :func:`begin_floor`; lies outside of ``folder``.
        clock: this machine's time, aware; the gateway's counts for nothing here.
        keys: public keys of approvers that the site pins itself, by name; they go before those that were pinned at first sight.
        scan: lists the installed files.

    Raises:
        ConfigError: no approvers.
        StorageError: the floor is missing or damaged.
    """

    def __init__(
        self,
        folder: Path,
        identity: Identity,
        *,
        approvers: Iterable[str],
        approvals: int,
        floor_file: Path,
        clock: Callable[[], datetime],
        keys: Mapping[str, bytes] | None = None,
        scan: Callable[[], tuple[FileEntry, ...]] = scan_installation,
    ) -> None:
        names = frozenset(approvers)
        if not names:
            raise ConfigError(
                "this site names no approvers, so nothing could ever run here",
                field="release.approvers",
                mend="name the administrators whose approval of a release counts at this site",
            )
        self._folder, self._identity, self._clock, self._scan = folder, identity, clock, scan
        self._keys, self._keys_file = dict(keys or {}), floor_file.with_name(APPROVER_KEYS_FILE)
        pins = _read_pins(self._keys_file)
        known = {**{name: key for name, key in (pins or {}).items() if name in names}, **self._keys}
        only_known = pins is not None or len(known) >= approvals
        self._policy = SitePolicy(identity.name.federation, names, approvals, known, only_known)
        self._skipped: set[str] = set()
        self._floor_file = floor_file
        self._at_start = scan()
        self._lock = threading.Lock()
        self._offered: list[_Candidate] = []
        self._kept = CrlFile(
            path=floor_file.with_name(CRL_FILE),
            floor_path=floor_file.with_name(FLOOR_FILE),
            intermediate_der=identity.intermediate_der,
            root_der=identity.root_der,
            federation=identity.name.federation,
            accepted=identity.accepted,
        )
        self._crl = self._read_crl()
        self.floor = _read_floor(floor_file)

    @property
    def crl_number(self) -> int:
        """Of the newest revocation list seen; 0 if there was none."""
        return self._crl.number if self._crl is not None else 0

    def is_revoked(self, serial_number: int) -> bool:
        """Whether the newest list seen names a certificate; without a list, no."""
        return self._crl is not None and serial_number in self._crl.serial_numbers

    def use(self, identity: Identity) -> None:
        """Go by the root's newest statement, and by a new issuer, from here on: what is below a void intermediate counts no more.

        Args:
            identity: of the same name and root; nothing happens if issuer and statement are those in use.
        """
        known = self._identity
        if (identity.accepted, identity.intermediate_der) == (known.accepted, known.intermediate_der):
            return
        with self._lock:
            self._identity = identity
            self._kept = replace(
                self._kept,
                intermediate_der=identity.intermediate_der,
                accepted=identity.accepted,
            )
            self._crl = self._read_crl()

    def offer(self, releases: Iterable[bytes], crl_der: bytes) -> list[str]:
        """Take what the gateway handed out; it is judged when it is needed.

        Returns:
            What was wrong with the revocation list, if anything.
        """
        with self._lock:
            self._offered = [_Candidate("the gateway", data) for data in releases if len(data) <= MAX_RELEASE_BYTES][:MAX_CANDIDATES]
            return self._take_crl(crl_der) if crl_der else []

    def current(self) -> VerifiedRelease:
        """The site's release.

        Raises:
            AdmissionError: there is none; says why.
            StorageError: a file cannot be read or written.
        """
        with self._lock:
            return self._choose(self._scan())

    def admit(self, content: bytes) -> VerifiedRelease:
        """Let a FAB pass, or refuse it; nothing of it is unpacked or imported.

        Raises:
            AdmissionError: why not.
            StorageError: a file cannot be read or written.
        """
        with self._lock:
            installed = self._scan()
            release = self._choose(installed)
            admit(content, release, installed)
            return release

    def _choose(self, installed: tuple[FileEntry, ...]) -> VerifiedRelease:
        verified: dict[str, tuple[VerifiedRelease, bytes]] = {}
        reasons = []
        for candidate in self._candidates():
            try:
                data = candidate.data
                found = self._verify(data)
                verified.setdefault(found.manifest_sha256, (found, data))
            except FedsecError as error:
                reasons.append(f"{candidate.source}: {error}")
            except Exception as error:  # noqa: BLE001 - whatever somebody else wrote, it must not keep the site's own release from counting
                reasons.append(f"{candidate.source}: cannot be judged ({type(error).__name__})")
        self._say_skipped(reasons)
        if not verified:
            why = f" ({'; '.join(reasons[:2])})" if reasons else ""
            raise AdmissionError(f"no release counts at this site{why}")
        if installed != self._at_start:
            raise AdmissionError("the installation changed since this agent started; start it again")
        release = choose_release((found for found, _ in verified.values()), installed)
        if release.floor != self.floor:
            self._accept(release, verified[release.manifest_sha256][1])
        return release

    def _say_skipped(self, reasons: list[str]) -> None:
        """Into the log, once for as long as it goes on."""
        for reason in reasons:
            if reason not in self._skipped:
                _logger.warning("skipped a release: %s", reason)
        self._skipped = set(reasons)

    def _candidates(self) -> list[_Candidate]:
        """The site's own first, then what the gateway hands out, then the newest files."""
        mine = self._folder / MANIFEST_FILE
        files = sorted((path for path in self._folder.glob("*.json") if path != mine), key=_changed_at, reverse=True)
        if len(files) > MAX_CANDIDATES:
            _logger.warning("%s has %d release files; the %d oldest are not read", self._folder, len(files), len(files) - MAX_CANDIDATES)
        own = [_Candidate(mine.name, mine)] if os.path.lexists(mine) else []
        return [*own, *self._offered, *(_Candidate(path.name, path) for path in files[:MAX_CANDIDATES])]

    def _verify(self, data: bytes) -> VerifiedRelease:
        now = self._clock()
        crl = self._crl
        if crl is None:
            raise AdmissionError("no revocation list has come yet; the gateway hands it out, or put the CA's crl.der into releases/")
        crl.check_time(now)
        return verify_release(
            decode_release(data),
            policy=self._policy,
            floor=self.floor,
            now=now,
            identify=self._identify,
            revoked=crl.serial_numbers,
        )

    def _identify(self, approval: Approval) -> Approver:
        peer = verify_peer(
            approval.certificate,
            intermediate_der=approval.intermediate,
            root_der=self._identity.root_der,
            federation=self._policy.federation,
            role=Role.ADMIN,
            now=approval.approved_at,
            accepted=self._identity.accepted,
        )
        return Approver(peer.name.name, peer.public_key, peer.serial_number)

    def _accept(self, release: VerifiedRelease, data: bytes) -> None:
        """Raise the floor, on disk first: a crash must not let an older release back in. Approvers' keys are pinned before that."""
        known, wanted = self._policy.keys, self._policy.approvals
        if not self._policy.only_known:
            missing = wanted - sum(name in known for name in release.approvers)
            new = [name for name in release.approvers if name not in known][:missing]
            pins = {**known, **{name: release.approver_keys[name] for name in new}}
            _write_private_json(self._keys_file, {name: key.hex() for name, key in pins.items()})
            self._policy = replace(self._policy, keys=pins, only_known=True)
        atomic_write_bytes(self._folder / MANIFEST_FILE, data, mode=0o600)
        write_floor(self._floor_file, release.floor)
        self.floor = release.floor

    def _take_crl(self, der: bytes) -> list[str]:
        try:
            self._crl = self._kept.take(der, now=self._clock())
        except VerificationError as error:
            return [str(error)]
        return []

    def _read_crl(self) -> RevocationList | None:
        """The kept list, or an operator's copy if that is newer; one that ended does not count, but its number does."""
        found = None
        with contextlib.suppress(CertificateError):
            if self._kept.path.exists():
                found = self._kept.load(now=self._clock())
        copy = self._folder / CRL_FILE
        with contextlib.suppress(CertificateError):
            if copy.exists():
                found = self._kept.take(_read(copy, MAX_CRL_BYTES), now=self._clock())
        return found


def _changed_at(path: Path) -> float:
    with contextlib.suppress(OSError):
        return path.lstat().st_mtime
    return 0.0


def _write_private_json(path: Path, value: Any) -> None:
    atomic_write_text(path, json.dumps(value, indent=2) + "\n", mode=0o600)


def _read_pins(path: Path) -> dict[str, bytes] | None:
    """Keys that were pinned at first sight; None: nothing was yet.

    Raises:
        StorageError: damaged, or it cannot be read.
    """
    try:
        pins = {name: bytes.fromhex(text) for name, text in json.loads(path.read_text(encoding="utf-8")).items()}
        if any(len(key) != PUBLIC_KEY_BYTES for key in pins.values()):
            raise ValueError("a key of another length")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise StorageError(
            f"{path} is damaged ({error}); put the approvers' keys into [release.keys] of agent.toml and remove it"
        ) from None
    return pins


def write_floor(path: Path, floor: Floor) -> None:
    """Write the floor, durably.

    Raises:
        StorageError: the file system refused.
    """
    _write_private_json(path, {"version": floor.version, "manifest_sha256": floor.manifest_sha256})


def begin_floor(path: Path) -> None:
    """Make the floor of a new client; one that is there stays.

    Raises:
        StorageError: the file system refused.
    """
    if not path.exists():
        write_floor(path, Floor())


def _read_floor(path: Path) -> Floor:
    """The floor.

    Raises:
        StorageError: missing or damaged.
    """
    if not path.exists():
        raise StorageError(
            f"the version floor {path} is missing; 'fedsec client reset-floor' makes a new one, and then older releases count too"
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        version, sha256 = value["version"], value["manifest_sha256"]
        if type(version) is not int or version < 0 or type(sha256) is not str or len(bytes.fromhex(sha256)) != (32 if version else 0):
            raise ValueError("out of range")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise StorageError(f"{path} is damaged ({error}); put back the newest release's version and manifest_sha256") from None
    return Floor(version, sha256)


def _read(path: Path, limit: int) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe must not hold us up
        with os.fdopen(descriptor, "rb") as handle:
            if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
                raise StorageError(f"{path} is not a plain file")
            data = handle.read(limit + 1)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    if len(data) > limit:
        raise StorageError(f"{path} is over the limit of {limit} bytes")
    return data
