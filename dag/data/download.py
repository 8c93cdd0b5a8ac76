"""Fetch published files and unpack archives, so that what arrives is what was published.

A file is fetched from the first mirror that delivers it, continued after a cut connection, compared
with its published checksum and only then put in place.  An archive is unpacked beside its folder,
which appears when it is complete; a single member is taken out and checked like a download.  Where
nobody has published a checksum, `pin` records the one of the first download and refuses another one
later.
"""

from __future__ import annotations

import errno
import fcntl
import gzip
import hashlib
import json
import os
import posixpath
import re
import shutil
import stat
import sys
import tarfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

from tqdm import tqdm

CHUNK = 1 << 18
# The kinds of checksums that a file can be published with.
CHECKSUMS = ("sha256", "sha256_prefix", "sha1", "md5")
# How many members of an archive a sentence names.
NAMED_MEMBERS = 20
# These answers may be different a moment later; every other refusal is the mirror's last word.
PASSING_STATUS = {408, 425, 429, 500, 502, 503, 504}
LONGEST_PAUSE_SECONDS = 30.0
LOG_INTERVAL_SECONDS = 10.0


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
    """Bring a published file to `path` and return its SHA-256.

    A file that is already there is checked and kept.  What has arrived of an unfinished download
    stays in `path` + ".part" and is continued by the next mirror or the next call, if a published
    checksum can tell whether the pieces belong together.

    Parameters
    ----------
    urls : str or iterable of str
        Mirrors in the order of preference: http(s) addresses, file:// addresses, local files, or
        local folders that hold a file of the same name.
    path : path
        Where the file shall be; missing folders are made.
    sha256, sha1, md5 : str, optional
        Published checksums in hexadecimal; all that are given must agree.
    sha256_prefix : str, optional
        The first digits of the SHA-256, eight or more, as some publishers put them into file names.
    size : int, optional
        Published size in bytes.
    attempts : int
        How often in a row a mirror may fail without delivering a new byte.
    timeout : float
        Seconds without a byte after which a connection counts as failed.
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
    checksums = _checksums(path, sha256, sha256_prefix, sha1, md5)
    if path.exists():
        sha256, problem = _verify(path, checksums, size)
        if problem:
            raise ValueError(f"{path} is already there but {problem}; delete it, or put the right file in its place")
        return sha256

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(path.suffix + ".part")
    reasons = []
    with _disk_full_in_words(path):
        for url in [urls] if isinstance(urls, str) else urls:
            if not checksums:
                part.unlink(missing_ok=True)
            try:
                sha256 = _fetch_from_mirror(url, path.name, part, checksums, size, attempts, timeout, pause)
            except (ConnectionError, ValueError) as error:
                reasons.append(f"  {url}: {error}")
                continue
            _sync(part)
            os.replace(part, path)
            if not checksums:
                warnings.warn(
                    f"{path}: nobody has published a checksum of this file; it arrived with SHA-256 {sha256}",
                    stacklevel=2,
                )
            return sha256
    raise OSError("\n".join([f"{path} could not be downloaded:", *reasons, _by_hand(path, checksums, size)]))


def unpack(
    archives: str | Path | Iterable[str | Path],
    folder: str | Path,
    members: Callable[[str], bool] | Iterable[str] | None = None,
    *,
    strip: int = 0,
) -> None:
    """Unpack the needed part of tar (plain or compressed) and zip archives into a new folder.

    The members of an archive are checked before the first one is written.  The folder is built
    beside its place and renamed when complete.  Links become copies of the file of the archive that
    they point to.

    Parameters
    ----------
    archives : path or iterable of paths
        Several archives are laid over each other, as the two of VOC2007 must be.
    folder : path
        Folder to make; it must not exist, or be empty.
    members : callable or iterable of str, optional
        Which members are needed: a function of the member's name, or files and folders of the
        archives.  Default: all.
    strip : int
        How many leading folders are cut off the names of the members.

    Raises
    ------
    ValueError
        If an archive is damaged, incomplete or of an unknown kind, has none of the needed members,
        or has a member that must not be unpacked: an absolute name, "..", a link that leaves the
        archive, a device.
    OSError
        If the disk is full.
    """
    archives = [Path(a) for a in ([archives] if isinstance(archives, (str, Path)) else archives)]
    folder = Path(folder)
    where = ", ".join(map(str, archives))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is already there; delete it to unpack {where} again")
    prefixes, needed = [], members
    if members is not None and not callable(members):
        prefixes = [members] if isinstance(members, str) else list(members)
        needed = lambda name: any(_is_under(name, prefix) for prefix in prefixes)  # noqa: E731

    build = folder.with_name(folder.name + ".part")
    shutil.rmtree(build, ignore_errors=True)
    names = set()
    try:
        with _disk_full_in_words(folder):
            build.mkdir(parents=True)
            for archive in archives:
                with _entries(archive) as entries:
                    chosen = list(_choose(archive, entries, needed, strip))
                    _require_space(build, sum(entry.size for _, _, entry in chosen))
                    for name, target, entry in chosen:
                        _write(entry, build / target)
                        names.add(name)
            missing = [prefix for prefix in prefixes if not any(_is_under(name, prefix) for name in names)]
            if missing or not names:
                raise ValueError(
                    f"{where}: there is no {' and no '.join(missing) or 'needed member'} inside; "
                    "is this the right archive?"
                )
            os.sync()  # once for all: a VOC archive holds tens of thousands of small files
            os.replace(build, folder)
    finally:
        shutil.rmtree(build, ignore_errors=True)


def extract(
    archive: str | Path,
    member: str,
    path: str | Path,
    *,
    sha256: str | None = None,
    sha256_prefix: str | None = None,
    sha1: str | None = None,
    md5: str | None = None,
    size: int | None = None,
) -> str:
    """Take one file out of an archive, check it, put it at `path` and return its SHA-256.

    It is streamed and written beside `path` first; nothing else of the archive is written.

    Parameters
    ----------
    archive : path
        A tar (plain or compressed) or zip archive.
    member : str
        Its path in the archive or the last steps of it, where `*` stands for anything within a step;
        exactly one file must have such a path.
    path : path
        Where the file shall be, replacing what is there; missing folders are made.
    sha256, sha256_prefix, sha1, md5, size
        As for `fetch`.

    Raises
    ------
    ValueError
        If the archive is damaged, no file of it or several are meant, that file must not be unpacked
        (see `unpack`) or is not the published one.
    OSError
        If the disk is full.
    """
    archive, path = Path(archive), Path(path)
    checksums = _checksums(path, sha256, sha256_prefix, sha1, md5)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(path.suffix + ".part")
    try:
        with _disk_full_in_words(path):
            with _entries(archive) as entries:
                names = [entry.name for entry in entries if entry.open or entry.refusal]
                meant = [name for name in names if PurePosixPath(name).match(member)]
                if not meant:
                    raise ValueError(f"{archive}: there is no file {member} inside; it holds {_listed(names)}")
                if len(meant) > 1:
                    raise ValueError(f"{archive}: {member} may be any of {_listed(meant)}; name the one that is meant")
                ((name, _, entry),) = _choose(archive, [e for e in entries if e.name == meant[0]], None, 0)
                _require_space(part, entry.size)
                _write(entry, part)
            found, problem = _verify(part, checksums, size)
            if problem:
                raise ValueError(f"{archive}: its member {name} {problem}; is this the right archive?")
            _sync(part)
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return found


def pin(lock: str | Path, name: str, sha256: str) -> None:
    """Record the SHA-256 of a file whose checksum nobody has published; refuse another one later.

    Parameters
    ----------
    lock : path
        JSON file, {name: SHA-256}; made if missing.  Jobs may pin at the same time.
    name : str
        Name of the file, the same in every run.
    sha256 : str
        What `fetch` has returned.

    Raises
    ------
    ValueError
        If `name` is recorded with another SHA-256.
    """
    lock = Path(lock)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock.with_suffix(lock.suffix + ".flock"), "w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        known = _read_lock(lock)
        if known.setdefault(name, sha256) != sha256:
            raise ValueError(
                f"{name} has SHA-256 {sha256}, but {lock} recorded {known[name]} when it was first downloaded; "
                f"bring back the first file or, if the new one is right, delete the entry {name} from {lock}"
            )
        beside = lock.with_suffix(lock.suffix + ".part")
        beside.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")
        _sync(beside)
        os.replace(beside, lock)


def pinned(lock: str | Path, name: str) -> str | None:
    """The SHA-256 that `pin` has recorded for `name`, or None; hand it to `fetch`."""
    return _read_lock(Path(lock)).get(name)


def _read_lock(lock: Path) -> dict[str, str]:
    try:
        return json.loads(lock.read_text()) if lock.exists() else {}
    except json.JSONDecodeError as error:
        raise ValueError(f"{lock} is not JSON ({error}); mend it, or delete it to record the checksums anew") from error


# Checks


def _checksums(
    path: Path, sha256: str | None, sha256_prefix: str | None, sha1: str | None, md5: str | None
) -> dict[str, str]:
    """The given checksums in lower case; one of the wrong length is a slip of the configuration.

    Of SHA-256 it may be the beginning alone.
    """
    given = {"sha256": sha256, "sha1": sha1, "md5": md5}
    checksums = {name: value.strip().lower() for name, value in given.items() if value}
    for name, value in checksums.items():
        digits = _digits(name)
        if not re.fullmatch(f"[0-9a-f]{{{digits}}}", value):
            raise ValueError(f"{path}: {value!r} is not a {name} checksum; give {digits} hexadecimal digits")
    if sha256_prefix:
        beginning = sha256_prefix.strip().lower()
        if not re.fullmatch("[0-9a-f]{8,64}", beginning):
            raise ValueError(f"{path}: {sha256_prefix!r} is not the beginning of a sha256 checksum; give 8 digits")
        if not checksums.setdefault("sha256", beginning).startswith(beginning):
            raise ValueError(f"{path}: {sha256} does not begin with {beginning}; correct sha256 or sha256_prefix")
    return checksums


def _digits(name: str) -> int:
    return 2 * hashlib.new(name, usedforsecurity=False).digest_size


def _in_words(name: str, value: str) -> str:
    """A checksum for a message; what is not complete says so."""
    return value if len(value) == _digits(name) else f"{value}..."


def _verify(path: Path, checksums: dict[str, str], size: int | None) -> tuple[str, str | None]:
    """SHA-256 of a file, and what is wrong with it (None: it is the published one)."""
    if not path.is_file():
        return "", "is not a file"
    hashes = {name: hashlib.new(name, usedforsecurity=False) for name in {"sha256", *checksums}}
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            for value in hashes.values():
                value.update(chunk)
        found = file.tell()
    sha256 = hashes["sha256"].hexdigest()
    if size is not None and found != size:
        return sha256, f"has {found} bytes instead of {size}"
    for name, expected in checksums.items():
        if not hashes[name].hexdigest().startswith(expected):
            return sha256, f"has {name} {hashes[name].hexdigest()} instead of {_in_words(name, expected)}"
    return sha256, None


def _by_hand(path: Path, checksums: dict[str, str], size: int | None) -> str:
    must = [
        f"its {name.upper().replace('SHA', 'SHA-')} must be {_in_words(name, value)}"
        for name, value in checksums.items()
    ]
    must += [f"it must have {size} bytes"] if size is not None else []
    return f"To go on without a mirror, put the file at {path}; " + (
        " and ".join(must) if must else "no checksum of it is published"
    )


def _require_space(path: Path, missing: int) -> None:
    free = shutil.disk_usage(next(parent for parent in path.absolute().parents if parent.exists())).free
    if free < missing:
        raise OSError(errno.ENOSPC, f"{missing} bytes are still to be written and {free} are free")


@contextmanager
def _disk_full_in_words(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            f"the disk is full ({error.strerror}): make room for {path} and run the same command again"
        ) from error


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


# One mirror.  A ValueError is its last word; after a ConnectionError another attempt may help.


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
            _complete(url, name, part, size, attempts, timeout, pause)
        sha256, problem = _verify(part, checksums, size)
        if problem is None:
            return sha256
        part.unlink()
        if not inherited:  # otherwise the wrong bytes may be older ones: once more from the first byte
            raise ValueError(f"delivers a file that {problem}")


def _copy(url: str, name: str, part: Path) -> None:
    source = Path(unquote(urlsplit(url).path) if url.startswith("file:") else url).expanduser()
    if source.is_dir():
        source = source / name
    if not source.is_file():
        raise ValueError(f"there is no file {source}")
    shutil.copyfile(source, part)


def _complete(url: str, name: str, part: Path, size: int | None, attempts: int, timeout: float, pause: float) -> None:
    """Download what is missing of `part`; goes on as long as new bytes arrive."""
    edition = None
    most = _length(part)
    failures = 0
    while True:
        try:
            with _request(url, _length(part), timeout) as response:
                start, total, edition = _examine(response, part, size, edition)
                _write_body(response, name, part, start, total, timeout)
            return
        except ConnectionError as error:
            failures = 0 if _length(part) > most else failures + 1
            most = max(most, _length(part))
            if failures >= attempts:
                raise ConnectionError(f"{error} ({failures} attempts in vain)") from error
            print(f"{name}: {error}; trying again", file=sys.stderr, flush=True)
            time.sleep(min(pause * 2 ** max(failures - 1, 0), LONGEST_PAUSE_SECONDS))


def _request(url: str, have: int, timeout: float):
    """The response to a request for what is missing behind the first `have` bytes, whatever its status."""
    headers = {"User-Agent": "dag", "Accept-Encoding": "identity"}
    if have > 1:  # one byte again: the rest is never empty, which servers answer in different ways
        headers["Range"] = f"bytes={have - 1}-"
    with _as_connection_error(timeout):
        try:
            return urlopen(Request(url, headers=headers), timeout=timeout)
        except HTTPError as response:
            return response


def _examine(response, part: Path, size: int | None, edition: tuple | None) -> tuple[int, int | None, tuple]:
    """Where in the file the body belongs, the size of the file if known, and its edition.

    `edition`, (size, ETag), is that of the bytes in `part`; None if they are not from this server.
    """
    status, headers = response.status, response.headers
    if status in PASSING_STATUS:
        raise ConnectionError(f"HTTP {status} {response.reason}")
    if status not in (200, 206, 416):
        raise ValueError(f"HTTP {status} {response.reason}")
    if status != 416 and headers.get_content_type() == "text/html":
        raise ValueError("answers with a web page instead of the file")
    if status == 200:  # also the answer of a server that does not know Range
        length = headers.get("Content-Length", "")
        start, total = 0, int(length) if length.isdigit() else None
    else:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("Content-Range", ""))
        start, total = (int(match[1]), int(match[2])) if match else (None, None)
    if size is not None and total is not None and total != size:
        raise ValueError(f"announces {total} bytes instead of {size}")
    found = (total, headers.get("ETag"))
    another = any(a != b for a, b in zip(edition or (), found, strict=False) if None not in (a, b))
    if status != 200 and (another or start != _length(part) - 1):
        part.unlink(missing_ok=True)
        raise ConnectionError("the file has changed on the server, starting over")
    return start, total, found


def _write_body(response, name: str, part: Path, start: int, total: int | None, timeout: float) -> None:
    """Write the body of a response into `part` from byte `start` on."""
    if total is not None:
        _require_space(part, total - start)
    with open(part, "r+b" if start else "wb") as file, _progress(name, start, total) as advance:
        file.seek(start)
        while True:
            with _as_connection_error(timeout):
                chunk = response.read1(CHUNK)
            if not chunk:
                break
            file.write(chunk)
            advance(len(chunk))
        done = file.tell()
    if total is not None and done < total:
        raise ConnectionError(f"the connection was closed after {done} of {total} bytes")


@contextmanager
def _as_connection_error(timeout: float) -> Iterator[None]:
    """Give every failure of the network one type; failures of the disk do not pass through here."""
    try:
        yield
    except (OSError, HTTPException) as error:
        reason = error.reason if isinstance(error, URLError) else error
        text = f"no data for {timeout:g} s" if isinstance(reason, TimeoutError) else str(reason)
        raise ConnectionError(text or type(reason).__name__) from error


@contextmanager
def _progress(name: str, start: int, total: int | None) -> Iterator[Callable[[int], object]]:
    """A bar on a terminal, now and then a line in a log."""
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


# Archives


class _Entry(NamedTuple):
    """One member of an archive."""

    name: str
    size: int
    open: Callable[[], BinaryIO] | None  # None: a folder
    refusal: str | None = None  # why it must not be unpacked


@contextmanager
def _entries(archive: Path) -> Iterator[list[_Entry]]:
    """The members of an archive, which can be read inside the `with` block."""
    try:
        with open(archive, "rb") as file:
            is_zip = file.read(2) == b"PK"
        if is_zip:
            with zipfile.ZipFile(archive) as opened:
                yield [_zip_entry(opened, info) for info in opened.infolist()]
        else:
            with tarfile.open(archive) as opened:
                yield _tar_entries(opened)
    except (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, EOFError, zlib.error, LZMAError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(":")
        raise ValueError(f"{archive} is not a complete tar or zip archive ({reason}); download it again") from error


def _tar_entries(archive: tarfile.TarFile) -> list[_Entry]:
    infos = archive.getmembers()
    # tarfile takes a damaged header, or the end of the file, for the end of the archive
    rest = iter(lambda: archive.fileobj.read(CHUNK), b"")
    if archive.fileobj.tell() < archive.offset + tarfile.BLOCKSIZE or any(chunk.strip(b"\0") for chunk in rest):
        raise tarfile.ReadError("there is no end mark behind its last member")
    by_name = {posixpath.normpath(info.name): info for info in infos}
    return [_tar_entry(archive, info, by_name) for info in infos]


def _tar_entry(archive: tarfile.TarFile, info: tarfile.TarInfo, by_name: dict[str, tarfile.TarInfo]) -> _Entry:
    if info.isdir():
        return _Entry(info.name, 0, None)
    file, links = info, 0
    while file is not None and (file.issym() or file.islnk()) and links <= len(by_name):
        base = posixpath.dirname(file.name) if file.issym() else ""
        file = by_name.get(posixpath.normpath(posixpath.join(base, file.linkname)))
        links += 1
    if file is not None and file.isreg():
        return _Entry(info.name, file.size, lambda: archive.extractfile(file))
    refusal = f"is a link to {info.linkname}, no file of the archive" if links else "is neither a file nor a folder"
    return _Entry(info.name, 0, None, refusal)


def _zip_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Entry:
    kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the archive was not made on Unix
    refusal = None if kind in (0, stat.S_IFREG, stat.S_IFDIR) else "is neither a file nor a folder"
    if info.flag_bits & 1:
        refusal = "is encrypted"
    return _Entry(info.filename, info.file_size, None if info.is_dir() else lambda: archive.open(info), refusal)


def _choose(
    archive: Path, entries: list[_Entry], needed: Callable[[str], bool] | None, strip: int
) -> Iterator[tuple[str, str, _Entry]]:
    """(name in the archive, name below the folder, entry) of every needed member."""
    for entry in entries:
        steps = [step for step in entry.name.split("/") if step not in ("", ".")]
        name = "/".join(steps)
        if needed is not None and not needed(name):
            continue
        refusal = entry.refusal
        if entry.name.startswith("/") or ".." in steps:
            refusal = "would be written outside its folder"
        elif entry.open is not None and len(steps) <= strip:
            refusal = f"lies in fewer than {strip} folders"
        if refusal:
            raise ValueError(f"{archive}: the member {entry.name} {refusal}; nothing was unpacked")
        if len(steps) > strip:
            yield name, "/".join(steps[strip:]), entry


def _write(entry: _Entry, target: Path) -> None:
    if entry.open is None:
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with entry.open() as source, open(target, "wb") as file:
        shutil.copyfileobj(source, file, CHUNK)


def _listed(names: list[str]) -> str:
    more = len(names) - NAMED_MEMBERS
    return (", ".join(names[:NAMED_MEMBERS]) or "no file") + (f" and {more} more" if more > 0 else "")


def _is_under(name: str, prefix: str) -> bool:
    """Whether a member is the file `prefix` or lies in the folder `prefix`."""
    prefix = prefix.strip("/")
    return name == prefix or name.startswith(prefix + "/")
