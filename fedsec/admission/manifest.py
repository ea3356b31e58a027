"""Release manifests and approvals: what is signed, and its one encoding.

1. A manifest is canonical JSON. It names the FAB (SHA-256, size), every file in it, and every file of the installed packages.
2. A version is a whole number that grows; a manifest is valid for at most 90 days.
3. Code in a FAB is code that the release also installs: each file below ``server/`` or ``client/`` is the same file of ``runtime``. So a FAB
   shadows nothing, and it makes no difference which of the two copies a process loads.
4. An approval is an administrator's signature over the manifest's SHA-256, the time of approval and the certificate that it was made
   with. It is given at most a day before the manifest begins or after, and holds for 90 days, so that a stolen key is worth no more than
   that beyond its certificate's end. A release is a manifest with its approvals, in one file.

Source: design note IDENTITY, "Peers' faults": file-by-file signatures let swapped and deleted files pass.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from fedsec.codec import canonical_json, decode_canonical_json, digest
from fedsec.errors import AdmissionError, DecodeError
from fedsec.jsonfields import INTEGER, TEXT, Codec, Table, build, dump, list_of
from fedsec.signing import Signer

MANIFEST_FORMAT = "fedsec/manifest/v1"
RELEASE_FORMAT = "fedsec/release/v1"
APPROVAL_LABEL = "fedsec/release/v1/approval"
"""What an approval's signature stands under."""

MAX_PERIOD = timedelta(days=90)
"""Longest validity of a manifest."""
EARLY_APPROVAL = timedelta(days=1)
"""How long before a manifest's period it may be approved."""
MAX_APPROVALS = 32
MAX_FILES = 5000
MAX_RELEASE_BYTES = 8 * 1024 * 1024
CODE_FOLDERS = ("server/", "client/")
"""The only folders with code in a FAB: its two thin apps."""
BARE_FILES = frozenset({"pyproject.toml", "LICENSE", "README.md", ".info/CONTENT"})
"""What a FAB holds beside them; Flower writes the last one itself."""

_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}(?:/[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}){0,15}", re.ASCII)
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}", re.ASCII)
_FAB_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}/[a-z0-9][a-z0-9-]{0,63}", re.ASCII)
_FAB_VERSION = re.compile(r"[0-9][0-9A-Za-z]{0,15}(?:\.[0-9A-Za-z]{1,16}){0,4}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


def check_path(path: str) -> str:
    """The path itself, if it may stand in a manifest: relative, forward slashes, no segment that begins with a dot.

    Raises:
        AdmissionError: it may not.
    """
    if path not in BARE_FILES and (len(path) > 240 or not _PATH.fullmatch(path)):
        raise AdmissionError(f"a path that may not stand in a release: {path[:120]!r}")
    return path


@dataclass(frozen=True, order=True)
class FileEntry:
    """One file.

    Attributes:
        path: relative, of the form of :func:`check_path`.
        sha256: of its bytes, 64 hex digits.
        size: bytes.
    """

    path: str
    sha256: str
    size: int

    def __post_init__(self) -> None:
        check_path(self.path)
        _check_hash_and_size(self.sha256, self.size, self.path)


@dataclass(frozen=True)
class FabEntry:
    """The FAB as a whole.

    Attributes:
        name: of the file that ``flwr build`` wrote; for people.
        fab_id: publisher and project, as its ``pyproject.toml`` says; with the version it names the folder that Flower loads from.
        fab_version: the project's version.
        sha256: of its bytes, 64 hex digits.
        size: bytes.
    """

    name: str
    fab_id: str
    fab_version: str
    sha256: str
    size: int

    def __post_init__(self) -> None:
        if not _FAB_ID.fullmatch(self.fab_id) or not _FAB_VERSION.fullmatch(self.fab_version):
            raise AdmissionError("the FAB's id is not publisher/project, or its version not digits, letters and dots")
        if not self.name.isprintable() or not 0 < len(self.name) <= 200:
            raise AdmissionError("the FAB's name is not 1 to 200 printable characters")
        _check_hash_and_size(self.sha256, self.size, "the FAB")


@dataclass(frozen=True)
class Manifest:
    """What a release is.

    Attributes:
        federation: whose.
        release: its name, for people; a-z 0-9 . _ -.
        version: from 1; a site goes to higher ones only.
        not_before: aware, whole seconds.
        not_after: aware, whole seconds; at most 90 days later.
        fab: the FAB.
        files: every file in the FAB, by path.
        runtime: every file of the installed packages, by path.

    Raises:
        AdmissionError: says what is unsound.
    """

    federation: str
    release: str
    version: int
    not_before: datetime
    not_after: datetime
    fab: FabEntry
    files: tuple[FileEntry, ...]
    runtime: tuple[FileEntry, ...]

    def __post_init__(self) -> None:
        for what, name in (("federation", self.federation), ("release name", self.release)):
            if not _NAME.fullmatch(name):
                raise AdmissionError(f"the {what} is not 1 to 128 of a-z 0-9 . _ - with a letter or digit first")
        if not 1 <= self.version < 1 << 53:
            raise AdmissionError(f"a version of {self.version}; versions are whole numbers from 1")
        if not timedelta(0) < self.not_after - self.not_before <= MAX_PERIOD:
            raise AdmissionError(f"a manifest is valid for at most {MAX_PERIOD.days} days, and ends after it begins")
        check_file_set(self.files, "the FAB")
        check_file_set(self.runtime, "the runtime")
        _check_fab_files(self.files, self.runtime)

    def encode(self) -> bytes:
        """Canonical JSON."""
        return canonical_json(self.as_json())

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        return {"format": MANIFEST_FORMAT, **dump(_MANIFEST_TABLE, self)}


@dataclass(frozen=True)
class Approval:
    """An administrator's signature on a manifest; nothing is checked yet.

    Attributes:
        certificate: DER, of the role admin.
        intermediate: DER, its issuer.
        approved_at: aware, whole seconds; signed too.
        signature: 64 bytes, over :func:`approval_digest`.
    """

    certificate: bytes
    intermediate: bytes
    approved_at: datetime
    signature: bytes


@dataclass(frozen=True)
class Release:
    """A manifest and its approvals, as a file holds them; nothing is checked yet but the form.

    Attributes:
        manifest: what is approved.
        approvals: at most 32.
    """

    manifest: Manifest
    approvals: tuple[Approval, ...] = ()

    def __post_init__(self) -> None:
        if len(self.approvals) > MAX_APPROVALS:
            raise AdmissionError(f"{len(self.approvals)} approvals, at most {MAX_APPROVALS}")

    @property
    def sha256(self) -> bytes:
        """Of the manifest: 32 bytes that stand for exactly this release."""
        return hashlib.sha256(self.manifest.encode()).digest()

    def encode(self) -> bytes:
        """The release file: canonical JSON."""
        approvals = [dump(_APPROVAL_TABLE, approval) for approval in self.approvals]
        return canonical_json({"format": RELEASE_FORMAT, "manifest": self.manifest.as_json(), "approvals": approvals})


def decode_release(data: bytes) -> Release:
    """Read a release file.

    Raises:
        DecodeError: not the one encoding of a release.
    """
    if len(data) > MAX_RELEASE_BYTES:
        raise DecodeError(f"a release file of {len(data)} bytes is over the limit of {MAX_RELEASE_BYTES}")
    value = decode_canonical_json(data.rstrip(b"\n"))
    if not isinstance(value, dict) or value.pop("format", None) != RELEASE_FORMAT:
        raise DecodeError(f"not a release file ({RELEASE_FORMAT})")
    try:
        return build(Release, _RELEASE_TABLE, value, "release")
    except AdmissionError as error:
        raise DecodeError(f"release: {error}") from None


def approval_digest(manifest_sha256: bytes, approved_at: datetime, certificate: bytes) -> bytes:
    """What an approval signs: 32 bytes."""
    return digest(APPROVAL_LABEL, manifest_sha256, _write_time(approved_at).encode("ascii"), hashlib.sha256(certificate).digest())


def approve(release: Release, signer: Signer, *, certificate: bytes, intermediate: bytes, now: datetime) -> Release:
    """The release with one more approval; an earlier one with the same certificate is replaced.

    Args:
        release: what is approved.
        signer: the administrator's key.
        certificate: DER, for that key.
        intermediate: DER.
        now: aware.

    Raises:
        AdmissionError: there are too many approvals.
    """
    moment = now.astimezone(UTC).replace(microsecond=0)
    signature = signer.sign(APPROVAL_LABEL, approval_digest(release.sha256, moment, certificate))
    kept = tuple(approval for approval in release.approvals if approval.certificate != certificate)
    return Release(release.manifest, (*kept, Approval(certificate, intermediate, moment, signature)))


def check_file_set(entries: Iterable[FileEntry], what: str) -> None:
    """Refuse files that could be taken for one another: twice the same path, a clash of case, a file that is also a folder.

    Raises:
        AdmissionError: says which.
    """
    paths = [entry.path for entry in entries]
    if not 0 < len(paths) <= MAX_FILES:
        raise AdmissionError(f"{what} has {len(paths)} files; 1 to {MAX_FILES} are possible")
    folded = [path.casefold() for path in paths]
    if len(set(folded)) != len(folded):
        twice = sorted(path for path, fold in zip(paths, folded, strict=True) if folded.count(fold) > 1)
        raise AdmissionError(f"{what} has {twice[0]} twice, or twice but for its case")
    folders = {fold[:index] for fold in folded for index, letter in enumerate(fold) if letter == "/"}
    if both := folders & set(folded):
        raise AdmissionError(f"{what} has {min(both)} as a file and as a folder")
    if paths != sorted(paths):
        raise AdmissionError(f"{what}: its files are not in the order of their paths")


def _check_fab_files(files: tuple[FileEntry, ...], runtime: tuple[FileEntry, ...]) -> None:
    installed = set(runtime)
    for entry in files:
        if entry.path in BARE_FILES:
            continue
        if not entry.path.startswith(CODE_FOLDERS):
            raise AdmissionError(f"{entry.path} may not be in a FAB: it would shadow what is installed")
        if entry not in installed:
            raise AdmissionError(f"{entry.path} in the FAB is not the file that the release installs")


def _check_hash_and_size(sha256: str, size: int, what: str) -> None:
    if not _SHA256.fullmatch(sha256) or not 0 <= size < 1 << 40:
        raise AdmissionError(f"{what}: not a SHA-256 in lower-case hex with a size in bytes")


def _write_time(time: datetime) -> str:
    if time.tzinfo is None:
        raise ValueError("times are aware")
    return time.astimezone(UTC).replace(tzinfo=None, microsecond=0).isoformat() + "Z"


def _read_time(value: Any, what: str) -> datetime:
    text = TEXT.read(value, what)
    try:
        time = datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        raise DecodeError(f"{what} is not a time of the form 2030-01-31T12:00:00Z") from None
    if _write_time(time) != text:
        raise DecodeError(f"{what} is not a time in its one spelling")
    return time


def _read_bytes(value: Any, what: str) -> bytes:
    text = TEXT.read(value, what)
    try:
        data = bytes.fromhex(text)
    except ValueError:
        raise DecodeError(f"{what} is not hexadecimal") from None
    if data.hex() != text or len(data) > 65536:
        raise DecodeError(f"{what} is not lower-case hexadecimal, or too long")
    return data


def _read_manifest(value: Any, what: str) -> Manifest:
    if not isinstance(value, dict) or value.get("format") != MANIFEST_FORMAT:
        raise DecodeError(f"{what} is not a manifest ({MANIFEST_FORMAT})")
    return build(Manifest, _MANIFEST_TABLE, {key: item for key, item in value.items() if key != "format"}, what)


_BYTES = Codec(bytes.hex, _read_bytes)
_TIME = Codec(_write_time, _read_time)
_FILE_TABLE: Table = {"path": TEXT, "sha256": TEXT, "size": INTEGER}
_FAB_TABLE: Table = {"name": TEXT, "fab_id": TEXT, "fab_version": TEXT, "sha256": TEXT, "size": INTEGER}
_FILE = Codec(lambda entry: dump(_FILE_TABLE, entry), lambda value, what: build(FileEntry, _FILE_TABLE, value, what))
_FAB = Codec(lambda entry: dump(_FAB_TABLE, entry), lambda value, what: build(FabEntry, _FAB_TABLE, value, what))
_MANIFEST_TABLE: Table = {
    "federation": TEXT,
    "release": TEXT,
    "version": INTEGER,
    "not_before": _TIME,
    "not_after": _TIME,
    "fab": _FAB,
    "files": list_of(_FILE),
    "runtime": list_of(_FILE),
}
_APPROVAL_TABLE: Table = {"certificate": _BYTES, "intermediate": _BYTES, "approved_at": _TIME, "signature": _BYTES}
_APPROVAL = Codec(lambda value: dump(_APPROVAL_TABLE, value), lambda value, what: build(Approval, _APPROVAL_TABLE, value, what))
_RELEASE_TABLE: Table = {"manifest": Codec(Manifest.as_json, _read_manifest), "approvals": list_of(_APPROVAL)}
