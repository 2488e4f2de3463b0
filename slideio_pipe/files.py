"""Atomic writing of files and folders, fingerprints, and remedies for errors of the operating system."""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import os
import re
import shutil
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from slideio_pipe.errors import OutputError, OutputExistsError, SlideioPipeError
from slideio_pipe.version import __version__

REMEDIES = {
    errno.ENOSPC: "free some space and run again: what is finished is kept",
    errno.EDQUOT: "free some of your quota and run again: what is finished is kept",
    errno.EFBIG: "lift the file size limit (ulimit -f) and run again: what is finished is kept",
    errno.EROFS: "choose a folder on a writable disk",
    errno.EACCES: "choose a folder you may write to",
    errno.EPERM: "choose a folder you may write to",
    errno.EEXIST: "choose a folder: a file is in the way",
    errno.ENOTDIR: "choose a folder: a file is in the way",
    errno.EISDIR: "choose another name: a folder is in the way",
    errno.ENOENT: "make the folder first",
}


# In a path or behind a folder: "s3://bucket/a.svs" as a Path has one slash. One letter and a colon are a drive.
_ADDRESS = re.compile(r"(?:^|[/\\])([A-Za-z][\w+.:-]+):[/\\]+(.*)")
TO_PATH = "copy it to a disk, or mount it, and pass the path (guide, page 14)"


class Closable(ABC):
    """What holds files or threads until ``close``; a ``with`` block closes it."""

    @abstractmethod
    def close(self) -> None:
        """Release them."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an error of the operating system into an OutputError with ``path``, the reason and the remedy."""
    _refuse_address(path)
    try:
        yield
    except SlideioPipeError:  # some are OSErrors: an undecodable tile of the slide is no error of the output
        raise
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0, "check the disk and run again: what is finished is kept")
        raise OutputError(f"cannot be written ({error.strerror or error})", slide=str(path), remedy=remedy) from error


def rename(source: Path, target: Path) -> None:
    """Rename a file and replace an existing target; an error is ignored if the file was renamed nevertheless.

    If the answer of an NFS server is lost, the request is sent again and fails, because the file is already renamed.
    """
    moved = source.stat()
    try:
        source.replace(target)
    except OSError:
        if os.path.lexists(source) or not (target.exists() and os.path.samestat(moved, target.stat())):
            raise


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    if os.name == "nt":  # folders cannot be opened there
        return
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_durably(path: Path, content: bytes | memoryview) -> None:
    """Write a file whose content survives a power cut when this returns, but not its name; its folder is made.

    Raise OSError if it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(content)
    _sync(path)


def put_in_place(partial: Path, path: Path) -> None:
    """Give a complete file its final name, replacing an existing file; contents and name survive a power cut.

    Raise OSError if it fails; an existing file is then unchanged.
    """
    _sync(partial)
    rename(partial, path)
    sync_folder(path.parent)


def put_folder_in_place(partial: Path, path: Path, replaced: Path) -> None:
    """Give a complete folder its final name; its name and the names in it survive a power cut, synced files as well.

    An existing folder cannot be overwritten by a rename: it is renamed to ``replaced``, which the caller removes.
    Raise OSError if it fails; an existing folder then has its name again.
    """
    for folder, _, _ in os.walk(partial, topdown=False):
        sync_folder(Path(folder))
    was_there = path.exists()
    if was_there:
        rename(path, replaced)
    try:
        rename(partial, path)
    except OSError:
        if was_there:
            rename(replaced, path)
        raise
    sync_folder(path.parent)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the name of a file to write, ``<path>.partial``, which becomes ``path`` when it is complete and durable.

    Raise OutputError if it cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    with disk_errors(path):
        try:
            yield partial
            put_in_place(partial, path)
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise


@contextmanager
def replacing_folder(path: Path, partial: Path | None = None) -> Iterator[Path]:
    """Yield the name of a folder to make, as ``replacing`` does for a file; a former folder is kept until then.

    For one writer at a time: remains of a killed writer are removed, and a folder that it renamed gets its name back.
    Raise OutputError if it cannot be written.

    Parameters
    ----------
    path : Path
        The folder.
    partial : Path, optional
        The name to make it under, with an ending of its own; by default ``<path>.partial``.
    """
    partial = partial or path.with_name(path.name + ".partial")
    replaced = partial.with_suffix(".replaced")
    with disk_errors(path):
        if replaced.is_dir() and not os.path.lexists(path):
            rename(replaced, path)
        for left in (partial, replaced):
            shutil.rmtree(left, ignore_errors=True)
        try:
            yield partial
            for folder, _, names in os.walk(partial):
                for name in names:
                    _sync(Path(folder, name))
            put_folder_in_place(partial, path, replaced)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def write_file(path: Path, content: bytes, *, overwrite: bool) -> None:
    """Write a file atomically.

    Raise OutputExistsError if it exists and ``overwrite`` is False; OutputError if it cannot be written.
    """
    if path.exists() and not overwrite:
        raise OutputExistsError("already there", slide=str(path), remedy="pass {overwrite=True} or another path")
    with replacing(path) as partial:
        partial.write_bytes(content)


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def address_in(path: str | Path) -> str | None:
    """Return the address that was given in place of a path, such as s3://bucket/a.svs; None for a path.

    Examples
    --------
    >>> address_in(Path("s3://bucket/a.svs").absolute()), address_in("C:/slides/a.svs"), address_in("/slides/a.svs")
    ('s3://bucket/a.svs', None, None)
    """
    found = _ADDRESS.search(str(path))
    if found is None or os.path.exists(str(path)[: found.end(1) + 1]):  # a folder may be called "study:"
        return None
    return f"{found[1]}://{found[2]}"


def not_there(
    kind: type[SlideioPipeError], reason: str, path: str | Path, remedy: str = "check the path"
) -> SlideioPipeError:
    """Return the error for a path at which nothing is; for an address, its reason is that it is no path.

    Examples
    --------
    >>> print(not_there(SlideioPipeError, "no such file", "a.svs"))
    a.svs: no such file; check the path
    >>> print(not_there(SlideioPipeError, "no such file", "s3://bucket/a.svs"))
    s3://bucket/a.svs: an address, not a file; copy it to a disk, or mount it, and pass the path (guide, page 14)
    """
    address = address_in(path)
    if address is None:
        return kind(reason, slide=str(path), remedy=remedy)
    return kind("an address, not a file", slide=address, remedy=TO_PATH)


def _refuse_address(output: Path) -> None:
    """Raise OutputError for an address as an output, which would be written here, into a folder called "s3:"."""
    address = address_in(output)
    if address is not None:
        remedy = "write to a disk or a mounted folder, then copy it there (guide, page 14)"
        raise OutputError("an address, not a folder", slide=address, remedy=remedy)


def make_folder(folder: Path) -> None:
    """Make a folder for outputs, and those above it; raise OutputError if it cannot be made."""
    _refuse_address(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"the folder cannot be made ({error.strerror})", slide=str(folder), remedy="choose another one"
        ) from error


def open_to_read(path: Path) -> int:
    """Return a descriptor for ``pread``, which many threads may use at once."""
    return os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))  # Windows would translate line ends


_SEEKING = threading.Lock()


def _pread(fd: int, count: int, offset: int) -> bytes:
    """``os.pread`` for Windows, which has none."""
    with _SEEKING:
        before = os.lseek(fd, 0, os.SEEK_CUR)
        try:
            os.lseek(fd, offset, os.SEEK_SET)
            return os.read(fd, count)
        finally:
            os.lseek(fd, before, os.SEEK_SET)


def _preadv(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
    """``os.preadv`` of one buffer."""
    data = _pread(fd, len(buffers[0]), offset)
    buffers[0][: len(data)] = data
    return len(data)


pread: Callable[[int, int, int], bytes] = getattr(os, "pread", _pread)
preadv: Callable[[int, Sequence[memoryview], int], int] = getattr(os, "preadv", _preadv)
_FINGERPRINT_BYTES = 65_536


def file_fingerprint(path: Path) -> str:
    """Return a fingerprint of a file in 16 hex digits: a hash of its size, its first and its last 64 KiB."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(_FINGERPRINT_BYTES))
        file.seek(max(0, size - _FINGERPRINT_BYTES))
        digest.update(file.read(_FINGERPRINT_BYTES))
    return digest.hexdigest()[:16]


def package_versions() -> dict[str, str]:
    """Return the versions that pixels depend on."""
    names = ("pyvips-binary", "openslide-bin", "imagecodecs", "pillow")
    found = {"slideio-pipe": __version__}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # conda calls some of them otherwise
            continue
    return found


def size_text(count: float) -> str:
    """Return a number of bytes as people say it.

    Examples
    --------
    >>> size_text(768), size_text(39_500_000), size_text(5.55e10)
    ('768 B', '39.5 MB', '55.5 GB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"
