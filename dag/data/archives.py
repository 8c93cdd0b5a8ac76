"""Unpack archives or extract single files, atomically and never outside the target folder."""

from __future__ import annotations

import errno
import gzip
import os
import posixpath
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from dag.data.checksums import CHUNK, disk_full_in_words, given_checksums, require_space, sync, verify

# Members of an archive named in a message.
NAMED_MEMBERS = 20
# Longest file name, in bytes, and longest path of common file systems.
NAME_BYTES, PATH_BYTES = 255, 4096
# Deflate, the usual method of zip archives, makes data at most 1032 times smaller.
DEFLATE_RATIO = 1032
# Methods that the zipfile module unpacks.
METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}


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
        Several archives are merged, as required for the two of VOC2007.
    folder : path
        Folder to make; it must not exist, or be empty.
    members : callable or iterable of str, optional
        Needed members: a predicate on the member's name, or files and folders of the
        archives.  Default: all.
    strip : int
        Number of leading folders that are stripped from the names of the members.

    Raises
    ------
    ValueError
        If an archive is damaged, incomplete or of an unknown kind, has none of the needed members,
        or has a member that must not or cannot be unpacked: an absolute name, "..", a link that leaves
        the archive, a device, a name that is both a file and a folder or too long.
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
    names, files, parents = set(), set(), set()
    try:
        with disk_full_in_words(folder):
            build.mkdir(parents=True)
            for archive in archives:
                with _entries(archive) as entries:
                    chosen = list(_choose(archive, entries, needed, strip))
                    for _, target, entry in chosen:
                        (parents if entry.open is None else files).add(target)
                        parents.update(map(str, PurePosixPath(target).parents))
                    if both := sorted(files & parents):
                        raise ValueError(
                            f"{archive}: the member {both[0]} is both a file and a folder; nothing was unpacked"
                        )
                    require_space(build, sum(entry.size for _, _, entry in chosen))
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
    """Extract one file from an archive to `path`, verify it, and return its SHA-256.

    The file is streamed and written beside `path` first; nothing else is written.

    Parameters
    ----------
    archive : path
        A tar (plain or compressed) or zip archive.
    member : str
        Its path in the archive or the last steps of it, where `*` stands for anything within a step;
        exactly one file must have such a path.
    path : path
        Destination, replaced if it exists; missing folders are created.
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
    published = given_checksums(path, sha256, sha256_prefix, sha1, md5)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(path.suffix + ".part")
    try:
        with disk_full_in_words(path):
            with _entries(archive) as entries:
                names = [entry.name for entry in entries if entry.open or entry.refusal]
                meant = [name for name in names if PurePosixPath(name).match(member)]
                if not meant:
                    raise ValueError(f"{archive}: there is no file {member} inside; it holds {_listed(names)}")
                if len(meant) > 1:
                    raise ValueError(f"{archive}: {member} may be any of {_listed(meant)}; name the one that is meant")
                ((name, _, entry),) = _choose(archive, [e for e in entries if e.name == meant[0]], None, 0)
                require_space(part, entry.size)
                _write(entry, part)
            found, problem = verify(part, published, size)
            if problem:
                raise ValueError(f"{archive}: its member {name} {problem}; is this the right archive?")
            sync(part)
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return found


def listed(archive: str | Path) -> list[str]:
    """The names of the files in an archive, which is read to its end.

    Raises
    ------
    ValueError
        If the archive is damaged, incomplete or of an unknown kind.
    """
    with _entries(Path(archive)) as entries:
        return [entry.name for entry in entries if entry.open]


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
                size = os.stat(archive).st_size
                yield [_zip_entry(opened, info, size) for info in opened.infolist()]
        else:
            with tarfile.open(archive) as opened:
                yield _tar_entries(opened)
    except (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, EOFError, zlib.error, LZMAError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(":")
        raise ValueError(f"{archive} is not a complete tar or zip archive ({reason}); download it again") from error


def _tar_entries(archive: tarfile.TarFile) -> list[_Entry]:
    try:
        infos = archive.getmembers()
    except (OSError, OverflowError) as error:  # an impossible file offset
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise tarfile.ReadError("a member claims to be larger than the archive") from error
    # tarfile treats a damaged header, or the end of the file, as the end of the archive
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


def _zip_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo, size: int) -> _Entry:
    deflated = info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    if info.compress_size > size or (deflated and info.file_size > DEFLATE_RATIO * size):
        raise zipfile.BadZipFile(f"{info.filename} claims to be larger than the archive")
    kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the archive was not made on Unix
    refusal = None if kind in (0, stat.S_IFREG, stat.S_IFDIR) else "is neither a file nor a folder"
    if info.flag_bits & 1:
        refusal = "is encrypted"
    elif info.compress_type not in METHODS:
        refusal = f"is compressed by method {info.compress_type}, which cannot be unpacked here"
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
        elif len(os.fsencode(name)) > PATH_BYTES or any(len(os.fsencode(step)) > NAME_BYTES for step in steps):
            refusal = f"has a name that is too long: files have names of at most {NAME_BYTES} bytes"
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
