"""Making and checking release files: built from what is installed here, signed by administrators, verified as a site would.

1. The FAB is built by the stock ``flwr build`` of the app folder that this installation makes (``appfolder``): what is approved is what is
   installed, file by file.
2. A manifest names the FAB and this installation. Whoever signs reads what the file says, not what somebody said that it says.
3. Files are written whole or not at all.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fedsec.admission.decision import Approver, Floor, SitePolicy, VerifiedRelease, admit, check_installation, verify_release
from fedsec.admission.fab import open_fab
from fedsec.admission.installed import installed_packages, scan_packages
from fedsec.admission.manifest import MAX_RELEASE_BYTES, Approval, FabEntry, Manifest, Release, approve, decode_release
from fedsec.edge.appfolder import write_app_folder
from fedsec.errors import AdmissionError, ConfigError, FedsecError, StorageError
from fedsec.files import atomic_write_bytes
from fedsec.identity.folder import load_identity
from fedsec.identity.intermediates import AcceptedIntermediates
from fedsec.identity.names import Role
from fedsec.identity.verify import BACKDATE, verify_peer

BUILD_TIMEOUT_S = 120.0
DEFAULT_DAYS = 30
APP_NAME = "fedsec"


def build_fab(folder: Path) -> Path:
    """Build the FAB of this installation with ``flwr build``.

    Args:
        folder: an existing one; the FAB is written into it.

    Returns:
        The FAB's path.

    Raises:
        ConfigError: Flower is not installed beside this Python.
        FedsecError: ``flwr build`` failed; says what it said.
    """
    flwr = Path(sys.executable).with_name("flwr")
    if not flwr.exists():
        raise ConfigError(f"flwr is not beside {sys.executable}", mend="install fedsec with its dependencies into one environment")
    with tempfile.TemporaryDirectory(prefix="fedsec-release-") as scratch:
        app, home = write_app_folder(Path(scratch) / APP_NAME), Path(scratch) / "flwr"
        home.mkdir()
        environment = {**os.environ, "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
        before = set(folder.glob("*.fab"))
        try:
            done = subprocess.run(  # noqa: S603 - the stock command on our own folder
                [str(flwr), "build", "--app", str(app)],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=BUILD_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise FedsecError(f"flwr build did not come to an end: {error}") from error
    made = sorted(set(folder.glob("*.fab")) - before)
    if done.returncode or len(made) != 1:
        raise FedsecError(f"flwr build failed: {(done.stderr or done.stdout).strip()[-500:]}")
    return made[0]


def make_release(fab: bytes, *, name: str, federation: str, release: str, version: int, days: int, now: datetime) -> Release:
    """A release of this installation, not approved yet.

    Args:
        fab: the FAB's bytes.
        name: its file name, for people.
        federation: whose release it is.
        release: its name.
        version: higher than every one before.
        days: how long it counts, at most 90.
        now: aware; it begins five minutes before.

    Raises:
        AdmissionError: the FAB is not what this installation would build, or a value is out of range.
        StorageError: the installation cannot be read.
    """
    opened = open_fab(fab)
    begins = now.astimezone(UTC).replace(microsecond=0) - BACKDATE
    entry = FabEntry(name, opened.fab_id, opened.fab_version, hashlib.sha256(fab).hexdigest(), len(fab))
    manifest = Manifest(
        federation=federation,
        release=release,
        version=version,
        not_before=begins,
        not_after=begins + timedelta(days=days),
        fab=entry,
        files=opened.files,
        runtime=scan_packages(installed_packages()),
    )
    return Release(manifest)


def sign_release(release: Release, identity_folder: Path, *, now: datetime) -> tuple[Release, str]:
    """Add an administrator's approval.

    Returns:
        The release with it, and the administrator's name.

    Raises:
        AdmissionError: not an administrator of that federation, whose certificate is valid now.
        StorageError: the identity cannot be read.
        CertificateError: its chain is unsound or has ended.
    """
    identity = load_identity(identity_folder)
    if identity.name.role is not Role.ADMIN or identity.name.federation != release.manifest.federation:
        raise AdmissionError(f"{identity.name.uri} may not approve a release of {release.manifest.federation}: its administrators do")
    verify_peer(
        identity.certificate_der,
        intermediate_der=identity.intermediate_der,
        root_der=identity.root_der,
        federation=identity.name.federation,
        role=Role.ADMIN,
        now=now,
        accepted=identity.accepted,
    )
    signed = approve(release, identity.signer, certificate=identity.certificate_der, intermediate=identity.intermediate_der, now=now)
    return signed, identity.name.name


def check_release(
    release: Release,
    *,
    root_der: bytes,
    approvers: Mapping[str, bytes | None],
    approvals: int,
    now: datetime,
    revoked: frozenset[int],
    fab: bytes | None = None,
    installed: bool = False,
    accepted: AcceptedIntermediates | None = None,
) -> VerifiedRelease:
    """Check a release as a site would that accepted none before.

    Args:
        release: as read.
        root_der: the federation's root.
        approvers: names that count, with a pinned public key or None.
        approvals: how many are needed.
        now: aware.
        revoked: serial numbers that count no more.
        fab: if given, it must be the release's.
        installed: whether the packages installed here must be the release's.
        accepted: the root's newest statement, where it made one.

    Raises:
        AdmissionError: says what does not hold.
    """

    def identify(approval: Approval) -> Approver:
        peer = verify_peer(
            approval.certificate,
            intermediate_der=approval.intermediate,
            root_der=root_der,
            federation=release.manifest.federation,
            role=Role.ADMIN,
            now=approval.approved_at,
            accepted=accepted,
        )
        return Approver(peer.name.name, peer.public_key, peer.serial_number)

    keys = {name: key for name, key in approvers.items() if key is not None}
    policy = SitePolicy(release.manifest.federation, frozenset(approvers), approvals, keys)
    verified = verify_release(release, policy=policy, floor=Floor(), now=now, identify=identify, revoked=revoked)
    if fab is not None:
        admit(fab, verified, release.manifest.runtime)
    if installed:
        check_installation(verified, scan_packages(installed_packages()))
    return verified


def read_release(path: Path) -> Release:
    """Read a release file.

    Raises:
        StorageError: it cannot be read.
        DecodeError: it is no release.
    """
    try:
        with path.open("rb") as handle:
            return decode_release(handle.read(MAX_RELEASE_BYTES + 1))
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error


def write_release(path: Path, release: Release) -> None:
    """Write a release file, whole or not at all.

    Raises:
        StorageError: the file system refused.
    """
    atomic_write_bytes(path, release.encode() + b"\n")
