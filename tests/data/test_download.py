"""A local server that misbehaves on request, archives that try to break out, and a disk that is full."""

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import socket
import sys
import tarfile
import threading
import time
import tracemalloc
import zipfile
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path

import pytest

from dag.data import download, file_kinds
from dag.data.archives import extract, unpack
from dag.data.checksums import pin, pinned
from dag.data.download import fetch

BODY = bytes(range(256)) * 4096  # 1 MiB
OTHER = bytes(reversed(BODY))
SHA256 = hashlib.sha256(BODY).hexdigest()


@dataclass
class Answer:
    """How the server treats one request; the default is a well-behaved server."""

    body: bytes = BODY
    status: int = 200
    etag: str | None = '"1"'
    stop_at: int | None = None  # position in the file behind which nothing more is sent
    stall_seconds: float = 0.0  # how long the connection then stays open
    length_lie: int = 0  # added to the announced length
    knows_range: bool = True
    content_type: str = "application/octet-stream"
    chunked: bool = False
    encoding: str | None = None
    announces_length: bool = True  # otherwise the end of the connection is the end of the file
    knows_if_range: bool = True
    drip_seconds: float = 0.0  # pause before each single byte of the last ones
    drip_from: int | None = None


@dataclass
class Server:
    """Serves /NAME; `answers` are used up one per request, the last one stays."""

    address: str
    answers: list[Answer] = field(default_factory=lambda: [Answer()])
    ranges: list[str | None] = field(default_factory=list)

    def url(self, name: str = "file.bin") -> str:
        return f"{self.address}/{name}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        state: Server = self.server.state
        answer = state.answers.pop(0) if len(state.answers) > 1 else state.answers[0]
        state.ranges.append(self.headers.get("Range"))
        self.close_connection = True
        start, status = 0, answer.status
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        changed = answer.knows_if_range and self.headers.get("If-Range", answer.etag) != answer.etag
        if match and answer.knows_range and status == 200 and not changed:
            start = int(match[1])
            status = 206 if start < len(answer.body) else 416
        self.send_response(status)
        self.send_header("Content-Type", answer.content_type)
        if answer.encoding:
            self.send_header("Content-Encoding", answer.encoding)
        if answer.etag:
            self.send_header("ETag", answer.etag)
        announced = len(answer.body) + answer.length_lie
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{announced - 1}/{announced}")
        if status not in (200, 206):
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        rest = answer.body[start : answer.stop_at]
        if answer.chunked:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(rest), rest) + (b"" if answer.stop_at else b"0\r\n\r\n"))
        else:
            if answer.announces_length:
                self.send_header("Content-Length", str(announced - start))
            self.end_headers()
            self.wfile.write(rest[: answer.drip_from])
            for byte in rest[answer.drip_from :] if answer.drip_from is not None else b"":
                time.sleep(answer.drip_seconds)
                self.wfile.write(bytes([byte]))
        if answer.stall_seconds:
            self.wfile.flush()
            time.sleep(answer.stall_seconds)

    def log_message(self, *_):
        pass


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):  # a client that hangs up on a stalled connection is part of the tests
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with QuietServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.state = Server(f"http://127.0.0.1:{httpd.server_port}")
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield httpd.state
        httpd.shutdown()
        thread.join()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "downloads" / "file.bin"


def part_of(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def quick(urls, path, **arguments):
    return fetch(urls, path, **{"timeout": 5, "pause": 0, "sha256": SHA256} | arguments)


def only(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


# One mirror


def test_good_server(server, path):
    sha1, md5 = hashlib.sha1(BODY).hexdigest(), hashlib.md5(BODY).hexdigest().upper()
    assert quick(server.url(), path, sha1=sha1, md5=md5, size=len(BODY)) == SHA256
    assert path.read_bytes() == BODY
    assert only(path.parent) == ["file.bin"]
    assert server.ranges == [None]


def test_continues_after_cuts(server, path, capfd):
    server.answers = [Answer(stop_at=300_000), Answer(stop_at=700_000), Answer()]
    quick(server.url(), path)
    assert path.read_bytes() == BODY
    assert server.ranges == [None, "bytes=299999-", "bytes=699999-"]
    assert "closed after 300000 of 1048576 bytes; trying again" in capfd.readouterr().err


def test_many_cuts_are_no_failure_as_long_as_bytes_arrive(server, path):
    server.answers = [Answer(stop_at=n * 100_000) for n in range(1, 10)] + [Answer()]
    quick(server.url(), path, attempts=2)
    assert path.read_bytes() == BODY


def test_cut_of_a_body_of_unannounced_length(server, path):
    server.answers = [Answer(stop_at=300_000, chunked=True), Answer(chunked=True)]
    quick(server.url(), path)
    assert path.read_bytes() == BODY
    assert server.ranges[1] is not None


def test_stalled_connection(server, path):
    server.answers = [Answer(stop_at=300_000, stall_seconds=0.6), Answer()]
    quick(server.url(), path, timeout=0.2)
    assert path.read_bytes() == BODY
    assert server.ranges == [None, "bytes=299999-"]


def test_server_that_ignores_range(server, path):
    server.answers = [Answer(stop_at=300_000, knows_range=False), Answer(knows_range=False)]
    quick(server.url(), path)
    assert path.read_bytes() == BODY


def test_server_that_ignores_range_and_cuts_is_given_up(server, path):
    server.answers = [Answer(stop_at=300_000, knows_range=False)]
    with pytest.raises(OSError, match=r"closed after 300000 of 1048576 bytes \(3 attempts in vain\)"):
        quick(server.url(), path)
    assert len(server.ranges) == 4  # the first one brought new bytes
    assert not path.exists()


@pytest.mark.parametrize(
    "changed", [Answer(body=OTHER, etag='"2"', knows_if_range=False), Answer(body=OTHER[:-7])], ids=["ETag", "length"]
)
def test_file_that_changes_between_two_requests(server, path, changed):
    server.answers = [Answer(stop_at=300_000), changed, changed]
    quick(server.url(), path, sha256=hashlib.sha256(changed.body).hexdigest())
    assert path.read_bytes() == changed.body
    assert server.ranges == [None, "bytes=299999-", None]


def test_file_that_becomes_shorter_than_what_is_there(server, path):
    server.answers = [Answer(stop_at=300_000), Answer(body=BODY[:1000]), Answer(body=BODY[:1000])]
    quick(server.url(), path, sha256=hashlib.sha256(BODY[:1000]).hexdigest())
    assert path.read_bytes() == BODY[:1000]


def test_too_long_a_length_is_announced(server, path):
    server.answers = [Answer(length_lie=10)]
    with pytest.raises(OSError, match="closed after 1048576 of 1048586 bytes"):
        quick(server.url(), path)
    part_of(path).unlink()
    with pytest.raises(OSError, match="announces 1048586 bytes instead of 1048576"):
        quick(server.url(), path, size=len(BODY))
    assert not part_of(path).exists()


def test_too_short_a_length_is_announced(server, path):
    server.answers = [Answer(length_lie=-10)]
    with pytest.raises(OSError, match="delivers a file that has sha256"):
        quick(server.url(), path)
    assert not part_of(path).exists()


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (403, 1), (503, 3), (429, 3)])
def test_refusal(server, path, status, requests):
    server.answers = [Answer(status=status)]
    with pytest.raises(OSError, match=f"HTTP {status} "):
        quick(server.url(), path)
    assert len(server.ranges) == requests


def test_passing_refusal(server, path):
    server.answers = [Answer(status=503), Answer(status=503), Answer()]
    assert quick(server.url(), path) == SHA256


def test_web_page_instead_of_the_file(server, path):
    server.answers = [Answer(body=b"<html>please log in</html>", content_type="text/html; charset=utf-8")]
    with pytest.raises(OSError, match="web page"):
        quick(server.url(), path, sha256=None)


def test_nobody_answers(path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(OSError, match=r"refused.* \(2 attempts in vain\)"):
        quick(f"http://127.0.0.1:{port}/file.bin", path, attempts=2)


def test_pauses_double(server, path, monkeypatch):
    pauses, mine, sleep = [], threading.get_ident(), time.sleep

    def paused(seconds):  # `time` is everybody's: threads of other tests sleep, too
        pauses.append(seconds) if threading.get_ident() == mine else sleep(seconds)

    monkeypatch.setattr(download.time, "sleep", paused)
    server.answers = [Answer(status=503)]
    with pytest.raises(OSError, match="503"):
        quick(server.url(), path, attempts=4, pause=20)
    assert pauses == [20, 30, 30]


# What is already there


def test_file_that_is_there_is_checked_and_kept(server, path):
    path.parent.mkdir()
    path.write_bytes(BODY)
    assert quick(server.url(), path, size=len(BODY)) == SHA256
    assert server.ranges == []


@pytest.mark.parametrize(
    ("content", "problem"), [(OTHER, f"has sha256 {hashlib.sha256(OTHER).hexdigest()} instead"), (b"", "has 0 bytes")]
)
def test_wrong_file_that_is_there_is_refused_and_left(path, content, problem):
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(ValueError, match=problem):
        quick([], path, size=len(BODY))
    assert path.read_bytes() == content


def test_unfinished_download_of_an_earlier_run_is_continued(server, path):
    path.parent.mkdir()
    part_of(path).write_bytes(BODY[:500_000])
    quick(server.url(), path)
    assert path.read_bytes() == BODY
    assert server.ranges == ["bytes=499999-"]


@pytest.mark.parametrize("size", [None, len(BODY)])
def test_finished_download_that_was_not_yet_put_in_place(server, path, size):
    path.parent.mkdir()
    part_of(path).write_bytes(BODY)
    quick(server.url(), path, size=size)
    assert path.read_bytes() == BODY
    assert server.ranges == ([] if size else ["bytes=1048575-"])


@pytest.mark.parametrize("there", [OTHER[:500_000], OTHER, OTHER + OTHER])
def test_foreign_bytes_of_an_earlier_run_are_thrown_away(server, path, there):
    path.parent.mkdir()
    part_of(path).write_bytes(there)
    quick(server.url(), path, size=len(BODY))
    assert path.read_bytes() == BODY


def test_without_a_checksum_nothing_is_continued(server, path):
    path.parent.mkdir()
    part_of(path).write_bytes(OTHER[:500_000])
    with pytest.warns(UserWarning, match=f"nobody has published a checksum.*{SHA256}"):
        assert quick(server.url(), path, sha256=None) == SHA256
    assert path.read_bytes() == BODY
    assert quick(server.url(), path, sha256=None) == SHA256  # once: no warning for a file that is there


# Files without a published checksum

UNKNOWN = {"sha256": None}


@pytest.mark.filterwarnings("ignore:.*nobody has published")
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer(body=b""), "delivers a file that is empty"),
        (Answer(body=b"\n<!DOCTYPE html><html>please log in</html>"), "delivers a file that is a web page"),
        (Answer(body=b"<HTML>\n<body>not found</body></HTML>"), "delivers a file that is a web page"),
        (Answer(body=gzip.compress(BODY), encoding="gzip"), "sends the file in the encoding gzip"),
        (Answer(body=BODY[: len(BODY) // 3], announces_length=False), "does not announce the length"),
        (Answer(stop_at=300_000, chunked=True), r"in vain"),
        (Answer(stop_at=300_000), r"closed after 300000 of 1048576 bytes \(3 attempts in vain\)"),
    ],
    ids=["empty", "page", "old page", "gzip", "no length", "cut chunks", "cut"],
)
def test_wrong_files_are_neither_kept_nor_recorded(server, path, tmp_path, answer, reason):
    lock = tmp_path / "lock.json"
    server.answers = [answer]
    with pytest.raises(OSError, match=reason):
        download.fetch_unchanged(server.url(), path, lock, "file.bin", timeout=5, pause=0)
    assert not path.exists() and not lock.exists()
    server.answers = [Answer()]  # and then the right file
    assert download.fetch_unchanged(server.url(), path, lock, "file.bin", timeout=5, pause=0) == SHA256
    assert pinned(lock, "file.bin") == SHA256 and path.read_bytes() == BODY


@pytest.mark.parametrize("published", [True, False])
def test_encoded_body_of_the_published_checksum_is_refused_too(server, path, published):
    body = gzip.compress(BODY)
    server.answers = [Answer(body=body, encoding="gzip")]
    with pytest.raises(OSError, match="encoding gzip"):
        quick(server.url(), path, sha256=hashlib.sha256(body).hexdigest() if published else None)


@pytest.mark.filterwarnings("ignore:.*nobody has published")
@pytest.mark.parametrize("knows_if_range", [True, False])
@pytest.mark.parametrize("etags", [('"1"', '"2"'), ('W/"1"', 'W/"1"'), (None, None), ('"1"', None)], ids=str)
def test_pieces_of_two_files_are_never_joined(server, path, etags, knows_if_range):
    first = Answer(etag=etags[0], stop_at=300_000)
    server.answers = [first, Answer(OTHER, etag=etags[1], knows_if_range=knows_if_range)]
    assert quick(server.url(), path, **UNKNOWN) == hashlib.sha256(OTHER).hexdigest()
    assert path.read_bytes() == OTHER


@pytest.mark.filterwarnings("ignore:.*nobody has published")
def test_the_same_etag_is_continued(server, path):
    server.answers = [Answer(stop_at=300_000), Answer()]
    assert quick(server.url(), path, **UNKNOWN) == SHA256
    assert server.ranges == [None, "bytes=299999-"]


@pytest.mark.parametrize("sha256", [SHA256, None])
def test_no_more_than_the_size_is_written(server, path, sha256):
    server.answers = [Answer(body=BODY * 20, announces_length=False)]
    with pytest.raises(OSError, match="sends more than the 1000 bytes of the file"):
        quick(server.url(), path, sha256=sha256, size=1000)
    assert not path.exists() and (not part_of(path).exists() or part_of(path).stat().st_size <= 1000)


def test_a_connection_that_drips_is_given_up(server, path):
    server.answers = [Answer(drip_from=0, drip_seconds=0.01)]
    with pytest.raises(OSError, match=r"(fewer than 1024 bytes|no data) .*\(2 attempts in vain\)"):
        quick(server.url(), path, timeout=0.3, attempts=2)


@pytest.mark.filterwarnings("ignore:.*nobody has published")
def test_the_advice_about_a_recorded_checksum_works(server, path, tmp_path):
    lock = tmp_path / "lock.json"
    arguments = {"timeout": 5, "pause": 0}
    server.answers = [Answer(body=OTHER)]
    download.fetch_unchanged(server.url(), path, lock, "file.bin", **arguments)  # the wrong one came first
    server.answers = [Answer()]
    advice = rf"delete the entry file.bin from {lock} and the file {path}, and run the workflow again"
    path.unlink()
    with pytest.raises(OSError, match=advice):
        download.fetch_unchanged(server.url(), path, lock, "file.bin", **arguments)
    path.write_bytes(BODY)  # by hand
    with pytest.raises(ValueError, match=advice):
        download.fetch_unchanged(server.url(), path, lock, "file.bin", **arguments)
    path.unlink()
    lock.write_text("{}")
    assert download.fetch_unchanged(server.url(), path, lock, "file.bin", **arguments) == SHA256
    assert pinned(lock, "file.bin") == SHA256


# Files and the kinds that their names say


def caffemodel() -> bytes:
    """Fields of NetParameter: name = 1, layers = 2 and layer = 100, of the wire type 2, encoded by hand."""
    layer = b"\x0a\x03fc6" + b"\x3a\x0a" + b"\x2a\x08" + bytes(8)
    return b"\x0a\x03net" + b"\xa2\x06" + bytes([len(layer)]) + layer + b"\x12\x80\x01" + bytes(128)


def zip_of(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        opened.writestr("a", content)
    return buffer.getvalue()


def tar_of(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        info = tarfile.TarInfo("a")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


KINDS = {
    "a.zip": zip_of(BODY),
    "a.tgz": tar_of(BODY),
    "a.tar.gz": tar_of(BODY),
    "a.caffemodel": caffemodel(),
    "a.pth": zip_of(BODY),
    "a.tflite": b"\x1c\0\0\0TFL3" + BODY,
    "a.weights": bytes([0, 0, 0, 0, 2, 0, 0, 0, 5, 0, 0, 0]) + BODY,
    "a.mat": b"MATLAB 5.0 MAT-file" + BODY,
    "a.txt": "größer\n".encode(),
    "a": b"anything",
}


@pytest.mark.parametrize("name", KINDS)
def test_kinds(tmp_path, name):
    file = tmp_path / "file"
    file.write_bytes(KINDS[name])
    assert file_kinds.what_is_wrong(file, name) is None
    wrong = [b"", b"<html>"] + ([] if name == "a" else [b"Error\0: no such key", b"\xff\xd8\xff" + bytes(100)])
    for content in wrong:
        file.write_bytes(content)
        assert file_kinds.what_is_wrong(file, name)
    if name in ("a.zip", "a.tgz", "a.tar.gz", "a.caffemodel"):
        for kept in 2, len(KINDS[name]) // 2, len(KINDS[name]) - 1:
            file.write_bytes(KINDS[name][:kept])
            assert file_kinds.what_is_wrong(file, name)


@pytest.mark.shared
def test_kinds_of_real_files(shared):
    files = sorted((shared / "weights").iterdir())
    assert files
    for file in files:
        if file.is_file():
            assert file_kinds.what_is_wrong(file, file.name) is None


# Several mirrors


def test_next_mirror_after_a_wrong_file(server, path):
    server.answers = [Answer(body=OTHER), Answer()]
    quick([server.url("wrong"), server.url("right")], path)
    assert path.read_bytes() == BODY
    assert server.ranges == [None, None]


def test_next_mirror_continues_what_the_first_began(server, path):
    server.answers = [Answer(stop_at=300_000), Answer(status=404), Answer(etag='"another server"')]
    quick([server.url("first"), server.url("second")], path)
    assert path.read_bytes() == BODY
    assert server.ranges == [None, "bytes=299999-", "bytes=299999-"]


def test_one_error_says_everything(server, path, tmp_path):
    server.answers = [Answer(status=404), Answer(body=OTHER)]
    urls = [server.url("a"), server.url("b"), str(tmp_path / "nowhere"), "ftp://c/file.bin"]
    with pytest.raises(OSError, match="could not be downloaded") as error:
        quick(urls, path, size=len(BODY), md5=hashlib.md5(BODY).hexdigest())
    lines = str(error.value).splitlines()
    assert lines[1] == f"  {urls[0]}: HTTP 404 Not Found"
    assert lines[2].startswith(f"  {urls[1]}: delivers a file that has ")
    assert lines[3] == f"  {urls[2]}: there is no file {urls[2]}"
    assert lines[4] == f"  {urls[3]}: is neither an http(s) address nor a file"
    assert f"put the file at {path}; its SHA-256 must be {SHA256} and its MD5 must be" in lines[5]
    assert "must have 1048576 bytes" in lines[5]
    # and by hand:
    path.write_bytes(BODY)
    assert quick(urls, path) == SHA256


def test_no_mirror_and_no_checksum(path):
    with pytest.raises(OSError, match=r"no checksum of it is published"):
        quick([], path, sha256=None)


@pytest.mark.parametrize("form", ["path", "folder", "uri"])
def test_local_mirror(path, tmp_path, form):
    source = tmp_path / "my files" / "file.bin"
    source.parent.mkdir()
    source.write_bytes(BODY)
    quick({"path": str(source), "folder": str(source.parent), "uri": source.as_uri()}[form], path)
    assert path.read_bytes() == BODY
    assert not path.is_symlink()


def test_malformed_checksum(path):
    with pytest.raises(ValueError, match="'abc' is not a md5 checksum; give 32"):
        quick([], path, md5="abc")


def test_beginning_of_a_checksum(server, path):
    beginning = SHA256[:8]
    quick(server.url(), path, sha256=None, sha256_prefix=beginning.upper())
    assert path.read_bytes() == BODY
    assert quick([], path, sha256_prefix=beginning) == SHA256
    with pytest.raises(ValueError, match="has sha256 .* instead of 00000000[.]{3}; delete it"):
        quick([], path, sha256=None, sha256_prefix="00000000")
    path.unlink()
    # enough to tell whether the pieces of two servers belong together, and a wrong file from the right one
    server.answers = [Answer(body=OTHER), Answer(stop_at=300_000), Answer(status=404), Answer()]
    urls = [server.url("wrong"), server.url("half"), server.url("rest")]
    quick(urls, path, sha256=None, sha256_prefix=beginning)
    assert path.read_bytes() == BODY and server.ranges[-1] == "bytes=299999-"
    path.unlink()
    with pytest.raises(OSError, match=f"its SHA-256 must be {beginning}[.]{{3}}"):
        quick([], path, sha256=None, sha256_prefix=beginning)
    with pytest.raises(ValueError, match="'abc' is not the beginning of a sha256 checksum; give 8 digits"):
        quick([], path, sha256_prefix="abc")
    with pytest.raises(ValueError, match=f"{SHA256} does not begin with 00000000; correct"):
        quick([], path, sha256_prefix="00000000")


def test_disk_is_full_before_and_while_writing(server, path, monkeypatch):
    usage = shutil.disk_usage(path.parents[1])._replace(free=1000)
    with monkeypatch.context() as context:
        context.setattr(download.shutil, "disk_usage", lambda _: usage)
        with pytest.raises(OSError, match="1048576 bytes are still to be written and 1000 are free"):
            quick(server.url(), path)
    if Path("/dev/full").exists():
        part_of(path).unlink(missing_ok=True)
        part_of(path).symlink_to("/dev/full")
        with pytest.raises(OSError, match=r"the disk is full .*make room for .*file.bin"):
            quick(server.url(), path)
    assert not path.exists()


def test_bar_on_a_terminal_and_lines_in_a_log(server, path, monkeypatch, capfd):
    monkeypatch.setattr(download, "LOG_INTERVAL_SECONDS", 0)
    quick(server.url(), path)
    assert "file.bin: 1.0 of 1.0 MB\n" in capfd.readouterr().err
    path.unlink()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    quick(server.url(), path)
    assert "100%" in capfd.readouterr().err


# Archives

FILES = {
    "VOCdevkit/VOC2007/Annotations/1.xml": b"<xml/>",
    "VOCdevkit/VOC2007/JPEGImages/1.jpg": BODY,
    "README": b"hello",
}


def make_tar(archive: Path, files=FILES, mode="w", extra=()):
    with tarfile.open(archive, mode) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for info in extra:
            tar.addfile(info)
    return archive


def make_zip(archive: Path, files=FILES):
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    return archive


def member(name, kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def tree(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


MAKERS = {
    "tar": make_tar,
    "tgz": lambda archive: make_tar(archive, mode="w:gz"),
    "xz": lambda archive: make_tar(archive, mode="w:xz"),
    "zip": make_zip,
}


@pytest.mark.parametrize("kind", MAKERS)
def test_unpack_all(tmp_path, kind):
    unpack(MAKERS[kind](tmp_path / "archive"), tmp_path / "out")
    assert tree(tmp_path / "out") == FILES
    assert only(tmp_path) == ["archive", "out"]


@pytest.mark.parametrize("kind", MAKERS)
def test_unpack_what_is_needed(tmp_path, kind):
    archive = MAKERS[kind](tmp_path / "archive")
    unpack(archive, tmp_path / "a", ["VOCdevkit/VOC2007/Annotations/"], strip=1)
    assert tree(tmp_path / "a") == {"VOC2007/Annotations/1.xml": b"<xml/>"}
    unpack(archive, tmp_path / "b", lambda name: name.endswith(".xml"))
    assert tree(tmp_path / "b") == {"VOCdevkit/VOC2007/Annotations/1.xml": b"<xml/>"}
    with pytest.raises(ValueError, match="there is no VOCdevkit/VOC2007/Anno inside"):
        unpack(archive, tmp_path / "c", ["README", "VOCdevkit/VOC2007/Anno"])
    with pytest.raises(ValueError, match="no needed member"):
        unpack(archive, tmp_path / "c", lambda name: False)
    with pytest.raises(ValueError, match="README lies in fewer than 2 folders"):
        unpack(archive, tmp_path / "c", strip=2)
    assert only(tmp_path) == ["a", "archive", "b"]


def test_two_archives_into_one_folder(tmp_path):
    archives = [make_tar(tmp_path / "1.tar", {"VOC/a": b"a"}), make_zip(tmp_path / "2.zip", {"VOC/b": b"b"})]
    unpack(archives, tmp_path / "out", "VOC")
    assert tree(tmp_path / "out") == {"VOC/a": b"a", "VOC/b": b"b"}


def test_folder_that_is_there_is_left(tmp_path):
    archive = make_tar(tmp_path / "1.tar")
    (tmp_path / "out").mkdir()
    unpack(archive, tmp_path / "out")
    with pytest.raises(ValueError, match="already there; delete it to unpack"):
        unpack(archive, tmp_path / "out")
    assert tree(tmp_path / "out") == FILES


def test_rest_of_an_interrupted_unpacking_is_removed(tmp_path):
    (tmp_path / "out.part").mkdir()
    (tmp_path / "out.part" / "half").write_bytes(b"ha")
    unpack(make_tar(tmp_path / "1.tar"), tmp_path / "out")
    assert tree(tmp_path / "out") == FILES


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.95])
def test_truncated_archive(tmp_path, kind, kept):
    archive = MAKERS[kind](tmp_path / "archive")
    archive.write_bytes(archive.read_bytes()[: int(kept * archive.stat().st_size)])
    with pytest.raises(ValueError, match=r"not a complete tar or zip archive \(.+\); download it again"):
        unpack(archive, tmp_path / "out", ["README"])
    assert only(tmp_path) == ["archive"]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_tar_that_ends_between_two_members(tmp_path, mode):
    whole = make_tar(tmp_path / "whole", {"a": b"1", "b": b"2"}).read_bytes()
    cut = tmp_path / "cut"
    for content in whole[:1024], whole[:1024] + b"x" * 2048:
        cut.write_bytes(content)
        if mode == "w:gz":
            cut.write_bytes(gzip.compress(content))
        with pytest.raises(ValueError, match="no end mark"):
            unpack(cut, tmp_path / "out")


def test_damaged_zip(tmp_path):
    archive = tmp_path / "archive.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("a", b"0123456789")
    archive.write_bytes(archive.read_bytes().replace(b"0123456789", b"0123456780"))
    with pytest.raises(ValueError, match="Bad CRC-32"):
        unpack(archive, tmp_path / "out")
    assert only(tmp_path) == ["archive.zip"]


HOSTILE = {
    "parent": (member("../evil"), "would be written outside"),
    "inner parent": (member("a/../../evil"), "would be written outside"),
    "absolute": (member("/tmp/evil"), "would be written outside"),
    "symbolic link": (member("evil", tarfile.SYMTYPE, "../../etc/passwd"), "is a link to ../../etc/passwd, no file"),
    "absolute link": (member("evil", tarfile.SYMTYPE, "/etc/passwd"), "is a link to /etc/passwd, no file"),
    "hard link": (member("evil", tarfile.LNKTYPE, "/etc/passwd"), "is a link to /etc/passwd, no file"),
    "loop": (member("evil", tarfile.SYMTYPE, "evil"), "is a link to evil, no file"),
    "folder link": (member("evil", tarfile.SYMTYPE, "."), "is a link to ., no file"),
    "device": (member("evil", tarfile.CHRTYPE), "is neither a file nor a folder"),
    "pipe": (member("evil", tarfile.FIFOTYPE), "is neither a file nor a folder"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_tar(tmp_path, name):
    info, reason = HOSTILE[name]
    (tmp_path / "home").mkdir()
    archive = make_tar(tmp_path / "home" / "hostile.tar", extra=[info])
    with pytest.raises(ValueError, match=re.escape(reason)):
        unpack(archive, tmp_path / "home" / "out")
    assert only(tmp_path) == ["home"]
    assert only(tmp_path / "home") == ["hostile.tar"]
    unpack(archive, tmp_path / "home" / "out", ["README"])  # what is not needed is not looked at
    assert tree(tmp_path / "home" / "out") == {"README": b"hello"}


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil"])
def test_hostile_zip(tmp_path, name):
    archive = make_zip(tmp_path / "hostile.zip", FILES | {name: b"evil"})
    with pytest.raises(ValueError, match="would be written outside"):
        unpack(archive, tmp_path / "out")
    assert only(tmp_path) == ["hostile.zip"]


def test_link_in_a_zip(tmp_path):
    info = zipfile.ZipInfo("evil")
    info.create_system, info.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "hostile.zip", "w") as opened:
        opened.writestr(info, "/etc/passwd")
    with pytest.raises(ValueError, match="neither a file nor a folder"):
        unpack(tmp_path / "hostile.zip", tmp_path / "out")


def test_links_inside_the_archive_become_copies(tmp_path):
    links = [member("sub/symbolic", tarfile.SYMTYPE, "../README"), member("hard", tarfile.LNKTYPE, "README")]
    unpack(make_tar(tmp_path / "1.tar", extra=links), tmp_path / "out")
    for name in "sub/symbolic", "hard":
        copy = tmp_path / "out" / name
        assert copy.read_bytes() == b"hello"
        assert not copy.is_symlink()
        assert os.stat(copy).st_nlink == 1


def test_no_room_to_unpack(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"the disk is full .*make room"):
        unpack(make_tar(tmp_path / "1.tar"), tmp_path / "out")
    assert only(tmp_path) == ["1.tar"]


def zip_with(archive: Path, name: str = "a", *, method: int = 0, size: int | None = None) -> Path:
    """A zip archive whose directory and header of the member say something else."""
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("b", b"b")
        opened.writestr(name, b"0123456789")
        info = opened.infolist()[-1]
        info.compress_type = method
        if size is not None:
            info.file_size = size
    return archive


def tar_of_a_petabyte(archive: Path, mode: str) -> Path:
    info = tarfile.TarInfo("a")
    info.size = 2**60
    with (gzip.open if mode == "gz" else open)(archive, "wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT) + bytes(10 * tarfile.BLOCKSIZE))
    return archive


STRANGE = {
    "file, then folder": (
        lambda path: make_tar(path, {"a": b"1", "a/b": b"2"}),
        "the member a is both a file and a folder",
    ),
    "folder, then file": (lambda path: make_zip(path, {"a/b": b"2", "a": b"1"}), "a is both a file and a folder"),
    "empty folder": (
        lambda path: make_tar(path, {"a": b"1"}, extra=[member("a", tarfile.DIRTYPE)]),
        "a is both a file and a folder",
    ),
    "long name": (lambda path: make_tar(path, {"n" * 300: b""}), "has a name that is too long"),
    "long path": (lambda path: make_zip(path, {"/".join(["n" * 99] * 50): b""}), "has a name that is too long"),
    "method": (lambda path: zip_with(path, method=99), "the member a is compressed by method 99"),
    "zip of 1 PB": (lambda path: zip_with(path, size=2**50), "a claims to be larger than the archive"),
    "tar of 1 EB": (lambda path: tar_of_a_petabyte(path, ""), "not a complete tar or zip archive"),
    "tgz of 1 EB": (lambda path: tar_of_a_petabyte(path, "gz"), "not a complete tar or zip archive"),
}


@pytest.mark.parametrize("name", STRANGE)
def test_strange_archives(tmp_path, name):
    make, reason = STRANGE[name]
    archive = make(tmp_path / "archive")
    with pytest.raises(ValueError, match=f"^{archive}.*{re.escape(reason)}") as error:
        unpack(archive, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert only(tmp_path) == ["archive"]


def test_a_file_and_a_folder_of_two_archives(tmp_path):
    archives = [make_tar(tmp_path / "1.tar", {"a": b"a"}), make_zip(tmp_path / "2.zip", {"a/b": b"b"})]
    with pytest.raises(ValueError, match=r"2.zip: the member a is both a file and a folder"):
        unpack(archives, tmp_path / "out")
    assert only(tmp_path) == ["1.tar", "2.zip"]


# One member of an archive

MEMBERS = {
    "out/ZF/proposal_final": b"zf",
    "out/vgg/proposal_final": BODY,
    "train_iter_20.caffemodel": b"train",
    "train2_iter_20.caffemodel": b"train2",
    "__MACOSX/._train_iter_20.caffemodel": b"junk",
}


def members(archive: Path, kind: str) -> Path:
    if kind == "zip":
        return make_zip(archive, MEMBERS)
    return make_tar(archive, MEMBERS, {"tar": "w", "tgz": "w:gz", "xz": "w:xz"}[kind])


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize(
    ("member", "name"),
    [
        ("out/vgg/proposal_final", "out/vgg/proposal_final"),
        ("vgg/proposal_final", "out/vgg/proposal_final"),
        ("ZF/*_final", "out/ZF/proposal_final"),
        ("train_iter_20.caffemodel", "train_iter_20.caffemodel"),
        ("train_iter_*.caffemodel", "train_iter_20.caffemodel"),
    ],
)
def test_one_member(tmp_path, path, kind, member, name):
    content = MEMBERS[name]
    checks = {kind: hashlib.new(kind, content).hexdigest() for kind in ("sha256", "sha1", "md5")}
    checks |= {"sha256_prefix": checks["sha256"][:8], "size": len(content)}
    archive = members(tmp_path / "archive", kind)
    assert extract(archive, member, path, **checks) == checks["sha256"]
    assert path.read_bytes() == content
    assert only(path.parent) == ["file.bin"] and only(tmp_path) == ["archive", "downloads"]


@pytest.mark.parametrize("kind", MAKERS)
def test_no_or_several_members(tmp_path, path, kind):
    archive = members(tmp_path / "archive", kind)
    with pytest.raises(
        ValueError, match="there is no file caffe/x inside; it holds out/ZF/proposal_final, out/vgg/"
    ) as e:
        extract(archive, "caffe/x", path)
    assert "\n" not in str(e.value)
    with pytest.raises(
        ValueError, match="/proposal_final may be any of out/ZF/proposal_final, out/vgg/proposal_final; "
    ):
        extract(archive, "*/proposal_final", path)
    # neither a folder nor a part of a name is a file
    for member in "ZF", "final", "proposal":
        with pytest.raises(ValueError, match=f"there is no file {member} inside"):
            extract(archive, member, path)
    assert only(path.parent) == []


def test_a_long_archive_is_not_listed_whole(tmp_path, path):
    archive = make_zip(tmp_path / "1.zip", {f"{number}": b"" for number in range(1000)})
    with pytest.raises(ValueError, match="it holds 0, 1, .*, 19 and 980 more$"):
        extract(archive, "x", path)


def test_member_that_is_not_the_published_one(tmp_path, path):
    archive = members(tmp_path / "archive", "tgz")
    path.parent.mkdir()
    path.write_bytes(b"older")
    with pytest.raises(ValueError, match=r"its member out/ZF/proposal_final has sha1 .* instead of 0{40}; is this the"):
        extract(archive, "ZF/proposal_final", path, sha1="0" * 40)
    with pytest.raises(ValueError, match="has 2 bytes instead of 3; is this the right archive"):
        extract(archive, "ZF/proposal_final", path, size=3)
    assert path.read_bytes() == b"older" and only(path.parent) == ["file.bin"]
    extract(archive, "ZF/proposal_final", path)
    assert path.read_bytes() == b"zf"


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_member(tmp_path, path, name):
    info, reason = HOSTILE[name]
    archive = make_tar(tmp_path / "hostile.tar", extra=[info])
    with pytest.raises(ValueError, match=re.escape(reason)):
        extract(archive, "evil", path)
    assert only(tmp_path) == ["downloads", "hostile.tar"] and only(path.parent) == []
    assert extract(archive, "README", path) == hashlib.sha256(b"hello").hexdigest()


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_member_of_a_truncated_archive(tmp_path, path, kind, kept):
    archive = members(tmp_path / "archive", kind)
    archive.write_bytes(archive.read_bytes()[: int(kept * archive.stat().st_size)])
    with pytest.raises(ValueError, match=r"not a complete tar or zip archive \(.+\); download it again"):
        extract(archive, "ZF/proposal_final", path)
    assert only(path.parent) == []


def test_a_great_member_is_not_held_in_memory(tmp_path, path):
    size = 60_000_000
    with tarfile.open(tmp_path / "great.tgz", "w:gz", compresslevel=1) as tar:
        info = tarfile.TarInfo("great")
        info.size = size
        with open("/dev/zero", "rb") as zero:
            tar.addfile(info, zero)
    tracemalloc.start()
    try:
        extract(tmp_path / "great.tgz", "great", path, size=size)
        assert tracemalloc.get_traced_memory()[1] < size / 10
    finally:
        tracemalloc.stop()
    assert path.stat().st_size == size


def test_no_room_for_a_member(tmp_path, path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"the disk is full .*make room for .*file.bin"):
        extract(make_tar(tmp_path / "1.tar"), "README", path)
    assert only(path.parent) == []


# The record of first downloads


def test_pin(tmp_path):
    lock = tmp_path / "results" / "checksums.json"
    assert pinned(lock, "a") is None
    pin(lock, "a", "1" * 64, "x")
    pin(lock, "b", "2" * 64, "x")
    pin(lock, "a", "1" * 64, "x")
    assert json.loads(lock.read_text()) == {"a": "1" * 64, "b": "2" * 64}
    assert pinned(lock, "b") == "2" * 64
    with pytest.raises(ValueError, match=f"a has SHA-256 {'3' * 64}, but .*delete the entry a from"):
        pin(lock, "a", "3" * 64, "x")
    lock.write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        pinned(lock, "a")


def test_jobs_pin_at_the_same_time(tmp_path):
    lock = tmp_path / "checksums.json"
    names = [str(i) for i in range(20)]
    with get_context("fork").Pool(4) as pool:
        pool.starmap(pin, [(lock, name, name * 8, "x") for name in names])
    assert json.loads(lock.read_text()) == {name: name * 8 for name in names}
