"""Files written whole or not at all; folders, fingerprints, and what a full disk means in words."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.metadata
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slideio_pipe.errors import OutputError, OutputExistsError, SlideioPipeError


def rename(source: Path, target: Path) -> None:
    """Rename, in place of a file that is there; a failure of what was done all the same is none.

    An NFS server whose answer is lost is asked again, and finds that there is nothing left to rename.
    """
    moved = source.stat()
    try:
        source.replace(target)
    except OSError:
        if os.path.lexists(source) or not (target.exists() and os.path.samestat(moved, target.stat())):
            raise


def write_file(path: Path, content: bytes, *, overwrite: bool) -> None:
    """Write a file under another name and rename it, so that no half-written mask is ever found."""
    if path.exists() and not overwrite:
        raise OutputExistsError("already there", slide=str(path), remedy="pass overwrite=True or another path")
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(content)
        rename(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise OutputError(
            f"cannot be written ({error})", slide=str(path), remedy="check folder, rights and space"
        ) from error


REMEDIES = {
    errno.ENOSPC: "free some space and run again: finished shards are kept",
    errno.EDQUOT: "free some of your quota and run again: finished shards are kept",
    errno.EFBIG: "lift the file size limit (ulimit -f) and run again: finished shards are kept",
    errno.EROFS: "choose a folder on a writable disk",
    errno.EACCES: "choose a folder you may write to",
    errno.EPERM: "choose a folder you may write to",
    errno.EEXIST: "choose a folder: a file is in the way",
    errno.ENOTDIR: "choose a folder: a file is in the way",
}


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses into an OutputError that names ``path``, the reason and the remedy."""
    try:
        yield
    except SlideioPipeError:  # some are OSErrors: a tile of the slide that cannot be read is no fault of this disk
        raise
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0, "see to the disk and run again: finished shards are kept")
        raise OutputError(f"cannot be written ({error.strerror})", slide=str(path), remedy=remedy) from error


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield another name to write to, a file's or a folder's, which becomes ``path`` when all went well.

    Raises
    ------
    OutputError
        The disk refuses.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(partial)
        yield partial
        if path.is_dir():
            _remove(path)  # a folder cannot be renamed onto one
        os.replace(partial, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            _remove(partial)
        if isinstance(error, OSError) and not isinstance(error, SlideioPipeError):
            remedy = "check folder, rights and space, and run it again"
            raise OutputError(f"cannot be written ({error})", slide=str(path), remedy=remedy) from error
        raise


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder for outputs, and those above it.

    Raises
    ------
    OutputError
        It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"the folder cannot be made ({error.strerror})", slide=str(folder), remedy="choose another one"
        ) from error


_FINGERPRINT_BYTES = 65_536


def file_fingerprint(path: Path) -> str:
    """Return sixteen hex digits that tell a file from another: of its size, its first and its last 64 KiB."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(_FINGERPRINT_BYTES))
        file.seek(max(0, size - _FINGERPRINT_BYTES))
        digest.update(file.read(_FINGERPRINT_BYTES))
    return digest.hexdigest()[:16]


def package_versions() -> dict[str, str]:
    """Return the versions that pixels depend on."""
    names = ("slideio-pipe", "pyvips-binary", "openslide-bin", "imagecodecs", "pillow")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # conda calls some of them otherwise
            continue
    return found
