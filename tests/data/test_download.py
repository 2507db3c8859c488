"""Downloads from a server of our own: whole, cut off, resumed, refused."""

from __future__ import annotations

import errno
import hashlib
import http.server
import io
import socket
import tarfile
import threading
from pathlib import Path

import pytest

from ikdlib.data import cifar100, download
from ikdlib.errors import IkdError

BODY = bytes(range(256)) * 4096  # 1 MiB
MD5, SHA256 = hashlib.md5(BODY).hexdigest(), hashlib.sha256(BODY).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves `body`; the settings say how badly."""

    body = BODY
    ranges = True  # honours Range
    cut = None  # bytes after which a response ends, for the first `cuts` responses
    cuts = 10**9
    status = None  # an error to answer with

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/archive.tar.gz"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        server.asked.append(asked)
        if server.status:
            self.send_error(server.status)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and server.ranges else 0
        total = len(server.body)
        if asked and server.ranges and start >= total:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{total}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if asked and server.ranges else 200)
        if asked and server.ranges:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.send_header("Content-Length", str(total - start))
        self.end_headers()
        content = server.body[start:]
        if server.cut is not None and len(server.asked) <= server.cuts:
            content = content[: server.cut]
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield made
        made.shutdown()
        thread.join(10)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "new" / "archive.tar.gz"


def part_of(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def test_a_whole_file_arrives_and_is_not_fetched_twice(server, path):
    for _ in range(2):
        assert download.download(server.url, path, md5=MD5, sha256=SHA256) == path
        assert path.read_bytes() == BODY
    assert server.asked == [None] and not part_of(path).exists()


def test_a_file_with_a_wrong_checksum_is_replaced(server, path):
    path.parent.mkdir()
    path.write_bytes(BODY[:-1])
    download.download(server.url, path, md5=MD5)
    assert path.read_bytes() == BODY


def test_a_part_is_continued(server, path):
    path.parent.mkdir()
    part_of(path).write_bytes(BODY[:1000])
    download.download(server.url, path, sha256=SHA256)
    assert server.asked == ["bytes=1000-"] and path.read_bytes() == BODY


def test_a_part_that_is_whole_is_taken(server, path):
    path.parent.mkdir()
    part_of(path).write_bytes(BODY)
    download.download(server.url, path, sha256=SHA256)
    assert path.read_bytes() == BODY and len(server.asked) == 1


def test_a_part_that_is_too_long_is_begun_again(server, path):
    path.parent.mkdir()
    part_of(path).write_bytes(BODY + b"more")
    download.download(server.url, path, sha256=SHA256)
    assert path.read_bytes() == BODY


def test_a_server_without_ranges_sends_it_all_again(server, path):
    server.ranges = False
    path.parent.mkdir()
    part_of(path).write_bytes(b"x" * 1000)
    download.download(server.url, path, sha256=SHA256)
    assert server.asked == ["bytes=1000-"] and path.read_bytes() == BODY


def test_a_body_that_is_cut_off_once_is_continued(server, path):
    server.cut, server.cuts = 300_000, 1
    download.download(server.url, path, sha256=SHA256)
    assert server.asked == [None, "bytes=300000-"] and path.read_bytes() == BODY


def test_a_body_that_stays_cut_off_is_kept_and_continued_by_the_next_call(server, path):
    server.cut = 100_000
    words = r"cut off 3 times .*300,000 bytes are kept .*archive.tar.gz.part .* on another machine, put it at"
    with pytest.raises(IkdError, match=words):
        download.download(server.url, path, sha256=SHA256)
    assert part_of(path).read_bytes() == BODY[:300_000] and not path.exists()
    server.cut = None
    download.download(server.url, path, sha256=SHA256)
    assert server.asked[-1] == "bytes=300000-" and path.read_bytes() == BODY


@pytest.mark.parametrize("start", [b"", b"damaged"])
def test_a_wrong_checksum_deletes_the_part(server, path, start):
    path.parent.mkdir()
    part_of(path).write_bytes(start)
    with pytest.raises(IkdError, match="not the expected file .its md5 is [0-9a-f]{32}, not .* was deleted"):
        download.download(server.url, path, md5=MD5 if start else "0" * 32)
    assert not path.exists() and not part_of(path).exists()
    download.download(server.url, path, md5=MD5)
    assert path.read_bytes() == BODY


@pytest.mark.parametrize("status", [403, 404, 503])
def test_an_http_error_says_what_to_do_by_hand(server, path, status):
    server.status = status
    with pytest.raises(IkdError, match=f"answered {status} .* on another machine, put it at .*archive"):
        download.download(server.url, path, md5=MD5)
    assert not path.exists()


def test_a_closed_network_says_what_to_do_by_hand(path):
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/archive.tar.gz"
        with pytest.raises(IkdError, match="cannot be reached .* check the network, or get .* put it at"):
            download.download(url, path, md5=MD5)


def test_a_silent_server_is_given_up(path):
    with socket.socket() as silent:  # takes connections and says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/archive.tar.gz"
        with pytest.raises(IkdError, match="cut off 3 times .timed out.*0 bytes"):
            download.download(url, path, md5=MD5, timeout=0.2)


def test_a_folder_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(IkdError, match="file/archive.tar.gz cannot be written"):
        download.download(server.url, tmp_path / "file" / "archive.tar.gz", md5=MD5)


def archive(files: dict[str, bytes]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return raw.getvalue()


@pytest.fixture
def official(server, monkeypatch):
    """Make the server's body an archive, and that archive the official one."""

    def serve(files: dict[str, bytes]) -> None:
        server.body = archive(files)
        md5 = {name: hashlib.md5(name.encode()).hexdigest() for name in ("train", "test", "meta")}
        md5["cifar-100-python.tar.gz"] = hashlib.md5(server.body).hexdigest()
        monkeypatch.setattr(cifar100, "checksums", lambda: md5)
        monkeypatch.setattr(download, "official_url", lambda: server.url)

    return serve


def test_cifar100_is_fetched_verified_and_unpacked_once(server, official, tmp_path):
    official({f"cifar-100-python/{name}": name.encode() for name in ("train", "test", "meta")})
    for _ in range(2):
        folder = download.fetch_cifar100(tmp_path / "data")
        assert folder == tmp_path / "data" / "cifar-100-python"
        assert {p.name: p.read_text() for p in folder.iterdir()} == {n: n for n in ("train", "test", "meta")}
    assert len(server.asked) == 1
    (folder / "test").write_bytes(b"damaged")
    download.fetch_cifar100(tmp_path / "data")  # unpacked again, from the archive that is there
    assert (folder / "test").read_text() == "test" and len(server.asked) == 1
    assert not list((tmp_path / "data").glob("*.tmp"))


def test_an_archive_with_other_files_is_refused(official, tmp_path):
    official({"cifar-100-python/train": b"train", "cifar-100-python/test": b"other"})
    with pytest.raises(IkdError, match="does not hold the official files"):
        download.fetch_cifar100(tmp_path)
    assert not (tmp_path / "cifar-100-python").exists() and not list(tmp_path.glob("*.tmp"))


def test_a_full_disk_while_unpacking_does_not_blame_the_archive(server, official, tmp_path, monkeypatch):
    def full(self, path, **_):
        raise OSError(errno.ENOSPC, "No space left on device")

    official({f"cifar-100-python/{name}": name.encode() for name in ("train", "test", "meta")})
    with monkeypatch.context() as patch:
        patch.setattr(download.tarfile.TarFile, "extractall", full)
        with pytest.raises(IkdError, match="cifar-100-python cannot be written .No space .*archive is kept"):
            download.fetch_cifar100(tmp_path)
    download.fetch_cifar100(tmp_path)
    assert len(server.asked) == 1


def test_an_archive_cannot_write_outside(official, tmp_path):
    official({"../outside": b"x"})
    with pytest.raises(IkdError, match="cannot be unpacked .*outside"):
        download.fetch_cifar100(tmp_path / "data")
    assert not list(tmp_path.rglob("outside"))


def test_the_url_is_torchvisions():
    from torchvision.datasets import CIFAR100

    assert download.official_url() == CIFAR100.url
