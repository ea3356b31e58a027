"""What is in a FAB, read without unpacking it: every file, or a refusal.

1. A FAB is a zip of plain files. Whatever two readers of zips could understand differently is refused: two entries of one name, names that
   differ in case only, a file that is also a folder, folders, links, encryption, other packings, data before the first or after the last
   entry, a comment.
2. Sizes are checked before and while a file is read, so a bomb costs its own size at most.
3. Every file's hash is that of the bytes that any reader would unpack.
4. Flower's own list (``.info/CONTENT``) names exactly the other files, and the app's components are the two that are installed.

Source: PKWARE APPNOTE 6.3.9; what Flower's ``install_from_fab`` unpacks with ``zipfile``.
"""

from __future__ import annotations

import hashlib
import stat
import tomllib
import zipfile
import zlib
from dataclasses import dataclass
from io import BytesIO

from fedsec.admission.manifest import FileEntry, check_file_set, check_path
from fedsec.errors import AdmissionError

MAX_FAB_BYTES = 10 * 1024 * 1024
"""Flower's own limit."""
MAX_FILE_BYTES = 8 * 1024 * 1024
MAX_UNPACKED_BYTES = 64 * 1024 * 1024
MAX_ENTRIES = 2000
MAX_RATIO = 50
"""Most bytes unpacked of one packed byte; source code packs 3 to 10 times."""
SMALL_FILE_BYTES = 4096
"""Below this a file's ratio says nothing."""

PROJECT, CONTENT = "pyproject.toml", ".info/CONTENT"
COMPONENTS = {"serverapp": "server.app:app", "clientapp": "client.app:app"}
"""The only apps that a release may name."""

_LOCAL_HEADER = b"PK\x03\x04"
_END_RECORD_BYTES = 22
_ENCRYPTED = 0x1


@dataclass(frozen=True)
class OpenedFab:
    """What a FAB says of itself.

    Attributes:
        files: every file in it, by path.
        fab_id: publisher and project.
        fab_version: the project's version.
    """

    files: tuple[FileEntry, ...]
    fab_id: str
    fab_version: str


def open_fab(content: bytes) -> OpenedFab:
    """A FAB's files, id and version, read and not unpacked.

    Raises:
        AdmissionError: not a FAB that every reader would unpack alike, other components, or a list that is not its own.
    """
    contents = _contents(content)
    files = tuple(sorted(_entry(path, data) for path, data in contents.items()))
    listed = "\n".join(f"{path},{hashlib.sha256(data).hexdigest()},{len(data) * 8}" for path, data in contents.items() if path != CONTENT)
    if contents.get(CONTENT) != listed.encode("utf-8"):
        raise AdmissionError("the FAB's own list of files is not that of its files")
    try:
        project = tomllib.loads(contents[PROJECT].decode("utf-8"))
        app = project["tool"]["flwr"]["app"]
        fab_id, version, components = f"{app['publisher']}/{project['project']['name']}", project["project"]["version"], app["components"]
    except (KeyError, TypeError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        raise AdmissionError("the FAB's pyproject.toml is missing or names no app") from None
    if components != COMPONENTS or not isinstance(version, str):
        raise AdmissionError(f"the FAB's components are not {COMPONENTS}")
    return OpenedFab(files, fab_id, version)


def read_fab(content: bytes) -> tuple[FileEntry, ...]:
    """Every file in a FAB, by path.

    Raises:
        AdmissionError: not a FAB that every reader would unpack alike.
    """
    return tuple(sorted(_entry(path, data) for path, data in _contents(content).items()))


def _contents(content: bytes) -> dict[str, bytes]:
    """Path → bytes, in the archive's order."""
    if len(content) > MAX_FAB_BYTES:
        raise AdmissionError(f"a FAB of {len(content)} bytes is over the limit of {MAX_FAB_BYTES}")
    try:
        with zipfile.ZipFile(BytesIO(content)) as archive:
            _check_frame(content, archive)
            entries = archive.infolist()
            for info in entries:
                _check_entry(info)
            if sum(info.file_size for info in entries) > MAX_UNPACKED_BYTES:
                raise AdmissionError(f"a FAB that unpacks to more than {MAX_UNPACKED_BYTES} bytes")
            names = sorted((FileEntry(info.filename, "0" * 64, info.file_size) for info in entries), key=lambda entry: entry.path)
            check_file_set(names, "the FAB")  # before anything is read
            return {info.filename: _read(archive, info) for info in entries}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError, OverflowError):
        raise AdmissionError("the FAB is not a zip that can be read") from None


def _check_frame(content: bytes, archive: zipfile.ZipFile) -> None:
    """Nothing before the first entry, nothing behind the last, no comment: the whole file is the archive."""
    entries = archive.infolist()
    if not 0 < len(entries) <= MAX_ENTRIES:
        raise AdmissionError(f"a FAB with {len(entries)} entries; 1 to {MAX_ENTRIES} are possible")
    if not content.startswith(_LOCAL_HEADER) or min(info.header_offset for info in entries) != 0:
        raise AdmissionError("a FAB with something before its first entry")
    if archive.comment or content[-_END_RECORD_BYTES : -_END_RECORD_BYTES + 4] != b"PK\x05\x06":
        raise AdmissionError("a FAB with something behind its last entry")
    if len({info.header_offset for info in entries}) != len(entries):
        raise AdmissionError("a FAB with two names for one entry")


def _check_entry(info: zipfile.ZipInfo) -> None:
    check_path(info.orig_filename)
    name = info.filename
    if info.orig_filename != name or info.is_dir():
        raise AdmissionError(f"an entry of the FAB that is not a plain file: {info.orig_filename[:120]!r}")
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
        raise AdmissionError(f"{name} in the FAB is a link or a device")
    if info.flag_bits & _ENCRYPTED or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise AdmissionError(f"{name} in the FAB is encrypted or packed in an unknown way")
    if info.file_size > MAX_FILE_BYTES:
        raise AdmissionError(f"{name} in the FAB has {info.file_size} bytes, over the limit of {MAX_FILE_BYTES}")
    if info.file_size > SMALL_FILE_BYTES and info.file_size > MAX_RATIO * info.compress_size:
        raise AdmissionError(f"{name} in the FAB unpacks to more than {MAX_RATIO} times its size")


def _entry(path: str, data: bytes) -> FileEntry:
    return FileEntry(path, hashlib.sha256(data).hexdigest(), len(data))


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """Read one entry, one byte more than it says at most; zipfile checks its CRC and the name in its own header."""
    with archive.open(info) as handle:
        data = handle.read(info.file_size + 1)
    if len(data) != info.file_size:
        raise AdmissionError(f"{info.filename} in the FAB does not have the size that it states")
    return data
