"""Where data files lie, and how the missing ones come.

1. The data root is the first of: the ``--data-root`` argument, the environment variable ``FEDSEC_DATA_ROOT``, the cache folder
   (``$FEDSEC_CACHE``, else ``$XDG_CACHE_HOME/fedsec``, else ``~/.cache/fedsec``). Below it: ``mnist/*.gz``, ``fashion-mnist/*.gz``.
2. A root that was named and does not exist is an error, not a reason to download: it is most likely a slip of the pen.
3. A missing file is fetched over https, checked against its pinned digest, and only then put in place, atomically: two
   processes may do so at once. A file that is there is never replaced.
"""

from __future__ import annotations

import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

from fedsec.data.idx import MAX_COMPRESSED_BYTES, IdxFile, ImageSet, decode_idx_gz
from fedsec.errors import DataError
from fedsec.files import atomic_write_bytes

DATA_ROOT_VARIABLE = "FEDSEC_DATA_ROOT"
CACHE_VARIABLE = "FEDSEC_CACHE"
TIMEOUT_S = 15.0

Fetch = Callable[[str], bytes]
"""Address to content; raises ``OSError`` when it cannot."""


def cache_folder() -> Path:
    """The folder for what can be made or fetched again: ``$FEDSEC_CACHE``, ``$XDG_CACHE_HOME/fedsec`` or ``~/.cache/fedsec``.

    A relative ``XDG_CACHE_HOME`` is ignored, as the XDG base directory specification asks.
    """
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME", "")
    if base and Path(base).is_absolute():
        return Path(base) / "fedsec"
    try:
        return Path.home() / ".cache" / "fedsec"
    except RuntimeError as error:
        raise DataError(f"this user has no home folder for the cache (set {CACHE_VARIABLE} to a folder that can be written)") from error


def find_data_root(data_root: Path | None) -> Path:
    """The folder that holds the data sets: rule 1 of this module.

    Raises:
        DataError: a root was named, but there is no such folder.
    """
    for named, origin in ((data_root, "--data-root"), (os.environ.get(DATA_ROOT_VARIABLE), DATA_ROOT_VARIABLE)):
        if not named:
            continue
        root = Path(named)
        if not _is_there(root.is_dir, root):
            raise DataError(f"{origin} names {root}, which is no folder (create it, or correct the name)")
        return root
    return cache_folder()


def ensure_images(images: ImageSet, root: Path, *, fetch: Fetch | None = None) -> Path:
    """Make sure that the four files of a data set are there.

    Args:
        images: what is needed.
        root: the data root.
        fetch: how to get an address; https by default.

    Returns:
        The folder of the data set.

    Raises:
        DataError: files are missing and could not be fetched; says which, and where to put them.
    """
    folder = root / images.name
    missing = [file for file in images.files if not _is_there((folder / file.name).is_file, folder)]
    for position, file in enumerate(missing):
        content = _first_sound_copy(images, file, missing[position:], folder, fetch or fetch_https)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"cannot create {folder}: {error.strerror or error} (choose another --data-root)") from error
        atomic_write_bytes(folder / file.name, content)
    return folder


def fetch_https(url: str) -> bytes:
    """Content of an https address, at most :data:`fedsec.data.idx.MAX_COMPRESSED_BYTES`.

    Raises:
        OSError: no network, an error status, an address or redirect that is not https, or too much content.
    """
    if urllib.parse.urlsplit(url).scheme != "https":
        raise OSError(f"{url} is not an https address")
    request = urllib.request.Request(url, headers={"User-Agent": "fedsec"})  # noqa: S310 - the scheme was just checked
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310 - as above
            if urllib.parse.urlsplit(response.geturl()).scheme != "https":
                raise OSError(f"{url} redirects to an address that is not https")
            content: bytes = response.read(MAX_COMPRESSED_BYTES + 1)
    except HTTPException as error:
        raise OSError(f"{url}: {type(error).__name__} {error}") from error
    if len(content) > MAX_COMPRESSED_BYTES:
        raise OSError(f"{url} is larger than {MAX_COMPRESSED_BYTES} bytes")
    return content


def _is_there(question: Callable[[], bool], path: Path) -> bool:
    try:
        return question()
    except OSError as error:
        raise DataError(f"cannot look into {path}: {error.strerror or error}") from error


def _first_sound_copy(images: ImageSet, file: IdxFile, missing: list[IdxFile], folder: Path, fetch: Fetch) -> bytes:
    """The first mirror's content that is the pinned file; all failures in one error otherwise."""
    failures = []
    for base in images.base_urls:
        url = base + file.name
        try:
            content = fetch(url)
            decode_idx_gz(content, file, source=url)
        except OSError as error:
            failures.append(f"{url}: {getattr(error, 'reason', None) or error}")
        except DataError as error:
            failures.append(str(error))
        else:
            return content
    names = ", ".join(entry.name for entry in missing)
    raise DataError(
        f"{images.name}: {names} missing in {folder}, and no download ({'; '.join(failures) or 'no address is known'}). "
        f"Put {'these files' if len(missing) > 1 else 'this file'} into {folder}, or point --data-root or {DATA_ROOT_VARIABLE} "
        f"at a folder that holds {images.name}/"
    )
