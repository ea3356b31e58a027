"""Where data lie and how they come: named roots first, nothing unchecked in place, errors that say which file goes where."""

import gzip
import http.server
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest

from fedsec.data import download
from fedsec.data.download import cache_folder, ensure_images, fetch_https, find_data_root
from fedsec.data.idx import load_images
from fedsec.errors import DataError


def serving(archives: dict[str, bytes], asked: list[str]) -> Callable[[str], bytes]:
    def fetch(url: str) -> bytes:
        asked.append(url)
        return archives[url.rsplit("/", 1)[1]]

    return fetch


def no_network(url: str) -> bytes:
    raise OSError("Network is unreachable")


def test_files_that_are_there_are_not_fetched(tiny_set: Any, tmp_path: Path) -> None:
    folder = tiny_set.write(tmp_path)
    assert ensure_images(tiny_set.images, tmp_path, fetch=no_network) == folder


def test_missing_files_are_fetched_checked_and_put_in_place(tiny_set: Any, tmp_path: Path) -> None:
    asked: list[str] = []
    folder = ensure_images(tiny_set.images, tmp_path / "new", fetch=serving(tiny_set.archives, asked))
    assert asked == [f"https://one.invalid/{name}" for name in ("train-images.gz", "train-labels.gz", "test-images.gz", "test-labels.gz")]
    assert sorted(path.name for path in folder.iterdir()) == sorted(tiny_set.archives)
    assert len(load_images(tiny_set.images, folder).y) == 12


def test_only_what_is_missing_is_fetched(tiny_set: Any, tmp_path: Path) -> None:
    tiny_set.write(tmp_path, leave_out="train-labels.gz")
    asked: list[str] = []
    ensure_images(tiny_set.images, tmp_path, fetch=serving(tiny_set.archives, asked))
    assert asked == ["https://one.invalid/train-labels.gz"]


def test_the_second_mirror_serves_where_the_first_gives_another_file(tiny_set: Any, tmp_path: Path) -> None:
    def fetch(url: str) -> bytes:
        return gzip.compress(b"not it") if "one.invalid" in url else tiny_set.archives[url.rsplit("/", 1)[1]]

    assert len(load_images(tiny_set.images, ensure_images(tiny_set.images, tmp_path, fetch=fetch)).y) == 12


def test_without_a_network_the_error_says_which_files_go_where(tiny_set: Any, tmp_path: Path) -> None:
    tiny_set.write(tmp_path, leave_out="test-images.gz")
    with pytest.raises(DataError) as caught:
        ensure_images(tiny_set.images, tmp_path, fetch=no_network)
    text = str(caught.value)
    assert text.startswith(f"tiny: test-images.gz missing in {tmp_path / 'tiny'}, and no download")
    assert "https://one.invalid/test-images.gz: Network is unreachable" in text
    assert f"Put this file into {tmp_path / 'tiny'}, or point --data-root or FEDSEC_DATA_ROOT at a folder that holds tiny/" in text


def test_a_download_that_is_not_the_pinned_file_is_never_put_in_place(tiny_set: Any, tmp_path: Path) -> None:
    altered = {name: gzip.compress(gzip.decompress(content)[:-1] + b"\x01") for name, content in tiny_set.archives.items()}
    with pytest.raises(DataError, match="not the pinned SHA-256"):
        ensure_images(tiny_set.images, tmp_path, fetch=serving(altered, []))
    assert not list(tmp_path.rglob("*.gz*"))


def test_a_folder_that_cannot_be_made_is_an_error_of_its_own(tiny_set: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot (create|look into)"):
        ensure_images(tiny_set.images, tmp_path / "file", fetch=serving(tiny_set.archives, []))


def test_the_argument_wins_over_the_variable_and_the_variable_over_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("argument", "variable", "cache"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("FEDSEC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FEDSEC_DATA_ROOT", str(tmp_path / "variable"))
    assert find_data_root(tmp_path / "argument") == tmp_path / "argument"
    assert find_data_root(None) == tmp_path / "variable"
    monkeypatch.delenv("FEDSEC_DATA_ROOT")
    assert find_data_root(None) == tmp_path / "cache"


def test_a_named_root_that_does_not_exist_is_an_error_and_not_a_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"--data-root names .*nowhere, which is no folder"):
        find_data_root(tmp_path / "nowhere")
    monkeypatch.setenv("FEDSEC_DATA_ROOT", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="FEDSEC_DATA_ROOT names"):
        find_data_root(None)


def test_the_cache_follows_xdg_unless_fedsec_names_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDSEC_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere/cache")
    assert cache_folder() == Path("/somewhere/cache/fedsec")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/of/someone")
    assert cache_folder() == Path("/home/of/someone/.cache/fedsec")
    monkeypatch.setenv("FEDSEC_CACHE", "/own")
    assert cache_folder() == Path("/own")


@pytest.mark.parametrize("url", ["http://one.invalid/a.gz", "file:///etc/hostname", "ftp://one.invalid/a.gz", "data:,abc", ""])
def test_only_https_addresses_are_opened(url: str) -> None:
    with pytest.raises(OSError, match="not an https address"):
        fetch_https(url)


class _Answer:
    def __init__(self, url: str, content: bytes) -> None:
        self.url, self.content = url, content

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        return None

    def geturl(self) -> str:
        return self.url

    def read(self, limit: int) -> bytes:
        return self.content[:limit]


def test_an_answer_is_bounded_and_must_come_over_https(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = _Answer("https://one.invalid/a.gz", b"12345")
    monkeypatch.setattr(download.urllib.request, "urlopen", lambda request, timeout: answer)
    assert fetch_https("https://one.invalid/a.gz") == b"12345"
    monkeypatch.setattr(download, "MAX_COMPRESSED_BYTES", 4)
    with pytest.raises(OSError, match="is larger than 4 bytes"):
        fetch_https("https://one.invalid/a.gz")
    answer.url = "http://one.invalid/a.gz"
    with pytest.raises(OSError, match="redirects to an address that is not https"):
        fetch_https("https://one.invalid/a.gz")


def test_a_server_that_does_not_speak_tls_is_an_os_error() -> None:
    """A real socket: the failure that urllib raises there is one that the caller turns into a DataError."""
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.handle_request, daemon=True)
        thread.start()
        with pytest.raises(OSError, match=re.compile("ssl|wrong version|urlopen", re.IGNORECASE)):
            fetch_https(f"https://127.0.0.1:{server.server_address[1]}/a.gz")
        thread.join(5)


def test_a_root_that_may_not_be_read_is_an_error(tiny_set: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", refused)
    with pytest.raises(DataError, match=r"cannot look into .*tiny: Permission denied"):
        ensure_images(tiny_set.images, tmp_path, fetch=no_network)
