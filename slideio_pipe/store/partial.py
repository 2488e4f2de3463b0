"""Writing into ``<name>.partial`` and giving it its name when it is whole; one writer at a time.

Beside the output ``a.bag.zarr`` may lie, while it is written or after a kill:

- ``a.bag.zarr.partial``   the unfinished store; the next run goes on with it when it is the same work
- ``a.bag.zarr.lock``      who writes: pid and host
- ``a.bag.zarr.replaced``  the former store, for the moment between two renames; with a number behind it when what NFS
  keeps of a removed folder (``.nfs…``, as long as somebody has the file open) still has that name
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType

from slideio_pipe.errors import OutputError, OutputExistsError, SlideioPipeError
from slideio_pipe.store.layout import TOP_LEVEL, is_bag_store
from slideio_pipe.store.shards import sync_folder
from slideio_pipe.tiles.mask_files import rename

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
# flock is missing on some network file systems (Lustre mounted without it); then the pid alone has to tell.
NO_FLOCK = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}
# How long a run waits for a lock of a run: workers of a killed one end when they hear of it, not at once.
_ORPHANS_S = 10.0
_RUN: ContextVar[str | None] = ContextVar("run", default=None)


@contextmanager
def within_run(folder: Path) -> Iterator[None]:
    """Mark the locks that are taken here as those of a folder's runs, and take over what lost workers of them left.

    For workers of whoever holds the ``run.lock`` of the folder: no other run of it can be at work, so such a lock is
    that of a worker which was given up, on whatever host. Outside of this a lock of another host is respected.
    """
    token = _RUN.set(str(folder))
    try:
        yield
    finally:
        _RUN.reset(token)


def remove_left_lock(target: Path) -> None:
    """Remove the lock of a process that was killed when ``target`` had its name already; another's is left to him."""
    lock = target.with_name(target.name + ".lock")
    if lock.exists():
        with suppress(SlideioPipeError, OSError):
            left = WriterLock(lock)
            left.acquire()
            left.release()


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


class PartialStore:
    """The right to write one bag store, and the folder to write it into, as a context manager.

    Parameters
    ----------
    target : Path
        The final name.
    overwrite : bool
        Whether a bag store of that name may be replaced. Anything else there is refused in any case.

    Raises
    ------
    OutputExistsError
        On entering, when something is at ``target`` and may not be replaced.
    OutputError
        On entering, when the folder is not writable or another process is writing this bag.
    """

    def __init__(self, target: Path, *, overwrite: bool) -> None:
        self.target, self._overwrite = target, overwrite
        self.folder = target.with_name(target.name + ".partial")
        self._lock = WriterLock(target.with_name(target.name + ".lock"))

    def __enter__(self) -> PartialStore:
        self._refuse_existing()
        with disk_errors(self.target):
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            try:
                self._finish_interrupted_swap()
                self._refuse_existing()
            except BaseException:
                self._lock.release()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lock.release()

    def begin(self, files: Mapping[str, bytes]) -> None:
        """Make the partial store hold ``files``; shards in it stay when it held exactly these already."""
        with disk_errors(self.folder):
            if all(_holds(self.folder / name, data) for name, data in files.items()):
                return
            if self.folder.exists():
                self._clear()
            for name, data in files.items():
                file = self.folder / name
                file.parent.mkdir(parents=True, exist_ok=True)
                with file.open("wb") as out:
                    out.write(data)
                    out.flush()
                    os.fsync(out.fileno())

    def tell(self, files: Mapping[str, bytes]) -> None:
        """Replace the metadata of the group by that of ``files``, whatever the partial store was begun with."""
        file = self.folder / "zarr.json"
        beside = self.folder / "tiles" / "zarr.json.partial"  # removed with them, should it be left behind
        with disk_errors(file):
            with beside.open("wb") as out:
                out.write(files["zarr.json"])
                out.flush()
                os.fsync(out.fileno())
            beside.replace(file)

    def publish(self) -> None:
        """Give the partial store its final name; the one it replaces stays until then and is removed afterwards."""
        with disk_errors(self.target):
            for folder, _, _ in os.walk(self.folder, topdown=False):
                sync_folder(Path(folder))
            replaced = self._free_name() if self.target.exists() else None
            if replaced is not None:
                rename(self.target, replaced)
            try:
                rename(self.folder, self.target)
            except OSError:
                if replaced is not None:
                    rename(replaced, self.target)
                raise
            sync_folder(self.target.parent)
            if replaced is not None:
                _remove(replaced)

    def _refuse_existing(self) -> None:
        if not os.path.lexists(self.target):
            return
        if not self._overwrite:
            remedy = "open it with open_bag, or pass overwrite=True or another path"
            raise OutputExistsError("already exists", slide=str(self.target), remedy=remedy)
        if not is_bag_store(self.target):
            reason = "exists and is no bag store, so it is not overwritten"
            raise OutputExistsError(reason, slide=str(self.target), remedy="remove it or pass another path")

    def _finish_interrupted_swap(self) -> None:
        """Undo or complete a swap that was killed between its renames."""
        for replaced in self._replaced():
            if os.path.lexists(self.target):
                if _is_of_store(replaced):
                    _remove(replaced)
            elif is_bag_store(replaced):
                rename(replaced, self.target)

    def _replaced(self) -> list[Path]:
        """Return what former stores were renamed to and is still there."""
        name = re.compile(rf"{re.escape(self.target.name)}\.replaced\d*")
        return sorted(path for path in self.target.parent.iterdir() if name.fullmatch(path.name))

    def _free_name(self) -> Path:
        """Return what the former store is called while it is replaced."""
        taken = {path.name for path in self._replaced()}
        name = f"{self.target.name}.replaced"
        names = itertools.chain([name], (f"{name}{number}" for number in itertools.count(1)))
        return self.target.with_name(next(name for name in names if name not in taken))

    def _clear(self) -> None:
        if not _is_of_store(self.folder):
            reason = "exists and is no unfinished bag store, so it is not removed"
            raise OutputExistsError(reason, slide=str(self.folder), remedy="remove it or pass another path")
        shutil.rmtree(self.folder)


def _is_of_store(folder: Path) -> bool:
    """Return whether nothing is there but parts of a store, and what NFS keeps of removed files."""
    if not folder.is_dir():
        return False
    return {entry.name for entry in folder.iterdir() if not entry.name.startswith(".nfs")} <= TOP_LEVEL


def _remove(folder: Path) -> None:
    """Remove a former store as far as it can be: what NFS keeps for readers goes when they close it."""
    with suppress(OSError):
        # Its metadata first: half of it must never be taken for a store.
        (folder / "zarr.json").unlink(missing_ok=True)
        shutil.rmtree(folder)


def _holds(file: Path, data: bytes) -> bool:
    try:
        return file.stat().st_size == len(data) and file.read_bytes() == data
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False


class WriterLock:
    """A file with the pid and host of the one writer, under an ``flock`` that ends with the process.

    On this host the ``flock`` decides, so a lock left by a killed process is taken over. A lock of another host is
    respected, because not every network file system carries an ``flock`` over; but see ``within_run``. No clock is
    compared: those of two hosts differ.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None
        self._mine: dict[str, object] = {}

    def acquire(self) -> None:
        """Take the lock, or raise OutputError naming who has it."""
        run, begun = _RUN.get(), time.monotonic()
        while self._fd is None:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                owner = _owner(fd)
                of_run = run is not None and owner.get("run") == run
                busy = self._is_busy(fd, owner, respected=not of_run)
                if busy and (not of_run or time.monotonic() > begun + _ORPHANS_S):
                    raise self._refusal(owner)
                if not busy and self._is_current(fd):  # else its owner finished and removed it in between: look again
                    self._mine = {"pid": os.getpid(), "host": socket.gethostname(), "run": run}
                    os.truncate(fd, 0)
                    os.pwrite(fd, json.dumps(self._mine).encode(), 0)
                    self._fd = fd
            finally:
                if self._fd is None:
                    os.close(fd)
            if busy:
                time.sleep(0.1)

    def release(self) -> None:
        """Remove the file, then let go."""
        if self._fd is not None:
            if _owner(self._fd) == self._mine:  # else this process was given up, and its lock is another's
                self._path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = None

    def _is_busy(self, fd: int, owner: Mapping[str, object], *, respected: bool) -> bool:
        """Return whether somebody has it; else it is locked by this process, as far as the file system knows locks."""
        elsewhere = respected and bool(owner) and owner.get("host") != socket.gethostname()
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno not in NO_FLOCK:
                raise
            here = owner.get("host") == socket.gethostname()
            return elsewhere or (here and _is_alive(owner.get("pid")))
        return elsewhere

    def _refusal(self, owner: Mapping[str, object]) -> OutputError:
        who = f"process {owner.get('pid', '?')} on {owner.get('host', '?')}"
        remedy = f"wait for it; if it no longer runs, remove {self._path}"
        return OutputError(f"is being written by {who}", slide=str(self._path.with_suffix("")), remedy=remedy)

    def _is_current(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), self._path.stat())
        except FileNotFoundError:
            return False


def _owner(fd: int) -> dict[str, object]:
    try:
        owner = json.loads(os.pread(fd, 4096, 0))
    except ValueError:
        return {}  # killed between making the file and writing it
    return owner if isinstance(owner, dict) else {}


def _is_alive(pid: object) -> bool:
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's, but alive
    return True
