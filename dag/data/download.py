"""Download published files and verify them.

A file is fetched from the first mirror that delivers it, resumed after an interruption, compared with its published
checksum (or checked by its content if there is none), and only then moved into place.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

from tqdm import tqdm

from dag.data.archives import extract
from dag.data.checksums import (
    CHECKSUMS,
    CHUNK,
    disk_full_in_words,
    given_checksums,
    how_to_unpin,
    in_words,
    pin,
    pinned,
    require_space,
    sync,
    verify,
)
from dag.data.file_kinds import what_is_wrong

# HTTP statuses that are worth a retry; all other errors of a mirror are final.
PASSING_STATUS = {408, 425, 429, 500, 502, 503, 504}
LONGEST_PAUSE_SECONDS = 30.0
LOG_INTERVAL_SECONDS = 10.0
# A connection that delivers fewer bytes within the time limit of `fetch` counts as failed and without progress.
LEAST_BYTES = 1024


def fetch(
    urls: str | Iterable[str],
    path: str | Path,
    *,
    sha256: str | None = None,
    sha256_prefix: str | None = None,
    sha1: str | None = None,
    md5: str | None = None,
    size: int | None = None,
    attempts: int = 3,
    timeout: float = 60.0,
    pause: float = 1.0,
) -> str:
    """Download a published file to `path` and return its SHA-256.

    An existing file is verified and kept.  An unfinished download stays in `path` + ".part" and is resumed by
    the next mirror or the next call if a published checksum can verify the result.  Without one, only the same
    server may resume it under the same ETag, and the file must be of the kind that its name says.

    Parameters
    ----------
    urls : str or iterable of str
        Mirrors in the order of preference: http(s) addresses, file:// addresses, local files, or
        local folders that hold a file of the same name.
    path : path
        Destination; missing folders are created.
    sha256, sha1, md5 : str, optional
        Published checksums in hexadecimal; all that are given must agree.
    sha256_prefix : str, optional
        The first digits of the SHA-256, eight or more, as some publishers put them into file names.
    size : int, optional
        Published size in bytes.
    attempts : int
        Consecutive failures of a mirror without `LEAST_BYTES` new bytes before giving up.
    timeout : float
        Seconds without a byte, or with fewer than `LEAST_BYTES`, after which a connection counts as failed.
    pause : float
        Seconds to wait after the first failure; doubled after each further one.

    Raises
    ------
    ValueError
        If a file is already at `path` and is not the published one, or an argument is malformed.
    OSError
        If no mirror delivers the file (the message says why, and how to put it there by hand), or
        the disk is full.
    """
    path = Path(path)
    published = given_checksums(path, sha256, sha256_prefix, sha1, md5)
    if path.exists():
        sha256, problem = verify(path, published, size)
        if problem:
            raise ValueError(f"{path} is already there but {problem}; delete it, or put the right file in its place")
        if not published and (problem := what_is_wrong(path, path.name)):
            raise ValueError(f"{path} is already there but {problem}; delete it, or put the right file in its place")
        return sha256

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(path.suffix + ".part")
    reasons = []
    with disk_full_in_words(path):
        for url in [urls] if isinstance(urls, str) else urls:
            if not published:
                part.unlink(missing_ok=True)
            try:
                sha256 = _fetch_from_mirror(url, path.name, part, published, size, attempts, timeout, pause)
            except (ConnectionError, ValueError) as error:
                reasons.append(f"  {url}: {error}")
                continue
            sync(part)
            os.replace(part, path)
            if not published:
                warnings.warn(
                    f"{path}: nobody has published a checksum of this file; it arrived with SHA-256 {sha256}",
                    stacklevel=2,
                )
            return sha256
    raise OSError("\n".join([f"{path} could not be downloaded:", *reasons, _by_hand(path, published, size)]))


def fetch_unchanged(urls: str | Iterable[str], path: str | Path, lock: str | Path, name: str, **checks) -> str:
    """`fetch` a file and, if it has no published checksum, compare it with the recorded one of the first download.

    Parameters
    ----------
    urls, path
        As for `fetch`.
    lock, name
        File and name under which the first SHA-256 is recorded, see `dag.data.checksums.pin`.
    **checks
        As for `fetch`.

    Raises
    ------
    ValueError, OSError
        As `fetch`; the message on a recorded checksum says how to remove it.
    """
    recorded = None if any(checks.get(kind) for kind in CHECKSUMS) else pinned(lock, name)
    try:
        sha256 = fetch(urls, path, **checks | ({"sha256": recorded} if recorded else {}))
    except (ValueError, OSError) as error:
        if recorded is None or recorded not in str(error):
            raise
        advice = how_to_unpin(lock, name, path)
        raise type(error)(f"{error}\nIts SHA-256 was recorded in {lock} at its first download; {advice}") from error
    if not any(checks.get(kind) for kind in CHECKSUMS):
        pin(lock, name, sha256, path)
    return sha256


def extract_unchanged(archive: str | Path, member: str, path: str | Path, lock: str | Path, name: str, **checks) -> str:
    """`fetch_unchanged` for a file inside an archive, see `dag.data.archives.extract`."""
    sha256 = extract(archive, member, path, **checks)
    if not any(checks.get(kind) for kind in CHECKSUMS):
        if problem := what_is_wrong(path, name):
            raise ValueError(f"{archive}: its member {member} {problem}; is this the right archive?")
        pin(lock, name, sha256, path)
    return sha256


# Checks


def _by_hand(path: Path, checksums: dict[str, str], size: int | None) -> str:
    must = [
        f"its {name.upper().replace('SHA', 'SHA-')} must be {in_words(name, value)}"
        for name, value in checksums.items()
    ]
    must += [f"it must have {size} bytes"] if size is not None else []
    return f"To go on without a mirror, put the file at {path}; " + (
        " and ".join(must) if must else "no checksum of it is published"
    )


# One mirror.  A ValueError is final; after a ConnectionError another attempt may help.


def _fetch_from_mirror(
    url: str,
    name: str,
    part: Path,
    checksums: dict[str, str],
    size: int | None,
    attempts: int,
    timeout: float,
    pause: float,
) -> str:
    """Complete `part` from one mirror and return its SHA-256; a wrong file is removed."""
    scheme = urlsplit(url).scheme
    if size is not None and _length(part) > size:
        part.unlink()
    while True:
        inherited = _length(part) > 0
        if scheme in ("", "file"):
            inherited = False
            _copy(url, name, part)
        elif scheme not in ("http", "https"):
            raise ValueError("is neither an http(s) address nor a file")
        elif not inherited or _length(part) != size:
            _complete(url, name, part, size, bool(checksums), attempts, timeout, pause)
        sha256, problem = verify(part, checksums, size)
        if problem is None and not checksums:
            problem = what_is_wrong(part, name)
        if problem is None:
            return sha256
        part.unlink()
        if not inherited:  # otherwise older bytes may be wrong: retry from the first byte
            raise ValueError(f"delivers a file that {problem}")


def _copy(url: str, name: str, part: Path) -> None:
    source = Path(unquote(urlsplit(url).path) if url.startswith("file:") else url).expanduser()
    if source.is_dir():
        source = source / name
    if not source.is_file():
        raise ValueError(f"there is no file {source}")
    shutil.copyfile(source, part)


def _complete(
    url: str, name: str, part: Path, size: int | None, published: bool, attempts: int, timeout: float, pause: float
) -> None:
    """Download the missing bytes of `part`, with retries as long as new bytes arrive.

    Existing bytes are kept if a published checksum can verify the result, or if the server's ETag is unchanged.
    """
    edition = None
    most = _length(part)
    failures = 0
    while True:
        try:
            etag = _strong(edition)
            if not published and etag is None:
                part.unlink(missing_ok=True)
            with _request(url, _length(part), etag, timeout) as response:
                start, total, edition = _examine(response, part, size, edition, published)
                _write_body(response, name, part, start, total, size, timeout)
            return
        except ConnectionError as error:
            failures = 0 if _length(part) >= most + LEAST_BYTES else failures + 1
            most = max(most, _length(part))
            if failures >= attempts:
                raise ConnectionError(f"{error} ({failures} attempts in vain)") from error
            print(f"{name}: {error}; trying again", file=sys.stderr, flush=True)
            time.sleep(min(pause * 2 ** max(failures - 1, 0), LONGEST_PAUSE_SECONDS))


def _strong(edition: tuple | None) -> str | None:
    """The ETag if it is strong, i.e. guarantees identical bytes."""
    etag = edition[1] if edition else None
    return etag if etag and etag.startswith('"') else None


def _request(url: str, have: int, etag: str | None, timeout: float):
    """The response to a request for the bytes after the first `have`, whatever its status."""
    headers = {"User-Agent": "dag", "Accept-Encoding": "identity"}
    if have > 1:  # one byte overlap, since servers differ in their answer to an empty range
        headers["Range"] = f"bytes={have - 1}-"
        if etag:  # if the file has changed, send the whole of it
            headers["If-Range"] = etag
    with _as_connection_error(timeout):
        try:
            return urlopen(Request(url, headers=headers), timeout=timeout)
        except HTTPError as response:
            return response


def _examine(
    response, part: Path, size: int | None, edition: tuple | None, published: bool
) -> tuple[int, int | None, tuple]:
    """Offset of the body in the file, the size of the file if known, and its edition.

    `edition`, (size, ETag), is that of the bytes in `part`; None if they are not from this server.
    """
    status, headers = response.status, response.headers
    if status in PASSING_STATUS:
        raise ConnectionError(f"HTTP {status} {response.reason}")
    if status not in (200, 206, 416):
        raise ValueError(f"HTTP {status} {response.reason}")
    if status != 416 and headers.get_content_type() == "text/html":
        raise ValueError("answers with a web page instead of the file")
    encoding = headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise ValueError(f"sends the file in the encoding {encoding}, though it was asked for the file as it is")
    if status == 200:  # also the answer of a server that does not know Range
        length = headers.get("Content-Length", "")
        start, total = 0, int(length) if length.isdigit() else None
        if total is None and size is None and not published and not response.chunked:
            raise ValueError("does not announce the length of the file, so a cut connection would pass unnoticed")
    else:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("Content-Range", ""))
        start, total = (int(match[1]), int(match[2])) if match else (None, None)
    if size is not None and total is not None and total != size:
        raise ValueError(f"announces {total} bytes instead of {size}")
    found = (total, headers.get("ETag"))
    another = any(a != b for a, b in zip(edition or (), found, strict=False) if None not in (a, b))
    another |= not published and _strong(edition) != _strong(found)
    if status != 200 and (another or start != _length(part) - 1):
        part.unlink(missing_ok=True)
        raise ConnectionError("the file has changed on the server, starting over")
    return start, total, found


def _write_body(
    response, name: str, part: Path, start: int, total: int | None, size: int | None, timeout: float
) -> None:
    """Write the body of a response into `part` from byte `start` on, no more than the file shall have."""
    most = total if size is None else size
    if total is not None:
        require_space(part, total - start)
    with open(part, "r+b" if start else "wb") as file, _progress(name, start, total) as advance:
        file.seek(start)
        since, then = time.monotonic(), start
        while True:
            with _as_connection_error(timeout):
                chunk = response.read1(CHUNK)
            if not chunk:
                break
            if most is not None and file.tell() + len(chunk) > most:
                raise ValueError(f"sends more than the {most} bytes of the file")
            file.write(chunk)
            advance(len(chunk))
            if time.monotonic() - since >= timeout:
                if file.tell() - then < LEAST_BYTES:
                    raise ConnectionError(f"fewer than {LEAST_BYTES} bytes in {timeout:g} s")
                since, then = time.monotonic(), file.tell()
        done = file.tell()
    if total is not None and done < total:
        raise ConnectionError(f"the connection was closed after {done} of {total} bytes")


@contextmanager
def _as_connection_error(timeout: float) -> Iterator[None]:
    """Convert all network errors to ConnectionError; disk errors do not occur here."""
    try:
        yield
    except (OSError, HTTPException) as error:
        reason = error.reason if isinstance(error, URLError) else error
        text = f"no data for {timeout:g} s" if isinstance(reason, TimeoutError) else str(reason)
        raise ConnectionError(text or type(reason).__name__) from error


@contextmanager
def _progress(name: str, start: int, total: int | None) -> Iterator[Callable[[int], object]]:
    """A progress bar on a terminal, occasional lines in a log."""
    if sys.stderr.isatty():
        with tqdm(desc=name, initial=start, total=total, unit="B", unit_scale=True) as bar:
            yield bar.update
        return
    done, said = start, time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, said
        done += count
        if time.monotonic() - said >= LOG_INTERVAL_SECONDS:
            said = time.monotonic()
            of = "" if total is None else f" of {total / 1e6:.1f}"
            print(f"{name}: {done / 1e6:.1f}{of} MB", file=sys.stderr, flush=True)

    yield advance


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
