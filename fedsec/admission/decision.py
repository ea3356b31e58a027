"""The site's decision: which release counts, and whether a FAB and the installation are exactly that release.

1. A release counts if the site's own approvers signed it, enough of them: distinct names and distinct keys, each with an administrator's
   certificate that was valid when it signed and is not revoked.
2. It must be of the site's federation, in its period, and no older than one accepted before. The same version with other contents is
   refused: somebody signed twice.
3. A release that the installed packages are not is none for this site; the newest that fits is the one. Accepting it raises the floor.
4. A FAB passes if its bytes, and its files one by one, are those of the release: nothing more, nothing less. Whatever else is refused with
   one reason, and nothing of it is unpacked or imported.
5. Bad approvals do not count and do no harm: anybody may append one.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable, Mapping
from dataclasses import InitVar, dataclass, field
from datetime import datetime, timedelta

from fedsec.admission.fab import open_fab
from fedsec.admission.manifest import APPROVAL_LABEL, EARLY_APPROVAL, MAX_PERIOD, Approval, FileEntry, Manifest, Release, approval_digest
from fedsec.errors import AdmissionError, ConfigError, VerificationError
from fedsec.signing import verify_signature

CLOCK_SLACK = timedelta(minutes=5)
"""How far ahead of this clock an approver's may be."""
MAX_STEP = 1000
"""Most that a version grows from one accepted release to the next."""
_VERIFIED = object()
_SHOWN = 3


@dataclass(frozen=True)
class Approver:
    """Whom an approval's certificate names, verified.

    Attributes:
        name: of the administrator.
        public_key: 33 bytes.
        serial_number: of the certificate.
    """

    name: str
    public_key: bytes
    serial_number: int


Identify = Callable[[Approval], Approver]
"""Verifies an approval's certificate at its time of approval, as an administrator's of the site's federation; raises VerificationError."""


@dataclass(frozen=True)
class SitePolicy:
    """What a site insists on.

    Attributes:
        federation: its own.
        approvers: names of the administrators whose approval counts here.
        approvals: how many of them are needed, at least 1.
        keys: public keys (33 bytes) by name, where the site pins them too: a CA that issues a certificate in an approver's name then
            gains nothing.
        only_known: an approver without a pinned key does not count.

    Raises:
        ConfigError: it cannot be met, or asks for nothing.
    """

    federation: str
    approvers: frozenset[str]
    approvals: int
    keys: Mapping[str, bytes] = field(default_factory=dict)
    only_known: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.approvals <= len(self.approvers):
            raise ConfigError(
                f"{self.approvals} approvals of {len(self.approvers)} approvers",
                field="release.approvals",
                mend="name at least as many approvers as approvals are needed, and need at least one",
            )


@dataclass(frozen=True)
class Floor:
    """The newest release that this site accepted so far.

    Attributes:
        version: 0 if there was none.
        manifest_sha256: hex; empty if there was none.
    """

    version: int = 0
    manifest_sha256: str = ""


@dataclass(frozen=True)
class VerifiedRelease:
    """A release that counts here; made by :func:`verify_release` only.

    Attributes:
        manifest: what it is.
        manifest_sha256: hex.
        approvers: names of those whose approvals counted, in order.
        approver_keys: their public keys, by name.
    """

    manifest: Manifest
    manifest_sha256: str
    approvers: tuple[str, ...]
    approver_keys: Mapping[str, bytes] = field(default_factory=dict)
    token: InitVar[object] = field(default=None)

    def __post_init__(self, token: object) -> None:
        if token is not _VERIFIED:
            raise TypeError("only verify_release makes a VerifiedRelease")

    @property
    def floor(self) -> Floor:
        """The floor once this release is accepted."""
        return Floor(self.manifest.version, self.manifest_sha256)


def verify_release(
    release: Release, *, policy: SitePolicy, floor: Floor, now: datetime, identify: Identify, revoked: frozenset[int]
) -> VerifiedRelease:
    """Check a release against the site's policy.

    Args:
        release: as it came.
        policy: the site's.
        floor: the newest accepted so far.
        now: aware.
        identify: verifies an approval's certificate.
        revoked: serial numbers that count no more.

    Raises:
        AdmissionError: says why it does not count.
        ValueError: ``now`` is naive.
    """
    manifest, sha256 = release.manifest, release.sha256.hex()
    if now.tzinfo is None:
        raise ValueError("now must be aware of its time zone")
    if manifest.federation != policy.federation:
        raise AdmissionError(f"{_title(manifest)} is of the federation {manifest.federation}, not {policy.federation}")
    if now < manifest.not_before:
        raise AdmissionError(f"{_title(manifest)} is not valid before {manifest.not_before:%Y-%m-%d %H:%M:%S} UTC")
    if now >= manifest.not_after:
        raise AdmissionError(f"{_title(manifest)} expired at {manifest.not_after:%Y-%m-%d %H:%M:%S} UTC; approve a new one")
    if manifest.version > floor.version + MAX_STEP and floor.version:
        raise AdmissionError(f"{_title(manifest)} is more than {MAX_STEP} above version {floor.version}: it would use the numbers up")
    if manifest.version < floor.version:
        raise AdmissionError(f"{_title(manifest)} is older than version {floor.version}, which this site accepted before")
    if manifest.version == floor.version and not hmac.compare_digest(sha256, floor.manifest_sha256):
        raise AdmissionError(
            f"{_title(manifest)} is not the version {floor.version} that this site accepted before: two releases, one number"
        )
    counted = _count_approvals(release, policy, now, identify, revoked)
    return VerifiedRelease(manifest, sha256, tuple(counted), counted, token=_VERIFIED)


def check_installation(release: VerifiedRelease, installed: Iterable[FileEntry]) -> None:
    """Refuse an installation that is not the release's.

    Args:
        release: what should be installed.
        installed: what is.

    Raises:
        AdmissionError: names the files that differ.
    """
    _compare(installed, release.manifest.runtime, f"the installed fedsec is not that of {_title(release.manifest)}")


def choose_release(candidates: Iterable[VerifiedRelease], installed: Iterable[FileEntry]) -> VerifiedRelease:
    """The newest release that is installed here.

    Raises:
        AdmissionError: there is none; says what the newest lacks.
    """
    ordered = sorted(candidates, key=lambda release: release.manifest.version, reverse=True)
    if not ordered:
        raise AdmissionError("no release counts here; ask the federation's administrators for one")
    present, first = tuple(installed), None
    for position, release in enumerate(ordered):
        same_version = [other for other in ordered if other.manifest.version == release.manifest.version]
        if any(other.manifest_sha256 != release.manifest_sha256 for other in same_version):
            raise AdmissionError(
                f"two different releases have the version {release.manifest.version}; the approvers must say which one counts"
            )
        try:
            check_installation(release, present)
        except AdmissionError as error:
            first = error if position == 0 else first
        else:
            return release
    assert first is not None
    raise first


def admit(content: bytes, release: VerifiedRelease, installed: Iterable[FileEntry]) -> None:
    """Let a FAB pass, or refuse it.

    Args:
        content: the FAB's bytes.
        release: the site's.
        installed: the files of the installed packages, read now.

    Raises:
        AdmissionError: says why not; nothing was unpacked.
    """
    fab = release.manifest.fab
    found = hashlib.sha256(content).hexdigest()
    if not hmac.compare_digest(found, fab.sha256) or len(content) != fab.size:
        raise AdmissionError(f"a FAB with SHA-256 {found[:16]}… is not that of {_title(release.manifest)}")
    opened = open_fab(content)
    if (opened.fab_id, opened.fab_version) != (fab.fab_id, fab.fab_version):
        raise AdmissionError("the FAB's id or version is not the manifest's")
    _compare(opened.files, release.manifest.files, f"the FAB's files are not those of {_title(release.manifest)}")
    check_installation(release, installed)


def _count_approvals(
    release: Release, policy: SitePolicy, now: datetime, identify: Identify, revoked: frozenset[int]
) -> dict[str, bytes]:  # fmt: skip
    """Keys by name: each name and each key once, in order."""
    counted: dict[str, bytes] = {}
    reasons: list[str] = []
    for approval in release.approvals:
        try:
            approver = _check_approval(approval, release, policy, now, identify, revoked)
            if approver.name in counted or approver.public_key in counted.values():
                raise AdmissionError(f"{approver.name}, or that key, has approved already")
        except VerificationError as error:
            reasons.append(str(error))
            continue
        counted[approver.name] = approver.public_key
    if len(counted) < policy.approvals:
        why = f" (not counted: {'; '.join(reasons[:_SHOWN])})" if reasons else ""
        raise AdmissionError(f"{_title(release.manifest)} has {len(counted)} approvals that count here, {policy.approvals} are needed{why}")
    return counted


def _check_approval(
    approval: Approval, release: Release, policy: SitePolicy, now: datetime, identify: Identify, revoked: frozenset[int]
) -> Approver:  # fmt: skip
    if approval.approved_at > now + CLOCK_SLACK:
        raise AdmissionError("an approval from the future")
    manifest = release.manifest
    if approval.approved_at < manifest.not_before - EARLY_APPROVAL or approval.approved_at < manifest.not_after - MAX_PERIOD:
        raise AdmissionError("an approval from long before the manifest's period")
    approver = identify(approval)
    if approver.name not in policy.approvers:
        raise AdmissionError(f"{approver.name} is no approver of this site")
    if policy.only_known and approver.name not in policy.keys:
        raise AdmissionError(f"no key of {approver.name} is pinned at this site; put it into [release.keys] of agent.toml")
    if not hmac.compare_digest(policy.keys.get(approver.name, approver.public_key), approver.public_key):
        raise AdmissionError(f"{approver.name} approved with another key than the one that this site pins")
    if approver.serial_number in revoked:
        raise AdmissionError(f"the certificate of {approver.name} was revoked")
    verify_signature(
        approver.public_key, APPROVAL_LABEL, approval_digest(release.sha256, approval.approved_at, approval.certificate), approval.signature
    )
    return approver


def _compare(found: Iterable[FileEntry], expected: Iterable[FileEntry], what: str) -> None:
    here, listed = {entry.path: entry for entry in found}, {entry.path: entry for entry in expected}
    faults = [f"{path} is missing" for path in sorted(listed.keys() - here.keys())]
    faults += [f"{path} is not in it" for path in sorted(here.keys() - listed.keys())]
    faults += [f"{path} was changed" for path in sorted(here.keys() & listed.keys()) if here[path] != listed[path]]
    if faults:
        more = f" and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise AdmissionError(f"{what}: {', '.join(faults[:_SHOWN])}{more}")


def _title(manifest: Manifest) -> str:
    return f"release {manifest.release} version {manifest.version}"
